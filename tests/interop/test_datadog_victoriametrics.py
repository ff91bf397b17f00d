"""The API transport into a real VictoriaMetrics, which speaks Datadog's API below a path: sent, then read back."""

import asyncio
import json
import signal
from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from backends.litellm import FakeLiteLLM
from program import agent, call

from forwarder.events import Batch, Delta, Histogram, Metric, Resource
from forwarder.secrets import Secret
from forwarder.sinks.base import Delivered
from forwarder.sinks.datadog.api import DatadogApiSink
from forwarder.sinks.datadog.points import Form
from forwarder.transport import tls_context
from forwarder.transport.post import Poster
from interop.servers import binary, free_port, victoria_metrics

Points = Mapping[tuple[str, frozenset[tuple[str, str]]], list[tuple[int, float]]]
CONFIG = """
[agent]
state_dir = "state"

[resource]
"deployment.environment.name" = "Interop"

[[targets]]
name = "EU"
url = "{proxy}"
interval = "1s"
health = {{ interval = "15s" }}

[sinks.console]
type = "console"

[sinks.datadog]
type = "datadog"
transport = "api"
url = "http://127.0.0.1:{port}/datadog"
api_key = {{ env = "DD_API_KEY" }}
changes = false
"""


def wanted(events: Iterable[dict[str, Any]]) -> Points:
    """What the console was told, as Datadog should have it: to the second."""
    found: dict[tuple[str, frozenset[tuple[str, str]]], list[tuple[int, float]]] = defaultdict(list)
    for event in events:
        if event["kind"] == "change" or (event["kind"] == "sum" and "delta" not in event):
            continue
        tags = {key: str(value).lower() for key, value in event["attributes"].items()}
        tags |= {"litellm.target": "eu", "env": "interop"}
        value = event["value"] if event["kind"] == "gauge" else event["delta"]["value"]
        found[event["name"], frozenset(tags.items())].append((seconds(event["time"]), value))
    return {series: sorted(points) for series, points in found.items()}


def seconds(time: str) -> int:
    return int(datetime.fromisoformat(time.partition(".")[0] + "+00:00").timestamp())


async def test_everything_seen_is_there_after_an_outage(tmp_path: Path) -> None:
    """The agent polls while nothing listens, then VictoriaMetrics starts: every series with its name, tags, values and
    times, as the console had them, and the ledger says so.
    """
    binary("victoria-metrics")
    port = free_port()
    async with FakeLiteLLM("1.80.17") as proxy:
        proxy.deployments[1].error = "rate_limit"
        (tmp_path / "config.toml").write_text(CONFIG.format(proxy=proxy.url, port=port))
        async with agent(tmp_path, env={"DD_API_KEY": "canary-key"}) as running:
            await running.until(lambda: running.names().count("litellm.up") >= 3)
            async with victoria_metrics(tmp_path, port) as server:
                await running.until(lambda: "delivers again" in running.err())
                running.signal(signal.SIGTERM)
                assert await running.ended() == 0, running.err()
                stored = await server.points()
    expected = wanted(running.events())
    assert {name for name, _ in expected} >= {"litellm.up", "litellm.deployment.failure", "litellm.probe.billed_calls"}
    assert stored.keys() == expected.keys()
    for series, points in expected.items():
        assert [time for time, _ in stored[series]] == [time for time, _ in points], series
        # VictoriaMetrics keeps 12 decimal digits or more.
        assert [value for _, value in stored[series]] == pytest.approx([value for _, value in points], rel=1e-9), (
            series
        )
    assert "canary-key" not in running.out() + running.err()
    accounts = json.loads((await call("spool", "ledger", "--json", cwd=tmp_path)).out)
    by_name = {account["sink"]: account for account in accounts}
    assert by_name["datadog"]["delivered"] == by_name["datadog"]["accepted"] == by_name["console"]["delivered"]
    assert by_name["datadog"]["pending"] == by_name["datadog"]["rejected"] == 0


async def test_a_histogram_can_be_read_back(tmp_path: Path) -> None:
    """Counts, estimates and buckets, in whole numbers and fractions, under the names that the documentation gives."""
    binary("victoria-metrics")
    now = 1_750_000_000
    grown = Histogram((0.005, 0.5, 10.0), (1, 2, 0, 1), 20.5, 4)
    event = Metric(
        "litellm_latency", "histogram", "s", now * 10**9, None, {"model": "openai/gpt-4o"}, 0, grown,
        Delta((now - 15) * 10**9, None, grown),
    )  # fmt: skip
    async with victoria_metrics(tmp_path, free_port()) as server:
        poster = Poster(f"{server.url}/datadog", {"DD-API-KEY": Secret("k")}, tls_context(None, None, None))
        sink = DatadogApiSink("dd", poster, Form(buckets=True), max_age=3600, clock=lambda: now * 10**9)
        batches = [Batch(Resource({"litellm.target": "eu"}), now * 10**9, (event,))]
        for _ in range(2):  # sent again it is the same, not more
            assert await asyncio.to_thread(sink.send, batches, timeout=10) == Delivered(events=1)
        sink.close()
        stored = await server.points()
    where = frozenset({("litellm.target", "eu"), ("model", "openai/gpt-4o")})
    found = {name: set(points) for (name, labels), points in stored.items() if labels == where}
    assert found == {
        "litellm_latency.count": {(now, 4.0)},
        "litellm_latency.sum": {(now, 20.5)},
        "litellm_latency.avg": {(now, 5.125)},
        "litellm_latency.p50": {(now, 0.2525)},
        "litellm_latency.p95": {(now, 10.0)},
        "litellm_latency.p99": {(now, 10.0)},
    }
    buckets = {
        dict(labels)["upper_bound"]: set(points)
        for (name, labels), points in stored.items()
        if name == "litellm_latency.bucket"
    }
    assert buckets == {"0.005": {(now, 1.0)}, "0.5": {(now, 2.0)}, "inf": {(now, 1.0)}}
