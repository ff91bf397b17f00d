"""The agent's own Prometheus page, read by prometheus_client's parser."""

import asyncio
import math
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from backends.litellm import FakeLiteLLM
from program import agent, write_config
from prometheus_client.parser import text_string_to_metric_families
from spool_stores import Clock
from status_site import site_of
from test_status_history import NOW, alive, feed, history, listing, reading

from forwarder import catalog
from forwarder.events import Metric
from forwarder.status.board import Board
from forwarder.status.exposition import CONTENT_TYPE, metric_name, page

HOSTILE = 'a"b\\c\nd} 1\nevil_metric{x="\ud800é'


def samples(text: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
    return found


def test_every_metric_of_the_catalog_reads_back() -> None:
    """Name, labels and value; each family once, with its help and type."""
    wanted = [metric for metric in catalog.METRICS if metric.kind != "histogram"]
    points = [({"litellm.target": "eu"}, metric.at(NOW, n + 0.1)) for n, metric in enumerate(wanted)]
    text = page(points)
    found = samples(text)
    assert len(found) == len(wanted)
    for n, metric in enumerate(wanted):
        assert found[metric_name(metric)] == [({"litellm_target": "eu"}, n + 0.1)]
        assert text.count(f"# HELP {metric_name(metric)} ") == 1
    families = list(text_string_to_metric_families(text))
    assert {family.type for family in families} <= {"gauge", "counter"}
    assert all(family.documentation for family in families)


def test_hostile_labels_forge_nothing() -> None:
    """They read back as the text they are."""
    found = samples(page([({"litellm.target": HOSTILE}, catalog.UP.at(NOW, 1))]))
    assert list(found) == ["litellm_up"]
    assert found["litellm_up"][0][0]["litellm_target"] == HOSTILE.replace("\ud800", "?")


def test_families_stand_together() -> None:
    """Two targets, each with two metrics, in whatever order they come."""
    points: list[tuple[dict[str, Any], Metric]] = [
        ({"litellm.target": name}, metric.at(NOW, 1)) for name in ("b", "a") for metric in (catalog.READY, catalog.UP)
    ]
    names = [line.partition("{")[0] for line in page(points).splitlines() if not line.startswith("#")]
    assert names == ["litellm_up", "litellm_up", "litellm_ready", "litellm_ready"]


def test_what_is_no_number_or_nobodys_is_left_out() -> None:
    """A family that the catalog does not know is not the agent's to tell."""
    assert page([({}, Metric("foreign", "gauge", "1", NOW, 1.0)), ({}, Metric("litellm.up", "gauge", "1", NOW))]) == ""
    assert math.isinf(samples(page([({}, Metric("litellm.up", "gauge", "1", NOW, math.inf))]))["litellm_up"][0][1])


def names_of(points: Iterable[Metric]) -> set[str]:
    return {point.name for point in points}


def test_gauges_that_no_longer_count_are_gone() -> None:
    """Unknown is absence: after a while, after a reading in vain, and where health is left open."""
    seen = history(seconds=60)
    feed(seen, listing(NOW, True, False))
    assert names_of(seen.gauges(NOW)) >= {"litellm.health", "litellm.deployment.up", "litellm.unhealthy_models"}
    feed(seen, reading("health", NOW + 1, success=False), alive(NOW + 2))
    assert names_of(seen.gauges(NOW + 2)) == {"litellm.health", "litellm.probe.success"}
    feed(seen, alive(NOW + 3, None))
    assert "litellm.health" not in names_of(seen.gauges(NOW + 3))
    assert seen.gauges(NOW + 100 * 10**9) == []


def test_the_newest_of_each() -> None:
    """litellm.health comes with three endpoints and is there once."""
    seen = history()
    feed(seen, listing(NOW, True), alive(NOW + 1, 0))
    (point,) = [point for point in seen.gauges(NOW + 1) if point.name == "litellm.health"]
    assert point.value == 0


async def test_the_running_agent(tmp_path: Path) -> None:
    """Its own metrics and the targets' gauges; the latter not where the configuration says so."""
    async with FakeLiteLLM() as proxy:
        for expose in (True, False):
            more = f"expose_health = {str(expose).lower()}"
            write_config(tmp_path, [proxy.url], more=more, listen="127.0.0.1:0")
            async with agent(tmp_path) as running:
                site = await site_of(running)
                await running.until(lambda: "litellm.health" in running.names())
                answer = await site.get("/metrics")
            assert answer.status == 200
            assert answer.headers["content-type"] == CONTENT_TYPE
            found = samples(answer.body.decode())
            assert found["forwarder_info"][0][1] == 1
            assert ("litellm_health" in found) == expose


async def test_the_page_is_made_once_a_second_for_all_who_ask(tmp_path: Path) -> None:
    """Who scrapes it costs the agent no more for scraping often."""
    measured = 0

    class Parts:
        config = SimpleNamespace(agent=SimpleNamespace(state_dir=tmp_path, expose_health=False))
        pollers = ()

        async def measure(self) -> list[Metric]:
            nonlocal measured
            measured += 1
            await asyncio.sleep(0)
            return [Metric("forwarder.info", "gauge", "1", NOW, float(measured))]

    clock = Clock()
    board = Board(Parts(), clock=clock)  # type: ignore[arg-type] # as much of an agent as is asked for
    assert len({*await asyncio.gather(*(board.metrics() for _ in range(20)))}) == 1
    clock.tick(0.9)
    await board.metrics()
    assert measured == 1
    clock.tick(0.2)
    assert "forwarder_info 2" in await board.metrics()
