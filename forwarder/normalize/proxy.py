"""What a proxy says of itself: liveliness, readiness, and the verdict `litellm.health`."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from forwarder.normalize.envelope import Envelope, is_page
from forwarder.normalize.reading import Endpoint, Reading
from forwarder.reply import Failure, Reply

_HEALTHY_WORDS: Final = frozenset({"healthy", "ready", "connected"})  # "connected": 1.77.7 with a database
_UNHEALTHY_WORDS: Final = frozenset({"unhealthy", "not_ready", "error", "shutting_down"})
# "Not connected" is in neither: real proxies say it when no database is configured.
_CONNECTED_WORDS: Final = frozenset({"connected", "healthy", "initialized"})
_DISCONNECTED_WORDS: Final = frozenset({"disconnected", "stalled", "unhealthy", "error", "not_initialized"})
_RELEASE: Final = re.compile(r"v?[0-9][0-9A-Za-z.+_-]{0,39}", re.ASCII)


def liveliness(envelope: Envelope, reply: Reply) -> Reading:
    """Alive is any 2xx that is not a page: the documentation promises no more than "200 if the process runs",
    so an empty body and plain text are fine. A worker that drains says 503 shutting_down (1.106 and later).
    """
    word = _word(envelope.object, "status")
    if envelope.successful:
        if is_page(reply):
            return Reading(alive=False, error="not_json")
        return Reading(alive=True, complaint=complaint(envelope.object))
    if envelope.status == 503 and word == "shutting_down":
        return Reading(alive=False, complaint=True)
    # Something answers HTTP but does not let us see.
    hidden = envelope.error in {"auth", "rate_limited"}
    return Reading(alive=None if hidden else False, error=envelope.error)


def readiness(envelope: Envelope, reply: Reply) -> Reading:
    """Ready is the HTTP status, not the body's `status`: 1.109.1 answers 503 with status "healthy" while its database
    is down. Only the documented word not_ready overrules the status.
    """
    content = envelope.object
    said = readiness_details(envelope, reply)
    ready: bool | None = None
    error = envelope.error
    if _word(content, "status") == "not_ready":
        ready, error = False, None
    elif envelope.successful:
        if is_page(reply):  # a log-in page says nothing of the proxy
            error = "not_json"
        elif error != "malformed":  # cut off: what is missing might have said not_ready
            ready, error = True, None
    elif envelope.status is not None and envelope.status >= 500 and error == "http_5xx":
        ready = False
        error = None if envelope.status == 503 and content is not None else error
    return Reading(
        ready=ready, error=error, complaint=said.complaint, version=said.version, dependencies=said.dependencies
    )


def readiness_details(envelope: Envelope, reply: Reply) -> Reading:  # noqa: ARG001 - all endpoints are called alike
    """The long readiness body: status, db, litellm_version. Its status code is not a readiness verdict."""
    content = envelope.readable
    # not_ready is believed with any status; the rest of such a body as well.
    if content is None and _word(envelope.object, "status") == "not_ready":
        content = envelope.object
    if content is None:
        return Reading(error=envelope.error or "unexpected")
    known = content.keys() & {"status", "db", "litellm_version", "db_initialized", "router_initialized", "cache"}
    if not known and envelope.status == 503:
        return Reading(error=envelope.error)
    return Reading(
        error=None if known else "unexpected",
        complaint=complaint(content),
        version=release(content.get("litellm_version")),
        dependencies=dependencies(content),
    )


TRANSPORT: Final = frozenset(str(failure) for failure in Failure)  # `error`s of a reading that no whole reply came for


def verdict_of(said: Mapping[Endpoint, Reading]) -> bool | None:
    """`litellm.health` from what each endpoint said last."""
    liveliness, readiness = said.get("liveliness"), said.get("readiness")
    ready = readiness.ready if readiness else None
    # Not answering is not answering 2xx; only what we were not allowed to see stays unknown.
    if readiness and ready is None and readiness.error in TRANSPORT:
        ready = False
    return verdict(liveliness.alive if liveliness else None, ready, [reading.complaint for reading in said.values()])


def verdict(alive: bool | None, ready: bool | None, complaints: Iterable[bool | None]) -> bool | None:
    """`litellm.health` as the catalog describes it. None: not known, so no point is sent."""
    if alive is False or ready is False or any(complaints):
        return False
    return True if alive and ready else None


def complaint(content: Mapping[str, Any] | None) -> bool | None:
    """Does the body's own `status` call the proxy unhealthy? None when it says neither."""
    word = _word(content, "status")
    if word in _UNHEALTHY_WORDS:
        return True
    return False if word in _HEALTHY_WORDS else None


def connected(word: object) -> bool | None:
    """A dependency's state out of the word for it."""
    state = word.strip().lower() if isinstance(word, str) and len(word) <= 40 else None
    if state in _CONNECTED_WORDS:
        return True
    return False if state in _DISCONNECTED_WORDS else None


def dependencies(content: Mapping[str, Any]) -> dict[str, bool]:
    """Real proxies: `db`. Documented ones: `db` and `redis` in /health, the two booleans in readiness."""
    found = {"database": connected(content.get("db")), "redis": connected(content.get("redis"))}
    for key, dependency in (("db_initialized", "database"), ("router_initialized", "router")):
        if isinstance(content.get(key), bool):
            found[dependency] = content[key]
    return {dependency: up for dependency, up in found.items() if up is not None}


def release(value: object) -> str | None:
    """A release number, or None: what does not look like one is not passed on."""
    return value if isinstance(value, str) and _RELEASE.fullmatch(value) else None


def _word(content: Mapping[str, Any] | None, key: str) -> str | None:
    value = content.get(key) if content else None
    return value.strip().lower() if isinstance(value, str) and len(value) <= 40 else None
