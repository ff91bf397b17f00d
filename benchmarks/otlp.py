"""Points per second and core from spooled batches to an OTLP request, ours and the SDK's encoder. Prints JSON.

A gauge with seven attributes, which the receiver's answer is not waited for: encoding alone. "First" is with nothing
kept from an earlier request, "again" with the same series as before.
"""

import json
import time
from collections.abc import Callable, Sequence

from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.sdk.metrics.export import Gauge, MetricsData, NumberDataPoint, ResourceMetrics, ScopeMetrics
from opentelemetry.sdk.metrics.export import Metric as SdkMetric
from opentelemetry.sdk.resources import Resource as SdkResource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from forwarder.events import Batch, Metric, Resource
from forwarder.sinks.otlp.encode import Cache, encode

COUNT = 20_000
NOW = 1_750_000_000_000_000_000


def batches() -> list[Batch]:
    points = [
        Metric(
            "litellm.deployment.up",
            "gauge",
            "1",
            NOW + number,
            1.0,
            {
                "model": "openai/gpt-4o",
                "model.name": "gpt-4o",
                "deployment.id": f"{number:064x}",
                "provider": "openai",
                "region": "eu-west-1",
                "team": f"team-{number % 40}",
                "code": 200,
            },
        )
        for number in range(COUNT)
    ]
    resource = Resource({"litellm.target": "eu"})
    return [Batch(resource, NOW, tuple(points[at : at + 500])) for at in range(0, COUNT, 500)]


def by_sdk(given: Sequence[Batch]) -> bytes:
    points = [
        NumberDataPoint(event.attributes, NOW, event.time, float(event.value or 0))
        for batch in given
        for event in batch.events
        if isinstance(event, Metric)
    ]
    metric = SdkMetric("litellm.deployment.up", "", "1", Gauge(points))
    scope = ScopeMetrics(InstrumentationScope("litellm-forwarder"), [metric], "")
    return encode_metrics(MetricsData([ResourceMetrics(SdkResource({}), [scope], "")])).SerializeToString()


def rate(work: Callable[[], int]) -> int:
    """Points per second of CPU time, the best of three."""
    best = 0.0
    for _ in range(3):
        start = time.process_time()
        size = work()
        best = max(best, COUNT / (time.process_time() - start))
        assert size > COUNT * 100
    return round(best)


def main() -> None:
    given = batches()
    kept = Cache()

    def ours(cache: Cache) -> int:
        request = encode(given, "agent-1", cache, max_bytes=10**9)
        assert request.sent == COUNT
        return len(request.data)

    print(
        json.dumps(
            {
                "first_points_s": rate(lambda: ours(Cache())),
                "again_points_s": rate(lambda: ours(kept)),
                "sdk_points_s": rate(lambda: len(by_sdk(given))),
            }
        )
    )


if __name__ == "__main__":
    main()
