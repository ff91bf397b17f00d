"""What cannot enter the spool, or makes way in it, is counted and told."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from forwarder import catalog
from forwarder.errors import SpoolUnavailable
from forwarder.events import Batch, Change, Resource
from forwarder.intake import TELL_EVERY, Intake
from forwarder.spool.base import PutResult
from forwarder.spool.sqlite import SqliteSpool

NOW = 1_763_899_200_000_000_000


def batch(time: int = NOW, events: int = 3) -> Batch:
    return Batch(Resource({"litellm.target": "eu"}), time, tuple(catalog.UP.at(time, 1) for _ in range(events)))


class FailingSpool(SqliteSpool):
    """A real spool whose disk can be full."""

    full = False

    async def put(self, batch: Batch | None, state: object = None) -> PutResult:
        if self.full:
            raise SpoolUnavailable("the disk is full")
        return await super().put(batch, state)  # type: ignore[arg-type] # the test passes what the contract takes


class Clock:
    now = NOW

    def __call__(self) -> int:
        return self.now


@pytest.fixture
async def spool(tmp_path: Path) -> AsyncIterator[FailingSpool]:
    spool = FailingSpool(tmp_path / "spool.db", max_bytes=10_000_000, clock=lambda: NOW)
    await spool.open()
    await spool.attach(["a"])
    yield spool
    await spool.close()


async def changes(spool: SqliteSpool) -> list[Change]:
    pieces = await spool.read("a", max_events=10_000, max_bytes=10**9)
    return [event for piece in pieces for event in piece.batch.events if isinstance(event, Change)]


async def test_events_lost_to_a_full_disk_are_told_when_it_takes_events_again(
    spool: FailingSpool, caplog: pytest.LogCaptureFixture
) -> None:
    """Three polls lost, told as one change with their number; one log line for the outage, one for its end."""
    caplog.set_level(logging.INFO)
    clock = Clock()
    intake = Intake(spool, {"env": "prod"}, clock=clock)
    spool.full = True
    for _ in range(3):
        assert not await intake.put(batch(), {"k": b"v"})
    assert await spool.state() == {}
    spool.full = False
    clock.now += TELL_EVERY
    assert await intake.put(batch())
    (lost,) = await changes(spool)
    assert (lost.name, lost.attributes) == ("forwarder.data.lost", {"reason": "spool_unavailable"})
    assert lost.title == "9 events lost"
    assert [record.message for record in caplog.records if "take" in record.message] == [
        "the spool cannot take events; they are lost until it can",
        "the spool takes events again",
    ]


async def test_what_is_lost_while_it_is_told_is_told_the_next_time(spool: FailingSpool) -> None:
    """Many polls put at once: no loss is told twice, none is forgotten."""
    clock = Clock()
    intake = Intake(spool, {}, clock=clock)
    spool.full = True
    await asyncio.gather(*(intake.put(batch()) for _ in range(4)))
    await intake.report()
    spool.full = False
    clock.now += TELL_EVERY
    await asyncio.gather(*(intake.put(batch()) for _ in range(8)))
    await intake.report()
    assert [change.title for change in await changes(spool)] == ["12 events lost"]


async def test_events_that_make_way_are_told_by_sink_at_most_once_a_minute(tmp_path: Path) -> None:
    """A spool that overflows with every put does not report with every put."""
    clock = Clock()
    spool = SqliteSpool(tmp_path / "spool.db", max_bytes=20_000, clock=clock)
    await spool.open()
    await spool.attach(["a"])
    intake = Intake(spool, {}, clock=clock)
    clock.now += TELL_EVERY
    for _ in range(400):
        assert await intake.put(batch(clock.now))
    assert len([c for c in await changes(spool) if c.name == "forwarder.data.lost"]) <= 1
    clock.now += TELL_EVERY
    assert await intake.put(batch(clock.now))
    told = await changes(spool)
    assert told[-1].attributes == {"reason": "spool_full", "sink": "a"}
    (account,) = await spool.accounts()
    assert account.dropped > 0
    assert account.adds_up
    await spool.close()


async def test_a_damaged_spool_is_told(tmp_path: Path) -> None:
    """Moved aside, and reported through the new one."""
    path = tmp_path / "spool.db"
    path.write_bytes(b"this is no database " * 500)
    spool = SqliteSpool(path, clock=lambda: NOW)
    await spool.open()
    await spool.attach(["a"])
    assert await Intake(spool, {}, clock=lambda: NOW).put(batch())
    (lost,) = await changes(spool)
    assert lost.attributes == {"reason": "spool_corrupt"}
    await spool.close()
