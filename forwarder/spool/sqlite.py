"""The spool in one SQLite file: the engine of a single machine.

One thread owns the connection. It takes every operation that is queued, runs them in one transaction (each in a
savepoint of its own), commits once, and then answers them all: while one fsync runs, the next group gathers.
What an operation does is in `store`; this module is about the thread, the file, and what goes wrong with it:

- the disk is full, read-only or failing: the group is rolled back and each operation tried alone, so that settling
  may still succeed where putting does not. Whoever fails gets SpoolUnavailable; nothing need be restarted later.
- the file is damaged, deleted or replaced under us: what is there is moved aside, a new file begun, the sinks
  attached again, the operations repeated, and the damage kept for `damage`.
"""

import asyncio
import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from forwarder.errors import SpoolUnavailable, StateFolderError
from forwarder.events import Batch, encode
from forwarder.spool import schema, store
from forwarder.spool.base import Account, Damage, DeadLetter, Piece, PutResult, Settlement

T = TypeVar("T")

# Operations per transaction: bounds how long the first of a group waits for the last.
GROUP: Final = 256

# Events in one row. What is read is decoded whole, so a sink that takes a thousand at a time would decode a batch of
# ten thousand ten times over.
ROW: Final = 1000

# What passes, and what it is called. SQLite rolls back and goes on with the same connection.
MEANING: Final = {
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_READONLY: "the file or its filesystem is read-only",
    sqlite3.SQLITE_IOERR: "reading or writing the disk failed",
    sqlite3.SQLITE_CANTOPEN: "the file cannot be opened",
    sqlite3.SQLITE_BUSY: f"another process has kept it locked for {schema.BUSY_TIMEOUT:g} s",
}


@dataclass(slots=True)
class _Operation:
    run: Callable[[sqlite3.Connection], Any]
    writes: bool
    wakes: bool  # readers may find something new once it is committed
    future: asyncio.Future[Any]
    result: Any = None
    error: Exception | None = None


class SqliteSpool:
    """See `forwarder.spool.base.Spool`. `open` comes first; the constructor does no I/O.

    `max_bytes` bounds the encoded batches (the file is somewhat larger, and keeps its size for reuse), `max_age` is
    in seconds by the batches' own times, `max_dead_letters` counts per sink. `clock` gives ns UTC.

    `owner` is for the one process that holds the folder's StateLock: only it creates the file, and moves a damaged
    one aside, which would pull it from under another. Others find a damaged file unusable.
    """

    def __init__(  # noqa: PLR0913 - all but the path have a default
        self,
        path: Path,
        *,
        max_bytes: int = 512 * 1024 * 1024,
        max_age: float = 7 * 86400.0,
        max_dead_letters: int = 10_000,
        clock: Callable[[], int] = time.time_ns,
        owner: bool = True,
    ) -> None:
        self._path = path
        self._bounds = store.Bounds(max_bytes, int(max_age * 1e9), max_dead_letters)
        self._clock = clock
        self._owner = owner
        self._queue: queue.SimpleQueue[_Operation | None] = queue.SimpleQueue()
        self._wake: dict[str, asyncio.Event] = {}
        self._damage: deque[Damage] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None  # set while open
        self._stopped: futures.Future[None] = futures.Future()
        # The owner thread's alone:
        self._connection: sqlite3.Connection | None = None
        self._inode = 0
        self._sinks: Sequence[str] = ()

    async def open(self) -> None:
        """Open or create the file and start the thread. Raises StateFolderError; may then be called again."""
        if self._loop is not None:
            return
        self._loop = asyncio.get_running_loop()
        self._stopped = futures.Future()
        self._stopped.set_running_or_notify_cancel()
        threading.Thread(target=self._work, name="spool", daemon=True).start()
        try:
            await self._submit(lambda _: None)
        except SpoolUnavailable as error:
            await self.close()
            raise StateFolderError(str(error)) from None

    async def close(self) -> None:
        """Finish what is queued, write the log into the file, close it. Safe twice, and before `open`."""
        if self._loop is not None:
            self._loop = None
            self._queue.put(None)
        elif not self._stopped.running():
            return
        await asyncio.wrap_future(self._stopped)

    async def attach(self, sinks: Sequence[str]) -> None:
        await self._submit(partial(self._attach, sinks=tuple(sinks)), writes=True, wakes=True)

    def _attach(self, db: sqlite3.Connection, sinks: Sequence[str]) -> None:
        store.attach(db, sinks)
        self._sinks = sinks

    async def ping(self) -> None:
        """Return when the thread has come to it. Raises SpoolUnavailable, which is a sign of life too."""
        await self._submit(lambda _: None)

    def bound(self, *, max_bytes: int, max_age: float) -> None:
        """Other bounds, from the next `put` on."""
        self._bounds = store.Bounds(max_bytes, int(max_age * 1e9), self._bounds.max_dead_letters)

    async def put(self, batch: Batch | None, state: Mapping[str, bytes] | None = None) -> PutResult:
        """A task that is cancelled here does not know whether the batch was stored; it may have been."""
        # Encoded here, where failing to (text that is not Unicode) concerns nobody else.
        entries = [] if batch is None else [_entry(batch, at) for at in range(0, len(batch.events), ROW)]
        run = partial(store.put, entries=entries, state=dict(state or {}), now=self._clock(), bounds=self._bounds)
        return await self._submit(run, writes=True, wakes=True)

    async def state(self) -> dict[str, bytes]:
        return await self._submit(store.states)

    async def read(self, sink: str, *, max_events: int, max_bytes: int) -> list[Piece]:
        if max_events < 1:
            raise ValueError(f"max_events is {max_events}")
        # Cleared before the reading, so that a put which the reading just missed still wakes `wait`.
        wake = self._event(sink)
        wake.clear()
        while True:
            try:
                pieces = await self._submit(partial(store.read, sink=sink, max_events=max_events, max_bytes=max_bytes))
            except store.UnreadableError as error:
                await self._submit(partial(store.discard, seq=error.seq), writes=True)
                self._damage.append(Damage(f"batch {error.seq} was left out: {error}", ""))
                continue
            if pieces:
                wake.set()
            return pieces

    async def settle(self, sink: str, settlement: Settlement) -> None:
        """Events that a bound dropped after they were read stay dropped: of this settlement only those count that
        the sink still owns. Raises ValueError where the counts do not add up: a bug.
        """
        run = partial(store.settle, sink=sink, settlement=settlement, now=self._clock(), bounds=self._bounds)
        await self._submit(run, writes=True)

    async def wait(self, sink: str, timeout: float) -> None:
        """What another process puts or replays wakes nobody here; it is found after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._event(sink).wait()
        except TimeoutError:
            return

    async def accounts(self) -> list[Account]:
        return await self._submit(store.accounts)

    async def dead_letters(self, sink: str | None = None, *, limit: int = 100, after: int = 0) -> list[DeadLetter]:
        return await self._submit(partial(store.dead_letters, sink=sink, limit=limit, after=after))

    async def replay(self, sink: str, ids: Sequence[int] | None = None) -> int:
        run = partial(store.replay, sink=sink, ids=ids, now=self._clock())
        return await self._submit(run, writes=True, wakes=True)

    async def purge(self, sink: str, ids: Sequence[int] | None = None) -> int:
        return await self._submit(partial(store.purge, sink=sink, ids=ids), writes=True)

    async def damage(self) -> list[Damage]:
        """Also batches that could not be decoded: their `moved_to` is empty, their events are counted as dropped."""
        return [self._damage.popleft() for _ in range(len(self._damage))]

    def _event(self, sink: str) -> asyncio.Event:
        if sink not in self._wake:
            self._wake[sink] = asyncio.Event()
            self._wake[sink].set()  # nobody has looked yet
        return self._wake[sink]

    async def _submit(self, run: Callable[[sqlite3.Connection], T], *, writes: bool = False, wakes: bool = False) -> T:
        if self._loop is None:
            raise SpoolUnavailable(f"the spool {self._path} is not open")
        future: asyncio.Future[T] = self._loop.create_future()
        self._queue.put(_Operation(run, writes, wakes, future))
        return await future

    def _answer(self, group: Sequence[_Operation]) -> None:
        """In the event loop: hand out the results of a committed group."""
        for operation in group:
            if operation.error is None and operation.wakes:
                for wake in self._wake.values():
                    wake.set()
            if operation.future.cancelled():
                continue
            if operation.error is None:
                operation.future.set_result(operation.result)
            else:
                operation.future.set_exception(operation.error)

    # Everything below runs in the owner thread.

    def _work(self) -> None:
        group: list[_Operation | None] = []
        while None not in group:
            group = [self._queue.get()]
            while len(group) < GROUP and not self._queue.empty():
                group.append(self._queue.get())
            operations = [operation for operation in group if operation is not None]
            if operations:
                self._execute(operations)
                self._resolve(operations)
        self._disconnect()  # which writes the log into the file, if nobody else has it open
        self._stopped.set_result(None)

    def _resolve(self, group: Sequence[_Operation]) -> None:
        try:
            group[0].future.get_loop().call_soon_threadsafe(self._answer, group)
        except RuntimeError:
            return  # the loop is closed: nobody waits any more

    def _execute(self, group: Sequence[_Operation], *, replaced: bool = False) -> None:
        """Give each operation its result or its error."""
        try:
            self._transact(group)
        except Exception as caught:  # noqa: BLE001 - whatever it is, the callers wait for an answer
            error = caught
        else:
            return
        busy = isinstance(error, sqlite3.Error) and schema.code(error) == sqlite3.SQLITE_BUSY
        if not replaced and self._owner and self._moved_aside(error):
            self._execute(group, replaced=True)
        elif len(group) > 1 and not busy:
            for operation in group:
                self._execute([operation])
        else:
            for operation in group:
                operation.error = self._unavailable(error)

    def _transact(self, group: Sequence[_Operation]) -> None:
        db = self._connected()
        # Reading needs no write lock: it goes on while the disk is full or another process writes.
        db.execute("BEGIN IMMEDIATE" if any(operation.writes for operation in group) else "BEGIN")
        try:
            for operation in group:
                _run(db, operation)
            db.execute("COMMIT")
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            db = schema.connect(self._path, create=self._owner, clock=self._clock)
            try:
                if self._sinks:  # a new file in place of a damaged one knows none of them
                    db.execute("BEGIN IMMEDIATE")
                    store.attach(db, self._sinks)
                    db.execute("COMMIT")
                self._inode = self._path.stat().st_ino
            except BaseException:
                db.close()
                raise
            self._connection = db
        try:
            if self._path.stat().st_ino == self._inode:
                return self._connection
        except OSError as error:
            raise schema.DamagedError(f"the file is gone: {error.strerror}") from None
        # SQLite would go on writing to a file that nobody can find again.
        raise schema.DamagedError("the file was replaced while in use")

    def _moved_aside(self, error: Exception) -> bool:
        reason = schema.damage_in(error)
        if reason is None:
            return False
        try:
            # Renamed before it is closed: closing would write the log into a file that is evidence now.
            moved_to = schema.move_aside(self._path, self._clock())
        except OSError:
            return False
        finally:
            self._disconnect()
        self._damage.append(Damage(reason, moved_to))
        return True

    def _unavailable(self, error: Exception) -> Exception:
        if isinstance(error, StateFolderError):
            return SpoolUnavailable(str(error))
        meaning = MEANING.get(schema.code(error)) if isinstance(error, sqlite3.Error) else None
        if meaning is None and schema.damage_in(error) is None:
            return error  # a bug of ours
        reason = meaning or "it is damaged; the agent, when it next runs, moves it aside"
        return SpoolUnavailable(f"the spool {self._path} cannot be used now: {reason} ({error})")

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _entry(batch: Batch, at: int) -> store.Entry:
    events = batch.events[at : at + ROW]
    return store.Entry(batch.time, len(events), encode(Batch(batch.resource, batch.time, events)))


def _run(db: sqlite3.Connection, operation: _Operation) -> None:
    db.execute("SAVEPOINT operation")
    try:
        operation.result, operation.error = operation.run(db), None
    except store.UnreadableError as error:
        operation.error = error
    except Exception as error:
        if schema.damage_in(error) is not None or (isinstance(error, sqlite3.Error) and schema.code(error) in MEANING):
            raise  # SQLite may have ended the whole transaction
        # What cannot go wrong did. Damage shows like this too, so look; that takes a second per GB, and is rare.
        schema.check(db)
        operation.error = error
    if operation.error is not None:
        db.execute("ROLLBACK TO operation")
    db.execute("RELEASE operation")
