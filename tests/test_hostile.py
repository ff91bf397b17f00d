"""Attacks on the whole: hostile proxies, backends, visitors and neighbours, against the parts together and the running
agent. Attacks on one part are with its other tests.
"""

import asyncio
import json
import os
import re
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from backends.http_server import (
    Answer,
    Request,
    Response,
    ScriptedServer,
    always,
    endless,
    gzip_bomb,
    gzipped,
    raw,
    redirect,
)
from backends.litellm import FakeLiteLLM
from http_support import KEY, MIB, PLAIN_TLS, client_for, ended
from program import Running, agent, call, write_config

from forwarder.config import for_url
from forwarder.events import Batch, Metric, Resource
from forwarder.normalize import normalize
from forwarder.reply import Failure
from forwarder.scrape import fetch_metrics
from forwarder.secrets import Secret
from forwarder.sinks.base import Blocked
from forwarder.sinks.datadog.api import DatadogApiSink
from forwarder.sinks.datadog.points import Form
from forwarder.transport.post import Poster

JSON = {"content-type": "application/json"}
OK = b"HTTP/1.1 200 OK\r\n"

# --- redirects -------------------------------------------------------------------------------------------------------

ELSEWHERE = [
    "file:///etc/passwd",
    "http://169.254.169.254/latest/meta-data/iam/security-credentials/",
    "http://[fd00:ec2::254]/latest/meta-data/",
    "http://metadata.google.internal/computeMetadata/v1/",
    "//169.254.169.254/metrics/",
    "http://2852039166/",
    "http://0xa9fea9fe/metrics/",
    "https://litellm.invalid/metrics/",
    "ftp://files.invalid/",
    "gopher://files.invalid/1",
    "unix:///var/run/docker.sock",
    "http://user:pw@files.invalid/metrics/",
    "\\\\169.254.169.254\\metrics\\",
    "http://localhost.files.invalid/metrics/",
]


class Reached:
    """Every address that this process looks up or connects to, as the interpreter itself reports it."""

    def __init__(self) -> None:
        self.places: list[str] | None = None
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.places is None or event not in (
            "socket.getaddrinfo",
            "socket.gethostbyname",
            "socket.connect",
            "open",
        ):
            return
        if event == "open":
            if str(arguments[0]).startswith("/etc/passwd"):
                self.places.append("/etc/passwd")
        else:
            self.places.append(str(arguments[0 if event != "socket.connect" else 1]))


HEARD = Reached()  # a hook stays for the life of the process


@pytest.fixture
def reached() -> Iterator[list[str]]:
    places: list[str] = []
    HEARD.places = places
    yield places
    HEARD.places = None


def beyond(places: list[str], port: int) -> list[str]:
    """What was reached beside our own server."""
    return [place for place in places if str(port) not in place and place not in ("127.0.0.1", "b'127.0.0.1'")]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("location", ELSEWHERE)
async def test_a_proxys_redirect_elsewhere_is_refused_before_any_connection(
    location: str, status: int, reached: list[str]
) -> None:
    """No name is looked up and nothing connected to, for a JSON endpoint as for the metrics page; it is told."""
    async with ScriptedServer(always(redirect(location, status))) as server:
        client = client_for(server.url)
        reply = await ended(client.get("/health", timeout=5))
        page = await ended(fetch_metrics(client, for_url(server.url, "K", {}).targets[0].metrics))
        await client.close()
        assert beyond(reached, server.port) == []
        assert len(server.requests) == 2
    for endpoint, said in (("health", reply), ("metrics", page)):
        reading = normalize(endpoint, said, keyed=True)  # type: ignore[arg-type] # one of them
        assert reading.error == "redirect"
        assert "redirect" in reading.detail


@pytest.mark.parametrize("location", ELSEWHERE)
async def test_a_backends_redirect_elsewhere_is_refused_before_any_connection(
    location: str, reached: list[str]
) -> None:
    """The sink is blocked, and says so; the key goes nowhere."""
    for status in (301, 302, 303, 307, 308):
        async with ScriptedServer(always(redirect(location, status))) as server:
            sink = DatadogApiSink(
                "d", Poster(server.url, {"DD-API-KEY": Secret(KEY)}, PLAIN_TLS), Form(), max_age=3600, clock=lambda: 1
            )
            batch = Batch(Resource({}), 1, (Metric("litellm.up", "gauge", "1", 1, 1.0),))
            outcome = await asyncio.to_thread(sink.send, [batch], timeout=5.0)
            sink.close()
            assert beyond(reached, server.port) == []
            reached.clear()
            assert len(server.requests) == 1
        assert isinstance(outcome, Blocked)
        assert "redirects" in outcome.reason
        assert KEY not in outcome.reason


async def test_a_redirect_chain_on_the_same_host_is_followed_once(reached: list[str]) -> None:
    """The metrics page may be one step away, on the same origin; a second step, or one that leads out, is none."""

    def answer(request: Request) -> Answer:
        return redirect("/metrics") if request.path == "/metrics/" else redirect("http://169.254.169.254/metrics/")

    async with ScriptedServer(answer) as server:
        client = client_for(server.url)
        reply = await ended(fetch_metrics(client, for_url(server.url, "K", {}).targets[0].metrics))
        await client.close()
        assert (reply.status, len(server.requests)) == (307, 2)
        assert beyond(reached, server.port) == []


async def test_the_running_agent_follows_no_redirect(tmp_path: Path) -> None:
    """A proxy and a backend that lead to a third: nobody connects there, log and status say what is wrong."""
    async with ScriptedServer() as thief:
        lead = always(redirect(f"{thief.url}/v1/metrics", 307))
        async with ScriptedServer(lead) as proxy, ScriptedServer(lead) as backend:
            write_config(tmp_path, [proxy.url], 'api_key = { env = "THE_KEY" }\ninterval = "1s"')
            with (tmp_path / "config.toml").open("a") as file:
                file.write(f'[sinks.otlp]\ntype = "otlp"\nendpoint = "{backend.url}"\n')
            async with agent(tmp_path, env={"THE_KEY": KEY}) as running:
                await running.until(
                    lambda: "error=redirect" in running.err() and "redirects (HTTP 307)" in running.err()
                )
        assert thief.connections == 0
        assert KEY not in running.err() + running.out()


# --- bombs and floods ------------------------------------------------------------------------------------------------

FLOODS: dict[str, Answer] = {
    "100,000 headers": raw(OK + b"a: b\r\n" * 100_000 + b"content-length: 2\r\n\r\nok"),
    "one header of 64 MB": endless(OK + b"a: ", b"x" * MIB),
    "a status line without end": endless(b"HTTP/1.1 200 ", b"O" * MIB),
    "1xx without end": endless(b"", b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" * 1000),
    "chunk extensions without end": endless(OK + b"transfer-encoding: chunked\r\n\r\n1;a=", b"x" * MIB),
    "trailers without end": endless(OK + b"transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n", b"a: b\r\n" * 10_000),
    "chunks of one byte without end": endless(OK + b"transfer-encoding: chunked\r\n\r\n", b"1\r\na\r\n" * 10_000),
    "a chunk size of 10,000 digits": raw(OK + b"transfer-encoding: chunked\r\n\r\n" + b"f" * 10_000 + b"\r\n"),
    "deflate that is none": Response(200, b"x" * 99, {"content-encoding": "deflate"}),
    "brotli": Response(200, b"x" * 99, {"content-encoding": "br"}),
    "zstd": Response(200, b"x" * 99, {"content-encoding": "zstd"}),
    "gzip in gzip": Response(200, b"x" * 99, {"content-encoding": "gzip, gzip"}),
}


def peak_mib() -> float:
    """The most that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.parametrize("what", FLOODS)
async def test_a_flood_from_a_proxy_is_a_failed_reading(what: str) -> None:
    """In time, with a class, and without holding what came."""
    before = peak_mib()
    async with ScriptedServer(always(FLOODS[what])) as server:
        client = client_for(server.url)
        reply = await ended(client.get("/health", timeout=1))
        await client.close()
    assert reply.failure in (Failure.CONNECTION, Failure.TIMEOUT, Failure.TOO_LARGE, Failure.ENCODING)
    assert reply.body == b""
    assert peak_mib() - before < 32


@pytest.mark.parametrize("what", FLOODS)
async def test_a_flood_from_a_backend_is_a_failed_attempt(what: str) -> None:
    """As from a proxy."""
    before = peak_mib()
    async with ScriptedServer(always(FLOODS[what])) as server:
        poster = Poster(server.url, {}, PLAIN_TLS)
        answer = await asyncio.to_thread(poster.post, "/", b"{}", {}, timeout=1.0)
        poster.close()
    assert answer.failure in (Failure.CONNECTION, Failure.TIMEOUT, Failure.TOO_LARGE, Failure.ENCODING)
    assert answer.body == b""
    assert peak_mib() - before < 32


def most_mib(running: Running) -> float:
    """The most that the agent ever had."""
    status = Path(f"/proc/{running.process.pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1024


def surrogate(name: str) -> str:
    return f"\\ud800{name}\\udfff\\n\\u2028\\u001b[31m\\u202e"


async def test_an_agent_among_bombs_goes_on(tmp_path: Path) -> None:
    """A proxy whose every answer is an attack: the agent stays small, tells each cause, and what it delivers and logs
    is one line each. 1 GB in 1 MB of gzip, 100,000 brackets, numbers of 100,000 digits, a label of 60 MB, twice
    encoded, lone surrogates and line breaks in every name.
    """
    bomb = gzip_bomb(1 << 30)
    label = b'litellm_requests_total 7\nlitellm_bomb_total{model="' + b"x" * (60 * MIB) + b'"} 1\n'
    words = surrogate("x")
    entry = f'{{"model": "{words}", "model_id": "{words}", "custom_llm_provider": "{words}", "error": "{words}"}}'
    answers = {
        "/metrics/": gzipped(b"# TYPE litellm_requests_total counter\n" + label),
        "/health/readiness": Response(
            200, f'{{"status": "connected", "litellm_version": "{words}", "db": "{words}"}}'.encode(), JSON
        ),
        "/health": Response(
            200,
            f'{{"healthy_endpoints": [{entry}], "unhealthy_endpoints": [{entry}, {entry}], "healthy_count": 1e999999, '
            f'"unhealthy_count": {"9" * 4000}}}'.encode(),
            JSON,
        ),
        "/health/liveliness": Response(200, b'"I\'m alive!"', JSON),
        "/v1/model/info": bomb,
        "/model/info": bomb,
        "/health/models": Response(200, b"[" * 100_000, JSON),
        "/health/backlog": Response(200, b'{"in_flight_requests": ' + b"9" * 100_000 + b"}", JSON),
        "/health/latest": Response(200, b"x", {"content-encoding": "gzip, gzip"}),
        "/health/shared-status": Response(200, b'{"a":1,' * 50_000, JSON),
    }
    async with ScriptedServer(lambda request: answers.get(request.path.partition("?")[0], bomb)) as proxy:
        fast = 'interval = "1s"\ntimeout = "8s"\nmetrics = { interval = "1s" }\nhealth = { background = "on" }'
        write_config(tmp_path, [proxy.url], fast)
        async with agent(tmp_path) as running:

            def seen() -> bool:
                lines = running.out().split("\n")[:-1]
                names = {json.loads(line)["name"] for line in lines}
                return {"litellm.deployment.up", "litellm_requests_total", "litellm.metrics.bad_lines"} <= names

            await running.until(seen)
            await running.until(lambda: "error=too_large" in running.err())
            peak = most_mib(running)
            running.signal(signal.SIGTERM)
            assert await running.ended() == 0
    assert peak < 400, "the largest page and a copy of it at most"
    assert "Traceback" not in running.err()
    assert set(running.err()) <= {"\n", *map(chr, range(32, 127))}
    for line in running.out().split("\n")[:-1]:
        assert line.isascii()
        json.loads(line)
    bad = [event["value"] for event in running.events() if event["name"] == "litellm.metrics.bad_lines"]
    assert set(bad) == {1.0}


async def test_a_page_of_very_many_series_is_capped_counted_and_told(tmp_path: Path) -> None:
    """With the default settings: 20,000 go on, memory stays bounded, status and a change say what is dropped.
    (A million takes ten times as long and no more memory: benchmarks/hostile_page.py.)
    """
    body = "# TYPE litellm_requests_total counter\n" + "".join(
        f'litellm_requests_total{{model="{number}"}} 1\n' for number in range(100_000)
    )
    page = gzipped(body.encode())
    async with ScriptedServer(lambda r: page if r.path == "/metrics/" else Response(404, b"{}", JSON)) as proxy:
        write_config(tmp_path, [proxy.url])
        async with agent(tmp_path) as running:
            await running.until(lambda: "litellm.metrics.capped" in running.out())
            peak = most_mib(running)
    assert peak < 250
    lines = [json.loads(line) for line in running.out().split("\n")[:-1]]
    (capped,) = [line for line in lines if line["name"] == "litellm.metrics.capped"]
    assert "80,000 lines are dropped" in capped["text"]
    states = {line["attributes"]["state"]: line["value"] for line in lines if line["name"] == "litellm.metrics.series"}
    assert (states["kept"], states["dropped"]) == (20_000, 80_000)


# --- neighbours on the machine ---------------------------------------------------------------------------------------


async def test_a_secret_that_everybody_may_read_is_told_by_validate_and_run(reachable: Path) -> None:
    """Once, with the file and the fix, and without the secret. It is no failure."""
    tmp_path = reachable
    key = tmp_path / "key"
    key.write_text(KEY)
    async with FakeLiteLLM(key=KEY) as proxy:
        write_config(tmp_path, [proxy.url], 'api_key = { file = "key" }')
        key.chmod(0o644)
        said, told = await _validated_and_run(tmp_path)
        assert f"warning: {key} holds a secret and can be read by every user: chmod o-r {key}\n" in said
        assert told.count("a file that holds a secret can be read by every user") == 1
        assert f'fix="chmod o-r {key}"' in told
        key.chmod(0o600)
        assert "can be read by every user" not in "".join(await _validated_and_run(tmp_path))


async def _validated_and_run(folder: Path) -> tuple[str, str]:
    """What validate says, and what the agent logs from its start to a reload."""
    said = await call("validate", cwd=folder)
    assert said.code == 0
    async with agent(folder) as running:
        await running.until(lambda: "litellm.up" in running.out())
        running.signal(signal.SIGHUP)
        await running.until(lambda: "INFO reloaded" in running.err())
    assert KEY not in said.out + said.err + running.err()
    return said.out, running.err()


async def test_a_secret_file_that_is_a_pipe_stops_no_command(tmp_path: Path) -> None:
    """Each says that it is no file, and ends."""
    os.mkfifo(tmp_path / "key")
    for setting in ('api_key = { file = "./key" }', 'ca_file = "key"'):
        write_config(tmp_path, ["http://127.0.0.1:1"], setting)
        for command in ("validate", "run"):
            said = await call(command, cwd=tmp_path)
            assert said.code == 78
            assert "cannot be read" in said.err


@pytest.mark.parametrize("name", ["lock", "spool.db", "instance.new"])
async def test_the_agent_writes_through_no_link_in_its_state_folder(tmp_path: Path, name: str) -> None:
    """It does not start, and what the link leads to is as it was."""
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / name).symlink_to(tmp_path / "precious")
    write_config(tmp_path, ["http://127.0.0.1:1"])
    said = await call("run", cwd=tmp_path)
    assert (said.code, (tmp_path / "precious").read_text()) == (73, "precious")
    assert str(tmp_path / "state") in said.err
    assert "Traceback" not in said.err


async def test_rules_that_can_fit_nothing_are_told(tmp_path: Path) -> None:
    """By validate, as notes."""
    rules = (
        'include = ["litellm_latency_bucket", "litellm_*"], exclude = ["*_created"], keep_labels = ["model", "user"]'
    )
    write_config(tmp_path, ["http://127.0.0.1:1"], f"metrics = {{ {rules} }}")
    said = await call("validate", cwd=tmp_path)
    notes = [line for line in said.out.split("\n") if "metrics." in line]
    assert len(notes) == 2, said.out
    assert 'metrics.include "litellm_latency_bucket"' in notes[0]
    assert 'metrics.keep_labels "model"' in notes[1]
    write_config(tmp_path, ["http://127.0.0.1:1"], "metrics = { include = [] }")
    assert "nothing of the metrics page goes on" in (await call("validate", cwd=tmp_path)).out
