"""The OpenTelemetry SDK, as the agent uses it: a provider of its own with a reader that collects when asked. No global
provider, no exporter, no thread. Imported where it is used, because `check` and its like do without.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.metrics import Counter as Sum
from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, Counter, MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, MetricsData
from opentelemetry.sdk.resources import Resource

from forwarder.catalog import MetricDef
from forwarder.events import Attributes

# The SDK adds up what is beyond its limit (2000 sets of attributes) in a point without names. Ours come from the
# configuration: targets, endpoints and sinks.
MOST_SERIES: Final = 1_000_000

Point = tuple[float, Attributes]


class Meters:
    """Sums are added to; gauges are looked up with `shown`, by their names, at each collection."""

    def __init__(self, metrics: Iterable[MetricDef], shown: Callable[[str], Sequence[Point]]) -> None:
        self._reader = _Reader(cardinality_limits={Counter: MOST_SERIES})
        # All given, or the SDK would look for variables. It heeds OTEL_SDK_DISABLED all the same.
        provider = MeterProvider(
            [self._reader],
            resource=Resource({}),
            exemplar_filter=AlwaysOffExemplarFilter(),
            shutdown_on_exit=False,
        )
        meter = provider.get_meter("forwarder")
        self._sums: dict[str, Sum] = {}
        for metric in metrics:
            about = metric.name, metric.unit, metric.description
            if metric.kind == "sum":
                self._sums[metric.name] = meter.create_counter(*about)
            else:
                meter.create_observable_gauge(about[0], [_look(metric.name, shown)], *about[1:])

    def add(self, name: str, amount: float, attributes: Attributes) -> None:
        self._sums[name].add(amount, attributes)

    def collect(self) -> Iterator[tuple[str, float, Attributes]]:
        """Name, value (of a sum: since the beginning) and attributes of every point."""
        for metric, points in self._reader.read():
            for point in points:
                yield metric, float(point.value), dict(point.attributes)


class _Reader(MetricReader):
    """Collects when asked, and keeps nothing."""

    _found: MetricsData | None = None

    def read(self) -> list[tuple[str, Sequence[Any]]]:
        self.collect()
        found, self._found = self._found, None
        return [
            (metric.name, metric.data.data_points)
            for resource in (found.resource_metrics if found else ())
            for scope in resource.scope_metrics
            if scope.scope.name == "forwarder"  # the SDK can be told to count itself, by a variable
            for metric in scope.metrics
        ]

    def _receive_metrics(self, metrics_data: MetricsData, *_: Any, **__: Any) -> None:
        self._found = metrics_data

    def shutdown(self, *_: Any, **__: Any) -> None: ...


def _look(name: str, shown: Callable[[str], Sequence[Point]]) -> Callable[[CallbackOptions], Iterable[Observation]]:
    return lambda _: [Observation(value, attributes) for value, attributes in shown(name)]
