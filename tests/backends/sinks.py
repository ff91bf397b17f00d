"""Fakes around the sink contract: a scripted sink, a clock for pumps, a spool that fails, and for the contract suite
the receivers that sinks deliver to, and sinks that cheat.

A new sink adds a receiver (a real socket), its `build` and its `expect`, and one `Case` to `CASES`. All of it can be
imported by a child process, which is where the suite kills a sink.
"""

import asyncio
import json
import os
import select
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any, Literal, Protocol, cast

from spool_cheaters import Honest
from spool_stores import Clock, numbers

from backends import datadog, newrelic, notify, otlp
from backends.facts import Fact, Fault
from forwarder.errors import SpoolUnavailable
from forwarder.events import Batch, Change, Event, Histogram, Metric
from forwarder.secrets import Secret
from forwarder.sinks.base import Blocked, Delivered, Limits, Outcome, Rejected, Retry, Sink
from forwarder.sinks.console import ConsoleSink, line
from forwarder.sinks.datadog.api import DatadogApiSink
from forwarder.sinks.datadog.dogstatsd import DogStatsdSink
from forwarder.sinks.datadog.points import Form
from forwarder.spool.base import Piece, Settlement, Spool
from forwarder.transport import tls_context
from forwarder.transport.post import Poster

CANARY = "canary-5f1d0c2e"  # the secret of every sink under test that has one; must never be seen


# --- for the pump -------------------------------------------------------------------------------------------------


class FakeClock(Clock):
    """Time passes while somebody sleeps by it. `at` calls a function in the pause of that number, from 1."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses: list[float] = []
        self._at: dict[int, Callable[[], None]] = {}

    def at(self, pause: int, call: Callable[[], None]) -> None:
        self._at[pause] = call

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self._at.get(len(self.pauses), lambda: None)()
        self.tick(seconds)
        await asyncio.sleep(0)


Script = Callable[[list[float]], object]


class ScriptedSink:
    """Answers each send by a script: a function of the events' values, or answers in order and `Delivered` after them.
    An answer that is an exception is raised. `calls` has the values of every send, `taken` those delivered.
    """

    def __init__(
        self, script: Script | Iterable[object] = (), *, name: str = "a", limits: Limits | None = None
    ) -> None:
        self.name = name
        self.limits = limits or Limits()
        self.calls: list[list[float]] = []
        self.taken: list[float] = []
        self.overlapped = False
        self._busy = threading.Lock()
        self.follow(script)

    def follow(self, script: Script | Iterable[object]) -> None:
        """From now on, another script."""
        if callable(script):
            self._script: Script = script
        else:
            answers = iter(script)
            self._script = lambda _: next(answers, Delivered())

    def send(self, batches: Sequence[Batch], *, timeout: float) -> Outcome:  # noqa: ARG002 - a real sink's signature
        self.overlapped |= not self._busy.acquire(blocking=False)
        values = [value for batch in batches for value in numbers(batch)]
        self.calls.append(values)
        try:
            answer = self._script(values)
        finally:
            self._busy.release()
        if isinstance(answer, BaseException):
            raise answer
        if isinstance(answer, Delivered):
            self.taken += values[: answer.events]
        return cast("Outcome", answer)  # a script may well answer what no sink should

    def close(self) -> None: ...


class DiarySink(ScriptedSink):
    """Remembers how many events and ticks it was given. `due_at` (ns) is when it wants the next tick."""

    def __init__(self, clock: Callable[[], int], script: Script | Iterable[object] = ()) -> None:
        super().__init__(script)
        self.clock = clock
        self.memo = b""
        self.recalled: list[bytes] = []
        self.ticks: list[bool] = []
        self.ticking: list[Outcome] = []  # answers in order, and Delivered after them
        self.due_at: int | None = None

    @property
    def due(self) -> float | None:
        return None if self.due_at is None else (self.due_at - self.clock()) / 1e9

    def recall(self, memo: bytes) -> None:
        self.recalled.append(memo)
        self.memo = memo

    def send(self, batches: Sequence[Batch], *, timeout: float) -> Outcome:
        outcome = super().send(batches, timeout=timeout)
        self.memo = str(self.taken).encode()
        return outcome

    def tick(self, *, timeout: float, last: bool) -> Outcome:  # noqa: ARG002 - the contract's signature
        self.ticks.append(last)
        outcome = self.ticking.pop(0) if self.ticking else Delivered()
        if isinstance(outcome, Delivered):
            self.memo += b" told"
            self.due_at = None
        return outcome


def refusing(poison: Iterable[float]) -> Script:
    """Refuses whatever holds one of these, and nothing else."""
    refused = set(poison)
    return lambda values: Rejected("poison") if refused.intersection(values) else Delivered()


class WatchedSpool(Honest):
    """A spool around a spool. Sets `empty[sink]` when a pump waits for more, and fails as often as it is told to."""

    def __init__(self, spool: Spool) -> None:
        super().__init__(spool)
        self.empty: dict[str, asyncio.Event] = {}
        self.failing_reads: list[Exception] = []
        self.failing_settles: list[Exception] = []

    def fail(self, *, reads: int = 0, settles: int = 0) -> None:
        self.failing_reads = [SpoolUnavailable("the disk is full") for _ in range(reads)]
        self.failing_settles = [SpoolUnavailable("the disk is full") for _ in range(settles)]

    async def read(self, sink: str, *, max_events: int, max_bytes: int) -> list[Piece]:
        if self.failing_reads:
            raise self.failing_reads.pop()
        return await super().read(sink, max_events=max_events, max_bytes=max_bytes)

    async def settle(self, sink: str, settlement: Settlement) -> None:
        if self.failing_settles:
            raise self.failing_settles.pop()
        await super().settle(sink, settlement)

    async def wait(self, sink: str, timeout: float) -> None:
        self.empty.setdefault(sink, asyncio.Event()).set()
        await super().wait(sink, timeout)


# --- for the contract suite ---------------------------------------------------------------------------------------


class Receiver(Protocol):
    """A backend's stand-in behind a real socket, pipe or terminal. Behaves until it is told to `misbehave`."""

    @property
    def address(self) -> Any:
        """What `Case.build` needs to reach it; can be pickled."""
        ...

    @property
    def fds(self) -> tuple[int, ...]:
        """The descriptors that a child process must inherit to reach it."""
        ...

    @property
    def attempts(self) -> int:
        """How many deliveries were begun in what was last taken, as far as a receiver can tell."""
        ...

    @property
    def broken(self) -> int:
        """How much of what was last taken could not be understood."""
        ...

    def misbehave(self, fault: Fault | None) -> None: ...

    def take(self, at_least: int = 0) -> list[Fact]:
        """Everything that has arrived and was not taken before, in order. What is still on the way (a kernel's queue)
        is waited for, for some seconds at most, while there are fewer than `at_least`.
        """
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Case:
    """One sink and its receiver.

    `build` makes the sink from a receiver's address, with CANARY as its secret; it is a function of a module, so that
    a child process can do it. `expect` says which facts the receiver of a healthy delivery ends up with. `libraries`
    are the packages of others that importing `module` may load. `much` events are more than the kernel takes for a
    receiver that does not read; `more` go with them, for a sink that leaves points out. `times` (ns UTC) are what the
    backend takes, first and last.
    """

    name: str
    receiver: Callable[[], Receiver]
    build: Callable[[Any], Sink]
    expect: Callable[[Sequence[Batch]], list[Fact]]
    faults: tuple[Fault, ...]
    module: str
    libraries: frozenset[str] = frozenset()
    much: int = 300
    more: tuple[Event, ...] = ()
    times: tuple[int, int] = (0, 2**63 - 1)


class Reader:
    """Reads what a console sink writes: the other end of a pipe (`os.pipe`) or of a terminal (`os.openpty`)."""

    STEP = 0.02  # seconds between looks at what it was told
    LATE = 5.0  # a terminal hands over in the background; how long to wait for that

    def __init__(self, kind: Literal["pipe", "terminal"]) -> None:
        self._fd, self.address = os.pipe() if kind == "pipe" else os.openpty()
        os.set_blocking(self._fd, False)
        self.fds = (self.address,)
        self.attempts = self.broken = 0
        self._late = 0.0 if kind == "pipe" else self.LATE
        self._fault: Fault | None = None
        self._got = bytearray()
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def misbehave(self, fault: Fault | None) -> None:
        with self._lock:
            self._fault = fault
            if fault == "close":
                os.close(self._fd)

    def take(self, at_least: int = 0) -> list[Fact]:
        deadline = time.monotonic() + self._late
        self._drain()
        while self._got.count(b"\n") < at_least and time.monotonic() < deadline:
            self._done.wait(self.STEP)
            self._drain()
        with self._lock:
            end = self._got.rfind(b"\n") + 1
            lines = self._got[:end].decode("ascii").split("\n")[:-1]
            del self._got[:end]
        facts = [_console_fact(text) for text in lines]
        # The same line twice is a second attempt; an empty one only ends a broken one.
        self.attempts = max(Counter(text for text in lines if text.strip()).values(), default=0)
        self.broken = facts.count(None)
        return [fact for fact in facts if fact is not None]

    def close(self) -> None:
        self._done.set()
        self._thread.join()
        if self._fault != "close":
            os.close(self._fd)
        os.close(self.address)

    def _run(self) -> None:
        while not self._done.is_set():
            if self._fault is None:
                with suppress(ValueError, OSError):  # closed meanwhile
                    select.select([self._fd], [], [], self.STEP)
            else:
                self._done.wait(self.STEP)
            with self._lock:
                if self._fault in (None, "slow"):
                    self._read(1 << 16 if self._fault is None else 1000)

    def _drain(self) -> None:
        with self._lock:
            while self._fault != "close" and self._read(1 << 16):
                pass

    def _read(self, most: int) -> int:
        try:
            data = os.read(self._fd, most)
        except BlockingIOError:
            return 0
        self._got += data
        return len(data)


def _console_fact(text: str) -> Fact | None:
    """None for what a reader of JSON lines has to skip."""
    try:
        record = json.loads(text)
        seconds, nanoseconds = record["time"].removesuffix("Z").split(".")
        stamp = int(datetime.fromisoformat(seconds + "+00:00").timestamp()) * 10**9 + int(nanoseconds)
        if record["kind"] == "change":
            value: object = [record["severity"], record["title"], record["text"]]
        elif record["kind"] == "histogram":
            value = [record["histogram"][key] for key in ("bounds", "counts", "sum", "count")]
        else:
            value = record["value"]
        return Fact(record["name"], value, record["resource"] | record["attributes"], stamp)
    except (ValueError, KeyError, TypeError):
        return None


def _console_expect(batches: Sequence[Batch]) -> list[Fact]:
    return [
        Fact(event.name, _value(event), batch.resource.attributes | event.attributes, event.time)
        for batch in batches
        for event in batch.events
    ]


def _value(event: object) -> object:
    match event:
        case Metric(histogram=Histogram(bounds, counts, total, count)):
            return [list(bounds), list(counts), total, count]
        case Metric(value=value):
            return value
        case _:
            return [getattr(event, field) for field in ("severity", "title", "text")]


def build_console(fd: int) -> Sink:
    return ConsoleSink("console", fd)


def build_dogstatsd(address: str) -> Sink:
    return DogStatsdSink("dogstatsd", address, Form(), max_age=3600, clock=lambda: datadog.CLOCK * 10**9)


CONSOLE = [
    Case(
        kind,
        partial(Reader, kind),
        build_console,
        _console_expect,
        faults=("hang", "slow", "close"),
        module="forwarder.sinks.console",
    )
    for kind in ("pipe", "terminal")
]
_ON_A_SOCKET: tuple[Fault, ...] = ("hang", "slow", "close")


def _dogstatsd(name: str, kind: datadog.Kind, faults: tuple[Fault, ...], much: int) -> Case:
    receiver = partial(datadog.DogStatsd, kind)
    module = "forwarder.sinks.datadog.dogstatsd"
    return Case(name, receiver, build_dogstatsd, datadog.expected_lines, faults, module, much=much)


DOGSTATSD = [
    _dogstatsd("dogstatsd-udp", "udp", ("refuse",), 300),
    _dogstatsd("dogstatsd-uds", "unixgram", _ON_A_SOCKET, 2000),
    _dogstatsd("dogstatsd-uds-stream", "unixstream", _ON_A_SOCKET, 2000),
]
OTLP = [
    Case(
        f"otlp-{protocol}",
        partial(receiver, CANARY),
        partial(build, CANARY),
        otlp.expect,
        faults=("hang", "slow", "refuse", "close", "garbage"),
        module=f"forwarder.sinks.otlp.{protocol}",
        libraries=frozenset({"google", "opentelemetry", "ssl"}) | libraries,
    )
    for protocol, receiver, build, libraries in (
        ("http", otlp.HttpReceiver, otlp.build_http, {"httpx"}),
        ("grpc", otlp.GrpcReceiver, otlp.build_grpc, {"httpx", "grpc"}),
    )
]
PEOPLE = [
    Case(
        name,
        notify.RECEIVERS[name],
        notify.build_webhook if name == "webhook" else notify.build_mail,
        notify.expect_webhook if name == "webhook" else notify.expect_mail,
        faults=("hang", "slow", "refuse", "close", "garbage"),
        module="forwarder.sinks.notify.sink",
        libraries=frozenset(),
        more=(Change("litellm.proxy.down", 1, "error", "the proxy is down"),),
    )
    for name in notify.RECEIVERS
]
_TLS = tls_context(None, None, None)


def build_datadog_api(url: str) -> Sink:
    poster = Poster(url, {"DD-API-KEY": Secret(CANARY)}, _TLS)
    return DatadogApiSink("datadog", poster, Form(), max_age=3600, clock=lambda: datadog.CLOCK * 10**9)


DATADOG_API = Case(
    "datadog-api",
    partial(datadog.Intake, CANARY),
    build_datadog_api,
    datadog.expected_requests,
    faults=("hang", "slow", "refuse", "close", "garbage"),
    module="forwarder.sinks.datadog.api",
    libraries=frozenset({"httpx", "ssl"}),  # of our own bounded POST
)
NEW_RELIC = [
    Case(
        name,
        partial(newrelic.Intake, CANARY, tls=tls),
        partial(newrelic.build, CANARY),
        newrelic.expect,
        faults=("hang", "slow", "refuse", "close", "garbage"),
        module="forwarder.sinks.newrelic",
        libraries=frozenset({"httpx", "newrelic_telemetry_sdk", "ssl", "urllib3"}),
        times=newrelic.TIMES,
    )
    for name, tls in (("newrelic", False), ("newrelic-tls", True))
]

CASES = [*CONSOLE, *DOGSTATSD, DATADOG_API, *OTLP, *NEW_RELIC, *PEOPLE]


def rest(batches: Sequence[Batch], count: int) -> list[Batch]:
    """What is left of them behind the first `count` events."""
    left = []
    for batch in batches:
        if count < len(batch.events):
            left.append(Batch(batch.resource, batch.time, batch.events[count:]))
        count = max(0, count - len(batch.events))
    return left


# --- cheaters: a suite that they pass would be no suite -----------------------------------------------------------


def cheating(case: Case, cheater: type["HonestSink"]) -> Case:
    return Case(
        case.name,
        case.receiver,
        partial(_built, cheater, case.build),
        case.expect,
        case.faults,
        case.module,
        case.libraries,
        case.much,
        case.more,
        case.times,
    )


def _built(cheater: type["HonestSink"], build: Callable[[Any], Sink], address: Any) -> Sink:
    return cheater(build(address), address)


class HonestSink:
    """A sink around a sink; the cheaters below override what they cheat at."""

    def __init__(self, sink: Sink, address: Any) -> None:
        self.sink = sink
        self.address = address
        self.name = sink.name
        self.limits = sink.limits

    def send(self, batches: Sequence[Batch], *, timeout: float) -> Outcome:
        return self.sink.send(batches, timeout=timeout)

    def close(self) -> None:
        self.sink.close()


class Liar(HonestSink):
    """Reports a delivery that was not made."""

    def send(self, batches: Sequence[Batch], *, timeout: float) -> Outcome:  # noqa: ARG002 - the contract's signature
        return Delivered()


class Forgetful(HonestSink):
    """Leaves out the last event."""

    def send(self, batches: Sequence[Batch], *, timeout: float) -> Outcome:
        *before, last = batches
        return super().send([*before, Batch(last.resource, last.time, last.events[:-1])], timeout=timeout)


class Hoarder(HonestSink):
    """Keeps what it was given until the next call."""

    held: Sequence[Batch] = ()

    def send(self, batches: Sequence[Batch], *, timeout: float) -> Outcome:
        held, self.held = self.held, list(batches)
        return super().send(held, timeout=timeout)


class Procrastinator(HonestSink):
    """Answers first and delivers soon after."""

    def send(self, batches: Sequence[Batch], *, timeout: float) -> Outcome:
        later = threading.Timer(0.1, super().send, [list(batches)], {"timeout": timeout})
        later.name = "attempt"  # the suite waits for threads of this name
        later.start()
        return Delivered()


class Impatient(HonestSink):
    """Tries a second time within one call."""

    def send(self, batches: Sequence[Batch], *, timeout: float) -> Outcome:
        first = super().send(batches, timeout=timeout / 2)
        return first if isinstance(first, Delivered) else super().send(batches, timeout=timeout / 2)


class Overtime(HonestSink):
    """Does not mind the timeout."""

    def send(self, batches: Sequence[Batch], *, timeout: float) -> Outcome:
        return super().send(batches, timeout=timeout + 2)


class Sleeper(HonestSink):
    """Paces itself."""

    def send(self, batches: Sequence[Batch], *, timeout: float) -> Outcome:
        time.sleep(0.001)
        return super().send(batches, timeout=timeout)


class Spawner(HonestSink):
    """Delivers from a thread of its own."""

    def send(self, batches: Sequence[Batch], *, timeout: float) -> Outcome:
        answers: list[Outcome] = []
        deliver = super().send
        thread = threading.Thread(target=lambda: answers.append(deliver(batches, timeout=timeout)))
        thread.start()
        thread.join()
        return answers[0]


class Meddler(HonestSink):
    """Adds an attribute of its own to what it was given."""

    def send(self, batches: Sequence[Batch], *, timeout: float) -> Outcome:
        for batch in batches:
            batch.resource.attributes["via"] = "meddler"
        return super().send(batches, timeout=timeout)


class Consumer(HonestSink):
    """Empties the list that it was given."""

    def send(self, batches: Sequence[Batch], *, timeout: float) -> Outcome:
        outcome = super().send(batches, timeout=timeout)
        cast("list[Batch]", batches).clear()
        return outcome


class Gossip(HonestSink):
    """Puts its credentials into its reason."""

    def send(self, batches: Sequence[Batch], *, timeout: float) -> Outcome:
        outcome = super().send(batches, timeout=timeout)
        return outcome if isinstance(outcome, Delivered) else Retry(f"POST /?api_key={CANARY}: {outcome.reason}")


class Exhibitionist(HonestSink):
    """Shows its credentials in its repr."""

    def __repr__(self) -> str:
        return f"Exhibitionist(api_key={CANARY!r})"


class Eager(HonestSink):
    """Looks at its destination in the constructor."""

    def __init__(self, sink: Sink, address: Any) -> None:
        super().__init__(sink, address)
        os.fstat(address)


class Forger(HonestSink):
    """Writes newlines as they are, so that a text can bring an event of its own."""

    def send(self, batches: Sequence[Batch], *, timeout: float) -> Outcome:  # noqa: ARG002 - the contract's signature
        lines = [line(event, batch) for batch in batches for event in batch.events]
        data = "".join(lines).replace(r"\n", "\n").replace(r"\"", '"').encode()
        while data:
            data = data[os.write(self.address, data) :]
        return Delivered()


class Optimist(HonestSink):
    """Takes a dead receiver for a delivery."""

    def send(self, batches: Sequence[Batch], *, timeout: float) -> Outcome:
        outcome = super().send(batches, timeout=timeout)
        return Delivered() if isinstance(outcome, Blocked) else outcome


class Executioner(HonestSink):
    """Condemns the data when it is the receiver that fails."""

    def send(self, batches: Sequence[Batch], *, timeout: float) -> Outcome:
        outcome = super().send(batches, timeout=timeout)
        return outcome if isinstance(outcome, Delivered) else Rejected(outcome.reason)


class Fragile(HonestSink):
    """Can be closed once."""

    closed = False

    def close(self) -> None:
        if self.closed:
            raise RuntimeError("already closed")
        self.closed = True


class Splicer(HonestSink):
    """Goes on writing after a line that was cut off."""

    def send(self, batches: Sequence[Batch], *, timeout: float) -> Outcome:
        cast("ConsoleSink", self.sink)._cut = False
        return super().send(batches, timeout=timeout)


class Overclaimer(HonestSink):
    """Says that a request held fewer events than it did, so that the rest goes twice."""

    def send(self, batches: Sequence[Batch], *, timeout: float) -> Outcome:
        outcome = super().send(batches, timeout=timeout)
        return replace(outcome, events=1) if isinstance(outcome, Delivered) and len(rest(batches, 1)) else outcome
