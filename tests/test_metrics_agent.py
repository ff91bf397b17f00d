"""The whole program against a proxy whose metrics page grows, through deaths of either."""

import contextlib
import random
import signal
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio
from backends.http_server import Request, Response, ScriptedServer, redirect
from exposition_pages import HISTOGRAM, histogram, page
from program import Running, agent, call, write_config
from status_site import site_of, until

from forwarder.status.view import Target, View

TEXT: Final = {"content-type": "text/plain; version=0.0.4; charset=utf-8"}
JSON: Final = {"content-type": "application/json"}
ABSENT: Final = Response(404, b"{}", JSON)
SETTINGS: Final = 'metrics = { interval = "1s" }'


class Proxy:
    """Nothing but a metrics page. Between any two looks at it as many requests were counted as `grow` says."""

    def __init__(self) -> None:
        self.server = ScriptedServer(self._answer)
        self.grow, self.restart = True, True  # `restart`: before the next look
        self.began, self.looks, self.count = 0.0, 0, 0

    def _answer(self, request: Request) -> Response:
        if request.path != "/metrics/":
            return ABSENT
        if self.restart:
            self.began, self.count, self.restart = time.time(), 0, False
        self.looks += 1
        self.count += 1000 + self.looks if self.grow else 0
        latency = HISTOGRAM + histogram({"1": self.count, "+Inf": 2 * self.count}, 3.0 * self.count)
        return Response(200, page({"": self.count}, began=self.began, more=latency), TEXT)


def readings(runs: list[Running], name: str) -> tuple[list[dict[str, Any]], int]:
    """What was delivered of a family, in order, and how often something came twice."""
    found = [event for run in runs for event in run.events() if event["name"] == name]
    return sorted({event["time"]: event for event in found}.values(), key=lambda event: event["time"]), len(found)


async def all_told(running: Running, proxy: Proxy) -> None:
    """The proxy counts nothing more, and this run has delivered all that it counted."""
    proxy.grow = False

    def told() -> bool:
        with contextlib.suppress(ValueError):  # a line that is being written
            found, _ = readings([running], "litellm_requests_total")
            return bool(found) and found[-1]["value"] == proxy.count
        return False

    await running.until(told)


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGTERM])
async def test_no_growth_is_lost_or_told_twice_through_deaths_of_either_side(
    death: signal.Signals, tmp_path: Path
) -> None:
    """At any moment: every reading counts from the one before it, across ends of the agent; a restart of the proxy,
    while the agent runs or does not, counts from 0. So the deltas sum up to what the proxy counted.
    """
    runs: list[Running] = []
    proxy = Proxy()
    async with proxy.server:
        write_config(tmp_path, [proxy.server.url], SETTINGS)
        for number in range(5):
            async with agent(tmp_path) as running:
                runs.append(running)
                if number in {0, 3}:  # one that has begun; one in which the proxy restarts
                    await all_told(running, proxy)
                    proxy.restart, proxy.grow = number == 3, True
                looks = proxy.looks + 1
                await running.until(lambda looks=looks: proxy.looks > looks)  # type: ignore[misc] # bound now
                moment = time.monotonic() + random.uniform(0, 0.2)  # noqa: S311 - in what follows the reply
                await running.until(lambda moment=moment: time.monotonic() > moment)  # type: ignore[misc] # bound now
                running.signal(death)
                assert await running.ended() == (0 if death is signal.SIGTERM else -death)
            if number == 1:
                proxy.restart = True
        async with agent(tmp_path) as running:
            runs.append(running)
            await all_told(running, proxy)
            running.signal(signal.SIGTERM)
            assert await running.ended() == 0

    sums, count = readings(runs, "litellm_requests_total")
    # After a kill the send that was in flight is made again.
    assert count - len(sums) <= (5 if death is signal.SIGKILL else 0)
    assert "delta" not in sums[0]
    grown = 0.0
    for before, after in pairwise(sums):
        assert after["delta"]["since"] == before["time"]
        anew = after["start_time"] != before["start_time"]
        grown += after["value"] - (0 if anew else before["value"])
        assert after["delta"]["value"] == after["value"] - (0 if anew else before["value"])
    assert len({event["start_time"] for event in sums}) == 3
    assert sum(event["delta"]["value"] for event in sums[1:]) == grown > 0

    histograms, _ = readings(runs, "litellm_latency")
    assert [event["time"] for event in histograms] == [event["time"] for event in sums]
    deltas = [event["delta"]["histogram"] for event in histograms[1:]]
    assert all(min(delta["counts"]) >= 0 for delta in deltas)
    assert [delta["count"] for delta in deltas] == [2 * event["delta"]["value"] for event in sums[1:]]
    assert [delta["sum"] for delta in deltas] == [3 * event["delta"]["value"] for event in sums[1:]]


NOTHING: Final = b"# TYPE python_info gauge\npython_info 1\n"
LARGE: Final = b"# TYPE litellm_a gauge\n" + b"".join(b'litellm_a{b="%d"} 1\n' % n for n in range(5000))
# What answers at the page; the endpoint's state and error then; what is told.
CAUSES: Final[dict[str, tuple[Response, str, str | None, str]]] = {
    "401": (Response(401, b'{"error": {}}', JSON), "failed", "auth", "wants a key"),
    "403": (Response(403, b'{"error": {}}', JSON), "failed", "auth", "wants a key"),
    "404": (ABSENT, "absent", None, 'to have one, set litellm_settings: {callbacks: ["prometheus"]}'),
    "307": (redirect("https://elsewhere.example/metrics/"), "failed", "redirect", "redirects to another host"),
    "empty": (Response(200, b"", TEXT), "absent", None, "PROMETHEUS_MULTIPROC_DIR"),
    "nothing": (Response(200, NOTHING, TEXT), "failed", "no_metrics", "callback is not enabled"),
    "html": (Response(200, b"<!DOCTYPE html>", {"content-type": "text/html"}), "failed", "not_metrics", "not Prom"),
    "large": (Response(200, LARGE, TEXT), "failed", "too_large", "over metrics.max_body"),
    "seesaw": (ABSENT, "read", None, "pods behind one address"),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def causes(tmp_path_factory: pytest.TempPathFactory) -> tuple[View, str, str]:
    """Of one agent with a target for each cause: what the status says as data and as text, and the log."""
    folder = tmp_path_factory.mktemp("causes")
    looks = 0

    def answer(request: Request) -> Response:
        nonlocal looks
        _, name, path = request.path.split("/", 2)
        if path != "metrics/":
            return ABSENT
        if name != "seesaw":
            return CAUSES[name][0]
        looks += 1
        return Response(200, page({"": 1000 + looks % 2}, began=1_700_000_000 + looks % 2), TEXT)

    async with ScriptedServer(answer) as server:
        settings = 'metrics = { interval = "1s", max_body = "64KiB" }'
        write_config(folder, [f"{server.url}/{name}" for name in CAUSES], settings, listen="127.0.0.1:0")
        async with agent(folder) as running:
            site = await site_of(running)
            view = await until(running, site, lambda view: all(about(target) for target in view.targets))
            finished = await call("status", "--url", site.url, cwd=folder)
            return view, finished.out, running.err()


def about(target: Target) -> str:
    """What the status says of the metrics page."""
    return next(endpoint.detail for endpoint in target.endpoints if endpoint.name == "metrics")


@pytest.mark.parametrize("name", CAUSES)
def test_each_cause_is_named_in_status_and_log(name: str, causes: tuple[View, str, str]) -> None:
    """With what is likely to mend it; what is no failure is none."""
    view, text, log = causes
    _, state, error, cause = CAUSES[name]
    target = f"t{list(CAUSES).index(name)}"
    (shown,) = [each for each in view.targets if each.name == target]
    (endpoint,) = [each for each in shown.endpoints if each.name == "metrics"]
    assert (endpoint.state, endpoint.error) == (state, error)
    assert cause in endpoint.detail
    assert f"  {target} /metrics/: {endpoint.detail}\n" in text
    lines = [line for line in log.splitlines() if f"target={target}" in line and (cause in line or "in turn" in line)]
    assert len(lines) == 1, log
    assert (" WARNING " in lines[0]) == (state != "absent")
