"""The SQLite file: how it is laid out, opened, and moved aside when it is damaged."""

import os
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from forwarder.errors import StateFolderError
from forwarder.spool.lock import refuse_file, unusable

VERSION: Final = 1
APPLICATION: Final = 0x4C4C4D46  # "LLMF", so that another program's file is not taken for a spool

# Another process holds the write lock for one transaction, which is short. Seconds.
BUSY_TIMEOUT: Final = 5.0

# `batch` is small rows, so that counting what is pending need not walk over the bodies.
# A sink's place is (at_seq, at_index): at_index events of batch at_seq are behind it, and every batch before at_seq.
#   at_index > 0 only while that batch is stored.
# `until` is the last batch put for everybody that a detached sink still wants; FOREVER while it is attached.
# `overtaken` is how many events a bound dropped since the sink last settled: a settlement of what was read before
#   may count that many events too many.
LAYOUT: Final = """
CREATE TABLE batch (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    time INTEGER NOT NULL,
    events INTEGER NOT NULL,
    size INTEGER NOT NULL,
    only_sink TEXT
);
CREATE TABLE body (seq INTEGER PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE total (bytes INTEGER NOT NULL);
CREATE TRIGGER batch_added AFTER INSERT ON batch BEGIN
    UPDATE total SET bytes = bytes + new.size;
END;
CREATE TRIGGER batch_removed AFTER DELETE ON batch BEGIN
    UPDATE total SET bytes = bytes - old.size;
    DELETE FROM body WHERE seq = old.seq;
END;
CREATE TABLE sink (
    name TEXT PRIMARY KEY,
    until INTEGER NOT NULL,
    at_seq INTEGER NOT NULL,
    at_index INTEGER NOT NULL DEFAULT 0,
    accepted INTEGER NOT NULL DEFAULT 0,
    delivered INTEGER NOT NULL DEFAULT 0,
    rejected INTEGER NOT NULL DEFAULT 0,
    expired INTEGER NOT NULL DEFAULT 0,
    dropped INTEGER NOT NULL DEFAULT 0,
    overtaken INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE state (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE dead_letter (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    sink TEXT NOT NULL,
    time INTEGER NOT NULL,
    reason TEXT NOT NULL,
    data BLOB NOT NULL
);
CREATE INDEX dead_letter_of_sink ON dead_letter (sink);
INSERT INTO total VALUES (0);
"""


class DamagedError(Exception):
    """The file is not, or no longer, a spool of ours."""


def connect(path: Path, *, create: bool, clock: Callable[[], int]) -> sqlite3.Connection:
    """Open the spool at `path`; `create` makes folder and file where they are missing. `clock` gives ns UTC.

    Raises StateFolderError (the folder cannot be used; the file is a newer release's), DamagedError, sqlite3.Error.
    """
    try:
        for suffix in ("", "-wal", "-shm", "-journal"):
            refuse_file(Path(f"{path}{suffix}"), owner=create)
        if create:
            _create(path)
        elif not path.exists():
            raise StateFolderError(f"there is no spool at {path}; is state_dir the one of the agent, and has it run?")
    except OSError as error:
        raise StateFolderError(unusable(path.parent, error)) from None
    # mode=rw: SQLite itself never creates the file, so its mode is ours and a vanished file is noticed.
    connection = sqlite3.connect(
        path.absolute().as_uri() + "?mode=rw", uri=True, timeout=BUSY_TIMEOUT, isolation_level=None
    )
    try:
        _prepare(connection, path, create=create, start=clock() // 1000)
    except BaseException:
        connection.close()
        raise
    return connection


def _create(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.exists():
        if path.stat().st_size == 0:
            raise DamagedError("the file is empty")
        if not os.access(path, os.R_OK | os.W_OK):
            raise StateFolderError(
                f"{path} cannot be written: give it to this user, or remount its filesystem if that is read-only"
            )
        return
    # A log without its file would be played into the new one.
    if Path(f"{path}-wal").exists():
        raise DamagedError("the file is gone, its -wal is not")
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the name must survive a power cut as the contents do
    finally:
        os.close(folder)


def _prepare(connection: sqlite3.Connection, path: Path, *, create: bool, start: int) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > VERSION:
        raise StateFolderError(
            f"{path} was written by a newer litellm-forwarder (layout {version}; this one reads {VERSION}). "
            "Install that release again, or move the file away to start with an empty spool"
        )
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if tables and application != APPLICATION:
        raise DamagedError("the file is another program's database")
    if not tables:
        _lay_out(connection, path, create=create, start=start)
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise StateFolderError(f"the filesystem of {path} cannot hold a spool (no shared memory); use a local disk")
    connection.execute("PRAGMA synchronous = FULL")
    # Keep some of the log's space: on a full disk, settling (which frees space) still finds room to write.
    connection.execute(f"PRAGMA journal_size_limit = {16 * 1024 * 1024}")


def _lay_out(connection: sqlite3.Connection, path: Path, *, create: bool, start: int) -> None:
    """In the file itself, before the log is switched on: a file whose log is lost is then known by its old contents,
    never taken for a new one.
    """
    if path.stat().st_size:
        raise DamagedError("the file has a beginning but no tables")
    if not create:
        raise StateFolderError(f"{path} is empty; start the agent, which lays it out")
    # Positions start at the clock (µs), so that what was read from a file since moved aside lies before every
    # position of the file that replaced it: settling it then does nothing, as the contract says.
    connection.executescript(
        f"BEGIN IMMEDIATE; {LAYOUT} INSERT INTO sqlite_sequence VALUES ('batch', {start});"  # noqa: S608 - an int
        f"PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {VERSION}; COMMIT;"
    )


def damage_in(error: Exception) -> str | None:
    """Why the file must be replaced, if `error` says that it must."""
    if isinstance(error, DamagedError):
        return str(error)
    if isinstance(error, UnicodeDecodeError):  # Python fails to tell what SQLite says of a garbled schema (3.11)
        return "the file's schema is not text"
    if isinstance(error, sqlite3.Error) and code(error) in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
        return str(error)
    return None


def check(db: sqlite3.Connection) -> None:
    """Raises DamagedError, or sqlite3.Error, if the structure of the file is not sound. Reads all of it."""
    (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise DamagedError(str(verdict))


def code(error: sqlite3.Error) -> int:
    """SQLite's primary result code; 0 for an error of the Python module itself."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def move_aside(path: Path, now: int) -> str:
    """Rename the file and its companions; the new name of the file, empty if none was there. Raises OSError."""
    stamp = datetime.fromtimestamp(now / 1e9, UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    target = Path(f"{path}.damaged-{stamp}")
    attempt = 1
    while target.exists() or Path(f"{target}-wal").exists():
        attempt += 1
        target = Path(f"{path}.damaged-{stamp}.{attempt}")
    sources = [source for suffix in ("", "-wal", "-shm") if (source := Path(f"{path}{suffix}")).exists()]
    for source in sources:
        source.rename(source.with_name(source.name.replace(path.name, target.name, 1)))
    return str(target) if sources else ""
