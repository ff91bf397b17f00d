"""The storm in short, its plan, and the judge: evidence that was tampered with does not pass."""

import asyncio
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from backends.facts import Fact
from backends.http_server import Response
from torture.clock import Clock
from torture.judge import Evidence, Stored, grown, judge, printed
from torture.plan import OTLP, RECEIVERS, SICK, STATUSES, plan, written
from torture.receivers import AWAY, MOMENT, Front
from torture.storm import EXPECTED
from torture.witness import batch_of, event_of

from forwarder.events import Batch, Change, Delta, Event, Histogram, Metric, Resource
from forwarder.sinks.console import line

TESTS = Path(__file__).parent
SECOND = 10**9
HOUR = 3600 * SECOND
NOW = 1_750_000_000 * SECOND  # about when the contract suite's receivers think it is


def test_a_short_storm_loses_nothing(tmp_path: Path) -> None:
    """Every event that was put arrived in all three backends, or is accounted for. `make torture` is the long form.

    Of twelve seconds this seed makes the most: a part and a whole refused, a page, requests stored and not answered,
    kills in the moment after something was printed, a line cut off by a full disk.
    """
    command = (
        sys.executable,
        "-m",
        "torture.storm",
        "--seconds",
        "12",
        "--seed",
        "43133",
        "--targets",
        "2",
        "--steady",
    )
    result = subprocess.run(
        [*command, "--keep", str(tmp_path)], cwd=TESTS, capture_output=True, text=True, check=False, timeout=300
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "every event is accounted for" in result.stdout
    assert "arrived 0" not in result.stdout


# --- the plan ------------------------------------------------------------------------------------------------------


def test_the_seed_decides_what_happens_and_when() -> None:
    """Nothing else does: the same arguments make the same storm, and another seed another."""
    drawn = [written(plan(seed, seconds=300, targets=10)) for seed in (42, 42, 43)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("seed", range(5))
def test_the_default_storm_has_every_fault_of_every_receiver(seed: int) -> None:
    """In five minutes each receiver shows each mode and each status at least once, and all else happens too."""
    lives = plan(seed, seconds=300, targets=10)
    acts = [act for life in lives for act in life.acts]
    shown = {(act.number, act.how) for act in acts if act.what == "receiver"}
    expected = {(number, mode) for number in range(len(RECEIVERS)) for mode in (*SICK, *STATUSES)}
    assert shown == expected | {(0, mode) for mode in OTLP}
    assert {act.what for act in acts} == {"receiver", "heal", "proxy", "deployment", "disk", "reload", "clock"}
    assert {act.how for act in acts if act.what == "disk"} == {"full", "limit", "free"}
    assert {(life.death, life.moment) for life in lives} >= {("kill", "any"), ("kill", "printed"), ("kill", "stored")}
    assert sum(life.lasts for life in lives) == pytest.approx(300)


# --- the clock -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler, to stand between a process and its clock")
def test_the_clock_of_a_process_is_stepped_while_it_runs(tmp_path: Path) -> None:
    """Wall clocks of every kind, and no monotonic one."""
    clock = Clock()
    assert clock.install(tmp_path)
    look = "time.time(), time.time_ns()/1e9, datetime.datetime.now().timestamp(), time.monotonic()"
    script = f"import time, datetime\nwhile input():\n    print(*({look}), flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", script], env=dict(clock.environment), text=True, stdin=-1, stdout=-1
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        seen = []
        for ahead in (0, 3600, -7200):
            clock.step(ahead)
            process.stdin.write("look\n")
            process.stdin.flush()
            seen.append([float(word) for word in process.stdout.readline().split()])
        process.stdin.write("\n")
        process.stdin.close()
    for before, after, step in zip(seen, seen[1:], (3600, -10800), strict=False):
        *walls, steady = (there - here for here, there in zip(before, after, strict=True))
        assert walls == pytest.approx([step + steady] * 3, abs=1)


def test_what_a_clock_may_have_shown() -> None:
    """A request may have been made a moment before it arrived, and the clock been stepped in between."""
    clock = Clock()
    clock.steps = [(0, 0), (NOW, 3600), (NOW + 10 * SECOND, -60)]
    assert clock.readings(NOW - SECOND) == (NOW - SECOND,)
    assert clock.readings(NOW + SECOND) == (NOW + SECOND, NOW + SECOND + HOUR)
    assert clock.readings(NOW + 20 * SECOND) == (NOW - 40 * SECOND,)
    assert clock.newest(NOW + 20 * SECOND) == NOW + 10 * SECOND + HOUR


# --- a receiver ----------------------------------------------------------------------------------------------------


class Intake:
    """Understands a fact of each request."""

    broken = 0

    def take(self) -> list[Fact]:
        return [Fact("m", 1.0, {}, NOW)]


WHOLE = b"POST / HTTP/1.1\r\ncontent-length: 500\r\n\r\n" + b"x" * 500


async def post(front: Front, wait: float = 0.0, *, times: int = 1, half: bool = False) -> bytes:
    """Requests on one connection, which is closed `wait` seconds later. What was answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
    answer = b""
    try:
        for _ in range(times):
            writer.write(WHOLE[:-1] if half else WHOLE)
            await writer.drain()
            answer = await reader.read(1000)
        await asyncio.sleep(wait)
    finally:
        writer.close()
    return answer


def front() -> Front:
    return Front("f", Intake(), lambda _: Response(202, b"{}"))


async def test_a_receiver_knows_whether_its_answer_arrived() -> None:
    """The connection went on, or stayed: it did. It ended at once: who knows."""
    async with front() as receiver:
        await post(receiver, times=2)
        await asyncio.sleep(0.1)
        assert [arrival.sure for arrival in receiver.arrivals] == [True, False]
        await post(receiver, MOMENT + 0.1)
        await asyncio.sleep(0.1)
        assert receiver.arrivals[-1].sure


async def test_a_receiver_that_is_slow_has_stored_before_it_answers() -> None:
    """Who has not waited for the answer does not know."""
    async with front() as receiver:
        await receiver.become("slow")
        stored = asyncio.Event()
        receiver.on_stored = stored.set
        posting = asyncio.create_task(post(receiver, MOMENT + 0.1))
        await stored.wait()
        assert not receiver.arrivals[0].sure
        assert (await posting).startswith(b"HTTP/1.1 202")
        assert receiver.arrivals[0].sure
        assert AWAY < MOMENT


@pytest.mark.parametrize("mode", ["slow", None])
async def test_who_has_gone_before_the_answer_does_not_know(mode: Any) -> None:
    """Also where connections end for other reasons, because the agent stops, and where all comes at once."""
    async with front() as receiver:
        await receiver.become(mode)
        receiver.leaving = True
        _, writer = await asyncio.open_connection("127.0.0.1", receiver.port)
        writer.write(WHOLE)
        writer.close()
        await asyncio.sleep(2 * AWAY)
        assert [arrival.sure for arrival in receiver.arrivals] == [False]


@pytest.mark.parametrize("mode", ["stored hang", "stored reset", "stored drip"])
async def test_a_receiver_that_stores_and_does_not_answer(mode: Any) -> None:
    """The request is stored, and may come again."""
    async with front() as receiver:
        await receiver.become(mode)
        with pytest.raises(asyncio.TimeoutError):
            async with asyncio.timeout(0.3):
                assert b"{}" not in await post(receiver, 1)
        assert [arrival.sure for arrival in receiver.arrivals] == [False]


@pytest.mark.parametrize("mode", ["hang", "drip", "reset", "cut", "page", *STATUSES])
async def test_a_receiver_that_stores_nothing(mode: Any) -> None:
    """Whatever it says, nothing has arrived."""
    async with front() as receiver:
        await receiver.become(mode)
        with pytest.raises((asyncio.TimeoutError, OSError)):
            async with asyncio.timeout(0.3):
                await post(receiver, 1)
        assert receiver.arrivals == []


async def test_a_receiver_resets_in_the_middle_of_a_request() -> None:
    """Before all of it was sent."""
    async with front() as receiver:
        await receiver.become("cut")
        with pytest.raises(ConnectionError):
            await post(receiver, half=True)


async def test_a_receiver_dies_and_comes_back_on_its_port() -> None:
    """Connections are refused meanwhile."""
    async with front() as receiver:
        port = receiver.port
        await receiver.become("gone")
        with pytest.raises(ConnectionRefusedError):
            await post(receiver)
        await receiver.become(None)
        assert receiver.port == port
        assert (await post(receiver)).startswith(b"HTTP/1.1 202")


async def test_what_breaks_a_vendors_rule_is_told() -> None:
    """No request of the agent's may, whatever happens around it."""
    async with Front("f", Intake(), lambda _: Response(400)) as receiver:
        await post(receiver)
        assert receiver.broken == ["/: HTTP 400 []"]


async def test_a_part_that_is_refused_is_known() -> None:
    """A third of it, and the answer says how much."""
    async with front() as receiver:
        await receiver.become("partial")
        answer = await post(receiver)
        assert b"not to our taste" in answer
        assert [arrival.refused for arrival in receiver.arrivals] == [1]


# --- the judge -----------------------------------------------------------------------------------------------------


def put(number: int, *, time: int = 0) -> Batch:
    at = time or NOW + number * SECOND
    return Batch(Resource({"litellm.target": "t"}), at, (Metric("m", "gauge", "1", at, float(number)),))


PUT = [put(number) for number in range(6)]
ACCOUNT = {"adds_up": True, "accepted": 6, "delivered": 6, "rejected": 0, "expired": 0, "dropped": 0, "pending": 0}


def sent(sink: str, *runs: tuple[int, int], of: list[Batch] = PUT, **more: Any) -> list[Stored]:
    return [Stored(EXPECTED[sink](of[start:end]), **more) for start, end in runs]


def honest(sink: str) -> Evidence:
    return Evidence(sink, EXPECTED[sink], sent(sink, (0, 2), (2, 3), (3, 6)), ACCOUNT, newest=NOW)


HONEST = honest("otlp")
FOUR = HONEST.stored[:2]  # three events are missing
BURIED = {**ACCOUNT, "delivered": 3, "rejected": 3}
LETTERS = [(batch, "HTTP 400") for batch in PUT[3:]]
EXPIRED = {**ACCOUNT, "delivered": 3, "expired": 3}
PENDING = {**ACCOUNT, "delivered": 3, "pending": 3}
KILLED = frozenset({0})


@pytest.mark.parametrize("sink", EXPECTED)
def test_honest_evidence_passes(sink: str) -> None:
    """Else the judge would be of no use either."""
    assert judge(PUT, honest(sink)).findings == []


@pytest.mark.parametrize(
    "evidence",
    [
        replace(HONEST, stored=FOUR, account=BURIED, letters=LETTERS),
        replace(HONEST, stored=FOUR, account=PENDING, pending=PUT[3:]),
        replace(HONEST, stored=FOUR, account=EXPIRED, newest=NOW + 2 * HOUR, max_age=HOUR),
        replace(HONEST, stored=FOUR, account={**ACCOUNT, "delivered": 3, "dropped": 3}),
        # The answer was broken off: the same again, or with what had come meanwhile.
        replace(HONEST, stored=[Stored(FOUR[0].facts, sure=False), *sent("otlp", (0, 6))]),
        # Killed: the last one again.
        replace(HONEST, cut=KILLED, stored=[*FOUR, *sent("otlp", (2, 4), (4, 6), life=1)]),
        # Stored without an answer, and refused for good when it came again.
        replace(HONEST, stored=[*FOUR, *sent("otlp", (3, 6), sure=False)], account=BURIED, letters=LETTERS),
        # Of three a third was refused.
        replace(
            HONEST,
            stored=[*FOUR, Stored(HONEST.stored[2].facts, refused=1)],
            account={**ACCOUNT, "delivered": 5, "rejected": 1},
        ),
    ],
)
def test_what_is_accounted_for_may_be_missing_or_twice(evidence: Evidence) -> None:
    """Buried, pending, expired, dropped, refused in part; sent again by who could not know."""
    assert judge(PUT, evidence).findings == []


@pytest.mark.parametrize(
    ("evidence", "found"),
    [
        (replace(HONEST, account={**ACCOUNT, "accepted": 7}), "7 events were accepted, and 6 are witnessed"),
        (replace(HONEST, account={**ACCOUNT, "adds_up": False}), "the ledger does not add up"),
        (replace(HONEST, stored=FOUR), "3 events did not arrive, and 0 are counted as expired or dropped"),
        (replace(HONEST, stored=FOUR), "6 events are counted as delivered, and 3 to 3 were"),
        (replace(HONEST, account={**ACCOUNT, "delivered": 5, "expired": 1}), "5 events are counted as delivered"),
        # Twice.
        (replace(HONEST, stored=[*HONEST.stored, *sent("otlp", (3, 6))]), "3 events arrived again"),
        (replace(HONEST, stored=[*FOUR, *sent("otlp", (2, 6))]), "1 events arrived again"),
        (replace(HONEST, stored=[*FOUR, *sent("otlp", (2, 6), life=1)]), "1 events arrived again"),
        (replace(HONEST, cut=KILLED, stored=[*FOUR, *sent("otlp", (0, 2), (2, 6), life=1)]), "2 events arrived again"),
        (replace(HONEST, cut=KILLED, stored=[*FOUR, *sent("otlp", (0, 6), life=1)]), "2 events arrived again"),
        (replace(HONEST, cut=KILLED, stored=[*FOUR, *sent("otlp", (2, 3), (2, 6), life=1)]), "1 events arrived again"),
        (
            replace(HONEST, stored=[*sent("otlp", (0, 2), sure=False), *sent("otlp", (0, 2), (0, 6))]),
            "2 events arrived again",
        ),
        # In another order.
        (replace(HONEST, stored=sent("otlp", (0, 2), (3, 6), (2, 3))), "1 events arrived behind later ones"),
        (replace(HONEST, stored=[Stored(HONEST.stored[0].facts[::-1]), *HONEST.stored[1:]]), "2 facts arrived that"),
        # Of nobody.
        (replace(HONEST, stored=[*HONEST.stored, *sent("otlp", (0, 1), of=[put(9)])]), "1 facts arrived that nobody"),
        (replace(HONEST, letters=[(put(9), "HTTP 400")]), "a dead letter holds an event that nobody put"),
        (
            replace(HONEST, pending=[put(9)], account={**ACCOUNT, "pending": 1}),
            "an event is pending that nobody put",
        ),
        # In two places.
        (replace(HONEST, account=BURIED, letters=LETTERS), "3 events are buried that the backend acknowledged"),
        (replace(HONEST, account=PENDING, pending=PUT[3:]), "3 events are pending that the backend acknowledged"),
        (
            replace(HONEST, stored=FOUR, account=BURIED, letters=[*LETTERS, LETTERS[0]]),
            "an event is buried twice",
        ),
        # Without a reason, or for a wrong one.
        (
            replace(HONEST, stored=FOUR, account=BURIED, letters=[(batch, "") for batch in PUT[3:]]),
            "an event is buried without a reason",
        ),
        (replace(HONEST, stored=FOUR, account=BURIED), "3 events did not arrive"),
        (replace(HONEST, stored=FOUR, account=BURIED), "3 events are counted as rejected without a dead letter"),
        (
            replace(HONEST, stored=[*FOUR, Stored(HONEST.stored[2].facts, refused=1)]),
            "0 events are counted as rejected without a dead letter, where the receiver said so of 1",
        ),
        (replace(HONEST, stored=FOUR, account=EXPIRED), "3 events are missing that were never too old"),
        (
            replace(HONEST, stored=FOUR, account=EXPIRED, newest=NOW + 10 * SECOND, max_age=HOUR),
            "3 events are missing that were never too old",
        ),
        (replace(HONEST, account={**ACCOUNT, "expired": 1}), "1 events are counted as expired or dropped, and 0 at"),
        (replace(HONEST, stored=FOUR, account=PENDING, pending=PUT[4:]), "3 events are counted as pending, and the"),
    ],
)
def test_tampered_evidence_is_found(evidence: Evidence, found: str) -> None:
    """Each way of losing, inventing, repeating, shuffling or miscounting events, and of a false ledger."""
    assert [finding for finding in judge(PUT, evidence).findings if found in finding]


def test_a_backend_may_want_the_points_of_a_request_by_time() -> None:
    """OTLP's does: where the clock was set back, the order of putting is another. From one request to the next it is
    that of putting.
    """
    back = [put(0), put(1, time=NOW - HOUR), put(2)]
    account = {**ACCOUNT, "accepted": 3, "delivered": 3}
    together = replace(HONEST, stored=sent("otlp", (0, 3), of=back), account=account)
    assert [fact.time for fact in together.stored[0].facts] == [NOW - HOUR, NOW, NOW + 2 * SECOND]
    assert judge(back, together).findings == []
    apart = replace(HONEST, stored=sent("otlp", (0, 1), (1, 2), (2, 3), of=back), account=account)
    assert judge(back, apart).findings == []
    shuffled = replace(HONEST, stored=sent("otlp", (1, 2), (0, 1), (2, 3), of=back), account=account)
    assert judge(back, shuffled).findings


def behind(clock: int, latest: int) -> list[str]:
    """What is found where Datadog was sent an event at `latest` at most, and the sender's clock showed `clock`."""
    facts = [fact._replace(time=min(fact.time, latest)) for fact in EXPECTED["datadog"](PUT)]
    evidence = replace(honest("datadog"), stored=[Stored(facts, clocks=[clock])], ahead=540 * SECOND)
    return judge(PUT, evidence).findings


def test_times_are_set_back_to_what_datadog_takes() -> None:
    """And only where the sender's clock is so far behind. What it would drop for being too far ahead is not sent."""
    assert behind(NOW, NOW + HOUR) == []
    assert behind(NOW - 538 * SECOND, NOW + 2 * SECOND) == []
    (finding, *_) = behind(NOW, NOW + 2 * SECOND)
    assert "6 facts arrived that nobody put, or not as they were put" in finding
    (finding, *_) = behind(NOW - HOUR, NOW + HOUR)
    assert "6 facts arrived that nobody put, or not as they were put" in finding


@pytest.mark.parametrize("events", [2, 0])
def test_a_twin_is_not_taken_for_a_send_made_again(events: int) -> None:
    """Datadog knows seconds: two events may come to the same fact."""
    twins = [put(0), put(0, time=NOW + 5), put(3)][: 2 + events]
    stored = sent("datadog", *((number, number + 1) for number in range(len(twins))), of=twins)
    account = {**ACCOUNT, "accepted": len(twins), "delivered": len(twins)}
    assert judge(twins, replace(honest("datadog"), stored=stored, account=account)).findings == []


# --- the console and what was put ----------------------------------------------------------------------------------


def test_the_console_may_begin_with_what_the_last_send_had_printed() -> None:
    """If that was cut off: then all of it, or as much as the next life comes to."""
    lives = [PUT[:3], PUT[2:4], PUT[3:4], [], PUT[3:]]
    found, verdict = printed(lives, frozenset({0, 1, 2}))
    assert found == PUT
    assert verdict.findings == []


@pytest.mark.parametrize(
    ("lives", "cut", "found"),
    [
        ([PUT[:3], PUT[2:]], frozenset(), "life 1 prints 1 events again, and the one before had ended in order"),
        ([PUT[:3], PUT[2:4], [], PUT[3:]], frozenset({0}), "life 3 prints 1 events again"),
        ([PUT, PUT[:2]], frozenset({0}), "life 1 prints 2 of 6 events again"),
        ([PUT[:4], PUT[4:5] + PUT[3:]], frozenset({0}), "2 events are printed again in the middle of others"),
        ([[*PUT[:3], *PUT[2:]]], frozenset({0}), "1 events are printed again in the middle of others"),
        ([[put(n) for n in range(5001)]] * 2, frozenset({0}), "which is more than one send"),
    ],
)
def test_what_the_console_prints_again_is_found(lives: list[list[Batch]], cut: frozenset[int], found: str) -> None:
    """At most one send for each kill, whole and at once."""
    (finding,) = printed(lives, cut)[1].findings
    assert found in finding


def counter(number: int, total: float, growth: float, since: int) -> Batch:
    at = NOW + number * SECOND
    delta = Delta(NOW + since * SECOND, growth)
    return Batch(Resource({"litellm.target": "t"}), at, (Metric("c", "sum", "", at, total, {}, NOW, None, delta),))


def test_a_counter_goes_on_where_its_last_point_ended() -> None:
    """Neither is anything counted twice nor left out."""
    assert grown([counter(1, 5, 5, 0), counter(2, 7, 2, 1), counter(5, 7, 0, 2)], "c").findings == []
    for third in (counter(3, 9, 4, 2), counter(3, 9, 2, 1)):
        (finding,) = grown([counter(1, 5, 5, 0), counter(2, 7, 2, 1), third], "c").findings
        assert "1 points do not go on where the one before ended" in finding


def test_a_counter_says_how_much_it_has_grown() -> None:
    """Also over a restart: its last reading is stored with what was told of it."""
    points = [counter(1, 5, 5, 0), silent(7), silent(-7200)]  # the clock was set back
    assert "1 points do not say by how much they have grown" in grown(points, "c").findings[0]
    assert grown([points[0], silent(700), silent(-7200)], "c").findings == []


def test_a_counter_begins_once() -> None:
    """What was known of it is stored, and not found anew by the next process."""
    (batch,) = [counter(2, 7, 2, 1)]
    metric = batch.events[0]
    assert isinstance(metric, Metric)
    again = Batch(batch.resource, batch.time, (msgspec.structs.replace(metric, start_time=NOW + SECOND),))
    (finding,) = grown([counter(1, 5, 5, 0), again], "c").findings
    assert "1 points begin anew, where no proxy did" in finding


def silent(number: int) -> Batch:
    """Nothing is known of what it has grown by."""
    batch = counter(number, 7, 0, 0)
    metric = batch.events[0]
    assert isinstance(metric, Metric)
    return Batch(batch.resource, batch.time, (msgspec.structs.replace(metric, delta=None),))


EVENTS: list[Event] = [
    Metric("g", "gauge", "1", NOW + 7, 0.1, {"a": "b", "n": 3}),
    Metric("s", "sum", "{call}", NOW, 5.0, {}, NOW - 10**9, None, Delta(NOW - 5, 2.0)),
    Metric("h", "histogram", "s", NOW, None, {}, NOW - 1, Histogram((1.0,), (1, 2), 3.5, 3),
           Delta(NOW - 9, None, Histogram((1.0,), (0, 1), 2.5, 1))),
    Change("c", NOW, "error", "title", "text", {"x": "y"}),
]  # fmt: skip


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.name)
def test_the_witness_is_exact(event: Event) -> None:
    """An event can be read back from its line on the console, to the last bit."""
    import json

    batch = Batch(Resource({"litellm.target": "t"}), event.time, (event,))
    record: dict[str, Any] = json.loads(line(event, batch))
    assert event_of(record) == event
    assert batch_of(record) == batch
