"""`make torture`: the whole agent, many targets, three vendors' receivers and the console in a seeded storm; at the
end every event is accounted for.

    python -m torture.storm [--seconds 300] [--seed N] [--targets 10] [--steady] [--keep FOLDER]

What happens: receivers hang, drip, reset in the middle of an answer, refuse the key, answer a page or any status; the
agent is killed, stopped and reloaded; its files may not grow (as on a full disk); proxies go and come back; the clock
is stepped, where libfaketime is installed. The seed decides what and when: the same seed makes the same storm, as far
as a machine repeats itself.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from backends import datadog, newrelic, otlp
from backends.facts import Fact
from backends.http_server import Answer, Request, Response, drip, hang, reset
from backends.litellm import Deployment, FakeLiteLLM
from program import Running, agent, call

from forwarder.events import Batch
from torture.judge import Evidence, Verdict, judge, witnessed

KEY: Final = "canary-5f1d0c2e"
LARGEST: Final = 3000  # facts of one send: about the bytes that a sink takes at once
PATIENCE: Final = 60  # seconds for what is pending when the storm is over
# `cut`: the request is stored, and the answer breaks off; whoever sent it cannot know, and sends it again.
Mode = Literal["hang", "drip", "reset", "page", "cut"] | int | None
MODES: Final[tuple[Mode, ...]] = (
    "hang", "drip", "reset", "page", "cut",
    302, 400, 401, 403, 404, 408, 413, 429, 500, 502, 503, 504,
)  # fmt: skip
FAKETIME: Final = tuple(
    Path(f"/usr/lib/{machine}-linux-gnu/faketime/libfaketime.so.1") for machine in ("x86_64", "aarch64")
)


# --- receivers -----------------------------------------------------------------------------------------------------


class _Stormy:
    """Over a receiver: modes that are not its own."""

    mode: Mode = None
    cuts = 0  # requests stored whose answer was broken off

    def answer_as_told(self, request: Request, taking: Callable[[Request], Response]) -> Answer:
        if self.mode is None:
            return taking(request)
        if self.mode == "cut":
            self.cuts += 1
            taking(request)
        return _ANSWERS[self.mode]() if isinstance(self.mode, str) else _status(self.mode)


_ANSWERS: Final[dict[str, Callable[[], Answer]]] = {
    "hang": hang,
    "drip": lambda: drip(Response(200, b" " * 500), every=0.1),
    "reset": lambda: reset(b"HTTP/1.1 20"),
    "cut": lambda: reset(b"HTTP/1.1 20"),
    "page": lambda: Response(200, b"<html>Please log in</html>", {"content-type": "text/html"}),
}


def _status(status: int) -> Response:
    more = {429: {"retry-after": "1"}, 503: {"retry-after": "1"}, 302: {"location": "http://127.0.0.1:9/"}}
    return Response(status, headers=more.get(status, {}))


class Otlp(_Stormy, otlp.HttpReceiver):
    def _handle(self, request: Request) -> Answer:
        return self.answer_as_told(request, self._take)


class NewRelic(_Stormy, newrelic.Intake):
    def _handle(self, request: Request) -> Answer:
        return self.answer_as_told(request, self._taken)


class Datadog(_Stormy, datadog.Intake):
    def _handle(self, request: Request) -> Answer:
        return self.answer_as_told(request, self.taken)


@dataclass
class Backend:
    name: str
    receiver: Any
    expect: Callable[..., list[Fact]]
    ordered: bool = False
    facts: list[Fact] = field(default_factory=list)

    def collect(self) -> None:
        self.facts += [fact for fact in self.receiver.take() if not fact.name.startswith("check ")]


def backends() -> list[Backend]:
    return [
        Backend("otlp", Otlp(KEY), otlp.expect, ordered=True),
        Backend("newrelic", NewRelic(KEY), newrelic.expect),
        Backend("datadog", Datadog(KEY), _without_checks),
    ]


def _without_checks(batches: Sequence[Batch]) -> list[Fact]:
    """A service check that is late is not sent; the gauge beside it is what is judged."""
    return [fact for fact in datadog.expected_requests(batches) if not fact.name.startswith("check ")]


# --- the storm -----------------------------------------------------------------------------------------------------


@dataclass
class Storm:
    folder: Path
    dice: random.Random
    backends: Sequence[Backend]
    proxies: Sequence[FakeLiteLLM]
    clock: Path | None  # what libfaketime reads
    happened: Counter[str] = field(default_factory=Counter)
    cuts: int = 0  # sends that may have been cut off: kills, and stops that did not wait
    limited: bool = False
    down: set[int] = field(default_factory=set)

    async def run(self, seconds: float) -> None:
        """The agent lives and dies in it for so long; nothing is healed at the end."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            async with self.agent() as running:
                await self._life(running, min(until, time.monotonic() + self.dice.uniform(4, 25)))
                await self._death(running)

    def agent(self) -> contextlib.AbstractAsyncContextManager[Running]:
        env = {"KEY": KEY}
        if self.clock is not None:
            library = next(path for path in FAKETIME if path.exists())
            env |= {"LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(self.clock)}
            env |= {"FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        return agent(self.folder, env=env)

    async def _life(self, running: Running, until: float) -> None:
        await running.until(lambda: "started" in running.err())  # until then SIGHUP ends any process
        while time.monotonic() < until and running.process.returncode is None:
            await asyncio.sleep(self.dice.uniform(0.1, 1.0))
            await self._something(running)
        assert running.process.returncode is None, (
            f"the agent ended by itself with {running.process.returncode}:\n{running.err()[-3000:]}"
        )

    async def _something(self, running: Running) -> None:
        what = self.dice.choices(
            ("backend", "heal", "proxy", "disk", "reload", "clock"), weights=(30, 25, 15, 8, 5, 5 if self.clock else 0)
        )[0]
        self.happened[what] += 1
        match what:
            case "backend":
                backend = self.dice.choice(self.backends)
                backend.collect()
                backend.receiver.mode = self.dice.choice(MODES)
                self.happened[f"{backend.name} {backend.receiver.mode}"] += 1
            case "heal":
                self.dice.choice(self.backends).receiver.mode = None
            case "proxy":
                await self._flap(self.dice.randrange(len(self.proxies)))
            case "disk":
                self._limit(running, full=not self.limited)
            case "reload":
                running.signal(signal.SIGHUP)
            case _:
                assert self.clock is not None
                # Not far ahead: what is in the future is stamped anew by a sink whose backend would drop it.
                self.clock.write_text(f"{self.dice.choice((-7200, -60, 0, 60)):+d}")

    async def _flap(self, number: int) -> None:
        if number in self.down:
            await self.proxies[number].restart()
        else:
            await self.proxies[number].stop()
        self.down ^= {number}

    def _limit(self, running: Running, *, full: bool) -> None:
        """Whether files of the agent may grow no further: what a full disk is to it, without root."""
        most = (self.folder / "state" / "spool.db-wal").stat().st_size if full else resource.RLIM_INFINITY
        resource.prlimit(running.process.pid, resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
        self.limited = full

    async def _death(self, running: Running) -> None:
        self.limited = False
        kill = self.dice.random() < 0.6
        self.happened["kill -9" if kill else "stop"] += 1
        self.cuts += 1  # a stop gives up what is in flight after its drain_timeout
        running.signal(signal.SIGKILL if kill else signal.SIGTERM)
        await running.ended()
        if not kill:
            assert running.process.returncode == 0, running.err()[-3000:]

    async def calm(self) -> None:
        """Everything works again, and the agent gets time for what is pending."""
        for backend in self.backends:
            backend.receiver.mode = None
        for number in list(self.down):
            await self._flap(number)
        if self.clock is not None:
            self.clock.write_text("+0")
        async with self.agent() as running:
            for _ in range(PATIENCE):
                await asyncio.sleep(1)
                if not sum(account["pending"] for account in await self.ledger()):
                    break
            running.signal(signal.SIGTERM)
            await running.ended()
        for backend in self.backends:
            backend.collect()

    async def ledger(self) -> list[dict[str, Any]]:
        finished = await call("spool", "ledger", "--json", cwd=self.folder)
        return list(json.loads(finished.out))


def configure(folder: Path, found: Sequence[Backend], proxies: Sequence[FakeLiteLLM]) -> None:
    at = {backend.name: backend.receiver.address for backend in found}
    targets = "".join(
        f'[[targets]]\nname = "t{n}"\nurl = "{proxy.url}"\ninterval = "1s"\ntimeout = "2s"\n'
        'health = { interval = "15s", background = "on" }\n'
        for n, proxy in enumerate(proxies)
    )
    (folder / "config.toml").write_text(
        f"""
        [agent]
        state_dir = "state"
        drain_timeout = "3s"
        instance = "{otlp.INSTANCE}"
        listen = "off"
        [telemetry]
        interval = "5s"
        {targets}
        [sinks.console]
        type = "console"
        [sinks.otlp]
        type = "otlp"
        endpoint = "{at["otlp"]}"
        token = {{ env = "KEY" }}
        timeout = "1s"
        [sinks.newrelic]
        type = "newrelic"
        api_key = {{ env = "KEY" }}
        url = "{at["newrelic"].url}"
        events_url = "{at["newrelic"].url}"
        timeout = "1s"
        [sinks.datadog]
        type = "datadog"
        transport = "api"
        api_key = {{ env = "KEY" }}
        url = "{at["datadog"]}"
        timeout = "1s"
        """
    )


@contextlib.asynccontextmanager
async def many(count: int) -> AsyncIterator[list[FakeLiteLLM]]:
    async with contextlib.AsyncExitStack() as stack:
        releases: Any = ("1.106.2", "1.80.17", "1.53.1", "documented")
        made = [FakeLiteLLM(releases[n % len(releases)]) for n in range(count)]
        for proxy in made:
            proxy.deployments = [Deployment(f"openai/model-{n}", f"m{n}") for n in range(5)]
            await stack.enter_async_context(proxy)
        yield made


async def torture(given: argparse.Namespace, folder: Path) -> tuple[Storm, list[Verdict]]:
    # Their windows are around a fixed time, for the contract suite.
    newrelic.NOW = time.time_ns()  # type: ignore[misc]
    datadog.CLOCK = int(time.time())
    found = backends()
    clock = folder / "clock" if not given.steady and any(path.exists() for path in FAKETIME) else None
    if clock is not None:
        clock.write_text("+0")
    try:
        async with many(given.targets) as proxies:
            configure(folder, found, proxies)
            storm = Storm(folder, random.Random(given.seed), found, proxies, clock)  # noqa: S311 - a storm is no secret
            await storm.run(given.seconds)
            await storm.calm()
            accounts = {account["sink"]: account for account in await storm.ledger()}
    finally:
        for backend in found:
            backend.receiver.close()
    events = witnessed(_lines(folder))
    return storm, [
        judge(
            events,
            Evidence(
                backend.name,
                backend.expect,
                backend.facts,
                accounts[backend.name],
                repeats=(storm.cuts + backend.receiver.cuts) * LARGEST,
                ordered=backend.ordered,
            ),
        )
        for backend in found
    ]


def _lines(folder: Path) -> list[dict[str, Any]]:
    found = []
    for number in range(len(list(folder.glob("out-*")))):
        for line in (folder / f"out-{number}").read_text().split("\n"):
            with contextlib.suppress(ValueError):  # what a kill or a full disk cut off is printed again
                record = json.loads(line)
                if isinstance(record, dict):
                    found.append(record)
    return found


def report(storm: Storm, verdicts: Sequence[Verdict], seed: int) -> int:
    say = sys.stdout.write
    say(f"seed {seed}: " + ", ".join(f"{what} {count}" for what, count in sorted(storm.happened.items())) + "\n")
    if storm.clock is None:
        say("LEFT OUT: steps of the clock (--steady, or libfaketime is not installed; Debian: faketime)\n")
    for backend, verdict in zip(storm.backends, verdicts, strict=True):
        say(f"{backend.name}: " + ", ".join(f"{name} {count}" for name, count in verdict.counts.items()) + "\n")
    findings = [finding for verdict in verdicts for finding in verdict.findings]
    for finding in findings:
        say(f"FOUND {finding}\n")
    say("every event is accounted for\n" if not findings else f"not as promised; repeat it with --seed {seed}\n")
    return 1 if findings else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="A seeded storm around the whole agent.")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--targets", type=int, default=10)
    parser.add_argument("--steady", action="store_true", help="leave out steps of the clock")
    parser.add_argument("--keep", type=Path)
    given = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = given.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        storm, verdicts = asyncio.run(torture(given, folder))
        return report(storm, verdicts, given.seed)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
