"""What is remembered of a page's series.

A `Member` is one series of the page as the proxy names it; a histogram, with all its lines, is one. An `Output` is
what goes on: one or more members, because dropping labels makes series coincide. Growth is always found member by
member, so that one of them may start anew or vanish without the total jumping.
"""

import hashlib
import math
import zlib
from array import array
from collections.abc import Iterable, Sequence
from typing import Final, Literal, NamedTuple

from forwarder.events import Attributes, Histogram, Kind
from forwarder.exposition.syntax import Labels

NAN: Final = math.nan
Role = Literal["value", "created", "bucket", "sum", "unwanted", "unsupported"]


class Output:
    """One point of each reading. `cost`: series as Prometheus counts them (a histogram: buckets, sum and count).

    `start`: since when (ns) the sum or histogram counts, 0 before its first reading. `base`: what members contributed
    that are forgotten, or that began anew while others went on. `shape`: stands for its bounds; 0 where it has none.
    """

    __slots__ = (
        "attributes",
        "base",
        "bounds",
        "cost",
        "digest",
        "histogram",
        "kind",
        "members",
        "name",
        "numbers",
        "shape",
        "start",
        "still",
    )

    def __init__(  # noqa: PLR0913, PLR0917 - plain data
        self, digest: bytes, name: str, kind: Kind, attributes: Attributes, bounds: tuple[float, ...], cost: int
    ) -> None:
        self.digest = digest
        self.name = name
        self.kind = kind
        self.attributes = attributes
        self.bounds = bounds
        self.shape = zlib.crc32(array("d", bounds).tobytes()) if bounds else 0
        self.cost = cost
        self.members: list[Member] = []
        self.start = 0
        self.base: Sequence[float] = ()
        self.numbers: Sequence[float] = ()  # that `histogram` was made of: most do not move between two readings
        self.histogram: Histogram | None = None
        self.still = Histogram(bounds, (0,) * (len(bounds) + 1), 0.0, 0)  # the delta of one that did not move


class Member:
    """`at`: its first place among the values; `size`: how many it has there. A histogram has its cumulative buckets,
    the last of them `+Inf`, and then its sum. `created`: the place of its `_created`, 0 where it has none.
    """

    __slots__ = ("at", "created", "digest", "output", "seen", "size")

    def __init__(self, digest: bytes, output: Output, at: int, size: int, created: int) -> None:
        self.digest = digest
        self.output = output
        self.at = at
        self.size = size
        self.created = created
        self.seen = 0  # ns, the last reading that had it


def digest(*parts: str | Iterable[tuple[str, str]]) -> bytes:
    """16 bytes that stand for a series: pages have tens of thousands of them, of hundreds of bytes each."""
    text = repr([part if isinstance(part, str) else sorted(part) for part in parts])
    return hashlib.blake2b(text.encode("utf-8", "backslashreplace"), digest_size=16).digest()


class Part(NamedTuple):
    """What a sample is: of which family (without `_bucket` and the like), and what goes on under which name."""

    family: str
    name: str
    kind: Kind
    role: Role


def resolve(name: str, types: dict[str, str], *, buckets: bool) -> Part:
    """By the types that the page told. In format 0.0.4 a `_created` is a family of its own, a gauge; it is known by
    the counter or histogram beside it. With `buckets` False a histogram becomes two sums, `_sum` and `_count`.
    """
    base, _, suffix = name.rpartition("_")
    exact, around = types.get(name), types.get(base)
    if suffix == "created" and (
        around in ("histogram", "summary", "counter") or types.get(f"{base}_total") == "counter"
    ):
        return Part(base, base, "gauge", "created")
    found = Part(name, name, "gauge", "value")
    match exact or around, suffix if exact is None else "":
        case "counter", "" | "total":
            found = Part(name, name, "sum", "value")
        case "summary", "sum" | "count":
            found = Part(base, name, "sum", "value")
        case "histogram", "bucket" | "sum" | "count":
            found = _of_histogram(base, suffix, buckets=buckets)
        case (("histogram" | "gaugehistogram"), ""):
            found = Part(name, name, "gauge", "unsupported")
        case "gaugehistogram", "bucket" | "gsum" | "gcount":
            found = Part(base, base, "gauge", "unsupported")
    return found


def _of_histogram(base: str, suffix: str, *, buckets: bool) -> Part:
    if suffix == "bucket":
        return Part(base, base, "histogram", "bucket" if buckets else "unwanted")
    if not buckets:
        return Part(base, f"{base}_{suffix}", "sum", "value")
    # The bucket +Inf says what `_count` says.
    return Part(base, base, "histogram", "sum" if suffix == "sum" else "unwanted")


def identity(name: str, labels: Labels) -> bytes:
    """Of a member, among those of its page. The labels in any order; those of a histogram without `le`."""
    return digest(name, labels)


def creation(family: str, labels: Labels) -> bytes:
    """Of the `_created` that belongs to a series."""
    return digest("created", family.removesuffix("_total"), labels)
