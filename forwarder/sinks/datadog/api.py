"""Datadog's intake over HTTPS: metrics to /api/v2/series, service checks to /api/v1/check_run, changes one by one to
/api/v1/events. What it acknowledges is delivered.

Statuses are those of the API reference; which of them the data is to blame for is decided here, because an intake that
answers like this may also be a relay, a gateway or a log-in page. The key goes in its header and nowhere else.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import msgspec

from forwarder.events import Batch
from forwarder.sinks.base import Blocked, Delivered, Limits, Outcome, Rejected, Retry
from forwarder.sinks.datadog.payloads import (
    MAX_COMPRESSED,
    MAX_RAW,
    ROOM,
    Parts,
    check_runs,
    compressed,
    note,
    parts,
    series,
)
from forwarder.sinks.datadog.points import Form, Item, Note, items
from forwarder.sinks.http import failed, misled
from forwarder.transport.post import Answer, Poster

# Datadog takes metrics "up to 10 minutes in the future" [API reference, Submit metrics]; less what clocks differ by.
AHEAD: Final = 540  # seconds

_HEADERS: Final = {"content-type": "application/json", "content-encoding": "gzip"}


class DatadogApiSink:
    """`poster` has the address, and the key among its headers. `max_age`: seconds after which Datadog takes no metric
    any more. `clock`: ns UTC.
    """

    def __init__(
        self,
        name: str,
        poster: Poster,
        form: Form,
        *,
        max_age: float,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self.name: Final = name
        self.limits: Final = Limits(max_events=5000, max_bytes=4_000_000, max_age=max_age)
        self._poster = poster
        self._form = form
        self._clock = clock

    def __repr__(self) -> str:
        return f"DatadogApiSink({self.name!r})"

    def send(self, batches: Sequence[Batch], *, timeout: float) -> Outcome:
        """What stands before the first change goes in one request, or the change if it is first. Service checks have
        an address of their own and go before the metrics that they are made of: sent again after the second request
        failed they say the same of the same moment, while a count would be counted twice.
        """
        deadline = time.monotonic() + timeout
        events, change = self._first(batches)
        if change:
            return self._post("/api/v1/events", compressed(note(change)), 1, deadline)
        if not events:
            return Delivered()
        events, checks, metrics = _fitting(events)
        outcome: Outcome = Delivered(events=len(events))
        for path, body in (("/api/v1/check_run", checks), ("/api/v2/series", metrics)):
            if body and isinstance(outcome, Delivered):
                outcome = self._post(path, body, len(events), deadline)
        return outcome

    def close(self) -> None:
        self._poster.close()

    def _first(self, batches: Sequence[Batch]) -> tuple[list[Parts], Note | None]:
        """The leading events that become metrics or nothing, as far as one request may hold them, or the change that
        is the very first.
        """
        found: list[Parts] = []
        size = ROOM
        for made in self._items(batches):
            change = next((item for item in made if isinstance(item, Note)), None)
            if change:
                return found, None if found else change
            event = parts(made)
            size += event.size
            if size > MAX_RAW and found:
                return found, None
            found.append(event)
        return found, None

    def _items(self, batches: Sequence[Batch]) -> Iterator[list[Item]]:
        """Of each event."""
        now = self._clock() // 10**9
        for batch in batches:
            common = self._form.common(batch.resource.attributes)
            for event in batch.events:
                yield list(items(event, common, self._form, now=now, latest=now + AHEAD))

    def _post(self, path: str, body: bytes, events: int, deadline: float) -> Outcome:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            return Retry("no time was left for the second request")
        return outcome_of(self._poster.post(path, body, _HEADERS, timeout=remaining), self._poster.origin, events)


def _fitting(events: list[Parts]) -> tuple[list[Parts], bytes, bytes]:
    """As many of the first as fit into a request once they are compressed, which nothing but compressing tells; at
    least one. Also the bodies of check runs and series, each empty where there is none.
    """
    while True:
        checks, metrics = (compressed(body) if body else b"" for body in (check_runs(events), series(events)))
        largest = max(len(checks), len(metrics))
        if largest <= MAX_COMPRESSED or len(events) == 1:
            return events, checks, metrics
        events = events[: max(1, len(events) * MAX_COMPRESSED * 9 // (largest * 10))]


def outcome_of(answer: Answer, origin: str, events: int) -> Outcome:
    """What an answer to a request of the first `events` events comes to. The statuses that gateways give as well, with
    pages of their own, come first.
    """
    status = answer.status or 0
    if status == 413:
        return Rejected(f"{origin} says that it is too large (HTTP 413)", events=events)
    if status in (408, 429) or status >= 500:
        return Retry(f"{origin} cannot take it now (HTTP {status})", after=_pause(answer))
    if outcome := misled(answer, origin) or failed(answer, origin):
        return outcome
    # Datadog says {"errors": []} of metrics, {"status": "ok"} of everything else, and of what it refuses why.
    said = _json(answer)
    if said.get("errors") and status in (200, 202, 400):
        return Rejected(f"{origin} refuses what was sent (HTTP {status})", events=events)
    if status in (200, 202) and (said.get("status") == "ok" or said.get("errors") == []):
        return Delivered(events=events)
    return Blocked(f"{origin} answers as Datadog does not (HTTP {status}): is the URL right?")


def _json(answer: Answer) -> dict[str, object]:
    """Empty for what is no JSON object."""
    try:
        found = msgspec.json.decode(answer.body)
    except (msgspec.DecodeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _pause(answer: Answer) -> float | None:
    """Seconds, by whichever of the two headers asks for longer."""
    reset = answer.headers.get("x-ratelimit-reset", "")
    asked = [float(reset)] if reset.isascii() and reset.isdigit() and len(reset) < 8 else []
    asked += [] if answer.retry_after is None else [answer.retry_after]
    return max(asked, default=None)
