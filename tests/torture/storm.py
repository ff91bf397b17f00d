"""`make torture`: the whole agent, many targets, three vendors' receivers and the console in a seeded storm; at the
end every event is accounted for.

    python -m torture.storm [--seconds 300] [--seed N] [--targets 10] [--steady] [--keep FOLDER] [--plan]

What happens: receivers die and come back, hang, drip, reset in the middle of a request or of an answer, answer a page
or any status; the agent is killed, stopped and reloaded; its disk fills; proxies go and come back; the clock is
stepped. The seed decides what and when (`--plan` shows it): see plan.py. How to read what it says: docs/operations.md.
"""

import argparse
import asyncio
import contextlib
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from backends import datadog, newrelic, otlp
from backends.facts import Fact
from backends.http_server import Request, Response
from backends.litellm import Deployment, FakeLiteLLM
from program import Running, agent, call

from forwarder.events import Batch
from forwarder.sinks.datadog.api import AHEAD
from forwarder.spool.sqlite import SqliteSpool
from torture import disk as disks
from torture import witness
from torture.clock import SECOND, Clock
from torture.judge import Evidence, Expect, Stored, Verdict, grown, judge, printed
from torture.plan import Act, Life, plan, written
from torture.receivers import KEY, Front, fronts

PATIENCE: Final = 60  # seconds for what is pending when the storm is over
DRAIN: Final = 3.0  # seconds: `drain_timeout`
MOMENT: Final = 1.5  # seconds to wait for the moment to die
LETTERS: Final = 100_000  # dead letters that are read
COUNTERS: Final = "litellm_torture"  # what names of families on the proxies' pages begin with
DATADOG_AGE: Final = 3480 * SECOND  # the default of `max_age`


def _without_checks(batches: Sequence[Batch]) -> list[Fact]:
    """A service check that is late is not sent; the gauge beside it is what is judged."""
    return [fact for fact in datadog.expected_requests(batches) if not fact.name.startswith("check ")]


EXPECTED: Final[dict[str, Expect]] = {
    "otlp": otlp.expect,
    "newrelic": newrelic.expect,
    "datadog": _without_checks,
}


@dataclass
class Storm:
    folder: Path
    fronts: Sequence[Front]
    proxies: Sequence[FakeLiteLLM]
    clock: Clock
    disk: disks.Disk
    happened: Counter[str] = field(default_factory=Counter)
    life: int = 0
    cut: set[int] = field(default_factory=set)  # lives that ended in the middle of things
    down: set[int] = field(default_factory=set)

    async def run(self, lives: Sequence[Life]) -> None:
        """The agent lives and dies in it; nothing is healed at the end but the disk."""
        for number, life in enumerate(lives):
            self._begin(number)
            async with agent(self.folder, env={"KEY": KEY, **self.clock.environment}) as running:
                await running.until(lambda: "started" in running.err())  # until then SIGHUP ends any process
                began = time.monotonic()
                for act in life.acts:
                    await asyncio.sleep(began + act.at - time.monotonic())
                    _alive(running)
                    await self._do(running, act)
                await asyncio.sleep(began + life.lasts - time.monotonic())
                _alive(running)
                await self._end(running, life)

    def _begin(self, number: int) -> None:
        self.life = number
        for front in self.fronts:
            front.life, front.leaving = number, False

    async def _do(self, running: Running, act: Act) -> None:
        if act.what == "clock" and not self.clock.installed:
            return
        self.happened[act.what] += 1
        match act.what:
            case "receiver":
                front = self.fronts[act.number]
                assert not isinstance(act.how, str) or act.how
                self.happened[f"{front.name} {act.how}"] += 1
                await front.become(act.how)  # type: ignore[arg-type]  # a mode, for this act
            case "heal":
                await self.fronts[act.number].become("slow" if act.how == "slow" else None)
            case "proxy":
                await self._flap(act.number)
            case "deployment":
                sick = self.proxies[act.number].deployments[0]
                sick.error = None if sick.error else "rate_limit"
            case "disk":
                self._fill(running, str(act.how))
            case "reload":
                configure(self.folder, self.fronts, self.proxies, variant=act.number)
                await self._hang_up(running)
            case "clock":
                self.clock.step(act.number)

    async def _hang_up(self, running: Running) -> None:
        """A sink that is replaced closes its connection, perhaps in the moment in which it was answered."""
        for front in self.fronts:
            front.leaving = True
        running.signal(signal.SIGHUP)
        await asyncio.sleep(0.3)
        for front in self.fronts:
            front.leaving = False

    async def _flap(self, number: int) -> None:
        if number in self.down:
            await self.proxies[number].restart()
        else:
            await self.proxies[number].stop()
        self.down ^= {number}

    def _fill(self, running: Running, how: str) -> None:
        pid, output = running.process.pid, self.folder / f"out-{self.life}"
        match how:
            case "full":
                self.disk.fill(pid, output)
            case "limit":
                self.disk.limit(pid, output)
            case _:
                self.disk.free(pid)

    async def _end(self, running: Running, life: Life) -> None:
        kill = life.death == "kill"
        self.happened["kill -9" if kill else "stop"] += 1
        await self._at_moment(running, life)
        for front in self.fronts:
            front.leaving = True
        began = time.monotonic()
        await running.ended()
        # A stop gives up what is in flight once it has drained for so long.
        if kill or time.monotonic() - began >= DRAIN:
            self.cut.add(self.life)
        self.disk.free(None)
        if not kill:
            assert running.process.returncode == 0, running.err()[-3000:]

    async def _at_moment(self, running: Running, life: Life) -> None:
        """Give the signal when it is time for it, or after a while where that does not come."""
        given = asyncio.Event()

        def signalled() -> None:
            if not given.is_set():
                given.set()
                running.signal(signal.SIGKILL if life.death == "kill" else signal.SIGTERM)

        front = self.fronts[life.receiver]
        if life.moment == "stored":
            front.on_stored = signalled
        output = self.folder / f"out-{self.life}"
        printed, until = output.stat().st_size, time.monotonic() + MOMENT
        while life.moment != "any" and not given.is_set() and time.monotonic() < until:
            if life.moment == "printed" and output.stat().st_size != printed:
                signalled()
            await asyncio.sleep(0)
        front.on_stored = lambda: None
        signalled()

    async def calm(self) -> None:
        """Everything works again, and the agent gets time for what is pending."""
        for front in self.fronts:
            await front.become(None)
        for number in list(self.down):
            await self._flap(number)
        if self.clock.installed:
            self.clock.step(0)
        configure(self.folder, self.fronts, self.proxies)
        self._begin(self.life + 1)
        async with agent(self.folder, env={"KEY": KEY, **self.clock.environment}) as running:
            await running.until(lambda: "started" in running.err())
            for _ in range(PATIENCE):
                await asyncio.sleep(1)
                accounts = await self.ledger()
                if max(account["pending"] for account in accounts) < 100:  # what was put a moment ago
                    break
            await self._end(running, Life(0, "stop", "any", 0, ()))

    async def ledger(self) -> list[dict[str, Any]]:
        finished = await call("spool", "ledger", "--json", cwd=self.folder, env={"KEY": KEY})
        assert finished.code in (0, 1), finished  # 1: it does not add up, which is for the judge
        return list(json.loads(finished.out))

    async def letters(self) -> dict[str, list[tuple[Batch, str]]]:
        finished = await call("spool", "list", "--json", "--limit", str(LETTERS), cwd=self.folder, env={"KEY": KEY})
        assert finished.code == 0, finished
        found: dict[str, list[tuple[Batch, str]]] = {}
        for letter in json.loads(finished.out):
            found.setdefault(letter["sink"], []).append((witness.batch_of(letter["event"]), letter["reason"]))
        return found

    async def pending(self, sinks: Sequence[str]) -> dict[str, list[Batch]]:
        """What the spool's own file holds, read when the agent is gone."""
        spool = SqliteSpool(self.folder / "state" / "spool.db", owner=False)
        await spool.open()
        try:
            found = {sink: await spool.read(sink, max_events=10**9, max_bytes=10**12) for sink in sinks}
        finally:
            await spool.close()
        return {sink: [piece.batch for piece in pieces] for sink, pieces in found.items()}


def _alive(running: Running) -> None:
    assert running.process.returncode is None, (
        f"the agent ended by itself with {running.process.returncode}:\n{running.err()[-3000:]}"
    )


def configure(folder: Path, found: Sequence[Front], proxies: Sequence[FakeLiteLLM], *, variant: int = 0) -> None:
    """`variant`: what a reload changes. The sinks are replaced with each, and in the last the spool is small."""
    at = {front.name: front.address for front in found}
    timeout = ("1500ms", "1600ms", "1700ms")[variant]
    targets = "".join(
        f'[[targets]]\nname = "t{n}"\nurl = "{proxy.url}"\ninterval = "1s"\ntimeout = "2s"\n'
        'health = { interval = "15s", background = "on" }\nmetrics = { interval = "2s", timeout = "2s" }\n'
        for n, proxy in enumerate(proxies)
    )
    new = folder / "config.new"
    new.write_text(
        f"""
        [agent]
        state_dir = "state"
        drain_timeout = "{DRAIN:g}s"
        instance = "{otlp.INSTANCE}"
        listen = "off"
        [spool]
        max_bytes = "{("512MiB", "512MiB", "1MiB")[variant]}"
        [telemetry]
        interval = "5s"
        {targets}
        [sinks.console]
        type = "console"
        [sinks.otlp]
        type = "otlp"
        endpoint = "{at["otlp"]}"
        token = {{ env = "KEY" }}
        timeout = "{timeout}"
        [sinks.newrelic]
        type = "newrelic"
        api_key = {{ env = "KEY" }}
        url = "{at["newrelic"]}"
        events_url = "{at["newrelic"]}"
        timeout = "{timeout}"
        [sinks.datadog]
        type = "datadog"
        transport = "api"
        api_key = {{ env = "KEY" }}
        url = "{at["datadog"]}"
        timeout = "{timeout}"
        """
    )
    new.replace(folder / "config.toml")


@contextlib.asynccontextmanager
async def many(count: int) -> AsyncIterator[list[FakeLiteLLM]]:
    async with contextlib.AsyncExitStack() as stack:
        releases: Any = ("1.106.2", "1.80.17", "1.53.1", "documented")
        made = [FakeLiteLLM(releases[n % len(releases)]) for n in range(count)]
        for proxy in made:
            proxy.deployments = [Deployment(f"openai/model-{n}", f"m{n}") for n in range(5)]
            proxy.overrides["/metrics/"] = _Page().answer
            await stack.enter_async_context(proxy)
        yield made


class _Page:
    """A page of a proxy whose counters have grown each time that it is asked for."""

    def __init__(self) -> None:
        self._asked = 0
        self._dice = random.Random(0)  # noqa: S311 - numbers to count
        self._counts = [0, 0, 0]

    def answer(self, _request: Request) -> Response:
        self._asked += 1
        self._counts = [count + self._dice.randrange(10) for count in self._counts]
        fast, slow, slowest = self._counts
        name = COUNTERS
        lines = [f"# TYPE {name}_requests counter"]
        lines += [f'{name}_requests_total{{model="m{n}"}} {self._asked * (n + 1)}.0' for n in range(5)]
        lines += [
            f"# TYPE {name}_seconds histogram",
            f'{name}_seconds_bucket{{le="0.5"}} {fast}.0',
            f'{name}_seconds_bucket{{le="5.0"}} {fast + slow}.0',
            f'{name}_seconds_bucket{{le="+Inf"}} {fast + slow + slowest}.0',
            f"{name}_seconds_sum {(fast + 4 * slow + 16 * slowest) / 4}",
            f"{name}_seconds_count {fast + slow + slowest}.0",
        ]
        body = "\n".join([*lines, ""]).encode()
        return Response(200, body, {"content-type": "text/plain; version=0.0.4; charset=utf-8"})


async def torture(given: argparse.Namespace, folder: Path) -> tuple[Storm, list[Verdict]]:
    clock = Clock()
    if not given.steady:
        clock.install(folder)
    found = fronts()
    lives = plan(given.seed, seconds=given.seconds, targets=given.targets)
    (folder / "plan.txt").write_text(written(lives))
    try:
        async with contextlib.AsyncExitStack() as stack:
            for front in found:
                await stack.enter_async_context(front)
            proxies = await stack.enter_async_context(many(given.targets))
            storm = Storm(folder, found, proxies, clock, disks.Disk(folder / "state"))
            configure(folder, found, proxies)
            await storm.run(lives)
            await storm.calm()
        return storm, await _judged(storm)
    finally:
        for front in found:
            front.intake.close()


async def _judged(storm: Storm) -> list[Verdict]:
    accounts = {account["sink"]: account for account in await storm.ledger()}
    letters, pending = await storm.letters(), await storm.pending(list(accounts))
    newest = storm.clock.newest(time.time_ns())
    cut = frozenset(storm.cut)
    events, console = printed([_lines(storm.folder / f"out-{life}") for life in range(storm.life + 1)], cut)
    events += [
        Batch(each.resource, event.time, (event,)) for each in pending["console"] for event in each.events
    ]  # not printed yet
    account = accounts["console"]
    console.find(not account["adds_up"], f"the ledger does not add up: {account}")
    gone = account["rejected"] + account["expired"] + account["dropped"]
    console.find(gone, f"{gone} events were given up, whose reader never fails")
    verdicts = [
        console,
        grown(events, COUNTERS),
    ]
    for front in storm.fronts:
        verdict = judge(
            events,
            Evidence(
                front.name,
                EXPECTED[front.name],
                [
                    Stored(each.facts, each.life, each.sure, each.refused, storm.clock.readings(each.at))
                    for each in front.arrivals
                ],
                accounts[front.name],
                letters.get(front.name, []),
                pending[front.name],
                cut,
                newest,
                max_age=DATADOG_AGE if front.name == "datadog" else None,
                ahead=AHEAD * SECOND if front.name == "datadog" else None,
            ),
        )
        verdict.find(front.broken, f"{len(front.broken)} requests broke a rule of the vendor's: {front.broken[:3]}")
        verdicts.append(verdict)
    return verdicts


def _lines(path: Path) -> list[Batch]:
    """What was printed whole. What a kill or a full disk cut off is no line."""
    found = []
    for line in path.read_text().split("\n"):
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict):
                found.append(witness.batch_of(record))
    return found


def report(storm: Storm, verdicts: Sequence[Verdict], again: str) -> int:
    say = sys.stdout.write
    say(f"{again}\n" + ", ".join(f"{what} {count}" for what, count in sorted(storm.happened.items())) + "\n")
    say(f"the disk that fills: {storm.disk.kind}\n")
    if not storm.clock.installed:
        say("LEFT OUT: steps of the clock (--steady, or there is no C compiler)\n")
    for verdict in verdicts:
        say(f"{verdict.sink}: " + ", ".join(f"{name} {count}" for name, count in verdict.counts.items()) + "\n")
    findings = [finding for verdict in verdicts for finding in verdict.findings]
    for finding in findings:
        say(f"FOUND {finding}\n")
    say("every event is accounted for\n" if not findings else "not as promised\n")
    return 1 if findings else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="A seeded storm around the whole agent.")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--targets", type=int, default=10)
    parser.add_argument("--steady", action="store_true", help="leave out steps of the clock")
    parser.add_argument("--keep", type=Path, help="where the evidence is to stay; it stays anyway where it fails")
    parser.add_argument("--plan", action="store_true", help="show what would happen, and do nothing")
    given = parser.parse_args()
    arguments = ["--seconds", f"{given.seconds:g}", "--seed", str(given.seed), "--targets", str(given.targets)]
    arguments += ["--steady"] if given.steady else []
    if given.plan:
        sys.stdout.write(written(plan(given.seed, seconds=given.seconds, targets=given.targets)))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the agent must not be left behind
    keep = ["--keep", str(given.keep.resolve())] if given.keep else []
    disks.enter_namespace("torture.storm", [*arguments, *keep])
    folder = given.keep or Path(tempfile.mkdtemp(prefix="torture-"))
    folder.mkdir(parents=True, exist_ok=True)
    failed = True
    try:
        storm, verdicts = asyncio.run(torture(given, folder))
        failed = report(storm, verdicts, " ".join(arguments)) > 0
    finally:
        if failed or given.keep:
            _preserve(folder)
            sys.stdout.write(f"the plan and the evidence are in {folder}; the same storm again:\n")
            sys.stdout.write(f'  make torture ARGS="{" ".join(arguments)}"\n')
        else:
            disks.remove(folder)
    return 1 if failed else 0


def _preserve(folder: Path) -> None:
    """The state folder may be mounted, and then goes with this process."""
    (folder / "state" / "ballast").unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        shutil.copytree(folder / "state", folder / "state-kept", dirs_exist_ok=True)


if __name__ == "__main__":
    sys.exit(main())
