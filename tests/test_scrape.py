"""The metrics page of a target over a real socket and a real spool: how it is asked for, what its answer comes to."""

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from backends.http_server import Answer, Request, Response, ScriptedServer, redirect
from exposition_pages import HISTOGRAM, NOW, SECOND, histogram, page, recorded

from forwarder import config as settings
from forwarder.config_metrics import Metrics
from forwarder.events import Change, Event, Metric
from forwarder.http import Client
from forwarder.intake import Intake
from forwarder.poll import NO_METRICS_RETRY, Poller
from forwarder.spool.sqlite import SqliteSpool
from forwarder.transport import tls_context

CONTEXT = tls_context(None, None, None)
TEXT = {"content-type": "text/plain; version=0.0.4; charset=utf-8"}
BEGAN = NOW / SECOND - 1000


class World:
    """A proxy with a metrics page, a spool, and time that a test moves."""

    def __init__(self, spool: SqliteSpool, stack: AsyncExitStack) -> None:
        self.answers: dict[str, Answer] = {}
        self.requests: list[Request] = []
        self.server = ScriptedServer(self._answer)
        self.spool, self._stack, self._seen = spool, stack, 0
        self.now = NOW

    def _answer(self, request: Request) -> Answer:
        self.requests.append(request)
        return self.answers.get(request.path, Response(404, b"{}", {"content-type": "application/json"}))

    def serve(self, body: bytes) -> None:
        self.answers["/metrics/"] = Response(200, body, TEXT)

    async def poller(self, *, keyed: bool = True, **metrics: Any) -> Poller:
        config = settings.for_url(self.server.url, "KEY", {"KEY": "sk-canary"} if keyed else {})
        table = Metrics(**metrics)
        target = config.targets[0].model_copy(update={"name": "eu", "metrics": table})
        client = Client(target.url, target.key_headers(), CONTEXT, max_body=100_000, clock=lambda: self.now)
        self._stack.push_async_callback(client.close)
        intake = Intake(self.spool, {}, clock=lambda: self.now)
        poller = Poller(target, client, intake, {"env": "prod"}, clock=lambda: self.now)
        poller.open(await self.spool.state())
        return poller

    async def tick(self, poller: Poller, seconds: float = 15) -> list[Event]:
        """What a tick puts into the spool."""
        self.now += int(seconds * SECOND)
        await poller.tick("metrics")
        pieces = await self.spool.read("test", max_events=1_000_000, max_bytes=10**9)
        found = [event for piece in pieces for event in piece.batch.events]
        fresh, self._seen = found[self._seen :], len(found)
        return fresh


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        spool = SqliteSpool(tmp_path / "spool.db", clock=lambda: NOW)
        await spool.open()
        stack.push_async_callback(spool.close)
        await spool.attach(["test"])
        found = World(spool, stack)
        await stack.enter_async_context(found.server)
        yield found


def metrics(events: list[Event], name: str) -> dict[str, float | None]:
    """Values by their attributes' values."""
    return {
        " ".join(str(value) for value in event.attributes.values()): event.value
        for event in events
        if isinstance(event, Metric) and event.name == name
    }


async def test_a_page_becomes_points_about_the_proxy_and_about_itself(world: World) -> None:
    """Under its own names, with what was kept and what was not."""
    world.serve(recorded("1.106.2"))
    poller = await world.poller()
    events = await world.tick(poller)
    assert metrics(events, "litellm.probe.success") == {"metrics": 1.0}
    assert metrics(events, "litellm.metrics.series") == {
        "kept": 647.0,
        "dropped": 0.0,
        "withheld": 0.0,
        "malformed": 0.0,
    }
    assert metrics(events, "litellm.metrics.bad_lines") == {"": 0.0}
    assert metrics(events, "litellm_in_flight_requests")
    (request,) = world.requests
    assert (request.path, request.headers["authorization"]) == ("/metrics/", "Bearer sk-canary")


@pytest.mark.parametrize("absolute", [True, False])
async def test_a_redirect_on_this_host_is_followed_once(world: World, absolute: bool) -> None:
    """As from `/metrics` to `/metrics/`; a second one is not."""
    to = "/metrics"
    world.answers["/metrics/"] = redirect(f"{world.server.url}{to}" if absolute else to)
    world.answers[to] = Response(200, page({"": 5}), TEXT)
    poller = await world.poller()
    assert metrics(await world.tick(poller), "litellm_requests_total") == {"": 5.0}
    world.answers[to] = redirect("/metrics/")
    assert metrics(await world.tick(poller), "litellm.probe.failure") == {"metrics redirect": 1.0}
    assert len(world.requests) == 4


NOTHING = b"# TYPE python_info gauge\npython_info 1\n"


@pytest.mark.parametrize(
    ("answer", "keyed", "error", "told"),
    [
        (Response(401, b'{"error": {}}'), False, "auth", "wants a key"),
        (Response(401, b'{"error": {}}'), True, "auth", "was refused"),
        (redirect("https://elsewhere.example/metrics/"), True, "redirect", "another host"),
        (Response(200, NOTHING, TEXT), True, "no_metrics", "callback is not enabled"),
        (Response(200, recorded("1.53.1"), TEXT), True, "no_metrics", "Enterprise license"),
        (Response(200, b"<!DOCTYPE html><html>", {"content-type": "text/html"}), True, "not_metrics", "points at"),
        (Response(200, b'{"status": "ok"}'), True, "not_metrics", "points at"),
        (Response(200, b"# TYPE litellm_a gauge\n" + b"litellm_a 1\n" * 100, TEXT), True, "too_large", "max_body"),
        (Response(500, b"oops"), True, "http_5xx", "server failed"),
    ],
)
async def test_each_bad_answer_has_its_cause(
    world: World, caplog: pytest.LogCaptureFixture, *, answer: Answer, keyed: bool, error: str, told: str
) -> None:
    """Named in the metric, and told once with its likely fix."""
    world.answers["/metrics/"] = answer
    poller = await world.poller(keyed=keyed, max_body="1KiB" if error == "too_large" else "64MiB")
    for _ in range(3):
        events = await world.tick(poller, NO_METRICS_RETRY)
        assert metrics(events, "litellm.probe.failure") == {f"metrics {error}": 1.0}
        assert not metrics(events, "litellm.metrics.series")
    assert sum(told in record.message for record in caplog.records) == 1


@pytest.mark.parametrize(
    ("answer", "told"), [(Response(404, b"{}"), "has no metrics page"), (Response(200, b"\n", TEXT), "is empty")]
)
async def test_a_proxy_without_the_page_is_left_in_peace(
    world: World, answer: Answer, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    """No failure, no warning; one line, and another look every five minutes."""
    world.answers["/metrics/"] = answer
    caplog.set_level(logging.INFO)
    poller = await world.poller()
    for _ in range(40):
        assert await world.tick(poller) == []
    assert len(world.requests) == 2
    assert [record.levelno for record in caplog.records if told in record.message] == [logging.INFO]
    world.serve(page({"": 5}))
    assert metrics(await world.tick(poller, NO_METRICS_RETRY), "litellm_requests_total") == {"": 5.0}


async def test_a_restart_of_the_agent_goes_on_where_the_last_run_was(world: World) -> None:
    """Deltas and all, from what stands beside the batch in the spool."""
    world.serve(page({"": 5}, began=BEGAN))
    await world.tick(await world.poller())
    world.serve(page({"": 9}, began=BEGAN))
    (point,) = [e for e in await world.tick(await world.poller()) if e.name == "litellm_requests_total"]
    assert isinstance(point, Metric)
    assert point.delta is not None
    assert (point.delta.value, point.delta.since) == (4.0, NOW + 15 * SECOND)


async def test_another_configuration_goes_on_where_the_old_one_was(world: World) -> None:
    """A reload in the middle of things; the poller before stores nothing more."""
    world.serve(page({"": 5}, began=BEGAN))
    before = await world.poller()
    await world.tick(before)
    after = await world.poller(max_series=10)
    after.follow(await before.retire())
    world.serve(page({"": 9}, began=BEGAN))
    assert await world.tick(before) == []
    (point,) = [e for e in await world.tick(after) if e.name == "litellm_requests_total"]
    assert isinstance(point, Metric)
    assert point.delta is not None
    assert point.delta.value == 4.0


async def test_state_that_cannot_be_read_starts_anew(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """With a line in the log, and no delta at first."""
    await world.spool.put(None, {"metrics/eu": b"\x01damaged"})
    world.serve(page({"": 5}, began=BEGAN))
    (point,) = [e for e in await world.tick(await world.poller()) if e.name == "litellm_requests_total"]
    assert isinstance(point, Metric)
    assert point.delta is None
    assert any("starts anew" in record.message for record in caplog.records)


async def test_the_cap_is_told_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Also across a restart; how much is dropped is in a metric each time."""
    world.serve(recorded("1.106.2"))
    changes: list[Event] = []
    for _run in range(2):
        poller = await world.poller(max_series=100)
        for _ in range(2):
            events = await world.tick(poller)
            changes += [event for event in events if isinstance(event, Change)]
            assert metrics(events, "litellm.metrics.series")["dropped"] == pytest.approx(700, abs=200)
    assert [change.name for change in changes] == ["litellm.metrics.capped"]
    assert sum("more than 100 series" in record.message for record in caplog.records) == 1


async def test_several_workers_behind_one_address_are_told_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """With the likely cause and its fix; their counters are withheld."""
    poller = await world.poller()
    changes: list[Event] = []
    events: list[Event] = []
    for number in range(8):
        world.serve(page({"": 1000 + number % 2}, began=BEGAN + number % 2))
        events = await world.tick(poller)
        changes += [event for event in events if isinstance(event, Change)]
    assert metrics(events, "litellm.metrics.series")["withheld"] == 1.0
    assert metrics(events, "litellm_requests_total") == {}
    (change,) = changes
    assert isinstance(change, Change)
    assert (change.name, "PROMETHEUS_MULTIPROC_DIR" in change.text) == ("litellm.metrics.mixed", True)
    assert sum("several processes" in record.message for record in caplog.records) == 1


async def test_the_page_has_an_interval_of_its_own(world: World) -> None:
    """Its ticks follow `metrics.interval`; without `enabled` there are none."""
    poller = await world.poller(interval="60s")
    assert (poller.interval("metrics"), poller.interval("liveliness")) == (60.0, 15.0)
    world.serve(page({"": 5}))
    assert await world.tick(poller, 60)
    assert await world.tick(poller, 15) == []
    assert "metrics" not in (await world.poller(enabled=False)).endpoints


async def test_what_is_dropped_and_kept_is_configured(world: World) -> None:
    """Labels, families, probes, buckets."""
    world.serve(recorded("1.106.2"))
    poller = await world.poller(
        keep_labels=("hashed_api_key",), drop_labels=("model_id",), include=("litellm_proxy_*",), buckets=False
    )
    events = [e for e in await world.tick(poller) if e.name.startswith("litellm_")]
    assert {event.name for event in events} == {
        "litellm_proxy_failed_requests_metric_total",
        "litellm_proxy_total_requests_metric_total",
    }
    assert any("hashed_api_key" in event.attributes for event in events)
    assert not any("model_id" in event.attributes for event in events)


async def test_series_are_chosen_as_configured(world: World) -> None:
    """By the values of labels. The proxy's own probes stay out whatever else does, unless asked for."""
    probe = '{model="b",api_key_alias="litellm-internal-health-check"}'
    world.serve(page({'{model="a"}': 1, '{model="b"}': 2, probe: 4}))
    rules: dict[str, Any] = {"include_series": ({"model": "?"},), "exclude_series": ({"model": "a"},)}
    poller = await world.poller(**rules)
    assert metrics(await world.tick(poller), "litellm_requests_total") == {"b": 2.0}
    poller = await world.poller(**rules, health_probes=True)
    assert metrics(await world.tick(poller), "litellm_requests_total") == {"b": 6.0}


async def test_a_histogram_whose_buckets_fall_is_told(world: World) -> None:
    """Beside those that are none from the start."""
    world.serve((HISTOGRAM + histogram({"1": 5, "+Inf": 3}, 1) + "litellm_latency 1\n").encode())
    events = await world.tick(await world.poller())
    assert metrics(events, "litellm.metrics.series")["malformed"] == 2.0
