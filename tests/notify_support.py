"""What tests of the notify sink share: changes, a courier that keeps what it is given, a stage for scenarios."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol
from zoneinfo import ZoneInfo

from backends.sinks import FakeClock, WatchedSpool
from spool_stores import SECOND

from forwarder import catalog
from forwarder.events import Batch, Change, Event, Metric, Resource
from forwarder.pump import Pump
from forwarder.sinks.notify.courier import Failed, Sent
from forwarder.sinks.notify.rules import Rules
from forwarder.sinks.notify.sink import NotifySink, Style
from forwarder.sinks.notify.texts import Message
from forwarder.spool.sqlite import SqliteSpool

MINUTE = 60.0
HOUR = 3600.0
START = int(datetime(2026, 3, 10, 12, 0, tzinfo=UTC).timestamp()) * SECOND  # a Tuesday
AWAY = Failed("the mail server did not answer in time")
WRONG = Failed("the mail server refuses user name or password (535)", wrong=True)


def down(time: int = START, error: str = "refused") -> Change:
    return catalog.PROXY_DOWN.at(time, "eu: the proxy is down", "It failed.", {"error.type": error})


def up(time: int = START) -> Change:
    return catalog.PROXY_UP.at(time, "eu: the proxy is up again", "It answers.")


def unready(time: int = START) -> Change:
    return catalog.READINESS_CHANGED.at(time, "eu: not ready", "", {"previous": "ready", "current": "not_ready"})


def ready(time: int = START) -> Change:
    said = {"previous": "not_ready", "current": "ready"}
    return catalog.READINESS_CHANGED.at(time, "eu: ready", "", {**said}, severity="info")


def database(time: int = START, *, back: bool = False) -> Change:
    kind = catalog.DEPENDENCY_UP_CHANGE if back else catalog.DEPENDENCY_DOWN
    return kind.at(time, "eu: database", "", {"dependency": "database"})


def _deployment(number: int) -> dict[str, str | int]:
    return {
        "model": f"openai/gpt-{number}",
        "model.name": f"gpt-{number}",
        "deployment.id": f"d{number:03}-0123456789",
        "provider": "openai",
    }


def unhealthy(number: int = 1, time: int = START, error: str = "timeout", status: int | None = None) -> Change:
    more = {} if status is None else {"http.response.status_code": status}
    attributes = {**_deployment(number), "error.type": error, **more}
    return catalog.DEPLOYMENT_UNHEALTHY.at(time, f"eu: gpt-{number} is unhealthy", "", attributes)


def healthy(number: int = 1, time: int = START) -> Change:
    return catalog.DEPLOYMENT_HEALTHY.at(time, f"eu: gpt-{number} is healthy", "", _deployment(number))


def removed(number: int = 1, time: int = START) -> Change:
    return catalog.DEPLOYMENT_REMOVED.at(time, f"eu: gpt-{number} was removed", "", _deployment(number))


def release(time: int = START) -> Change:
    said: dict[str, str | int] = {"previous": "1.1", "current": "1.2"}
    return catalog.VERSION_CHANGED.at(time, "eu: LiteLLM 1.2 instead of 1.1", "It says so.", said)


def mixed(time: int = START, *, back: bool = False) -> Change:
    kind = catalog.METRICS_UNMIXED if back else catalog.METRICS_MIXED
    return kind.at(time, "eu: the metrics page", "Several answer in turn.")


def lost(time: int = START) -> Change:
    said: dict[str, str | int] = {"sink": "datadog", "reason": "spool_full"}
    return catalog.DATA_LOST.at(time, "events were lost", "12 events of datadog.", said)


def point(time: int = START) -> Metric:
    return catalog.UP.at(time, 1.0)


def batch(*events: Event, target: str = "eu", time: int | None = None) -> Batch:
    time = time if time is not None else max((event.time for event in events), default=START)
    return Batch(Resource({"litellm.target": target} if target else {}), time, events)


class People:
    """A courier that keeps the messages, and fails as long as it is told to."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.attempts = 0
        self.failing: Failed | None = None

    def deliver(self, message: Message, *, timeout: float) -> Sent | Failed:  # noqa: ARG002 - the contract's
        self.attempts += 1
        if self.failing is not None:
            return self.failing
        self.messages.append(message)
        return Sent()

    def take(self) -> list[Message]:
        taken, self.messages = self.messages, []
        return taken

    def subjects(self) -> list[str]:
        return [message.subject.removeprefix("[LiteLLM] ") for message in self.take()]


class Stage:
    """The sink behind a real pump and a real spool, in a time that passes when it is told to."""

    def __init__(self, spool: WatchedSpool, clock: FakeClock, rules: Rules) -> None:
        self.spool = spool
        self.clock = clock
        self.rules = rules
        self.people = People()
        self.style = Style(ZoneInfo("Europe/Berlin"), "https://status.example.com/")
        self.running: asyncio.Task[bool] | None = None
        self._stop = asyncio.Event()
        self.pump: Pump | None = None

    def begin(self, **rules: object) -> None:
        """Start the agent's part, perhaps with other rules than before."""
        self.rules = replace(self.rules, **rules)  # type: ignore[arg-type] # names of its fields
        sink = NotifySink("mail", self.people, self.rules, self.style, clock=self.clock)
        dice = random.Random(1)  # noqa: S311 - the same jitter every time
        self.pump = Pump(sink, self.spool, timeout=5.0, clock=self.clock, sleep=self.clock.sleep, dice=dice)
        self._stop = asyncio.Event()
        self.running = asyncio.ensure_future(self.pump.run(self._stop))

    async def kill(self) -> None:
        """End it as a crash would: what was not written down is gone."""
        if self.running is not None:
            self.running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.running

    async def stop(self) -> bool:
        """Drain. Whether nothing was left."""
        assert self.running is not None
        self._stop.set()
        async with asyncio.timeout(30):
            return await self.running

    async def happens(self, *changes: Change, target: str = "eu") -> None:
        """These are seen now, in one reading, and the pump has dealt with it."""
        now = self.clock.now
        stamped = [_at(change, now) for change in changes]
        await self.spool.put(batch(*stamped, point(now), target=target, time=now))
        await self.settled()

    async def passes(self, seconds: float, step: float = 15.0) -> None:
        """Time passes in which readings yield nothing but points."""
        end = self.clock.now + int(seconds * SECOND)
        while self.clock.now < end:
            self.clock.tick(min(step, (end - self.clock.now) / SECOND))
            await self.happens()

    async def settled(self) -> None:
        async with asyncio.timeout(30):
            while True:
                idle = self.spool.empty["mail"] = asyncio.Event()
                await idle.wait()
                (account,) = await self.spool.accounts()
                assert account.adds_up
                if not account.pending:
                    return


def _at(change: Change, now: int) -> Change:
    return Change(change.name, now, change.severity, change.title, change.text, change.attributes)


@asynccontextmanager
async def staged(folder: Path, rules: Rules | None = None) -> AsyncIterator[Stage]:
    clock = FakeClock()
    clock.now = START
    spool = SqliteSpool(folder / "spool.db", max_age=10.0**9, clock=clock)
    await spool.open()
    stage = Stage(WatchedSpool(spool), clock, rules or Rules())
    try:
        await spool.attach(["mail"])
        stage.begin()
        yield stage
        await stage.kill()
    finally:
        await spool.close()


def told(messages: Sequence[Message]) -> str:
    return "\n".join(message.text for message in messages)


class Receiving(Protocol):
    """A mail server, fake or real."""

    ca_file: Path

    def url(self) -> str: ...


def configured(folder: Path, url: str, mail: Receiving, more: str = "") -> dict[str, str]:
    """The environment for a configuration with that proxy and that mail server."""
    (folder / "config.toml").write_text(
        f"""
[agent]
state_dir = "state"

[[targets]]
name = "prod"
url = "{url}"
interval = "1s"
health = {{ interval = "15s", background = "on" }}
changes = {{ failure_threshold = 1, success_threshold = 1 }}

[sinks.mail]
type = "notify"
url = {{ env = "MAIL_URL" }}
ca_file = "{mail.ca_file}"
group = "1s"
time_zone = "Europe/Berlin"
public_url = "https://status.example.com/"
{more}
"""
    )
    return {"MAIL_URL": mail.url()}
