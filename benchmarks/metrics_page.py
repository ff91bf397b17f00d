"""A metrics page of 50,000 series (16 MB), read again and again: parsing, and all the way to OTLP, beside others.

    .venv/bin/python benchmarks/metrics_page.py parse     lines a second, ours and prometheus_client's
    .venv/bin/python benchmarks/metrics_page.py deliver   CPU for a page, fetched to delivered, and resident memory:
                                                          the agent over OTLP/HTTP, vmagent over remote write

Each prints one JSON object. The page has the families and labels of LiteLLM 1.106; from one reading to the next every
third series grows. vmagent is looked for as peers.py does; without it its figures are absent.
"""

import asyncio
import gzip
import hashlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import peers
import psutil
from prometheus_client.parser import text_string_to_metric_families

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from backends.http_server import Answer, Request, Response, ScriptedServer
from program import agent

from forwarder.catalog import PERSONAL_LABELS
from forwarder.exposition.counters import Counters
from forwarder.exposition.page import Page
from forwarder.exposition.selection import Selection

HISTOGRAMS = (
    "litellm_request_total_latency_metric",
    "litellm_llm_api_latency_metric",
    "litellm_overhead_latency_metric",
)
COUNTERS = ("litellm_proxy_total_requests_metric", "litellm_total_tokens_metric", "litellm_spend_metric")
BOUNDS = (0.005, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 5, 7.5, 10, 30, 60, 300)
EACH = (714, 834)  # label sets of a family of histograms, of counters: 50,000 series with their `_created`
PAGES = 16  # one after the other, each with more than the last
INTERVAL = 4  # seconds between two readings
READINGS = 3
STARTED = 1_795_000_000.0


def labels(number: int) -> str:
    digest = hashlib.sha256(str(number % 97).encode()).hexdigest()
    model = hashlib.sha256(str(number % 31).encode()).hexdigest()[:40]
    return (
        f'api_key_alias="key-{number}",api_provider="openai",end_user="None",hashed_api_key="{digest}",'
        f'model="gpt-4o-{number % 31}",model_id="{model}",requested_model="gpt-4o-{number % 31}",'
        f'team="team-{number % 13}",user="user-{number % 211}"'
    )


def lines(turn: int) -> Iterator[str]:
    yield f"# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds {STARTED}"
    for family in HISTOGRAMS:
        yield f"# HELP {family} Seconds\n# TYPE {family} histogram"
        for number in range(EACH[0]):
            inside = labels(number)
            count = number + (turn + number % 3) // 3
            for index, bound in enumerate(BOUNDS):
                yield f'{family}_bucket{{{inside},le="{float(bound)}"}} {float(count * (index + 1) // 18)}'
            yield f'{family}_bucket{{{inside},le="+Inf"}} {float(count)}'
            yield f"{family}_count{{{inside}}} {float(count)}\n{family}_sum{{{inside}}} {count * 0.7}"
        yield f"# TYPE {family}_created gauge"
        for number in range(EACH[0]):
            yield f"{family}_created{{{labels(number)}}} {STARTED + number}"
    for family in COUNTERS:
        yield f"# HELP {family}_total Things\n# TYPE {family}_total counter"
        for number in range(EACH[1]):
            yield f"{family}_total{{{labels(number)}}} {float(number + (turn + number % 3) // 3)}"
        yield f"# TYPE {family}_created gauge"
        for number in range(EACH[1]):
            yield f"{family}_created{{{labels(number)}}} {STARTED + number}"


def page(turn: int) -> bytes:
    return ("\n".join(lines(turn)) + "\n").encode()


def parse() -> dict[str, object]:
    pages = [page(turn) for turn in range(READINGS)]
    reader = Page(Selection(drop_labels=(), exclude_series=()), max_series=100_000)
    counters = Counters(reader)
    reading, points, found = [], [], 0
    for turn in range(READINGS):
        began = time.thread_time()
        reader.read(pages[turn])
        read = time.thread_time()
        found = len(counters.observe(int((STARTED + 5000 + turn * 15) * 1e9)))
        counters.commit()
        reading.append(read - began)
        points.append(time.thread_time() - read)
    began = time.thread_time()
    samples = sum(len(family.samples) for family in text_string_to_metric_families(pages[0].decode()))
    theirs = time.thread_time() - began
    later = statistics.median(reading[1:])
    return {
        "lines": reader.lines,
        "bytes": len(pages[0]),
        "series": samples,
        "points": found,
        "first_lines_per_s": reader.lines / reading[0],
        "lines_per_s": reader.lines / later,
        "points_s": statistics.median(points[1:]),
        "prometheus_client_lines_per_s": reader.lines / theirs,
    }


class Site:
    """A proxy with the page, and a receiver that takes everything."""

    def __init__(self) -> None:
        self.packed = [gzip.compress(page(turn), 6) for turn in range(PAGES)]
        self.read = self.requests = self.bytes = 0

    def __call__(self, request: Request) -> Answer:
        if request.method == "POST":
            self.requests += 1
            self.bytes += len(request.body)
            if "opentelemetry" in request.path or request.path.endswith("/v1/metrics"):
                return Response(200, b"", {"content-type": "application/x-protobuf"})
            return Response(204, b"", {})
        if request.path == "/anew":
            self.read = 0
        if request.path in ("/read", "/anew"):
            told = {"read": self.read, "requests": self.requests, "bytes": self.bytes}
            return Response(200, json.dumps(told).encode(), {"content-type": "application/json"})
        if not request.path.startswith("/metrics"):
            return Response(404, b"{}", {"content-type": "application/json"})
        turn = min(self.read, PAGES - 1)
        self.read += 1
        return Response(
            200, self.packed[turn], {"content-type": "text/plain; version=0.0.4", "content-encoding": "gzip"}
        )


async def serve() -> None:
    """The site, until standard input ends."""
    async with ScriptedServer(Site()) as server:
        print(server.url, flush=True)
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        await reader.read()


async def told(url: str, path: str = "/read") -> dict[str, int]:
    reader, writer = await asyncio.open_connection(*url.removeprefix("http://").split(":"))
    writer.write(f"GET {path} HTTP/1.1\r\nhost: site\r\nconnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return dict(json.loads(answer.partition(b"\r\n\r\n")[2]))


async def measured(process: psutil.Process, url: str) -> dict[str, float]:
    """Over some readings, when two have been made."""

    async def until(readings: int) -> dict[str, int]:
        while (await told(url))["read"] < readings:  # noqa: ASYNC110 - another process: no event tells
            await asyncio.sleep(0.1)
        await asyncio.sleep(INTERVAL * 0.9)  # what was read is delivered
        return await told(url)

    first = last = await until(3)
    before = process.cpu_times()
    for reading in range(first["read"] + 1, first["read"] + READINGS + 1):
        last = await until(reading)
    after = process.cpu_times()
    readings = last["read"] - first["read"]
    return {
        "cpu_s": (after.user + after.system - before.user - before.system) / readings,
        "peak_rss_mib": peak_mib(process.pid),
        "requests": (last["requests"] - first["requests"]) / readings,
        "kib": (last["bytes"] - first["bytes"]) / readings / 1024,
    }


def configuration(url: str, metrics: str) -> str:
    return (
        f'[agent]\nstate_dir = "state"\n[[targets]]\nname = "site"\nurl = "{url}"\ninterval = "1d"\n'
        f'health = {{ enabled = false }}\nmetrics = {{ interval = "{INTERVAL}s", max_series = 100000{metrics} }}\n'
        f'[sinks.otlp]\ntype = "otlp"\nendpoint = "{url}"\n'
    )


async def ours(url: str, metrics: str) -> dict[str, float]:
    await told(url, "/anew")
    with tempfile.TemporaryDirectory() as name:
        write(name, "config.toml", configuration(url, metrics))
        async with agent(Path(name)) as running:
            return await measured(psutil.Process(running.process.pid), url)


def write(folder: str, name: str, text: str) -> Path:
    path = Path(folder, name)
    path.write_text(text)
    return path


def peak_mib(pid: int) -> float:
    """The most that was resident since the start, the first reading included."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(float(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


async def vmagent(url: str, program: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as name:
        host = url.removeprefix("http://")
        job = f"{{job_name: site, metrics_path: /metrics/, static_configs: [{{targets: ['{host}']}}]}}"
        text = f"global: {{scrape_interval: {INTERVAL}s}}\nscrape_configs: [{job}]\n"
        config = write(name, "scrape.yml", text)
        await told(url, "/anew")
        process = await asyncio.create_subprocess_exec(
            program,
            f"-promscrape.config={config}",
            f"-remoteWrite.url={url}/api/v1/write",
            f"-remoteWrite.tmpDataPath={name}/data",
            "-httpListenAddr=127.0.0.1:0",
            "-promscrape.maxScrapeSize=64MB",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            return await measured(psutil.Process(process.pid), url)
        finally:
            process.terminate()
            await process.wait()


async def deliver() -> dict[str, object]:
    server = await asyncio.create_subprocess_exec(
        sys.executable, __file__, "serve", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert server.stdout is not None
    assert server.stdin is not None
    try:
        url = (await server.stdout.readline()).decode().strip()
        kept = ", ".join(f'"{label}"' for label in PERSONAL_LABELS)
        found: dict[str, object] = {"everything": await ours(url, f", keep_labels = [{kept}]")}
        found["default_labels"] = await ours(url, "")
        if program := peers.program("vmagent"):
            found["vmagent"] = await vmagent(url, program)
        return found
    finally:
        server.stdin.close()
        await server.wait()


def main() -> None:
    match sys.argv[1:]:
        case ["serve"]:
            asyncio.run(serve())
        case ["parse"]:
            print(json.dumps(parse()))
        case ["deliver"]:
            print(json.dumps(asyncio.run(deliver())))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
