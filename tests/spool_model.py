"""What a spool should hold, in plain lists: the oracle of test_spool_model.py. No positions, no SQL, no bytes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from spool_stores import SECOND


@dataclass
class Stored:
    """A batch. `wanted`: for each sink that ever owned it, the events it has not settled (empty: done with it)."""

    key: int
    time: int
    size: int
    values: list[float]
    only_sink: str | None
    wanted: dict[str, list[float]]


@dataclass
class Sink:
    attached: bool = True
    seen: int = 0  # the key of the last batch it settled any of, or that was there before it
    accepted: int = 0
    delivered: int = 0
    rejected: int = 0
    expired: int = 0
    dropped: int = 0
    dead: list[float] = field(default_factory=list)


class Model:
    def __init__(self, clock: Callable[[], int], *, max_bytes: int, max_age: float, max_dead_letters: int) -> None:
        self.clock = clock
        self.max_bytes, self.max_age, self.max_dead_letters = max_bytes, int(max_age * SECOND), max_dead_letters
        self.stored: list[Stored] = []
        self.sinks: dict[str, Sink] = {}
        self.states: dict[str, bytes] = {}
        self.last = 0

    def attach(self, names: Sequence[str]) -> None:
        for name, sink in self.sinks.items():
            sink.attached, was = name in names, sink.attached
            if sink.attached and not was:
                for batch in self.stored:
                    if batch.key > sink.seen and batch.only_sink is None and name not in batch.wanted:
                        batch.wanted[name] = list(batch.values)
                        sink.accepted += len(batch.values)
        for name in names:
            self.sinks.setdefault(name, Sink(seen=self.last))

    def put(self, values: list[float], time: int, size: int) -> dict[str, int]:
        """What was dropped, by sink."""
        dropped: dict[str, int] = {}
        takers = [name for name, sink in self.sinks.items() if sink.attached]
        if values:
            for name in takers:
                self.sinks[name].accepted += len(values)
            if size > self.max_bytes:
                for name in takers:
                    self._lose(name, len(values), dropped)
            elif takers:
                self._store(values, time, size, None, takers)
        while self.stored and (
            sum(batch.size for batch in self.stored) > self.max_bytes
            or self.stored[0].time < self.clock() - self.max_age
        ):
            for name, left in self.stored.pop(0).wanted.items():
                if left:
                    self._lose(name, len(left), dropped)
        return dropped

    def _store(self, values: list[float], time: int, size: int, only_sink: str | None, takers: Sequence[str]) -> None:
        self.last += 1
        self.stored.append(Stored(self.last, time, size, values, only_sink, {name: list(values) for name in takers}))

    def _lose(self, name: str, count: int, dropped: dict[str, int]) -> None:
        self.sinks[name].dropped += count
        dropped[name] = dropped.get(name, 0) + count

    def pending(self, name: str) -> list[float]:
        return [value for batch in self.stored for value in batch.wanted.get(name, [])]

    def settle(self, name: str, values: Sequence[float], fates: tuple[int, int, int], dead: Sequence[float]) -> None:
        """`values` were read and met `fates` (delivered, rejected, expired); some may have been dropped since."""
        sink, owned = self.sinks[name], 0
        for batch in self.stored:
            left = batch.wanted.get(name, [])
            taken = [value for value in left if value in values]
            if taken:
                owned += len(taken)
                batch.wanted[name] = left[len(taken) :]
                sink.seen = batch.key
        self.stored = [batch for batch in self.stored if any(batch.wanted.values())]
        if not owned:
            return
        delivered, rejected, expired = fates
        for _ in range(len(values) - owned):
            if expired:
                expired -= 1
            elif delivered:
                delivered -= 1
            else:
                rejected -= 1
        sink.delivered += delivered
        sink.rejected += rejected
        sink.expired += expired
        kept = list(dead)[-rejected:] if rejected else []
        sink.dead = (sink.dead + kept)[-self.max_dead_letters :]

    def replay(self, name: str, values: Sequence[float], size: Callable[[float], int]) -> None:
        sink = self.sinks[name]
        for value in sorted(values, key=sink.dead.index):
            sink.dead.remove(value)
            sink.rejected -= 1
            self._store([value], self.clock(), size(value), name, [name])

    def purge(self, name: str, values: Sequence[float]) -> None:
        for value in values:
            self.sinks[name].dead.remove(value)
