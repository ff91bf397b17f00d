"""The event model: what a poll observed, in OpenTelemetry's words, and its codec.

A `Batch` is the events of one poll. It is what the spool stores and what sinks are given. Values are finite;
times are integer nanoseconds since the Unix epoch, UTC, taken when the reply arrived. Unknown is absence.

Nothing here can refer to itself, so the garbage collector need not look (`gc=False`): a page of metrics has thousands.
"""

import math
from typing import Final, Literal

import msgspec

from forwarder.codec import Codec

AttributeValue = str | int
Attributes = dict[str, AttributeValue]
Kind = Literal["gauge", "sum", "histogram"]
Severity = Literal["info", "warning", "error"]


class Histogram(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Explicit-bucket histogram. `counts` has one entry more than `bounds`; counts are not cumulated over buckets."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float
    count: int


class Delta(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a sum or histogram grew by since the reading at `since` (ns), computed once, before the spool,
    so that a resend repeats the same numbers.
    """

    since: int
    value: float | None = None
    histogram: Histogram | None = None


class Metric(msgspec.Struct, frozen=True, tag="m", array_like=True, gc=False):
    """One point. `kind` gauge has `value`; sum is monotonic and cumulative since `start_time`;
    histogram is cumulative and has `histogram` instead of `value`. `unit` is UCUM.
    """

    name: str
    kind: Kind
    unit: str
    time: int
    value: float | None = None
    attributes: Attributes = {}
    start_time: int | None = None
    histogram: Histogram | None = None
    delta: Delta | None = None


class Change(msgspec.Struct, frozen=True, tag="c", array_like=True, gc=False):
    """A transition, told once: Datadog event, OTLP log record, New Relic event.

    `title` is one line; `text` is for people; neither ever holds text that a proxy sent.
    """

    name: str
    time: int
    severity: Severity
    title: str
    text: str = ""
    attributes: Attributes = {}


Event = Metric | Change


class Resource(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What was observed: the target, plus the configured resource attributes."""

    attributes: Attributes = {}


class Batch(msgspec.Struct, frozen=True, array_like=True, gc=False):
    resource: Resource
    time: int
    events: tuple[Event, ...]


_codec: Final = Codec(Batch, "a batch")
encode: Final = _codec.encode
decode: Final = _codec.decode  # raises CodecError


def finite(value: object) -> float | None:
    """The number as a finite float, or None: JSON has no NaN, and a bool is not a number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
