"""The spool contract. tests/test_spool_contract.py holds every engine to it; tests/test_spool_model.py attacks it.

The spool stores each batch once, however many sinks want it, and keeps one position per sink. A batch goes when the
last sink has settled it, or when a bound (bytes, age) forces the oldest out, which is counted. Beside the batches it
keeps small named states, written in the same transaction as the batch or the settlement that caused them.

Promises:

- when `put` returns, batch and state are on disk; when it raises SpoolUnavailable, neither is;
- after a crash nothing put is lost, and what was read but not settled is read again;
- each sink reads events in the order of `put`; one sink's position moves no other's;
- the ledger adds up for every sink at every moment: accepted = delivered + pending + rejected + expired + dropped,
  where pending is counted from what is stored, not derived from the other columns;
- a sink that leaves the configuration keeps its position and its backlog (within the bounds) and goes on when
  it comes back; a sink seen for the first time starts with the batches put from then on;
- a damaged store is moved aside, reported by `damage`, and replaced by an empty one: never a crash, never silence;
- several processes may use one store (the agent, and `litellm-forwarder spool`).

All calls are safe from any task of one event loop. Blocking work happens in the engine's own thread.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from forwarder.events import Batch


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """`index` events of batch `batch` are behind, and all of every batch before it."""

    batch: int = 0
    index: int = 0


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive events of one stored batch. `start` is the position of the first, `end` the one past the last."""

    start: Position
    end: Position
    batch: Batch
    size: int  # bytes as stored; of a part of a batch, in proportion


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One event that a sink will never take. `time` is when it was buried (ns UTC)."""

    id: int
    sink: str
    time: int
    reason: str
    batch: Batch  # of exactly one event


@dataclass(frozen=True, slots=True)
class Burial:
    """A dead letter to be written by `settle`."""

    batch: Batch
    reason: str


@dataclass(frozen=True, slots=True)
class Settlement:
    """What became of the events between a sink's position and `upto`. The counts must add up to their number.

    `state`: as in `put`, stored in the same step, and also where the rest does nothing.
    """

    upto: Position
    delivered: int = 0
    rejected: int = 0  # refused for good: by the backend inside a Delivered, or buried
    expired: int = 0  # older than the sink's age limit when their turn came
    dead: Sequence[Burial] = ()
    state: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Account:
    """One sink's ledger, in events."""

    sink: str
    attached: bool  # in the configuration now
    accepted: int = 0
    delivered: int = 0
    pending: int = 0
    rejected: int = 0
    expired: int = 0
    dropped: int = 0
    dead_letters: int = 0  # kept now
    oldest_pending: int | None = None  # ns UTC

    @property
    def adds_up(self) -> bool:
        return self.accepted == self.delivered + self.pending + self.rejected + self.expired + self.dropped


@dataclass(frozen=True, slots=True)
class Damage:
    """A store that could not be read was moved to `moved_to`; how much was in it is unknown."""

    reason: str
    moved_to: str


@dataclass(frozen=True, slots=True)
class PutResult:
    """`dropped`: events that made way for this batch, by sink."""

    dropped: Mapping[str, int] = field(default_factory=dict)


class Spool(Protocol):
    async def attach(self, sinks: Sequence[str]) -> None:
        """Declare the configured sinks, before anything is put."""
        ...

    async def put(self, batch: Batch | None, state: Mapping[str, bytes] | None = None) -> PutResult:
        """Store a batch for every attached sink, and states, in one durable step. Raises SpoolUnavailable.

        `batch=None` (or one without events) stores only the states. An empty value removes a state.
        """
        ...

    async def state(self) -> dict[str, bytes]: ...

    async def read(self, sink: str, *, max_events: int, max_bytes: int) -> list[Piece]:
        """The sink's next events, oldest first, from its position: at least one if any are pending, else none.

        Reads only; the same is read again until it is settled. Batches are cut where `max_events` demands it;
        `max_bytes` may be exceeded by one piece.
        """
        ...

    async def settle(self, sink: str, settlement: Settlement) -> None:
        """Move the sink's position, count, and bury, in one durable step. Raises SpoolUnavailable (nothing happened).

        A settlement at or before the position does nothing (it was made before; or a bound has dropped the batches)
        but store its state.
        """
        ...

    async def wait(self, sink: str, timeout: float) -> None:
        """Return when the sink may have something to read, or after `timeout` seconds."""
        ...

    async def accounts(self) -> list[Account]: ...

    async def dead_letters(self, sink: str | None = None, *, limit: int = 100, after: int = 0) -> list[DeadLetter]: ...

    async def replay(self, sink: str, ids: Sequence[int] | None = None) -> int:
        """Put dead letters back in that sink's queue alone (all of them if `ids` is None); how many. They count as
        pending again instead of rejected.
        """
        ...

    async def purge(self, sink: str, ids: Sequence[int] | None = None) -> int:
        """Forget dead letters; how many. They stay counted as rejected."""
        ...

    async def damage(self) -> list[Damage]:
        """What was found damaged since the last call."""
        ...

    async def close(self) -> None: ...
