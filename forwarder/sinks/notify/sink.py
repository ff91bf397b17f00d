"""The sink: what it is given goes into its memory, and what is due is told, in one attempt per call.

Delivered therefore says that events are in the memory, which is as durable as the spool; whether people could be told
is what Retry and Blocked are about, and those, too, leave nothing of what was given to be given again.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from typing import Final

from forwarder.errors import CodecError
from forwarder.events import Batch
from forwarder.logs import fields
from forwarder.sinks.base import Blocked, Delivered, Limits, Outcome, Retry
from forwarder.sinks.notify import folding, memory, planning
from forwarder.sinks.notify.courier import Courier, Failed
from forwarder.sinks.notify.memory import Memory
from forwarder.sinks.notify.rules import SECOND, Rules
from forwarder.sinks.notify.texts import compose

log = logging.getLogger(__name__)

# Older than this: more is likely to follow (the sink was away), which may make the old news older still. What waited
# for the longest pause of a pump is younger.
CATCHING_UP: Final = 600 * SECOND
# No target is read more rarely than once a day. One that is silent for longer is not watched any more.
UNWATCHED: Final = 25 * 3600 * SECOND


@dataclass(frozen=True, slots=True)
class Style:
    """How messages are written: the zone of their times, and the address of the status page."""

    zone: tzinfo
    link: str = ""


class NotifySink:
    """Tells by `courier`, by `rules`. `clock` gives ns UTC."""

    limits: Final = Limits(max_events=20_000, max_bytes=8_000_000)

    def __init__(
        self, name: str, courier: Courier, rules: Rules, style: Style, *, clock: Callable[[], int] = time.time_ns
    ) -> None:
        self.name: Final = name
        self._courier = courier
        self._rules = rules
        self._style = style
        self._clock = clock
        self._memory = Memory()
        self._stored = b""
        self._stored_of: Memory | None = None
        self._began = clock()
        self._heard: dict[str, int] = {}  # when each target was heard of last (ns)

    # --- the memory -----------------------------------------------------------------------------------------------

    @property
    def memo(self) -> bytes:
        if self._stored_of is not self._memory:
            self._stored_of, self._stored = self._memory, memory.encode(self._memory)
        return self._stored if self._memory != Memory() else b""

    @property
    def due(self) -> float | None:
        return planning.wait(self._memory, self._rules, self._clock())

    def recall(self, memo: bytes) -> None:
        self._memory = Memory()
        if memo:
            try:
                self._memory = memory.decode(memo)
            except CodecError as error:
                log.warning("what was told before is not known any more", extra=fields(sink=self.name, reason=error))

    # --- telling --------------------------------------------------------------------------------------------------

    def send(self, batches: Sequence[Batch], *, timeout: float) -> Outcome:
        now = self._clock()
        self._memory = folding.fold(self._memory, batches, self._rules, now)
        for batch in batches:
            self._heard[memory.clean(str(batch.resource.attributes.get("litellm.target", "")), memory.MAX_NAME)] = now
        if batches and now - batches[-1].time > CATCHING_UP:
            return Delivered()
        return self._tell(sum(len(batch.events) for batch in batches), timeout, last=False)

    def tick(self, *, timeout: float, last: bool) -> Outcome:
        return self._tell(0, timeout, last=last)

    def _tell(self, count: int, timeout: float, *, last: bool) -> Outcome:
        now = self._clock()
        self._memory = folding.forget(self._memory, self._unwatched(now))
        plan = planning.plan(self._memory, self._rules, now, last=last)
        if plan is None:
            return Delivered()
        message = compose(plan, sink=self.name, zone=self._style.zone, link=self._style.link)
        result = self._courier.deliver(message, timeout=timeout)
        if isinstance(result, Failed):
            return Blocked(result.reason, count) if result.wrong else Retry(result.reason, delivered=count)
        if result.note:
            log.warning("a message did not reach everybody", extra=fields(sink=self.name, reason=result.note))
        self._memory = planning.told(self._memory, plan, self._rules, message.id)
        return Delivered()

    def _unwatched(self, now: int) -> set[str]:
        targets = {one.target for one in self._memory.outages.values()}
        return {target for target in targets if now - self._heard.get(target, self._began) > UNWATCHED}

    def close(self) -> None:
        """Nothing is kept open between messages."""
