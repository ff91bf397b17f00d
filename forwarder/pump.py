"""One pump per sink: read from the spool, send, settle. The only place that retries, splits, buries and gives up.

What an outcome leads to (the table of DESIGN and docs/architecture.md):

    Delivered       settle and count what was in the request; what the backend refused inside counts as rejected
    Retry           settle what is known to be stored, keep the rest, wait max(what the backend asked, back-off)
    Rejected, n>1   send fewer: half of what is known to hold the poison, until it is found
    Rejected, n=1   bury it as a dead letter; after REFUSALS in a row without a delivery it is the sink that is wrong;
                    too old: count it as expired, and feel the way to the first that is not, one event at a time
    Blocked         settle what is known to be stored, keep the rest, alarm, try slowly
    an exception    a bug in the sink: logged with its traceback, then as Retry

A sink with a memory (`Remembering`) gets it back at the start, and has it stored with every settlement; where nothing
is waiting it is called when its time has come, and once more at the end of a drain.

A pump that has caught up rests after a send for some times as long as that took, so that what comes meanwhile goes
together: with one proxy nobody notices, with two hundred each batch would be a request of its own, three times over.

A send that was made is never forgotten: when the spool cannot take its settlement (a full disk), the pump holds on to
it and sends nothing more until it is written, so that a full disk causes no duplicates.
"""

import asyncio
import contextlib
import itertools
import logging
import random
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeVar, assert_never

from forwarder.errors import SpoolUnavailable
from forwarder.events import Batch
from forwarder.logs import Reminder, fields
from forwarder.sinks.base import Blocked, Delivered, Outcome, Rejected, Remembering, Retry, Sink
from forwarder.spool.base import Burial, Piece, Position, Settlement, Spool
from forwarder.telemetry import Telemetry

log = logging.getLogger(__name__)

BACKOFF: Final = (1.0, 60.0)  # seconds: first and longest pause after a Retry
SLOWLY: Final = (30.0, 300.0)  # the same after Blocked
LONGEST_ASKED: Final = 3600.0  # a Retry-After beyond this is a mistake or an attack
SETTLE_AGAIN: Final = 5.0  # seconds at most between attempts to write down what was sent
REFUSALS: Final = 10  # single events refused in a row before the sink itself is suspected
GRACE: Final = 5.0  # seconds past its timeout after which a send is reported as stuck
NO_EVENT: Final = Settlement(Position())  # which moves no place, and stores its state all the same
IDLE: Final = 5.0  # seconds between looks at an empty queue: another process may replay into it
REST: Final = 4.0  # times as long as reading, sending and settling took, once the newest was sent
LONGEST_REST: Final = 0.25  # seconds
FRESH: Final = 1.0  # seconds since it was observed: who sent something newer has caught up

T = TypeVar("T")
State = Literal["idle", "delivering", "retrying", "blocked", "spool_unavailable"]
Step = Literal["done", "live", "empty", "failed"]  # live: done, and caught up; failed: a pause is due before the next
Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class PumpStatus:
    """How a sink does, for status pages and exit codes. `since`, `last_success` and `failed_at` are ns UTC.
    `last_error` stays when the failure is over.
    """

    state: State = "idle"
    since: int = 0
    reason: str = ""
    attempts: int = 0  # failed in a row
    last_success: int | None = None
    last_error: str = ""
    failed_at: int | None = None


class Pump:
    def __init__(  # noqa: PLR0913 - the clock, the pauses and the dice are parameters for the sake of tests
        self,
        sink: Sink,
        spool: Spool,
        *,
        timeout: float,
        telemetry: Telemetry | None = None,
        clock: Callable[[], int] = time.time_ns,
        sleep: Sleep = asyncio.sleep,
        dice: random.Random | None = None,
    ) -> None:
        self.sink = sink
        self._next: tuple[Sink, float] | None = None  # what takes its place, with its timeout
        self._leaving = False
        self._woken = asyncio.Event()
        self.status = PumpStatus(since=clock())
        self._spool = spool
        self._timeout = timeout
        self._telemetry = telemetry or Telemetry()
        self._clock = clock
        self._sleep = sleep
        self._dice = dice or random.Random()  # noqa: S311 - jitter, not a secret
        self._suspect = 0  # so many events from the position on are known to hold one that is refused
        self._careful = 0  # if not 0, so many events at most go at a time, because those before were too old
        self._refusals = 0
        self._buried = 0  # not told yet
        self._expired = 0  # not told yet
        self._asked = 0.0  # seconds of pause that the backend asked for
        self._reminder = Reminder(clock())
        self._refused = 0  # inside requests that were taken; not told yet
        self._refused_told = Reminder(0)
        self._failures = 0  # in a row, of this sink: what the back-off goes by
        self._remembering = sink if isinstance(sink, Remembering) else None
        self._memo: bytes | None = None  # as it is stored; None: not recalled yet

    @property
    def name(self) -> str:
        return self.sink.name

    def use(self, sink: Sink, *, timeout: float) -> None:
        """Deliver to this sink instead, as soon as no send is in flight; waiting is over. It has the same name, and
        so the same place in the spool. The one before is closed.
        """
        if self._next is not None:
            self._next[0].close()
        self._next, self._leaving = (sink, timeout), False
        self._woken.set()

    def leave(self) -> None:
        """End as soon as no send is in flight, without draining; what is pending stays in the spool."""
        self._leaving = True
        self._woken.set()

    def close(self) -> None:
        """Close its sink; for whoever ran it, afterwards."""
        self._take_over()
        self.sink.close()

    async def run(self, stop: asyncio.Event) -> bool:
        """Deliver until `stop` is set, then drain: go on until nothing is pending (True) or the first failure (False;
        the data is safe, so a dead backend does not hold up a stop). Cancelling loses nothing: what was not settled
        is read again next time.
        """
        last = False  # nothing is waiting any more, and only the last words are left to be said
        while True:
            self._woken.clear()
            self._take_over()
            if self._leaving:
                return False
            draining = stop.is_set()
            began = time.monotonic()
            step = await self._step(last=last)
            if draining and step in ("empty", "failed"):
                if step == "empty" and not last:
                    last = True
                    continue
                return step == "empty"
            if step == "empty":
                await self._wait(stop, self._spool.wait(self.sink.name, self._idle()))
            elif step == "failed":
                await self._wait(stop, self._pause())
            elif step == "live" and not draining:
                await self._wait(stop, asyncio.sleep(min(LONGEST_REST, REST * (time.monotonic() - began))))

    def _take_over(self) -> None:
        if self._next is None:
            return
        self.sink.close()
        (self.sink, self._timeout), self._next = self._next, None
        self._remembering = self.sink if isinstance(self.sink, Remembering) else None
        self._memo = None
        self._suspect = self._careful = self._refusals = self._failures = 0
        self._asked = 0.0
        if self.status.attempts:  # should it fail like the one before, that is said again
            self.status = replace(self.status, reason="its configuration or key has changed: trying again")

    async def _wait(self, stop: asyncio.Event, waiting: Coroutine[Any, Any, None]) -> None:
        """Wait, but not past `stop`, nor when there is something new to know."""
        await _unless((stop, self._woken), waiting)

    # --- one step -------------------------------------------------------------------------------------------------

    async def _step(self, *, last: bool = False) -> Step:
        try:
            await self._recall()
            if pieces := await self._read():
                return await self._handle(pieces)
            sink, due = self._remembering, self._due()
            if sink is not None and due is not None and (last or due <= 0):
                step = await self._tick(sink, last=last)
                return "empty" if last and step == "done" else step
        except SpoolUnavailable as error:
            self._failed("spool_unavailable", str(error))
            return "failed"
        except Exception as error:
            # Whatever it is, a pump that ended here would leave its sink without deliveries and nobody would know.
            reason = f"bug in the pump: {type(error).__name__}"
            if reason != self.status.reason:
                log.exception("bug in the pump", extra=fields(sink=self.sink.name))
            self._failed("retrying", reason)
            return "failed"
        self._tell()
        if self.status.state in ("delivering", "retrying"):
            self.status = replace(self.status, state="idle", reason="", since=self._clock())
        return "empty"

    async def _read(self) -> list[Piece]:
        limits = self.sink.limits
        # Halving what is known to hold the poison finds it in log2(n) sends; a refusing sink is asked with one event.
        most = max(1, self._suspect // 2) if self._suspect else limits.max_events
        if self._careful:
            most = min(most, self._careful)
        if self._refusals >= REFUSALS:
            most = 1
        pieces = await self._spool.read(self.sink.name, max_events=most, max_bytes=limits.max_bytes)
        self._spool_works()
        return pieces

    async def _handle(self, pieces: list[Piece]) -> Step:
        now = self._clock()
        too_old = self._too_old(pieces[0], now)
        # Up to the first that is otherwise: a replayed dead letter may be older than what precedes it.
        pieces = list(itertools.takewhile(lambda piece: self._too_old(piece, now) == too_old, pieces))
        count = _count(pieces)
        if too_old:
            return await self._expire(pieces, count)
        began = time.monotonic()
        outcome = _checked(await self._send(pieces), count)
        self._telemetry.sent(self.sink.name, type(outcome).__name__.lower(), time.monotonic() - began)
        match outcome:
            case Delivered():
                return await self._delivered(pieces, outcome)
            case Rejected():
                return await self._rejected(pieces, outcome)
            case Retry() | Blocked():
                taken = min(max(outcome.delivered, 0), count)
                if taken:
                    await self._settle(Settlement(upto=_after(pieces, taken), delivered=taken))
                    self._suspect = max(0, self._suspect - taken)
                else:
                    await self._settle(None)
                return self._failure(outcome)
            case _:
                assert_never(outcome)

    def _failure(self, outcome: Retry | Blocked) -> Step:
        if isinstance(outcome, Retry):
            self._failed("retrying", outcome.reason, after=outcome.after)
        else:
            self._failed("blocked", outcome.reason)
        return "failed"

    async def _delivered(self, pieces: list[Piece], outcome: Delivered) -> Step:
        count = _sent(outcome, _count(pieces))
        refused = min(max(outcome.rejected, 0), count)
        if refused:
            self._partly_refused(refused, outcome.reason)
        await self._settle(Settlement(upto=_after(pieces, count), delivered=count - refused, rejected=refused))
        self._suspect = max(0, self._suspect - count)
        self._careful = self._careful * 2 if self._careful < self.sink.limits.max_events else 0
        self._refusals = 0
        self._tell()
        self._success()
        return "live" if self._caught_up(pieces, count) else "done"

    def _caught_up(self, pieces: Sequence[Piece], sent: int) -> bool:
        """Whether a send had what is new, and much less than a request holds."""
        full = sent < _count(pieces) or sent > self.sink.limits.max_events // 2
        searching = self._suspect or self._careful
        return not full and not searching and abs(self._clock() - pieces[-1].batch.time) < FRESH * 1e9

    def _partly_refused(self, count: int, reason: str) -> None:
        """Told at once, then once an hour with their number since: what is over a limit is so in every request."""
        self._refused += count
        if self._refused_told.due(self._clock()):
            log.warning(
                "the backend took a request but refused some of its events for good",
                extra=fields(sink=self.sink.name, events=self._refused, reason=reason),
            )
            self._refused = 0

    def _success(self) -> None:
        self._failures = 0
        now = self._clock()
        if self.status.attempts:
            seconds = (now - self.status.since) // 1_000_000_000
            log.info(
                "delivers again",
                extra=fields(sink=self.sink.name, after=f"{seconds}s", attempts=self.status.attempts),
            )
        since = self.status.since if self.status.state == "delivering" else now
        self.status = replace(self.status, state="delivering", since=since, reason="", attempts=0, last_success=now)

    async def _rejected(self, pieces: list[Piece], outcome: Rejected) -> Step:
        if (sent := _sent(outcome, _count(pieces))) > 1:
            await self._settle(None)
            self._suspect = sent
            return "done"
        if outcome.too_old:
            self._careful = 1
            return await self._expire(pieces, 1, outcome.reason)
        return await self._bury(pieces, outcome.reason)

    async def _expire(self, pieces: list[Piece], count: int, reason: str | None = None) -> Step:
        """The first `count` events of them."""
        if not self._expired:
            log.warning(
                "leaving out events that are too old for the sink", extra=fields(sink=self.sink.name, reason=reason)
            )
        await self._settle(Settlement(upto=_after(pieces, count), expired=count))
        self._suspect = max(0, self._suspect - count)
        self._expired += count
        return "done"

    async def _bury(self, pieces: Sequence[Piece], reason: str) -> Step:
        """The first event of them."""
        if self._refusals == self._buried == 0:
            log.warning("the sink refuses an event for good", extra=fields(sink=self.sink.name, reason=reason))
        whole = pieces[0].batch
        first = Batch(whole.resource, whole.time, whole.events[:1])
        await self._settle(Settlement(upto=_after(pieces, 1), rejected=1, dead=[Burial(first, reason)]))
        self._suspect = 0
        self._buried += 1
        self._refusals += 1
        if self._refusals < REFUSALS:
            return "done"
        # Everything refused is rarely the data's fault. Going on slowly keeps the backlog from being buried whole,
        # and still gets past a long run of poison, one event a probe.
        self._failed("blocked", f"refuses every event: {reason}", saying=_REFUSING)
        return "failed"

    def _tell(self) -> None:
        """How many events were given up. That some are was said when it began; one line per event would be a flood."""
        if self._buried:
            log.warning(
                "buried events as dead letters; `litellm-forwarder spool list` shows them",
                extra=fields(sink=self.sink.name, events=self._buried),
            )
        if self._expired:
            log.warning(
                "events are too old for the sink and were not sent",
                extra=fields(sink=self.sink.name, events=self._expired),
            )
        self._buried = self._expired = 0

    # --- sinks with a memory -----------------------------------------------------------------------------------------

    async def _recall(self) -> None:
        if self._remembering is not None and self._memo is None:
            memo = (await self._spool.state()).get(self._memo_key, b"")
            self._remembering.recall(memo)
            self._memo = memo

    async def _tick(self, sink: Remembering, *, last: bool) -> Step:
        began = time.monotonic()
        outcome = await self._attempt(lambda: sink.tick(timeout=self._timeout, last=last))
        self._telemetry.sent(self.sink.name, type(outcome).__name__.lower(), time.monotonic() - began)
        await self._settle(None)
        if isinstance(outcome, Delivered):
            self._success()
            return "done"
        if isinstance(outcome, Rejected):
            outcome = Retry("bug in the sink: it answered Rejected for no event")
        return self._failure(outcome)

    def _due(self) -> float | None:
        return None if self._remembering is None else self._remembering.due

    def _idle(self) -> float:
        """Seconds until the queue is to be looked at again, whatever comes."""
        due = self._due()
        return IDLE if due is None else max(0.0, min(IDLE, due))

    def _new_memo(self) -> dict[str, bytes]:
        """The state to store, if the sink remembers something else by now."""
        if self._remembering is None or (memo := self._remembering.memo) == self._memo:
            return {}
        return {self._memo_key: memo}

    @property
    def _memo_key(self) -> str:
        return f"sink/{self.sink.name}"

    # --- failing and waiting --------------------------------------------------------------------------------------

    def _failed(self, state: State, reason: str, after: float | None = None, saying: str = "") -> None:
        now = self._clock()
        since = self.status.since if self.status.attempts else now
        say = log.warning if state == "retrying" else log.error
        if (self.status.state, self.status.reason) != (state, reason):
            say(saying or _SAYING[state], extra=fields(sink=self.sink.name, reason=reason))
            self._reminder = Reminder(now)
        elif self._reminder.due(now):
            lasting = f"{(now - since) // 1_000_000_000}s"
            told = fields(sink=self.sink.name, reason=reason, lasting=lasting, attempts=self.status.attempts + 1)
            say("still: " + (saying or _SAYING[state]), extra=told)
        # Compared, because a backend may well ask for "nan" seconds.
        self._asked = after if after is not None and after > 0 else 0.0
        self._failures += 1
        self.status = replace(
            self.status,
            state=state,
            reason=reason,
            since=since,
            attempts=self.status.attempts + 1,
            last_error=reason,
            failed_at=now,
        )

    def _spool_works(self) -> None:
        if self.status.state == "spool_unavailable":
            log.info("the spool can be used again", extra=fields(sink=self.sink.name))
            self.status = replace(self.status, state="idle", reason="", since=self._clock(), attempts=0)
            self._failures = 0

    async def _pause(self) -> None:
        first, longest = SLOWLY if self.status.state == "blocked" else BACKOFF
        exponent = min(max(self._failures - 1, 0), 16)
        jittered = min(longest, first * 2.0**exponent) * self._dice.uniform(0.5, 1.0)
        await self._sleep(max(min(self._asked, LONGEST_ASKED), jittered))

    # --- the sink and the spool -----------------------------------------------------------------------------------

    async def _send(self, pieces: Sequence[Piece]) -> Outcome:
        batches = [piece.batch for piece in pieces]
        return await self._attempt(lambda: self.sink.send(batches, timeout=self._timeout))

    async def _attempt(self, call: Callable[[], object]) -> Outcome:
        def attempt() -> object:
            # As a value, because a future lets neither StopIteration nor CancelledError through as what they are.
            try:
                return call()
            except BaseException as error:  # noqa: BLE001 - a bug of the sink must not end the pump
                return error

        sending = in_thread(attempt, f"send-{self.sink.name}")
        done, _ = await asyncio.wait([sending], timeout=self._timeout + GRACE)
        if not done:
            # It cannot be ended from outside, and a second send beside it would break the contract: tell and wait.
            self._failed(
                "retrying",
                "a send does not return within its timeout: the name of its host hangs in DNS, or a bug in the sink",
            )
        answer = await sending
        if isinstance(answer, Delivered | Retry | Rejected | Blocked):
            return answer
        error = answer if isinstance(answer, BaseException) else None
        reason = f"bug in the sink: {'it raised' if error else 'it answered'} {type(answer).__name__}"
        if reason != self.status.reason:
            log.error("bug in the sink", exc_info=error, extra=fields(sink=self.sink.name))
        return Retry(reason)

    async def _settle(self, settlement: Settlement | None) -> None:
        """Write down what became of events, and what the sink remembers of it. None: that alone."""
        state = self._new_memo()
        if settlement is None and not state:
            return
        pause = BACKOFF[0]
        while True:
            try:
                await self._spool.settle(self.sink.name, replace(settlement or NO_EVENT, state=state))
            except SpoolUnavailable as error:
                self._failed("spool_unavailable", str(error))
                await self._sleep(pause)
                pause = min(SETTLE_AGAIN, pause * 2)
            else:
                self._memo = state.get(self._memo_key, self._memo)
                self._spool_works()
                return

    def _too_old(self, piece: Piece, now: int) -> bool:
        limit = self.sink.limits.max_age
        return limit is not None and now - piece.batch.time > limit * 1e9


_REFUSING: Final = (
    "the sink refuses every event; one is tried now and then and is a dead letter if it is refused, the spool keeps "
    "the others"
)
_SAYING: Final = {
    "retrying": "cannot deliver; the spool keeps everything, trying again",
    "blocked": "the sink is blocked; the spool keeps everything, trying slowly",
    "spool_unavailable": "the spool cannot be used; nothing is sent until it can",
}


def _count(pieces: Sequence[Piece]) -> int:
    return sum(len(piece.batch.events) for piece in pieces)


def _sent(outcome: Delivered | Rejected, count: int) -> int:
    """How many of `count` events were in the request that the outcome is about."""
    return count if outcome.events is None else min(outcome.events, count)


def _checked(outcome: Outcome, count: int) -> Outcome:
    """A request of no events would go on for ever, and whoever makes it has a bug."""
    if isinstance(outcome, Delivered | Rejected) and _sent(outcome, count) < 1:
        return Retry(f"bug in the sink: it answered {type(outcome).__name__} for no event")
    return outcome


def _after(pieces: Sequence[Piece], count: int) -> Position:
    """The position behind the first `count` events."""
    for piece in pieces:
        here = len(piece.batch.events)
        if count < here:
            return Position(piece.start.batch, piece.start.index + count)
        count -= here
    return pieces[-1].end


async def _unless(stops: Sequence[asyncio.Event], waiting: Coroutine[Any, Any, None]) -> None:
    """Wait, but not past the first of `stops`."""
    tasks = [asyncio.ensure_future(waiting), *(asyncio.ensure_future(stop.wait()) for stop in stops)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0] in done:
            tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()


def in_thread(work: Callable[[], T], name: str) -> asyncio.Future[T]:
    """Run blocking work, which must not raise, in a daemon thread of its own. An executor's threads would be joined
    at exit, where one stuck send could hold the process for ever.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def finish(result: T) -> None:
        if not future.cancelled():
            future.set_result(result)

    def run() -> None:
        result = work()
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process is going, nobody waits
            loop.call_soon_threadsafe(finish, result)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
