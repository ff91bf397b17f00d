"""From batches to requests: what is merged, what is kept apart, and where a request ends."""

import pytest
from backends.otlp import facts_of
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric as MetricMessage

from forwarder import catalog
from forwarder.events import Attributes, Batch, Change, Event, Histogram, Metric, Resource
from forwarder.sinks.otlp.encode import MAX_CACHED, Cache, Request, encode

NOW = 1_750_000_000_000_000_000
SECOND = 10**9


def point(value: float = 1.0, name: str = "litellm.up", time: int = NOW, **attributes: str | int) -> Metric:
    return Metric(name, "gauge", "1", time, value, dict(attributes))


def change(title: str = "eu is down") -> Change:
    return Change("litellm.proxy.down", NOW, "error", title)


def batch(*events: Event, target: str = "eu", **resource: str | int) -> Batch:
    return Batch(Resource({"litellm.target": target, **resource}), NOW, events)


def encoded(*batches: Batch, changes: bool = True, max_bytes: int = 4 * 2**20) -> Request:
    return encode(batches, "agent-1", Cache(), changes=changes, max_bytes=max_bytes)


def message(*batches: Batch) -> ExportMetricsServiceRequest:
    request = encoded(*batches)
    assert facts_of("metrics", request.data), "what the strict receiver does not take"
    return ExportMetricsServiceRequest.FromString(request.data)


def metrics(*batches: Batch) -> list[MetricMessage]:
    (resource,) = message(*batches).resource_metrics
    (scope,) = resource.scope_metrics
    return list(scope.metrics)


def resource_of(one: Batch) -> Attributes:
    (resource,) = message(one).resource_metrics
    return {pair.key: pair.value.string_value for pair in resource.resource.attributes}


def test_batches_of_one_resource_become_one_and_metrics_of_one_name_too() -> None:
    """Two messages for the same resource may be taken for one another."""
    found = metrics(batch(point(1.0), point(2.0, "litellm.ready")), batch(point(3.0, time=NOW + SECOND)))
    assert [(each.name, [p.as_double for p in each.gauge.data_points]) for each in found] == [
        ("litellm.up", [1.0, 3.0]),
        ("litellm.ready", [2.0]),
    ]


def test_the_points_of_a_metric_go_oldest_first() -> None:
    """Whoever takes no sample older than the newest would refuse the others."""
    times = [NOW + 3 * SECOND, NOW, NOW + SECOND]
    (found,) = metrics(*(batch(point(time=time)) for time in times))
    assert [each.time_unix_nano for each in found.gauge.data_points] == sorted(times)


def test_what_differs_is_kept_apart() -> None:
    """Two targets are two resources; a name of another kind or unit is another metric."""
    assert len(message(batch(point()), batch(point(), target="us")).resource_metrics) == 2
    same_name = [
        point(),
        Metric("litellm.up", "sum", "1", NOW, 1.0, {}, NOW),
        Metric("litellm.up", "gauge", "s", NOW, 1.0),
    ]
    assert len(metrics(batch(*same_name))) == 3


def test_no_two_agents_or_targets_are_one_service_instance() -> None:
    """Mimir and Prometheus make `job` and `instance` of it."""
    assert resource_of(batch(point())) == {
        "service.name": "litellm",
        "service.instance.id": "agent-1/eu",
    }
    own = Batch(Resource({"region": "a"}), NOW, (point(),))
    assert resource_of(own) == {
        "service.name": "litellm-forwarder",
        "service.instance.id": "agent-1",
        "region": "a",
    }


def test_the_configured_resource_comes_first() -> None:
    """Whoever sets `service.name` means it."""
    found = resource_of(batch(point(), **{"service.name": "llm", "service.instance.id": "x"}))
    assert (found["service.name"], found["service.instance.id"]) == ("llm", "x")


def test_each_point_says_its_target() -> None:
    """Attributes of a resource end in `target_info`, where no query looks by itself. It stands in one place only:
    vmagent would make two labels of the same name.
    """
    (found,) = metrics(batch(point(model="a")))
    assert {p.key: p.value.string_value for p in found.gauge.data_points[0].attributes} == {
        "model": "a",
        "litellm.target": "eu",
    }


def test_state_gauges_have_no_unit() -> None:
    """A unit of 1 would make `litellm_up_ratio` of it in Prometheus; 1 is what no unit means."""
    seconds = Metric("litellm.probe.duration", "gauge", "s", NOW, 0.1)
    assert [each.unit for each in metrics(batch(point(), seconds))] == ["", "s"]


def test_metrics_are_described_as_in_the_catalog() -> None:
    (known,) = metrics(batch(point()))
    assert known.description == catalog.UP.description
    (foreign,) = metrics(batch(point(name="litellm_requests")))
    assert foreign.description == ""


def test_sums_and_histograms_are_cumulative_with_their_start() -> None:
    """Deltas are not sent: Prometheus would drop them."""
    start = NOW - SECOND
    total = Metric("a", "sum", "{call}", NOW, 5.0, {}, start)
    shape = Metric("b", "histogram", "s", NOW, None, {}, start, Histogram((0.1, 1.0), (1, 2, 3), 4.5, 6))
    first, second = metrics(batch(total, shape))
    assert (first.sum.is_monotonic, first.sum.aggregation_temporality, first.sum.data_points[0].as_double) == (
        True,
        2,
        5,
    )
    (bins,) = second.histogram.data_points
    assert second.histogram.aggregation_temporality == 2
    assert (list(bins.explicit_bounds), list(bins.bucket_counts), bins.sum, bins.count) == (
        [0.1, 1],
        [1, 2, 3],
        4.5,
        6,
    )
    assert first.sum.data_points[0].start_time_unix_nano == bins.start_time_unix_nano == start


def test_a_point_without_a_value_says_so() -> None:
    """Not 0: unknown is absence."""
    (found,) = metrics(batch(Metric("a", "gauge", "1", NOW), point(name="a")))
    assert [p.WhichOneof("value") for p in found.gauge.data_points] == [None, "as_double"]
    assert [p.flags for p in found.gauge.data_points] == [1, 0]


def test_a_request_ends_where_the_kind_changes() -> None:
    """Metrics and changes go to different addresses."""
    events = (point(), point(), change(), change(), point())
    first = encoded(batch(*events))
    assert (first.signal, first.events, first.sent) == ("metrics", 2, 2)
    second = encoded(batch(*events[2:]))
    assert (second.signal, second.events, second.sent) == ("logs", 2, 2)


def test_changes_may_be_passed_over() -> None:
    """Then they end no request, and one of changes alone is none."""
    request = encoded(batch(point(), change(), point()), changes=False)
    assert (request.signal, request.events, request.sent) == ("metrics", 3, 2)
    request = encoded(batch(change(), change()), changes=False)
    assert (request.events, request.sent, request.data) == (2, 0, b"")


@pytest.mark.parametrize("kind", ["gauge", "histogram", "change", "resources"])
def test_a_request_stays_below_its_bytes(kind: str) -> None:
    """Whatever it is made of, and it is filled well."""
    text = "x" * 30
    made: dict[str, list[Batch]] = {
        "gauge": [batch(*(point(model=f"{text}{i}", n=i) for i in range(300)))],
        "histogram": [
            batch(
                *(
                    Metric(
                        f"h{i % 3}", "histogram", "s", NOW, None, {"m": i}, NOW, Histogram((1.0, 2.0), (1, 2, 3), 4, 6)
                    )
                    for i in range(300)
                )
            )
        ],
        "change": [batch(*(change(text * (i % 9)) for i in range(300)))],
        "resources": [batch(point(name=f"n{i}", model=text), target=f"t{i}", where=text) for i in range(300)],
    }
    for limit in (900, 5000, 20_000):
        request = encoded(*made[kind], max_bytes=limit)
        assert 0 < request.events < 300
        assert request.sent == request.events == len(facts_of(request.signal, request.data))
        assert limit * 0.5 < len(request.data) <= limit


def test_an_event_larger_than_a_request_goes_alone() -> None:
    """Else nothing would ever get past it."""
    request = encoded(batch(point(model="x" * 1000), point()), max_bytes=100)
    assert request.events == 1


def test_attributes_that_only_differ_in_what_utf8_cannot_hold_still_differ() -> None:
    """Names are kept apart, and never empty; one that can be held stays; numbers too large for OTLP become texts."""
    odd: Attributes = {"a\ud800": "x\ud800", "a\\ud800": "y", "": "z", "_": 2**64, "n": -(2**63)}
    (found,) = metrics(batch(Metric("a\udfff", "gauge", "\ud800", NOW, 1.0, odd)))
    assert found.name == "a\\udfff"
    pairs = {p.key: p.value for p in found.gauge.data_points[0].attributes}
    assert list(pairs) == ["a\\ud800_", "a\\ud800", "__", "_", "n", "litellm.target"]
    assert pairs["a\\ud800_"].string_value == "x\\ud800"
    assert pairs["a\\ud800"].string_value == "y"
    assert pairs["_"].string_value == str(2**64)
    assert pairs["n"].int_value == -(2**63)


def test_counts_that_otlp_cannot_hold_are_its_largest() -> None:
    """A page of metrics may claim any number; it must not stop the sink."""
    claimed = Histogram((1.0,), (2**64, 5), 1.0, 2**65)
    (found,) = metrics(batch(Metric("h", "histogram", "s", NOW, None, {}, NOW - 1, claimed)))
    assert list(found.histogram.data_points[0].bucket_counts) == [2**64 - 1, 5]
    assert found.histogram.data_points[0].count == 2**64 - 1


def test_a_repeat_is_the_same_request_and_attributes_are_encoded_once() -> None:
    """What was kept changes nothing; and it is bounded."""
    cache = Cache()
    batches = [batch(point(model=f"m{i}")) for i in range(10)]
    first = encode(batches, "agent-1", cache)
    assert len(cache.encoded) == 10
    assert encode(batches, "agent-1", cache) == first
    cache.encoded.update({str(i).encode(): b"" for i in range(MAX_CACHED)})
    encode([batch(point(model="new"))], "agent-1", cache)
    assert len(cache.encoded) == 1


def test_nothing_makes_an_empty_request() -> None:
    assert encoded() == encoded(batch()) == Request("metrics", b"", 0, 0)
