"""A peer of the agent: what one writes for oneself, by LiteLLM's and the vendors' documentation, to watch one proxy.

    .venv/bin/python benchmarks/plain_script.py PROXY_URL OTLP_URL [SECONDS]

A loop over the health endpoints; gauges by DogStatsD (Datadog) and by OpenTelemetry's SDK to two OTLP endpoints, of
Grafana and New Relic. No spool, no retry beyond the SDK's, no changes, no metrics page, no guard of /health's costs.
"""

import sys
import time

import requests
from datadog.dogstatsd.base import statsd
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

proxy, otlp = sys.argv[1:3]
interval = float(sys.argv[3]) if len(sys.argv) > 3 else 15.0
health_every = 300.0  # seconds: each reading is billed

readers = [
    PeriodicExportingMetricReader(OTLPMetricExporter(f"{otlp}/{backend}/v1/metrics"), interval * 1000)
    for backend in ("grafana", "newrelic")
]
meter = MeterProvider(metric_readers=readers).get_meter("litellm")
up = meter.create_gauge("litellm.health")
healthy = meter.create_gauge("litellm.healthy_models")
session = requests.Session()
next_health = 0.0
while True:
    alive = 0
    for endpoint in ("/health/liveliness", "/health/readiness"):
        try:
            alive = int(session.get(proxy + endpoint, timeout=10).ok)
        except requests.RequestException:
            alive = 0
        if not alive:
            break
    statsd.gauge("litellm.health", alive)
    up.set(alive)
    if alive and time.monotonic() >= next_health:
        next_health = time.monotonic() + health_every
        count = session.get(f"{proxy}/health", timeout=90).json()["healthy_count"]
        statsd.gauge("litellm.healthy_models", count)
        healthy.set(count)
    time.sleep(interval)
