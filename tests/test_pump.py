"""What each outcome of a send leads to, with a real spool on disk. The ledger adds up at the end of every test."""

import asyncio
import logging
import math
import random
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from backends.sinks import DiarySink, FakeClock, Script, ScriptedSink, WatchedSpool, refusing
from hypothesis import given, settings
from hypothesis import strategies as st
from spool_stores import SECOND, START, account, batch, letters, numbers, pending

from forwarder import pump as pumping
from forwarder.errors import SpoolUnavailable
from forwarder.pump import BACKOFF, LONGEST_ASKED, REFUSALS, SETTLE_AGAIN, SLOWLY, Pump, Sleep
from forwarder.sinks.base import Blocked, Delivered, Limits, Rejected, Retry
from forwarder.spool.base import Account
from forwarder.spool.sqlite import SqliteSpool

LATE = 30.0  # seconds a test waits for what should come at once


@dataclass
class Rig:
    """A real spool, a clock that jumps, and pumps on them."""

    spool: WatchedSpool
    clock: FakeClock
    free: list[threading.Event] = field(default_factory=list)  # set at the end, so that no hanging send is left

    def pump(self, sink: ScriptedSink, *, clock: Callable[[], int] | None = None, sleep: Sleep | None = None) -> Pump:
        """`sleep`: in real time, rather than by the clock."""
        dice = random.Random(1)  # noqa: S311 - the same jitter every time
        sleep = sleep or self.clock.sleep
        return Pump(sink, self.spool, timeout=5.0, clock=clock or self.clock, sleep=sleep, dice=dice)

    async def until_empty(self, pump: Pump) -> bool:
        """Run until the queue is empty for the first time, then stop; what the pump makes of that."""
        self.spool.empty[pump.sink.name] = stop = asyncio.Event()
        async with asyncio.timeout(LATE):
            return await pump.run(stop)

    async def until_pause(self, pump: Pump, number: int) -> bool:
        """Run into that pause, counted from here, then stop, which makes one more attempt."""
        stop = asyncio.Event()
        self.clock.at(len(self.clock.pauses) + number, stop.set)
        async with asyncio.timeout(LATE):
            return await pump.run(stop)

    def hanging(self) -> Callable[[list[float]], object]:
        """A script that never answers, or rather at the end of the test."""
        freed = threading.Event()
        self.free.append(freed)

        def hang(_values: list[float]) -> object:
            freed.wait()
            return Retry("freed")

        return hang


@asynccontextmanager
async def rigged(folder: Path, *sinks: str) -> AsyncIterator[Rig]:
    clock = FakeClock()
    spool = SqliteSpool(folder / "spool.db", max_age=10.0**9, clock=clock)
    await spool.open()
    rig = Rig(WatchedSpool(spool), clock)
    try:
        await spool.attach(sinks or ["a"])
        yield rig
        for one in await spool.accounts():
            assert one.adds_up, one
    finally:
        for freed in rig.free:
            freed.set()
        for thread in threading.enumerate():
            if thread.name.startswith("send-"):
                await asyncio.to_thread(thread.join, LATE)
        await spool.close()


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with rigged(tmp_path) as made:
        yield made


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The pump's log lines so far: level and message."""
    caplog.set_level(logging.DEBUG, logger="forwarder.pump")
    return lambda: [f"{r.levelname} {r.getMessage()}" for r in caplog.records if r.name == "forwarder.pump"]


Said = Callable[[], list[str]]

RETRYING = "WARNING cannot deliver; the spool keeps everything, trying again"
REFUSING = (
    "ERROR the sink refuses every event; one is tried now and then and is a dead letter if it is refused, the spool "
    "keeps the others"
)
BLOCKED = "ERROR the sink is blocked; the spool keeps everything, trying slowly"
FULL = "ERROR the spool cannot be used; nothing is sent until it can"
AGAIN = "INFO delivers again"


# --- Delivered ----------------------------------------------------------------------------------------------------


async def test_delivers_in_order_within_the_limits(rig: Rig) -> None:
    """Everything once, in the order of put, never more events in one send than the sink takes."""
    for start in range(0, 30, 5):
        await rig.spool.put(batch(*range(start, start + 5)))
    sink = ScriptedSink(limits=Limits(max_events=7))
    assert await rig.until_empty(rig.pump(sink))
    assert sink.taken == list(range(30))
    assert max(map(len, sink.calls)) == 7
    assert rig.clock.pauses == []
    assert await account(rig.spool, "a") == Account("a", True, accepted=30, delivered=30)


async def test_what_did_not_fit_is_sent_at_once(rig: Rig) -> None:
    """A sink that can put only some of the events into one request gets the rest in the next call, without a pause."""
    await rig.spool.put(batch(*range(10)))
    await rig.spool.put(batch(*range(10, 20)))
    sink = ScriptedSink(lambda values: Delivered(events=min(3, len(values))))
    assert await rig.until_empty(rig.pump(sink))
    assert sink.taken == list(range(20))
    assert sink.calls[:2] == [list(range(20)), list(range(3, 20))]
    assert rig.clock.pauses == []
    assert await account(rig.spool, "a") == Account("a", True, accepted=20, delivered=20)


async def test_refused_inside_a_part_is_counted_of_that_part(rig: Rig) -> None:
    """`rejected` speaks of the events in the request, not of those that were left out of it."""
    await rig.spool.put(batch(*range(5)))
    sink = ScriptedSink([Delivered(2, "bad", events=3)])
    assert await rig.until_empty(rig.pump(sink))
    assert sink.calls == [[0, 1, 2, 3, 4], [3, 4]]
    assert await account(rig.spool, "a") == Account("a", True, accepted=5, delivered=3, rejected=2)


async def test_the_poison_is_sought_in_the_part_that_was_sent(rig: Rig) -> None:
    """A refusal of a part says nothing of the rest; of a part of one event, it is the verdict."""
    await rig.spool.put(batch(*range(20)))

    def script(values: list[float]) -> object:
        part = values[:4]
        return Rejected("poison", events=len(part)) if 2 in part else Delivered(events=len(part))

    sink = ScriptedSink(script)
    assert await rig.until_empty(rig.pump(sink))
    assert sink.taken == [value for value in range(20) if value != 2]
    assert [numbers(letter.batch) for letter in await letters(rig.spool)] == [[2]]
    assert sink.calls[1] == [0, 1], "half of what was sent, not half of what was given"


async def test_a_refused_part_of_one_event_buries_that_one(rig: Rig) -> None:
    """It was alone in its request, whatever else was given with it."""
    await rig.spool.put(batch(*range(5)))
    sink = ScriptedSink([Rejected("too large", events=1)])
    assert await rig.until_empty(rig.pump(sink))
    assert sink.calls == [[0, 1, 2, 3, 4], [1, 2, 3, 4]]
    assert [numbers(letter.batch) for letter in await letters(rig.spool)] == [[0]]


@pytest.mark.parametrize("answer", [Delivered(events=0), Delivered(events=-1), Rejected("no", events=0)])
async def test_a_request_of_no_events_is_a_bug_that_ends(rig: Rig, answer: Delivered | Rejected) -> None:
    """It would go on for ever at full speed, and count nothing."""
    await rig.spool.put(batch(1, 2))
    sink = ScriptedSink([answer])
    assert await rig.until_empty(rig.pump(sink))
    assert len(rig.clock.pauses) == 1
    assert await account(rig.spool, "a") == Account("a", True, accepted=2, delivered=2)


async def test_what_the_backend_refused_inside_is_counted(rig: Rig, said: Said) -> None:
    """A partial success is not sent again, and its losses are in the ledger and the log."""
    await rig.spool.put(batch(1, 2, 3))
    sink = ScriptedSink([Delivered(2, "too old")])
    assert await rig.until_empty(rig.pump(sink))
    assert sink.calls == [[1, 2, 3]]
    assert await account(rig.spool, "a") == Account("a", True, accepted=3, delivered=1, rejected=2)
    assert said() == ["WARNING the backend took a request but refused some of its events for good"]


async def test_what_is_refused_with_every_request_is_told_once_an_hour(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    """A limit of an account refuses some of each: that is one line an hour with their number, not one a request."""
    await rig.spool.put(batch(*range(18)))

    def over_the_limit(_values: list[float]) -> Delivered:
        rig.clock.tick(15 * 60)
        return Delivered(1, "over the limit", events=2)

    assert await rig.until_empty(rig.pump(ScriptedSink(over_the_limit)))
    told = [vars(record)["fields"]["events"] for record in caplog.records if "refused some" in record.message]
    assert told == [1, 4, 4]
    assert (await account(rig.spool, "a")).rejected == 9


@pytest.mark.parametrize(("told", "counted"), [(-1, 0), (99, 3)])
async def test_an_absurd_number_of_refused_events_is_bounded(rig: Rig, told: int, counted: int) -> None:
    """A number that a backend made up does not stop the queue, nor break the ledger."""
    await rig.spool.put(batch(1, 2, 3))
    assert await rig.until_empty(rig.pump(ScriptedSink([Delivered(told)])))
    assert await account(rig.spool, "a") == Account("a", True, accepted=3, delivered=3 - counted, rejected=counted)


# --- Retry and back-off -------------------------------------------------------------------------------------------


async def test_a_retry_repeats_the_same_after_a_growing_pause(rig: Rig) -> None:
    """Each pause lies within half and all of twice the last, up to the cap, and starts over after a delivery."""
    await rig.spool.put(batch(1, 2))
    sink = ScriptedSink([Retry("busy")] * 9)
    pump = rig.pump(sink)
    assert await rig.until_empty(pump)
    assert sink.calls == [[1, 2]] * 10
    first, longest = BACKOFF
    for number, pause in enumerate(rig.clock.pauses):
        full = min(longest, first * 2**number)
        assert full / 2 <= pause <= full
    assert len(rig.clock.pauses) == 9
    assert len(set(rig.clock.pauses)) == 9, "no jitter"
    await rig.spool.put(batch(3))
    sink.follow([Retry("busy")])
    assert await rig.until_empty(pump)
    assert rig.clock.pauses[-1] <= first


@pytest.mark.parametrize(
    ("asked", "least", "most"),
    [
        (17.0, 17.0, 17.0),
        (0.0, 0.5, 1.0),
        (-5.0, 0.5, 1.0),
        (math.nan, 0.5, 1.0),
        (1e12, LONGEST_ASKED, LONGEST_ASKED),
        (math.inf, LONGEST_ASKED, LONGEST_ASKED),
    ],
)
async def test_a_retry_after_is_honoured_within_reason(rig: Rig, asked: float, least: float, most: float) -> None:
    """No sooner than the backend asked; but neither a mistake nor an attack stops deliveries for a day."""
    await rig.spool.put(batch(1))
    assert await rig.until_empty(rig.pump(ScriptedSink([Retry("busy", after=asked)])))
    (pause,) = rig.clock.pauses
    assert least <= pause <= most


async def test_a_retry_after_counts_once(rig: Rig) -> None:
    """The pause after the next failure is the pump's own again."""
    await rig.spool.put(batch(1))
    assert await rig.until_empty(rig.pump(ScriptedSink([Retry("busy", after=500.0), Retry("down")])))
    assert rig.clock.pauses[0] == 500.0
    assert rig.clock.pauses[1] <= 2.0


# --- Rejected: the search for poison ------------------------------------------------------------------------------


async def test_one_poisoned_event_is_buried_alone(rig: Rig, said: Said) -> None:
    """The dead letter holds the event and the backend's reason; the others are delivered without delay."""
    await rig.spool.put(batch(*range(100)))
    sink = ScriptedSink(refusing([42]))
    assert await rig.until_empty(rig.pump(sink))
    (letter,) = await letters(rig.spool)
    assert numbers(letter.batch) == [42]
    assert (letter.sink, letter.reason) == ("a", "poison")
    assert sink.taken == [value for value in range(100) if value != 42]
    assert rig.clock.pauses == []
    assert said() == [
        "WARNING the sink refuses an event for good",
        "WARNING buried events as dead letters; `litellm-forwarder spool list` shows them",
    ]


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    most=st.integers(1, 64),
    data=st.data(),
)
def test_exactly_the_poison_is_buried(sizes: list[int], most: int, data: st.DataObject) -> None:
    """Wherever poison lies: it and nothing else is buried, the rest is delivered once and in order, and finding it
    takes a number of sends that grows with the logarithm of what one send holds.
    """
    total = sum(sizes)
    poison = data.draw(st.sets(st.integers(0, total - 1), max_size=12))

    async def scenario(folder: Path) -> None:
        async with rigged(folder) as rig:
            values = iter(range(total))
            for size in sizes:
                await rig.spool.put(batch(*(next(values) for _ in range(size))))
            sink = ScriptedSink(refusing(poison), limits=Limits(max_events=most))
            assert await rig.until_empty(rig.pump(sink))
            assert sink.taken == [value for value in range(total) if value not in poison]
            buried = [value for letter in await letters(rig.spool) for value in numbers(letter.batch)]
            assert buried == sorted(poison)
            assert (await account(rig.spool, "a")).rejected == len(poison)
            # To a poison: at most one send that it spoils and two for each halving (one delivered, one refused).
            search = 2 * math.ceil(math.log2(most)) + 3 if most > 1 else 1
            assert len(sink.calls) <= math.ceil(total / most) + 1 + len(poison) * search

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(scenario(Path(folder)))


async def test_a_request_too_large_is_delivered_in_parts(rig: Rig) -> None:
    """A refusal that no single event deserves buries none."""
    await rig.spool.put(batch(*range(100)))
    sink = ScriptedSink(lambda values: Rejected("too large") if len(values) > 30 else Delivered())
    assert await rig.until_empty(rig.pump(sink))
    assert sink.taken == list(range(100))
    assert await letters(rig.spool) == []


async def test_a_failure_during_the_search_keeps_the_place(rig: Rig) -> None:
    """A Retry in the middle of the bisection neither buries what is innocent nor forgets what is known."""
    await rig.spool.put(batch(*range(16)))
    poisoned = refusing([9])
    turns = iter(range(1000))
    sink = ScriptedSink(lambda values: Retry("busy") if next(turns) % 2 else poisoned(values))
    assert await rig.until_empty(rig.pump(sink))
    assert sink.taken == [value for value in range(16) if value != 9]
    assert [numbers(letter.batch) for letter in await letters(rig.spool)] == [[9]]


async def test_a_sink_that_refuses_everything_buries_few(rig: Rig, said: Said) -> None:
    """After REFUSALS it is the sink that is suspected: one event a slow probe, and said to be blocked."""
    await rig.spool.put(batch(*range(200)))
    sink = ScriptedSink(lambda _: Rejected("malformed"))
    pump = rig.pump(sink)
    stop = asyncio.Event()
    buried: list[int] = []

    def look() -> None:
        buried.append(sum(len(values) == 1 for values in sink.calls))
        assert pump.status.state == "blocked"
        assert pump.status.reason == "refuses every event: malformed"
        if len(buried) == 6:
            stop.set()

    for pause in range(1, 7):
        rig.clock.at(pause, look)
    async with asyncio.timeout(LATE):
        assert not await pump.run(stop)
    assert buried == [REFUSALS + probe for probe in range(6)]
    assert all(len(values) == 1 for values in sink.calls[-6:])
    assert all(pause >= SLOWLY[0] / 2 for pause in rig.clock.pauses)
    assert rig.clock.pauses[5] >= SLOWLY[1] / 2
    assert (await account(rig.spool, "a")).dead_letters == REFUSALS + 6  # stopping made one more attempt
    assert said() == ["WARNING the sink refuses an event for good", REFUSING]


async def test_a_sink_that_refused_everything_recovers(rig: Rig, said: Said) -> None:
    """At the first delivery it goes on at full speed; what was buried can be replayed and is delivered too."""
    await rig.spool.put(batch(*range(200)))
    sink = ScriptedSink(lambda _: Rejected("malformed"))
    pump = rig.pump(sink)
    rig.clock.at(2, lambda: sink.follow([]))
    assert await rig.until_empty(pump)
    assert sink.taken == list(range(REFUSALS + 1, 200))
    assert len(sink.calls[-1]) == 200 - REFUSALS - 2
    assert pump.status.state == "idle"
    assert said()[-2:] == ["WARNING buried events as dead letters; `litellm-forwarder spool list` shows them", AGAIN]
    assert await rig.spool.replay("a") == REFUSALS + 1
    assert await rig.until_empty(pump)
    assert sorted(sink.taken) == list(range(200))
    assert (await account(rig.spool, "a")).rejected == 0


# --- Blocked ------------------------------------------------------------------------------------------------------


async def test_blocked_keeps_everything_and_tries_slowly(rig: Rig, said: Said) -> None:
    """A wrong key costs nothing but time: nothing is buried, and the pauses are long."""
    await rig.spool.put(batch(1, 2))
    sink = ScriptedSink(lambda _: Blocked("401: wrong key"))
    pump = rig.pump(sink)
    assert not await rig.until_pause(pump, 6)
    assert await pending(rig.spool, "a") == [1, 2]
    first, longest = SLOWLY
    for number, pause in enumerate(rig.clock.pauses):
        full = min(longest, first * 2**number)
        assert full / 2 <= pause <= full
    assert (pump.status.state, pump.status.reason, pump.status.attempts) == ("blocked", "401: wrong key", 7)
    assert said() == [BLOCKED]
    sink.follow([])
    assert await rig.until_empty(pump)
    assert sink.taken == [1, 2]
    assert said() == [BLOCKED, AGAIN]


# --- bugs in a sink -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("x"), StopIteration(), asyncio.CancelledError(), SystemExit(3), KeyboardInterrupt()]
)
async def test_an_exception_is_logged_and_retried(
    rig: Rig, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever a library throws, the pump lives, the data stays, and one traceback tells where to look."""
    await rig.spool.put(batch(1))
    sink = ScriptedSink([error, error, error])
    pump = rig.pump(sink)
    assert await rig.until_empty(pump)
    assert sink.taken == [1]
    assert len(rig.clock.pauses) == 3
    (told,) = [record for record in caplog.records if record.getMessage() == "bug in the sink"]
    assert told.exc_info is not None
    assert told.exc_info[1] is error


async def test_a_wrong_answer_is_retried(rig: Rig, said: Said) -> None:
    """None, as from a function that forgot to return, is no delivery."""
    await rig.spool.put(batch(1))
    sink = ScriptedSink([None, True, "Delivered", Delivered])
    assert await rig.until_empty(rig.pump(sink))
    assert sink.calls == [[1]] * 5
    assert said().count("ERROR bug in the sink") == 4


async def test_a_bug_behind_the_pump_does_not_end_it(rig: Rig, said: Said) -> None:
    """A pump that died would leave its sink without deliveries, unnoticed until the agent stops."""
    await rig.spool.put(batch(1))
    rig.spool.failing_reads = [ValueError("bug")] * 3
    sink = ScriptedSink()
    assert await rig.until_empty(rig.pump(sink))
    assert sink.taken == [1]
    assert said() == ["ERROR bug in the pump", RETRYING, AGAIN]


# --- sends that hang ----------------------------------------------------------------------------------------------


async def test_a_send_that_never_returns_is_told_and_can_be_cancelled(
    rig: Rig, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No second send is made beside it, status says what is wrong, and a stop need not wait for it."""
    monkeypatch.setattr(pumping, "GRACE", -5.0)  # of the timeout of 5: at once
    await rig.spool.put(batch(1))
    sink = ScriptedSink(rig.hanging())
    pump = rig.pump(sink)
    running = asyncio.create_task(pump.run(asyncio.Event()))
    await _until(lambda: bool(sink.calls) and pump.status.state == "retrying")
    assert pump.status.reason.startswith("a send does not return within its timeout: the name of its host hangs")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert sink.calls == [[1]]
    assert said() == [RETRYING]
    assert await pending(rig.spool, "a") == [1]


async def test_a_late_delivery_is_a_delivery(rig: Rig, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a send that overran its timeout has delivered is not sent again."""
    monkeypatch.setattr(pumping, "GRACE", -5.0)
    await rig.spool.put(batch(1))
    freed = threading.Event()
    rig.free.append(freed)
    sink = ScriptedSink(lambda _: freed.wait() and Delivered())
    pump = rig.pump(sink)
    delivering = asyncio.create_task(rig.until_empty(pump))
    await _until(lambda: pump.status.state == "retrying")
    freed.set()
    assert await delivering
    assert sink.calls == [[1]]
    assert said() == [RETRYING, AGAIN]


# --- age ----------------------------------------------------------------------------------------------------------

HOUR = 3600 * SECOND


async def test_what_is_too_old_is_counted_and_not_sent(rig: Rig, said: Said) -> None:
    """A backend that refuses old events would refuse whole requests for them."""
    for number in range(5):
        await rig.spool.put(batch(number, time=START - HOUR - SECOND))
    await rig.spool.put(batch(5, time=START - HOUR))
    sink = ScriptedSink(limits=Limits(max_events=2, max_age=3600.0))
    assert await rig.until_empty(rig.pump(sink))
    assert sink.calls == [[5]]
    assert await account(rig.spool, "a") == Account("a", True, accepted=6, delivered=1, expired=5)
    assert said() == [
        "WARNING leaving out events that are too old for the sink",
        "WARNING events are too old for the sink and were not sent",
    ]


def too_old_below(limit: float) -> Callable[[list[float]], object]:
    """A backend that refuses whole requests for one old event in them, and says why."""
    return lambda values: Rejected("too old", too_old=True) if min(values) < limit else Delivered()


async def test_what_the_backend_finds_too_old_expires(rig: Rig, said: Said) -> None:
    """However many there are: it is neither buried nor held against the sink, and costs no more than a send or two
    each; what is not too old is delivered whole.
    """
    await rig.spool.put(batch(*range(300)))
    sink = ScriptedSink(too_old_below(200))
    assert await rig.until_empty(rig.pump(sink))
    assert sink.taken == list(range(200, 300))
    assert len(sink.calls) < 230
    assert rig.clock.pauses == []
    assert await letters(rig.spool) == []
    assert await account(rig.spool, "a") == Account("a", True, accepted=300, delivered=100, expired=200)
    assert said() == [
        "WARNING leaving out events that are too old for the sink",
        "WARNING events are too old for the sink and were not sent",
    ]


async def test_after_what_was_too_old_requests_grow_again(rig: Rig) -> None:
    """Going one by one for ever would be a storm of its own."""
    await rig.spool.put(batch(*range(1000)))
    sink = ScriptedSink(too_old_below(3), limits=Limits(max_events=64))
    assert await rig.until_empty(rig.pump(sink))
    assert sink.taken == list(range(3, 1000))
    assert [len(call) for call in sink.calls[-3:-1]] == [64, 64]


async def test_an_old_event_between_new_ones_is_left_out(rig: Rig) -> None:
    """A replayed dead letter keeps its time, and may stand behind newer events."""
    await rig.spool.put(batch(1, time=START - HOUR))
    sink = ScriptedSink(refusing([1]), limits=Limits(max_age=2 * 3600.0))
    assert await rig.until_empty(rig.pump(sink))
    rig.clock.tick(7200)
    await rig.spool.put(batch(2, time=START + 2 * HOUR))
    await rig.spool.replay("a")
    await rig.spool.put(batch(3, time=START + 2 * HOUR))
    sink.calls.clear()
    assert await rig.until_empty(rig.pump(sink))
    assert sink.calls == [[2], [3]]
    assert await account(rig.spool, "a") == Account("a", True, accepted=3, delivered=2, expired=1)


async def test_an_event_that_expires_while_it_is_looked_at_is_no_crash(rig: Rig, said: Said) -> None:
    """Whether it is too old is asked once for a step: time goes on between two questions."""

    def creeping() -> int:
        rig.clock.now += 1
        return rig.clock.now

    pump = rig.pump(ScriptedSink(limits=Limits(max_age=3600.0)), clock=creeping)
    for nanoseconds in range(10):  # of life left: one of them ends just between
        await rig.spool.put(batch(nanoseconds, time=rig.clock.now - HOUR + nanoseconds))
        assert await rig.until_empty(pump)
    settled = await account(rig.spool, "a")
    assert settled.delivered + settled.expired == 10
    assert settled.delivered > 0 < settled.expired
    assert not any(line.startswith("ERROR") for line in said())


# --- a spool that cannot be used ----------------------------------------------------------------------------------


async def test_a_full_disk_causes_no_duplicates(rig: Rig, said: Said) -> None:
    """What was delivered is not sent again before its settlement is written, however long that takes."""
    await rig.spool.put(batch(1, 2))
    await rig.spool.put(batch(3))
    rig.spool.fail(settles=8)
    sink = ScriptedSink(limits=Limits(max_events=2))
    pump = rig.pump(sink)
    states: list[str] = []
    rig.clock.at(8, lambda: states.append(pump.status.state))
    assert await rig.until_empty(pump)
    assert sink.calls == [[1, 2], [3]]
    assert states == ["spool_unavailable"]
    assert max(rig.clock.pauses) == SETTLE_AGAIN  # a stop must not wait long for a disk that has room again
    assert said() == [FULL, "INFO the spool can be used again"]


async def test_what_a_failed_attempt_did_store_is_not_sent_again(rig: Rig) -> None:
    """A reader that takes a little at each attempt gets everything once, in order; cut in the middle of a batch."""
    await rig.spool.put(batch(1, 2, 3))
    await rig.spool.put(batch(4, 5))
    sink = ScriptedSink([Retry("slow", delivered=1), Retry("slow", delivered=3), Retry("slow", delivered=99)])
    assert await rig.until_empty(rig.pump(sink))
    assert sink.calls == [[1, 2, 3, 4, 5], [2, 3, 4, 5], [5]]


async def test_a_burial_waits_for_the_disk_too(rig: Rig) -> None:
    """Neither is the refused event sent again, nor is it lost."""
    await rig.spool.put(batch(1))
    rig.spool.fail(settles=2)
    sink = ScriptedSink(refusing([1]))
    pump = rig.pump(sink)
    assert await rig.until_empty(pump)
    assert sink.calls == [[1]]
    assert len(await letters(rig.spool)) == 1
    assert pump.status.state == "idle"


async def test_an_unreadable_spool_is_waited_for(rig: Rig, said: Said) -> None:
    """Nothing is sent meanwhile; afterwards all is well again, also when there was nothing to send."""
    rig.spool.fail(reads=3)
    sink = ScriptedSink()
    pump = rig.pump(sink)
    assert await rig.until_empty(pump)
    assert len(rig.clock.pauses) == 3
    assert (pump.status.state, pump.status.reason, pump.status.attempts) == ("idle", "", 0)
    assert said() == [FULL, "INFO the spool can be used again"]
    await rig.spool.put(batch(1))
    assert await rig.until_empty(pump)
    assert sink.taken == [1]


# --- stop and drain -----------------------------------------------------------------------------------------------


async def test_a_stop_drains(rig: Rig) -> None:
    """What is pending when the stop comes is delivered first."""
    for number in range(10):
        await rig.spool.put(batch(number))
    stop = asyncio.Event()
    stop.set()
    sink = ScriptedSink(limits=Limits(max_events=1))
    assert await rig.pump(sink).run(stop)
    assert sink.taken == list(range(10))


@pytest.mark.parametrize("failure", [Retry("busy"), Blocked("401"), RuntimeError("bug")])
async def test_the_first_failure_ends_a_drain(rig: Rig, failure: object) -> None:
    """A dead backend does not hold up a stop: the data is safe where it is."""
    await rig.spool.put(batch(1))
    await rig.spool.put(batch(2))
    stop = asyncio.Event()
    stop.set()
    sink = ScriptedSink([Delivered(), failure], limits=Limits(max_events=1))
    assert not await rig.pump(sink).run(stop)
    assert sink.calls == [[1], [2]]
    assert rig.clock.pauses == []
    assert await pending(rig.spool, "a") == [2]


async def test_a_drain_searches_on_for_poison(rig: Rig) -> None:
    """A refusal of many is a step of the search, not a failure."""
    await rig.spool.put(batch(*range(20)))
    stop = asyncio.Event()
    stop.set()
    sink = ScriptedSink(refusing([7]))
    assert await rig.pump(sink).run(stop)
    assert len(sink.taken) == 19


async def test_a_stop_waits_for_the_send_under_way(rig: Rig) -> None:
    """Its outcome is settled, so that a restart does not repeat it."""
    await rig.spool.put(batch(1))
    stop, freed = asyncio.Event(), threading.Event()
    rig.free.append(freed)
    sink = ScriptedSink(lambda _: freed.wait() and Delivered())
    running = asyncio.create_task(rig.pump(sink).run(stop))
    await _until(lambda: bool(sink.calls))
    stop.set()
    freed.set()
    async with asyncio.timeout(LATE):
        assert await running
    assert sink.calls == [[1]]
    assert (await account(rig.spool, "a")).delivered == 1


async def test_a_stop_ends_a_pause(rig: Rig) -> None:
    """An hour that a backend asked for is not waited out."""
    await rig.spool.put(batch(1))
    sink = ScriptedSink(lambda _: Retry("busy", after=3600.0))
    stop = asyncio.Event()
    pump = Pump(sink, rig.spool, timeout=5.0, clock=rig.clock)  # sleeps in real time
    running = asyncio.create_task(pump.run(stop))
    await _until(lambda: pump.status.state == "retrying")
    stop.set()
    async with asyncio.timeout(LATE):
        assert not await running


async def test_cancelled_before_it_settled_it_sends_again(rig: Rig) -> None:
    """At-least-once: the one send in flight may be repeated, nothing else, and nothing is lost."""
    await rig.spool.put(batch(1, 2))
    rig.spool.fail(settles=10_000)
    sink = ScriptedSink()
    running = asyncio.create_task(rig.pump(sink).run(asyncio.Event()))
    await _until(lambda: len(rig.clock.pauses) > 3)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    rig.spool.fail()
    assert await rig.until_empty(rig.pump(sink))
    assert sink.calls == [[1, 2], [1, 2]]


# --- status and log -----------------------------------------------------------------------------------------------


async def test_status_tells_how_a_sink_does(rig: Rig) -> None:
    """State, since when, why, how many failures in a row, and the last success, through an outage and out of it."""
    sink = ScriptedSink([Delivered(), Retry("busy"), Retry("busy"), Blocked("401"), Delivered()])
    pump = rig.pump(sink)
    seen: list[tuple[str, int, str, int, int | None]] = []

    def look() -> None:
        now = pump.status
        seen.append((now.state, now.since - START, now.reason, now.attempts, now.last_success))

    look()
    await rig.spool.put(batch(1))
    assert await rig.until_empty(pump)
    look()
    rig.clock.tick(100)
    await rig.spool.put(batch(2))
    for pause in (1, 2, 3):
        rig.clock.at(pause, look)
    assert await rig.until_empty(pump)
    ended = rig.clock.now
    look()
    down = 100 * SECOND
    assert seen == [
        ("idle", 0, "", 0, None),
        ("idle", 0, "", 0, START),
        ("retrying", down, "busy", 1, START),
        ("retrying", down, "busy", 2, START),
        ("blocked", down, "401", 3, START),
        ("idle", ended - START, "", 0, ended),
    ]


async def test_delivering_has_a_beginning(rig: Rig) -> None:
    """`since` is when a row of deliveries began, not the last of them."""
    for number in range(4):
        await rig.spool.put(batch(number))
    seen: list[tuple[str, int]] = []

    def look(_values: list[float]) -> object:
        rig.clock.tick(1)
        seen.append((pump.status.state, pump.status.since - START))
        return Delivered()

    pump = rig.pump(ScriptedSink(look, limits=Limits(max_events=1)))
    assert await rig.until_empty(pump)
    assert seen == [("idle", 0)] + [("delivering", SECOND)] * 3
    assert pump.status.state == "idle"


async def test_an_empty_queue_leaves_no_old_trouble_behind(rig: Rig, said: Said) -> None:
    """Where the last event was buried there is nothing to retry; the loss is told without waiting for a delivery."""
    await rig.spool.put(batch(1))
    pump = rig.pump(ScriptedSink([Retry("busy"), Rejected("poison")]))
    assert await rig.until_empty(pump)
    assert (pump.status.state, pump.status.reason) == ("idle", "")
    assert said() == [
        RETRYING,
        "WARNING the sink refuses an event for good",
        "WARNING buried events as dead letters; `litellm-forwarder spool list` shows them",
    ]


async def test_the_log_tells_transitions_not_attempts(rig: Rig, said: Said) -> None:
    """An outage of a thousand attempts is a line at its start, one where its reason changes, and one at its end; and
    a reminder every hour.
    """
    await rig.spool.put(batch(1))
    outage = [Retry("refused")] * 500 + [Retry("timeout")] * 500
    assert await rig.until_empty(rig.pump(ScriptedSink(outage)))
    assert [line for line in said() if not line.startswith("WARNING still: ")] == [RETRYING, RETRYING, AGAIN]
    hours = sum(rig.clock.pauses) / 3600
    assert hours - 3 < len(said()) - 3 <= hours


# --- several sinks ------------------------------------------------------------------------------------------------


async def test_a_dead_and_a_hanging_sink_do_not_disturb_a_good_one(tmp_path: Path) -> None:
    """Each sink has its own pump, thread and place: the good one gets everything, once, in order."""
    async with rigged(tmp_path, "good", "dead", "hanging", "refusing") as rig:
        sinks = {
            "good": ScriptedSink(name="good", limits=Limits(max_events=3)),
            "dead": ScriptedSink(lambda _: Blocked("gone"), name="dead"),
            "hanging": ScriptedSink(rig.hanging(), name="hanging"),
            "refusing": ScriptedSink(lambda _: Rejected("no"), name="refusing"),
        }
        never = asyncio.Event()
        others = [asyncio.create_task(rig.pump(sinks[n]).run(never)) for n in ("dead", "hanging", "refusing")]
        await rig.spool.put(batch(0))
        await _until(lambda: all(sink.calls for name, sink in sinks.items() if name != "good"))
        for number in range(1, 20):
            await rig.spool.put(batch(number))
        assert await rig.until_empty(rig.pump(sinks["good"]))
        assert sinks["good"].taken == list(range(20))
        assert len(sinks["hanging"].calls) == 1
        await _cancelled(others)
        assert not any(sink.overlapped for sink in sinks.values())
        for name in ("dead", "hanging"):
            assert await pending(rig.spool, name) == list(range(20))
        assert (await account(rig.spool, "good")).delivered == 20


async def test_a_pump_finds_what_is_put_while_it_waits(rig: Rig) -> None:
    """An idle pump is woken by a put."""
    sink = ScriptedSink()
    stop = asyncio.Event()
    running = asyncio.create_task(rig.pump(sink).run(stop))
    for number in range(3):
        await rig.spool.put(batch(number))
        await _until(lambda count=number: len(sink.taken) > count)  # type: ignore[misc] # mypy cannot infer it
    stop.set()
    assert await running
    assert sink.taken == [0, 1, 2]


async def test_who_has_caught_up_gathers_what_comes(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pump rests for a while after it sent what is new; a stop ends that."""
    monkeypatch.setattr(pumping, "REST", math.inf)
    monkeypatch.setattr(pumping, "LONGEST_REST", 2 * LATE)
    sink = ScriptedSink()
    stop = asyncio.Event()
    running = asyncio.create_task(rig.pump(sink).run(stop))
    await rig.spool.put(batch(0))
    await _until(lambda: sink.taken == [0])
    for number in (1, 2, 3):
        await rig.spool.put(batch(number))
        await asyncio.sleep(0.01)
    stop.set()
    async with asyncio.timeout(LATE):
        assert await running
    assert sink.calls == [[0], [1, 2, 3]]


def _takes_three(values: list[float]) -> object:
    return Delivered(events=min(3, len(values)))


def _hates_five(values: list[float]) -> object:
    return Rejected("five") if 5 in values else Delivered()


@pytest.mark.parametrize(
    ("script", "most", "age"),
    [
        pytest.param((), 2, 0, id="full"),
        pytest.param((), 5, 0, id="more than half full"),
        pytest.param((), 1000, 2, id="old"),
        pytest.param((), 1000, -2, id="ahead of the clock"),
        pytest.param(_takes_three, 1000, 0, id="in parts"),
        pytest.param(_hates_five, 1000, 0, id="looking for poison"),
    ],
)
async def test_who_has_not_caught_up_does_not_rest(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, script: Script, most: int, age: int
) -> None:
    """A backlog goes out as fast as it can."""
    monkeypatch.setattr(pumping, "REST", math.inf)
    monkeypatch.setattr(pumping, "LONGEST_REST", 2 * LATE)
    for start in range(0, 12, 3):
        await rig.spool.put(batch(*range(start, start + 3), time=START - age * SECOND))
    sink = ScriptedSink(script, limits=Limits(max_events=most))
    stop = asyncio.Event()
    running = asyncio.create_task(rig.pump(sink).run(stop))
    wanted = [number for number in range(12) if script != _hates_five or number != 5]
    await _until(lambda: sink.taken == wanted)
    stop.set()
    assert await running


async def _until(condition: Callable[[], bool]) -> None:
    """Let others run until it holds."""
    async with asyncio.timeout(LATE):
        while not condition():  # noqa: ASYNC110 - what threads do sets no event of this loop
            await asyncio.sleep(0.001)


async def _cancelled(tasks: Sequence[asyncio.Task[bool]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


# --- another sink under the same name -------------------------------------------------------------------------------


async def test_a_new_sink_takes_over_where_the_old_one_was(rig: Rig, said: Said) -> None:
    """Blocked for a key that was rotated: the next attempt is at once, not in five minutes, and by the new sink; the
    backlog is its own, and the old one is closed.
    """
    await rig.spool.put(batch(*range(4)))
    old, new = ScriptedSink(lambda _: Blocked("key")), ScriptedSink()
    closed = []
    old.close = lambda: closed.append("old")  # type: ignore[method-assign] # a sink that tells
    pump = rig.pump(old, sleep=lambda _: asyncio.sleep(LATE))
    running = asyncio.create_task(pump.run(asyncio.Event()))
    await until(lambda: len(old.calls) == 1)
    pump.use(new, timeout=5)
    await until(lambda: new.taken == [0, 1, 2, 3])
    await until(lambda: pump.status.state in ("delivering", "idle"))
    assert (pump.sink, closed, len(old.calls)) == (new, ["old"], 1)
    assert said()[-1] == AGAIN
    await ended(running)


async def test_a_new_sink_that_fails_alike_is_told_anew(rig: Rig, said: Said) -> None:
    """Whoever rotated the key wants to know that this one is refused too; and it backs off from the beginning."""
    await rig.spool.put(batch(1))
    old, new = ScriptedSink(lambda _: Retry("no")), ScriptedSink(lambda _: Retry("no"))
    pump = rig.pump(old)
    rig.clock.at(6, lambda: pump.use(new, timeout=5))
    await rig.until_pause(pump, 8)
    assert said().count(RETRYING) == 2
    assert rig.clock.pauses[6] <= 1.0 < rig.clock.pauses[5]
    assert pump.status.attempts > 7  # that is about the trouble, not about the sink


async def test_a_send_in_flight_is_settled_before_another_sink_takes_over(rig: Rig) -> None:
    """Never two sends at a time, and nothing twice."""
    await rig.spool.put(batch(1, 2))
    sending, free = threading.Event(), threading.Event()

    def slow(_values: list[float]) -> object:
        sending.set()
        free.wait(LATE)
        return Delivered()

    old, new = ScriptedSink(slow), ScriptedSink()
    pump = rig.pump(old)
    running = asyncio.create_task(pump.run(asyncio.Event()))
    await until(sending.is_set)
    pump.use(new, timeout=5)
    await rig.spool.put(batch(3))
    assert new.calls == []
    free.set()
    await until(lambda: new.taken == [3])
    assert old.taken == [1, 2]
    await ended(running)


async def test_a_sink_that_leaves_finishes_its_send_and_no_more(rig: Rig) -> None:
    """What is pending stays; a pump that waits for a dead backend ends at once."""
    await rig.spool.put(batch(1))
    await rig.spool.put(batch(2))
    sink = ScriptedSink(limits=Limits(max_events=1))
    pump = rig.pump(sink)

    def leave(_values: list[float]) -> object:
        pump.leave()
        return Delivered()

    sink.follow(leave)
    async with asyncio.timeout(LATE):
        assert not await pump.run(asyncio.Event())
    assert (await account(rig.spool, "a")).pending == 1
    dead = ScriptedSink(lambda _: Blocked("key"))
    pump = rig.pump(dead, sleep=lambda _: asyncio.sleep(LATE))
    running = asyncio.create_task(pump.run(asyncio.Event()))
    await until(lambda: len(dead.calls) == 1)
    pump.leave()
    async with asyncio.timeout(LATE):
        assert not await running


async def test_a_sink_that_was_leaving_can_stay(rig: Rig) -> None:
    """Taken out of the configuration and put back while its last send was under way: one pump, not two."""
    await rig.spool.put(batch(1))
    sending, free = threading.Event(), threading.Event()

    def slow(_values: list[float]) -> object:
        sending.set()
        free.wait(LATE)
        return Delivered()

    new = ScriptedSink()
    pump = rig.pump(ScriptedSink(slow))
    running = asyncio.create_task(pump.run(asyncio.Event()))
    await until(sending.is_set)
    pump.leave()
    pump.use(new, timeout=5)
    free.set()
    await rig.spool.put(batch(2))
    await until(lambda: new.taken == [2])
    assert not running.done()
    await ended(running)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LATE):
        while not condition():  # noqa: ASYNC110 - a sink's thread is no task
            await asyncio.sleep(0.001)


async def ended(running: asyncio.Task[bool]) -> None:
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


# --- sinks with a memory ------------------------------------------------------------------------------------------


async def test_a_memory_is_stored_with_the_place_and_given_back(rig: Rig) -> None:
    """What a sink remembers after a send is there at the next start, and agrees with what it is given then."""
    await rig.spool.put(batch(1, 2, 3))
    sink = DiarySink(rig.clock, [Delivered(events=2), Retry("down"), Retry("down")])
    assert not await rig.until_pause(rig.pump(sink), 1)
    assert (await rig.spool.state())["sink/a"] == b"[1.0, 2.0]"
    again = DiarySink(rig.clock)
    assert await rig.until_empty(rig.pump(again))
    assert (sink.recalled, again.recalled) == ([b""], [b"[1.0, 2.0]"])
    assert again.taken == [3]
    assert (await rig.spool.state())["sink/a"] == b"[3.0]"


async def test_memory_and_place_are_one_step(rig: Rig) -> None:
    """While a settlement cannot be written neither the memory nor the place moves on, and nothing more is sent."""
    await rig.spool.put(batch(1))
    await rig.spool.put(batch(2))
    sink = DiarySink(rig.clock, [Delivered(events=1)])
    rig.spool.fail(settles=10)
    running = asyncio.ensure_future(rig.pump(sink).run(asyncio.Event()))

    def give_up() -> None:
        running.cancel()

    rig.clock.at(2, give_up)
    with pytest.raises(asyncio.CancelledError):
        await running
    assert sink.calls == [[1, 2]]
    assert (await account(rig.spool, "a")).pending == 2
    assert await rig.spool.state() == {}


async def test_a_memory_that_cannot_be_read_is_waited_for(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sent by a sink that does not know yet what it did before."""
    await rig.spool.put(batch(1), {"sink/a": b"before"})
    real, failing = rig.spool.state, [SpoolUnavailable("locked")]

    async def state() -> dict[str, bytes]:
        if failing:
            raise failing.pop()
        return await real()

    monkeypatch.setattr(rig.spool, "state", state)
    sink = DiarySink(rig.clock)
    assert await rig.until_empty(rig.pump(sink))
    assert sink.recalled == [b"before"]
    assert sink.calls == [[1]]
    assert len(rig.clock.pauses) == 1


async def test_a_tick_comes_when_it_is_due_and_nothing_waits(rig: Rig) -> None:
    """Not while events wait, not before its time; what it remembers of it is stored though no event moved."""
    await rig.spool.put(batch(1))
    sink = DiarySink(rig.clock)
    sink.due_at = rig.clock.now
    assert await rig.until_empty(rig.pump(sink))
    assert sink.calls == [[1]]
    assert sink.ticks == [False]
    assert (await rig.spool.state())["sink/a"] == b"[1.0] told"
    assert await account(rig.spool, "a") == Account("a", True, accepted=1, delivered=1)


async def test_last_words_are_said_once_at_the_end_of_a_drain(rig: Rig) -> None:
    """What a sink has put off is asked for when the agent stops, even if it is not due and stays so."""
    await rig.spool.put(batch(1))
    sink = DiarySink(rig.clock)
    sink.due_at = rig.clock.now + 3600 * SECOND
    assert await rig.until_empty(rig.pump(sink))
    assert sink.ticks == [True]
    assert (await rig.spool.state())["sink/a"] == b"[1.0] told"
    silent = DiarySink(rig.clock)
    assert await rig.until_empty(rig.pump(silent))
    assert silent.ticks == []


async def test_last_words_that_fail_are_told(rig: Rig) -> None:
    """The drain is then not complete, and what could not be said is still in the memory."""
    sink = DiarySink(rig.clock)
    sink.due_at, sink.ticking = rig.clock.now + SECOND, [Retry("down")]
    assert not await rig.until_empty(rig.pump(sink))
    assert sink.ticks == [True]


async def test_a_tick_that_fails_waits_like_a_send(rig: Rig, said: Said) -> None:
    """Back-off, alarm, and the next attempt by another tick; a refusal of nothing is a bug, not a dead letter."""
    sink = DiarySink(rig.clock)
    sink.due_at = rig.clock.now
    sink.ticking = [Retry("down", after=40.0), Rejected("no"), Blocked("wrong key")]
    assert await rig.until_empty(rig.pump(sink))
    assert sink.ticks == [False] * 4
    assert rig.clock.pauses[0] == 40.0
    assert [line.partition(";")[0] for line in said()] == [
        "WARNING cannot deliver",
        "WARNING cannot deliver",
        "ERROR the sink is blocked",
        "INFO delivers again",
    ]
    assert await letters(rig.spool) == []


async def test_another_sink_takes_the_memory_over(rig: Rig) -> None:
    """A reload changes how people are told, not what they were told."""
    await rig.spool.put(batch(1))
    old, new = DiarySink(rig.clock), DiarySink(rig.clock)
    pump = rig.pump(old)
    assert await rig.until_empty(pump)
    pump.use(new, timeout=5)
    await rig.spool.put(batch(2))
    assert await rig.until_empty(pump)
    assert (new.recalled, new.taken) == ([b"[1.0]"], [2])


async def test_blocked_settles_what_was_stored(rig: Rig) -> None:
    """As a Retry does: what need not go again does not."""
    await rig.spool.put(batch(1, 2, 3))
    sink = ScriptedSink([Blocked("wrong key", delivered=2)])
    pump = rig.pump(sink)
    assert await rig.until_empty(pump)
    assert sink.calls == [[1, 2, 3], [3]]
