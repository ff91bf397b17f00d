"""Checks of the spool contract: durability, reading, sinks that come and go, waiting, closing.

Each takes a store that it may open, crash and reopen; its docstring is the promise.
"""

import asyncio
from dataclasses import replace

import pytest
from spool_stores import START, Store, account, batch, bury, drain, letters, pending, read, values

from forwarder.errors import SpoolUnavailable
from forwarder.events import encode
from forwarder.spool.base import Account, Burial, PutResult, Settlement

LATE = 30.0  # seconds a test waits for what should come at once


async def check_put_survives_a_crash(store: Store) -> None:
    """When `put` returns, batch and state are on disk."""
    spool = await store.open()
    await spool.attach(["a"])
    original = batch(1, 2, 3)
    await spool.put(original, {"verdict": b"up"})
    await store.crash()
    spool = await store.open()
    await spool.attach(["a"])
    assert [piece.batch for piece in await read(spool)] == [original]
    assert await spool.state() == {"verdict": b"up"}
    assert (await account(spool, "a")).accepted == 3


async def check_unsettled_is_read_again(store: Store) -> None:
    """Reading changes nothing: the same is read again, and again after a crash, until it is settled."""
    spool = await store.open()
    await spool.attach(["a"])
    await spool.put(batch(1, 2))
    first = await read(spool)
    assert await read(spool) == first
    await store.crash()
    spool = await store.open()
    await spool.attach(["a"])
    assert await read(spool) == first
    await spool.settle("a", Settlement(first[-1].end, delivered=2))
    assert await read(spool) == []
    await store.crash()
    spool = await store.open()
    assert await read(spool) == []
    assert (await account(spool, "a")).delivered == 2


async def check_order(store: Store) -> None:
    """Each sink reads events in the order of `put`, also of puts that were under way together."""
    spool = await store.open()
    await spool.attach(["a", "b"])
    for start in range(0, 30, 3):
        await spool.put(batch(start, start + 1, start + 2))
    await asyncio.gather(*(spool.put(batch(number)) for number in range(30, 60)))
    assert await drain(spool, "b") == list(range(60))
    assert await drain(spool, "a") == list(range(60))


async def check_sinks_are_independent(store: Store) -> None:
    """One sink's position and counts move no other's."""
    spool = await store.open()
    await spool.attach(["a", "b"])
    await spool.put(batch(1, 2))
    await spool.put(batch(3))
    assert await drain(spool, "a") == [1, 2, 3]
    assert await pending(spool, "b") == [1, 2, 3]
    assert (await account(spool, "b")).delivered == 0
    await spool.put(batch(4))
    assert await pending(spool, "a") == [4]


async def check_a_large_batch_is_put_whole(store: Store) -> None:
    """A metrics page has ten thousand events: all of them and the state, or nothing; in order, counted right."""
    spool = await store.open()
    await spool.attach(["a"])
    await spool.put(batch(*range(2500)), {"state": b"x"})
    assert (await account(spool, "a")).pending == 2500
    assert await drain(spool, "a") == list(range(2500))
    assert (await account(spool, "a")).delivered == 2500


async def check_reading_is_bounded(store: Store) -> None:
    """`max_events` cuts batches; `max_bytes` ends the reading, but never before one piece."""
    spool = await store.open()
    await spool.attach(["a"])
    await spool.put(batch(1, 2, 3))
    await spool.put(batch(4, 5, 6))
    size = len(encode(batch(1, 2, 3)))
    assert values(await read(spool, max_events=1)) == [1]
    pieces = await read(spool, max_events=5)
    assert values(pieces) == [1, 2, 3, 4, 5]
    assert pieces[0].start < pieces[0].end <= pieces[1].start < pieces[1].end
    assert pieces[0].size == size
    assert pieces[1].size == size * 2 // 3
    assert values(await read(spool, max_bytes=1)) == [1, 2, 3]
    assert values(await read(spool, max_bytes=2 * size)) == [1, 2, 3, 4, 5, 6]


async def check_part_of_a_batch_is_settled(store: Store) -> None:
    """A position may lie inside a batch; reading goes on from there, also after a crash."""
    spool = await store.open()
    await spool.attach(["a", "b"])
    await spool.put(batch(1, 2, 3, 4))
    (piece,) = await read(spool, max_events=3)
    await spool.settle("a", Settlement(replace(piece.start, index=piece.start.index + 2), delivered=2))
    assert values(await read(spool, max_events=1)) == [3]
    await store.crash()
    spool = await store.open()
    (rest,) = await read(spool)
    assert values([rest]) == [3, 4]
    assert rest.batch.resource == piece.batch.resource
    assert (await account(spool, "a")).pending == 2
    await spool.settle("a", Settlement(rest.end, delivered=2))
    assert await pending(spool, "b") == [1, 2, 3, 4]


async def check_a_sink_that_leaves_comes_back(store: Store) -> None:
    """It keeps its position and backlog, accepts nothing while away, and then takes what is still stored."""
    spool = await store.open()
    await spool.attach(["a", "b"])
    await spool.put(batch(1, 2))
    await spool.put(batch(3))
    (piece, _) = await read(spool)
    await spool.settle("a", Settlement(replace(piece.start, index=1), delivered=1))
    await spool.attach(["b"])
    await spool.put(batch(4))
    assert await drain(spool, "b") == [1, 2, 3, 4]
    await spool.put(batch(5))
    assert await account(spool, "a") == Account("a", False, accepted=3, delivered=1, pending=2, oldest_pending=START)
    await store.crash()
    spool = await store.open()
    await spool.attach(["b", "a"])
    # 4 is gone: nobody who was there wanted it any more.
    assert await account(spool, "a") == Account("a", True, accepted=4, delivered=1, pending=3, oldest_pending=START)
    await spool.put(batch(6))
    assert await drain(spool, "a") == [2, 3, 5, 6]
    assert await drain(spool, "b") == [5, 6]


async def check_a_sink_away_with_nothing_pending_pins_nothing(store: Store) -> None:
    """What was put and settled while it was away is gone when it comes back."""
    spool = await store.open()
    await spool.attach(["a", "b"])
    await spool.put(batch(1))
    assert await drain(spool, "a") == [1]
    await spool.attach(["b"])
    await spool.put(batch(2))
    assert await drain(spool, "b") == [1, 2]
    await spool.attach(["a", "b"])
    assert await account(spool, "a") == Account("a", True, accepted=1, delivered=1)


async def check_a_new_sink_starts_now(store: Store) -> None:
    """A sink seen for the first time gets what is put from then on; attaching again changes nothing."""
    spool = await store.open()
    assert await spool.put(batch(0)) == PutResult()
    await spool.attach(["a"])
    await spool.put(batch(1))
    await spool.attach(["a", "new"])
    await spool.put(batch(2))
    await spool.attach(["new", "a"])
    assert await pending(spool, "a") == [1, 2]
    assert await pending(spool, "new") == [2]
    assert await pending(spool, "unheard-of") == []


async def check_states(store: Store) -> None:
    """States are replaced and, by an empty value, removed; without events nothing else is stored."""
    spool = await store.open()
    await spool.attach(["a"])
    await spool.put(None, {"x": b"1", "y": b"\x00\xff"})
    await spool.put(batch(), {"x": b"2"})
    assert await spool.state() == {"x": b"2", "y": b"\x00\xff"}
    await spool.put(batch(1), {"x": b""})
    assert await spool.state() == {"y": b"\x00\xff"}
    assert (await account(spool, "a")).accepted == 1


async def check_a_failed_put_stores_nothing(store: Store) -> None:
    """A batch that cannot be encoded fails alone: neither it nor its state is stored, its neighbours are."""
    spool = await store.open()
    await spool.attach(["a"])
    bad = batch(2, note="\ud800")
    results = await asyncio.gather(
        spool.put(batch(1)), spool.put(bad, {"bad": b"1"}), spool.put(batch(3)), return_exceptions=True
    )
    assert [isinstance(result, PutResult) for result in results] == [True, False, True]
    assert await pending(spool, "a") == [1, 3]
    assert await spool.state() == {}
    assert (await account(spool, "a")).accepted == 2


async def check_hostile_text(store: Store) -> None:
    """Any text goes in and comes out; what is not text in a backend's reason does not keep an event from settling."""
    spool = await store.open()
    nasty = "'; DROP TABLE sink; --\n\x00\u2028😀"
    await spool.attach([nasty])
    original = batch(1, note=nasty)
    await spool.put(original, {nasty: b"1"})
    (piece,) = await read(spool, nasty)
    assert piece.batch == original
    await spool.settle(nasty, Settlement(piece.end, rejected=1, dead=[Burial(original, nasty + "\ud800")]))
    (letter,) = await letters(spool, nasty)
    assert letter.sink == nasty
    assert letter.reason == nasty + "?"
    assert await spool.state() == {nasty: b"1"}


async def check_wait(store: Store) -> None:
    """`wait` ends with a put or a replay, also one made between reading and waiting; else with its timeout."""
    spool = await store.open()
    await spool.attach(["a", "b"])
    assert await read(spool) == []
    await spool.wait("a", 0.001)
    waiting = asyncio.ensure_future(spool.wait("a", 10 * LATE))
    await asyncio.sleep(0)
    assert not waiting.done()
    await spool.put(batch(1))
    await asyncio.wait_for(waiting, LATE)
    assert values(await read(spool)) == [1]
    await asyncio.wait_for(spool.wait("a", 10 * LATE), LATE)  # not settled: still there to be read
    assert await drain(spool, "a") == [1]
    await spool.put(batch(2))
    await asyncio.wait_for(spool.wait("a", 10 * LATE), LATE)
    await drain(spool, "a")
    await asyncio.gather(read(spool), spool.put(batch(2)))
    await asyncio.wait_for(spool.wait("a", 10 * LATE), LATE)
    await drain(spool, "a")
    await bury(spool, 3)
    await drain(spool, "a")
    waiting = asyncio.ensure_future(spool.wait("a", 10 * LATE))
    await spool.replay("a")
    await asyncio.wait_for(waiting, LATE)


async def check_cancelled_callers(store: Store) -> None:
    """A task that is cancelled while it waits for the spool disturbs no other."""
    spool = await store.open()
    await spool.attach(["a"])
    doomed = [asyncio.ensure_future(spool.put(batch(0))) for _ in range(5)]
    await asyncio.sleep(0)
    for task in doomed:
        task.cancel()
    await asyncio.gather(*doomed, return_exceptions=True)
    await spool.put(batch(1))
    assert (await pending(spool, "a"))[-1] == 1
    await account(spool, "a")


async def check_close(store: Store) -> None:
    """Closing finishes what was begun, is safe twice and at the same time, and nothing works afterwards."""
    spool = await store.open()
    await spool.attach(["a"])
    puts = [asyncio.ensure_future(spool.put(batch(number))) for number in range(5)]
    await asyncio.sleep(0)
    await asyncio.gather(spool.close(), spool.close())
    await spool.close()
    assert [await put for put in puts] == [PutResult()] * 5
    with pytest.raises(SpoolUnavailable):
        await spool.put(batch(9))
    with pytest.raises(SpoolUnavailable):
        await read(spool)
    spool = await store.open()
    assert await pending(spool, "a") == [0, 1, 2, 3, 4]


async def check_two_processes(store: Store) -> None:
    """What another process does to the store counts here: one ledger, one queue."""
    spool = await store.open()
    await spool.attach(["a"])
    await bury(spool, 1)
    other = await store.second()
    await asyncio.gather(*(one.put(batch(2)) for one in (spool, other) * 10))
    assert [letter.reason for letter in await letters(other)] == ["refused 1"]
    assert await other.replay("a") == 1
    assert sorted(await drain(spool, "a")) == [1] + [2] * 20
    assert await other.accounts() == await spool.accounts() == [Account("a", True, accepted=21, delivered=21)]
