"""When ticks come: spread, stable across restarts, and again after the clock was stepped."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from apscheduler.events import EVENT_JOB_SUBMITTED, JobSubmissionEvent
from program import write_config

from forwarder import config as settings
from forwarder.agent import Agent
from forwarder.normalize.reading import Endpoint
from forwarder.poll import Poller
from forwarder.schedule import BEAT_JOB, Schedule, job_id, phased


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[Agent]:
    """Built, not started: three targets."""
    write_config(tmp_path, ["http://127.0.0.1:1", "http://127.0.0.1:2", "http://127.0.0.1:3"])
    agent = Agent(settings.load(tmp_path / "config.toml", {}))
    yield agent
    for client in agent._clients.values():
        await client.close()


@pytest.fixture
async def schedule(agent: Agent) -> AsyncIterator[Schedule]:
    """Its polls, planned but not begun."""
    schedule = Schedule(agent.telemetry)
    schedule.start()
    schedule._scheduler.pause()
    for poller in agent.pollers:
        schedule.add(poller)
    yield schedule
    await schedule.stop()


async def test_a_phase_is_decided_by_the_names_alone(agent: Agent) -> None:
    """The same after a restart, whenever that is, and different for each target and endpoint."""
    noon = datetime(2026, 11, 23, 12, tzinfo=UTC)
    later = noon + timedelta(hours=3, seconds=7.5)
    phases = set()
    for poller in agent.pollers:
        for endpoint in poller.endpoints:
            seconds = [
                phased(poller, endpoint, now).get_next_fire_time(None, now).timestamp() % poller.target.interval
                for now in (noon, later)
            ]
            assert seconds[0] == pytest.approx(seconds[1], abs=0.001)
            phases.add(round(seconds[0], 3))
    assert len(phases) == sum(len(poller.endpoints) for poller in agent.pollers)


async def test_the_first_tick_is_within_one_interval(agent: Agent) -> None:
    """And in the future: nothing to catch up with."""
    now = datetime.now(UTC)
    poller = agent.pollers[0]
    first = phased(poller, "readiness", now).get_next_fire_time(None, now)
    assert now < first <= now + timedelta(seconds=poller.target.interval)


async def test_a_stepped_clock_reschedules(schedule: Schedule, agent: Agent) -> None:
    """APScheduler would wait for the wall clock to catch up with where it was; its sign of life too."""
    far = datetime.now(UTC) + timedelta(days=1)
    for job in schedule._scheduler.get_jobs():
        job.modify(next_run_time=far)
    wall = [1000.0]
    watch = asyncio.create_task(schedule.watch_clock(wall=lambda: wall[0], steady=lambda: 0.0, look=0.001))
    liveliness = job_id(agent.pollers[0], "liveliness")
    await asyncio.sleep(0.01)
    assert _next(schedule, liveliness) == far
    wall[0] -= 3600
    for _ in range(1000):
        await asyncio.sleep(0.002)
        if _next(schedule, liveliness) != far:
            break
    assert _next(schedule, liveliness) <= datetime.now(UTC) + timedelta(seconds=15)
    assert _next(schedule, BEAT_JOB) <= datetime.now(UTC) + timedelta(seconds=15)
    watch.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watch


async def test_no_poll_begins_while_stopping(schedule: Schedule, agent: Agent) -> None:
    """The scheduler fires once more after its shutdown; a poll then would put events behind the pumps' backs."""
    schedule._stopping = True
    await schedule._tick(agent.pollers[0], "liveliness")
    assert not schedule._polls


async def test_one_poll_begins_at_a_time(schedule: Schedule, agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many are due: each in a pass of its own of the event loop. Two ticks before its turn are one poll."""
    passes, begun = 0, list[tuple[str, int]]()

    async def tick(poller: Poller, endpoint: Endpoint) -> None:
        begun.append((job_id(poller, endpoint), passes))

    monkeypatch.setattr(Poller, "tick", tick)
    for _ in range(2):
        for poller in agent.pollers:
            for endpoint in poller.endpoints:
                await schedule._tick(poller, endpoint)
    while schedule._polls:
        passes += 1
        await asyncio.sleep(0)
    assert [job for job, _ in begun] == [
        job_id(each, endpoint) for each in agent.pollers for endpoint in each.endpoints
    ]
    assert len({number for _, number in begun}) == len(begun)
    await schedule._tick(agent.pollers[0], "liveliness")
    await asyncio.gather(*schedule._polls)
    assert [job for job, _ in begun].count(job_id(agent.pollers[0], "liveliness")) == 2


async def test_what_goes_while_it_waits_is_not_polled(
    schedule: Schedule, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what comes under its name in the meantime is."""
    first, *_, last = agent.pollers
    begun = list[Poller]()

    async def tick(poller: Poller, _: Endpoint) -> None:
        begun.append(poller)

    monkeypatch.setattr(Poller, "tick", tick)
    await schedule._tick(first, "liveliness")
    await schedule._tick(last, "liveliness")
    await asyncio.sleep(0)
    schedule.remove(last)
    another = Agent(agent.config)
    again = another.pollers[-1]
    schedule.add(again)
    await schedule._tick(again, "liveliness")
    await asyncio.gather(*schedule._polls)
    assert begun == [first, again]
    for client in another._clients.values():
        await client.close()


async def test_a_poll_that_begins_late_is_told(
    agent: Agent, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, with how late; the agent's own metric has it too."""
    now = [0.0]
    schedule = Schedule(agent.telemetry, steady=lambda: now[0])
    late = list[float]()
    monkeypatch.setattr(agent.telemetry, "late", late.append)
    monkeypatch.setattr(Poller, "tick", lambda *_: asyncio.sleep(0))
    for poller in agent.pollers:
        schedule._pollers.append(poller)
        await schedule._tick(poller, "liveliness")
    await asyncio.sleep(0)
    now[0] = 7.5
    await asyncio.gather(*schedule._polls)
    assert late[-1] == 7.5
    (told,) = [record for record in caplog.records if "begin late" in record.getMessage()]
    assert told.levelname == "WARNING"
    assert told.fields == {"seconds": "7.5", "targets": 3}  # type: ignore[attr-defined] # forwarder.logs puts it there


async def test_lateness_is_against_the_schedule(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """From when APScheduler was to start the poll until it began; a tick in between moves nothing."""
    schedule = Schedule(agent.telemetry)
    late = list[float]()
    monkeypatch.setattr(agent.telemetry, "late", late.append)
    monkeypatch.setattr(Poller, "tick", lambda *_: asyncio.sleep(0))
    poller = agent.pollers[0]
    schedule._pollers.append(poller)
    for ago in (3600, 15):
        when = datetime.now(UTC) - timedelta(seconds=ago)
        schedule._submitted(JobSubmissionEvent(EVENT_JOB_SUBMITTED, job_id(poller, "liveliness"), "default", [when]))
    await schedule._tick(poller, "liveliness")
    await asyncio.gather(*schedule._polls)
    assert late == [pytest.approx(3600, abs=5)]
    await schedule._tick(poller, "liveliness")
    await asyncio.gather(*schedule._polls)
    assert late[1] < 5
    schedule._submitted(JobSubmissionEvent(EVENT_JOB_SUBMITTED, "of a first poll", "default", [datetime.now(UTC)]))
    assert not schedule._due  # which nobody would take


async def test_one_target_comes_and_goes_and_the_others_keep_their_times(schedule: Schedule, agent: Agent) -> None:
    """To the microsecond: each reload would otherwise put off every poll. What is gone is polled no more."""
    first, second, _ = agent.pollers
    before = {job.id: job.next_run_time for job in schedule._scheduler.get_jobs() if "/" in job.id}
    schedule.remove(second)
    left = {job.id: job.next_run_time for job in schedule._scheduler.get_jobs() if "/" in job.id}
    assert left == {name: when for name, when in before.items() if not name.startswith("t1/")}
    await schedule._tick(second, "liveliness")  # a first tick that was planned before
    assert not schedule._polls
    schedule.add(second)
    after = {job.id: job.next_run_time for job in schedule._scheduler.get_jobs() if "/" in job.id}
    assert after.keys() == before.keys()
    assert all(after[job_id(first, endpoint)] == before[job_id(first, endpoint)] for endpoint in first.endpoints)


async def test_a_scheduler_that_hangs_is_noticed(agent: Agent) -> None:
    """It is silent for as long as it does not run its jobs; before the start and while stopping it need not."""
    now = [0.0]
    schedule = Schedule(agent.telemetry, steady=lambda: now[0])
    assert schedule.silent == 0
    schedule.start()
    now[0] = 40.0
    assert schedule.silent == 40
    await schedule._beat()
    assert schedule.silent == 0
    now[0] = 90.0
    await schedule.stop()
    assert schedule.silent == 0


def _next(schedule: Schedule, job: str) -> datetime:
    when: datetime = schedule._scheduler.get_job(job).next_run_time
    return when
