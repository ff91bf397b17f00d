"""New Relic's intake on a loopback socket: the Metric API and the Event API, which enforce the documented limits, and
the sink's expectation of what arrives there.

New Relic answers 202 or 200 and drops what breaks a limit afterwards. So does this, and counts it as `broken`.
"""

import asyncio
import functools
import json
import re
import ssl
import tempfile
import threading
import uuid
import zlib
from collections.abc import Callable, Coroutine, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Final, NamedTuple

from tls_support import made_in

from backends.facts import Fact, Fault
from backends.http_server import Answer, Request, Response, ScriptedServer, drip, hang, reset
from forwarder.events import Attributes, Batch, Change, Histogram, Metric
from forwarder.secrets import Secret
from forwarder.sinks.base import Sink
from forwarder.sinks.newrelic import NewRelicSink
from forwarder.sinks.newrelic_items import fitting
from forwarder.transport import tls_context

NOW: Final = 1_750_000_001_000_000_000  # ns; a moment after the suite's events, to the receiver and the sink
HOUR: Final = 3600 * 10**3  # ms
TIMES: Final = (NOW - 23 * HOUR * 10**6, NOW + 23 * HOUR * 10**6)  # of metrics and changes alike, with room

METRICS: Final = "/metric/v1"
EVENTS: Final = re.compile(r"/v1/accounts/([0-9]+/)?events")
KEY: Final = re.compile(r"[A-Za-z0-9:._]{1,254}")
# Keys of the Metric API's JSON and what it sets or takes for the identity of an entity; all but `name`.
TAKEN: Final = {
    "interval.ms", "timestamp", "value", "common", "min", "max", "count", "sum", "metrics", "type", "attributes",
    "newrelic.source", "metricName", "endTimestamp", "entity.guid", "entity.name", "entity.type", "accountId",
    "accountID", "appId", "eventType",
}  # fmt: skip
FORMS: Final = {
    "gauge": {"name", "value", "timestamp"},
    "count": {"name", "type", "value", "timestamp", "interval.ms"},
    "summary": {"name", "type", "value", "timestamp", "interval.ms"},
}


class RuleBroken(Exception):  # noqa: N818 - a finding, not an error of ours
    """One of New Relic's rules is broken, and this is the rule."""


def need(condition: object, rule: str) -> None:
    if not condition:
        raise RuleBroken(rule)


# --- what New Relic makes of a request ----------------------------------------------------------------------------


def parsed(request: Request) -> object:
    """The JSON of a request with the right headers and size. RuleBroken otherwise."""
    need(request.method == "POST", "POST only")
    need("?" not in request.path, "the key goes into a header")
    need(request.headers.get("content-type") == "application/json", "Content-Type")
    need(request.headers.get("content-encoding") == "gzip", "Content-Encoding")
    need(uuid.UUID(request.headers["x-request-id"]).version == 4, "x-request-id is a UUID4")
    need(len(request.body) <= 10**6, "1 MB")
    raw = zlib.decompress(request.body, wbits=31)
    return json.loads(raw.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_unique)


def _no_constant(word: str) -> object:
    raise RuleBroken(f"{word} is no JSON")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    need(len(found) == len(pairs), "a key twice")
    return found


def metrics_of(payload: Any) -> list[Fact]:
    need(isinstance(payload, list) and payload, "a list of blocks")
    facts = []
    for block in payload:
        need(block.keys() <= {"common", "metrics"}, "keys of a block")
        common = block.get("common", {})
        need(common.keys() <= {"attributes"}, "keys of common")
        need(isinstance(block["metrics"], list) and block["metrics"], "metrics")
        facts += [_metric(point, common.get("attributes", {})) for point in block["metrics"]]
    return facts


def _metric(point: Any, common: Attributes) -> Fact:
    kind = point.get("type", "gauge")
    need(point.keys() - {"attributes"} == FORMS[kind], f"keys of a {kind}")
    need(isinstance(point["name"], str) and 0 < len(point["name"]) < 255, "name")
    need(not _split_pairs(point["name"]), "UTF-8")
    _timestamp(point["timestamp"], 48)
    value: object = point["value"]
    if kind == "summary":
        value = point["value"]
        need(point["value"].keys() == {"count", "sum", "min", "max"}, "value of a summary")
        need(point["value"]["count"] > 0, "count of a summary")
        need(_number(point["value"]["sum"]), "sum of a summary")
    else:
        need(_number(value), "value")
        need(kind == "gauge" or point["value"] >= 0, "a count is not negative")
    if kind != "gauge":
        need(isinstance(point["interval.ms"], int) and point["interval.ms"] > 0, "interval.ms")
        value = [kind, value, point["interval.ms"]]
    attributes = common | point.get("attributes", {})
    need(len(attributes) <= 100, "100 attributes")
    need(point["name"] not in attributes, "an attribute with the metric's name")
    _attributes(attributes)
    return Fact(point["name"], value, attributes, point["timestamp"] * 10**6)


def events_of(payload: Any) -> list[Fact]:
    need(isinstance(payload, list) and payload, "a list of events")
    return [_event(dict(event)) for event in payload]


def _event(event: Any) -> Fact:
    need(len(event) <= 255, "255 attributes")
    kind, time = event.pop("eventType"), event.pop("timestamp")
    need(re.fullmatch(r"[A-Za-z0-9_:]{1,255}", kind), "eventType")
    _timestamp(time, 24)
    _attributes(event)
    value = [kind, *(event.pop(key, "") for key in ("severity", "title", "text"))]
    return Fact(event.pop("name"), value, event, time * 10**6)


def _timestamp(time: object, hours: int) -> None:
    need(isinstance(time, int), "timestamp")
    assert isinstance(time, int)
    need(NOW // 10**6 - hours * HOUR <= time <= NOW // 10**6 + 24 * HOUR, "timestamp out of the window")


def _attributes(attributes: dict[str, object]) -> None:
    for name, value in attributes.items():
        need(KEY.fullmatch(name) and name not in TAKEN, "name of an attribute")
        if isinstance(value, str):
            need(len(value.encode("utf-16-le", "surrogatepass")) // 2 <= 4096, "4096 characters")
            need(not _split_pairs(value), "UTF-8")
        else:
            need(_number(value) and isinstance(value, int) and -(2**63) <= value < 2**63, "value of an attribute")


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _split_pairs(value: str) -> bool:
    return any(0xD800 <= ord(character) < 0xE000 for character in value)


# --- the intake ---------------------------------------------------------------------------------------------------


class Address(NamedTuple):
    url: str
    ca_file: Path | None


class Intake:
    """Both APIs at one address, in a thread of its own. `tls`: over TLS, with an authority of its own or as told."""

    def __init__(self, key: str, *, tls: bool | ssl.SSLContext = False) -> None:
        self.key = key
        self.fds = ()
        self.attempts = self.broken = 0
        self.requests: list[Request] = []
        self.rules: list[str] = []  # that were broken
        self._fault: Fault | None = None
        self._answer: Callable[[Request], Answer] | None = None
        self._seen: list[Fact] = []
        self._begun = self._wrong = 0
        self._lock = threading.Lock()
        self._folder = tempfile.TemporaryDirectory() if tls is True else None
        authority = made_in(Path(self._folder.name)) if self._folder else None
        context = authority.server() if authority else tls or None
        self._server = ScriptedServer(self._handle, tls=context if isinstance(context, ssl.SSLContext) else None)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._do(self._server.__aenter__())
        self.address = Address(self._server.url, authority.ca_file if authority else None)

    def misbehave(self, fault: Fault | None) -> None:
        self._fault = fault

    def answer(self, how: Callable[[Request], Answer] | None) -> None:
        """From now on, so; None: as New Relic does."""
        self._answer = how

    def take(self, at_least: int = 0) -> list[Fact]:  # noqa: ARG002 - a receiver's signature; nothing is on the way
        with self._lock:
            facts, self._seen = self._seen, []
            self.attempts, self._begun = self._begun, 0
            self.broken, self._wrong = self._wrong, 0
            return facts

    def close(self) -> None:
        self._do(self._server.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        if self._folder:
            self._folder.cleanup()

    def _do(self, work: Coroutine[Any, Any, object]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def _handle(self, request: Request) -> Answer:
        with self._lock:
            self._begun += 1
            self.requests.append(request)
        if self._answer is not None:
            return self._answer(request)
        faulty: dict[Fault, Callable[[], Answer]] = {
            "hang": hang,
            "refuse": lambda: Response(403),
            "close": lambda: reset(b"HTTP/1.1 202 Acc"),
            "garbage": lambda: Response(200, b"<html>Please log in</html>", {"content-type": "text/html"}),
            "slow": lambda: drip(self._taken(request), every=0.05),
        }
        return faulty[self._fault]() if self._fault else self._taken(request)

    def _taken(self, request: Request) -> Response:
        """What New Relic does: a look at the head, an answer, and then a look at what it took."""
        if request.headers.get("api-key") != self.key:
            return Response(403)
        if not (request.path == METRICS or EVENTS.fullmatch(request.path)):
            return Response(404)
        try:
            payload = parsed(request)
            facts = metrics_of(payload) if request.path == METRICS else events_of(payload)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it
            with self._lock:
                self._wrong += 1
                self.rules.append(repr(error))
        else:
            with self._lock:
                self._seen += facts
        return took(request)


def took(request: Request) -> Response:
    """New Relic's answer."""
    found = str(uuid.uuid4())
    json_type = {"content-type": "application/json; charset=UTF-8"}
    if request.path == METRICS:
        return Response(202, json.dumps({"requestId": found}).encode(), json_type)
    return Response(200, json.dumps({"success": True, "uuid": found}).encode(), json_type)


# --- the case -----------------------------------------------------------------------------------------------------


@functools.cache
def _context(ca_file: Path | None) -> Any:
    return tls_context(ca_file, None, None)


def build(key: str, address: Address) -> Sink:
    return NewRelicSink(
        "newrelic",
        Secret(key),
        _context(address.ca_file),
        url=address.url,
        events_url=address.url,
        clock=lambda: NOW,
    )


def expect(batches: Sequence[Batch]) -> list[Fact]:
    return [
        fact
        for batch in batches
        for event in batch.events
        for fact in (
            _of_change(event, batch.resource.attributes)
            if isinstance(event, Change)
            else _of_metric(event, batch.resource.attributes)
        )
    ]


def _of_metric(metric: Metric, resource: Attributes) -> list[Fact]:
    name, end = _cut(metric.name, 254), metric.time // 10**6
    all_of_them = resource | metric.attributes
    attributes = fitting(all_of_them, most=100, taken=[name])
    if metric.kind == "gauge":
        return [Fact(name, metric.value, attributes, end * 10**6)]
    if metric.delta is None:
        return []
    earliest = NOW // 10**6 - (48 * HOUR - HOUR // 4)
    interval = max(end - max(metric.delta.since // 10**6, earliest), 1)
    start = (end - interval) * 10**6
    if metric.kind == "sum":
        value = metric.delta.value
        return [] if value is None or value < 0 else [Fact(name, ["count", value, interval], attributes, start)]
    grown = metric.delta.histogram
    if not isinstance(grown, Histogram) or grown.count == 0:
        return []
    summary = {"count": grown.count, "sum": grown.sum, "min": None, "max": None}
    bucket = _cut(metric.name, 247) + "_bucket"
    below = fitting(all_of_them, most=99, taken=[bucket, "le"])
    return [Fact(name, ["summary", summary, interval], attributes, start)] + [
        Fact(bucket, ["count", count, interval], below | {"le": le}, start)
        for le, count in zip([*map(str, grown.bounds), "+Inf"], accumulate(grown.counts), strict=True)
    ]


def _of_change(change: Change, resource: Attributes) -> list[Fact]:
    own = ("name", "severity", "title", "text")
    attributes = fitting(resource | change.attributes, most=246, taken=own)
    value = ["LiteLLMChange", change.severity, _cut(change.title, 4095), _cut(change.text, 4095)]
    return [Fact(_cut(change.name, 4095), value, attributes, change.time // 10**6 * 10**6)]


def _cut(value: str, most: int) -> str:
    clean = "".join("\ufffd" if 0xD800 <= ord(character) < 0xE000 else character for character in value)
    while len(clean.encode()) > most:
        clean = clean[:-1]
    return clean
