"""What a page's counters need to go on after a restart of the agent, stored with each of their batches.

Numbers are packed and a series stands for itself by 16 bytes: a page of 50,000 lines stores about half a megabyte each
time, an ordinary one some kilobytes (docs/benchmarks.md).
"""

from array import array
from typing import Final

import msgspec

from forwarder.codec import Codec
from forwarder.errors import CodecError
from forwarder.exposition.counters import ANY_SHAPE, Began, Counters, Remembered
from forwarder.exposition.series import NAN

_DIGEST: Final = 16  # bytes


class Stored(msgspec.Struct, frozen=True, array_like=True):
    """`series`: of each its digest and that of its output; `sizes` (u16), `numbers` (f64, so many for each), `created`
    (f64) in the same order. `outputs`: digests, with `starts` (i64) and `shapes` (u32) in the same order and
    `bases` where there are any.
    """

    rules: str
    time: int
    process: float | None
    capped: bool
    mixed: bool
    calm: int
    history: list[bool]
    processes: list[float]
    series: bytes
    sizes: bytes
    numbers: bytes
    created: bytes
    outputs: bytes
    starts: bytes
    bases: dict[bytes, tuple[float, ...]]
    shapes: bytes | None = None  # older rows have none


_codec: Final = Codec(Stored, "the state of a metrics page")


def decode(data: bytes) -> Stored:
    """Read what `encode` wrote. Raises CodecError for anything else: what is packed must agree too."""
    stored = _codec.decode(data)
    packed = stored.series, stored.sizes, stored.numbers, stored.created, stored.outputs, stored.starts
    if any(len(each) % size for each, size in zip(packed, (2 * _DIGEST, 2, 8, 8, _DIGEST, 8), strict=True)):
        raise CodecError("damaged the state of a metrics page: a number is cut off")
    count, sizes = len(stored.series) // (2 * _DIGEST), array("H", stored.sizes)
    agree = len(sizes) == len(stored.created) // 8 == count and sum(sizes) == len(stored.numbers) // 8
    outputs = len(stored.outputs) // _DIGEST
    agree = agree and outputs == len(stored.starts) // 8
    if not agree or 0 in sizes or (stored.shapes is not None and len(stored.shapes) != 4 * outputs):
        raise CodecError("damaged the state of a metrics page: its parts do not agree")
    return stored


def encode(counters: Counters, rules: str) -> bytes:
    """What the next run needs, should the reading that was observed last be the last one."""
    page, numbers = counters.page, counters.next
    members = list(page.members.values())
    outputs = [output for output in page.outputs.values() if output.kind != "gauge"]
    pending = {output.digest: (start, base) for output, start, base in counters.starts}
    began = [pending.get(output.digest, (output.start, output.base)) for output in outputs]
    bases = {output.digest: tuple(base) for output, (_, base) in zip(outputs, began, strict=True) if base}
    created = array("d", (numbers[member.created] if member.created else NAN for member in members))
    process = page.process_start
    return _codec.encode(
        Stored(
            # Where others are to come in the place of what is outdated, they are not new: as under other rules.
            rules="" if page.outdated else rules,
            time=counters.now,
            process=process if process == process else None,  # noqa: PLR0124 - NaN
            capped=page.capped > 0,
            mixed=counters.mixed if counters.turned is None else counters.turned,
            calm=0 if counters.strange else counters.calm + 1,
            history=[*counters.history, counters.strange],
            processes=list(counters.processes),
            series=b"".join(member.digest + member.output.digest for member in members),
            sizes=array("H", (member.size for member in members)).tobytes(),
            numbers=b"".join(numbers[member.at : member.at + member.size].tobytes() for member in members),
            created=created.tobytes(),
            outputs=b"".join(output.digest for output in outputs),
            starts=array("q", (start for start, _ in began)).tobytes(),
            bases=bases,
            shapes=array("I", (output.shape for output in outputs)).tobytes(),
        )
    )


def restore(counters: Counters, stored: Stored, rules: str) -> None:
    """Take up what the last run left. Under other rules a series that was not there before may still be an old one."""
    sizes, created = array("H", stored.sizes), array("d", stored.created)
    numbers, starts = array("d", stored.numbers), array("q", stored.starts)
    shapes = [ANY_SHAPE] * len(starts) if stored.shapes is None else array("I", stored.shapes)
    series, outputs = _digests(stored.series), _digests(stored.outputs)
    at = 0
    for index, size in enumerate(sizes):
        key, output = series[2 * index], series[2 * index + 1]
        counters.remembered[key] = Remembered(numbers[at : at + size], created[index], output)
        at += size
    counters.page.first = frozenset(counters.remembered)
    for key, start, shape in zip(outputs, starts, shapes, strict=True):
        counters.began[key] = Began(start, stored.bases.get(key, ()), shape)
    counters.time = stored.time
    counters.process = NAN if stored.process is None else stored.process
    counters.capped = stored.capped
    counters.trusted = not stored.capped and stored.rules == rules
    counters.mixed = stored.mixed
    counters.calm = stored.calm
    counters.history.extend(stored.history)
    counters.processes.extend(stored.processes)


def _digests(packed: bytes) -> list[bytes]:
    return [packed[at : at + _DIGEST] for at in range(0, len(packed), _DIGEST)]
