"""Engines that break the spool contract on purpose: a suite that they pass would be no suite."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from spool_stores import values

from forwarder.events import Batch
from forwarder.spool.base import Account, Damage, DeadLetter, Piece, PutResult, Settlement, Spool


class Honest:
    """A spool around a spool; the cheaters below override what they cheat at."""

    def __init__(self, spool: Spool) -> None:
        self.spool = spool

    async def attach(self, sinks: Sequence[str]) -> None:
        await self.spool.attach(sinks)

    async def put(self, batch: Batch | None, state: Mapping[str, bytes] | None = None) -> PutResult:
        return await self.spool.put(batch, state)

    async def state(self) -> dict[str, bytes]:
        return await self.spool.state()

    async def read(self, sink: str, *, max_events: int, max_bytes: int) -> list[Piece]:
        return await self.spool.read(sink, max_events=max_events, max_bytes=max_bytes)

    async def settle(self, sink: str, settlement: Settlement) -> None:
        await self.spool.settle(sink, settlement)

    async def wait(self, sink: str, timeout: float) -> None:
        await self.spool.wait(sink, timeout)

    async def accounts(self) -> list[Account]:
        return await self.spool.accounts()

    async def dead_letters(self, sink: str | None = None, *, limit: int = 100, after: int = 0) -> list[DeadLetter]:
        return await self.spool.dead_letters(sink, limit=limit, after=after)

    async def replay(self, sink: str, ids: Sequence[int] | None = None) -> int:
        return await self.spool.replay(sink, ids)

    async def purge(self, sink: str, ids: Sequence[int] | None = None) -> int:
        return await self.spool.purge(sink, ids)

    async def damage(self) -> list[Damage]:
        return await self.spool.damage()

    async def close(self) -> None:
        await self.spool.close()


class Hasty(Honest):
    """Says that a batch is stored before it is: writes it with the next call."""

    held: tuple[Batch | None, Mapping[str, bytes] | None] | None = None

    async def put(self, batch: Batch | None, state: Mapping[str, bytes] | None = None) -> PutResult:
        await self._flush()
        self.held = batch, state
        return PutResult()

    async def _flush(self) -> None:
        if self.held is not None:
            (batch, state), self.held = self.held, None
            await self.spool.put(batch, state)

    async def read(self, sink: str, *, max_events: int, max_bytes: int) -> list[Piece]:
        await self._flush()
        return await super().read(sink, max_events=max_events, max_bytes=max_bytes)

    async def accounts(self) -> list[Account]:
        await self._flush()
        return await super().accounts()


class Unordered(Honest):
    """Hands out the newest first."""

    async def read(self, sink: str, *, max_events: int, max_bytes: int) -> list[Piece]:
        return (await super().read(sink, max_events=max_events, max_bytes=max_bytes))[::-1]


class Flattering(Honest):
    """Counts everything as delivered."""

    async def settle(self, sink: str, settlement: Settlement) -> None:
        delivered = settlement.delivered + settlement.rejected + settlement.expired
        await super().settle(sink, Settlement(settlement.upto, delivered))


class Silent(Honest):
    """Leaves out of the ledger what a bound dropped."""

    async def accounts(self) -> list[Account]:
        return [replace(one, accepted=one.accepted - one.dropped, dropped=0) for one in await super().accounts()]


class Amnesiac(Honest):
    """Moves the position, and forgets the state that came with it."""

    async def settle(self, sink: str, settlement: Settlement) -> None:
        await super().settle(sink, replace(settlement, state={}))


class Shared(Honest):
    """Has one position for all sinks."""

    async def settle(self, sink: str, settlement: Settlement) -> None:
        await super().settle(sink, settlement)
        for one in await super().accounts():
            await super().settle(one.sink, settlement)


class Consuming(Honest):
    """Settles what it hands out."""

    async def read(self, sink: str, *, max_events: int, max_bytes: int) -> list[Piece]:
        pieces = await super().read(sink, max_events=max_events, max_bytes=max_bytes)
        if pieces:
            await self.spool.settle(sink, Settlement(pieces[-1].end, len(values(pieces))))
        return pieces
