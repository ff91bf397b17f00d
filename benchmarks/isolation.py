"""Whether a sink is any slower for two broken ones beside it: delays of one sink alone, and with others in trouble.

    .venv/bin/python benchmarks/isolation.py [--rounds 3] [--seconds 10]

The whole agent, over real sockets, watches ten fake proxies. Each time it reads a proxy's metrics page, a gauge on it
says what time it is; the delay is from then to the arrival of that very point at the sink's receiver, so the reading,
the spool (with its fsync), the pump, the encoder and the request are all in it. Three agents run side by side, so that
what else the machine does meets all of them: one with that sink alone, and two that have beside it a sink that hangs
(takes the connection, never answers) and one that refuses (nobody listens; or every answer is a 503). Both keep a
growing backlog, and are tried again and again. Each of the three sinks is the one that works in turn.

Prints one JSON object: for each sink the delays in ms, and the ratio of the medians, over all and of each round.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from receivers import KEY, SINKS, STAMP, Receiver, child, receiving, sink, until_input_ends

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from backends.http_server import Answer, Request, Response, ScriptedServer, always, hang
from backends.litellm import FakeLiteLLM
from http_support import nobody
from program import agent

TARGETS: Final = 10
POLL: Final = 0.1  # seconds
WARM: Final = 2.0  # seconds after the first delivery that do not count: everything is read at once then
# Of the third sink: which hangs, which refuses.
BESIDE: Final = {
    "otlp": ("datadog", "newrelic"),
    "newrelic": ("otlp", "datadog"),
    "datadog": ("newrelic", "otlp"),
}


@dataclass(frozen=True)
class Case:
    """`beside`: the broken sinks, by name, and where they are."""

    name: str
    third: str
    beside: dict[str, str]


def configuration(proxy: str, names: int, sinks: dict[str, str]) -> str:
    parts = ['[agent]\nstate_dir = "state"\nlisten = "off"\ndrain_timeout = "0s"\n']
    parts += [
        f'[[targets]]\nname = "t{names}-{n}"\nurl = "{proxy}"\ninterval = "15s"\nmetrics = {{ interval = "1s" }}\n'
        for n in range(TARGETS)
    ]
    # Two seconds, so that what hangs is given up and tried again within a round.
    parts += [f'{sink(name, url)}timeout = "2s"\n' for name, url in sinks.items()]
    return "\n".join(parts)


async def delays(places: "Places", case: Case, folder: Path, turn: int, ready: asyncio.Barrier) -> list[float]:
    """Milliseconds, of every point that came within `places.seconds` from when all are ready."""
    url = f"{places.receiver.url}/{case.name}"
    (folder / "config.toml").write_text(configuration(places.proxy, turn, {case.third: url, **case.beside}))
    async with agent(folder, env=KEY) as running:
        while not (await places.receiver.told(f"/told?{case.name}"))[case.name]["delays"]:  # noqa: ASYNC110 - other processes
            await asyncio.sleep(POLL)
        await ready.wait()
        await asyncio.sleep(WARM)
        await places.receiver.told(f"/anew?{case.name}")
        await asyncio.sleep(places.seconds)
        found = (await places.receiver.told(f"/anew?{case.name}"))[case.name]["delays"]
        assert running.process.returncode is None, running.err()
    return [delay * 1000 for delay in found]


async def compare(places: "Places", third: str, rounds: int) -> dict[str, Any]:
    hanging, refusing = BESIDE[third]
    cases = [
        Case("alone", third, {}),
        *(Case(how, third, {hanging: places.hanging, refusing: url}) for how, url in places.refusing.items()),
    ]
    found: dict[str, list[list[float]]] = {case.name: [] for case in cases}
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name, case.name) for case in cases]
        for folder in folders:
            folder.mkdir()
        for turn in range(rounds):
            # Who reads when is decided by the names of the targets: each case has each set of names once.
            ready = asyncio.Barrier(len(cases))
            working = (
                delays(places, case, folder, (turn + number) % len(cases), ready)
                for number, (case, folder) in enumerate(zip(cases, folders, strict=True))
            )
            for case, one in zip(cases, await asyncio.gather(*working), strict=True):
                found[case.name].append(one)
        for folder in folders[1:]:
            assert trouble(folder) == {hanging, refusing}, "both were to be in trouble"
    told: dict[str, Any] = {name: described(every) for name, every in found.items()}
    for case in cases[1:]:
        pairs = zip(found[case.name], found["alone"], strict=True)
        ratios = [statistics.median(beside) / statistics.median(alone) for beside, alone in pairs]
        told[case.name]["ratio"] = told[case.name]["median_ms"] / told["alone"]["median_ms"]
        told[case.name]["ratio_of_rounds"] = sorted(ratios)
    return told


def trouble(folder: Path) -> set[str]:
    """The sinks of which the log says that they cannot be delivered to."""
    text = "\n".join(path.read_text() for path in folder.glob("err-*"))
    lines = [line for line in text.split("\n") if "cannot deliver" in line]
    return {name for name in SINKS if any(f"sink={name}" in line for line in lines)}


def described(rounds: Sequence[Sequence[float]]) -> dict[str, float]:
    delays = [delay for one in rounds for delay in one]
    return {
        "points": len(delays),
        "median_ms": statistics.median(delays),
        "p95_ms": statistics.quantiles(delays, n=20)[-1],
    }


# --- what it is measured against ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Places:
    """Where everything is, and how long it is looked at. `refusing`: by way of refusing."""

    receiver: Receiver
    seconds: float
    proxy: str
    hanging: str
    refusing: dict[str, str]


def stamped(_request: Request) -> Answer:
    page = f"# TYPE {STAMP} gauge\n{STAMP} {time.time()!r}\n"
    return Response(200, page.encode(), {"content-type": "text/plain; version=0.0.4"})


async def serve() -> None:
    """The proxy, a backend that hangs and one that always fails, in one process, until standard input ends."""
    unwell = always(Response(503, b"unwell"))
    async with FakeLiteLLM() as proxy, ScriptedServer(always(hang())) as hanging, ScriptedServer(unwell) as failing:
        proxy.overrides["/metrics/"] = stamped
        print(json.dumps([proxy.url, hanging.url, failing.url]), flush=True)
        await until_input_ends()


async def measure(rounds: int, seconds: float) -> dict[str, Any]:
    async with receiving() as receiver, child(__file__, "--serve") as said:
        proxy, hanging, failing = json.loads(said)
        with nobody() as closed:
            places = Places(receiver, seconds, proxy, hanging, {"refused": closed, "503": failing})
            return {third: await compare(places, third, rounds) for third in BESIDE}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        asyncio.run(serve())
    else:
        print(json.dumps(asyncio.run(measure(given.rounds, given.seconds))))


if __name__ == "__main__":
    main()
