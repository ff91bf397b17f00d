"""OTLP receivers on loopback sockets, over HTTP and gRPC, that decode strictly; and what the sink makes arrive."""

import asyncio
import functools
import gzip
import select
import socket
import struct
import threading
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import groupby
from typing import Any, Final, NamedTuple

import grpc
from google.protobuf.message import Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import DataPointFlags

from backends.facts import Fact, Fault
from backends.http_server import Answer, Request, Response, ScriptedServer, drip, hang, reset
from forwarder.events import Attributes, Batch, Change, Event, Metric
from forwarder.secrets import Secret
from forwarder.sinks.base import Sink
from forwarder.sinks.otlp.grpc import OtlpGrpc
from forwarder.sinks.otlp.http import OtlpHttp
from forwarder.transport import tls_context
from forwarder.transport.post import Poster

INSTANCE: Final = "agent-1"
PREFIX: Final = "/otlp"
PROTOBUF: Final = "application/x-protobuf"
LARGEST: Final = 4 * 2**20  # bytes, after decompression


class RuleBroken(Exception):  # noqa: N818 - a finding, not an error of ours
    """One of the rules of OTLP is broken, and this is the rule."""


def need(condition: object, rule: str) -> None:
    if not condition:
        raise RuleBroken(rule)


# --- what a receiver makes of a request ---------------------------------------------------------------------------


def facts_of(signal: str, data: bytes) -> list[Fact]:
    """Every point or record of a request, in its order. RuleBroken for one that a receiver may refuse."""
    need(len(data) <= LARGEST, "4 MiB")
    return _metrics(data) if signal == "metrics" else _logs(data)


def _parsed(message: Any, data: bytes) -> Any:
    message.ParseFromString(data)
    known = type(message)()
    known.CopyFrom(message)
    known.DiscardUnknownFields()
    need(known.ByteSize() == message.ByteSize(), "a field that OTLP does not have")
    return message


def _metrics(data: bytes) -> list[Fact]:
    facts = []
    for resource, scope in _scopes(_parsed(ExportMetricsServiceRequest(), data).resource_metrics, "scope_metrics"):
        need(scope.metrics, "an empty scope")
        need(len({(each.name, each.WhichOneof("data"), each.unit) for each in scope.metrics}) == len(scope.metrics),
             "a metric twice")  # fmt: skip
        for metric in scope.metrics:
            kind = metric.WhichOneof("data")
            body = getattr(metric, kind)
            need(metric.name, "a name")
            need(body.data_points, "an empty metric")
            need(kind == "gauge" or body.aggregation_temporality == 2, "cumulative")
            need(kind != "sum" or body.is_monotonic, "monotonic")
            times = [point.time_unix_nano for point in body.data_points]
            need(times == sorted(times), "oldest first")
            for point in body.data_points:
                value = [kind, metric.unit, point.start_time_unix_nano, *_value(kind, point)]
                attributes = resource | _attributes(point.attributes)
                facts.append(Fact(metric.name, value, attributes, point.time_unix_nano))
    return facts


def _value(kind: str, point: Any) -> list[object]:
    if kind != "histogram":
        none = point.flags == DataPointFlags.DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK
        need(point.WhichOneof("value") == (None if none else "as_double"), "a double, or a flag that there is none")
        return [None if none else point.as_double]
    need(len(point.bucket_counts) == len(point.explicit_bounds) + 1, "one bucket more than bounds")
    need(min(sum(point.bucket_counts), 2**64 - 1) == point.count, "the count is that of all buckets")
    bounds = list(point.explicit_bounds)
    need(bounds == sorted(set(bounds)), "bounds that grow")
    return [bounds, list(point.bucket_counts), point.sum, point.count]


def _logs(data: bytes) -> list[Fact]:
    facts = []
    for resource, scope in _scopes(_parsed(ExportLogsServiceRequest(), data).resource_logs, "scope_logs"):
        need(scope.log_records, "an empty scope")
        for record in scope.log_records:
            need(record.event_name, "a name")
            need(record.observed_time_unix_nano == record.time_unix_nano, "the time it was observed")
            value = [record.severity_number, record.severity_text, record.body.string_value]
            attributes = resource | _attributes(record.attributes)
            facts.append(Fact(record.event_name, value, attributes, record.time_unix_nano))
    return facts


def _scopes(resources: Iterable[Any], field: str) -> Iterable[tuple[Attributes, Any]]:
    seen = []
    for each in resources:
        attributes = {f"resource:{name}": value for name, value in _attributes(each.resource.attributes).items()}
        need(attributes not in seen, "a resource twice")
        seen.append(attributes)
        need("resource:litellm.target" not in attributes, "the target stands in the points")
        need({"resource:service.name", "resource:service.instance.id"} <= attributes.keys(), "an identity")
        (scope,) = getattr(each, field)
        need(scope.scope.name == "litellm-forwarder" and scope.scope.version, "the scope")
        yield attributes, scope


def _attributes(pairs: Iterable[KeyValue]) -> Attributes:
    found: Attributes = {}
    for pair in pairs:
        kind = pair.value.WhichOneof("value")
        need(pair.key and pair.key not in found, "a name of its own")
        need(kind in ("string_value", "int_value"), "a value")
        found[pair.key] = pair.value.string_value if kind == "string_value" else pair.value.int_value
    return found


# --- receivers ----------------------------------------------------------------------------------------------------


class Taken:
    """What a receiver has seen since it was last asked."""

    def __init__(self) -> None:
        self.fds = ()
        self.attempts = self.broken = 0
        self.rules: list[str] = []  # that were broken
        self.fault: Fault | None = None
        self._seen: list[Fact] = []
        self._begun = self._wrong = 0
        self._lock = threading.Lock()

    def misbehave(self, fault: Fault | None) -> None:
        self.fault = fault

    def take(self, at_least: int = 0) -> list[Fact]:  # noqa: ARG002 - a receiver's signature; nothing is on the way
        with self._lock:
            facts, self._seen = self._seen, []
            self.attempts, self._begun = self._begun, 0
            self.broken, self._wrong = self._wrong, 0
            return facts

    def begun(self) -> None:
        with self._lock:
            self._begun += 1

    def decode(self, signal: str, data: Callable[[], bytes]) -> bool:
        try:
            facts = facts_of(signal, data())
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it
            with self._lock:
                self._wrong += 1
                self.rules.append(repr(error))
            return False
        with self._lock:
            self._seen += facts
        return True


class Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(10)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class HttpReceiver(Taken):
    """OTLP/HTTP below PREFIX, for one user. `answer` replaces what it says to whoever has the right key."""

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key
        self.requests: list[Request] = []
        self.answer: Callable[[Request], Answer] | None = None
        self._loop = Loop()
        self._server = ScriptedServer(self._handle)
        self._loop.do(self._server.__aenter__())
        self.address = self._server.url + PREFIX

    def close(self) -> None:
        self._loop.do(self._server.__aexit__(None, None, None))
        self._loop.close()

    def _handle(self, request: Request) -> Answer:
        self.begun()
        self.requests.append(request)
        faulty: dict[Fault, Callable[[], Answer]] = {
            "hang": hang,
            "refuse": lambda: Response(401),
            "close": lambda: reset(b"HTTP/1.1 200 O"),
            "garbage": lambda: Response(200, b"<html>Please log in</html>", {"content-type": "text/html"}),
            "slow": lambda: drip(self._take(request), every=0.05),
        }
        if self.fault:
            return faulty[self.fault]()
        taken = self._take(request)
        return taken if self.answer is None or taken.status != 200 else self.answer(request)

    def _take(self, request: Request) -> Response:
        if request.headers.get("authorization") != f"Bearer {self.key}":
            return Response(401)
        signal = request.path.removeprefix(f"{PREFIX}/v1/")
        if request.method != "POST" or signal not in ("metrics", "logs"):
            return Response(404)
        if request.headers.get("content-type") != PROTOBUF:
            return Response(415)
        if not self.decode(signal, lambda: _body(request)):
            return Response(400, b"bad request", {"content-type": "text/plain"})
        message = ExportMetricsServiceResponse() if signal == "metrics" else ExportLogsServiceResponse()
        return protobuf(message)


def protobuf(message: Message, status: int = 200) -> Response:
    return Response(status, message.SerializeToString(), {"content-type": PROTOBUF})


def _body(request: Request) -> bytes:
    encoding = request.headers.get("content-encoding", "")
    need(encoding in ("", "gzip"), "gzip or nothing")
    return gzip.decompress(request.body) if encoding else request.body


class GrpcReceiver(Taken):
    """OTLP/gRPC for one user, behind a relay that can hang, drip and break connections. `abort` replaces what it says
    to whoever has the right key.
    """

    def __init__(self, key: str, *, credentials: grpc.ServerCredentials | None = None) -> None:
        super().__init__()
        self.key = key
        self.metadata: list[dict[str, str | bytes]] = []
        self.answer: Callable[[grpc.ServicerContext], bytes] | None = None
        self._pool = ThreadPoolExecutor(2)
        self._server = grpc.server(self._pool, options=[("grpc.max_receive_message_length", LARGEST)])
        self._server.add_generic_rpc_handlers((_Service(self),))
        if credentials:
            port = self._server.add_secure_port("127.0.0.1:0", credentials)
        else:
            port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()
        self._relay = Relay(port)
        self.address = f"127.0.0.1:{self._relay.port}"

    def misbehave(self, fault: Fault | None) -> None:
        super().misbehave(fault)
        self._relay.fault = fault

    def close(self) -> None:
        self._relay.close()
        self._server.stop(None).wait()
        self._pool.shutdown()

    def export(self, signal: str, data: bytes, context: grpc.ServicerContext) -> bytes:
        self.begun()
        self.metadata.append(dict(context.invocation_metadata()))
        if self.metadata[-1].get("authorization") != f"Bearer {self.key}" or self.fault == "refuse":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "no")
        if self.fault == "garbage":
            return b"<html>\xff\xff"
        if not self.decode(signal, lambda: data):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "bad request")
        return b"" if self.answer is None else self.answer(context)


class _Service(grpc.GenericRpcHandler):
    METHODS: Final = {
        "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export": "metrics",
        "/opentelemetry.proto.collector.logs.v1.LogsService/Export": "logs",
    }

    def __init__(self, receiver: GrpcReceiver) -> None:
        self._receiver = receiver

    def service(self, details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes] | None":
        signal = self.METHODS.get(details.method)
        if signal is None:
            return None
        return grpc.unary_unary_rpc_method_handler(functools.partial(self._receiver.export, signal))


class Relay:
    """Passes TCP on to a port of this machine, unless it is told to misbehave. A thread for each connection."""

    def __init__(self, onward: int, port: int = 0) -> None:
        self.fault: Fault | None = None
        self._onward = onward
        self._listening = socket.create_server(("127.0.0.1", port))
        self.port = self._listening.getsockname()[1]
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        self._done.set()
        self._listening.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listening.close()

    def _accept(self) -> None:
        with suppress(OSError):  # shut down
            while True:
                client, _ = self._listening.accept()
                self._threads.append(threading.Thread(target=self._serve, args=(client,), daemon=True))
                self._threads[-1].start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError), client, socket.create_connection(("127.0.0.1", self._onward)) as onward:
            while not self._done.is_set():
                ready, _, _ = select.select([client, onward], [], [], 0.02)
                for one in ready:
                    data = one.recv(65536)
                    if not data:
                        return
                    if one is client:
                        if self.fault != "hang":
                            onward.sendall(data)
                    elif not self._answer(client, data):
                        return

    def _answer(self, client: socket.socket, data: bytes) -> bool:
        """Whether the connection lasts."""
        if self.fault == "close":
            client.sendall(data[:10])
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        if self.fault == "slow":
            for byte in data:
                client.sendall(bytes([byte]))
                if self._done.wait(0.05):
                    return False
        else:
            client.sendall(data)
        return True


# --- the cases ----------------------------------------------------------------------------------------------------


@functools.cache
def _context() -> Any:
    return tls_context(None, None, None)


def instance() -> str:
    return INSTANCE


def build_http(key: str, address: str) -> Sink:
    return OtlpHttp("otlp", Poster(address, {"authorization": Secret(f"Bearer {key}")}, _context()), instance)


def build_grpc(key: str, address: str) -> Sink:
    return OtlpGrpc("otlp", address, {"authorization": Secret(f"Bearer {key}")}, instance)


class _Point(NamedTuple):
    resource: Attributes
    metric: tuple[str, str, str]
    fact: Fact


def expect(batches: Sequence[Batch]) -> list[Fact]:
    """What arrives: a request for each run of metrics or of changes, and in it the points of a resource and metric
    together, by time.
    """
    events = [(batch.resource.attributes, event) for batch in batches for event in batch.events]
    facts = []
    for _, run in groupby(events, key=lambda each: isinstance(each[1], Metric)):
        points = [_Point(resource, _metric(event), _fact(resource, event)) for resource, event in run]
        order: list[object] = []
        for point in points:
            order += [key for key in (point.resource, (point.resource, point.metric)) if key not in order]
        points.sort(key=lambda point: (order.index(point.resource), order.index((point.resource, point.metric)),
                                       point.fact.time if point.metric[1] != "change" else 0))  # fmt: skip
        facts += [point.fact for point in points]
    return facts


def _metric(event: Event) -> tuple[str, str, str]:
    return (event.name, event.kind, event.unit) if isinstance(event, Metric) else ("", "change", "")


def _fact(resource: Attributes, event: Event) -> Fact:
    target = resource.get("litellm.target")
    whole = {
        "service.name": "litellm-forwarder" if target is None else "litellm",
        "service.instance.id": INSTANCE if target is None else f"{INSTANCE}/{target}",
    } | {name: value for name, value in resource.items() if name != "litellm.target"}
    own = event.attributes if target is None else {"litellm.target": target} | event.attributes
    attributes = {f"resource:{name}": value for name, value in _plain(whole).items()} | _plain(own)
    if isinstance(event, Change):
        number, text = {"info": (9, "INFO"), "warning": (13, "WARN"), "error": (17, "ERROR")}[event.severity]
        body = f"{event.title}\n{event.text}" if event.text else event.title
        attributes.setdefault("event.name", plain(event.name))
        return Fact(plain(event.name), [number, text, plain(body)], attributes, event.time)
    histogram = event.histogram
    value: list[object] = [event.value]
    if histogram is not None:
        counts = [min(count, 2**64 - 1) for count in (*histogram.counts, histogram.count)]  # what OTLP can hold
        value = [list(histogram.bounds), counts[:-1], histogram.sum, counts[-1]]
    unit = "" if event.unit == "1" else plain(event.unit)
    return Fact(plain(event.name), [event.kind, unit, event.start_time or 0, *value], attributes, event.time)


def _plain(attributes: Attributes) -> Attributes:
    named = {name: value for name, value in attributes.items() if name and plain(name) == name}
    for name in [name for name in attributes if name not in named]:
        free = plain(name) or "_"
        while free in named:
            free += "_"
        named[free] = attributes[name]
    return {name: plain(value) if isinstance(value, str) else value for name, value in named.items()}


def plain(text: str) -> str:
    return "".join(f"\\u{ord(each):04x}" if 0xD800 <= ord(each) < 0xE000 else each for each in text)
