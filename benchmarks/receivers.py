"""The three vendors' intakes in one process of its own, as fast as they can be: they take everything at once and look
at it afterwards, so that what is measured is the agent.

    async with receiving() as receiver:
        ...  # receiver.url for sinks and for vmagent; await receiver.told() is what has come so far, by sink, or by
        ...  # what was put behind the URL: what goes to receiver.url + "/a/b" is told as "a/b"

Not the strict fakes of the tests: what is sent is known to be right, and checking it would take longer than making it.
"""

import asyncio
import contextlib
import json
import sys
import time
import zlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Final

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from backends.http_server import Answer, Request, Response, ScriptedServer

STAMP: Final = "litellm_served"  # the gauge whose value is the time at which the proxy was read
KEY: Final = {"BENCH_KEY": "0123456789abcdef0123456789abcdef01234567"}  # the environment of who has these sinks
SINKS: Final = {
    "otlp": 'type = "otlp"\nendpoint = "{url}"',
    "newrelic": 'type = "newrelic"\napi_key = {{ env = "BENCH_KEY" }}\nurl = "{url}"\nevents_url = "{url}"',
    "datadog": 'type = "datadog"\ntransport = "api"\napi_key = {{ env = "BENCH_KEY" }}\nurl = "{url}"',
}
_JSON: Final = {"content-type": "application/json"}
_ID: Final = "01234567-89ab-cdef-0123-456789abcdef"
_ANSWERS: Final = {
    "/v1/metrics": ("otlp", Response(200, b"", {"content-type": "application/x-protobuf"})),
    "/v1/logs": ("otlp", Response(200, b"", {"content-type": "application/x-protobuf"})),
    "/metric/v1": ("newrelic", Response(202, json.dumps({"requestId": _ID}).encode(), _JSON)),
    "/v1/accounts/events": ("newrelic", Response(200, json.dumps({"success": True, "uuid": _ID}).encode(), _JSON)),
    "/api/v2/series": ("datadog", Response(202, b'{"errors":[]}', _JSON)),
    "/api/v1/check_run": ("datadog", Response(202, b'{"status":"ok"}', _JSON)),
    "/api/v1/events": ("datadog", Response(202, b'{"status":"ok"}', _JSON)),
    "/api/v1/write": ("remote_write", Response(204, b"", {})),
}


def sink(name: str, url: str) -> str:
    """Its table in a configuration; further keys may follow."""
    return f"[sinks.{name}]\n{SINKS[name].format(url=url)}\n"


class Intakes:
    """`GET /told` says what has come, `GET /anew?NAME` tells it of one and forgets it."""

    def __init__(self) -> None:
        self._taken: dict[str, list[tuple[float, str, bytes]]] = defaultdict(list)

    def __call__(self, request: Request) -> Answer:
        if request.method == "GET":
            path, _, only = request.path.partition("?")
            names = [only] if only else list(self._taken)
            found = {name: summary(self._taken[name]) for name in names}
            if path == "/anew":
                for name in [name for name in self._taken if name == only or name.startswith(f"{only}/")]:
                    del self._taken[name]
            return Response(200, json.dumps(found).encode(), {**_JSON, "connection": "close"})
        arrived = time.time()
        path = next((path for path in _ANSWERS if request.path.endswith(path)), "")
        if "get_vm_proto_version" in request.path:  # vmagent asks whether its own protocol is understood
            return Response(404)
        assert path, f"nothing of a backend's: {request.method} {request.path}"
        sink, answer = _ANSWERS[path]
        self._taken[request.path.removesuffix(path).strip("/") or sink].append((arrived, path, request.body))
        return answer


def summary(requests: list[tuple[float, str, bytes]]) -> dict[str, Any]:
    """`delays`: seconds from a reading of the proxy to its arrival, one for each STAMP that came."""
    delays = [
        arrived - value for arrived, path, body in requests if path in _STAMPS for value in _STAMPS[path](_raw(body))
    ]
    return {
        "requests": len(requests),
        "bytes": sum(len(body) for _, _, body in requests),
        "delays": delays,
        "first": requests[0][0] if requests else 0.0,
    }


def _raw(body: bytes) -> bytes:
    return zlib.decompress(body, 47) if body[:2] in (b"\x1f\x8b", b"\x78\x9c", b"\x78\x01", b"\x78\xda") else body


def _otlp(body: bytes) -> Iterator[float]:
    if STAMP.encode() not in body:
        return
    for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                if metric.name == STAMP:
                    yield from (point.as_double for point in metric.gauge.data_points)


def _datadog(body: bytes) -> Iterator[float]:
    for series in json.loads(body)["series"] if STAMP.encode() in body else ():
        if series["metric"] == STAMP:
            yield series["points"][0]["value"]


def _newrelic(body: bytes) -> Iterator[float]:
    for block in json.loads(body) if STAMP.encode() in body else ():
        yield from (metric["value"] for metric in block["metrics"] if metric["name"] == STAMP)


_STAMPS: Final[dict[str, Callable[[bytes], Iterator[float]]]] = {
    "/v1/metrics": _otlp,
    "/api/v2/series": _datadog,
    "/metric/v1": _newrelic,
}


class Receiver:
    def __init__(self, url: str) -> None:
        self.url = url

    async def told(self, path: str = "/told") -> dict[str, dict[str, Any]]:
        reader, writer = await asyncio.open_connection(*self.url.removeprefix("http://").split(":"))
        writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        return dict(json.loads(answer.partition(b"\r\n\r\n")[2]))


@contextlib.asynccontextmanager
async def receiving(port: int = 0) -> AsyncIterator[Receiver]:
    async with child(__file__, str(port)) as url:
        yield Receiver(url)


@contextlib.asynccontextmanager
async def child(script: str, *arguments: str) -> AsyncIterator[str]:
    """A script that serves until its standard input ends; what its first line says."""
    server = await asyncio.create_subprocess_exec(
        sys.executable, script, *arguments, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert server.stdout is not None
    assert server.stdin is not None
    try:
        first = (await server.stdout.readline()).decode().strip()
        assert first, f"{script} does not start"
        yield first
    finally:
        server.stdin.close()
        await server.wait()


async def until_input_ends() -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()


async def serve(port: int) -> None:
    async with ScriptedServer(Intakes(), port=port) as server:
        server.requests = _Nothing()  # which would keep everything
        print(server.url, flush=True)
        await until_input_ends()


class _Nothing(list[Request]):
    def append(self, _: Request) -> None:
        pass


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
