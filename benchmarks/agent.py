"""The running agent against a fake proxy in a process of its own: start, memory, CPU.

    .venv/bin/python benchmarks/agent.py start     seconds from exec to the first delivered event
    .venv/bin/python benchmarks/agent.py memory    MiB resident after 15 s of one target at default intervals
    .venv/bin/python benchmarks/agent.py cpu       ms of CPU for each poll; 20 targets at 1 s, 15 s
    .venv/bin/python benchmarks/agent.py disk      bytes of spool for each event that is not delivered; 5 targets, 10 s

Each prints one JSON object. The proxy has 20 deployments in the form of release 1.106.2.
"""

import asyncio
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from backends.litellm import Deployment, FakeLiteLLM
from program import agent, ledger, write_config

STARTS = 7
DEPLOYMENTS = 20
WINDOW = 15  # seconds


async def start(url: str) -> dict[str, object]:
    """The interpreter's own start is in it; a bare `python -c pass` is measured beside it."""
    seconds, bare = [], []
    for _ in range(STARTS):
        began = time.perf_counter()
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", "pass")
        await process.wait()
        bare.append(time.perf_counter() - began)
        with tempfile.TemporaryDirectory() as name:
            write_config(Path(name), [url])
            began = time.perf_counter()
            async with agent(Path(name)) as running:
                while not running.out():  # noqa: ASYNC110 - a file that another process writes: no event tells
                    await asyncio.sleep(0.002)
                seconds.append(time.perf_counter() - began)
    return {
        "first_delivery_s": {"min": min(seconds), "median": statistics.median(seconds), "max": max(seconds)},
        "bare_python_s": {"median": statistics.median(bare)},
    }


async def memory(url: str) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as name:
        write_config(Path(name), [url])
        async with agent(Path(name)) as running:
            process = psutil.Process(running.process.pid)
            await asyncio.sleep(WINDOW)
            assert "litellm.healthy_models" in running.names()
            info = process.memory_full_info()
            return {"rss_mib": info.rss / 2**20, "uss_mib": info.uss / 2**20, "threads": process.num_threads()}


async def cpu(url: str) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as name:
        write_config(Path(name), [url] * 20, 'interval = "1s"\nhealth = { interval = "15s", background = "on" }')
        async with agent(Path(name)) as running:
            process = psutil.Process(running.process.pid)
            await asyncio.sleep(5)
            before, polls = process.cpu_times(), running.names().count("litellm.probe.success")
            await asyncio.sleep(WINDOW)
            after = process.cpu_times()
            polls = running.names().count("litellm.probe.success") - polls
            used = after.user + after.system - before.user - before.system
            return {"polls": polls, "cpu_percent": used / WINDOW * 100, "cpu_ms_per_poll": used / polls * 1000}


async def disk(url: str) -> dict[str, object]:
    """The sink's pipe is read by nobody, so that everything stays in the spool."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = 'interval = "1s"\nhealth = { interval = "15s", background = "on" }'
        write_config(folder, [url] * 5, options, 'drain_timeout = "0s"\n')
        reading, writing = os.pipe()
        try:
            async with agent(folder, stdout=writing) as running:
                await asyncio.sleep(10)
                running.signal(signal.SIGTERM)
                await running.ended()
        finally:
            os.close(reading)
            os.close(writing)
        account = await ledger(folder)
        size = sum(path.stat().st_size for path in (folder / "state").glob("spool.db*"))
        return {"events": account["pending"], "bytes_per_event": size / account["pending"]}


async def serve() -> None:
    """The fake proxy, until standard input ends."""
    async with FakeLiteLLM() as proxy:
        proxy.deployments = [Deployment(f"openai/model-{n}", f"model-{n}") for n in range(DEPLOYMENTS)]
        print(proxy.url, flush=True)
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        await reader.read()


async def against_proxy(measure: Callable[[str], Awaitable[dict[str, object]]]) -> dict[str, object]:
    server = await asyncio.create_subprocess_exec(
        sys.executable, __file__, "serve", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert server.stdout is not None
    assert server.stdin is not None
    try:
        return await measure((await server.stdout.readline()).decode().strip())
    finally:
        server.stdin.close()
        await server.wait()


def main() -> None:
    what = {"start": start, "memory": memory, "cpu": cpu, "disk": disk}
    if sys.argv[1:] == ["serve"]:
        asyncio.run(serve())
    elif len(sys.argv) == 2 and sys.argv[1] in what:
        print(json.dumps(asyncio.run(against_proxy(what[sys.argv[1]]))))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
