"""What is particular to the SQLite engine: its file, its transactions, and other processes."""

import asyncio
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from spool_stores import SqliteStore, account, batch, drain, engine, pending, read

from forwarder.errors import StateFolderBusy, StateFolderError
from forwarder.spool.base import Burial, PutResult, Settlement, Spool
from forwarder.spool.lock import StateLock
from forwarder.spool.sqlite import SqliteSpool


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    made = SqliteStore(tmp_path)
    yield made
    await made.close()


@contextmanager
def child(program: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A process that does not outlive the test."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


async def test_file_is_private(store: SqliteStore) -> None:
    """Only the agent's user may read what is stored, whatever the umask."""
    before = os.umask(0)
    try:
        spool = await engine(store)
        await spool.put(batch(1))
    finally:
        os.umask(before)
    assert store.path.parent.stat().st_mode & 0o777 == 0o700
    files = list(store.path.parent.iterdir())
    assert {file.name for file in files} == {"spool.db", "spool.db-wal", "spool.db-shm"}
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}


async def test_commits_are_synced(store: SqliteStore) -> None:
    """WAL with synchronous=FULL (2): a commit is on disk, not in the kernel's memory, when `put` returns."""
    spool = await engine(store)
    settings = await spool._submit(
        lambda db: [db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
    )
    assert settings == ["wal", 2]


async def test_group_commit(store: SqliteStore) -> None:
    """What queues up while the thread is busy is committed at once; one failure in it spoils no other."""
    spool = await engine(store)
    statements: list[str] = []
    await spool._submit(lambda db: db.set_trace_callback(statements.append))
    gate = threading.Event()
    busy = asyncio.ensure_future(spool._submit(lambda _: gate.wait(30)))
    await asyncio.sleep(0)
    puts = [
        asyncio.ensure_future(spool.put(batch(number, note="\ud800" if number == 7 else ""))) for number in range(50)
    ]
    await asyncio.sleep(0)
    statements.clear()
    gate.set()
    results = await asyncio.gather(*puts, return_exceptions=True)
    await busy
    await spool._submit(lambda db: db.set_trace_callback(None))
    # The busy one's, the group's, and that of the call which ended the tracing, in part.
    assert 1 <= statements.count("COMMIT") <= 3
    assert [number for number, result in enumerate(results) if not isinstance(result, PutResult)] == [7]
    assert await pending(spool, "a") == [number for number in range(50) if number != 7]


async def test_failing_halfway_leaves_nothing(store: SqliteStore) -> None:
    """An operation that fails after it has written is undone, and its neighbours in the transaction are not."""
    spool = await engine(store)

    def half(db: sqlite3.Connection) -> None:
        db.execute("UPDATE sink SET accepted = 99")
        raise LookupError("half way")

    failed, *stored = await asyncio.gather(
        spool._submit(half, writes=True), spool.put(batch(1)), spool.put(batch(2)), return_exceptions=True
    )
    assert isinstance(failed, LookupError)
    assert stored == [PutResult(), PutResult()]
    assert (await account(spool, "a")).accepted == 2


async def test_nothing_stored_is_left_behind(store: SqliteStore) -> None:
    """Settled batches leave no rows, and the total of bytes returns to nothing."""
    spool = await engine(store)
    await spool.attach(["a", "b"])
    for number in range(20):
        await spool.put(batch(number, number))
    await drain(spool, "a")
    await drain(spool, "b")
    tables = ("SELECT count(*) FROM batch", "SELECT count(*) FROM body", "SELECT bytes FROM total")
    assert await spool._submit(lambda db: [db.execute(query).fetchone()[0] for query in tables]) == [0, 0, 0]


async def test_file_stays_bounded(store: SqliteStore) -> None:
    """Through an outage without end the file keeps to the bound and its overhead."""
    spool = await store.open(max_bytes=400_000)
    await spool.attach(["a"])
    for number in range(50):
        await asyncio.gather(*(spool.put(batch(number, note="x" * 3000)) for _ in range(20)))
    await store.close()
    assert store.path.stat().st_size < 900_000
    assert [file.name for file in store.path.parent.iterdir()] == ["spool.db"]
    spool = await store.open()
    assert (await account(spool, "a")).accepted == 1000


async def test_positions_are_never_used_twice(store: SqliteStore) -> None:
    """A new batch comes after every batch there ever was, even if those are gone and the agent restarted."""
    spool = await engine(store)
    await spool.put(batch(1))
    (first,) = await read(spool)
    await drain(spool, "a")
    await store.close()
    spool = await engine(store)
    await spool.put(batch(2))
    (second,) = await read(spool)
    assert second.start.batch > first.start.batch
    await spool.settle("a", Settlement(first.end, delivered=1))
    assert await pending(spool, "a") == [2]


@pytest.mark.parametrize("where", ["file", "below a file", "a folder in its place", "no disk"])
async def test_unusable_state_folder(where: str, tmp_path: Path) -> None:
    """At the start, a folder that cannot be used is an error that says what, where and how to fix it."""
    (tmp_path / "file").touch()
    (tmp_path / "folder" / "spool.db").mkdir(parents=True)
    folder = {
        "file": tmp_path / "file",
        "below a file": tmp_path / "file" / "below",
        "a folder in its place": tmp_path / "folder",
        "no disk": Path("/proc/litellm-forwarder"),
    }[where]
    spool = SqliteSpool(folder / "spool.db")
    with pytest.raises(StateFolderError) as caught:
        await spool.open()
    assert str(folder) in str(caught.value)
    await spool.close()


async def test_newer_layout_is_left_alone(store: SqliteStore) -> None:
    """A file of a newer release is neither read nor moved aside: the error says to install that release."""
    await engine(store)
    await store.close()
    edit(store.path, "PRAGMA user_version = 99")
    with pytest.raises(StateFolderError, match=r"newer.*99"):
        await store.open()
    assert [file.name for file in store.path.parent.iterdir()] == ["spool.db"]


async def test_others_neither_create_nor_repair(store: SqliteStore) -> None:
    """The command line says that there is no spool, or a damaged one; it makes none and moves none."""
    with pytest.raises(StateFolderError, match="no spool"):
        await store.second()
    await engine(store)
    await store.close()
    store.path.write_bytes(b"garbage " * 1000)
    with pytest.raises(StateFolderError, match="damaged"):
        await store.second()
    assert [file.name for file in store.path.parent.iterdir()] == ["spool.db"]


def edit(path: Path, statement: str, *values: int) -> None:
    db = sqlite3.connect(path)
    with db:
        db.execute(statement, values)
    db.close()


async def test_a_batch_that_cannot_be_decoded(store: SqliteStore) -> None:
    """It is left out, counted as dropped for each sink that had not settled it, and reported; the rest goes on."""
    spool = await engine(store)
    await spool.attach(["a", "b"])
    for number in range(5):
        await spool.put(batch(number, number))
    pieces = await read(spool, "b", max_events=3)
    await spool.settle("b", Settlement(pieces[-1].end, delivered=3))
    await store.close()
    first = pieces[0].start.batch
    edit(store.path, "UPDATE body SET data = x'07' WHERE seq = ?", first + 1)
    edit(store.path, "DELETE FROM body WHERE seq = ?", first + 3)
    edit(store.path, "UPDATE batch SET events = 3 WHERE seq = ?", first + 4)
    spool = await engine(store)
    await spool.attach(["a", "b"])
    assert await drain(spool, "a") == [0, 0, 2, 2]
    assert await drain(spool, "b") == [2, 2]
    assert len(await spool.damage()) == 3
    assert await spool.damage() == []
    counts = {one.sink: (one.delivered, one.dropped, one.pending) for one in await spool.accounts()}
    assert counts == {"a": (4, 7, 0), "b": (5, 6, 0)}


async def test_lock_names_its_holder(tmp_path: Path) -> None:
    """Of two agents on one folder the second is told who has it; a lock ends with its process or its release."""
    hold = (
        "import sys; from pathlib import Path; from forwarder.spool.lock import StateLock\n"
        "StateLock(Path(sys.argv[1])).acquire(); print('held', flush=True); sys.stdin.read()"
    )
    lock = StateLock(tmp_path / "state")
    with child(hold, tmp_path / "state") as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StateFolderBusy, match=rf"pid {holder.pid}\b"):
            lock.acquire()
    lock.acquire()
    lock.acquire()
    with pytest.raises(StateFolderBusy, match=rf"pid {os.getpid()}\b"):
        StateLock(tmp_path / "state").acquire()
    lock.release()
    lock.release()
    again = StateLock(tmp_path / "state")
    again.acquire()
    again.release()
    (tmp_path / "file").touch()
    with pytest.raises(StateFolderError, match="file"):
        StateLock(tmp_path / "file").acquire()


OTHER = """
import asyncio, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from spool_stores import batch
from forwarder.spool.sqlite import SqliteSpool

async def main():
    spool = SqliteSpool(Path(sys.argv[1]), max_age=1e9, owner=False)
    await spool.open()
    for number in range(200):
        await spool.put(batch(number))
        await spool.replay("a")
    await spool.close()

asyncio.run(main())
"""


async def test_two_real_processes(store: SqliteStore) -> None:
    """The agent puts, delivers and buries while another process puts and replays: every event is counted once."""
    spool = await engine(store)
    sent = 0
    with child(OTHER, store.path, Path(__file__).parent) as other:
        while other.poll() is None or await pending(spool, "a"):
            if sent < 200:
                await spool.put(batch(-1, -2))
                sent += 1
            await settle_some(spool)
        assert other.returncode == 0
    await drain(spool, "a")
    ledger = await account(spool, "a")
    assert ledger.accepted == 200 + 2 * sent
    assert ledger.delivered == ledger.accepted - ledger.rejected
    assert ledger.rejected == ledger.dead_letters


async def settle_some(spool: Spool) -> None:
    """Deliver what is pending, but bury one in each reading."""
    pieces = await read(spool)
    if pieces:
        count = sum(len(piece.batch.events) for piece in pieces)
        await spool.settle("a", Settlement(pieces[-1].end, count - 1, 1, dead=[Burial(batch(0), "no")]))


WRITER = """
import asyncio, itertools, os, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from spool_stores import batch
from forwarder.spool.sqlite import SqliteSpool

async def main():
    spool = SqliteSpool(Path(sys.argv[1]), max_age=1e9)
    await spool.open()
    await spool.attach(["a", "b"])
    numbers = itertools.count()

    async def write():
        for number in numbers:
            await spool.put(batch(number, number), {"last": str(number).encode()})
            os.write(1, b"%d\\n" % number)

    await asyncio.gather(*(write() for _ in range(4)))

asyncio.run(main())
"""


@pytest.mark.parametrize("lines", [1, 50, 700])
async def test_kill_9(lines: int, store: SqliteStore) -> None:
    """Whatever `put` had returned for when the process was killed is there, once, in order; the ledger adds up."""
    with child(WRITER, store.path, Path(__file__).parent) as writer:
        assert writer.stdout is not None
        printed = [int(writer.stdout.readline()) for _ in range(lines)]
        writer.kill()
        printed += [int(line) for line in writer.stdout]
    spool = await store.open()
    await spool.attach(["a", "b"])
    found = await pending(spool, "a")
    assert found[::2] == found[1::2] == sorted(set(found))
    assert set(printed) <= set(found)
    assert len(set(found) - set(printed)) <= 4  # under way when it was killed, and stored all the same
    assert await pending(spool, "b") == found
    assert (await account(spool, "b")).pending == len(found)
    assert int((await spool.state())["last"]) == found[-1]
    assert await spool.damage() == []
