"""Datadog's two ways in, as strict as the real ones or stricter, and what they should end up with.

`DogStatsd` is an agent: UDP, or a Unix socket, datagram or stream; `Intake` is the API. `expected_lines` and
`expected_requests` say, by the vendor's rules and without the sinks' code, what each understands of events.
"""

import asyncio
import json
import math
import re
import select
import socket
import ssl
import struct
import tempfile
import threading
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from backends.facts import Fact, Fault
from backends.http_server import Answer, Handler, Request, Response, ScriptedServer, drip, hang, reset
from forwarder.events import Attributes, Batch, Change, Event, Histogram, Metric

CLOCK = 1_750_000_010  # seconds; when everything under test is sent

# --- the agent ----------------------------------------------------------------------------------------------------

_NAME = r"[A-Za-z][A-Za-z0-9_.]{0,199}"
_METRIC = re.compile(rf"({_NAME}):([^|:]+)\|([gc])(?:\|#([^|]+))?(?:\|T([1-9][0-9]*))?")
_CHECK = re.compile(rf"_sc\|({_NAME})\|([0-3])\|d:([0-9]+)(?:\|#([^|]+))?(?:\|m:([^|]+))?")
_EVENT = re.compile(rb"_e\{([0-9]+),([0-9]+)\}:")
_EVENT_END = re.compile(r"\|d:([0-9]+)\|k:([^|,]+)\|s:litellm\|t:(info|warning|error)\|#([^|]+)")
Kind = Literal["udp", "unixgram", "unixstream"]


class Unreadable(Exception):  # noqa: N818 - what it says of a line
    pass


class DogStatsd:
    """Reads what a DogStatsD client sends, in a thread of its own."""

    STEP = 0.02  # seconds between looks at what it was told
    LATE = 5.0  # how long to wait for what is still on the way

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.attempts = self.broken = 0
        self.fds = ()
        self._folder = tempfile.TemporaryDirectory(prefix="dsd-")
        self._path = Path(self._folder.name) / "s"
        self._port = 0
        self._fault: Fault | None = None
        self._packets: list[bytes] = []
        self._streams: dict[socket.socket, bytearray] = {}
        self._arrived = threading.Condition()
        self._start()

    @property
    def address(self) -> str:
        return f"udp://127.0.0.1:{self._port}" if self.kind == "udp" else f"{self.kind}://{self._path}"

    def _start(self) -> None:
        if self.kind == "udp":
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            self._socket.bind(("127.0.0.1", self._port))
            self._port = self._socket.getsockname()[1]
        else:
            kind = socket.SOCK_DGRAM if self.kind == "unixgram" else socket.SOCK_STREAM
            self._socket = socket.socket(socket.AF_UNIX, kind)
            self._socket.bind(str(self._path))
            if self.kind == "unixstream":
                self._socket.listen()
        self._socket.setblocking(False)
        self._done = threading.Event()
        self._wake, self._waker = socket.socketpair()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _stop(self) -> None:
        """When this returns nothing listens any more: a socket lives on while another thread waits for it."""
        if self._done.is_set():
            return
        self._done.set()
        self._waker.send(b"x")
        self._thread.join()
        for each in (self._wake, self._waker, self._socket, *self._streams):
            each.close()
        self._streams.clear()
        self._path.unlink(missing_ok=True)

    def restart(self) -> None:
        """As if the agent had been stopped and started: the same address, another socket."""
        self._stop()
        self._start()

    def misbehave(self, fault: Fault | None) -> None:
        """`refuse` over UDP: nobody listens there, and the kernel says so. `close`: the socket and its path go."""
        with self._arrived:
            self._fault = fault
        if fault in ("refuse", "close"):
            self._stop()
        elif self._done.is_set():
            self._start()

    def close(self) -> None:
        self._stop()
        self._folder.cleanup()

    def packets(self, at_least: int = 0) -> list[bytes]:
        """What arrived since the last look, each as it was sent."""
        return self._taken(lambda: len(self._packets) >= at_least)

    def take(self, at_least: int = 0) -> list[Fact]:
        packets = self._taken(lambda: sum(packet.count(b"\n") for packet in self._packets) >= at_least)
        assert all(packet.endswith(b"\n") for packet in packets)
        lines = [line for packet in packets for line in packet[:-1].split(b"\n")]
        self.attempts = max(Counter(lines).values(), default=0)
        facts = []
        for line in lines:
            with suppress(Unreadable):
                facts.append(understood(line))
        self.broken = len(lines) - len(facts)
        return facts

    def _taken(self, enough: Callable[[], bool]) -> list[bytes]:
        with self._arrived:
            while not self._done.is_set() and self._read():
                pass
            self._arrived.wait_for(enough, self.LATE)
            found, self._packets = self._packets, []
            return found

    def _run(self) -> None:
        while not self._done.is_set():
            if self._fault is None:
                with suppress(ValueError, OSError):  # a stream that was closed meanwhile
                    select.select([self._wake, self._socket, *self._streams], [], [], self.STEP)
            else:
                self._done.wait(self.STEP)
            with self._arrived:
                if self._fault is None:
                    while self._read():
                        pass
                elif self._fault == "slow":
                    self._read(1000)
                self._arrived.notify_all()

    def _read(self, most: int = 1 << 16) -> bool:
        if self.kind != "unixstream":
            with suppress(BlockingIOError):
                self._packets.append(self._socket.recv(1 << 17))
                return True
            return False
        with suppress(BlockingIOError):
            stream, _ = self._socket.accept()
            stream.setblocking(False)
            self._streams[stream] = bytearray()
        found = [self._read_stream(stream, most) for stream in list(self._streams)]
        return any(found)

    def _read_stream(self, stream: socket.socket, most: int) -> bool:
        """Packets on a stream have their length, 4 bytes little-endian, before them. One that is cut off is none."""
        try:
            data = stream.recv(most)
        except BlockingIOError:
            return False
        if not data:
            stream.close()
            del self._streams[stream]
            return False
        got = self._streams[stream]
        got += data
        while len(got) >= 4 and len(got) >= 4 + (length := struct.unpack_from("<I", got)[0]):
            self._packets.append(bytes(got[4 : 4 + length]))
            del got[: 4 + length]
        return True


def understood(line: bytes) -> Fact:
    """One line as an agent reads it. Unreadable if it would be thrown away or taken for something else."""
    if len(line) > 8192:
        raise Unreadable
    if event := _EVENT.match(line):
        title, text = (int(length) for length in event.groups())
        start = event.end()
        head, body, rest = (
            line[start : start + title],
            line[start + title + 1 :][:text],
            line[start + title + 1 + text :],
        )
        end = _EVENT_END.fullmatch(rest.decode())
        if not end or not head or line[start + title : start + title + 1] != b"|":
            raise Unreadable
        stamp, key, alert, tags = end.groups()
        words = [head.decode(), body.decode().replace("\\n", "\n"), alert, key]
        return Fact("event", words, _tags(tags), int(stamp) * 10**9)
    if check := _CHECK.fullmatch(line.decode()):
        name, status, stamp, tags, message = check.groups()
        return Fact(f"check {name}", [int(status), message or ""], _tags(tags), int(stamp) * 10**9)
    metric = _METRIC.fullmatch(line.decode())
    if not metric or not math.isfinite(float(metric[2])):
        raise Unreadable
    name, value, kind, tags, stamp = metric.groups()
    return Fact(name, [kind, float(value)], _tags(tags), int(stamp or 0) * 10**9)


def _tags(text: str | None) -> Attributes:
    tags = text.split(",") if text else []
    for tag in tags:
        key, colon, value = tag.partition(":")
        plain = tag == tag.lower() and all(char.isalnum() or char in "_-:./" for char in tag)
        if not (plain and key[:1].isalpha() and colon and value and len(tag) <= 200 and not tag.endswith(":")):
            raise Unreadable
    if len(set(tags)) != len(tags):
        raise Unreadable
    return {"tags": ",".join(sorted(tags))}


# --- what should arrive -------------------------------------------------------------------------------------------


def expected_lines(batches: Sequence[Batch]) -> list[Fact]:
    """What an agent is told of them at CLOCK."""
    return [fact for batch in batches for event in batch.events for fact in facts(event, batch)]


def facts(event: Event, batch: Batch, *, latest: int = CLOCK, escaped: bool = True) -> Iterator[Fact]:
    """`escaped`: a line end in a text cannot be told from the two characters that stand for it."""
    stamp = min(max(1, event.time // 10**9), latest)
    where = {**batch.resource.attributes, **event.attributes}
    at = stamp * 10**9
    if isinstance(event, Change):
        title = "".join(char if char.isprintable() else " " for char in event.title).strip()[:100]
        title = title or _name(event.name)[:100]
        text = "".join(char if char.isprintable() or char == "\n" else " " for char in event.text).strip()[:1000]
        key = _cleaned("change", f"{event.name}:{where.get('litellm.target', '')}")[:100]
        text = text or title
        value = [title, text.replace("\\n", "\n") if escaped else text, event.severity, key]
        yield Fact("event", value, _where({**where, "change": event.name}), at)
        return
    if event.kind == "gauge":
        yield _metric(event, "", "g", event.value, where=where, at=at)
        checked = {"litellm.up": "litellm.can_connect", "litellm.ready": "litellm.ready"}.get(event.name)
        if checked and event.value in (0, 1) and CLOCK - stamp <= 540:
            said = "The proxy does not answer its liveliness endpoint."
            status = [0, ""] if event.value == 1 else [2, said]
            yield Fact(f"check {checked}", status, _where(where), at)
    elif event.delta and event.delta.value is not None:
        yield _metric(event, "", "c", event.delta.value, where=where, at=at)
    elif event.delta and event.delta.histogram:
        grown = event.delta.histogram
        yield _metric(event, ".count", "c", grown.count, where=where, at=at)
        yield _metric(event, ".sum", "c", grown.sum, where=where, at=at)
        if grown.count:
            yield _metric(event, ".avg", "g", grown.sum / grown.count, where=where, at=at)
            for percent in (50, 95, 99):
                yield _metric(event, f".p{percent}", "g", _percentile(percent, grown), where=where, at=at)


def _metric(event: Metric, suffix: str, kind: str, value: float | None, *, where: Attributes, at: int) -> Fact:
    assert value is not None
    return Fact(_name(event.name)[: 200 - len(suffix)] + suffix, [kind, float(value)], _where(where), at)


def _name(name: str) -> str:
    clean = "".join(char if char.isascii() and (char.isalnum() or char in "_.") else "_" for char in name)
    return clean if clean[:1].isalpha() else f"x{clean}"


def _percentile(percent: int, histogram: Histogram) -> float:
    """Where the bounds are positive and some values are below the last."""
    left = percent / 100 * histogram.count
    lower = 0.0
    for upper, count in zip(histogram.bounds, histogram.counts, strict=False):
        if left <= count:
            return lower + (upper - lower) * (left / count)
        left -= count
        lower = upper
    return lower


def _where(attributes: Attributes) -> Attributes:
    unified = {"deployment.environment.name": "env", "service.name": "service", "service.version": "version"}
    found = {_cleaned(unified.get(key, key), str(value)) for key, value in attributes.items()}
    return {"tags": ",".join(sorted(found - {""}))}


def _cleaned(key: str, value: str) -> str:
    name = "".join(char if char.isalnum() or char in "_-./" else "_" for char in key.lower())
    name = (name if name[:1].isalpha() else f"x{name}")[:100]
    clean = "".join(char if char.isalnum() or char in "_-:./" else "_" for char in value.lower())[: 199 - len(name)]
    clean = clean.rstrip(":")
    if key == "deployment.id" and clean and clean != value:
        clean = f"{clean[: 190 - len(name)]}-{sha256(value.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
    return f"{name}:{clean}" if clean else ""


# --- the intake ---------------------------------------------------------------------------------------------------

_LIMITS = {"/api/v2/series": (512_000, 5_242_880), "/api/v1/check_run": (512_000, 5_242_880)}
_OK = {
    "/api/v2/series": b'{"errors":[]}',
    "/api/v1/check_run": b'{"status":"ok"}',
    "/api/v1/events": b'{"status":"ok"}',
}
_JSON = {"content-type": "application/json"}


class Intake:
    """Datadog's API below a path prefix, in a thread of its own. What breaks a rule is answered as Datadog answers it,
    and counted. `answer` replaces what it says to whoever has the right key.
    """

    PREFIX = "/relay"

    def __init__(self, key: str, *, context: ssl.SSLContext | None = None) -> None:
        self.key = key
        self.fds = ()
        self.attempts = self.broken = 0
        self.requests: list[Request] = []
        self.answer: Handler | None = None
        self._fault: Fault | None = None
        self._facts: list[Fact] = []
        self._bodies: list[tuple[str, bytes]] = []
        self._wrong = 0
        self._lock = threading.Lock()
        self._server = ScriptedServer(self._handle, tls=context)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._do(self._server.__aenter__())

    @property
    def address(self) -> str:
        return self._server.url + self.PREFIX

    def misbehave(self, fault: Fault | None) -> None:
        self._fault = fault

    def take(self, at_least: int = 0) -> list[Fact]:  # noqa: ARG002 - a receiver's signature; nothing is on the way
        with self._lock:
            facts, self._facts = self._facts, []
            self.attempts = max(Counter(self._bodies).values(), default=0)
            self.broken = self._wrong
            self._bodies, self._wrong = [], 0
            return facts

    def close(self) -> None:
        self._do(self._server.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, object]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def _handle(self, request: Request) -> Answer | Awaitable[Answer]:
        with self._lock:
            self.requests.append(request)
            self._bodies.append((request.path, request.body))
        if self.answer is not None:
            return self.answer(request)
        faulty: dict[Fault, Callable[[], Answer]] = {
            "hang": hang,
            "refuse": lambda: Response(403, b'{"errors":["Forbidden"]}', _JSON),
            "close": lambda: reset(b"HTTP/1.1 202 Acc"),
            "garbage": lambda: Response(200, b"<html>Please log in</html>", {"content-type": "text/html"}),
            "slow": lambda: drip(self.taken(request), every=0.05),
        }
        return faulty[self._fault]() if self._fault else self.taken(request)

    def taken(self, request: Request) -> Response:
        """What Datadog makes of it, and says."""
        path = request.path.removeprefix(self.PREFIX)
        if request.headers.get("dd-api-key") != self.key:
            return Response(403, b'{"errors":["Forbidden"]}', _JSON)
        if request.path == path or path not in _OK:
            return Response(404, b'{"errors":["Not found"]}', _JSON)
        try:
            raw = zlib.decompress(request.body, wbits=31)
            for size, limit in zip((len(request.body), len(raw)), _LIMITS.get(path, (1 << 20, 1 << 20)), strict=True):
                if size > limit:
                    return Response(413, b'{"errors":["Payload too large"]}', _JSON)
            facts = _received(path, request, json.loads(raw, parse_constant=_no_constant))
        except Exception:  # noqa: BLE001 - whatever is wrong with it
            with self._lock:
                self._wrong += 1
            return Response(400, b'{"errors":["Bad Request"]}', _JSON)
        with self._lock:
            self._facts += facts
        return Response(202, _OK[path], _JSON)


def _no_constant(_: str) -> object:
    raise Unreadable


def _received(path: str, request: Request, payload: Any) -> list[Fact]:
    """Unreadable, or another exception, where Datadog would refuse or drop it."""
    if (request.method, request.headers["content-type"]) != ("POST", "application/json"):
        raise Unreadable
    if request.headers["content-encoding"] != "gzip" or "?" in request.path:
        raise Unreadable
    if path == "/api/v1/events":
        return [_received_event(payload)]
    read = _received_point if path == "/api/v2/series" else _received_check
    found = [read(each) for each in (payload["series"] if path == "/api/v2/series" else payload)]
    if not found:
        raise Unreadable
    return found


def _received_point(each: Any) -> Fact:
    kind = {1: "c", 3: "g"}[each["type"]]
    keys = {"metric", "type", "points", "tags"} | ({"interval"} if kind == "c" else set())
    (point,) = each["points"]
    if each.keys() != keys or point.keys() != {"timestamp", "value"} or not re.fullmatch(_NAME, each["metric"]):
        raise Unreadable
    if kind == "c" and not (isinstance(each["interval"], int) and each["interval"] > 0):
        raise Unreadable
    return Fact(
        each["metric"], [kind, float(point["value"])], _tags(",".join(each["tags"])), _stamp(point["timestamp"])
    )


def _received_check(each: Any) -> Fact:
    if each.keys() != {"check", "status", "timestamp", "tags", "message"} or each["status"] not in (0, 1, 2, 3):
        raise Unreadable
    tags = _tags(",".join(each["tags"]))
    return Fact(f"check {each['check']}", [each["status"], each["message"]], tags, _stamp(each["timestamp"]))


def _received_event(each: Any) -> Fact:
    words = [each[key] for key in ("title", "text", "alert_type", "aggregation_key")]
    if each["source_type_name"] != "litellm" or not all(words) or len(each["aggregation_key"]) > 100:
        raise Unreadable
    if len(each["title"]) > 100 or len(each["text"]) > 4000 or each["alert_type"] not in ("info", "warning", "error"):
        raise Unreadable
    return Fact("event", words, _tags(",".join(each["tags"])), _stamp(each["date_happened"]))


def _stamp(time: object) -> int:
    if not isinstance(time, int) or not 0 < time <= CLOCK + 600:
        raise Unreadable
    return time * 10**9


def expected_requests(batches: Sequence[Batch]) -> list[Fact]:
    """What the intake is told of them at CLOCK: of the metrics between two changes the service checks come first."""
    found: list[Fact] = []
    checks: list[Fact] = []
    points: list[Fact] = []
    for batch in batches:
        for event in batch.events:
            for fact in facts(event, batch, latest=CLOCK + 540, escaped=False):
                if fact.name == "event":
                    found += [*checks, *points, fact]
                    checks, points = [], []
                else:
                    (checks if fact.name.startswith("check ") else points).append(fact)
    return [*found, *checks, *points]
