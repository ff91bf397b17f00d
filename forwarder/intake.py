"""Where batches enter the spool, and where what could not enter, or had to make way, is counted and told.

Losing data silently is the one thing this agent must not do: each loss is logged once, counted by sink and reason, and
reported as a `forwarder.data.lost` change as soon as the spool takes it, at most once a minute.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from forwarder import catalog
from forwarder.errors import SpoolUnavailable
from forwarder.events import Attributes, Batch, Change, Resource
from forwarder.logs import Reminder, fields
from forwarder.spool.base import Damage, PutResult, Spool
from forwarder.telemetry import Telemetry

log = logging.getLogger(__name__)

TELL_EVERY: Final = 60_000_000_000  # ns
# A disk that is nearly full takes small batches and refuses larger ones: one trouble, until it takes all for so long.
SETTLED: Final = 10_000_000_000  # ns


Watch = Callable[[Batch, bool], None]


class Intake:
    def __init__(
        self,
        spool: Spool,
        resource: Mapping[str, str | int],
        *,
        telemetry: Telemetry | None = None,
        clock: Callable[[], int] = time.time_ns,
        watch: Watch = lambda _batch, _stored: None,
    ) -> None:
        """`watch` is shown every batch, and whether the spool took it; status pages are made from that."""
        self._spool = spool
        self._telemetry = telemetry or Telemetry()
        self.resource = Resource(dict(resource))  # of what it says itself
        self._clock = clock
        self._watch = watch
        self._untold: Counter[tuple[str, str]] = Counter()  # (sink or "", reason) → events
        self._damage: list[Damage] = []  # not told yet
        self.damages = 0  # found since the start: whoever keeps state in the spool must store it again
        self._told_at = 0
        self._unavailable_since: int | None = None
        self._refused_at = 0
        self._reminder = Reminder(clock())

    @property
    def writable(self) -> bool:
        """Whether the spool took what it was given last."""
        return self._unavailable_since is None

    async def put(self, batch: Batch | None, state: Mapping[str, bytes] | None = None) -> bool:
        """Store both or neither. False when the spool cannot take them now: the batch is lost, counted and told; the
        caller keeps its state as it was.
        """
        try:
            result = await self._spool.put(batch, state)
        except SpoolUnavailable as error:
            self._lose(batch, str(error))
            if batch is not None:
                self._watch(batch, False)
            return False
        if batch is not None:
            self._watch(batch, True)
        if self._unavailable_since is not None and self._clock() - self._refused_at >= SETTLED:
            seconds = (self._clock() - self._unavailable_since) // 1_000_000_000
            log.info("the spool takes events again", extra=fields(after=f"{seconds}s"))
            self._unavailable_since = None
        self._dropped(result)
        await self._look_for_damage()
        if not 0 <= self._clock() - self._told_at < TELL_EVERY:
            await self.report()
        return True

    async def damaged(self) -> bool:
        """Whether the spool was found damaged since the last report; what is stored is then not what was."""
        await self._look_for_damage()
        return bool(self._damage)

    async def _look_for_damage(self) -> None:
        for each in await self._spool.damage():
            log.error("the spool was damaged", extra=fields(reason=each.reason, moved_to=each.moved_to or None))
            self._damage.append(each)
            self.damages += 1

    async def report(self) -> None:
        """Tell what was lost since the last time, as changes and in the log. `put` calls it at most once a minute;
        whoever stops the agent, once more.
        """
        now = self._told_at = self._clock()
        await self._look_for_damage()
        # Taken in one step, before anything more is awaited: other polls go on counting meanwhile.
        lost, self._untold = self._untold, Counter()
        damage, self._damage = self._damage, []
        if not lost and not damage:
            return
        for (sink, reason), events in sorted(lost.items()):
            log.error("events were lost", extra=fields(events=events, sink=sink or None, reason=reason))
        batch = Batch(self.resource, now, _changes(lost, damage, now))
        try:
            self._dropped(await self._spool.put(batch))
        except SpoolUnavailable:
            self._untold += lost
            self._damage = [*damage, *self._damage]
        else:
            self._watch(batch, True)

    def _dropped(self, result: PutResult) -> None:
        for sink, events in result.dropped.items():
            if not self._untold[sink, "spool_full"]:
                log.error("the spool is full: the oldest events make way", extra=fields(sink=sink))
            self._untold[sink, "spool_full"] += events
            self._telemetry.lost(events, "spool_full", sink)

    def _lose(self, batch: Batch | None, reason: str) -> None:
        if batch is not None:
            self._untold["", "spool_unavailable"] += len(batch.events)
            self._telemetry.lost(len(batch.events), "spool_unavailable")
        now = self._refused_at = self._clock()
        message = "the spool cannot take events; they are lost until it can"
        if self._unavailable_since is None:
            self._unavailable_since = now
            self._reminder = Reminder(now)
            log.error(message, extra=fields(reason=reason))
        elif self._reminder.due(now):
            lasting = f"{(now - self._unavailable_since) // 1_000_000_000}s"
            lost = self._untold["", "spool_unavailable"]
            log.error("still: %s", message, extra=fields(reason=reason, lasting=lasting, events=lost))


def _changes(lost: Mapping[tuple[str, str], int], damage: Sequence[Damage], now: int) -> tuple[Change, ...]:
    changes = []
    for (sink, reason), events in sorted(lost.items()):
        attributes: Attributes = {"reason": reason, "sink": sink} if sink else {"reason": reason}
        title = f"{events:,} events lost" + (f" for sink {sink}" if sink else "")
        changes.append(catalog.DATA_LOST.at(now, title, _REASONS[reason], attributes))
    for _ in damage:
        title = "the spool was damaged: what was in it is not delivered"
        changes.append(catalog.DATA_LOST.at(now, title, _REASONS["spool_corrupt"], {"reason": "spool_corrupt"}))
    return tuple(changes)


_REASONS: Final = {
    "spool_full": "The spool reached its limit of bytes or age, and the oldest undelivered events made way.",
    "spool_unavailable": "The spool could not be written (disk full, read-only or failing) when these were observed.",
    "spool_corrupt": "The spool's file could not be read. It was moved aside and a new one started.",
}
