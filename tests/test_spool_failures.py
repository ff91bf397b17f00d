"""The SQLite spool on a disk that is full, read-only or failing, and on a file that is damaged."""

import asyncio
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from spool_stores import SqliteStore, account, batch, drain, engine, pending, read, values

from forwarder.errors import SpoolUnavailable
from forwarder.spool.base import Settlement
from forwarder.spool.sqlite import SqliteSpool


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    made = SqliteStore(tmp_path)
    yield made
    await made.close()


async def limit(spool: SqliteSpool, pages: int) -> None:
    """Make the disk full at so many pages of 4096 bytes."""
    await spool._submit(lambda db: db.execute(f"PRAGMA max_page_count = {pages}").fetchall())


async def test_full_disk(store: SqliteStore) -> None:
    """Nothing of a put that fails is stored; reading and settling go on; room is used as soon as there is some."""
    spool = await engine(store)
    await spool.put(batch(1), {"s": b"1"})
    await limit(spool, 20)
    with pytest.raises(SpoolUnavailable, match=r"disk is full.*|full"):
        await spool.put(batch(2, note="x" * 200_000), {"s": b"2"})
    assert await spool.state() == {"s": b"1"}
    assert (await account(spool, "a")).accepted == 1
    assert await drain(spool, "a") == [1]
    await limit(spool, 1_000_000)
    await spool.put(batch(3, note="x" * 200_000), {"s": b"3"})
    assert await pending(spool, "a") == [3]
    assert await spool.damage() == []


async def test_full_disk_spoils_only_who_needs_room(store: SqliteStore) -> None:
    """Of operations that share a transaction, those that still fit succeed."""
    spool = await engine(store)
    await spool.put(batch(1))
    (piece,) = await read(spool)
    await limit(spool, 20)
    big, settled, small = await asyncio.gather(
        spool.put(batch(2, note="x" * 200_000)),
        spool.settle("a", Settlement(piece.end, delivered=1)),
        spool.put(batch(3)),
        return_exceptions=True,
    )
    assert isinstance(big, SpoolUnavailable)
    assert settled is None
    assert not isinstance(small, BaseException)
    assert await pending(spool, "a") == [3]
    assert (await account(spool, "a")).delivered == 1


LIMITED = """
import asyncio, resource, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from spool_stores import account, batch, pending
from forwarder.errors import SpoolUnavailable
from forwarder.spool.sqlite import SqliteSpool

async def main():
    spool = SqliteSpool(Path(sys.argv[1]), max_age=1e9)
    await spool.open()
    await spool.attach(["a"])
    await spool.put(batch(0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
    stored, failed = 1, 0
    while failed < 3:
        try:
            await spool.put(batch(stored, note="x" * 5000))
            stored += 1
        except SpoolUnavailable as error:
            print(error)
            failed += 1
            assert await pending(spool, "a") == list(range(stored))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    await spool.put(batch(stored))
    assert (await account(spool, "a")).pending == stored + 1
    assert await spool.damage() == []
    await spool.close()
    print("stored", stored + 1)

asyncio.run(main())
"""


async def test_writing_fails_for_real(store: SqliteStore) -> None:
    """A write that the kernel refuses loses nothing, and the spool goes on when it no longer does."""
    command = [sys.executable, "-c", LIMITED, str(store.path), str(Path(__file__).parent)]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    *errors, last = done.stdout.splitlines()
    assert len(errors) == 3
    assert all("cannot be used now" in error and "spool.db" in error for error in errors)
    spool = await engine(store)
    assert await pending(spool, "a") == list(range(int(last.split()[1])))


async def test_read_only(store: SqliteStore) -> None:
    """While the file cannot be written, reading goes on; when it can, so does writing."""
    spool = await engine(store)
    await spool.put(batch(1))
    await spool._submit(lambda db: db.execute("PRAGMA query_only = 1"))
    with pytest.raises(SpoolUnavailable, match="read-only"):
        await spool.put(batch(2))
    assert await pending(spool, "a") == [1]
    await spool._submit(lambda db: db.execute("PRAGMA query_only = 0"))
    await spool.put(batch(3))
    assert await pending(spool, "a") == [1, 3]


def garbage(path: Path) -> None:
    path.write_bytes(b"this is no database " * 500)


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def cut(path: Path) -> None:
    os.truncate(path, 4096 * 3)


def foreign(path: Path) -> None:
    path.unlink()
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE somebody (elses)")
    db.close()


def overwritten(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))


def crossed(path: Path) -> None:
    """Two tables in the same pages: SQLite reads them, and then stumbles over a constraint that cannot fail."""
    db = sqlite3.connect(path)
    db.execute("PRAGMA writable_schema = 1")
    with db:
        db.execute(
            "UPDATE sqlite_master SET rootpage = (SELECT rootpage FROM sqlite_master WHERE name = 'batch')"
            " WHERE name = 'body'"
        )
    db.close()


@pytest.mark.parametrize("damage", [garbage, emptied, cut, foreign, overwritten, crossed])
async def test_damaged_file(damage: Callable[[Path], None], store: SqliteStore) -> None:
    """It is moved aside and reported, and a new one is begun that the sinks are attached to: no crash, no silence."""
    spool = await engine(store)
    for number in range(20):
        await spool.put(batch(number, note="x" * 3000))
    await store.close()
    damage(store.path)
    spool = await engine(store)
    await spool.put(batch(100))
    assert await pending(spool, "a") == [100]
    await account(spool, "a")
    (found,) = await spool.damage()
    assert found.reason
    moved_to = store.path.parent / found.moved_to
    assert moved_to.exists()
    assert moved_to.name.startswith("spool.db.damaged-2025")
    assert await spool.damage() == []


async def test_damaged_while_in_use(store: SqliteStore) -> None:
    """What was under way when the file was replaced is settled without effect, and putting goes on at once."""
    spool = await engine(store)
    await spool.put(batch(1))
    (piece,) = await read(spool)
    store.clock.tick(1)
    moved = store.path.with_name("elsewhere")
    store.path.rename(moved)
    await spool.put(batch(2, 3), {"s": b"1"})
    await spool.settle("a", Settlement(piece.end, delivered=1))
    assert await pending(spool, "a") == [2, 3]
    assert (await account(spool, "a")).accepted == 2
    assert len(await spool.damage()) == 1
    shutil.copyfile(moved, store.path.with_name("copy"))
    store.path.with_name("copy").rename(store.path)
    await spool.put(batch(4))
    assert await pending(spool, "a") == [4]
    assert len(await spool.damage()) == 1


async def test_state_folder_vanishes(store: SqliteStore) -> None:
    """If the whole folder is removed under the agent, it is made again."""
    spool = await engine(store)
    await spool.put(batch(1))
    shutil.rmtree(store.path.parent)
    await spool.put(batch(2))
    assert await pending(spool, "a") == [2]
    (found,) = await spool.damage()
    assert "gone" in found.reason
    assert found.moved_to == ""


@pytest.mark.parametrize("seed", range(40))
async def test_any_damage(seed: int, store: SqliteStore) -> None:
    """Bytes overwritten anywhere: no call fails other than by SpoolUnavailable, and putting works in the end."""
    chance = random.Random(seed)  # noqa: S311 - repeatable on purpose
    spool = await engine(store)
    for number in range(30):
        await spool.put(batch(number, number, note="x" * chance.randrange(3000)), {f"s{number % 3}": b"1" * 100})
        if number == 10:
            (piece, *_) = await read(spool)
            await spool.settle("a", Settlement(piece.end, delivered=2))
    await store.close()
    with store.path.open("r+b") as file:
        for _ in range(chance.choice([1, 5, 50])):
            file.seek(chance.randrange(100, store.path.stat().st_size))
            file.write(chance.randbytes(chance.choice([1, 30, 2000])))
    spool = await engine(store)
    for number in range(5):
        store.clock.tick(1)
        await spool.put(batch(number), {"s": b"1"})
        await spool.accounts()
        await spool.dead_letters()
        await spool.state()
        pieces = await read(spool, max_events=20)
        if pieces:  # none if the damage showed only after the put
            await spool.settle("a", Settlement(pieces[-1].end, delivered=len(values(pieces))))
    await spool.put(batch(100))
    assert (await pending(spool, "a"))[-1] == 100
