"""A day without any backend, and what follows: the bounds of memory and disk, and how fast the backlog drains.

    .venv/bin/python benchmarks/outage.py [--proxies 10] [--hours 24] [--max-bytes N] [--longest 600]

The agent's own spool, intake, pumps and sinks (OTLP, New Relic, Datadog's API), with everything that polls of so many
proxies at default intervals put: 206 events of a metrics page and 23 of the other endpoints every 15 seconds, 28 of
/health every five minutes, each with the state that is stored beside it.

Compressed is the time: the clock of spool, intake and pumps goes on by 15 seconds as soon as all polls of these 15
seconds are on disk, and a pump's pause lasts until that clock has come so far, and half a second. What the pumps do is
real: each reads, encodes, and finds nobody listening, again and again. Left out are the requests to the proxies and
the status page (benchmarks/footprint.py has both). The day begins 24 hours ago, so that at its end the clocks agree.

Then the receiver, in a process of its own, begins to listen, and new events keep coming at their real rate, at their
real times. One sink after the other drains alone for some seconds, and then all of them at once until nothing is left.

Prints one JSON object.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import psutil
from polls import Poll, polls_of_a_proxy
from receivers import KEY, SINKS, STAMP, Receiver, receiving, sink

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from http_support import nobody

from forwarder.build import build_sink
from forwarder.config import Config, load
from forwarder.events import Batch, Metric, Resource
from forwarder.instance import Instance
from forwarder.intake import Intake
from forwarder.pump import Pump
from forwarder.spool.sqlite import SqliteSpool

STEP: Final = 15  # seconds of the simulated clock
SECOND: Final = 10**9
REAL_PAUSE: Final = 0.5  # seconds of a pump's pause that are not compressed: else it would do nothing but try
ALONE: Final = 5.0  # seconds in which one sink drains alone
CAUGHT_UP: Final = 1000  # events
LIVE: Final = 0.1  # seconds between two live puts


class Clock:
    """Simulated while the outage lasts, then the machine's."""

    def __init__(self, now: int) -> None:
        self.now, self.real = now, False
        self._ticked = asyncio.Event()

    def __call__(self) -> int:
        return time.time_ns() if self.real else self.now

    def tick(self) -> None:
        self.now += STEP * SECOND
        self._wake()

    def go_real(self) -> None:
        self.real = True
        self._wake()

    def _wake(self) -> None:
        self._ticked.set()
        self._ticked = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        if self.real:
            await asyncio.sleep(seconds)
            return
        until = self.now + seconds * SECOND
        await asyncio.sleep(REAL_PAUSE)
        while self.now < until and not self.real:
            await self._ticked.wait()


class Outage:
    def __init__(self, config: Config, polls: Sequence[Poll], proxies: int) -> None:
        now = time.time_ns()
        self.config, self.polls = config, polls
        self.proxies = [f"p{number}" for number in range(proxies)]
        self.clock = Clock(now)
        bounds = config.spool
        self.path = config.agent.state_dir / "spool.db"
        self.spool = SqliteSpool(self.path, max_bytes=bounds.room, max_age=bounds.max_age, clock=self.clock)
        self.intake = Intake(self.spool, {}, clock=self.clock, watch=self.count)
        self.process = psutil.Process()
        self.most_memory = self.most_disk = 0
        self.put = 0

    # --- the day --------------------------------------------------------------------------------------------------

    async def day(self, hours: float) -> dict[str, Any]:
        self.clock.now = time.time_ns() - int(hours * 3600) * SECOND
        await self.spool.attach(list(self.config.sinks))
        for _ in range(4):  # a first minute with nothing in it but itself
            await self.step(0)
        before = self.look()
        began, used = time.monotonic(), time.process_time()
        attempts: dict[str, int] = {}
        async with self.pumping(list(self.config.sinks)) as pumps:
            for number in range(1, int(hours * 3600 / STEP)):
                await self.step(number)
                self.look()
            attempts = {pump.name: pump.status.attempts for pump in pumps}
            self.clock.go_real()
        accounts = await self.spool.accounts()
        (piece, *_) = await self.spool.read("otlp", max_events=1, max_bytes=1)
        return {
            "seconds": time.monotonic() - began,
            "cpu_s": time.process_time() - used,
            "events": self.put,
            "events_per_s": self.put / (hours * 3600),
            "attempts": attempts,
            "pending": {account.sink: account.pending for account in accounts},
            "dropped": {account.sink: account.dropped for account in accounts},
            "adds_up": all(account.adds_up and account.accepted == self.put for account in accounts),
            "oldest_pending_hours": (time.time_ns() - piece.batch.time) / 3600e9,
            "rss_before_mib": before / 2**20,
            "rss_most_mib": self.most_memory / 2**20,
            "disk_most_mib": self.most_disk / 2**20,
            "max_bytes_mib": self.config.spool.max_bytes / 2**20,
        }

    async def step(self, number: int) -> None:
        """All polls of 15 seconds; /health of each proxy in a step of its own, as the schedule has it."""
        now = self.clock.now
        due = [
            (target, poll)
            for index, target in enumerate(self.proxies)
            for poll in self.polls
            if (number + index) % (poll.every // STEP) == 0
        ]
        await asyncio.gather(*(self.deliver(poll.at(target, now)) for target, poll in due))
        self.clock.tick()

    async def deliver(self, given: tuple[Batch, dict[str, bytes]]) -> None:
        assert await self.intake.put(*given)

    def count(self, batch: Batch, stored: bool) -> None:
        """Also what the intake tells about events that were lost."""
        assert stored
        self.put += len(batch.events)

    def look(self) -> int:
        memory = int(self.process.memory_info().rss)
        files = [self.path.with_name(self.path.name + suffix) for suffix in ("", "-wal", "-shm")]
        self.most_memory = max(self.most_memory, memory)
        self.most_disk = max(self.most_disk, sum(file.stat().st_size for file in files if file.exists()))
        return memory

    # --- and the rest ---------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def pumping(self, names: Sequence[str]) -> AsyncIterator[list[Pump]]:
        instance = Instance(self.config.agent.state_dir, "bench")
        stop = asyncio.Event()
        pumps = []
        for name in names:
            sink = build_sink(name, self.config.sinks[name], instance)
            timeout = self.config.sinks[name].timeout
            pumps.append(Pump(sink, self.spool, timeout=timeout, clock=self.clock, sleep=self.clock.sleep))
        tasks = [asyncio.create_task(pump.run(stop)) for pump in pumps]
        try:
            yield pumps
        finally:
            for pump in pumps:
                pump.leave()
            await asyncio.gather(*tasks)
            for pump in pumps:
                pump.close()
                assert "bug" not in pump.status.last_error, pump.status

    async def drain(self, receiver: Receiver, longest: float) -> dict[str, Any]:
        self.most_memory = 0
        live = asyncio.create_task(self.live())
        found: dict[str, Any] = {"live_put_ms_before": await self.puts_during(asyncio.sleep(3))}
        alone: dict[str, Any] = {}
        for name in self.config.sinks:
            alone[name] = await self.drained([name], ALONE)
        puts = asyncio.create_task(self.puts_during(asyncio.sleep(3600)))
        found["all"] = await self.drained(list(self.config.sinks), longest)
        puts.cancel()
        found["live_put_ms_during"] = await puts
        found["alone"] = alone
        live.cancel()
        told = await receiver.told()
        found["live_delay_s"] = {
            name: {"points": len(delays), "last": delays[-1], "most": max(delays)}
            for name, delays in ((name, told[name]["delays"]) for name in self.config.sinks)
            if delays
        }
        found["rss_most_mib"] = self.most_memory / 2**20
        accounts = await self.spool.accounts()
        found["adds_up"] = all(account.adds_up and account.accepted == self.put for account in accounts)
        found["pending"] = {account.sink: account.pending for account in accounts}
        return found

    async def drained(self, names: Sequence[str], longest: float) -> dict[str, float]:
        """Events a second of these sinks together, and for each second of CPU of the whole process, until no more than
        what has just come is left, or for so many seconds.
        """
        before = await self.settled(names)
        began, used = time.monotonic(), time.process_time()
        async with self.pumping(names):
            while time.monotonic() - began < longest and await self.most_pending(names) > CAUGHT_UP:
                self.look()
                await asyncio.sleep(0.25)
        wall, used = time.monotonic() - began, time.process_time() - used
        events = await self.settled(names) - before
        return {"events": events, "seconds": wall, "events_per_s": events / wall, "events_per_cpu_s": events / used}

    async def settled(self, names: Sequence[str]) -> int:
        return sum(each.delivered + each.expired for each in await self.spool.accounts() if each.sink in names)

    async def most_pending(self, names: Sequence[str]) -> int:
        return max(each.pending for each in await self.spool.accounts() if each.sink in names)

    async def live(self) -> None:
        """What the proxies' polls go on to put, evenly; every put has a gauge that says when it was made."""
        cheap = [(target, poll) for target in self.proxies for poll in self.polls if poll.every == STEP]
        begun = time.monotonic()
        for number in range(10**9):
            due = begun + number * STEP / len(cheap)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            target, poll = cheap[number % len(cheap)]
            await self.deliver(poll.at(target, time.time_ns()))

    async def puts_during(self, something: Awaitable[None]) -> dict[str, float]:
        """How long it takes to put a batch of one event, ten times a second, while something else is done."""
        milliseconds = []
        work = asyncio.ensure_future(something)
        try:
            while not work.done():
                now = time.time_ns()
                event = Metric(STAMP, "gauge", "1", now, now / SECOND)
                began = time.perf_counter()
                await self.deliver((Batch(Resource({"litellm.target": "live"}), now, (event,)), {}))
                milliseconds.append((time.perf_counter() - began) * 1000)
                await asyncio.sleep(LIVE)
        except asyncio.CancelledError:
            work.cancel()
        return {
            "puts": len(milliseconds),
            "median": statistics.median(milliseconds),
            "most": max(milliseconds),
        }


def configured(folder: str, url: str, max_bytes: int | None) -> Config:
    path = Path(folder, "config.toml")
    spool = f"[spool]\nmax_bytes = {max_bytes}" if max_bytes else ""
    tables = [f'[agent]\nstate_dir = "{folder}"', spool, f'[[targets]]\nname = "p0"\nurl = "{url}"']
    # Datadog with its Historical Metrics Ingestion, without which it takes nothing that is an hour old.
    path.write_text("\n".join([*tables, *(sink(name, url) for name in SINKS), 'max_age = "2d"\n']))
    return load(path, KEY)


async def measure(proxies: int, hours: float, max_bytes: int | None, longest: float) -> dict[str, Any]:
    polls = await polls_of_a_proxy()
    with tempfile.TemporaryDirectory() as name:
        with nobody() as url:
            outage = Outage(configured(name, url, max_bytes), polls, proxies)
            await outage.spool.open()
            day = await outage.day(hours)
        async with receiving(int(url.rpartition(":")[2])) as receiver:
            drain = await outage.drain(receiver, longest)
        await outage.spool.close()
    return {"proxies": proxies, "hours": hours, "outage": day, "drain": drain}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--proxies", type=int, default=10)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--max-bytes", type=int, default=None, help="of the spool; the agent's default otherwise")
    parser.add_argument("--longest", type=float, default=600.0, help="seconds in which all sinks drain together")
    given = parser.parse_args()
    os.environ["PYTHONWARNINGS"] = "error"
    print(json.dumps(asyncio.run(measure(given.proxies, given.hours, given.max_bytes, given.longest))))


if __name__ == "__main__":
    main()
