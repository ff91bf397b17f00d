"""What each operation of the SQLite spool does, inside a transaction that its caller opened.

Plain functions of a connection. Each may be run again from the start after a rollback. All counting is done here,
in the database, because a second process works on the same file.

A sink *owns* a stored batch when the batch is not behind its position and is meant for it: put for everybody
(`only_sink` is null) up to `until`, or replayed for it alone. Pending is what it owns; nothing else is counted.

A bound drops the oldest batch of all. For each sink that owns it, the events not yet settled become `dropped`, and
its position moves past them. They stay dropped even if a delivery that was under way succeeds: a settlement of
events read before the drop counts only those that the sink still owns (see `settle`).
"""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Final

from forwarder.errors import CodecError
from forwarder.events import Batch, decode, encode
from forwarder.spool.base import Account, DeadLetter, Piece, Position, PutResult, Settlement

FOREVER: Final = 2**63 - 1  # `until` of an attached sink

OWNS: Final = (
    "batch.seq >= sink.at_seq AND iif(batch.only_sink IS NULL, batch.seq <= sink.until, batch.only_sink = sink.name)"
)


@dataclass(frozen=True, slots=True)
class Bounds:
    """`max_bytes` of encoded batches, `max_age` in ns by the batches' own times, `max_dead_letters` per sink."""

    max_bytes: int
    max_age: int
    max_dead_letters: int


@dataclass(frozen=True, slots=True)
class Entry:
    """An encoded batch, or a part of one; `time` in ns UTC."""

    time: int
    events: int
    data: bytes


class UnreadableError(Exception):
    """The next batch of a sink cannot be decoded."""

    def __init__(self, seq: int, reason: str) -> None:
        super().__init__(reason)
        self.seq = seq


def attach(db: sqlite3.Connection, sinks: Sequence[str]) -> None:
    (last,) = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'batch'").fetchone()
    known = dict(db.execute("SELECT name, until FROM sink"))
    for name in known.keys() - set(sinks):
        if known[name] == FOREVER:
            db.execute("UPDATE sink SET until = ? WHERE name = ?", (last, name))
    for name in dict.fromkeys(sinks):
        if name not in known:
            db.execute("INSERT INTO sink (name, until, at_seq) VALUES (?, ?, ?)", (name, FOREVER, last + 1))
        elif known[name] != FOREVER:
            # It takes what was put while it was away and is still stored.
            db.execute(
                "UPDATE sink SET until = :forever, accepted = accepted + (SELECT coalesce(sum(events), 0) FROM batch"
                " WHERE seq >= at_seq AND seq > until AND only_sink IS NULL) WHERE name = :name",
                {"forever": FOREVER, "name": name},
            )


def put(
    db: sqlite3.Connection, entries: Sequence[Entry], state: Mapping[str, bytes], *, now: int, bounds: Bounds
) -> PutResult:
    dropped: dict[str, int] = {}
    for entry in entries:
        for sink, lost in _accept(db, entry, bounds).items():
            dropped[sink] = dropped.get(sink, 0) + lost
    _remember(db, state)
    for seq in _overdue(db, now - bounds.max_age, bounds.max_bytes):
        for sink, lost in _drop(db, seq).items():
            dropped[sink] = dropped.get(sink, 0) + lost
        db.execute("UPDATE sink SET at_seq = ? + 1, at_index = 0 WHERE at_seq <= ?", (seq, seq))
    return PutResult(dropped)


def _remember(db: sqlite3.Connection, state: Mapping[str, bytes]) -> None:
    for name, value in state.items():
        if value:
            db.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (name, value))
        else:
            db.execute("DELETE FROM state WHERE name = ?", (name,))


def _accept(db: sqlite3.Connection, entry: Entry, bounds: Bounds) -> dict[str, int]:
    takers = db.execute("UPDATE sink SET accepted = accepted + ? WHERE until = ?", (entry.events, FOREVER)).rowcount
    if not takers:
        return {}
    if len(entry.data) > bounds.max_bytes:  # it fits nowhere; emptying the spool for it would lose more
        db.execute("UPDATE sink SET dropped = dropped + ? WHERE until = ?", (entry.events, FOREVER))
        return {name: entry.events for (name,) in db.execute("SELECT name FROM sink WHERE until = ?", (FOREVER,))}
    _insert(db, entry, None)
    return {}


def _insert(db: sqlite3.Connection, entry: Entry, only_sink: str | None) -> None:
    seq = db.execute(
        "INSERT INTO batch (time, events, size, only_sink) VALUES (?, ?, ?, ?)",
        (entry.time, entry.events, len(entry.data), only_sink),
    ).lastrowid
    db.execute("INSERT INTO body VALUES (?, ?)", (seq, entry.data))


def _overdue(db: sqlite3.Connection, oldest: int, max_bytes: int) -> Iterator[int]:
    """The oldest batch, again and again, until the bounds hold. Each must be dropped before the next is asked for."""
    while True:
        head = db.execute("SELECT seq, time FROM batch ORDER BY seq LIMIT 1").fetchone()
        (total,) = db.execute("SELECT bytes FROM total").fetchone()
        if head is None or (total <= max_bytes and head[1] >= oldest):
            return
        yield head[0]


def _drop(db: sqlite3.Connection, seq: int) -> dict[str, int]:
    owners = db.execute(
        f"SELECT sink.name, batch.events - iif(sink.at_seq = batch.seq, sink.at_index, 0)"  # noqa: S608 - a constant
        f" FROM sink JOIN batch ON {OWNS} WHERE batch.seq = ?",
        (seq,),
    ).fetchall()
    for name, lost in owners:
        db.execute(
            "UPDATE sink SET dropped = dropped + ?, overtaken = overtaken + ? WHERE name = ?",
            (lost, lost, name),
        )
    db.execute("DELETE FROM batch WHERE seq = ?", (seq,))
    return dict(owners)


def discard(db: sqlite3.Connection, seq: int) -> None:
    """Drop one batch that cannot be decoded, wherever it stands."""
    _drop(db, seq)
    db.execute("UPDATE sink SET at_seq = at_seq + 1, at_index = 0 WHERE at_seq = ?", (seq,))


def states(db: sqlite3.Connection) -> dict[str, bytes]:
    return dict(db.execute("SELECT name, value FROM state"))


def read(db: sqlite3.Connection, sink: str, *, max_events: int, max_bytes: int) -> list[Piece]:
    """Raises UnreadableError if the first batch is; a later one ends what is returned."""
    pieces: list[Piece] = []
    query = (
        "SELECT batch.seq, iif(batch.seq = sink.at_seq, sink.at_index, 0), batch.events, batch.size, body.data"  # noqa: S608 - a constant
        f" FROM sink JOIN batch ON {OWNS} LEFT JOIN body ON body.seq = batch.seq"
        " WHERE sink.name = ? ORDER BY batch.seq"
    )
    # Closed, because a cursor that is left open keeps the log from being checkpointed.
    with closing(db.execute(query, (sink,))) as rows:
        for seq, index, events, size, data in rows:
            count = min(events - index, max_events)
            share = size if count == events else max(1, size * count // events)
            if pieces and share > max_bytes:
                break
            try:
                batch = _decoded(data, events)
            except CodecError as error:
                if pieces:
                    break
                raise UnreadableError(seq, str(error)) from None
            if count < events:
                batch = Batch(batch.resource, batch.time, batch.events[index : index + count])
            pieces.append(Piece(Position(seq, index), Position(seq, index + count), batch, share))
            max_events -= count
            max_bytes -= share
            if max_events <= 0 or max_bytes <= 0:
                break
    return pieces


def _decoded(data: bytes | None, events: int) -> Batch:
    batch = decode(data or b"")
    if len(batch.events) != events:
        raise CodecError(f"{len(batch.events)} events where {events} were put")
    return batch


def settle(db: sqlite3.Connection, sink: str, settlement: Settlement, *, now: int, bounds: Bounds) -> None:
    """Raises ValueError for a settlement that cannot be: a bug of the caller."""
    place = db.execute("SELECT at_seq, at_index, overtaken FROM sink WHERE name = ?", (sink,)).fetchone()
    if place is None:
        raise ValueError(f"no sink {sink!r} was ever attached")
    _remember(db, settlement.state)
    at_seq, at_index, overtaken = place
    upto = settlement.upto
    if upto <= Position(at_seq, at_index):
        return
    to_seq, to_index = _behind(db, upto)
    (stored,) = db.execute(
        f"SELECT coalesce(sum(batch.events), 0) FROM sink JOIN batch ON {OWNS}"  # noqa: S608 - a constant
        " WHERE sink.name = ? AND batch.seq < ?",
        (sink, to_seq),
    ).fetchone()
    counted = _without(settlement, stored - at_index + to_index, overtaken)
    db.execute(
        "UPDATE sink SET at_seq = ?, at_index = ?, overtaken = 0, delivered = delivered + ?, rejected = rejected + ?,"
        " expired = expired + ? WHERE name = ?",
        (to_seq, to_index, counted.delivered, counted.rejected, counted.expired, sink),
    )
    db.execute(
        "DELETE FROM batch WHERE seq >= ? AND seq < ?"  # noqa: S608 - a constant
        f" AND NOT EXISTS (SELECT 1 FROM sink WHERE {OWNS})",
        (at_seq, to_seq),
    )
    if counted.dead:
        _bury(db, sink, counted, now, bounds.max_dead_letters)


def _behind(db: sqlite3.Connection, upto: Position) -> tuple[int, int]:
    """The position as it is stored: the end of a batch is the start of the next."""
    (last,) = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'batch'").fetchone()
    row = db.execute("SELECT events FROM batch WHERE seq = ?", (upto.batch,)).fetchone()
    if upto.batch > last + 1 or upto.index < 0 or (row is not None and upto.index > row[0]):
        raise ValueError(f"nothing was ever stored at {upto}")
    if upto.index and (row is None or upto.index == row[0]):
        return upto.batch + 1, 0
    return upto.batch, upto.index


def _without(settlement: Settlement, owned: int, overtaken: int) -> Settlement:
    """The settlement without the events that a bound dropped after they were read: they are counted as dropped.

    Which they were is not known one by one, only that they were the oldest. So the expired go first, then the
    delivered; an event that was buried keeps its letter as long as the numbers allow.
    """
    delivered, rejected, expired = settlement.delivered, settlement.rejected, settlement.expired
    if min(delivered, rejected, expired) < 0 or len(settlement.dead) > rejected:
        raise ValueError(f"counts that cannot be: {settlement}")
    if any(len(burial.batch.events) != 1 for burial in settlement.dead):
        raise ValueError("a dead letter holds exactly one event")
    excess = delivered + rejected + expired - owned
    if not 0 <= excess <= overtaken:
        raise ValueError(f"{owned + excess} events settled where there are {owned} up to {settlement.upto}")
    from_expired = min(excess, expired)
    from_delivered = min(excess - from_expired, delivered)
    rejected -= excess - from_expired - from_delivered
    dead = settlement.dead[max(0, len(settlement.dead) - rejected) :]
    return Settlement(settlement.upto, delivered - from_delivered, rejected, expired - from_expired, dead)


def _bury(db: sqlite3.Connection, sink: str, settlement: Settlement, now: int, keep: int) -> None:
    db.executemany(
        "INSERT INTO dead_letter (sink, time, reason, data) VALUES (?, ?, ?, ?)",
        # A backend's words may hold what is not text (lone surrogates); that must not keep the event from settling.
        [(sink, now, dead.reason.encode("utf-8", "replace").decode(), encode(dead.batch)) for dead in settlement.dead],
    )
    db.execute(
        "DELETE FROM dead_letter WHERE sink = :sink AND id <="
        " (SELECT id FROM dead_letter WHERE sink = :sink ORDER BY id DESC LIMIT 1 OFFSET :keep)",
        {"sink": sink, "keep": keep},
    )


def accounts(db: sqlite3.Connection) -> list[Account]:
    rows = db.execute(
        "SELECT sink.name, sink.until = ?, accepted, delivered, coalesce(sum(batch.events), 0) - at_index,"  # noqa: S608 - a constant
        " rejected, expired, dropped, (SELECT count(*) FROM dead_letter WHERE dead_letter.sink = sink.name),"
        f" min(batch.time) FROM sink LEFT JOIN batch ON {OWNS} GROUP BY sink.name ORDER BY sink.name",
        (FOREVER,),
    )
    return [Account(name, bool(attached), *counts) for name, attached, *counts in rows]


def dead_letters(db: sqlite3.Connection, sink: str | None, *, limit: int, after: int) -> list[DeadLetter]:
    letters: list[DeadLetter] = []
    query = (
        "SELECT id, sink, time, reason, data FROM dead_letter WHERE id > ? AND sink = coalesce(?, sink) ORDER BY id"
    )
    with closing(db.execute(query, (after, sink))) as rows:
        while len(letters) < limit and (row := rows.fetchone()):
            number, owner, time, reason, data = row
            try:
                letters.append(DeadLetter(number, owner, time, reason, decode(data)))
            except CodecError:
                continue  # cannot be shown; replaying it reports it as damage, purging it removes it
    return letters


def replay(db: sqlite3.Connection, sink: str, ids: Sequence[int] | None, *, now: int) -> int:
    """The age of a replayed event counts from `now`: what an operator sends again is not to be dropped as too old.

    Bounds are left to the next `put`, which reports what it drops.
    """
    letters = _chosen(db, sink, ids)
    for _, data in letters:
        _insert(db, Entry(now, 1, data), sink)
    db.execute("UPDATE sink SET rejected = rejected - ? WHERE name = ?", (len(letters), sink))
    db.executemany("DELETE FROM dead_letter WHERE id = ?", [(number,) for number, _ in letters])
    return len(letters)


def purge(db: sqlite3.Connection, sink: str, ids: Sequence[int] | None) -> int:
    letters = _chosen(db, sink, ids)
    db.executemany("DELETE FROM dead_letter WHERE id = ?", [(number,) for number, _ in letters])
    return len(letters)


def _chosen(db: sqlite3.Connection, sink: str, ids: Sequence[int] | None) -> list[tuple[int, bytes]]:
    if ids is None:
        return db.execute("SELECT id, data FROM dead_letter WHERE sink = ? ORDER BY id", (sink,)).fetchall()
    query = "SELECT id, data FROM dead_letter WHERE id = ? AND sink = ?"
    return [row for number in sorted(set(ids)) for row in db.execute(query, (number, sink))]
