"""The agent as a process: signals, reloads, and what the service manager is told."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, TypeVar, TypeVarTuple

from forwarder import config as settings
from forwarder import logs
from forwarder.agent import Agent
from forwarder.config import Loaded
from forwarder.config_references import Stamp
from forwarder.errors import ConfigError, SpoolUnavailable
from forwarder.logs import fields
from forwarder.reload import Difference, Names
from forwarder.systemd import Notifier
from forwarder.threads import DaemonThreads

log = logging.getLogger(__name__)

A = TypeVarTuple("A")
T = TypeVar("T")

# `timeout` and some container runtimes signal the process and its group: that is one request to stop, not two.
SAME_SIGNAL: Final = 0.5  # seconds
LOOK: Final = 2.0  # seconds between looks at the files that the configuration refers to
READING: Final = 5.0  # seconds that reading the configuration and its files may take
READERS: Final = 20  # threads for that, which a file that does not answer keeps
STOP_SLACK: Final = 30.0  # seconds that a stop may take beside its drain


class Process:
    """One agent from start to stop."""

    def __init__(self, loaded: Loaded, environ: Mapping[str, str], log_format: logs.Format | None = None) -> None:
        """`log_format`: the command line's, which wins over the configuration's."""
        self._loaded = loaded
        self._environ = environ
        self._log_format = log_format
        self._agent = Agent(loaded.config)
        self._notifier = Notifier(environ)
        self._stop = asyncio.Event()
        self._reload = asyncio.Event()
        self._readers = DaemonThreads(READERS)
        self._refused: Mapping[Path, Stamp] = {}
        self._exposed: set[Path] = set()

    async def run(self) -> None:
        """Until SIGTERM or SIGINT, then drain; a second one stops at once, and leaves the rest in the spool."""
        loop = asyncio.get_running_loop()
        loop.set_default_executor(DaemonThreads())
        self._warn_of_exposed()
        main = asyncio.ensure_future(self._agent.run(self._stop, self._beside))
        watchdog = asyncio.create_task(self._feed_watchdog())
        stopped_at = 0.0

        def on_signal() -> None:
            nonlocal stopped_at
            if not self._stop.is_set():
                stopped_at = loop.time()
                self._stop.set()
                self._notifier.stopping(self._agent.config.agent.drain_timeout + STOP_SLACK)
            elif loop.time() - stopped_at > SAME_SIGNAL:
                main.cancel()

        handlers: dict[signal.Signals, Callable[[], None]] = {
            signal.SIGTERM: on_signal,
            signal.SIGINT: on_signal,
            signal.SIGHUP: self._reload.set,
        }
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        try:
            await main
        except asyncio.CancelledError:
            log.warning("stopped at once, by a second signal")
        finally:
            watchdog.cancel()
            for number in handlers:
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_IGN)  # stopped already; what is left is the interpreter's own end

    async def _beside(self) -> None:
        """While the agent runs: reload when asked to, renew what refers to a file that has changed."""
        self._tell_status()
        self._notifier.ready()
        seen: Mapping[Path, Stamp] | None = None
        while True:
            try:
                await asyncio.wait_for(self._reload.wait(), LOOK)
            except TimeoutError:
                try:
                    now = await self._in_time(settings.stamps, self._loaded.files)
                except TimeoutError:
                    continue  # a file system that hangs; looked at again
                # Twice the same, because a file may be looked at while it is written.
                if now == seen and now not in (self._loaded.files, self._refused):
                    await self._renew(now)
                seen = now
            else:
                self._reload.clear()
                await self._on_hangup()
            self._tell_status()

    async def _on_hangup(self) -> None:
        self._notifier.reloading()
        log.info("reloading", extra=fields(config=self._loaded.path))
        try:
            await self._go_over(await self._in_time(settings.read, self._loaded.path, self._environ), renewal=False)
        except TimeoutError:
            log.error("the configuration is not reloaded, because a file of it does not answer; nothing has changed")  # noqa: TRY400 - expected
        except ConfigError as error:
            _refuse("the configuration is not reloaded, because it is wrong; nothing has changed", error)
        except SpoolUnavailable as error:
            say = "the configuration is not reloaded, because the spool cannot be used; reload again when it can"
            log.error(say, extra=fields(reason=error))  # noqa: TRY400 - expected
        finally:
            self._notifier.ready()

    async def _renew(self, now: Mapping[Path, Stamp]) -> None:
        """Go on with the configuration that is in force, its secrets and certificates read anew."""
        try:
            await self._go_over(await self._in_time(self._loaded.again, self._environ), renewal=True)
        except TimeoutError:
            log.debug("what has changed does not answer")  # tried again with the next look
        except ConfigError as error:
            self._refused = now
            _refuse(
                "a file that the configuration refers to has changed and cannot be used; nothing has changed", error
            )
        except SpoolUnavailable as error:
            log.debug("what has changed is not read yet", extra=fields(reason=error))  # tried again with the next look

    async def _go_over(self, new: Loaded, *, renewal: bool) -> None:
        touched = {path for path, stamp in new.files.items() if self._loaded.files.get(path, stamp) != stamp}
        found = await self._agent.apply(new.config, touched)
        self._loaded, self._refused = new, {}
        self._warn_of_exposed()
        logs.configure(new.config.agent.log_level, sys.stderr, self._log_format or new.config.agent.log_format)
        if not renewal or found:
            _tell(found, renewal=renewal)

    def _warn_of_exposed(self) -> None:
        """Once for each file, until it has been mended."""
        found = set(self._loaded.exposed())
        for path in sorted(found - self._exposed):
            log.warning(
                "a file that holds a secret can be read by every user",
                extra=fields(file=path, fix=f"chmod o-r {path}"),
            )
        self._exposed = found

    async def _in_time(self, work: Callable[[*A], T], *args: *A) -> T:
        """Read files in a thread. TimeoutError after READING: a pipe, or a file system that hangs, must not keep a
        later reload from being heard; the thread is left behind. The same when too many were left.
        """
        try:
            async with asyncio.timeout(READING):
                return await asyncio.get_running_loop().run_in_executor(self._readers, work, *args)
        except BlockingIOError as error:
            raise TimeoutError from error

    # --- the service manager --------------------------------------------------------------------------------------

    def _tell_status(self) -> None:
        up = sum(poller.up is True for poller in self._agent.pollers)
        failing = [f"{pump.name} {pump.status.state}" for pump in self._agent.pumps if pump.status.reason]
        sinks = ", ".join(failing) if failing else "sinks deliver"
        self._notifier.status(f"{up} of {len(self._agent.pollers)} targets up; {sinks}")

    async def _feed_watchdog(self) -> None:
        """As long as the agent works: not only this loop, but the scheduler and the spool's thread."""
        if self._notifier.watchdog is None:
            return
        while True:
            if self._agent.vitals().alive:
                self._notifier.alive()
            await asyncio.sleep(self._notifier.watchdog / 2)


def _refuse(message: str, error: ConfigError) -> None:
    for problem in error.problems:
        log.error(message, extra=fields(at=problem.path, problem=problem.reason, hint=problem.hint or None))


def _tell(found: Difference, *, renewal: bool) -> None:
    for key in found.fixed:
        log.warning("this key cannot change while the agent runs: restart it", extra=fields(key=key))
    about: dict[str, object] = {}
    for what, names in (("targets", found.targets), ("sinks", found.sinks)):
        about |= {f"{what}_{how}": value for how, value in _words(names).items()}
    settings_changed = ",".join(found.others) or None
    message = "secrets or certificates were read anew" if renewal else "reloaded"
    log.info(message, extra=fields(**about, settings_changed=settings_changed))


def _words(names: Names) -> dict[str, object]:
    changed = {how: ",".join(getattr(names, how)) or None for how in ("added", "changed", "renewed", "removed")}
    return changed | {"unchanged": len(names.unchanged)}


async def run_until_signalled(loaded: Loaded, log_format: logs.Format | None = None) -> None:
    """The agent of this configuration, with this process's environment."""
    await Process(loaded, os.environ, log_format).run()
