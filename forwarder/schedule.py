"""When polls are made: each endpoint at its interval, at a phase of its own. The only module that knows APScheduler.

APScheduler starts the polls; what they come to is the poller's. A job only starts a task, so that it is over at once.
One poll begins in each pass of the event loop: with more to do than one core can, polls begin late, and say so. Begun
all at once, they would time out while the agent reads the others' replies, and every proxy would seem to be slow.
Adding and removing one target touches no job of another: APScheduler would begin their intervals anew (3.11.3).
"""

import asyncio
import logging
import time
import zlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

from apscheduler.events import EVENT_JOB_SUBMITTED, JobSubmissionEvent
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger

from forwarder.logs import Reminder, fields
from forwarder.normalize.reading import Endpoint
from forwarder.poll import Poller
from forwarder.telemetry import Telemetry

log = logging.getLogger(__name__)

# A tick only starts a task; one that is late is still wanted, and several late ones are one.
MISFIRE_GRACE: Final = 60  # seconds
# APScheduler goes by the wall clock: set back, it would be silent until the clock caught up (measured, 3.11.3).
CLOCK_LOOK: Final = 5.0  # seconds between comparisons of wall clock and monotonic clock
CLOCK_STEP: Final = 2.0  # seconds of difference that count as a step
FIRST_SPREAD: Final = 0.02  # seconds from one target's first polls to the next one's: a start is no stampede
LATE: Final = 5.0  # seconds of waiting for its turn after which a poll that begins is told of
BEAT: Final = 5.0  # seconds between the scheduler's own signs of life
BEAT_JOB: Final = "beat"  # no target's: theirs have a slash


class Schedule:
    def __init__(self, telemetry: Telemetry, *, steady: Callable[[], float] = time.monotonic) -> None:
        self._telemetry = telemetry
        self._steady = steady
        self._scheduler = AsyncIOScheduler(
            timezone=UTC, job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": MISFIRE_GRACE}
        )
        self._scheduler.add_listener(self._submitted, EVENT_JOB_SUBMITTED)
        self._pollers: list[Poller] = []
        self._polls: dict[asyncio.Task[None], Poller] = {}
        self._turn = asyncio.Lock()
        self._waiting: set[tuple[Poller, Endpoint]] = set()  # for their turn
        self._due: dict[str, float] = {}  # since when (s UTC) the poll of a job has been wanted
        self._late = Reminder(0)
        self._bugs: dict[str, tuple[type[Exception], Reminder]] = {}
        self._stopping = False
        self._beaten = steady()

    def start(self) -> None:
        self._beaten = self._steady()
        self._scheduler.add_job(self._beat, IntervalTrigger(seconds=BEAT, timezone=UTC), id=BEAT_JOB)
        self._scheduler.start()

    def add(self, poller: Poller, *, delay: float = 0.0) -> None:
        """Poll every endpoint of it in `delay` seconds, and from then on in its phase."""
        self._pollers.append(poller)
        now = datetime.now(UTC)
        for endpoint in poller.endpoints:
            arguments = (poller, endpoint)
            self._scheduler.add_job(self._tick, DateTrigger(now + timedelta(seconds=delay)), arguments)
            self._scheduler.add_job(self._tick, phased(poller, endpoint, now), arguments, id=job_id(poller, endpoint))

    def remove(self, poller: Poller) -> None:
        """No new polls of it. Those in flight go on; `polls` has them."""
        self._pollers.remove(poller)
        for endpoint in poller.endpoints:
            self._scheduler.remove_job(job_id(poller, endpoint))
            self._due.pop(job_id(poller, endpoint), None)

    def polls(self, poller: Poller) -> list[asyncio.Task[None]]:
        """The polls of it that are in flight."""
        return [task for task, whose in self._polls.items() if whose is poller]

    async def stop(self) -> None:
        """No new polls; those in flight are given up."""
        # Said before anything is awaited: the scheduler still fires once after its shutdown, and a poll that
        # began then would put events when the pumps have found nothing left.
        self._stopping = True
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)
        for poll in self._polls:
            poll.cancel()
        await asyncio.gather(*self._polls, return_exceptions=True)

    @property
    def silent(self) -> float:
        """Seconds since the scheduler last gave a sign of life, which it does every BEAT; 0 while it need not."""
        return self._steady() - self._beaten if self._scheduler.running and not self._stopping else 0.0

    # --- ticks ----------------------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        self._beaten = self._steady()

    def _submitted(self, event: JobSubmissionEvent) -> None:
        if "/" in event.job_id:  # a target's, and not its first: those are due at once. Of runs that are one, the last
            self._due.setdefault(event.job_id, event.scheduled_run_times[-1].timestamp())

    async def _tick(self, poller: Poller, endpoint: Endpoint) -> None:
        if self._stopping or poller not in self._pollers:  # its first ticks have no id to remove them by
            return
        task = asyncio.create_task(self._poll(poller, endpoint))
        self._polls[task] = poller
        task.add_done_callback(lambda task: self._polls.pop(task, None))

    async def _poll(self, poller: Poller, endpoint: Endpoint) -> None:
        job = job_id(poller, endpoint)
        if (poller, endpoint) in self._waiting:
            return
        await self._turn_of(poller, endpoint)
        if self._stopping or poller not in self._pollers:
            return
        try:
            await poller.tick(endpoint)
        except Exception as error:
            # A bug in one poll must not end the others. One that comes with every poll is told once an hour.
            now = time.time_ns()
            kind, reminder = self._bugs.get(job, (None, Reminder(now)))
            if kind is not type(error) or reminder.due(now):
                self._bugs[job] = type(error), reminder
                log.exception("bug in polling", extra=fields(target=poller.target.name, endpoint=endpoint))
        else:
            self._bugs.pop(job, None)

    async def _turn_of(self, poller: Poller, endpoint: Endpoint) -> None:
        """Return in a pass of the event loop in which no other poll begins."""
        began = self._steady()
        self._waiting.add((poller, endpoint))
        try:
            async with self._turn:
                await asyncio.sleep(0)
        finally:
            self._waiting.discard((poller, endpoint))
        waited = self._steady() - began
        due = self._due.pop(job_id(poller, endpoint), None)  # none for a first poll
        self._telemetry.late(waited if due is None else max(waited, time.time() - due))
        if waited > LATE and self._late.due(time.time_ns()):  # by the steady clock: a stepped one is no overload
            log.warning(
                "polls begin late: there is more to do than one core can",
                extra=fields(seconds=f"{waited:.1f}", targets=len(self._pollers)),
            )

    async def watch_clock(
        self,
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
            self._scheduler.reschedule_job(BEAT_JOB, trigger=IntervalTrigger(seconds=BEAT, timezone=UTC))
            for poller in self._pollers:
                for endpoint in poller.endpoints:
                    self._scheduler.reschedule_job(job_id(poller, endpoint), trigger=phased(poller, endpoint, now))


def job_id(poller: Poller, endpoint: Endpoint) -> str:
    return f"{poller.target.name}/{endpoint}"


def phased(poller: Poller, endpoint: Endpoint, now: datetime) -> IntervalTrigger:
    """Every `interval`, at a phase that only the names decide: the same after a restart, and spread over targets.
    (APScheduler's jitter would add up from run to run.)
    """
    interval = poller.interval(endpoint)
    phase = zlib.crc32(job_id(poller, endpoint).encode()) / 2**32 * interval
    start = (now.timestamp() // interval) * interval + phase
    if start <= now.timestamp():
        start += interval
    return IntervalTrigger(seconds=interval, start_date=datetime.fromtimestamp(start, UTC), timezone=UTC)
