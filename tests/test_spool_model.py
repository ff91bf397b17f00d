"""The spool against a simple model, through any sequence of calls, bounds, restarts and crashes."""

import asyncio
import tempfile
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from spool_model import Model
from spool_stores import SqliteStore, batch, numbers, values

from forwarder.events import encode
from forwarder.spool.base import Account, Burial, Piece, Settlement, Spool

T = TypeVar("T")
SINKS = st.sampled_from(["a", "b", "c"])
MAX_BYTES, MAX_AGE, MAX_DEAD = 900, 100.0, 4


class SpoolMachine(RuleBasedStateMachine):
    """Every event has a value of its own, so that what is read says exactly what is there."""

    spool: Spool

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory(prefix="spool-model-")
        self.store = SqliteStore(Path(self.folder.name))
        self.model = Model(self.store.clock, max_bytes=MAX_BYTES, max_age=MAX_AGE, max_dead_letters=MAX_DEAD)
        self.next = 0.0
        self.reading: dict[str, list[Piece]] = {}  # read, and not settled yet, by sink

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(call)

    def teardown(self) -> None:
        self.run(self.store.close())
        self.runner.close()
        self.folder.cleanup()

    @initialize()
    def start(self) -> None:
        self.reopen()
        self.attach({"a", "b"})

    def reopen(self) -> None:
        self.reading.clear()
        self.spool = self.run(self.store.open(max_bytes=MAX_BYTES, max_age=MAX_AGE, max_dead_letters=MAX_DEAD))

    @rule(names=st.sets(SINKS))
    def attach(self, names: set[str]) -> None:
        # The agent stops a sink's pump before it leaves or returns: nothing read before is settled after.
        self.reading.clear()
        self.run(self.spool.attach(sorted(names)))
        self.model.attach(sorted(names))

    @rule(counts=st.lists(st.integers(0, 5), min_size=1, max_size=4), age=st.sampled_from([0.0, 0.0, 30.0, 101.0]))
    def put(self, counts: list[int], age: float) -> None:
        """Several at once share a transaction; they are stored in their order all the same."""
        batches = []
        for count in counts:
            time = self.store.clock.now - int(age * 10**9)
            batches.append(batch(*(self.next + number for number in range(count)), time=time))
            self.next += count

        async def together() -> list[dict[str, int]]:
            results = await asyncio.gather(*(self.spool.put(one) for one in batches))
            return [dict(result.dropped) for result in results]

        expected = [self.model.put(numbers(one), one.time, len(encode(one))) for one in batches]
        assert self.run(together()) == expected

    @rule(long=st.booleans())
    def put_too_big(self, long: bool) -> None:
        one = batch(self.next, note="x" * (MAX_BYTES if long else MAX_BYTES // 2), time=self.store.clock.now)
        self.next += 1
        dropped = self.run(self.spool.put(one)).dropped
        assert dropped == self.model.put(numbers(one), one.time, len(encode(one)))

    @rule(name=st.sampled_from("xy"), value=st.sampled_from([b"", b"1", b"2"]))
    def put_state(self, name: str, value: bytes) -> None:
        dropped = self.run(self.spool.put(None, {name: value})).dropped
        self.model.states.pop(name, None)
        if value:
            self.model.states[name] = value
        assert dropped == self.model.put([], 0, 0)

    @rule(seconds=st.sampled_from([1.0, 20.0, 60.0]))
    def tick(self, seconds: float) -> None:
        self.store.clock.tick(seconds)

    @rule(sink=SINKS, max_events=st.integers(1, 12), max_bytes=st.sampled_from([1, 300, 10**6]))
    def read(self, sink: str, max_events: int, max_bytes: int) -> None:
        pieces = self.run(self.spool.read(sink, max_events=max_events, max_bytes=max_bytes))
        expected = self.model.pending(sink)
        found = values(pieces)
        assert found == expected[: len(found)]
        assert bool(found) == bool(expected)
        assert len(found) <= max_events
        assert len(pieces) <= 1 or sum(piece.size for piece in pieces) <= max_bytes
        if max_bytes == 10**6:
            assert len(found) == min(max_events, len(expected))
        self.reading[sink] = pieces

    @precondition(lambda self: any(self.reading.values()))
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        """All of what was read or the first part of it, now or after other things have happened."""
        sink = data.draw(st.sampled_from(sorted(name for name, pieces in self.reading.items() if pieces)))
        pieces = self.reading.pop(sink)
        found = values(pieces)
        count = data.draw(st.integers(1, len(found)))
        delivered = data.draw(st.integers(0, count))
        rejected = data.draw(st.integers(0, count - delivered))
        dead = found[:count][data.draw(st.integers(0, count - rejected)) :][:rejected]
        dead = dead[: data.draw(st.integers(0, len(dead)))]
        fates = (delivered, rejected, count - delivered - rejected)
        burials = [Burial(batch(value), "no") for value in dead]
        upto = next(piece.end for piece in pieces if (count := count - len(piece.batch.events)) <= 0)
        state = {sink: str(upto).encode()}
        settlement = Settlement(replace(upto, index=upto.index + count), *fates, burials, state)
        self.run(self.spool.settle(sink, settlement))
        self.model.states |= state
        self.model.settle(sink, found[: sum(fates)], fates, dead)
        self.run(self.spool.settle(sink, settlement))  # a second time does nothing

    @precondition(lambda self: any(sink.dead for sink in self.model.sinks.values()))
    @rule(data=st.data(), forget=st.booleans(), everything=st.booleans())
    def replay_or_purge(self, data: st.DataObject, forget: bool, everything: bool) -> None:
        name = data.draw(st.sampled_from(sorted(name for name, sink in self.model.sinks.items() if sink.dead)))
        chosen = list(self.model.sinks[name].dead)
        if not everything:
            chosen = data.draw(st.lists(st.sampled_from(chosen), unique=True))
        known = {numbers(letter.batch)[0]: letter.id for letter in self.run(self.spool.dead_letters(name))}
        ids = None if everything else [known[value] for value in chosen]
        call = self.spool.purge if forget else self.spool.replay
        assert self.run(call(name, ids)) == len(chosen)
        if forget:
            self.model.purge(name, chosen)
        else:
            self.model.replay(name, chosen, lambda value: len(encode(batch(value))))

    @rule()
    def crash(self) -> None:
        self.run(self.store.crash())
        self.reopen()

    @rule()
    def restart(self) -> None:
        self.run(self.store.close())
        self.reopen()

    @invariant()
    def agrees(self) -> None:
        if not self.model.sinks:
            return
        accounts = self.run(self.spool.accounts())
        assert all(account.adds_up for account in accounts)
        assert accounts == [self.expected(name) for name in sorted(self.model.sinks)]
        for name, sink in self.model.sinks.items():
            pieces = self.run(self.spool.read(name, max_events=10**6, max_bytes=10**9))
            assert values(pieces) == self.model.pending(name)
            letters = self.run(self.spool.dead_letters(name))
            assert [numbers(letter.batch) for letter in letters] == [[value] for value in sink.dead]
        assert self.run(self.spool.state()) == self.model.states
        assert self.run(self.spool.damage()) == []

    def expected(self, name: str) -> Account:
        sink = self.model.sinks[name]
        waiting = [one for one in self.model.stored if one.wanted.get(name)]
        return Account(
            name,
            sink.attached,
            accepted=sink.accepted,
            delivered=sink.delivered,
            pending=len(self.model.pending(name)),
            rejected=sink.rejected,
            expired=sink.expired,
            dropped=sink.dropped,
            dead_letters=len(sink.dead),
            oldest_pending=min((one.time for one in waiting), default=None),
        )


SpoolMachine.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,  # fsync takes what it takes
    suppress_health_check=[HealthCheck.too_slow],
)
test_spool_and_model_agree = SpoolMachine.TestCase
