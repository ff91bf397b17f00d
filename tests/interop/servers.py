"""Real metrics servers for tests of interoperability: found, not fetched. A test that needs one skips, and says so."""

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest

from interop.places import servers

PATIENCE = 30.0  # seconds; a limit for what must happen


def binary(name: str) -> Path:
    """Where the server is: where `make interop` unpacks it. Skips the test if nowhere."""
    folder = servers()
    for found in (folder / "usr/bin" / name, folder / name):
        if os.access(found, os.X_OK):
            return found
    pytest.skip(f"NOT TESTED: no {name} below {folder}; `make interop` unpacks it")


def free_port() -> int:
    """One that the kernel chose. Another process could take it before it is used, which then fails loudly."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


class VictoriaMetrics:
    """A running one, with what it stores in `folder`."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    async def series(self) -> list[dict[str, Any]]:
        """Everything stored: `metric` (labels, the name as `__name__`), `values`, `timestamps` (ms)."""
        async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE) as client:
            (await client.get(f"{self.url}/internal/force_flush")).raise_for_status()
            answer = await client.get(f"{self.url}/api/v1/export?" + urlencode({"match[]": '{__name__!=""}'}))
            answer.raise_for_status()
        return [json.loads(line) for line in answer.text.split("\n") if line]

    async def points(self) -> Mapping[tuple[str, frozenset[tuple[str, str]]], list[tuple[int, float]]]:
        """By name and labels: time in seconds, and value."""
        found = {}
        for each in await self.series():
            labels = dict(each["metric"])
            name = labels.pop("__name__")
            times = [milliseconds // 1000 for milliseconds in each["timestamps"]]
            found[name, frozenset(labels.items())] = sorted(zip(times, each["values"], strict=True))
        return found


@contextlib.asynccontextmanager
async def victoria_metrics(folder: Path, port: int) -> AsyncIterator[VictoriaMetrics]:
    """Started, and answering. Killed on leaving; started again with the same folder it has what it stored."""
    with (folder / f"victoria-metrics-{port}.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            str(binary("victoria-metrics")),
            f"-storageDataPath={folder / 'victoria-metrics'}",
            f"-httpListenAddr=127.0.0.1:{port}",
            "-retentionPeriod=100y",
            "-memory.allowedBytes=64MB",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    server = VictoriaMetrics(port)
    try:
        async with asyncio.timeout(PATIENCE), httpx.AsyncClient(trust_env=False) as client:
            while not await _answers(client, server.url):
                assert process.returncode is None, "VictoriaMetrics does not start"
                await asyncio.sleep(0.05)
        yield server
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _answers(client: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await client.get(f"{url}/health")).status_code == 200
    except httpx.HTTPError:
        return False
