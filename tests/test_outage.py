"""An outage of every backend under a small limit: the bounds hold throughout, and every event is accounted for. How
much and how fast, with real sinks and a whole day, is measured by benchmarks/outage.py.
"""

import asyncio
import tracemalloc
from pathlib import Path

from backends.sinks import ScriptedSink
from spool_stores import Clock, batch

from forwarder.config import Spool
from forwarder.intake import Intake
from forwarder.pump import Pump
from forwarder.sinks.base import Limits, Retry
from forwarder.spool.sqlite import SqliteSpool

BOUNDS = Spool(max_bytes=16 * 2**20)
SINKS = ("otlp", "newrelic", "datadog")
POLLS = 100  # at a time, every 15 seconds
NOTE = "x" * 8000


class SlowClock(Clock):
    """A sleeper wakes when somebody else has made so much time pass."""

    def __init__(self) -> None:
        super().__init__()
        self._ticked = asyncio.Event()

    def tick(self, seconds: float) -> None:
        super().tick(seconds)
        self._ticked.set()
        self._ticked = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        until = self.now + seconds * 1e9
        while self.now < until:
            await self._ticked.wait()


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


async def test_an_outage_of_all_sinks_keeps_the_bounds_and_the_books(tmp_path: Path) -> None:
    """Six times what fits is put while nobody takes anything. The disk keeps to the limit, memory to what it was; the
    oldest make way, the same for every sink; the rest is delivered, in order, as soon as somebody takes it.
    """
    clock = SlowClock()
    spool = SqliteSpool(tmp_path / "spool.db", max_bytes=BOUNDS.room, clock=clock)
    await spool.open()
    await spool.attach(SINKS)
    intake = Intake(spool, {}, clock=clock)
    sinks = [ScriptedSink(lambda _: Retry("down"), name=name, limits=Limits(max_events=100)) for name in SINKS]
    pumps = [Pump(sink, spool, timeout=5, clock=clock, sleep=clock.sleep) for sink in sinks]
    stop = asyncio.Event()
    running = [asyncio.create_task(pump.run(stop)) for pump in pumps]
    memory: list[int] = []
    put = 0
    tracemalloc.start()
    try:
        for _ in range(60):
            polls = [batch(number, note=NOTE) for number in range(put, put + POLLS)]
            assert all(await asyncio.gather(*(intake.put(poll) for poll in polls)))
            put += POLLS
            assert size(tmp_path) <= BOUNDS.max_bytes
            for sink in sinks:
                sink.calls.clear()
            memory.append(tracemalloc.get_traced_memory()[0])
            clock.tick(15)
    finally:
        tracemalloc.stop()
    assert max(memory[30:]) < max(memory[:30]) + 1_000_000
    for account in await spool.accounts():
        assert account.adds_up
        assert account.accepted >= put  # and what is told about those that were lost
        assert account.pending * (len(NOTE) + 200) > BOUNDS.room * 0.9
        assert account.dropped > put * 0.8
    for sink in sinks:
        sink.follow(())
    clock.tick(60)
    stop.set()
    assert all(await asyncio.gather(*running))
    for sink in sinks:
        told = len(sink.taken)
        assert sink.taken == list(range(put - told, put))
    for account in await spool.accounts():
        assert account.adds_up
        assert (account.pending, account.rejected, account.expired) == (0, 0, 0)
    await spool.close()
