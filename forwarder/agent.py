"""Composition and life: configuration → objects; start, drain, stop. The only module that knows APScheduler.

build → lock → spool → pumps → schedule
stop, in reverse: no new polls → polls in flight are given up → drain → release → close
"""

import asyncio
import logging
import signal
import ssl
import sys
import time
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger

from forwarder import config_otlp, config_sinks
from forwarder.config import Config
from forwarder.errors import ConfigError, Problem, SpoolUnavailable, StateFolderBusy, StateFolderError
from forwarder.http import Client
from forwarder.instance import Instance
from forwarder.intake import Intake
from forwarder.logs import fields
from forwarder.normalize.reading import Endpoint
from forwarder.poll import Poller
from forwarder.pump import Pump
from forwarder.sinks.base import Sink
from forwarder.spool.lock import StateLock
from forwarder.spool.sqlite import SqliteSpool
from forwarder.threads import DaemonThreads
from forwarder.transport import HttpProblem, tls_context

log = logging.getLogger(__name__)

SPOOL_FILE: Final = "spool.db"
# A tick only starts a task; one that is late is still wanted, and several late ones are one.
MISFIRE_GRACE: Final = 60  # seconds
# APScheduler goes by the wall clock: set back, it would be silent until the clock caught up (measured, 3.11.3).
CLOCK_LOOK: Final = 5.0  # seconds between comparisons of wall clock and monotonic clock
CLOCK_STEP: Final = 2.0  # seconds of difference that count as a step
# `timeout` and some container runtimes signal the process and its group: that is one request to stop, not two.
SAME_SIGNAL: Final = 0.5  # seconds
FIRST_SPREAD: Final = 0.02  # seconds from one target's first polls to the next one's: a start is no stampede


class Agent:
    """The running program, for `run` and `poll --once`. ConfigError when a target cannot be built."""

    def __init__(self, config: Config, *, announce: bool = True) -> None:
        self.config: Final = config
        self.spool: Final = build_spool(config, owner=True)
        self._lock: Final = StateLock(config.agent.state_dir)
        self._instance: Final = Instance(config.agent.state_dir, config.agent.instance)
        self._stopping = False
        self.drained = False  # nothing was pending when the pumps stopped
        self._intake = Intake(self.spool, config.resource)
        self._clients = build_clients(config)
        self.pollers: Final = [
            Poller(target, client, self._intake, config.resource, announce=announce)
            for target, client in zip(config.targets, self._clients, strict=True)
        ]
        self.pumps: Final = [
            Pump(build_sink(name, sink, self._instance), self.spool, timeout=sink.timeout)
            for name, sink in config.sinks.items()
        ]
        self._polls: set[asyncio.Task[None]] = set()

    async def run(self, stop: asyncio.Event) -> None:
        """Poll and deliver until `stop` is set, then drain. StateFolderError when the state folder cannot be used."""
        async with self._running():
            scheduler = self._schedule()
            watches = [
                asyncio.create_task(self._watch_clock(scheduler)),
                asyncio.create_task(self._watch_lock(stop)),
            ]
            state = self.config.agent.state_dir
            log.info("started", extra=fields(targets=len(self.pollers), sinks=len(self.pumps), state=state))
            try:
                await stop.wait()
                log.info("stopping: no new polls, delivering what is there")
            finally:
                # Said before anything is awaited: the scheduler still fires once after its shutdown, and a poll that
                # began then would put events when the pumps have found nothing left.
                self._stopping = True
                for watch in watches:
                    watch.cancel()
                scheduler.shutdown(wait=False)

    async def once(self) -> bool:
        """One round through the configured sinks. True when everything that was pending is delivered."""
        async with self._running():
            cheap = [(p, e) for p in self.pollers for e in p.endpoints if e != "health"]
            await asyncio.gather(*(poller.tick(endpoint) for poller, endpoint in cheap))
            await asyncio.gather(*(p.tick("health") for p in self.pollers if "health" in p.endpoints))
        return self.drained

    # --- start and stop -------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        """Lock, spool and pumps are up inside; on leaving, what is pending is drained within `drain_timeout`."""
        lock = self._lock
        lock.acquire()
        try:
            self._instance.open()
            await self.spool.open()
            try:
                await self.spool.attach([pump.sink.name for pump in self.pumps])
                state, damaged = await self.spool.state(), await self._intake.damaged()
                for poller in self.pollers:
                    poller.open(state, damaged=damaged)
                stop = asyncio.Event()
                pumps = [asyncio.create_task(pump.run(stop)) for pump in self.pumps]
                try:
                    yield
                finally:
                    await self._finish(stop, pumps)
            finally:
                await self.spool.close()
        finally:
            lock.release()

    async def _finish(self, stop: asyncio.Event, pumps: Sequence[asyncio.Task[bool]]) -> None:
        try:
            for poll in self._polls:
                poll.cancel()
            await asyncio.gather(*self._polls, return_exceptions=True)
            await self._intake.report()
            stop.set()
            done, _ = await asyncio.wait(pumps, timeout=self.config.agent.drain_timeout)
            self.drained = len(done) == len(pumps) and all(task.result() for task in done)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for each in self.pumps:
                each.sink.close()
            for client in self._clients:
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

    # --- schedule -------------------------------------------------------------------------------------------------

    def _schedule(self) -> AsyncIOScheduler:
        scheduler = AsyncIOScheduler(
            timezone=UTC, job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": MISFIRE_GRACE}
        )
        now = datetime.now(UTC)
        for number, poller in enumerate(self.pollers):
            first = now + timedelta(seconds=number * FIRST_SPREAD)
            for endpoint in poller.endpoints:
                arguments = (poller, endpoint)
                scheduler.add_job(self._tick, DateTrigger(first), arguments)
                scheduler.add_job(self._tick, phased(poller, endpoint, now), arguments, id=job_id(poller, endpoint))
        scheduler.start()
        return scheduler

    async def _tick(self, poller: Poller, endpoint: Endpoint) -> None:
        if self._stopping:
            return
        task = asyncio.create_task(self._poll(poller, endpoint))
        self._polls.add(task)
        task.add_done_callback(self._polls.discard)

    async def _poll(self, poller: Poller, endpoint: Endpoint) -> None:
        try:
            await poller.tick(endpoint)
        except Exception:
            # A bug in one poll must not end the others; it is told with its traceback, every time.
            log.exception("bug in polling", extra=fields(target=poller.target.name, endpoint=endpoint))

    async def _watch_clock(
        self,
        scheduler: AsyncIOScheduler,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
        look: float = CLOCK_LOOK,
    ) -> None:
        """Schedule anew when the wall clock was stepped. `look`: seconds between comparisons."""
        offset = wall() - steady()
        while True:
            await asyncio.sleep(look)
            step = wall() - steady() - offset
            if abs(step) < CLOCK_STEP:
                continue
            log.warning("the clock was stepped; polls are scheduled anew", extra=fields(seconds=f"{step:+.1f}"))
            offset += step
            now = datetime.now(UTC)
            for poller in self.pollers:
                for endpoint in poller.endpoints:
                    scheduler.reschedule_job(job_id(poller, endpoint), trigger=phased(poller, endpoint, now))

    async def _watch_lock(self, stop: asyncio.Event) -> None:
        """Two agents on one folder would send everything twice: stop, should another have got the lock."""
        while True:
            await asyncio.sleep(CLOCK_LOOK)
            try:
                self._lock.keep()
            except StateFolderBusy as error:
                log.error("the state folder was taken over; stopping", extra=fields(reason=error))  # noqa: TRY400 - said
                stop.set()
                return
            except StateFolderError as error:
                log.debug("the lock cannot be renewed", extra=fields(reason=error))


def job_id(poller: Poller, endpoint: Endpoint) -> str:
    return f"{poller.target.name}/{endpoint}"


def phased(poller: Poller, endpoint: Endpoint, now: datetime) -> IntervalTrigger:
    """Every `interval`, at a phase that only the names decide: the same after a restart, and spread over targets.
    (APScheduler's jitter would add up from run to run.)
    """
    interval = poller.target.interval
    phase = zlib.crc32(job_id(poller, endpoint).encode()) / 2**32 * interval
    start = (now.timestamp() // interval) * interval + phase
    if start <= now.timestamp():
        start += interval
    return IntervalTrigger(seconds=interval, start_date=datetime.fromtimestamp(start, UTC), timezone=UTC)


# --- building -----------------------------------------------------------------------------------------------------


def build_spool(config: Config, *, owner: bool) -> SqliteSpool:
    """The configured spool, not yet opened. `owner`: this process holds the folder's lock."""
    path = config.agent.state_dir / SPOOL_FILE
    return SqliteSpool(path, max_bytes=config.spool.max_bytes, max_age=config.spool.max_age, owner=owner)


def build_clients(config: Config) -> list[Client]:
    """One client per target; TLS contexts are shared where the settings are the same."""
    contexts: dict[tuple[Path | None, ...], ssl.SSLContext] = {}
    clients = []
    for index, target in enumerate(config.targets):
        files = (target.ca_file, target.client_cert, target.client_key)
        try:
            if files not in contexts:
                contexts[files] = tls_context(*files)
            clients.append(
                Client(target.url, target.key_headers(), contexts[files], proxy=target.proxy, max_body=target.max_body)
            )
        except HttpProblem as error:
            problem = Problem(f"targets[{index}]", error.reason, error.hint)
            raise ConfigError("configuration", [problem]) from None
    return clients


def build_sink(name: str, config: config_sinks.SinkConfig, instance: Instance) -> Sink:
    """The sink of a configuration; its library is imported here, and only if it is configured. ConfigError when it
    cannot be built. `instance` need not be opened yet.
    """
    match config:
        case config_sinks.ConsoleSink():
            from forwarder.sinks.console import ConsoleSink

            # Python sets it to None when the process was started without.
            return ConsoleSink(name, None if sys.stdout is None else 1)
        case config_sinks.DatadogSink():
            from forwarder.sinks.datadog.dogstatsd import DogStatsdSink
            from forwarder.sinks.datadog.points import Form

            form = Form(config.changes, config.histogram_buckets, config.tags)
            return DogStatsdSink(
                name,
                config.address or "",
                form,
                max_age=config.max_age,
                timestamps=config.timestamps,
                origin=config.origin,
            )
        case config_otlp.OtlpSink():
            from forwarder.sinks.otlp import build as otlp

            try:
                return otlp.build(name, config, instance.name)
            except HttpProblem as error:
                problem = Problem(f"sinks.{name}", error.reason, error.hint)
                raise ConfigError("configuration", [problem]) from None


# --- running as a process -----------------------------------------------------------------------------------------


async def run_until_signalled(config: Config) -> None:
    """Run until SIGTERM or SIGINT, then drain; a second signal stops at once (what is not delivered stays in the
    spool).
    """
    agent = Agent(config)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_default_executor(DaemonThreads())
    main = asyncio.ensure_future(agent.run(stop))

    first = 0.0

    def on_signal() -> None:
        nonlocal first
        if not stop.is_set():
            first = loop.time()
            stop.set()
        elif loop.time() - first > SAME_SIGNAL:
            main.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    try:
        await main
    except asyncio.CancelledError:
        log.warning("stopped at once, by a second signal")
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)  # stopped already; what is left is the interpreter's own end
