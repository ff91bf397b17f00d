"""The metrics page through the agent and OTLP into a real VictoriaMetrics, beside its own scrape of the same page:
the same queries must come to the same. Needs a real VictoriaMetrics.
"""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlencode

import pytest
from backends.http_server import Answer, Request, Response, ScriptedServer
from exposition_pages import HISTOGRAM, histogram, page
from program import agent

from interop.places import servers

SERVER = servers() / "usr/bin/victoria-metrics"
pytestmark = pytest.mark.skipif(not SERVER.exists(), reason=f"NOT TESTED: no {SERVER}; `make interop` unpacks it")
PATIENCE = 60  # seconds
GROWTH = "max_over_time(litellm_requests_total{%s}[1h]) - min_over_time(litellm_requests_total{%s}[1h])"


class Proxy:
    """A page whose counters a test moves."""

    def __init__(self) -> None:
        self.turn = 0

    def __call__(self, request: Request) -> Answer:
        if request.path != "/metrics/":
            return Response(404, b"{}", {"content-type": "application/json"})
        turn = self.turn
        counters = {'{model="a"}': 100 + 3.0 * turn, '{model="b"}': 7.0 * turn}
        buckets = {"0.1": 50.0 + turn, "1.0": 50.0 + 3 * turn, "+Inf": 50.0 + 4 * turn}
        more = HISTOGRAM + histogram(buckets, 20 + 1.5 * turn) + "# TYPE litellm_state gauge\nlitellm_state 2\n"
        body = page(counters, began=1_795_000_000.0, more=more)
        return Response(200, body, {"content-type": "text/plain; version=0.0.4"})


class Victoria:
    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._port = port

    async def ask(self, query: str) -> list[float]:
        """Values of an instant query, sorted; none while the server does not answer."""
        path = "/api/v1/query?" + urlencode({"query": query})
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            return []
        writer.write(f"GET {path} HTTP/1.0\r\nhost: victoria\r\n\r\n".encode())
        answer = (await reader.read()).partition(b"\r\n\r\n")[2]
        writer.close()
        return sorted(float(one["value"][1]) for one in json.loads(answer)["data"]["result"])

    async def until(self, query: str, condition: Callable[[list[float]], bool]) -> None:
        found: list[float] = []
        for _ in range(PATIENCE * 5):
            if condition(found := await self.ask(query)):
                return
            await asyncio.sleep(0.2)
        raise AssertionError(f"{query} is still {found}")


@asynccontextmanager
async def victoria(folder: Path, target: str) -> AsyncIterator[Victoria]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    job = f"{{job_name: direct, metrics_path: /metrics/, static_configs: [{{targets: ['{target}']}}]}}"
    config = folder / "scrape.yml"
    config.write_text(f"global: {{scrape_interval: 1s}}\nscrape_configs: [{job}]\n")
    process = await asyncio.create_subprocess_exec(
        SERVER,
        f"-storageDataPath={folder / 'data'}",
        f"-httpListenAddr=127.0.0.1:{port}",
        f"-promscrape.config={config}",
        "-search.latencyOffset=0s",
        "-search.disableCache",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield Victoria(port)
    finally:
        process.terminate()
        await process.wait()


async def test_queries_over_otlp_agree_with_a_direct_scrape(tmp_path: Path) -> None:
    """Sums, what they grew by, rates, averages and quantiles: also through a restart of the agent."""
    proxy = Proxy()
    async with (
        ScriptedServer(proxy) as server,
        victoria(tmp_path, server.url.removeprefix("http://")) as backend,
    ):
        (tmp_path / "config.toml").write_text(
            f'[agent]\nstate_dir = "state"\n[[targets]]\nname = "eu"\nurl = "{server.url}"\n'
            'health = { enabled = false }\nmetrics = { interval = "1s" }\n'
            f'[sinks.v]\ntype = "otlp"\nendpoint = "{backend.url}/opentelemetry"\nchanges = false\n'
        )
        both = 'count(litellm_requests_total{job="direct"} == %s) + count(litellm_requests_total{job!="direct"} == %s)'
        for part in range(2):
            async with agent(tmp_path):
                at = 100.0 + 3.0 * proxy.turn
                await backend.until(both % (at, at), lambda found: found == [2.0])  # both know where growth begins
                for _ in range(30):
                    proxy.turn += 1
                    await asyncio.sleep(0.2)
                at = 100.0 + 3.0 * proxy.turn
                await backend.until(both % (at, at), lambda found: found == [2.0])
            direct, ours = 'job="direct"', 'job!="direct"'
            for query in (
                "sum(litellm_requests_total{%s})",
                GROWTH,
                "sum by (le) (litellm_latency_bucket{%s})",
                "litellm_latency_sum{%s} / litellm_latency_count{%s}",
                "histogram_quantile(0.9, sum by (le) (litellm_latency_bucket{%s}))",
                "litellm_state{%s}",
            ):
                theirs = await backend.ask(query.replace("%s", direct))
                assert theirs
                assert await backend.ask(query.replace("%s", ours)) == pytest.approx(theirs), (part, query)
            for query in (
                "sum(rate(litellm_requests_total{%s}[1m]))",
                "histogram_quantile(0.9, sum by (le) (rate(litellm_latency_bucket{%s}[1m])))",
            ):
                theirs = await backend.ask(query.replace("%s", direct))
                assert theirs
                # Each has its own moments of reading.
                assert await backend.ask(query.replace("%s", ours)) == pytest.approx(theirs, rel=0.3), (part, query)
