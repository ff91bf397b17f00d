"""Checks of the spool contract: what becomes of events, and that all of it is counted.

Each takes a store that it may open, crash and reopen; its docstring is the promise.
"""

from dataclasses import replace

import pytest
from spool_stores import SECOND, START, Store, account, batch, bury, drain, letters, numbers, pending, read

from forwarder.events import encode
from forwarder.spool.base import Account, Burial, Position, PutResult, Settlement


async def check_every_fate_is_counted(store: Store) -> None:
    """The ledger says what became of each event, and adds up."""
    spool = await store.open()
    await spool.attach(["a"])
    await spool.put(batch(1, 2, 3, 4, 5, 6, 7, time=START + 5))
    await spool.put(batch(8, 9, time=START + 9))
    first, _ = await read(spool)
    settlement = Settlement(first.end, delivered=2, rejected=3, expired=2, dead=[Burial(batch(4), "no")])
    await spool.settle("a", settlement)
    assert await account(spool, "a") == Account(
        "a", True, accepted=9, delivered=2, pending=2, rejected=3, expired=2, dead_letters=1, oldest_pending=START + 9
    )


async def check_a_stale_settlement_does_nothing(store: Store) -> None:
    """A settlement that was made before is not counted twice, even after a crash."""
    spool = await store.open()
    await spool.attach(["a"])
    await spool.put(batch(1, 2))
    await spool.put(batch(3))
    first, second = await read(spool)
    for _ in range(2):
        await spool.settle("a", Settlement(first.end, delivered=2))
        await store.crash()
        spool = await store.open()
    await spool.settle("a", Settlement(replace(first.end, index=1), rejected=1, dead=[Burial(batch(1), "late")]))
    await spool.settle("a", Settlement(second.end, delivered=1))
    assert await account(spool, "a") == Account("a", True, accepted=3, delivered=3)


async def check_a_settlement_stores_state(store: Store) -> None:
    """What a sink remembers is on disk with its position, also where the position stays; a bug stores neither."""
    spool = await store.open()
    await spool.attach(["a"])
    await spool.put(batch(1, 2), {"other": b"0"})
    (piece,) = await read(spool)
    with pytest.raises(ValueError, match="settled"):
        await spool.settle("a", Settlement(piece.end, delivered=3, state={"memo": b"wrong"}))
    assert await spool.state() == {"other": b"0"}
    await spool.settle("a", Settlement(piece.end, delivered=2, state={"memo": b"1"}))
    await store.crash()
    spool = await store.open()
    assert await spool.state() == {"other": b"0", "memo": b"1"}
    assert (await account(spool, "a")).delivered == 2
    for nothing, memo in ((Position(), b"2"), (piece.end, b"3")):
        await spool.settle("a", Settlement(nothing, state={"memo": memo}))
        assert (await spool.state())["memo"] == memo
    await spool.settle("a", Settlement(Position(), state={"memo": b""}))
    await store.crash()
    spool = await store.open()
    assert await spool.state() == {"other": b"0"}
    assert await account(spool, "a") == Account("a", True, accepted=2, delivered=2)


async def check_wrong_counts_are_a_bug(store: Store) -> None:
    """A settlement whose counts do not add up raises ValueError and changes nothing."""
    spool = await store.open()
    await spool.attach(["a"])
    await spool.put(batch(1, 2, 3))
    (piece,) = await read(spool)
    for wrong in (
        Settlement(piece.end, delivered=2),
        Settlement(piece.end, delivered=4),
        Settlement(piece.end),
        Settlement(piece.end, delivered=4, rejected=-1),
        Settlement(piece.end, delivered=2, rejected=1, dead=[Burial(batch(1), ""), Burial(batch(2), "")]),
        Settlement(piece.end, delivered=2, rejected=1, dead=[Burial(batch(1, 2), "")]),
        Settlement(Position(piece.end.batch, 4), delivered=4),
        Settlement(Position(piece.end.batch + 100, 0), delivered=3),
    ):
        with pytest.raises(ValueError, match=r"."):
            await spool.settle("a", wrong)
    with pytest.raises(ValueError, match="nobody"):
        await spool.settle("nobody", Settlement(piece.end, delivered=3))
    assert await account(spool, "a") == Account("a", True, accepted=3, pending=3, oldest_pending=START)


async def check_bytes_are_bounded(store: Store) -> None:
    """The oldest makes way, and is counted for each sink that had not settled it, and for no other."""
    size = len(encode(batch(1, 2)))
    spool = await store.open(max_bytes=3 * size)
    await spool.attach(["a", "b", "done"])
    for number in range(0, 6, 2):
        assert await spool.put(batch(number, number + 1)) == PutResult()
    assert await drain(spool, "done") == [0, 1, 2, 3, 4, 5]
    (piece,) = await read(spool, "b", max_events=1)
    await spool.settle("b", Settlement(piece.end, delivered=1))
    assert await spool.put(batch(6, 7)) == PutResult({"a": 2, "b": 1})
    assert await pending(spool, "a") == [2, 3, 4, 5, 6, 7]
    assert await pending(spool, "b") == [2, 3, 4, 5, 6, 7]
    assert await pending(spool, "done") == [6, 7]
    assert (await account(spool, "a")).dropped == 2
    assert (await account(spool, "b")).dropped == 1
    assert (await account(spool, "done")).dropped == 0


async def check_age_is_bounded(store: Store) -> None:
    """A batch older than `max_age` is dropped and counted, by the next put, with or without events."""
    spool = await store.open(max_age=60)
    await spool.attach(["a"])
    await spool.put(batch(1, time=store.clock.now))
    store.clock.tick(30)
    await spool.put(batch(2, time=store.clock.now))
    store.clock.tick(30)
    assert await spool.put(None) == PutResult()
    store.clock.tick(1)
    assert await spool.put(None, {"s": b"1"}) == PutResult({"a": 1})
    assert await pending(spool, "a") == [2]
    assert (await account(spool, "a")).oldest_pending == START + 30 * SECOND


async def check_a_batch_too_big_for_the_spool(store: Store) -> None:
    """It is dropped and counted itself; what is stored stays, and the state is stored."""
    spool = await store.open(max_bytes=500)
    await spool.attach(["a", "b"])
    await spool.put(batch(1))
    assert await spool.put(batch(2, 3, note="x" * 500), {"s": b"1"}) == PutResult({"a": 2, "b": 2})
    assert await pending(spool, "a") == [1]
    assert await account(spool, "b") == Account("b", True, accepted=3, pending=1, dropped=2, oldest_pending=START)
    assert await spool.state() == {"s": b"1"}


async def check_dropped_while_being_delivered(store: Store) -> None:
    """What a bound dropped after it was read stays dropped; settling it counts the rest alone."""
    size = len(encode(batch(1, 2)))
    spool = await store.open(max_bytes=3 * size)
    await spool.attach(["a"])
    for number in range(0, 6, 2):
        await spool.put(batch(number, number + 1))
    first, second, third = await read(spool)
    assert await spool.put(batch(6, 7)) == PutResult({"a": 2})
    await spool.settle("a", Settlement(first.end, delivered=2))
    assert (await account(spool, "a")).delivered == 0
    assert await spool.put(batch(8, 9)) == PutResult({"a": 2})
    with pytest.raises(ValueError, match="settled"):
        await spool.settle("a", Settlement(third.end, delivered=7))
    await spool.settle("a", Settlement(third.end, delivered=4))
    assert await account(spool, "a") == Account(
        "a", True, accepted=10, delivered=2, pending=4, dropped=4, oldest_pending=START
    )
    # From here on nothing was dropped, so that nothing is forgiven.
    (fourth, _) = await read(spool)
    with pytest.raises(ValueError, match="settled"):
        await spool.settle("a", Settlement(fourth.end, delivered=3))
    assert second.end < third.end


async def check_buried_while_being_dropped(store: Store) -> None:
    """There are never more dead letters than rejected events, so replaying them cannot make the ledger negative."""
    size = len(encode(batch(1, 2)))
    spool = await store.open(max_bytes=2 * size)
    await spool.attach(["a"])
    await spool.put(batch(1, 2))
    await spool.put(batch(3, 4))
    pieces = await read(spool)
    await spool.put(batch(5, 6))
    dead = [Burial(batch(number), "no") for number in (1, 2, 3, 4)]
    await spool.settle("a", Settlement(pieces[-1].end, rejected=4, dead=dead))
    assert [numbers(letter.batch) for letter in await letters(spool)] == [[3], [4]]
    assert await spool.replay("a") == 2
    assert await account(spool, "a") == Account("a", True, accepted=6, pending=4, dropped=2, oldest_pending=START)


async def check_dead_letters(store: Store) -> None:
    """They are kept with sink, time and reason, through a crash, and listed page by page."""
    spool = await store.open()
    await spool.attach(["a", "b"])
    store.clock.tick(5)
    await bury(spool, 1, 2, 3)
    assert await drain(spool, "b") == [1, 2, 3]
    await bury(spool, 4, sink="b")
    await store.crash()
    spool = await store.open()
    first = await spool.dead_letters("a", limit=2)
    assert [(letter.sink, letter.time, letter.reason) for letter in first] == [
        ("a", START + 5 * SECOND, "refused 1"),
        ("a", START + 5 * SECOND, "refused 2"),
    ]
    assert first[0].batch == batch(1)
    rest = await spool.dead_letters(limit=10, after=first[-1].id)
    assert [letter.reason for letter in rest] == ["refused 3", "refused 4"]
    assert (await account(spool, "a")).dead_letters == 3


async def check_replay_is_for_one_sink(store: Store) -> None:
    """Replayed events are pending again instead of rejected, for that sink alone, after what it has waiting."""
    spool = await store.open()
    await spool.attach(["a", "b"])
    await bury(spool, 1, 2, 3)
    await spool.put(batch(4))
    before = await account(spool, "b")
    number = (await letters(spool))[1].id
    assert await spool.replay("a", [number, number, 10**6]) == 1
    assert await spool.replay("b") == 0
    assert await pending(spool, "a") == [4, 2]
    assert await spool.replay("a") == 2
    assert await letters(spool) == []
    ledger = await account(spool, "a")
    assert (ledger.rejected, ledger.pending, ledger.accepted) == (0, 4, 4)
    await store.crash()
    spool = await store.open()
    assert await account(spool, "b") == before
    assert await drain(spool, "b") == [1, 2, 3, 4]
    assert await drain(spool, "a") == [4, 2, 1, 3]
    assert (await account(spool, "a")).delivered == 4


async def check_replay_while_away(store: Store) -> None:
    """A sink that is not configured may be given its dead letters back; it finds them when it returns."""
    spool = await store.open()
    await spool.attach(["a", "b"])
    await bury(spool, 1)
    await spool.attach(["b"])
    await spool.put(batch(2))
    assert await spool.replay("a") == 1
    assert await pending(spool, "a") == [1]
    await spool.attach(["a", "b"])
    assert await pending(spool, "a") == [2, 1]
    assert await drain(spool, "b") == [1, 2]
    assert await drain(spool, "a") == [2, 1]
    assert (await account(spool, "a")).accepted == 2


async def check_purge(store: Store) -> None:
    """Purged letters are forgotten and stay counted as rejected."""
    spool = await store.open()
    await spool.attach(["a"])
    await bury(spool, 1, 2, 3)
    number = (await letters(spool))[0].id
    assert await spool.purge("a", [number]) == 1
    assert await spool.purge("b") == 0
    assert await spool.purge("a") == 2
    assert await spool.replay("a") == 0
    assert await account(spool, "a") == Account("a", True, accepted=3, rejected=3)


async def check_dead_letters_are_bounded(store: Store) -> None:
    """Past the limit the oldest of that sink are forgotten; they stay counted."""
    spool = await store.open(max_dead_letters=2)
    await spool.attach(["a", "b"])
    await bury(spool, 1, 2, 3)
    await bury(spool, 4)
    assert await drain(spool, "b") == [1, 2, 3, 4]
    await bury(spool, 5, sink="b")
    assert [letter.reason for letter in await letters(spool)] == ["refused 3", "refused 4", "refused 5"]
    assert (await account(spool, "a")).rejected == 4
