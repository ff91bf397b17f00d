"""The programs that the agent is measured beside, each as a process that does as much of the same as it can:

    ours        the agent: every endpoint and the metrics page, to OTLP, New Relic and Datadog's API
    vmagent     scrapes the metrics page, remote write (VictoriaMetrics' agent)
    prometheus  the same, in agent mode
    script      plain_script.py

vmagent and prometheus are looked for where `make interop` unpacks them, and on the PATH. What is not at hand is left
out, and said.
"""

import asyncio
import contextlib
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final

import psutil
from receivers import KEY, SINKS, child, sink, until_input_ends

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from backends.http_server import Response, always
from backends.litellm import Deployment, FakeLiteLLM
from exposition_pages import recorded
from interop.places import servers
from program import PROGRAM, environment

NAMES: Final = ("ours", "vmagent", "prometheus", "script")
DEPLOYMENTS: Final = 20


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def program(name: str) -> str | None:
    """Where it is, if it is at hand."""
    return shutil.which(name, path=str(servers() / "usr/bin")) or shutil.which(name)


def at_hand() -> list[str]:
    return [name for name in NAMES if name in ("ours", "script") or program(name)]


@contextlib.asynccontextmanager
async def running(
    name: str, folder: Path, urls: Sequence[str], receiver: str, interval: float | None = None
) -> AsyncIterator[psutil.Process]:
    """A peer at work on these proxies, in a folder of its own; what it delivers goes to the receiver under its name.
    `interval` in seconds, its own default otherwise (15 for those that have none).
    """
    to = f"{receiver}/{name}"
    command = {"ours": _ours, "vmagent": _vmagent, "prometheus": _prometheus, "script": _script}[name]
    arguments = command(folder, urls, to, interval)
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *arguments, cwd=folder, env=environment(KEY), stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        yield psutil.Process(process.pid)
        assert process.returncode is None, (folder / "log").read_text()[-2000:]
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def _ours(folder: Path, urls: Sequence[str], to: str, interval: float | None) -> list[str]:
    every = "" if interval is None else f'interval = "{interval:g}s"\nmetrics = {{ interval = "{interval:g}s" }}\n'
    targets = "".join(f'[[targets]]\nname = "t{n}"\nurl = "{url}"\n{every}' for n, url in enumerate(urls))
    agent = f'[agent]\nstate_dir = "state"\nlisten = "127.0.0.1:{free_port()}"\n'
    (folder / "config.toml").write_text(agent + targets + "".join(sink(name, to) for name in SINKS))
    return [*PROGRAM, "run"]


def _scraping(urls: Sequence[str], interval: float | None) -> str:
    # One server plays all proxies: a parameter makes each a target of its own.
    host = urls[0].removeprefix("http://")
    where = "metrics_path: /metrics/, static_configs: [{{targets: ['{host}']}}]"
    job = "  - {{job_name: t{n}, params: {{t: ['{n}']}}, " + where + "}}\n"
    jobs = "".join(job.format(n=n, host=host) for n in range(len(urls)))
    return f"global: {{scrape_interval: {interval or 15:g}s}}\nscrape_configs:\n{jobs}"


def _vmagent(folder: Path, urls: Sequence[str], to: str, interval: float | None) -> list[str]:
    (folder / "scrape.yml").write_text(_scraping(urls, interval))
    path = program("vmagent")
    assert path is not None
    return [
        path,
        "-promscrape.config=scrape.yml",
        f"-remoteWrite.url={to}/api/v1/write",
        "-remoteWrite.tmpDataPath=data",
        f"-httpListenAddr=127.0.0.1:{free_port()}",
    ]


def _prometheus(folder: Path, urls: Sequence[str], to: str, interval: float | None) -> list[str]:
    text = _scraping(urls, interval) + f"remote_write: [{{url: '{to}/api/v1/write'}}]\n"
    (folder / "prometheus.yml").write_text(text)
    path = program("prometheus")
    assert path is not None
    return [
        path,
        "--enable-feature=agent",
        "--config.file=prometheus.yml",
        "--storage.agent.path=data",
        f"--web.listen-address=127.0.0.1:{free_port()}",
    ]


def _script(_folder: Path, urls: Sequence[str], to: str, interval: float | None) -> list[str]:
    script = Path(__file__).with_name("plain_script.py")
    return [sys.executable, str(script), urls[0], to, f"{interval or 15:g}"]


# --- the proxy ----------------------------------------------------------------------------------------------------


async def serve() -> None:
    """The fake proxy with a real one's page, until standard input ends."""
    page = Response(200, recorded("1.106.2"), {"content-type": "text/plain; version=0.0.4"})
    async with FakeLiteLLM() as proxy:
        proxy.deployments = [Deployment(f"openai/model-{n}", f"model-{n}") for n in range(DEPLOYMENTS)]
        proxy.overrides["/metrics/"] = always(page)
        print(proxy.url, flush=True)
        forgetting = asyncio.create_task(_forget(proxy))
        await until_input_ends()
        forgetting.cancel()


async def _forget(proxy: FakeLiteLLM) -> None:
    while True:
        await asyncio.sleep(1)
        proxy.requests.clear()


@contextlib.asynccontextmanager
async def a_proxy() -> AsyncIterator[str]:
    async with child(__file__) as url:
        yield url


if __name__ == "__main__":
    asyncio.run(serve())
