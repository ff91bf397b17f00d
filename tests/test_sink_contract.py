"""The promises of forwarder/sinks/base.py, as checks that every sink passes over real sockets, pipes and terminals,
and that cheating sinks fail. A new sink is one `Case` in backends/sinks.py.
"""

import copy
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, TypeVar

import pytest
from backends import sinks
from backends.facts import Fault
from backends.sinks import CANARY, CASES, Case, HonestSink, Receiver, cheating, rest
from hypothesis import given, settings
from hypothesis import strategies as st

from forwarder.events import Attributes, Batch, Change, Delta, Event, Histogram, Metric, Resource, encode
from forwarder.sinks.base import Blocked, Delivered, Outcome, Rejected, Retry, Sink

T = TypeVar("T")
TESTS = Path(__file__).parent
ENOUGH = 20.0  # seconds; a healthy receiver needs far less
SHORT = 0.4  # seconds that a send gets where the receiver misbehaves
MOMENT = 1.0  # seconds past its timeout in which a send must have returned
NOW = 1_750_000_000_123_456_789

THREADS = {"_thread.start_new_thread", "_thread.start_joinable_thread"}
WAITS = {"time.sleep"}
IO = {"posix", "io", "_io", "socket", "_socket", "ssl", "_ssl", "select", "_posixsubprocess", "_imp"}
HEAVY = {
    "apscheduler", "datadog", "google", "grpc", "httpx", "newrelic_telemetry_sdk", "opentelemetry", "pydantic",
    "requests", "sqlite3", "ssl", "urllib3",
}  # fmt: skip


# --- what is sent -------------------------------------------------------------------------------------------------


def gauge(value: float, **attributes: str | int) -> Metric:
    return Metric("litellm.up", "gauge", "1", NOW, value, dict(attributes))


def batch(*events: Event, **resource: str | int) -> Batch:
    return Batch(Resource({"litellm.target": "eu", **resource}), NOW, events)


def every_kind() -> list[Batch]:
    buckets = Histogram((0.005, 0.5, 10.0), (1, 2, 0, 4), 123.456789, 7)
    grown = Histogram((0.005, 0.5, 10.0), (0, 1, 0, 1), 20.5, 2)
    start = NOW - 3600 * 10**9
    where: Attributes = {"model": "gpt-4o", "deployment.id": "d-1", "code": 200}
    return [
        batch(
            gauge(0.1),
            gauge(-1e-300, model="é"),
            Metric("requests", "sum", "{request}", NOW + 1, 2.0**53, where, start, delta=Delta(NOW - 10**9, 3.0)),
            Metric("latency", "histogram", "s", NOW + 2, None, where, start, buckets, Delta(start, None, grown)),
        ),
        batch(
            Change("litellm.proxy.down", NOW + 3, "error", "eu is down", "It does not answer.", {"code": 503}),
            gauge(1.0),
            region="eu-west-1",
        ),
    ]


def numbered(count: int, length: int = 0) -> list[Batch]:
    """Events that can be told apart; every third is far longer than a pipe takes at once."""
    return [
        batch(
            *(gauge(float(i), text="x" * (length * 60 if i % 3 == 1 else length)) for i in range(start, start + 100))
        )
        for start in range(0, count, 100)
    ]


def much(case: Case, sink: Sink) -> list[Batch]:
    """More than a kernel buffers, and within the sink's limits."""
    events = numbered(min(sink.limits.max_events, case.much), 100)
    return [*events, batch(*case.more)] if case.more else events


INJECTION = (
    'x","value":2.0}\n{"name":"forged","kind":"gauge","value":1,"unit":"1","time":"2026-01-01T00:00:00.0Z",'
    '"attributes":{},"resource":{}}\n{"'
)
HOSTILE = [
    INJECTION,
    "two\nlines",
    "forged:1|g|#a:b\nforged:1|c",
    "a|b,c:d#e@f;g=h",
    "_e{5,4}:title|text",
    "\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
    "".join(map(chr, range(32))) + "\x7f" + "".join(map(chr, range(0x80, 0xA0))),
    "\x1b]0;owned\x07\x1b[2J\x1b[31m",
    "\u2028 \u2029 \u0085 \ufeff \u202e \x00",
    "\ud800 lone",
    "lone \udfff",
    "\\u000a \\n \\\\ \" ' ` $(x) ${x} %s %n {0} {{}}",
    "</script>&amp;<![CDATA[",
    "😀" * 50,
    "y" * 100_000,
    "\n" * 100_000,
    "",
]


# --- how it is sent -----------------------------------------------------------------------------------------------


@contextmanager
def opened(case: Case) -> Iterator[tuple[Receiver, Sink]]:
    receiver = case.receiver()
    sink = None
    try:
        sink = case.build(receiver.address)
        yield receiver, sink
        sink.close()
    finally:
        receiver.close()
        for thread in threading.enumerate():  # a send that did not return does so when its receiver is gone
            if thread.name == "attempt":
                thread.join(ENOUGH)
        if sink is not None:
            with suppress(RuntimeError):  # of a sink that cheats; an honest one may be closed twice
                sink.close()


@dataclass
class Attempt:
    outcome: Outcome | None = None
    called: frozenset[str] = frozenset()  # functions of C, if they were watched
    error: BaseException | None = None


def attempt(sink: Sink, batches: Sequence[Batch], timeout: float = ENOUGH) -> Outcome:
    """Send, and give what did not fit into the request again, as the pump does."""
    while True:
        outcome, _ = tried(sink, batches, timeout)
        if not isinstance(outcome, Delivered) or outcome.events is None:
            return outcome
        count = sum(len(one.events) for one in batches)
        assert 1 <= outcome.events <= count, "a delivery of events that were not given"
        batches = rest(batches, outcome.events)
        if not batches:
            return replace(outcome, events=None)


def tried(
    sink: Sink, batches: Sequence[Batch], timeout: float, *, watch: bool = False
) -> tuple[Outcome, frozenset[str]]:
    """Send from a thread, as the pump does, each time another. Also says which functions of C that called."""
    result = Attempt()

    def work() -> None:
        try:
            if watch:
                result.outcome, result.called = watched(lambda: sink.send(batches, timeout=timeout))
            else:
                result.outcome = sink.send(batches, timeout=timeout)
        except BaseException as error:  # noqa: BLE001 - told below
            result.error = error

    thread = threading.Thread(target=work, name="attempt", daemon=True)
    thread.start()
    thread.join(timeout + MOMENT)
    assert not thread.is_alive(), "send has not returned within its timeout"
    assert result.error is None, f"send raised {result.error!r}"
    assert isinstance(result.outcome, Delivered | Retry | Rejected | Blocked), "send answers no outcome"
    return result.outcome, result.called


def watched(call: Callable[[], T]) -> tuple[T, frozenset[str]]:
    """What it returns, and the functions of C that this thread called meanwhile, such as `posix.write`."""
    called: set[str] = set()

    def note(_frame: FrameType, event: str, function: Any) -> None:
        if event == "c_call":
            owner = getattr(function, "__self__", None)
            home = owner.__name__ if isinstance(owner, ModuleType) else type(owner).__module__
            called.add(f"{home}.{function.__qualname__}")

    sys.setprofile(note)
    try:
        return call(), frozenset(called)
    finally:
        sys.setprofile(None)


# --- the checks: each one's docstring is the promise ---------------------------------------------------------------


def check_constructor_does_nothing(case: Case) -> None:
    """Building a sink does no I/O, waits for nothing and starts no thread; what was never used can be closed."""
    receiver = case.receiver()
    try:
        case.build(receiver.address).close()  # once unwatched: whatever it imports is imported now
        sink, called = watched(lambda: case.build(receiver.address))
        inputs = {name for name in called if name.partition(".")[0] in IO}
        assert not inputs, f"the constructor does I/O: {inputs}"
        assert not called & (THREADS | WAITS), f"the constructor waits or starts a thread: {called}"
        assert receiver.take() == []
        assert receiver.attempts == receiver.broken == 0
        sink.close()
    finally:
        receiver.close()


def check_module_is_light(case: Case) -> None:
    """Importing a sink loads no library but its own: who does not configure a backend does not pay for it."""
    code = f"import sys, {case.module}; print(*{HEAVY - case.libraries!r} & sys.modules.keys())"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=TESTS.parent)
    assert loaded.stdout.split() == [], "heavy imports"


def check_every_kind_comes_through(case: Case) -> None:
    """Gauges, sums, histograms and changes arrive with their value, time and attributes, in order, each once."""
    with opened(case) as (receiver, sink):
        sent = every_kind()
        assert attempt(sink, sent) == Delivered()
        expected = case.expect(sent)
        assert receiver.take(len(expected)) == expected, "other facts arrived than were sent"
        assert receiver.broken == 0


def check_much_comes_through(case: Case) -> None:
    """A send as large as the limits allow arrives whole."""
    with opened(case) as (receiver, sink):
        sent = much(case, sink)
        assert attempt(sink, sent) == Delivered()
        expected = case.expect(sent)
        assert receiver.take(len(expected)) == expected, "other facts arrived than were sent"
        assert receiver.attempts == 1
        assert receiver.broken == 0


def check_nothing_to_send(case: Case) -> None:
    """No batches, or a batch without events, is a delivery of nothing."""
    for nothing in ([], [batch()]):
        with opened(case) as (receiver, sink):
            assert attempt(sink, nothing) == Delivered()
            assert receiver.take() == []
            assert receiver.broken == 0


def check_any_batch_comes_through(case: Case) -> None:
    """Whatever the event model can hold comes through unchanged."""
    with opened(case) as (receiver, sink):

        @settings(max_examples=60, deadline=None)
        @given(st.lists(batches(case.times), max_size=3))
        def send(sent: list[Batch]) -> None:
            assert attempt(sink, sent) == Delivered()
            expected = case.expect(sent)
            assert receiver.take(len(expected)) == expected
            assert receiver.broken == 0

        send()


def check_hostile_text_forges_nothing(case: Case) -> None:
    """No text, wherever it stands, makes an event, ends one, or changes another."""
    with opened(case) as (receiver, sink):
        for text in HOSTILE:
            sent = [
                batch(
                    gauge(1.0, **{"model": text, text: "key"}),
                    Metric(f"n{text}", "gauge", text, NOW, 2.0),
                    Change("litellm.proxy.down", NOW, "error", text, text, {"model": text}),
                    gauge(3.0),
                    region=text,
                )
            ]
            assert attempt(sink, sent) == Delivered()
            expected = case.expect(sent)
            assert receiver.take(len(expected)) == expected, f"forged by {text[:40]!r}"
            assert receiver.broken == 0, f"broken by {text[:40]!r}"


def check_nothing_stays_buffered(case: Case) -> None:
    """When `send` has returned, everything is with the kernel at least: a process killed then loses nothing."""
    with opened(case) as (receiver, sink):
        for sent in (every_kind(), [batch(gauge(7.0))]):
            assert attempt(sink, sent) == Delivered()
            expected = case.expect(sent)
            assert receiver.take(len(expected)) == expected, "not there when send had returned"
    with opened(case) as (receiver, _):
        sent = every_kind()
        _send_and_die(case, receiver, sent)
        expected = case.expect(sent)
        assert receiver.take(len(expected)) == expected, "lost with the process"


DYING = """
import os, pickle, signal, sys
from backends.sinks import rest
build, address, batches = pickle.load(sys.stdin.buffer)
sink = build(address)
while batches:
    outcome = sink.send(batches, timeout=20)
    if type(outcome).__name__ != "Delivered":
        sys.exit(1)
    batches = [] if outcome.events is None else rest(batches, outcome.events)
os.kill(os.getpid(), signal.SIGKILL)
"""


def _send_and_die(case: Case, receiver: Receiver, sent: Sequence[Batch]) -> None:
    child = subprocess.run(
        [sys.executable, "-c", DYING],
        input=pickle.dumps((case.build, receiver.address, sent)),
        env={**os.environ, "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"},
        pass_fds=receiver.fds,
        timeout=60,
        check=False,
    )
    assert child.returncode == -signal.SIGKILL, "the child did not deliver"


def check_returns_in_time(case: Case) -> None:
    """Whatever the receiver does, `send` returns within its timeout."""
    for fault in case.faults:
        with misbehaving(case, fault) as (_, sink):
            start = time.monotonic()
            attempt(sink, much(case, sink), SHORT)
            assert time.monotonic() - start < SHORT + MOMENT, "send has not returned within its timeout"


def check_a_failure_is_told(case: Case) -> None:
    """What a misbehaving receiver was sent is not a delivery, nor is the data blamed for what the receiver does."""
    for fault in case.faults:
        with misbehaving(case, fault) as (_, sink):
            outcome = attempt(sink, much(case, sink), SHORT)
            assert not isinstance(outcome, Delivered), f"{fault} is no delivery"
            assert not isinstance(outcome, Rejected), f"{fault} is not the fault of the data"
            assert outcome.reason, "a failure without a reason"
            assert outcome.reason.isprintable(), "a reason that is not one line"


def check_one_attempt(case: Case) -> None:
    """One call makes one attempt; trying again is the pump's."""
    for fault in case.faults:
        with misbehaving(case, fault) as (receiver, sink):
            attempt(sink, much(case, sink), SHORT)
            receiver.take()
            assert receiver.attempts <= 1, "more than one attempt"


def check_no_thread_no_sleep(case: Case) -> None:
    """`send` starts no thread and never sleeps, whether it succeeds or fails."""
    for fault in (None, *case.faults):
        with misbehaving(case, fault) as (_, sink):
            attempt(sink, [batch(gauge(1.0))], SHORT)  # what a library does at first use, it does here
            _, called = tried(sink, much(case, sink), SHORT, watch=True)
            assert not called & THREADS, "send starts a thread"
            assert not called & WAITS, "send sleeps"


def check_input_is_untouched(case: Case) -> None:
    """Nothing that is given to `send` is changed: other sinks and the next attempt use the same."""
    for fault in (None, *case.faults):
        with misbehaving(case, fault) as (_, sink):
            sent = [*every_kind(), *much(case, sink)[:2]]
            before = [encode(one) for one in sent]
            same = copy.copy(sent)
            attempt(sink, sent, SHORT)
            assert [encode(one) for one in sent] == before, "the input was changed"
            assert len(sent) == len(same), "the list was changed"
            assert all(one is other for one, other in zip(sent, same, strict=True)), "the list was changed"


def check_a_repeat_repairs(case: Case) -> None:
    """What an attempt left unfinished is sent again whole: every event arrives, and none that was not sent."""
    for fault in set(case.faults) - {"close"}:
        with misbehaving(case, fault) as (receiver, sink):
            sent = much(case, sink)
            expected = case.expect(sent)
            for _ in range(2):
                assert not isinstance(attempt(sink, sent, SHORT), Delivered)
            receiver.misbehave(None)
            assert attempt(sink, sent) == Delivered()
            arrived = receiver.take(len(expected))
            assert arrived[-len(expected) :] == expected, "the repeat is not whole"
            assert all(fact in expected for fact in arrived), "an event that was not sent"


def check_close_is_safe(case: Case) -> None:
    """`close` may be called before any send, twice, and after a send that failed."""
    for fault in (None, *case.faults):
        with misbehaving(case, fault) as (_, sink):
            attempt(sink, much(case, sink), SHORT)
            for _ in range(2):
                try:
                    sink.close()
                except Exception as error:  # noqa: BLE001 - turned into what was promised
                    pytest.fail(f"close is not safe: {error!r}")


def check_no_secret_is_told(case: Case) -> None:
    """No reason and no repr shows the sink's credentials."""
    for fault in (None, *case.faults):
        with misbehaving(case, fault) as (_, sink):
            outcome = attempt(sink, much(case, sink), SHORT)
            for text in (repr(outcome), repr(sink), str(sink), f"{sink}", sink.name):
                assert CANARY not in text, "a secret is told"


@contextmanager
def misbehaving(case: Case, fault: Fault | None) -> Iterator[tuple[Receiver, Sink]]:
    with opened(case) as (receiver, sink):
        receiver.misbehave(fault)
        yield receiver, sink


# --- the tests ----------------------------------------------------------------------------------------------------

CHECKS: list[Callable[[Case], None]] = [value for name, value in list(globals().items()) if name.startswith("check_")]

STAMPS = st.integers(0, 2**63 - 1)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
COUNTS = st.integers(0, 2**63 - 1)
ATTRIBUTES = st.dictionaries(st.text(max_size=20), st.text(max_size=50) | st.integers(-(2**63), 2**63 - 1), max_size=5)
NAMES = st.text(min_size=1, max_size=30)


@st.composite
def histograms(draw: st.DrawFn) -> Histogram:
    bounds = sorted(draw(st.sets(FLOATS, max_size=5)))
    counts = draw(st.lists(COUNTS, min_size=len(bounds) + 1, max_size=len(bounds) + 1))
    return Histogram(tuple(bounds), tuple(counts), draw(FLOATS), sum(counts))


def batches(between: tuple[int, int]) -> st.SearchStrategy[Batch]:
    """Of events of times (ns UTC) `between` these; what they grew since may be any."""
    times = st.integers(*between)
    points = st.builds(Metric, NAMES, st.just("gauge"), NAMES, times, FLOATS, ATTRIBUTES)
    deltas = st.builds(Delta, STAMPS, FLOATS)
    sums = st.builds(Metric, NAMES, st.just("sum"), NAMES, times, FLOATS, ATTRIBUTES, STAMPS, delta=deltas)
    shapes = st.builds(
        Metric, NAMES, st.just("histogram"), NAMES, times, st.none(), ATTRIBUTES, STAMPS, histograms(), st.none()
    )
    severities = st.sampled_from(["info", "warning", "error"])
    changes = st.builds(Change, NAMES, times, severities, st.text(), st.text(), ATTRIBUTES)
    events = st.lists(points | sums | shapes | changes, max_size=5).map(tuple)
    return st.builds(Batch, st.builds(Resource, ATTRIBUTES), STAMPS, events)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_sink_keeps(check: Callable[[Case], None], case: Case) -> None:
    """Every sink keeps every promise; the check's own docstring says which."""
    check(case)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_honest_wrapper_passes(check: Callable[[Case], None]) -> None:
    """The cheaters fail for what they cheat at, not for being wrapped."""
    check(cheating(CASES[0], HonestSink))


@pytest.mark.parametrize(
    ("cheater", "check", "caught"),
    [
        (sinks.Liar, check_every_kind_comes_through, "other facts"),
        (sinks.Forgetful, check_every_kind_comes_through, "other facts"),
        (sinks.Hoarder, check_nothing_stays_buffered, "not there when send had returned"),
        (sinks.Procrastinator, check_nothing_stays_buffered, "not there when send had returned"),
        (sinks.Impatient, check_one_attempt, "more than one attempt"),
        (sinks.Overtime, check_returns_in_time, "not returned within its timeout"),
        (sinks.Sleeper, check_no_thread_no_sleep, "sleeps"),
        (sinks.Spawner, check_no_thread_no_sleep, "starts a thread"),
        (sinks.Meddler, check_input_is_untouched, "input was changed"),
        (sinks.Consumer, check_input_is_untouched, "was changed"),
        (sinks.Gossip, check_no_secret_is_told, "secret is told"),
        (sinks.Exhibitionist, check_no_secret_is_told, "secret is told"),
        (sinks.Eager, check_constructor_does_nothing, "constructor does I/O"),
        (sinks.Forger, check_hostile_text_forges_nothing, "forged by"),
        (sinks.Optimist, check_a_failure_is_told, "close is no delivery"),
        (sinks.Executioner, check_a_failure_is_told, "not the fault of the data"),
        (sinks.Fragile, check_close_is_safe, "close is not safe"),
        (sinks.Overclaimer, check_every_kind_comes_through, "other facts"),
        (sinks.Splicer, check_a_repeat_repairs, "the repeat is not whole"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_cheaters_fail(cheater: type[HonestSink], check: Callable[[Case], None], caught: str) -> None:
    """A suite that only an honest sink passes: each way of cheating fails the check made for it, for that reason."""
    with pytest.raises((AssertionError, pytest.fail.Exception), match=caught):
        check(cheating(CASES[0], cheater))


@pytest.mark.parametrize(
    ("cheater", "check", "caught"),
    [
        (sinks.Liar, check_every_kind_comes_through, "other facts"),
        (sinks.Forgetful, check_every_kind_comes_through, "other facts"),
        (sinks.Hoarder, check_nothing_stays_buffered, "not there when send had returned"),
        (sinks.Impatient, check_one_attempt, "more than one attempt"),
        (sinks.Executioner, check_a_failure_is_told, "not the fault of the data"),
        (sinks.Overclaimer, check_every_kind_comes_through, "other facts"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
@pytest.mark.parametrize("case", [*sinks.DOGSTATSD[1:], sinks.DATADOG_API], ids=lambda case: case.name)
def test_cheaters_fail_at_other_receivers(
    cheater: type[HonestSink], check: Callable[[Case], None], caught: str, case: Case
) -> None:
    """Other receivers notice as well what is not of one backend."""
    with pytest.raises((AssertionError, pytest.fail.Exception), match=caught):
        check(cheating(case, cheater))
