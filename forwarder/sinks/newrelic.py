"""New Relic: metrics to the Metric API, changes to the Event API, by New Relic's own SDK.

One call is one request to one of the two addresses, with as many of the leading events as go there and fit. New Relic
checks what it took only after it has answered and drops what breaks a rule without telling the sender, so the rules
are kept here: `newrelic_items` has those about names and sizes, this module those about time. What New Relic dropped
all the same stands in its own `NrIntegrationError`, under the id of the request: see `last_request_id`.
"""

import json
import logging
import re
import ssl
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import msgspec

from forwarder.events import Attributes, Batch, Change, Event
from forwarder.logs import fields
from forwarder.secrets import Secret
from forwarder.sinks import newrelic_client
from forwarder.sinks.base import Blocked, Delivered, Limits, Outcome, Rejected, Retry
from forwarder.sinks.http import failed, misled
from forwarder.sinks.newrelic_client import Channel
from forwarder.sinks.newrelic_items import Item, change_item, metric_items, shared, without
from forwarder.transport.post import Answer, Poster

log = logging.getLogger(__name__)

# Metric API, base URL and Event API, base URL. The SDK knows the American ones only.
REGIONS: Final = {
    "us": ("https://metric-api.newrelic.com", "https://insights-collector.newrelic.com"),
    "eu": ("https://metric-api.eu.newrelic.com", "https://insights-collector.eu01.nr-data.net"),
}

HOUR: Final = 3600 * 10**9  # ns
# New Relic's windows, less half an hour for clocks that differ and for what waits on the way.
METRIC_AGE: Final = 48 * HOUR - HOUR // 2
CHANGE_AGE: Final = 24 * HOUR - HOUR // 2  # "within the last 24 hours", says the Event API's page
AHEAD: Final = 24 * HOUR - HOUR // 2
# An interval may begin a little before the oldest point there can be, so that even that point has one.
OLDEST_START: Final = METRIC_AGE + HOUR // 4

# The limit is 1 MB of what is sent, which is compressed; that is never larger than what it is made of, and a request
# over 100 kB takes New Relic longer. So the limit is on the JSON, which compresses to less than that.
MAX_JSON: Final = 980_000  # bytes

_NUMBERS: Final = 16  # bytes by which the numbers of an item may differ, and a comma
_encode: Final = msgspec.json.Encoder().encode

_ID: Final = re.compile(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")


class _Request(NamedTuple):
    """`taken` of the events given, from the first on, made these items for this channel."""

    channel: Channel
    items: list[Item]
    taken: int
    length: int  # bytes of JSON, before anything is shared


class NewRelicSink:
    """`url` and `events_url` are base URLs; the SDK knows the paths. `last_request_id`: what New Relic called the last
    request that it took, for its `NrIntegrationError` and its support.
    """

    limits: Final = Limits(max_events=2000, max_bytes=1_000_000, max_age=METRIC_AGE / 1e9)

    def __init__(  # noqa: PLR0913 - settings, told by name
        self,
        name: str,
        key: Secret,
        context: ssl.SSLContext,
        *,
        url: str,
        events_url: str,
        proxy: str | None = None,
        changes: bool = True,
        histogram_buckets: bool = True,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        """HttpProblem for a URL that nothing can be sent to."""
        self.name: Final = name
        self.last_request_id = ""
        self._metrics = newrelic_client.metrics(key, Poster(url, {}, context, proxy=proxy, clock=clock))
        self._events = newrelic_client.events(key, Poster(events_url, {}, context, proxy=proxy, clock=clock))
        self._changes = changes
        self._buckets = histogram_buckets
        self._clock = clock

    def __repr__(self) -> str:
        return f"NewRelicSink({self.name!r})"

    def send(self, batches: Sequence[Batch], *, timeout: float) -> Outcome:
        given = [(event, batch.resource.attributes) for batch in batches for event in batch.events]
        if not given:
            return Delivered()
        request = self._gather(given, self._clock())
        if isinstance(request, Rejected):
            return request
        if not request.items:
            return Delivered(events=_part(request, given))
        common = shared(request.items) if request.channel is self._metrics else {}
        items = [without(item, common) for item in request.items] if common else request.items
        if request.length > MAX_JSON and len(json.dumps([*items, common])) > MAX_JSON:
            return Rejected("one event is more than New Relic takes in a request (1 MB)", events=1)
        answer = request.channel.send(items, common, timeout=timeout)
        return self._outcome(answer, request, _part(request, given))

    def close(self) -> None:
        self._metrics.close()
        self._events.close()

    # --- what goes into one request -------------------------------------------------------------------------------

    def _gather(self, given: Sequence[tuple[Event, Attributes]], now: int) -> _Request | Rejected:
        channel = self._channel(given[0][0])
        items: list[Item] = []
        taken = length = 0
        for event, resource in given:
            if self._channel(event) is not channel:
                break
            more = self._items(event, resource, now)
            if more and (reason := _untimely(event, now)):
                if taken:
                    break
                return Rejected(reason, events=1, too_old=True)
            size = sum(map(_length if channel is self._metrics else _whole_length, more))
            if taken and length + size > MAX_JSON:
                break
            items += more
            length += size
            taken += 1
        return _Request(channel, items, taken, length)

    def _channel(self, event: Event) -> Channel:
        return self._events if isinstance(event, Change) and self._changes else self._metrics

    def _items(self, event: Event, resource: Attributes, now: int) -> list[Item]:
        if isinstance(event, Change):
            return [change_item(event, resource)] if self._changes else []
        return metric_items(event, resource, oldest=now - OLDEST_START, buckets=self._buckets)

    # --- what the answer means ------------------------------------------------------------------------------------

    def _outcome(self, answer: Answer, request: _Request, part: int | None) -> Outcome:
        origin = request.channel.poster.origin
        outcome = (
            failed(answer, origin)
            or _too_much(answer, origin, request.taken)
            or misled(answer, origin)
            or _refused(answer, origin, request.taken)
        )
        if outcome is not None:
            return outcome
        status, key = (202, "requestId") if request.channel is self._metrics else (200, "uuid")
        request_id = _request_id(answer.body, key) if answer.status == status else None
        if request_id is None:
            return Blocked(f"{origin} answers HTTP {answer.status}, but not as New Relic does: is the URL right?")
        self.last_request_id = request_id
        log.debug("New Relic took a request", extra=fields(sink=self.name, events=request.taken, request=request_id))
        return Delivered(events=part)


def _too_much(answer: Answer, origin: str, taken: int) -> Outcome | None:
    """Also where it is a relay that says so, with a page for people."""
    match answer.status:
        case 408:
            return Retry(f"{origin} waited too long for the request (HTTP 408)", answer.retry_after)
        case 413:
            return Rejected(f"{origin} takes no request of this size (HTTP 413)", events=taken)
        case 429:
            return Retry(f"{origin} takes no more for now: too many requests or points (HTTP 429)", answer.retry_after)
    return None


def _refused(answer: Answer, origin: str, taken: int) -> Outcome | None:
    match answer.status:
        case 400:
            return Rejected(f"{origin} does not understand the request (HTTP 400)", events=taken)
        case int(status) if status >= 500:
            return Retry(f"{origin} fails (HTTP {status})", answer.retry_after)
    return None


def _part(request: _Request, given: Sequence[object]) -> int | None:
    return None if request.taken == len(given) else request.taken


def _whole_length(item: Item) -> int:
    """Bytes that it adds to a request."""
    return len(json.dumps(item)) + 2


def _length(item: Item) -> int:
    """The same of a metric, which goes without spaces; rather more than less. Python's JSON takes most of the time of
    a request; this differs in numbers like 1e+16 and in what is escaped there.
    """
    data = _encode(item)
    if not data.isascii() or b"\x7f" in data:
        return _whole_length(item)
    return len(data) + _NUMBERS


def _untimely(event: Event, now: int) -> str:
    """Why New Relic would drop it for its time; empty where it would not."""
    if event.time > now + AHEAD:
        return "its time is a day ahead: did the clock go back?"
    if isinstance(event, Change):
        return "older than New Relic takes events (24 h)" if event.time < now - CHANGE_AGE else ""
    return "older than New Relic takes metrics (48 h)" if event.time < now - METRIC_AGE else ""


def _request_id(body: bytes, key: str) -> str | None:
    """None: not an answer of New Relic's. Empty: one, with an id in a form that we do not repeat."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return None
    found = answer.get(key) if isinstance(answer, dict) else None
    if not isinstance(found, str) or not found or answer.get("success") is False:
        return None
    return found if _ID.fullmatch(found) else ""
