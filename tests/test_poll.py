"""The poller over a real socket and a real spool: what is asked, when, and what comes of it."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, get_args

import pytest
from backends.http_server import Answer, Request, Response, ScriptedServer, drip, hang, redirect, reset

from forwarder import catalog
from forwarder import config as settings
from forwarder.errors import SpoolUnavailable
from forwarder.events import Change, Event, Metric
from forwarder.http import Client
from forwarder.intake import Intake
from forwarder.normalize.reading import Endpoint
from forwarder.poll import ABSENT_RETRY, AUTH_RETRY, Poller
from forwarder.spool.sqlite import SqliteSpool
from forwarder.threads import DaemonThreads
from forwarder.transport import tls_context

SECOND = 1_000_000_000
NOW = 1_795_000_000 * SECOND
ALIVE = "I'm alive!"
READY = {"status": "healthy", "db": "connected"}
CONTEXT = tls_context(None, None, None)


def js(body: object, status: int = 200) -> Response:
    return Response(status, json.dumps(body).encode(), {"content-type": "application/json"})


def entry(number: int, **more: object) -> dict[str, object]:
    return {"model": "openai/gpt-4o", "model_id": f"id-{number}", "api_base": "http://secret-base.invalid", **more}


def health(healthy: int, unhealthy: int = 0) -> Response:
    failing = [
        entry(100 + n, error="litellm.RateLimitError: SECRET-LEAKTEST", exception_status=429) for n in range(unhealthy)
    ]
    return js({"healthy_endpoints": [entry(n) for n in range(healthy)], "unhealthy_endpoints": failing})


class Proxy:
    """Answers by path; what is not listed is absent. Counts who asked what, with which key."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {
            "/health/liveliness": js(ALIVE),
            "/health/readiness": js(READY),
            "/health": health(2, 1),
        }
        self.asked: list[str] = []

    def __call__(self, request: Request) -> Answer:
        self.asked.append(request.path)
        return self.answers.get(request.path, js({"detail": "Not Found"}, 404))

    def count(self, path: str) -> int:
        return self.asked.count(path)


class Clock:
    now = NOW

    def __call__(self) -> int:
        return self.now


class World:
    """One proxy, one poller, one spool; time stands still unless a test moves it."""

    def __init__(self, url: str, spool: SqliteSpool, proxy: Proxy, clock: Clock, stack: AsyncExitStack) -> None:
        self.url, self.spool, self.proxy, self.clock, self._stack = url, spool, proxy, clock, stack
        self._seen = 0

    async def poller(self, **options: Any) -> Poller:
        """A poller as after a start: it takes up what the spool remembers."""
        config = settings.for_url(self.url, "KEY", {"KEY": "sk-canary"} if options.pop("keyed", True) else {})
        health = config.targets[0].health.model_copy(update=options.pop("health", {}))
        target = config.targets[0].model_copy(update={"name": "eu", "timeout": 2.0, "health": health} | options)
        client = Client(target.url, target.key_headers(), CONTEXT, max_body=100_000, clock=self.clock)
        self._stack.push_async_callback(client.close)
        poller = Poller(target, client, Intake(self.spool, {}, clock=self.clock), {"env": "prod"}, clock=self.clock)
        poller.open(await self.spool.state())
        return poller

    async def round(self, poller: Poller, seconds: float = 15) -> None:
        """Time passes, then every endpoint ticks once, /health last."""
        self.clock.now += int(seconds * SECOND)
        for endpoint in sorted(poller.endpoints, key=lambda endpoint: endpoint == "health"):
            await poller.tick(endpoint)

    async def events(self) -> list[Event]:
        """What was put since the last call."""
        pieces = await self.spool.read("test", max_events=1_000_000, max_bytes=10**9)
        found = [event for piece in pieces for event in piece.batch.events]
        fresh, self._seen = found[self._seen :], len(found)
        return fresh

    async def values(self, name: str) -> list[float | None]:
        return [event.value for event in await self.events() if isinstance(event, Metric) and event.name == name]

    async def changes(self) -> list[str]:
        return [event.name for event in await self.events() if isinstance(event, Change)]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    proxy, clock = Proxy(), Clock()
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(ScriptedServer(proxy))
        spool = SqliteSpool(tmp_path / "spool.db", clock=clock)
        await spool.open()
        stack.push_async_callback(spool.close)
        await spool.attach(["test"])
        yield World(server.url, spool, proxy, clock, stack)


# --- what is asked, and when ---------------------------------------------------------------------------------------


async def test_health_waits_for_its_interval_and_the_cheap_ones_do_not(world: World) -> None:
    """Every 15 seconds, and every 5 minutes."""
    poller = await world.poller()
    for _ in range(21):
        await world.round(poller)
    assert world.proxy.count("/health/liveliness") == 21
    assert world.proxy.count("/health") == 2


async def test_a_restart_does_not_poll_health_again_before_its_time(world: World) -> None:
    """An agent that crashes in a loop costs no more than one that runs."""
    for _ in range(5):
        await world.round(await world.poller(), seconds=1)
    assert world.proxy.count("/health") == 1


async def test_health_is_asked_after_every_cheap_endpoint_had_its_say(world: World) -> None:
    """They may show that it is free, or not needed."""
    poller = await world.poller()
    await poller.tick("health")
    assert world.proxy.asked == []


async def test_an_absent_endpoint_is_asked_again_rarely_and_yields_nothing(world: World) -> None:
    """404 is remembered; absence is not a failure."""
    poller = await world.poller()
    await world.round(poller)
    events = await world.events()
    assert not [event for event in events if event.attributes.get("endpoint") == "backlog"]
    await world.round(poller)
    assert world.proxy.count("/health/backlog") == 1
    await world.round(poller, ABSENT_RETRY)
    assert world.proxy.count("/health/backlog") == 2


async def test_a_refused_key_is_told_once_and_not_hammered(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """What needs no key goes on; a rotated key heals within five minutes."""
    refused = js({"error": {"message": "No connected db.", "type": "no_db_connection", "code": "400"}}, 400)
    for path in ("/health", "/health/backlog", "/model/info"):
        world.proxy.answers[path] = refused
    poller = await world.poller()
    for _ in range(10):
        await world.round(poller)
    assert world.proxy.count("/health/liveliness") == 10
    assert world.proxy.count("/health") == world.proxy.count("/health/backlog") == 1
    assert len([r for r in caplog.records if r.levelno >= logging.WARNING and "key" in r.message]) == 1
    await world.round(poller, AUTH_RETRY)
    assert world.proxy.count("/health/backlog") == 2


async def test_retry_after_is_honoured_within_reason(world: World) -> None:
    """A proxy that limits our rate says for how long; a week is a mistake."""
    busy = Response(429, b"{}", {"content-type": "application/json", "retry-after": "60"})
    for_ever = Response(429, b"{}", {"content-type": "application/json", "retry-after": "9999999"})
    world.proxy.answers |= {"/health/backlog": busy, "/health/services": for_ever}
    poller = await world.poller()
    for _ in range(5):
        await world.round(poller)
    assert (world.proxy.count("/health/backlog"), world.proxy.count("/health/services")) == (2, 1)
    await world.round(poller, ABSENT_RETRY)
    assert world.proxy.count("/health/services") == 2


async def test_a_proxy_that_is_down_is_not_asked_for_health(world: World) -> None:
    """It would time out, and be booked as if it had called everybody."""
    world.proxy.answers["/health/liveliness"] = reset()
    poller = await world.poller()
    await world.round(poller)
    assert world.proxy.count("/health") == 0
    world.proxy.answers["/health/liveliness"] = js(ALIVE)
    await world.round(poller)
    assert world.proxy.count("/health") == 1


async def test_skipped_endpoints_are_not_asked(world: World) -> None:
    """`skip` and `health.enabled = false`."""
    poller = await world.poller(skip=frozenset({"backlog", "latest"}), health={"enabled": False})
    await world.round(poller)
    assert not {"/health/backlog", "/health/latest", "/health", "/model/info"} & set(world.proxy.asked)


async def test_the_alias_of_liveliness_is_tried(world: World) -> None:
    """Both names exist in every release; a gateway may pass only one."""
    del world.proxy.answers["/health/liveliness"]
    world.proxy.answers["/health/liveness"] = js(ALIVE)
    await world.round(await world.poller())
    assert await world.values("litellm.up") == [1.0]


async def test_a_clock_set_back_silences_nothing(world: World) -> None:
    """Pauses are bounded however the clock moves."""
    poller = await world.poller()
    await world.round(poller)
    before = world.proxy.count("/health/liveliness"), world.proxy.count("/health")
    await world.round(poller, -86_400)
    assert (world.proxy.count("/health/liveliness"), world.proxy.count("/health")) == (before[0] + 1, before[1])
    await world.round(poller, 300)
    assert (world.proxy.count("/health/liveliness"), world.proxy.count("/health")) == (before[0] + 2, before[1] + 1)


async def test_shared_checks_do_not_make_health_free(world: World) -> None:
    """`use_shared_health_check` alone does not switch background checks on: each poll is billed as before."""
    world.proxy.answers["/health/shared-status"] = js({"shared_health_check_enabled": True, "status": {}})
    poller = await world.poller()
    for _ in range(10):
        await world.round(poller)
    assert world.proxy.count("/health") == 1


async def test_one_unreadable_state_leaves_the_others(world: World) -> None:
    """And a lost account is no licence: /health waits for its interval."""
    await world.round(await world.poller())
    await world.spool.put(None, {"changes/eu": b"\x02damaged"})
    await world.round(await world.poller())
    assert world.proxy.count("/health") == 1
    await world.spool.put(None, {"cost/eu": b"\x02damaged"})
    await world.round(await world.poller())
    assert world.proxy.count("/health") == 1
    await world.round(await world.poller(), 300)
    assert world.proxy.count("/health") == 2


def test_the_lists_of_endpoints_agree() -> None:
    """What is read, what is documented, and what `skip` takes: all but the two that every proxy has, and those with a
    table of their own.
    """
    names = set(get_args(Endpoint))
    assert {endpoint.name for endpoint in catalog.ENDPOINTS} == names
    assert set(get_args(settings.OptionalEndpoint)) == names - {"liveliness", "readiness", "health", "metrics"}


async def test_one_health_poll_at_a_time(world: World) -> None:
    """Ticks that come while a slow one is in flight make no second: proxies do not join them, each is billed."""
    world.proxy.answers["/health"] = drip(health(2), every=0.01, step=10)
    poller = await world.poller(health={"background": "on"})
    for endpoint in poller.endpoints:
        if endpoint != "health":
            await poller.tick(endpoint)
    await asyncio.gather(*(poller.tick("health") for _ in range(5)))
    assert world.proxy.count("/health") == 1


# --- the verdicts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, [1.0, 1.0]),
        ({"/health/readiness": js({"status": "healthy", "db": "disconnected"}, 503)}, [0.0, 0.0]),
        ({"/health/readiness": js({"status": "not_ready"})}, [0.0, 0.0]),
        ({"/health/liveliness": reset(), "/health/readiness": reset()}, [0.0, 0.0]),
        ({"/health/readiness": hang()}, [0.0, 0.0]),
        (
            {"/health": js({"status": "unhealthy", "healthy_endpoints": [], "unhealthy_endpoints": []})},
            [1.0, 0.0],
        ),
        ({"/health": health(0, 3)}, [1.0, 1.0]),
    ],
)
async def test_litellm_health_keeps_the_meaning_of_the_users_documentation(
    world: World, changed: dict[str, Answer], expected: list[float]
) -> None:
    """1 when alive, ready and nothing it said calls itself unhealthy; 0 also when unreachable.

    Deployments that fail do not change it. (The first value comes before all is known.)
    """
    world.proxy.answers |= changed
    poller = await world.poller(timeout=0.3)
    await poller.tick("liveliness")
    first = [e.value for e in await world.events() if isinstance(e, Metric) and e.name == "litellm.health"]
    assert first in ([], [0.0])  # nothing is claimed before readiness was read, except that it is down
    await world.round(poller)
    values = await world.values("litellm.health")
    assert values == expected[: len(values)]
    assert values[-1] == expected[-1]


async def test_what_a_key_does_not_show_is_unknown_not_zero(world: World) -> None:
    """A refused /health says nothing about deployments: no count, no zero, and the proxy stays healthy."""
    world.proxy.answers["/health"] = js({"error": {"type": "auth_error", "message": "x"}}, 401)
    await world.round(await world.poller())
    events = [event for event in await world.events() if isinstance(event, Metric)]
    assert not [e for e in events if e.name in {"litellm.healthy_models", "litellm.deployment.up"}]
    (failed,) = [e for e in events if e.name == "litellm.probe.success" and e.attributes == {"endpoint": "health"}]
    assert failed.value == 0
    assert [e.value for e in events if e.name == "litellm.health"][-1] == 1


async def test_a_complaint_is_forgotten_when_it_is_stale(world: World) -> None:
    """A /health that said "unhealthy", and is not asked any more, does not condemn the proxy for a day."""
    world.proxy.answers["/health"] = js({"status": "unhealthy"})
    poller = await world.poller(health={"max_billed_calls_per_day": 1})
    await world.round(poller)
    assert (await world.values("litellm.health"))[-1] == 0
    for _ in range(60):
        await world.round(poller)
    assert (await world.values("litellm.health"))[-1] == 1


async def test_deployments_come_from_the_free_list_where_there_is_one(world: World) -> None:
    """The documented /health/models is free and says more; /health then only contributes what is its own."""
    world.proxy.answers["/health/models"] = js({"healthy": [{"model": "gpt-4"}], "unhealthy": [{"model": "claude"}]})
    poller = await world.poller()
    await world.round(poller)
    ups = [e for e in await world.events() if isinstance(e, Metric) and e.name == "litellm.deployment.up"]
    assert [(e.attributes["model"], e.value) for e in ups] == [("gpt-4", 1.0), ("claude", 0.0)]
    assert world.proxy.count("/health") == 1
    await world.round(poller)
    assert await world.changes() == ["litellm.deployment.unhealthy"]


async def test_deployments_carry_the_name_that_clients_ask_for(world: World) -> None:
    """From /model/info, by id; also after a restart, before model_info was asked again."""
    info = {"model_name": "chat", "litellm_params": {"model": "openai/gpt-4o"}, "model_info": {"id": "id-0"}}
    world.proxy.answers["/model/info"] = js({"data": [info]})
    await world.round(await world.poller())
    del world.proxy.answers["/model/info"]
    world.proxy.answers["/health"] = health(1)
    await world.round(await world.poller(), 300)
    ups = [e for e in await world.events() if isinstance(e, Metric) and e.name == "litellm.deployment.up"]
    assert {e.attributes.get("model.name") for e in ups if e.attributes["deployment.id"] == "id-0"} == {"chat"}
    assert {e.attributes.get("model.name") for e in ups if e.attributes["deployment.id"] != "id-0"} == {None}


# --- changes -------------------------------------------------------------------------------------------------------


async def test_changes_are_told_once_also_across_restarts(world: World) -> None:
    """A new poller for every round: state comes from the spool alone."""
    told: list[str] = []
    for seconds in (15, 300, 300, 300):
        await world.round(await world.poller(), seconds)
    told += await world.changes()
    world.proxy.answers["/health/liveliness"] = reset()
    for _ in range(4):
        await world.round(await world.poller())
    told += await world.changes()
    world.proxy.answers["/health/liveliness"] = js(ALIVE)
    for _ in range(4):
        await world.round(await world.poller())
    told += await world.changes()
    assert told == ["litellm.deployment.unhealthy", "litellm.proxy.down", "litellm.proxy.up"]


async def test_state_is_stored_again_after_the_spool_was_replaced(world: World, tmp_path: Path) -> None:
    """Else a restart would find no memory, and tell everything once more."""
    world.proxy.answers["/health/readiness"] = js({"status": "healthy", "db": "disconnected"}, 503)
    poller = await world.poller()
    for _ in range(3):
        await world.round(poller)
    assert "litellm.dependency.down" in await world.changes()
    (tmp_path / "spool.db").unlink()
    for _ in range(3):
        await world.round(poller)
    world._seen = 0
    restarted = await world.poller()
    for _ in range(4):
        await world.round(restarted)
    assert "litellm.dependency.down" not in await world.changes()


@pytest.mark.parametrize("answer", [js({}), js({"error": "x"}, 401), js("hello"), hang(), Response(200, b"<html>")])
async def test_a_poll_that_saw_no_deployments_removes_none(world: World, answer: Answer) -> None:
    """401, time-outs, `{}`, HTML: not seeing is not the same as being gone."""
    poller = await world.poller(health={"timeout": 0.2, "background": "on"})
    await world.round(poller)
    world.proxy.answers["/health"] = answer
    for _ in range(5):
        await world.round(poller)
    world.proxy.answers["/health"] = health(2, 1)
    await world.round(poller)
    assert not [name for name in await world.changes() if name.endswith(("removed", "added"))]


async def test_a_change_that_could_not_be_stored_is_found_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """State and batch are stored together or not at all."""
    poller = await world.poller()
    await world.round(poller)
    world.proxy.answers["/health/liveliness"] = reset()
    await world.round(poller)
    put = world.spool.put

    async def full(*_: object) -> None:
        raise SpoolUnavailable("the disk is full")

    monkeypatch.setattr(world.spool, "put", full)
    await world.round(poller)
    monkeypatch.setattr(world.spool, "put", put)
    assert "litellm.proxy.down" not in await world.changes()
    await world.round(poller)
    assert (await world.changes()).count("litellm.proxy.down") == 1


# --- the cost guard ------------------------------------------------------------------------------------------------


async def test_the_budget_stops_health_and_nothing_else_and_says_so_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Two healthy and one rate-limited deployment are up to 5 calls: a budget of 12 covers two polls."""
    world.clock.now = NOW - NOW % (86_400 * SECOND)  # midnight: the day is long enough
    poller = await world.poller(health={"max_billed_calls_per_day": 12, "background": "off"})
    for _ in range(20):
        await world.round(poller, 300)
    assert world.proxy.count("/health") == 2
    assert world.proxy.count("/health/liveliness") == 20
    assert len([r for r in caplog.records if "budget" in r.message and "spent" in r.message]) == 1
    events = await world.events()
    assert [e.name for e in events if e.name == "litellm.probe.budget.spent"] == ["litellm.probe.budget.spent"]
    remaining = [e.value for e in events if isinstance(e, Metric) and e.name == "litellm.probe.budget.remaining"]
    assert remaining[:3] == [7, 2, 2]
    billed = [e for e in events if isinstance(e, Metric) and e.name == "litellm.probe.billed_calls"]
    assert [e.value for e in billed][:3] == [5, 10, 10]
    assert [e.delta.value for e in billed if e.delta][:3] == [5, 5, 0]
    await world.round(poller, 86_400)
    assert world.proxy.count("/health") == 3


async def test_the_cost_is_on_disk_before_the_call(world: World) -> None:
    """An agent that dies in the middle of /health finds the booking when it comes back."""
    poller = await world.poller(health={"background": "off"})
    await world.round(poller)
    world.clock.now += 300 * SECOND

    booked: list[int] = []
    answer = world.proxy.answers["/health"]

    async def look(_: Request) -> Answer:
        restarted = await world.poller(health={"background": "off"})
        booked.append(restarted._account.spent)
        return answer

    handler: Callable[[Request], Any] = look
    world.proxy.answers["/health"] = _deferred(handler, answer)
    await poller.tick("health")
    assert booked == [10]


def _deferred(handler: Callable[[Request], Any], answer: Answer) -> Answer:
    async def script(reader: Any, writer: Any) -> None:
        del reader
        await handler(Request("GET", "/health", {}))
        assert isinstance(answer, Response)
        writer.write(answer.encode())
        await writer.drain()

    return script


async def test_background_checks_are_recognised_and_health_polled_often(world: World) -> None:
    """`{}` is certain: from then on it costs nothing and comes as often as the cheap ones."""
    world.proxy.answers["/health"] = js({})
    poller = await world.poller()
    await world.round(poller)
    world.proxy.answers["/health"] = health(3)
    for _ in range(4):
        await world.round(poller)
    assert world.proxy.count("/health") == 5
    assert set(await world.values("litellm.probe.billed_calls")) == {0.0}


async def test_a_cost_that_cannot_be_booked_is_not_spent(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a full disk, a crash loop would forget what it paid."""
    poller = await world.poller()

    async def full(*_: object) -> None:
        raise SpoolUnavailable("the disk is full")

    monkeypatch.setattr(world.spool, "put", full)
    await world.round(poller)
    assert poller._account.spent == 0
    assert world.proxy.count("/health") == 0
    assert world.proxy.count("/health/liveliness") == 1


async def test_the_arithmetic_is_told_at_start(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """With the number of deployments from /model/info, which calls nobody."""
    world.proxy.answers["/model/info"] = js({"data": [{"model_name": "a"}] * 17})
    poller = await world.poller()
    await poller.tick("model_info")
    (told,) = [r.message for r in caplog.records if "billed" in r.message]
    assert "288 polls a day x 17 deployments = 4,896 calls a day" in told
    assert world.proxy.asked == ["/model/info"]


# --- failures of every kind become the right events and one line ---------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Response(200, b"<html>login</html>", {"content-type": "text/html"}), "not_json"),
        (js({"detail": "x"}, 403), "auth"),
        (Response(500, b"boom"), "http_5xx"),
        (Response(200, b'{"healthy_endpoints": [{"mod'), "malformed"),
        (Response(200, b"[" * 50_000), "malformed"),
        (js([1, 2]), "unexpected"),
        (Response(200, b"x" * 200_000), "too_large"),
        (redirect("http://127.0.0.1:1/"), "redirect"),
        (js({}, 429), "rate_limited"),
        (reset(), "connection"),
        (hang(b"HTTP/1.1 200 OK\r\n"), "timeout"),
    ],
)
async def test_each_failure_is_an_event_and_one_line_not_one_per_poll(
    world: World, caplog: pytest.LogCaptureFixture, answer: Answer, error: str
) -> None:
    """And one line more when it ends."""
    caplog.set_level(logging.INFO)
    world.proxy.answers["/health"] = answer
    poller = await world.poller(health={"timeout": 0.2, "background": "on"})
    for _ in range(4):
        await world.round(poller, AUTH_RETRY)
    endpoint: Endpoint = "health"
    failures = [
        event.attributes["error.type"]
        for event in await world.events()
        if event.name == "litellm.probe.failure" and event.attributes["endpoint"] == endpoint
    ]
    assert failures == [error] * 4
    lines = [record for record in caplog.records if "cannot read" in record.message]
    assert len(lines) == 1
    world.proxy.answers["/health"] = health(1)
    await world.round(poller, AUTH_RETRY)
    assert [r.message for r in caplog.records if r.message.endswith("can be read again")] != []
    assert not [r for r in caplog.records if "sk-canary" in r.getMessage() + str(r.__dict__)]


async def test_a_dead_host_is_one_line_however_many_endpoints(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nine endpoints that nobody answers are one trouble."""
    caplog.set_level(logging.INFO)
    clock = Clock()
    spool = SqliteSpool(tmp_path / "spool.db", clock=clock)
    await spool.open()
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(ScriptedServer(Proxy()))
        await server.stop()
        world = World(server.url, spool, Proxy(), clock, stack)
        poller = await world.poller()
        for _ in range(3):
            await world.round(poller)
    await spool.close()
    assert len([record for record in caplog.records if "cannot read" in record.message]) == 1


async def test_a_name_that_is_not_looked_up_says_nothing_of_its_target(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """So many other names hang that this one has no turn: no event, one line, and what was known stays known."""
    asyncio.get_running_loop().set_default_executor(DaemonThreads())
    world.url = world.url.replace("127.0.0.1", "localhost")
    poller = await world.poller()
    await world.round(poller)
    assert poller.up is True
    await world.events()
    await asyncio.sleep(1.1)  # an idle connection is used again for a second
    with monkeypatch.context() as full:
        full.setattr("forwarder.threads.MOST_NAMES", 0)
        for _ in range(3):
            await world.round(poller)
    assert (await world.events(), poller.up) == ([], True)
    said = [r.message for r in caplog.records if r.levelno >= logging.WARNING]
    assert said.count("not polled") == 1
    assert not [line for line in said if "cannot read" in line]
    await world.round(poller)
    assert await world.values("litellm.up") == [1.0]


async def test_nothing_secret_is_stored(world: World, tmp_path: Path) -> None:
    """Neither the key nor what /health says: no byte of it in the spool's files."""
    await world.round(await world.poller())
    stored = b"".join((tmp_path / name).read_bytes() for name in ("spool.db", "spool.db-wal"))
    assert b"openai/gpt-4o" in stored
    for secret in (b"sk-canary", b"LEAKTEST", b"secret-base"):
        assert secret not in stored
