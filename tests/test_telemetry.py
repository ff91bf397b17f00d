"""The agent's own metrics: what is counted, how it is read, and how it travels."""

import asyncio
import math
import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from backends.litellm import FakeLiteLLM
from backends.sinks import FakeClock, ScriptedSink
from program import agent, call, ledger, write_config

from forwarder import catalog
from forwarder.events import Batch, Delta, Metric, Resource
from forwarder.intake import Intake
from forwarder.pump import Pump
from forwarder.sinks.base import Blocked, Delivered, Limits, Rejected, Retry
from forwarder.spool.base import Account
from forwarder.spool.sqlite import SqliteSpool
from forwarder.telemetry import Observed, Since, Telemetry, own_resource, resident_memory

NOW = 1_763_899_200_000_000_000
ACCOUNT = Account("a", attached=True, accepted=10, delivered=4, pending=6, dead_letters=2, oldest_pending=NOW)


# What an agent tells of itself; the test metric is the doctor's.
OWN = {each.name: each for each in catalog.METRICS if each.name.startswith("forwarder.") and each != catalog.TEST}


class Hands:
    """Wall clock and steady clock, moved together by hand."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wall(self) -> int:
        return NOW + int(self.seconds * 1e9)

    def steady(self) -> float:
        return self.seconds


@pytest.fixture
def hands() -> Hands:
    return Hands()


@pytest.fixture
def telemetry(hands: Hands) -> Telemetry:
    return Telemetry(clock=hands.wall, steady=hands.steady)


def points(metrics: Sequence[Metric], name: str) -> dict[tuple[str | int, ...], float | None]:
    """Values of one metric by the values of its attributes, in the order of the catalog."""
    definition = next(each for each in catalog.METRICS if each.name == name)
    return {
        tuple(each.attributes[key] for key in definition.attributes if key in each.attributes): each.value
        for each in metrics
        if each.name == name
    }


def everything(telemetry: Telemetry) -> None:
    telemetry.polled("eu", "liveliness", "success", 27)
    telemetry.sent("a", "delivered", 0.25)
    telemetry.lost(3, "spool_full", "a")
    telemetry.late(0.5)
    telemetry.lagged(0.125)


SEEN = Observed([ACCOUNT], {"a": True}, 4096)


def test_everything_in_the_catalog_is_read_as_the_catalog_says(telemetry: Telemetry) -> None:
    """Kind, unit and attributes; finite; sums count from the start, gauges have no start; nothing is left out."""
    everything(telemetry)
    metrics = telemetry.read(SEEN)
    assert {each.name for each in metrics} == OWN.keys()
    for each in metrics:
        definition = OWN[each.name]
        assert (each.kind, each.unit) == (definition.kind, definition.unit)
        assert each.attributes.keys() <= set(definition.attributes)
        assert each.value is not None
        assert math.isfinite(each.value)
        assert each.time == NOW
        assert each.start_time == (NOW if each.kind == "sum" else None)


def test_what_is_counted_adds_up(telemetry: Telemetry) -> None:
    """Polls by target, endpoint and outcome; sends and their time by sink; losses by sink and reason."""
    everything(telemetry)
    telemetry.polled("eu", "liveliness", "success", 13)
    telemetry.polled("us", "health", "failure")
    telemetry.sent("a", "retry", 1.0)
    telemetry.lost(2, "spool_unavailable")
    metrics = telemetry.read(Observed())
    assert points(metrics, "forwarder.polls") == {("eu", "liveliness", "success"): 2, ("us", "health", "failure"): 1}
    assert points(metrics, "forwarder.poll.bytes") == {("eu",): 40}
    assert points(metrics, "forwarder.sends") == {("a", "delivered"): 1, ("a", "retry"): 1}
    assert points(metrics, "forwarder.send.duration") == {("a",): 1.25}
    assert points(metrics, "forwarder.events.lost") == {("a", "spool_full"): 3, ("spool_unavailable",): 2}


def test_a_gauge_of_what_is_not_known_is_absent(telemetry: Telemetry) -> None:
    """A spool that cannot be read is not an empty one, and nothing was late before the first poll."""
    names = {each.name for each in telemetry.read(Observed())}
    assert names == {"forwarder.uptime", "forwarder.info", "forwarder.memory"}


def test_the_queue_and_its_age(telemetry: Telemetry, hands: Hands) -> None:
    """The age is that of the oldest event; an empty queue has none, and a clock that was set back makes no negative
    one. A sink that left the configuration is not shown.
    """
    hands.seconds = 90
    gone = replace(ACCOUNT, sink="gone", attached=False)
    empty = replace(ACCOUNT, sink="empty", pending=0, oldest_pending=None)
    metrics = telemetry.read(Observed([ACCOUNT, empty, gone], {"a": False, "empty": True}))
    assert points(metrics, "forwarder.queue.events") == {("a",): 6, ("empty",): 0}
    assert points(metrics, "forwarder.queue.age") == {("a",): 90, ("empty",): 0}
    assert points(metrics, "forwarder.dead_letters") == {("a",): 2, ("empty",): 2}
    assert points(metrics, "forwarder.sink.up") == {("a",): 0, ("empty",): 1}
    hands.seconds = -90
    assert points(telemetry.read(Observed([ACCOUNT])), "forwarder.queue.age") == {("a",): 0}


def test_a_gauge_goes_with_what_it_was_about(telemetry: Telemetry) -> None:
    """After a reload without the sink, its queue is not repeated for ever."""
    telemetry.read(SEEN)
    assert not points(telemetry.read(Observed()), "forwarder.queue.events")


def test_events_are_the_ledgers_growth_since_the_start(telemetry: Telemetry) -> None:
    """What an earlier run delivered is not counted again; a replay, which takes from `rejected`, takes nothing."""
    telemetry.count([replace(ACCOUNT, delivered=1000, rejected=5)])
    metrics = telemetry.read(Observed([replace(ACCOUNT, delivered=1007, rejected=6)]))
    assert points(metrics, "forwarder.events")["a", "delivered"] == 7
    assert points(metrics, "forwarder.events")["a", "rejected"] == 1
    telemetry.read(Observed([replace(ACCOUNT, delivered=1007, rejected=2)]))
    metrics = telemetry.read(Observed([replace(ACCOUNT, delivered=1007, rejected=3)]))
    assert points(metrics, "forwarder.events")["a", "rejected"] == 2
    assert points(metrics, "forwarder.events")["a", "expired"] == 0


def test_the_worst_lag_is_kept_for_a_window_and_not_for_ever(telemetry: Telemetry, hands: Hands) -> None:
    """A reader that comes once a minute sees the hiccup in between; an hour later it is gone."""
    telemetry.lagged(2.0)
    telemetry.late(3.0)
    hands.seconds = 59
    telemetry.lagged(0.1)
    assert points(telemetry.read(Observed()), "forwarder.loop.lag") == {(): 2.0}
    hands.seconds = 61
    telemetry.lagged(0.25)
    assert points(telemetry.read(Observed()), "forwarder.loop.lag") == {(): 2.0}
    hands.seconds = 125
    metrics = telemetry.read(Observed())
    assert points(metrics, "forwarder.loop.lag") == {(): 0.25}
    assert not points(metrics, "forwarder.poll.lateness")


def test_deltas_are_of_what_arrived_last(telemetry: Telemetry, hands: Hands) -> None:
    """The first counts from the start. What could not be stored is in the next one; another reader has its own."""
    mine, other = Since(telemetry.started), Since(telemetry.started)
    telemetry.lost(3, "spool_full", "a")
    (first,) = _lost(mine, telemetry)
    assert (first.value, first.delta) == (3, Delta(NOW, 3.0))
    mine.taken([first])
    hands.seconds = 60
    telemetry.lost(2, "spool_full", "a")
    (second,) = _lost(mine, telemetry)
    assert (second.value, second.delta) == (5, Delta(NOW, 2.0))
    hands.seconds = 120  # the second was not taken
    telemetry.lost(1, "spool_full", "a")
    (third,) = _lost(mine, telemetry)
    assert (third.value, third.delta) == (6, Delta(NOW, 3.0))
    mine.taken([third])
    hands.seconds = 180
    (fourth,) = _lost(mine, telemetry)
    assert (fourth.value, fourth.delta) == (6, Delta(NOW + 120 * 10**9, 0.0))
    assert [each.delta for each in _lost(other, telemetry)] == [Delta(NOW, 6.0)]


def test_a_delta_does_not_begin_after_its_end(telemetry: Telemetry, hands: Hands) -> None:
    """Though the clock was set back between two readings."""
    since = Since(telemetry.started)
    telemetry.lost(3, "spool_full", "a")
    since.taken(_lost(since, telemetry))
    hands.seconds = -3600
    (metric,) = _lost(since, telemetry)
    assert metric.delta == Delta(metric.time, 0.0)


def _lost(since: Since, telemetry: Telemetry) -> list[Metric]:
    return [each for each in since.deltas(telemetry.read(Observed())) if each.name == "forwarder.events.lost"]


def test_a_large_configuration_is_counted_whole(telemetry: Telemetry) -> None:
    """The SDK's own limit would add up in one nameless point what is beyond 2000 series."""
    for target in range(1000):
        for endpoint in ("liveliness", "readiness", "backlog"):
            telemetry.polled(f"t{target}", endpoint, "success")
    assert len(points(telemetry.read(Observed()), "forwarder.polls")) == 3000


@pytest.mark.parametrize(
    "variables",
    [
        {"OTEL_RESOURCE_ATTRIBUTES": "a=b", "OTEL_METRICS_EXEMPLAR_FILTER": "nonsense"},
        {"OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED": "true"},
    ],
    ids=lambda variables: next(iter(variables)),
)
def test_variables_of_the_sdk_change_nothing(variables: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine's OTEL_… variables are for its applications."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    telemetry = Telemetry()
    everything(telemetry)
    telemetry.read(SEEN)
    names = {each.name for each in telemetry.read(SEEN)}
    assert names == OWN.keys()


def test_the_resource_tells_agents_apart() -> None:
    """By their names, unless the resource is configured to tell them apart otherwise."""
    assert own_resource({"env": "prod"}, "a").attributes == {"env": "prod", "service.instance.id": "a"}
    assert own_resource({"service.instance.id": "eu-1"}, "a") == Resource({"service.instance.id": "eu-1"})


def test_memory_is_plausible() -> None:
    """In bytes, not pages."""
    memory = resident_memory()
    assert memory is not None
    assert 10 * 2**20 < memory < 10 * 2**30


# --- who counts -----------------------------------------------------------------------------------------------------


async def test_a_pump_counts_its_sends(tmp_path: Path, telemetry: Telemetry) -> None:
    """Each attempt once, by what it came to."""
    answers = (Retry("no"), Blocked("key"), Rejected("bad"), Delivered())
    sink = ScriptedSink(answers, limits=Limits(max_events=1))
    clock = FakeClock()
    spool = SqliteSpool(tmp_path / "spool.db", clock=clock)
    pump = Pump(sink, spool, timeout=5, telemetry=telemetry, clock=clock, sleep=clock.sleep)
    await spool.open()
    await spool.attach(["a"])
    for _ in range(2):
        await spool.put(Batch(Resource({}), clock(), (catalog.UP.at(clock(), 1),)))
    stop = asyncio.Event()
    clock.at(2, stop.set)
    assert await pump.run(stop)
    sends = points(telemetry.read(Observed()), "forwarder.sends")
    assert sends == {("a", "retry"): 1, ("a", "blocked"): 1, ("a", "rejected"): 1, ("a", "delivered"): 1}
    await spool.close()


async def test_what_makes_way_is_counted_by_sink(tmp_path: Path, telemetry: Telemetry) -> None:
    """At the moment it is dropped, not when it is told."""
    spool = SqliteSpool(tmp_path / "spool.db", max_bytes=1000, clock=lambda: NOW)
    await spool.open()
    await spool.attach(["a", "b"])
    intake = Intake(spool, {}, telemetry=telemetry, clock=lambda: NOW)
    dropped: dict[str, int] = {}
    while not any(dropped.values()):
        await intake.put(Batch(Resource({}), NOW, (catalog.UP.at(NOW, 1),)))
        dropped = {account.sink: account.dropped for account in await spool.accounts()}
    lost = points(telemetry.read(Observed()), "forwarder.events.lost")
    assert lost == {(sink, "spool_full"): events for sink, events in dropped.items()}
    await spool.close()


# --- how it travels -------------------------------------------------------------------------------------------------


async def test_it_goes_to_every_sink_like_all_else(tmp_path: Path) -> None:
    """Beside what is polled, without a target on its resource; the ledger counts it too."""
    async with FakeLiteLLM() as proxy:
        write_config(tmp_path, [proxy.url], 'interval = "1s"', more='[telemetry]\ninterval = "1s"')
        async with agent(tmp_path) as running:
            await running.until(lambda: running.names().count("forwarder.uptime") > 1)
            running.signal(signal.SIGTERM)
            assert await running.ended() == 0
    events = running.events()
    own = [event for event in events if event["name"].startswith("forwarder.")]
    assert {event["name"] for event in own} == OWN.keys() - {"forwarder.events.lost"}
    assert all("litellm.target" not in event["resource"] for event in own)
    liveliness = [
        event
        for event in own
        if event["name"] == "forwarder.polls"
        and event["attributes"] == {"litellm.target": "t0", "endpoint": "liveliness", "outcome": "success"}
    ]
    assert len({event["start_time"] for event in liveliness}) == 1
    assert liveliness[-1]["value"] > 0
    account = await ledger(tmp_path)
    assert account["delivered"] == account["accepted"] == len(events)


async def test_it_can_be_turned_off(tmp_path: Path) -> None:
    """Then nothing of it is delivered."""
    async with FakeLiteLLM() as proxy:
        more = '[telemetry]\nenabled = false\ninterval = "1s"'
        write_config(tmp_path, [proxy.url], 'interval = "1s"', more=more)
        async with agent(tmp_path) as running:
            await running.until(lambda: running.names().count("litellm.up") > 3)
            running.signal(signal.SIGTERM)
            assert await running.ended() == 0
        assert not [name for name in running.names() if name.startswith("forwarder.")]


async def test_a_cron_job_says_nothing_of_itself(tmp_path: Path) -> None:
    """`poll --once` is over before there is anything to say."""
    async with FakeLiteLLM() as proxy:
        write_config(tmp_path, [proxy.url], more='[telemetry]\ninterval = "1s"')
        finished = await call("poll", "--once", cwd=tmp_path)
        assert "litellm.up" in finished.out
        assert "forwarder." not in finished.out
