"""What the spool tests share: a clock, batches that can be told apart, and stores that can be crashed and reopened.

A `Store` is a place where one spool lives. A new engine adds its own Store here, and the suites run over it too.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from forwarder.events import Batch, Metric, Resource
from forwarder.spool.base import Account, Burial, DeadLetter, Piece, Settlement, Spool
from forwarder.spool.sqlite import SqliteSpool

SECOND = 1_000_000_000
START = 1_750_000_000 * SECOND
FOREVER = 10.0**9


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> int:
        return self.now

    def tick(self, seconds: float) -> None:
        self.now += int(seconds * SECOND)


class Store(Protocol):
    """`clock` is what its spools go by. `open` opens what is stored, anew after a crash or a close."""

    clock: Clock

    async def open(
        self, *, max_bytes: int = 10_000_000, max_age: float = FOREVER, max_dead_letters: int = 1000
    ) -> Spool: ...

    async def second(self) -> Spool:
        """Another process's view of the same store, while the first is open."""
        ...

    async def crash(self) -> None:
        """End the process that has it open, as the kernel would: nothing more is written."""
        ...

    async def close(self) -> None: ...


class SqliteStore:
    def __init__(self, folder: Path, engine: Callable[..., Spool] = SqliteSpool) -> None:
        self.clock = Clock()
        self._folder = folder
        self._generation = 0
        self._engine = engine
        self._open: list[Spool] = []

    @property
    def path(self) -> Path:
        return self._folder / str(self._generation) / "spool.db"

    async def open(
        self, *, max_bytes: int = 10_000_000, max_age: float = FOREVER, max_dead_letters: int = 1000
    ) -> Spool:
        spool = SqliteSpool(
            self.path, max_bytes=max_bytes, max_age=max_age, max_dead_letters=max_dead_letters, clock=self.clock
        )
        await spool.open()
        self._open.append(spool)
        return spool if self._engine is SqliteSpool else self._engine(spool)

    async def second(self) -> Spool:
        spool = SqliteSpool(self.path, clock=self.clock, owner=False)
        await spool.open()
        self._open.append(spool)
        return spool

    async def crash(self) -> None:
        """Go on with a copy of the files as they are on disk now; what the old process does is no longer seen."""
        before = self.path.parent
        self._generation += 1
        self.path.parent.mkdir()
        for name in ("spool.db", "spool.db-wal"):
            if (before / name).exists():
                shutil.copyfile(before / name, self.path.parent / name)
        await self.close()

    async def close(self) -> None:
        while self._open:
            await self._open.pop().close()


async def engine(store: SqliteStore) -> SqliteSpool:
    """The SQLite spool itself, open, with one sink called "a"."""
    spool = await store.open()
    assert isinstance(spool, SqliteSpool)
    await spool.attach(["a"])
    return spool


def batch(*values: float, time: int = START, note: str = "") -> Batch:
    """One event per value, by which a test knows it again; `note` makes it longer."""
    attributes: dict[str, str | int] = {"note": note} if note else {}
    events = tuple(Metric("litellm.up", "gauge", "1", time, float(value), attributes) for value in values)
    return Batch(Resource({"target": "eu"}), time, events)


def values(pieces: Sequence[Piece]) -> list[float]:
    return [value for piece in pieces for value in numbers(piece.batch)]


def numbers(batch: Batch) -> list[float]:
    return [event.value for event in batch.events if isinstance(event, Metric) and event.value is not None]


async def pending(spool: Spool, sink: str) -> list[float]:
    return values(await spool.read(sink, max_events=100_000, max_bytes=10**9))


async def drain(spool: Spool, sink: str) -> list[float]:
    """Deliver everything, and say what it was."""
    taken: list[float] = []
    while pieces := await spool.read(sink, max_events=7, max_bytes=100_000):
        found = values(pieces)
        await spool.settle(sink, Settlement(pieces[-1].end, delivered=len(found)))
        taken += found
    return taken


async def account(spool: Spool, sink: str) -> Account:
    (found,) = [one for one in await spool.accounts() if one.sink == sink]
    assert found.adds_up, found
    return found


async def read(spool: Spool, sink: str = "a", *, max_events: int = 1000, max_bytes: int = 10**6) -> list[Piece]:
    return await spool.read(sink, max_events=max_events, max_bytes=max_bytes)


async def bury(spool: Spool, *refused: float, sink: str = "a") -> None:
    """Put one event per number and have `sink`, which has nothing else pending, refuse each of them."""
    await spool.put(batch(*refused))
    (piece,) = await read(spool, sink)
    dead = [Burial(batch(number), f"refused {number:g}") for number in values([piece])]
    await spool.settle(sink, Settlement(piece.end, rejected=len(dead), dead=dead))


async def letters(spool: Spool, sink: str | None = None) -> list[DeadLetter]:
    return await spool.dead_letters(sink)
