"""What status pages are made of while the agent runs: it watches what goes into the spool, keeps the history of each
target, stores it, and makes the `View` when somebody asks.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

from forwarder.config import Config
from forwarder.errors import CodecError, SpoolUnavailable
from forwarder.events import AttributeValue, Batch, Change, Metric
from forwarder.instance import fingerprint
from forwarder.logs import fields
from forwarder.poll import Poller
from forwarder.pump import Pump
from forwarder.spool.base import Account, Spool
from forwarder.status import exposition
from forwarder.status.build import Delivering, Watched, build
from forwarder.status.history import CHANGES, History, Stored, Told, decode
from forwarder.status.view import View

log = logging.getLogger(__name__)

LOOK: Final = 30.0  # seconds between looks at what should be stored
STORE: Final = 300_000_000_000  # ns after which a history is stored though nothing in it is urgent
SAME: Final = 1_000_000_000  # ns for which a view is given again: viewers cost the spool one reading a second
# A scheduler that gives no sign of life for so long is dead; it gives one every few seconds.
DEAD: Final = 60.0  # seconds


class Parts(Protocol):
    """What the board looks at: the agent. Asked for each time, because a reload may change them."""

    @property
    def config(self) -> Config: ...
    @property
    def pollers(self) -> Sequence[Poller]: ...
    @property
    def pumps(self) -> Sequence[Pump]: ...
    @property
    def spool(self) -> Spool: ...
    @property
    def spool_takes(self) -> bool: ...
    @property
    def silent(self) -> float: ...
    async def measure(self) -> list[Metric]: ...


class Board:
    def __init__(self, parts: Parts, *, clock: Callable[[], int] = time.time_ns) -> None:
        self._parts = parts
        self._clock = clock
        self._started = clock()
        self.state_folder: Final = fingerprint(parts.config.agent.state_dir)
        self._histories: dict[str, History] = {}
        self._restored: dict[str, Stored] = {}
        self._stored_at: dict[str, int] = {}
        self._changes: tuple[Told, ...] = ()  # the agent's own
        self._view: View | None = None
        self._viewed = 0
        self._lock = asyncio.Lock()  # one view is built at a time
        self._measured = ""
        self._measured_at = 0
        self._measuring = asyncio.Lock()

    # --- history ----------------------------------------------------------------------------------------------------

    def open(self, state: Mapping[str, bytes]) -> None:
        """Take up what the last run stored. What cannot be read starts anew, with a line in the log."""
        for poller in self._parts.pollers:
            name = poller.target.name
            if not (data := state.get(_key(name))):
                continue
            try:
                self._restored[name] = decode(data)
            except CodecError as error:
                log.warning("a stored history cannot be read and starts anew", extra=fields(target=name, reason=error))

    def see(self, batch: Batch, stored: bool) -> None:
        """Take in what was observed."""
        target = batch.resource.attributes.get("litellm.target")
        if target is None:
            told = tuple(Told(e.time, e.name, e.severity, e.title) for e in batch.events if isinstance(e, Change))
            self._changes = (self._changes + told)[-CHANGES:]
            return
        poller = next((poller for poller in self._parts.pollers if poller.target.name == target), None)
        if poller is not None:
            self._history(poller).see(batch, stored=stored)

    def _history(self, poller: Poller) -> History:
        name = poller.target.name
        if name not in self._histories:
            self._histories[name] = History(poller.lasting, self._restored.pop(name, None))
        self._histories[name].lasting = poller.lasting
        return self._histories[name]

    async def keep(self, look: float = LOOK) -> None:
        """Store histories, for ever. `look`: seconds between looks."""
        while True:
            await asyncio.sleep(look)
            await self.store()

    async def store(self, *, everything: bool = False) -> None:
        """Write the histories that changed, or that were not written for long, into the spool."""
        now = self._clock()
        names = {poller.target.name for poller in self._parts.pollers}
        self._histories = {name: each for name, each in self._histories.items() if name in names}
        due = {
            name: each
            for name, each in self._histories.items()
            if everything or each.urgent or not 0 <= now - self._stored_at.get(name, 0) < STORE
        }
        if not due:
            return
        for each in due.values():
            each.urgent = False
        # What the spool cannot take now goes with the next: it is no event, and its loss is a grey slice.
        with contextlib.suppress(SpoolUnavailable):
            await self._parts.spool.put(None, {_key(name): each.encode() for name, each in due.items()})
        self._stored_at |= dict.fromkeys(due, now)

    # --- how it is --------------------------------------------------------------------------------------------------

    async def view(self) -> View:
        """How everything is, as of at most a second ago."""
        async with self._lock:
            now = self._clock()
            if self._view is None or not 0 <= now - self._viewed < SAME:
                accounts = await self._accounts()
                self._viewed = self._clock()
                self._view = self._build(self._viewed, accounts)
            return self._view

    async def _accounts(self) -> dict[str, Account]:
        try:
            return {account.sink: account for account in await self._parts.spool.accounts()}
        except SpoolUnavailable:
            return {}

    def _build(self, now: int, accounts: Mapping[str, Account]) -> View:
        sinks = self._parts.config.sinks
        return build(
            now=now,
            started=self._started,
            targets=[
                Watched(poller.target, poller.endpoints, poller.seen(), self._history(poller))
                for poller in self._parts.pollers
            ],
            sinks=[
                Delivering(
                    pump.sink.name,
                    sinks[pump.sink.name].type if pump.sink.name in sinks else "",
                    pump.sink.limits.confirms,
                    pump.status,
                    accounts.get(pump.sink.name),
                )
                for pump in self._parts.pumps
            ],
            changes=self._changes,
            not_ready=self.not_ready(),
            state_folder=self.state_folder,
        )

    async def metrics(self) -> str:
        """The agent's own metrics, and the newest gauges of each target that still count, as a Prometheus page. As of
        at most a second ago.
        """
        async with self._measuring:
            now = self._clock()
            if not self._measured or not 0 <= now - self._measured_at < SAME:
                self._measured, self._measured_at = await self._page(), now
            return self._measured

    async def _page(self) -> str:
        points: list[tuple[Mapping[str, AttributeValue], Metric]] = [
            ({}, metric) for metric in await self._parts.measure()
        ]
        now = self._clock()
        for poller in self._parts.pollers if self._parts.config.agent.expose_health else ():
            resource = {"litellm.target": poller.target.name}
            points += [(resource, metric) for metric in self._history(poller).gauges(now)]
        return await asyncio.to_thread(exposition.page, points)

    def dead(self) -> str | None:
        """Why the agent should be restarted, or None. Whoever gets an answer knows already that the loop turns."""
        silent = self._parts.silent
        return f"the scheduler has given no sign of life for {silent:.0f} s" if silent > DEAD else None

    def not_ready(self) -> list[str]:
        """What is not there yet; empty when the first polls are done and the spool takes what they say."""
        waiting = [
            f"target {poller.target.name} was not read yet"
            for poller in self._parts.pollers
            if any(e not in poller.seen().said for e in poller.endpoints if e != "health")
        ]
        return waiting if self._parts.spool_takes else [*waiting, "the spool cannot be written"]


def _key(target: str) -> str:
    return f"status/{target}"
