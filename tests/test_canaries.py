"""No secret gets out: canaries in every place that could hold one, the whole agent at debug level, and a search
through everything that it logs, stores, shows and sends.

The search itself is searched for blindness: it has to find what leaks when one piece of the redaction is taken away.
"""

import asyncio
import contextlib
import gzip
import json
import signal
import socket
from base64 import b64encode
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import grpc
import pytest
from backends.http_server import Request, ScriptedServer
from backends.litellm import ERRORS as UPSTREAM_ERRORS
from backends.litellm import Deployment, Release
from backends.notify import MailServer
from backends.otlp import GrpcReceiver
from canaries import BACKENDS, ERRORS, LeakyProxy, backend, canary, sightings
from program import Running, agent, call
from status_site import site_of

RELEASES: tuple[Release, ...] = ("documented", "1.53.1", "1.80.17", "1.106.2")
ENV = {
    name: canary(name)
    for name in (
        "T0", "T1", "T2", "SINK", "USERPASS", "OPENAI_API_KEY", "LITELLM_MASTER_KEY", "DD_API_KEY", "DD_APP_KEY",
        "NEW_RELIC_LICENSE_KEY", "NEW_RELIC_INSERT_KEY", "AWS_SECRET_ACCESS_KEY", "DATABASE_URL", "LITELLM_API_KEY",
    )
} | {
    "GRPC_VERBOSITY": "DEBUG",
    "GRPC_TRACE": "all",
    "HTTPS_PROXY": f"http://u:{canary('proxy')}@127.0.0.1:9",
    "HTTP_PROXY": f"http://u:{canary('proxy')}@127.0.0.1:9",
    "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{canary('otel')}",
}  # fmt: skip
FILE_KEY = canary("file")
PAGES = ("/", "/api/status", "/metrics", "/healthz", "/readyz", "/nowhere", "/favicon.ico")
COMMANDS: tuple[tuple[str, ...], ...] = (
    ("status",), ("status", "--json"), ("spool", "ledger"), ("spool", "ledger", "--json"), ("spool", "list"),
    ("spool", "list", "--json"), ("check",), ("inspect", "--yes"), ("inspect", "--yes", "--json"),
    ("doctor", "--json"), ("doctor",), ("notify", "test"), ("validate",), ("catalog",), ("alive",),
)  # fmt: skip
WRONG = f"""
[[targets]]
name = "eu"
url = "http://u:{canary("pasted")}@127.0.0.1/?key={canary("pasted")}"
api_key = "{canary("pasted")}"
{canary("key")} = "{canary("value")}"
[sinks.x]
type = "{canary("type")}"
"""


class World:
    """Proxies and backends that are full of canaries, a configuration for them, and what was seen."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = dict(ENV)
        self.proxies: list[LeakyProxy] = []
        self.backend = ScriptedServer(backend)
        self.mail = MailServer(password=canary("mail"))
        self.grpc = GrpcReceiver(canary("grpc"))
        self.evidence: dict[str, bytes] = {}

    @contextlib.asynccontextmanager
    async def open(self, releases: Sequence[Release], answers: Sequence[str]) -> AsyncIterator["World"]:
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self.mail.close)
            stack.callback(self.grpc.close)
            await stack.enter_async_context(self.backend)
            for release in releases:
                proxy = LeakyProxy(release)
                proxy.deployments = [Deployment(error=kind) for kind in (None, *UPSTREAM_ERRORS)]
                proxy.deployments += [
                    Deployment(f"huggingface/https://u:{canary('model')}@h.test/{canary('model')}", "m")
                ]
                self.proxies.append(await stack.enter_async_context(proxy))
            self._configure(answers)
            yield self

    @property
    def all_told(self) -> bool:
        """Whether every proxy has answered in every way, and every backend was asked."""
        errors = {f"error {number}" for number in range(len(ERRORS))}
        asked = {request.path.split("/")[1] for request in self.backend.requests}
        return all(errors <= proxy.told for proxy in self.proxies) and asked >= set(BACKENDS)

    def _configure(self, answers: Sequence[str]) -> None:
        (self.folder / "key").write_text(FILE_KEY)
        self.mail.refuse = {"RCPT ops@example.test": f"550 5.1.1 {canary('smtp')}", "DATA": f"554 {canary('smtp')}"}
        self.env["MAIL"] = self.mail.url(password=canary("mail"))
        self.env["GRPC"] = canary("grpc")
        self.grpc.answer = _refusing
        at = self.backend.url
        text = '[agent]\nstate_dir = "state"\nlisten = "127.0.0.1:0"\nlog_level = "debug"\ndrain_timeout = "1s"\n'
        for number, proxy in enumerate(self.proxies):
            key = '{ file = "key" }' if number == 3 else f'{{ env = "T{number}" }}'
            text += f'[[targets]]\nname = "t{number}"\nurl = "{proxy.url}"\napi_key = {key}\ninterval = "1s"\n'
            text += 'timeout = "2s"\nhealth = { interval = "15s", background = "on" }\nmetrics = { interval = "1s" }\n'
            text += "changes = { failure_threshold = 1, success_threshold = 1 }\n"
            text += 'api_key_header = "x-api-key"\n' if number == 2 else ""
        text += '[sinks.console]\ntype = "console"\n'
        for name in answers:
            text += f'[sinks.otlp-{name}]\ntype = "otlp"\nendpoint = "{at}/{name}"\nusername = "u"\n'
            text += 'password = { env = "USERPASS" }\nheaders = { "x-key" = { env = "SINK" } }\n'
            text += f'[sinks.newrelic-{name}]\ntype = "newrelic"\napi_key = {{ env = "SINK" }}\n'
            text += f'url = "{at}/{name}"\nevents_url = "{at}/{name}"\n'
            text += f'[sinks.datadog-{name}]\ntype = "datadog"\ntransport = "api"\napi_key = {{ env = "SINK" }}\n'
            text += f'url = "{at}/{name}"\n'
        for name in answers[:2]:
            self.env[f"HOOK_{name}"] = (
                f"json://u:{canary('hook')}@127.0.0.1:{self.backend.port}/{name}/{canary('hook')}"
            )
            text += f'[sinks.hook-{name}]\ntype = "notify"\nurl = {{ env = "HOOK_{name}" }}\ngroup = "0s"\n'
        text += (
            f'[sinks.mail]\ntype = "notify"\nurl = {{ env = "MAIL" }}\nca_file = "{self.mail.ca_file}"\ngroup = "0s"\n'
        )
        text += f'[sinks.grpc]\ntype = "otlp"\nprotocol = "grpc"\nendpoint = "http://{self.grpc.address}"\n'
        text += 'token = { env = "GRPC" }\n'
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1]
        text += f'[sinks.statsd]\ntype = "datadog"\naddress = "udp://127.0.0.1:{port}"\n'
        (self.folder / "config.toml").write_text(text)

    async def look(self, running: Running) -> None:
        """Everything that the running agent shows, and what the other commands say."""
        await self.look_at_pages(running, *PAGES, f"/{canary('path')}?key={canary('query')}")
        site = await site_of(running)
        for command in COMMANDS:
            url = ("--url", site.url) if command[0] in ("status", "alive") else ()
            finished = await call(*command, *url, cwd=self.folder, env=self.env)
            self.evidence[" ".join(command)] = (finished.out + finished.err).encode()
        letters = json.loads(self.evidence["spool list --json"])
        for number in {letter["sink"].partition("-")[0]: letter["id"] for letter in letters}.values():
            finished = await call("spool", "show", str(number), cwd=self.folder)
            self.evidence[f"spool show {number}"] = finished.out.encode()
        self.evidence["command line"] = _command_line(running.process.pid)
        await self._reload_what_is_wrong(running)

    async def look_at_pages(self, running: Running, *paths: str) -> None:
        site = await site_of(running)
        for path in paths:
            answer = await site.get(path)
            self.evidence[f"page {path[:12]}"] = answer.body + repr(answer.headers).encode()

    async def _reload_what_is_wrong(self, running: Running) -> None:
        config = self.folder / "config.toml"
        right = config.read_text()
        config.write_text(WRONG)
        running.signal(signal.SIGHUP)
        await running.until(lambda: "never written into the configuration" in running.err())
        self.evidence["validate what is wrong"] = (await call("validate", cwd=self.folder)).err.encode()
        config.write_text(right)

    def keep(self, running: Running, life: str) -> None:
        """Everything that is left behind and was sent."""
        self.evidence[f"{life}: log"] = running.err().encode()
        self.evidence[f"{life}: console"] = running.out().encode()
        for path in sorted((self.folder / "state").rglob("*")):
            if path.is_file():
                self.evidence[f"{life}: file {path.name}"] = path.read_bytes()
        for place, proxy in enumerate(self.proxies):
            for request in proxy.requests:
                self._sent(f"to t{place}", request, FILE_KEY if place == 3 else canary(f"T{place}"))
        basic = [b64encode(f"u:{canary(where)}".encode()).decode() for where in ("USERPASS", "hook")]
        for request in self.backend.requests:
            self._sent("to the backends", request, canary("SINK"), canary("hook"), *basic)

    def _sent(self, whereto: str, request: Request, *own: str) -> None:
        """What was sent, but for the secrets that belong there."""
        head = f"{request.path} {dict(request.headers)}"
        for secret in own:
            head = head.replace(secret, "")
        body = gzip.decompress(request.body) if request.headers.get("content-encoding") == "gzip" else request.body
        self.evidence[whereto] = self.evidence.get(whereto, b"") + f"{head}\n".encode() + body


def _command_line(process: int) -> bytes:
    return Path(f"/proc/{process}/cmdline").read_bytes()


def _refusing(context: grpc.ServicerContext) -> bytes:
    context.set_trailing_metadata((("x-key", canary("trailer")),))
    context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"err-mimir-{canary('status')}")
    raise AssertionError


def sabotaged(folder: Path, code: str) -> dict[str, str]:
    """The environment of an agent in which this runs first."""
    (folder / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": str(folder)}


# Bugs whose message holds all that was at hand.
BUGS = """
import forwarder.poll, forwarder.sinks.otlp.http as otlp
right, times = forwarder.poll.normalize, []

def normalize(endpoint, reply, *, keyed):
    times.append(1)
    if len(times) % 5 == 4:
        raise RuntimeError(f"{reply!r} {reply.body!r}")
    return right(endpoint, reply, keyed=keyed)

def outcome(self, request, answer, events):
    raise RuntimeError(f"{answer!r} {vars(self._poster)!r}") from ValueError(answer.body)

forwarder.poll.normalize, otlp.OtlpHttp._outcome = normalize, outcome
"""


async def test_nothing_gets_out(tmp_path: Path) -> None:
    """Two lives at debug level: one with every error that proxies and backends can answer; one with bugs, as JSON."""
    async with World(tmp_path).open(RELEASES, tuple(BACKENDS)) as world:
        async with agent(tmp_path, env=world.env) as running:
            await running.until(lambda: world.all_told)
            await running.until(
                lambda: all(f"sink={name} " in running.err() for name in ("grpc", "mail", "hook-s400"))
            )
            await world.look(running)
            running.signal(signal.SIGTERM)
            await running.ended()
        world.keep(running, "first")
        async with agent(
            tmp_path, "run", "--log-format", "json", env=world.env | sabotaged(tmp_path, BUGS)
        ) as running:
            await running.until(lambda: "bug in polling" in running.err() and "bug in the sink" in running.err())
            running.signal(signal.SIGTERM)
            await running.ended()
        world.keep(running, "second")
    log = world.evidence["first: log"]
    for said in (b"HTTP 400", b"HTTP 401", b"HTTP 302", b"a page for people", b"error=redirect", b"error=not_json"):
        assert said in log, said
    assert b"Traceback" in world.evidence["second: log"]
    letters = json.loads(world.evidence["spool list --json"])
    assert {letter["sink"].partition("-")[0] for letter in letters} >= {"otlp", "newrelic", "datadog", "grpc"}
    for place in ("page /", "status", "doctor", "inspect --yes", "to t3", "to the backends", "first: file spool.db"):
        assert len(world.evidence[place]) > 500, place
    assert sightings(world.evidence) == []


def leaking(module: str, line: str) -> str:
    """Code that takes one redaction away."""
    return f"import forwarder.{module} as module\n{line}\n"


ERROR_TEXTS = leaking("normalize.deployments", "module.failure = lambda entry: (str(entry.get('error')), None)")
# By what was taken away: where it shows.
SABOTAGE = {
    ERROR_TEXTS: ("console", "file spool.db-wal", "page /api/status", "page /"),
    leaking("normalize.deployments", "module.model_name = lambda value: value"): ("console", "page /"),
    leaking("exposition.selection", "module.clean = lambda value: value"): ("console", "file spool.db-wal"),
    leaking("sinks.otlp.http", "module.code = lambda text: text"): ("log", "file spool.db-wal"),
    leaking(
        "logs",
        f"{BUGS}\nimport traceback\nmodule.trace_of = lambda error: ''.join(traceback.format_exception(error))",
    ): ("log",),
}


@pytest.mark.parametrize("code", SABOTAGE, ids=("errors", "models", "labels", "backends", "tracebacks"))
async def test_the_search_finds_what_leaks(tmp_path: Path, code: str) -> None:
    """Each redaction is there for something: where it is missing the canaries are seen, where one would look."""
    async with World(tmp_path).open(("1.53.1", "1.106.2"), ("s400",)) as world:
        async with agent(tmp_path, env=world.env | sabotaged(tmp_path, code)) as running:
            seen: set[str] = set()
            for _ in range(30):
                await asyncio.sleep(1)
                await world.look_at_pages(running, "/", "/api/status")
                world.keep(running, "now")
                seen |= {where.removeprefix("now: ") for where, _ in sightings(world.evidence)}
                if seen >= set(SABOTAGE[code]):
                    break
        assert seen >= set(SABOTAGE[code])
