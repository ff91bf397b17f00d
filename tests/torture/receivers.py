"""Three vendors' intakes behind one scripted front each, which keeps what was stored, request by request.

The front knows of each request that it stored whether its answer reached whoever sent it: the connection went on to a
next request, or stayed open. One that ended within a moment of its answer proves nothing, and neither does an answer
that was broken off: such a request may be sent again.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any, Final

from backends import datadog, newrelic, otlp
from backends.facts import Fact
from backends.http_server import Answer, Request, Response, ScriptedServer, drip, hang, reset
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsPartialSuccess, ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsPartialSuccess,
    ExportMetricsServiceResponse,
)

from torture.plan import Mode

KEY: Final = "canary-5f1d0c2e"
MOMENT: Final = 1.0  # seconds: the time for a request, so a client that gave up has gone by then
TURNS: Final = 3  # of the event loop, in which it hears that a client has gone before it was answered
REFUSED: Final = 3  # one in so many points, where a part is refused
AWAY: Final = 0.4  # seconds that a slow receiver takes to answer, which is well within the time for a request


def _nothing() -> None:
    pass


@dataclass
class Arrival:
    """One request that was stored. `sure`: whoever sent it knows."""

    facts: list[Fact]
    life: int
    at: int  # ns, real
    sure: bool = False
    refused: int = 0  # so many facts, from the first on, were refused in the answer
    answered: float = 0.0  # monotonic


class Front(ScriptedServer):
    """`take`: what the vendor makes of a request. `facts`: what it understood since it was last asked."""

    def __init__(self, name: str, intake: Any, take: Callable[[Request], Response], prefix: str = "") -> None:
        super().__init__(self._answered)
        self.name, self.intake, self.prefix = name, intake, prefix
        self.mode: Mode | int | None = None
        self.life = 0
        self.leaving = False  # the agent closes its connections: it stops, or goes over to another configuration
        self.arrivals: list[Arrival] = []
        self.broken: list[str] = []  # vendor's rules that the agent broke
        self.on_stored: Callable[[], None] = _nothing  # called before it is answered
        self._take = take
        self._readers: dict[asyncio.Task[Any] | None, asyncio.StreamReader] = {}
        self._last: dict[asyncio.Task[Any] | None, Arrival] = {}

    @property
    def address(self) -> str:
        return self.url + self.prefix

    async def become(self, mode: Mode | int | None) -> None:
        if self.mode == "gone" and mode != "gone":
            await self._listen_again()
        if mode == "gone" and self.mode != "gone":
            await self.stop()
        self.mode = mode

    async def _listen_again(self) -> None:
        for _ in range(50):
            with contextlib.suppress(OSError):  # a connection of somebody else has the port for its own side
                await self.__aenter__()
                return
            await asyncio.sleep(0.1)
        raise AssertionError(f"port {self.port} is taken by somebody else")

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        if self.mode == "cut":
            await reader.read(200)  # of a request that is longer
            await reset()(reader, writer)
            return False
        self._readers[asyncio.current_task()] = reader
        try:
            return await super()._exchange(reader, writer)
        except BaseException:
            self._readers.pop(asyncio.current_task(), None)
            self._ended()
            raise

    def _ended(self) -> None:
        arrival = self._last.pop(asyncio.current_task(), None)
        if arrival is not None and time.monotonic() - arrival.answered < MOMENT and not self.leaving:
            arrival.sure = False

    def _answered(self, request: Request) -> Answer | Awaitable[Answer]:
        self.requests.clear()  # nobody looks at them, and there are many
        self._last.pop(asyncio.current_task(), None)  # the connection goes on: its answer has arrived
        if isinstance(self.mode, int):
            return _status(self.mode)
        if self.mode in _STORING_NOTHING:
            return _STORING_NOTHING[self.mode]()
        response = self._stored(request)
        answers: dict[Mode | None, Callable[[], Answer | Awaitable[Answer]]] = {
            "slow": lambda: self._told(response, self.arrivals[-1], after=AWAY),
            "partial": lambda: self._told(self._in_part(request, response), self.arrivals[-1]),
            "warning": lambda: self._told(self._in_part(request, response), self.arrivals[-1]),
            "stored reset": lambda: reset(b"HTTP/1.1 20"),
            "stored hang": hang,
            "stored drip": lambda: drip(response, every=0.1),
        }
        return answers[self.mode]() if self.mode in answers else self._told(response, self.arrivals[-1])

    async def _told(self, response: Response, arrival: Arrival, *, after: float = 0.0) -> Answer:
        """The answer, and whoever is still there to hear it knows."""
        await asyncio.sleep(after)
        for _ in range(TURNS):
            await asyncio.sleep(0)
        reader = self._readers[asyncio.current_task()]
        if not reader.at_eof() and reader.exception() is None:
            arrival.sure, arrival.answered = True, time.monotonic()
            self._last[asyncio.current_task()] = arrival
        return response

    def _stored(self, request: Request) -> Response:
        response = self._take(request)
        self.arrivals.append(Arrival(self._understood(request, response), self.life, time.time_ns()))
        self.on_stored()
        return response

    def _understood(self, request: Request, response: Response) -> list[Fact]:
        facts = self.intake.take()
        if self.intake.broken or response.status >= 300:
            self.broken.append(f"{request.path}: HTTP {response.status} {getattr(self.intake, 'rules', [])[-1:]}")
        return [fact for fact in facts if not fact.name.startswith("check ")]

    def _in_part(self, request: Request, response: Response) -> Response:
        """OTLP: all was understood, and a part is refused for good; or nothing is, and something said all the same."""
        arrival = self.arrivals[-1]
        arrival.refused = -(-len(arrival.facts) // REFUSED) if self.mode == "partial" else 0
        taste = "some of it is not to our taste"
        if request.path.endswith("/metrics"):
            metrics = ExportMetricsPartialSuccess(rejected_data_points=arrival.refused, error_message=taste)
            return otlp.protobuf(ExportMetricsServiceResponse(partial_success=metrics), response.status)
        logs = ExportLogsPartialSuccess(rejected_log_records=arrival.refused, error_message=taste)
        return otlp.protobuf(ExportLogsServiceResponse(partial_success=logs), response.status)


_STORING_NOTHING: Final[dict[Mode | None, Callable[[], Answer]]] = {
    "hang": hang,
    "drip": lambda: drip(Response(200, b" " * 500), every=0.1),
    "reset": lambda: reset(b"HTTP/1.1 20"),
    "cut": reset,  # of a request that had begun before
    "page": lambda: Response(200, b"<html>Please log in</html>", {"content-type": "text/html"}),
}


def _status(status: int) -> Response:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=1), usegmt=True)
    headers = {
        429: {"retry-after": "1", "x-ratelimit-reset": "1"},
        503: {"retry-after": later},
        302: {"location": "http://127.0.0.1:9/"},
    }
    return Response(status, headers=headers.get(status, {}))


def fronts() -> list[Front]:
    """In the order of plan.RECEIVERS."""
    # Their windows are around a fixed time, for the contract suite. Datadog's would drop what is too far ahead without
    # a word: that the agent sends nothing of the kind, by its own clock, is for the judge to see.
    newrelic.NOW = time.time_ns()  # type: ignore[misc]
    datadog.CLOCK = 2**40
    metrics, intake, series = otlp.HttpReceiver(KEY), newrelic.Intake(KEY), datadog.Intake(KEY)
    return [
        Front("otlp", metrics, metrics._take, otlp.PREFIX),
        Front("newrelic", intake, intake._taken),
        Front("datadog", series, series.taken, datadog.Intake.PREFIX),
    ]
