"""The agent beside its peers (peers.py), all of them at once, on the same fake proxies and with the same receiver.

    .venv/bin/python benchmarks/footprint.py start    seconds from exec to the first delivery, at an interval of 1 s
    .venv/bin/python benchmarks/footprint.py one      CPU and memory with one proxy at default intervals
    .venv/bin/python benchmarks/footprint.py many     the same with 200 proxies, or as many as is said, for each 1,000

Each prints one JSON object by peer. The proxy has 20 deployments and the metrics page (1,621 lines) that a real one of
release 1.106 had. The agent has three sinks and its status page; a peer that is not at hand is left out.
"""

import asyncio
import contextlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import psutil
from peers import NAMES, a_proxy, at_hand, running
from receivers import Receiver, receiving

STARTS: Final = 3
PATIENCE: Final = 30.0  # seconds until a first delivery
MANY: Final = 200
# Seconds, with one and with many: the start, and a first reading of everything; then what is measured, which is a
# multiple of the default intervals but that of /health.
ONE_WARM, ONE_WINDOW = 20.0, 45.0
MANY_WARM, MANY_WINDOW = 75.0, 30.0


async def start(url: str, receiver: Receiver) -> dict[str, Any]:
    found: dict[str, list[float]] = {name: [] for name in at_hand()}
    for _ in range(STARTS):
        for name, seconds in found.items():
            await receiver.told(f"/anew?{name}")
            with tempfile.TemporaryDirectory() as folder:
                began = time.time()
                async with running(name, Path(folder), [url], receiver.url, 1.0):
                    seconds.append(await first(receiver, name) - began)
    return {name: {"median_s": statistics.median(seconds), "most_s": max(seconds)} for name, seconds in found.items()}


async def first(receiver: Receiver, name: str) -> float:
    """When the first request came."""
    async with asyncio.timeout(PATIENCE):
        while True:
            told = [each for key, each in (await receiver.told()).items() if key.split("/")[0] == name]
            arrivals = [each["first"] for each in told if each["requests"]]
            if arrivals:
                return float(min(arrivals))
            await asyncio.sleep(0.01)


async def footprint(url: str, receiver: Receiver, targets: int) -> dict[str, Any]:
    names = [name for name in at_hand() if targets == 1 or name != "script"]
    warm, window = (ONE_WARM, ONE_WINDOW) if targets == 1 else (MANY_WARM, MANY_WINDOW)
    async with contextlib.AsyncExitStack() as stack:
        processes, folders = {}, {}
        for name in names:
            folders[name] = folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            peer = running(name, folder, [url] * targets, receiver.url)
            processes[name] = await stack.enter_async_context(peer)
        await asyncio.sleep(warm)
        before = {name: used(process) for name, process in processes.items()}
        await asyncio.sleep(window)
        found = {}
        for name, process in processes.items():
            memory = process.memory_full_info()
            found[name] = {
                "cpu_percent": (used(process) - before[name]) / window * 100,
                "rss_mib": memory.rss / 2**20,
                "uss_mib": memory.uss / 2**20,
            }
        told = await receiver.told()
        for name in names:
            assert any(key.split("/")[0] == name for key in told), f"{name} delivered nothing"
        slow = (folders["ours"] / "log").read_text().count("error=timeout")
        assert not slow, f"the agent called proxies slow that answer at once, {slow} times"
    return found


def used(process: psutil.Process) -> float:
    """Seconds of CPU so far."""
    times = process.cpu_times()
    return times.user + times.system


async def many(url: str, receiver: Receiver, targets: int) -> dict[str, Any]:
    """What so many take, for 1,000: one process in Python is too few for those."""
    found = await footprint(url, receiver, targets)
    times = 1000 / targets
    return {
        name: {
            "cores": each["cpu_percent"] / 100 * times,
            "rss_mib": each["rss_mib"] * times,
            "measured_cpu_percent": each["cpu_percent"],
            "measured_rss_mib": each["rss_mib"],
        }
        for name, each in found.items()
    }


async def measure(what: str, targets: int) -> dict[str, Any]:
    async with a_proxy() as url, receiving() as receiver:
        match what:
            case "start":
                found = await start(url, receiver)
            case "one":
                found = await footprint(url, receiver, 1)
            case _:
                found = await many(url, receiver, targets)
    return {**found, "missing": [name for name in NAMES if name not in at_hand()]}


def main() -> None:
    match sys.argv[1:]:
        case ["start" | "one" | "many" as what]:
            targets = MANY
        case ["many" as what, number] if number.isdecimal() and int(number) > 1:
            targets = int(number)
        case _:
            sys.exit(__doc__)
    print(json.dumps(asyncio.run(measure(what, targets))))


if __name__ == "__main__":
    main()
