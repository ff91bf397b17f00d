"""From a `Reply` to its JSON, or to the reason why there is none: what all endpoints have in common."""

import json
from dataclasses import dataclass
from typing import Any, Final

from forwarder import catalog
from forwarder.events import Metric, finite
from forwarder.normalize.reading import Endpoint
from forwarder.reply import Reply

# Open on every release; the others need a key once the proxy has a master key.
OPEN_ENDPOINTS: Final[frozenset[str]] = frozenset({"liveliness", "readiness"})

_LIKELY_FIX: Final[dict[str, str]] = {
    "timeout": "no complete reply in time; raise the endpoint's timeout if the proxy is merely slow",
    "dns": "the host name of the target's url does not resolve",
    "refused": "nothing listens at the target's url; check host and port",
    "unreachable": "there is no route to the target's host",
    "tls": "the TLS handshake failed; check the certificate and the CA",
    "connection": "the connection broke, or the peer does not speak HTTP",
    "too_large": "the reply is over the cap",
    "encoding": "the reply's compression is damaged",
    "proxy": "the configured forward proxy failed",
    "redirect": "the answer is a redirect, which is not followed; set the target's url to where it leads",
    "not_found": "every LiteLLM proxy has this endpoint; check the path in the target's url",
    "rate_limited": "something limits our requests (429); raise the interval",
    "http_4xx": "the request was refused",
    "http_5xx": "the server failed",
    "not_json": "the answer is a page or plain text, not LiteLLM's; check what the target's url points at",
    "malformed": "the JSON is cut off or damaged",
    "unexpected": "the JSON is not this endpoint's; check what the target's url points at",
}
_REFUSED_KEY: Final = "the key was refused (a proxy whose database is down answers the same)"
_MISSING_KEY: Final = "the proxy wants a key and none is configured; set the target's api_key"


@dataclass(frozen=True, slots=True)
class Envelope:
    """`content` is the parsed JSON, of any status, or None. `error` is None exactly when a 2xx came with JSON;
    an endpoint that can read more than that (a 503 with a body, plain text) decides so by itself.
    """

    status: int | None = None
    content: Any = None
    error: str | None = None
    absent: bool = False

    @property
    def successful(self) -> bool:
        return self.status is not None and 200 <= self.status < 300

    @property
    def object(self) -> dict[str, Any] | None:
        """The content when it is a JSON object."""
        return self.content if isinstance(self.content, dict) else None

    @property
    def readable(self) -> dict[str, Any] | None:
        """The object of a 2xx, or of a 503: LiteLLM 1.106 and later answer 503 with the normal body
        (a targeted /health whose model fails, readiness without its database).
        """
        return self.object if self.successful or self.status == 503 else None


# Values in a reply: small ones (`{}`) take fifty times their size when parsed. 200 deployments had 20,000 in the
# wordiest /health recorded (1.80.17).
MAX_VALUES: Final = 500_000


def unwrap(endpoint: Endpoint, reply: Reply, *, keyed: bool) -> Envelope:
    """Total: any status, any bytes. `keyed`: whether the request carried a key."""
    if reply.failure is not None:
        return Envelope(error=reply.failure.value)
    status = reply.status
    if status is None:
        return Envelope(error="connection")
    content, damage = parse(reply)
    if 200 <= status < 300:
        return Envelope(status, content, damage)
    if status in {404, 405, 422}:
        if endpoint in OPEN_ENDPOINTS:
            return Envelope(status, content, "not_found")
        return Envelope(status, content, absent=True)
    keyless = not keyed and endpoint not in OPEN_ENDPOINTS and _refuses_keyless(status, reply)
    return Envelope(status, content, "auth" if keyless or _refuses_key(status, content) else _by_status(status))


def parse(reply: Reply) -> tuple[Any, str | None]:
    """The JSON of a body; or None and `too_large` (more values than MAX_VALUES), `not_json` (a page, text, nothing) or
    `malformed` (cut off or damaged).
    """
    if reply.body.count(b",") > MAX_VALUES:
        return None, "too_large"
    text = reply.body.decode("utf-8-sig", "replace")
    try:
        return json.loads(text), None
    except (ValueError, RecursionError):  # RecursionError: a nesting bomb. ValueError: also a number of >4300 digits
        pass
    start = text.lstrip()[:1]
    if start in {"", "<"}:
        return None, "not_json"
    cut_off = start in {"{", "[", '"'} or "json" in reply.content_type.lower()
    return None, "malformed" if cut_off else "not_json"


def is_page(reply: Reply) -> bool:
    """HTML or XML, judged by its first character: web frameworks label a plain "OK" text/html by default."""
    return reply.body.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"<"


def _refuses_keyless(status: int, reply: Reply) -> bool:
    # 1.106.2 without its prisma package crashes on a request without a key: 500 text/plain, not 401.
    return (
        status == 500
        and reply.content_type.lower().startswith("text/plain")
        and reply.body.strip() == b"Internal Server Error"
    )


def _refuses_key(status: int, content: object) -> bool:
    if status in {401, 403}:
        return True
    # A wrong key without a database, 1.77 and later: 400 {"error": {"type": "no_db_connection", ...}}.
    error = content.get("error") if isinstance(content, dict) else None
    return status == 400 and isinstance(error, dict) and error.get("type") == "no_db_connection"


def _by_status(status: int) -> str:
    if status == 429:
        return "rate_limited"
    if 300 <= status < 400:
        return "redirect"
    if 400 <= status < 500:
        return "http_4xx"
    return "http_5xx" if status >= 500 else "unexpected"


def explain(error: str | None, *, keyed: bool) -> str:
    """One clause for a log with the likely fix; never text of the peer. Empty when there is no error."""
    if error is None:
        return ""
    if error == "auth":
        return _REFUSED_KEY if keyed else _MISSING_KEY
    return _LIKELY_FIX.get(error, "the reply could not be read")


def probe_metrics(endpoint: str, reply: Reply, error: str | None) -> tuple[Metric, ...]:
    """How reading the endpoint went: success, class of failure, duration, and size when a whole reply arrived.

    `endpoint` is the attribute, also for endpoints that are normalised elsewhere (`metrics`);
    `error` is a key of catalog.PROBE_ERRORS or None.
    """
    where = {"endpoint": endpoint}
    found = [catalog.PROBE_SUCCESS.at(reply.time, 0 if error else 1, {**where})]
    if error:
        found.append(catalog.PROBE_FAILURE.at(reply.time, 1, {**where, "error.type": error}))
    if (elapsed := finite(reply.elapsed)) is not None:
        found.append(catalog.PROBE_DURATION.at(reply.time, max(elapsed, 0), {**where}))
    if reply.failure is None and reply.status is not None:
        found.append(catalog.PROBE_RESPONSE_SIZE.at(reply.time, len(reply.body), {**where}))
    return tuple(found)
