"""When ticks come: spread, stable across restarts, and again after the clock was stepped."""

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from program import write_config

from forwarder import config as settings
from forwarder.agent import Agent, job_id, phased


@pytest.fixture
async def agent(tmp_path: Path) -> Agent:
    """Built, not started: three targets."""
    write_config(tmp_path, ["http://127.0.0.1:1", "http://127.0.0.1:2", "http://127.0.0.1:3"])
    return Agent(settings.load(tmp_path / "config.toml", {}))


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


async def test_a_stepped_clock_reschedules(agent: Agent) -> None:
    """APScheduler would wait for the wall clock to catch up with where it was."""
    scheduler = agent._schedule()
    scheduler.pause()
    far = datetime.now(UTC) + timedelta(days=1)
    for job in scheduler.get_jobs():
        job.modify(next_run_time=far)
    wall = [1000.0]
    watch = asyncio.create_task(agent._watch_clock(scheduler, wall=lambda: wall[0], steady=lambda: 0.0, look=0.001))
    await asyncio.sleep(0.01)
    assert _next(scheduler, agent) == far
    wall[0] -= 3600
    for _ in range(1000):
        await asyncio.sleep(0.002)
        if _next(scheduler, agent) != far:
            break
    assert _next(scheduler, agent) <= datetime.now(UTC) + timedelta(seconds=15)
    watch.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watch
    scheduler.shutdown(wait=False)
    await _close(agent)


async def test_no_poll_begins_while_stopping(agent: Agent) -> None:
    """The scheduler fires once more after its shutdown; a poll then would put events behind the pumps' backs."""
    agent._stopping = True
    await agent._tick(agent.pollers[0], "liveliness")
    assert not agent._polls
    await _close(agent)


def _next(scheduler: AsyncIOScheduler, agent: Agent) -> datetime:
    when: datetime = scheduler.get_job(job_id(agent.pollers[0], "liveliness")).next_run_time
    return when


async def _close(agent: Agent) -> None:
    for client in agent._clients:
        await client.close()
