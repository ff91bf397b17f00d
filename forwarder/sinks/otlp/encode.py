"""From batches to one OTLP request, as far as one reaches. No I/O, no clock; the input is not changed.

A request holds events of one kind, metrics or changes, because they go to different addresses. Metrics are merged by
resource, then by name, kind and unit; the points of a metric stand in the order of their times, because a receiver
that takes no sample older than its newest would refuse the others (Prometheus, Mimir).

Sums and histograms are sent cumulative, with the start time that the poller keeps: Prometheus and Mimir convert deltas
at best, and may drop them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from operator import itemgetter
from typing import Final, Literal

import msgspec
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, SeverityNumber
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality, DataPointFlags, NumberDataPoint
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric as MetricMessage
from opentelemetry.proto.resource.v1.resource_pb2 import Resource as ResourceMessage

from forwarder import catalog
from forwarder.events import Attributes, Batch, Change, Event, Histogram, Metric, Resource

Signal = Literal["metrics", "logs"]

# Bytes before compression. gRPC servers take 4 MiB unless they are told otherwise; OTLP's own limit is 64 MiB.
MAX_REQUEST: Final = 4 * 2**20
MAX_CACHED: Final = 50_000  # sets of attributes, of some 400 bytes each

TARGET: Final = "litellm.target"
EVENT_NAME: Final = "event.name"
_SCOPE: Final = InstrumentationScope(name="litellm-forwarder", version=version("litellm-forwarder"))
_DESCRIPTIONS: Final = {metric.name: metric.description for metric in catalog.METRICS}
_SEVERITIES: Final = {
    "info": (SeverityNumber.SEVERITY_NUMBER_INFO, "INFO"),
    "warning": (SeverityNumber.SEVERITY_NUMBER_WARN, "WARN"),
    "error": (SeverityNumber.SEVERITY_NUMBER_ERROR, "ERROR"),
}
_UINT64_MAX: Final = 2**64 - 1
_INT64: Final = range(-(2**63), 2**63)
# Bounds, in bytes, of what a part of a message has around it (a tag and a length), and of its fields of fixed size.
_AROUND: Final = 6
_METRIC: Final = 6 * _AROUND + 4
_NUMBER: Final = _AROUND + 3 * 9 + 2
_HISTOGRAM: Final = 3 * _AROUND + 4 * 9
_RECORD: Final = 6 * _AROUND + 2 * 9 + 2 + len("ERROR")

_pack: Final = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, slots=True)
class Request:
    """The first `events` of what was given; `sent` of them are in `data`, the others were passed over."""

    signal: Signal
    data: bytes
    events: int
    sent: int


@dataclass(frozen=True, slots=True)
class Cache:
    """Encoded sets of attributes, kept from request to request: the same series come with every poll."""

    encoded: dict[bytes, bytes] = field(default_factory=dict)

    def attributes(self, attributes: Attributes) -> bytes:
        """A NumberDataPoint that has these and nothing else."""
        try:
            key = _pack(attributes)
        except (UnicodeEncodeError, OverflowError):
            return attributes_only(attributes)  # with what no protobuf holds either, and so changed in there
        encoded = self.encoded.get(key)
        if encoded is None:
            if len(self.encoded) >= MAX_CACHED:
                self.encoded.clear()
            encoded = self.encoded[key] = attributes_only(attributes)
        return encoded


def encode(
    batches: Sequence[Batch], instance: str, cache: Cache, *, changes: bool = True, max_bytes: int = MAX_REQUEST
) -> Request:
    """The longest run of events from the first on that makes one request: of one kind, and of `max_bytes` at most,
    unless the first alone has more. `instance` tells this agent from others. Without `changes` they are passed over.
    """
    request: _Metrics | _Logs | None = None
    events = 0
    for resource, event in ((batch.resource, event) for batch in batches for event in batch.events):
        if changes or isinstance(event, Metric):
            if request is None:
                made = _Metrics if isinstance(event, Metric) else _Logs
                request = made(instance, cache, max_bytes)
            if not request.add(resource, event):
                break
        events += 1
    return Request("metrics", b"", events, 0) if request is None else request.done(events)


# --- metrics ------------------------------------------------------------------------------------------------------

_Points = list[tuple[int, bytes, Metric]]  # time, attributes, the rest


class _Metrics:
    def __init__(self, instance: str, cache: Cache, max_bytes: int) -> None:
        self._instance = instance
        self._cache = cache
        self._left = max_bytes
        self._count = 0
        self._resources: dict[frozenset[tuple[str, str | int]], _Observed] = {}

    def add(self, resource: Resource, event: Event) -> bool:
        """False, and nothing is changed, if it does not fit in."""
        if not isinstance(event, Metric):
            return False
        whose = frozenset(resource.attributes.items())
        observed = self._resources.get(whose)
        size = 0
        if observed is None:
            observed = _Observed(_resource(resource, self._instance), _target(resource))
            size += observed.size()
        what = (event.name, event.kind, event.unit)
        points = observed.metrics.get(what)
        if points is None:
            points = []
            size += _metric(*what).ByteSize() + _METRIC
        attributes = self._cache.attributes(event.attributes)
        if TARGET not in event.attributes:
            attributes += observed.target  # repeated fields, one after the other, are one
        size += len(attributes) + (_NUMBER if event.histogram is None else _histogram_size(event.histogram))
        if self._count and size > self._left:
            return False
        self._left -= size
        self._count += 1
        self._resources[whose] = observed
        observed.metrics[what] = points
        points.append((event.time, attributes, event))
        return True

    def done(self, events: int) -> Request:
        message = ExportMetricsServiceRequest()
        for observed in self._resources.values():
            scope = message.resource_metrics.add(resource=observed.resource).scope_metrics.add(scope=_SCOPE)
            for what, points in observed.metrics.items():
                metric = scope.metrics.add()
                metric.CopyFrom(_metric(*what))
                points.sort(key=itemgetter(0))
                _fill(metric, points)
        return Request("metrics", message.SerializeToString(), events, self._count)


@dataclass(frozen=True, slots=True)
class _Observed:
    resource: ResourceMessage
    target: bytes
    metrics: dict[tuple[str, str, str], _Points] = field(default_factory=dict)

    def size(self) -> int:
        return self.resource.ByteSize() + _SCOPE.ByteSize() + 4 * _AROUND


def _metric(name: str, kind: str, unit: str) -> MetricMessage:
    """Without points. A unit of "1" is left out, which means the same: Prometheus and Mimir make a name out of it, and
    `litellm.health` would be `litellm_health_ratio` there.
    """
    metric = MetricMessage(
        name=valid(name), unit="" if unit == "1" else valid(unit), description=_DESCRIPTIONS.get(name, "")
    )
    cumulative = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
    match kind:
        case "sum":
            metric.sum.aggregation_temporality = cumulative
            metric.sum.is_monotonic = True
        case "histogram":
            metric.histogram.aggregation_temporality = cumulative
        case _:
            metric.gauge.SetInParent()
    return metric


def _fill(metric: MetricMessage, points: _Points) -> None:
    if metric.HasField("histogram"):
        for time, attributes, event in points:
            _add_histogram(metric, time, attributes, event)
        return
    add = (metric.sum if metric.HasField("sum") else metric.gauge).data_points.add
    for time, attributes, event in points:
        point = add()
        point.ParseFromString(attributes)
        point.time_unix_nano = time
        if event.start_time is not None:
            point.start_time_unix_nano = event.start_time
        if event.value is None:
            point.flags = DataPointFlags.DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK
        else:
            point.as_double = event.value


def _add_histogram(metric: MetricMessage, time: int, attributes: bytes, event: Metric) -> None:
    point = metric.histogram.data_points.add(time_unix_nano=time, start_time_unix_nano=event.start_time)
    point.attributes.extend(NumberDataPoint.FromString(attributes).attributes)
    if event.histogram is None:
        point.flags = DataPointFlags.DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK
        return
    point.explicit_bounds.extend(event.histogram.bounds)
    point.bucket_counts.extend(_count(count) for count in event.histogram.counts)
    point.count = _count(event.histogram.count)
    point.sum = event.histogram.sum


def _count(count: int) -> int:
    """As OTLP can hold it: a page of metrics may claim any number."""
    return min(max(count, 0), _UINT64_MAX)


def _histogram_size(histogram: Histogram) -> int:
    return _HISTOGRAM + 8 * (len(histogram.bounds) + len(histogram.counts))


# --- changes ------------------------------------------------------------------------------------------------------


class _Logs:
    def __init__(self, instance: str, cache: Cache, max_bytes: int) -> None:
        self._instance = instance
        self._cache = cache
        self._left = max_bytes
        self._records: dict[frozenset[tuple[str, str | int]], tuple[ResourceMessage, list[LogRecord]]] = {}
        self._count = 0

    def add(self, resource: Resource, event: Event) -> bool:
        """False, and nothing is changed, if it does not fit in."""
        if not isinstance(event, Change):
            return False
        whose = frozenset(resource.attributes.items())
        message, records = self._records.get(whose) or (_resource(resource, self._instance), [])
        size = 0 if records else message.ByteSize() + _SCOPE.ByteSize() + 4 * _AROUND
        attributes = self._cache.attributes(event.attributes)
        if TARGET not in event.attributes:
            attributes += _target(resource)
        record = _record(event, attributes)
        size += record.ByteSize() + _AROUND
        if self._count and size > self._left:
            return False
        self._left -= size
        self._count += 1
        self._records[whose] = message, records
        records.append(record)
        return True

    def done(self, events: int) -> Request:
        message = ExportLogsServiceRequest()
        for resource, records in self._records.values():
            scope = message.resource_logs.add(resource=resource).scope_logs.add(scope=_SCOPE)
            scope.log_records.extend(records)
        return Request("logs", message.SerializeToString(), events, self._count)


def _record(change: Change, attributes: bytes) -> LogRecord:
    number, text = _SEVERITIES[change.severity]
    record = LogRecord(
        time_unix_nano=change.time,
        observed_time_unix_nano=change.time,
        severity_number=number,
        severity_text=text,
        event_name=valid(change.name),
    )
    record.body.string_value = valid(f"{change.title}\n{change.text}" if change.text else change.title)
    if EVENT_NAME not in change.attributes:  # for receivers that do not look at the field, which is newer
        record.attributes.add(key=EVENT_NAME).value.string_value = record.event_name
    record.attributes.extend(NumberDataPoint.FromString(attributes).attributes)
    return record


# --- attributes ---------------------------------------------------------------------------------------------------


def _resource(resource: Resource, instance: str) -> ResourceMessage:
    """Who this is about. `job` and `instance` are made of the first two in Prometheus and Mimir, so that no two agents
    or targets write to one series. What the agent says about itself has no target.

    The target itself is left to the points. VictoriaMetrics makes labels of all attributes of a resource too, and
    vmagent 1.112 would write that one twice, which a Prometheus behind it refuses.
    """
    target = resource.attributes.get(TARGET)
    identity: Attributes = {
        "service.name": "litellm-forwarder" if target is None else "litellm",
        "service.instance.id": instance if target is None else f"{instance}/{target}",
    }
    encoded = attributes_only(
        {**identity, **{key: each for key, each in resource.attributes.items() if key != TARGET}}
    )
    return ResourceMessage(attributes=NumberDataPoint.FromString(encoded).attributes)


def _target(resource: Resource) -> bytes:
    """What each point says of its resource: what the resource says itself ends up in `target_info` in Prometheus and
    Mimir, where a query must join it.
    """
    return attributes_only({TARGET: resource.attributes[TARGET]} if TARGET in resource.attributes else {})


def attributes_only(attributes: Attributes) -> bytes:
    """A NumberDataPoint with these attributes and nothing else."""
    point = NumberDataPoint()
    add = point.attributes.add
    for key, value in _named(attributes).items():
        pair = add()
        pair.key = key
        if isinstance(value, str):
            pair.value.string_value = valid(value)
        elif value in _INT64:
            pair.value.int_value = value
        else:
            pair.value.string_value = str(value)
    return point.SerializeToString()


def _named(attributes: Attributes) -> Attributes:
    """With names that OTLP can hold: none empty, and none twice. A name that can be held stays as it is."""
    if "".join(attributes).isascii() and "" not in attributes:
        return attributes
    named: Attributes = {}
    for key, value in attributes.items():
        name = valid(key) or "_"
        while name != key and (name in named or name in attributes):
            name += "_"
        named[name] = value
    return named


def valid(text: str) -> str:
    """As UTF-8 can hold it: a lone surrogate becomes its escape, so that texts which differ still do."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")
