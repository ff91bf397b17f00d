"""The life of the agent: start, drain, stop, and going over to another configuration while it runs.

lock → spool → pumps → status → schedule
stop: no status → no new polls → polls in flight are given up → drain → release → close
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from forwarder.build import build_clients, build_sink, build_spool, spool_size
from forwarder.config import Config, Target
from forwarder.errors import ConfigError, SpoolUnavailable, StateFolderBusy, StateFolderError
from forwarder.events import Batch, Metric, Resource
from forwarder.http import Client
from forwarder.instance import Instance
from forwarder.intake import Intake
from forwarder.logs import Reminder, fields
from forwarder.poll import Poller
from forwarder.pump import Pump
from forwarder.reload import Difference, Names, difference
from forwarder.schedule import FIRST_SPREAD, Schedule
from forwarder.sinks.base import Sink
from forwarder.spool.lock import StateLock
from forwarder.status.board import Board
from forwarder.telemetry import Observed, Since, Telemetry, own_resource

log = logging.getLogger(__name__)

BEAT: Final = 1.0  # seconds between two measurements of the loop's lag
LOCK_LOOK: Final = 5.0  # seconds between looks at the lock
SPOOL_LOOK: Final = 5.0  # seconds between questions to the spool whether it is there
SILENT: Final = 30.0  # seconds of silence after which the scheduler or the spool's thread is taken to hang
AFTER_A_BUG: Final = 5.0  # seconds


@dataclass(frozen=True, slots=True)
class Vitals:
    """Whether the agent itself works: seconds since its parts gave a sign of life, and whether the spool takes events.

    That it is answered at all shows that the event loop runs.
    """

    scheduler_silent: float
    spool_silent: float
    spool_writable: bool

    @property
    def alive(self) -> bool:
        """False when a part hangs, so that only a restart helps; a full disk or a dead backend is no such thing."""
        return max(self.scheduler_silent, self.spool_silent) < SILENT


class Agent:
    """The running program, for `run` and `poll --once`. ConfigError when a target cannot be built."""

    def __init__(self, config: Config, *, announce: bool = True) -> None:
        self.config = config
        self.telemetry: Final = Telemetry(window=max(60.0, config.telemetry.interval))
        self.spool: Final = build_spool(config, owner=True)
        self.drained = False  # nothing was pending when the pumps stopped
        self._announce = announce
        self._lock: Final = StateLock(config.agent.state_dir)
        self._instance: Final = Instance(config.agent.state_dir, config.agent.instance)
        self._own = Resource({})  # known when the instance is
        self._board: Final = Board(self)
        self._intake = Intake(self.spool, {}, telemetry=self.telemetry, watch=self._board.see)
        clients = build_clients(config)
        self._clients = {target.name: client for target, client in zip(config.targets, clients, strict=True)}
        self._pollers = {target.name: self._poller(target, config) for target in config.targets}
        self._pumps = {
            name: Pump(
                build_sink(name, sink, self._instance), self.spool, timeout=sink.timeout, telemetry=self.telemetry
            )
            for name, sink in config.sinks.items()
        }
        self._delivering: dict[str, tuple[Pump, asyncio.Task[bool]]] = {}  # also pumps of sinks that are leaving
        self._stop_pumps = asyncio.Event()
        self._schedule = Schedule(self.telemetry)
        self._watches: set[asyncio.Task[None]] = set()
        self._telling: asyncio.Task[None] | None = None
        self._since = Since(self.telemetry.started)
        self._closing: set[asyncio.Task[None]] = set()
        self._spool_answered = time.monotonic()

    @property
    def pollers(self) -> list[Poller]:
        return list(self._pollers.values())

    @property
    def pumps(self) -> list[Pump]:
        return list(self._pumps.values())

    async def run(self, stop: asyncio.Event, beside: Callable[[], Coroutine[Any, Any, None]] | None = None) -> None:
        """Poll and deliver until `stop` is set, then drain. StateFolderError when the state folder cannot be used.

        `beside` is begun when everything is up, and cancelled when the stop begins.
        """
        async with self._running(), self._status():
            self._schedule.start()
            for number, poller in enumerate(self.pollers):
                self._schedule.add(poller, delay=number * FIRST_SPREAD)
            self._watch(self._schedule.watch_clock)
            self._watch(self._watch_loop)
            self._watch(lambda: self._watch_lock(stop))
            self._telling = self._watch(self._tell_of_itself)
            state = self.config.agent.state_dir
            log.info("started", extra=fields(targets=len(self._pollers), sinks=len(self._pumps), state=state))
            if beside is not None:
                self._watch(beside)
            await stop.wait()
            log.info("stopping: no new polls, delivering what is there")

    async def once(self) -> bool:
        """One round through the configured sinks. True when everything that was pending is delivered."""
        async with self._running():
            cheap = [(p, e) for p in self.pollers for e in p.endpoints if e != "health"]
            await asyncio.gather(*(poller.tick(endpoint) for poller, endpoint in cheap))
            await asyncio.gather(*(p.tick("health") for p in self.pollers if "health" in p.endpoints))
        return self.drained

    # --- how it is, for the status pages -------------------------------------------------------------------------

    @property
    def spool_takes(self) -> bool:
        """Whether the spool took what was last given to it."""
        return self._intake.writable

    @property
    def silent(self) -> float:
        """Seconds since the scheduler last gave a sign of life; 0 while it need not."""
        return self._schedule.silent

    @asynccontextmanager
    async def _status(self) -> AsyncIterator[None]:
        """The status pages are served, and their history is kept, inside."""
        tasks = [asyncio.create_task(self._board.keep())]
        if self.config.agent.listen is not None:
            from forwarder.status.server import StatusServer  # with its libraries, where it is wanted

            tasks.append(asyncio.create_task(StatusServer(self.config.agent.listen, self._board).run()))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(outcome, Exception):
                    log.error("bug in the status pages", exc_info=outcome)
            await self._board.store(everything=True)

    # --- start and stop -------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        """Lock, spool and pumps are up inside; on leaving, what is pending is drained within `drain_timeout`."""
        lock = self._lock
        lock.acquire()
        try:
            self._instance.open()
            self._describe()
            await self.spool.open()
            try:
                await self.spool.attach(list(self._pumps))
                self.telemetry.count(await self.spool.accounts())
                state, damaged = await self.spool.state(), await self._intake.damaged()
                for poller in self.pollers:
                    poller.open(state, damaged=damaged)
                self._board.open(state)
                for pump in self.pumps:
                    self._deliver(pump)
                spool_watch = asyncio.create_task(self._guarded(self._watch_spool))
                try:
                    yield
                finally:
                    await self._finish()
                    spool_watch.cancel()
                    await asyncio.gather(spool_watch, return_exceptions=True)
            finally:
                await self.spool.close()
        finally:
            lock.release()

    def _describe(self) -> None:
        self._own = self._intake.resource = own_resource(self.config.resource, self._instance.name())

    def _deliver(self, pump: Pump) -> None:
        task = asyncio.create_task(pump.run(self._stop_pumps))
        self._delivering[pump.name] = pump, task

        def over(_: asyncio.Task[bool]) -> None:
            pump.close()
            if self._delivering.get(pump.name) == (pump, task):
                del self._delivering[pump.name]

        task.add_done_callback(over)

    async def _finish(self) -> None:
        try:
            await self._schedule.stop()
            for watch in self._watches:
                watch.cancel()
            await asyncio.gather(*self._watches, return_exceptions=True)
            await self._intake.report()
            pumps = [task for pump, task in self._delivering.values() if pump in self.pumps]
            self._stop_pumps.set()
            done, _ = await asyncio.wait(pumps, timeout=self.config.agent.drain_timeout)
            self.drained = len(done) == len(self._pumps) and all(task.result() for task in done)
        finally:
            everything = [task for _, task in self._delivering.values()]
            for pump in everything:
                pump.cancel()
            await asyncio.gather(*everything, return_exceptions=True)
            await asyncio.gather(*self._closing, return_exceptions=True)  # polls that they wait for were given up
            for client in self._clients.values():
                await client.close()
            await self._say_what_is_left()
            log.info("stopped", extra=fields(everything_delivered=self.drained))

    async def _say_what_is_left(self) -> None:
        try:
            accounts = await self.spool.accounts()
        except SpoolUnavailable as error:
            log.warning("what is left in the spool cannot be read", extra=fields(reason=error))
            return
        for account in accounts:
            if account.attached and account.pending:
                log.warning(
                    "stopped with events still to deliver; they stay in the spool",
                    extra=fields(sink=account.sink, events=account.pending),
                )

    # --- going over to another configuration ----------------------------------------------------------------------

    async def apply(self, new: Config, touched: AbstractSet[Path] = frozenset()) -> Difference:
        """Change what differs, and nothing else. `touched`: files it refers to that may hold something else now.

        ConfigError, or SpoolUnavailable: nothing was changed.
        """
        found = difference(self.config, new, touched)
        targets = {target.name: target for target in new.targets}
        fresh = [targets[name] for name in (*found.targets.added, *found.targets.changed, *found.targets.renewed)]
        clients: dict[str, Client] = {}
        sinks: dict[str, Sink] = {}
        try:
            for name in (*found.sinks.added, *found.sinks.changed, *found.sinks.renewed):
                sinks[name] = build_sink(name, new.sinks[name], self._instance)
            clients = dict(zip((target.name for target in fresh), build_clients(new, fresh), strict=True))
            state = await self.spool.state()
            await self.spool.attach(list(new.sinks))
        except (ConfigError, SpoolUnavailable):
            for client in clients.values():
                await client.close()
            for sink in sinks.values():
                sink.close()
            raise
        self._apply_settings(new, found)
        self._apply_sinks(new, found.sinks, sinks)
        await self._apply_targets(targets, found.targets, clients, state)
        with suppress(SpoolUnavailable):  # else the next reading counts them
            self.telemetry.count(await self.spool.accounts())
        return found

    def _apply_settings(self, new: Config, found: Difference) -> None:
        kept = {key.partition(".")[2]: getattr(self.config.agent, key.partition(".")[2]) for key in found.fixed}
        retell = self.config.telemetry != new.telemetry
        self.config = new.model_copy(update={"agent": new.agent.model_copy(update=kept)})
        self._describe()
        for poller in self.pollers:
            poller.describe(new.resource)
        self.spool.bound(max_bytes=new.spool.room, max_age=new.spool.max_age)
        if retell and self._telling is not None:
            self._telling.cancel()
            self._telling = self._watch(self._tell_of_itself)

    def _apply_sinks(self, new: Config, found: Names, sinks: Mapping[str, Sink]) -> None:
        for name in found.removed:
            self._pumps.pop(name).leave()
        for name, sink in sinks.items():
            timeout = new.sinks[name].timeout
            running = self._delivering.get(name)
            if running is not None and not running[1].done():
                self._pumps[name] = running[0]  # one that was about to leave stays
                running[0].use(sink, timeout=timeout)
            else:
                self._pumps[name] = self._pump(sink, timeout)
                self._deliver(self._pumps[name])
        self._pumps = {name: self._pumps[name] for name in new.sinks}

    async def _apply_targets(
        self, targets: Mapping[str, Target], found: Names, clients: Mapping[str, Client], state: Mapping[str, bytes]
    ) -> None:
        for name in found.renewed:
            poller, old = self._pollers[name], self._clients[name]
            poller.renew(targets[name], clients[name])
            self._clients[name] = clients[name]
            self._close_after(old, self._schedule.polls(poller))
        before = {name: self._pollers.pop(name) for name in (*found.removed, *found.changed)}
        for name, poller in before.items():
            self._schedule.remove(poller)
            self._close_after(self._clients.pop(name), self._schedule.polls(poller))
        for name in (*found.added, *found.changed):
            self._clients[name] = clients[name]
            self._pollers[name] = self._poller(targets[name], self.config)
        self._pollers = {name: self._pollers[name] for name in targets}
        known = {}
        for name, poller in before.items():
            known[name] = await poller.retire()
            for poll in self._schedule.polls(poller):
                poll.cancel()
        for number, name in enumerate((*found.added, *found.changed)):
            if name in before:
                self._pollers[name].follow(known[name])
            else:
                self._pollers[name].open(state)
            self._schedule.add(self._pollers[name], delay=number * FIRST_SPREAD)

    def _pump(self, sink: Sink, timeout: float) -> Pump:
        return Pump(sink, self.spool, timeout=timeout, telemetry=self.telemetry)

    def _poller(self, target: Target, config: Config) -> Poller:
        client = self._clients[target.name]
        return Poller(target, client, self._intake, config.resource, telemetry=self.telemetry, announce=self._announce)

    def _close_after(self, client: Client, polls: Sequence[asyncio.Task[None]]) -> None:
        """Close it when the polls that use it are over."""

        async def close() -> None:
            await asyncio.gather(*polls, return_exceptions=True)
            await client.close()

        task = asyncio.create_task(close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    # --- what it says about itself --------------------------------------------------------------------------------

    def vitals(self) -> Vitals:
        spool_silent = time.monotonic() - self._spool_answered
        return Vitals(self._schedule.silent, spool_silent, self._intake.writable)

    async def measure(self) -> list[Metric]:
        """The agent's own metrics as they are now, without deltas. For status pages, and for `_tell_of_itself`."""
        try:
            accounts = await self.spool.accounts()
        except SpoolUnavailable:
            accounts = []
        up = {pump.name: pump.status.state in ("idle", "delivering") for pump in self.pumps}
        return self.telemetry.read(Observed(accounts, up, spool_size(self.config)))

    async def _tell_of_itself(self) -> None:
        """Put the agent's own metrics into the spool every `telemetry.interval`: they travel like all others."""
        while self.config.telemetry.enabled:
            await asyncio.sleep(self.config.telemetry.interval)
            metrics = await self.measure()
            deltas = tuple(self._since.deltas(metrics))
            if metrics and await self._intake.put(Batch(self._own, metrics[0].time, deltas)):
                self._since.taken(metrics)

    # --- watches --------------------------------------------------------------------------------------------------

    def _watch(self, work: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
        """Have something done while polls are made."""
        task = asyncio.create_task(self._guarded(work))
        self._watches.add(task)
        task.add_done_callback(self._watches.discard)
        return task

    async def _guarded(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """A bug in one of them must not go unnoticed, nor end what it watches over."""
        told: dict[type[Exception], Reminder] = {}
        while True:
            try:
                await work()
            except Exception as error:
                now = time.time_ns()
                if type(error) not in told or told[type(error)].due(now):
                    told.setdefault(type(error), Reminder(now))
                    log.exception("bug in the agent")
                await asyncio.sleep(AFTER_A_BUG)
            else:
                return

    async def _watch_loop(self) -> None:
        """Measure how late the loop is. What holds it up (a bug, a starved machine) delays everything."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + BEAT
            await asyncio.sleep(BEAT)
            self.telemetry.lagged(max(0.0, loop.time() - due))

    async def _watch_spool(self) -> None:
        """Whether the spool's thread answers; that it cannot write is an answer too."""
        while True:
            with suppress(SpoolUnavailable):
                await self.spool.ping()
            self._spool_answered = time.monotonic()
            await asyncio.sleep(SPOOL_LOOK)

    async def _watch_lock(self, stop: asyncio.Event) -> None:
        """Two agents on one folder would send everything twice: stop, should another have got the lock."""
        while True:
            await asyncio.sleep(LOCK_LOOK)
            try:
                self._lock.keep()
            except StateFolderBusy as error:
                log.error("the state folder was taken over; stopping", extra=fields(reason=error))  # noqa: TRY400 - said
                stop.set()
                return
            except StateFolderError as error:
                log.debug("the lock cannot be renewed", extra=fields(reason=error))
