"""Real Prometheus and VictoriaMetrics, where they are at hand: started on free ports, in a folder of their own, and
stopped.
"""

import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urlencode

import pytest

from forwarder.events import Attributes
from interop.places import servers

ENOUGH = 30.0  # seconds in which a server starts, and has what it was given
STEP = 0.05  # seconds between looks

Sample = tuple[float, float]  # time in seconds, value
Series = dict[tuple[tuple[str, str], ...], list[Sample]]


def program(name: str) -> Path:
    """Skips the test, with the reason, where it is not there."""
    path = servers() / "usr/bin" / name
    if not path.is_file():
        pytest.skip(f"NOT TESTED against a real {name}: there is none at {path}; `make interop` unpacks it")
    return path


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def get(port: int, path: str) -> bytes:
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
        assert response.status == 200, body
        return body
    finally:
        connection.close()


@contextmanager
def running(port: int, ready: str, *command: str | Path) -> Iterator[None]:
    """A server that listens on `port`; it is there when the path `ready` is answered."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            until(lambda: process.poll() is None and answers(port, ready))
            yield
        finally:
            process.terminate()
            process.wait(ENOUGH)


def answers(port: int, path: str) -> bool:
    with suppress(OSError, HTTPException, AssertionError):
        get(port, path)
        return True
    return False


def until(condition: Callable[[], bool]) -> None:
    """Another process does it, in its own time."""
    deadline = time.monotonic() + ENOUGH
    while not condition():
        assert time.monotonic() < deadline, "a server does not do what is waited for"
        time.sleep(STEP)


@contextmanager
def victoria(folder: Path, port: int | None = None) -> Iterator[int]:
    """Its port. Names as Prometheus has them; of samples with the same time and series it keeps one, as it is told to
    where senders repeat.
    """
    port = port or free_port()
    flags = ("-retentionPeriod=10y", "-opentelemetry.usePrometheusNaming", "-dedup.minScrapeInterval=1ms")
    where = (f"-storageDataPath={folder / 'victoria'}", f"-httpListenAddr=127.0.0.1:{port}")
    with running(port, "/health", program("victoria-metrics"), *where, *flags):
        yield port


@contextmanager
def prometheus(folder: Path, port: int | None = None) -> Iterator[int]:
    """Its port, for queries. Debian builds it without a receiver of OTLP."""
    port = port or free_port()
    (folder / "prometheus.yml").write_text("global: {scrape_interval: 1h}\n")
    where = (f"--storage.tsdb.path={folder / 'prometheus'}", f"--web.listen-address=127.0.0.1:{port}")
    flags = (f"--config.file={folder / 'prometheus.yml'}", "--web.enable-remote-write-receiver")
    with running(port, "/-/ready", program("prometheus"), *flags, *where):
        yield port


@contextmanager
def vmagent(folder: Path, prometheus: int) -> Iterator[int]:
    """Its port, where it takes OTLP, translates it by OpenTelemetry's rules, and writes it to a Prometheus."""
    port = free_port()
    flags = ("-opentelemetry.usePrometheusNaming", "-remoteWrite.flushInterval=100ms", "-remoteWrite.queues=1")
    onward = f"-remoteWrite.url=http://127.0.0.1:{prometheus}/api/v1/write"
    where = (f"-remoteWrite.tmpDataPath={folder / 'vmagent'}", f"-httpListenAddr=127.0.0.1:{port}", onward)
    with running(port, "/health", program("vmagent"), *where, *flags):
        yield port


def read(port: int, selector: str, end: float) -> Series:
    """Labels → samples, of the two hours up to `end` (s), as they are stored."""
    with suppress(AssertionError):
        get(port, "/internal/force_flush")  # VictoriaMetrics: what is new is not seen for a second otherwise
    query = urlencode({"query": f"{selector}[2h]", "time": f"{end:.3f}", "nocache": "1"})
    found = json.loads(get(port, f"/api/v1/query?{query}"))["data"]["result"]
    return {
        tuple(sorted(each["metric"].items())): [(float(at), float(value)) for at, value in each["values"]]
        for each in found
    }


def labels(series: tuple[tuple[str, str], ...]) -> Attributes:
    return dict(series)
