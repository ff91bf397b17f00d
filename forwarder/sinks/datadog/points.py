"""What one event becomes at Datadog, whichever way it goes there. Pure.

    gauge        a gauge; `litellm.up` and `litellm.ready` a service check besides
    sum          a count: what it grew by since the reading before
    histogram    of what it grew by: the counts `.count` and `.sum`, the gauges `.avg`, `.p50`, `.p95` and `.p99`, and
                 if wanted a count `.bucket` for each bucket that grew
    change       an event

A sum or histogram without a reading before it yields nothing: what it grew by is unknown.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from forwarder.catalog import SERVICE_CHECKS
from forwarder.events import Attributes, Change, Event, Histogram, Metric, finite
from forwarder.sinks.datadog.tags import metric_name, tags, unified

MAX_TITLE: Final = 100  # characters
# Datadog takes 4000 characters; an agent takes no more than 8192 bytes in all, and ours are a few sentences.
MAX_TEXT: Final = 1000
MAX_KEY: Final = 100  # characters of an aggregation key
SOURCE: Final = "litellm"
# Datadog takes service checks "up to 10 minutes in the past" [API reference, Service Checks]; less what the way takes.
# An older verdict is not the state of anything any more, and the gauge beside it carries the history.
MAX_CHECK_AGE: Final = 540  # seconds
_CHECKS: Final = {check.metric.name: check for check in SERVICE_CHECKS}
QUANTILES: Final = {".p50": 0.5, ".p95": 0.95, ".p99": 0.99}


class Point(NamedTuple):
    """`interval` is what a count is of, in seconds; `time` in seconds since the epoch."""

    name: str
    kind: Literal["gauge", "count"]
    value: float
    tags: tuple[str, ...]
    time: int
    interval: int = 0


class Check(NamedTuple):
    name: str
    status: int  # 0 ok, 1 warning, 2 critical, 3 unknown
    message: str
    tags: tuple[str, ...]
    time: int


class Note(NamedTuple):
    """What Datadog calls an event."""

    title: str
    text: str
    alert: Literal["info", "warning", "error"]
    key: str  # Datadog shows events of one key as one
    tags: tuple[str, ...]
    time: int


Item = Point | Check | Note


@dataclass(frozen=True)
class Form:
    """What the configuration says about it. `defaults`: tags, by key, where neither event nor resource has the key."""

    changes: bool = True
    buckets: bool = False
    defaults: Mapping[str, str] = field(default_factory=dict)

    def common(self, resource: Attributes) -> Attributes:
        return {**self.defaults, **unified(resource)}


def items(event: Event, common: Attributes, form: Form, *, now: int, latest: int) -> Iterator[Item]:
    """Everything `event` becomes. `common`: what `Form.common` made of its resource. `now` and `latest` are seconds:
    no time is after `latest`, because Datadog drops what comes from the future without a word, and a clock that was
    set back makes such times.
    """
    time = min(max(event.time // 10**9, 1), latest)  # 0 would mean "no timestamp" to the client
    if isinstance(event, Change):
        if form.changes:
            yield _note(event, {**common, **unified(event.attributes)}, time)
        return
    attributes = {**common, **unified(event.attributes)}
    where = tags(attributes)
    if event.kind == "gauge" and event.value is not None:
        yield Point(metric_name(event.name), "gauge", event.value, where, time)
        if (check := _CHECKS.get(event.name)) and now - time <= MAX_CHECK_AGE:
            status = check.statuses.get(event.value)
            if status is not None:
                yield Check(check.name, status.code, status.message, where, time)
    elif event.delta is not None:
        interval = max(1, round((event.time - event.delta.since) / 1e9))
        if event.delta.value is not None:
            yield Point(metric_name(event.name), "count", event.delta.value, where, time, interval)
        if event.delta.histogram is not None:
            yield from _histogram(event, event.delta.histogram, where, time, interval)
            if form.buckets:
                yield from _buckets(event, event.delta.histogram, attributes, time, interval)


def _histogram(event: Metric, grown: Histogram, where: tuple[str, ...], time: int, interval: int) -> Iterator[Point]:
    yield Point(metric_name(event.name, ".count"), "count", float(grown.count), where, time, interval)
    yield Point(metric_name(event.name, ".sum"), "count", grown.sum, where, time, interval)
    estimates = {".avg": grown.sum / grown.count if grown.count else None}
    estimates |= {suffix: quantile(q, grown) for suffix, q in QUANTILES.items()}
    for suffix, estimate in estimates.items():
        if (value := finite(estimate)) is not None:
            yield Point(metric_name(event.name, suffix), "gauge", value, where, time)


def _buckets(event: Metric, grown: Histogram, attributes: Attributes, time: int, interval: int) -> Iterator[Point]:
    """Not cumulated over buckets, so that a sum over `upper_bound` is the count."""
    for bound, count in zip((*grown.bounds, float("inf")), grown.counts, strict=True):
        if count:
            where = tags({**attributes, "upper_bound": repr(bound).replace("+", "")})
            yield Point(metric_name(event.name, ".bucket"), "count", float(count), where, time, interval)


def quantile(q: float, histogram: Histogram) -> float | None:
    """Estimated as by Prometheus' histogram_quantile: linear within the bucket, from 0 in the first one if its bound
    is positive; in the last, open one the highest bound there is. None of an empty histogram.
    """
    rank = q * sum(histogram.counts)
    below, start = 0, 0.0
    for number, (bound, count) in enumerate(zip(histogram.bounds, histogram.counts, strict=False)):
        if count and below + count >= rank:
            if number == 0 and bound <= 0:
                return bound
            return start + (bound - start) * ((rank - below) / count)
        below += count
        start = bound
    return histogram.bounds[-1] if rank and histogram.bounds else None


def _note(change: Change, attributes: Attributes, time: int) -> Note:
    title = _printable(change.title).replace("\n", " ").strip()[:MAX_TITLE] or metric_name(change.name)[:MAX_TITLE]
    text = _printable(change.text).strip()[:MAX_TEXT] or title
    key = tags({"change": f"{change.name}:{attributes.get('litellm.target', '')}"})
    where = tags({**attributes, "change": change.name})
    return Note(title, text, change.severity, "".join(key)[:MAX_KEY], where, time)


def _printable(text: str) -> str:
    """Without control characters, lone surrogates and other line ends; a newline stays."""
    return "".join(char if char.isprintable() or char == "\n" else " " for char in text)
