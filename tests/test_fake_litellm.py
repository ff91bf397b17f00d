"""The fake proxy answers as the real ones did, so that what passes against it means something."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from backends.http_server import Request, Response, always, hang
from backends.litellm import ERRORS, Deployment, FakeLiteLLM, Release
from http_support import PLAIN_TLS

from forwarder.http import Client
from forwarder.reply import Failure, Reply

CAPTURES = Path(__file__).parent / "captures"
RECORDED = {
    "/health/liveliness": "health-liveliness",
    "/health/readiness": "health-readiness",
    "/health/readiness/details": "health-readiness-details",
    "/health/models": "health-models",
    "/health/services": "health-services",
    "/health/shared-status": "health-shared-status",
    "/health/backlog": "health-backlog",
    "/health/latest": "health-latest",
    "/health": "health",
    "/model/info": "model-info",
}
RELEASES: tuple[Release, ...] = ("1.53.1", "1.80.17", "1.106.2")
HEADERS: dict[str, dict[str, str]] = {
    "key": {"Authorization": "Bearer sk-1"},
    "bad": {"Authorization": "Bearer sk-2"},
    "none": {},
}


async def ask(proxy: FakeLiteLLM, path: str, auth: str = "key", *, timeout: float = 5.0) -> Reply:
    client = Client(proxy.url, HEADERS[auth], PLAIN_TLS, max_body=1 << 20)
    try:
        return await client.get(path, timeout=timeout)
    finally:
        await client.close()


def shape(value: Any, *, depth: int = 2) -> Any:
    """Types, and keys down to `depth`; texts of an error are compared, other values are not."""
    if isinstance(value, dict) and depth:
        return {
            key: each if key in ("type", "code", "param", "detail") else shape(each, depth=depth - 1)
            for key, each in value.items()
        }
    return type(value).__name__


def recorded(release: str, name: str) -> Any:
    return json.loads((CAPTURES / release / "key" / f"{name}.json").read_text())


def recordings() -> list[tuple[Release, str, str]]:
    """Release, path and auth of each recording that is kept."""
    every = itertools.product(RELEASES, RECORDED, ("key", "bad", "none"))
    return [
        (r, path, auth) for r, path, auth in every if (CAPTURES / r / "key" / f"{RECORDED[path]}.{auth}.json").exists()
    ]


@pytest.mark.parametrize(("release", "path", "auth"), recordings())
async def test_endpoints_answer_as_recorded(release: Release, path: str, auth: str) -> None:
    """Status, content type and structure of every endpoint are those of the recording, with and without a key."""
    real = recorded(release, f"{RECORDED[path]}.{auth}")
    async with FakeLiteLLM(release, key="sk-1") as proxy:
        reply = await ask(proxy, path, auth)
    assert (reply.status, reply.content_type) == (real["status"], real["content_type"])
    if "body" in real:
        assert shape(json.loads(reply.body)) == shape(real["body"])
    else:
        assert reply.body.decode() == real["body_text"]


def entry_like(entries: list[dict[str, Any]], text: str) -> dict[str, Any]:
    return next(each for each in entries if text in str(each.get("error", "")))


@pytest.mark.parametrize("release", RELEASES)
async def test_entries_of_health_look_as_recorded(release: Release) -> None:
    """A healthy, a refused and a late deployment have the keys that the release really gave them."""
    real = recorded(release, "health.key" if release != "1.53.1" else "health.key.second")["body"]
    deployments = [Deployment(), Deployment(error="authentication"), Deployment(error="timeout")]
    async with FakeLiteLLM(release, key="sk-1", deployments=deployments) as proxy:
        ours = json.loads((await ask(proxy, "/health")).body)
    leaks = {"organization", "extra_headers", "azure_ad_token", "client_secret"}  # of one recorded deployment only
    assert ours["healthy_endpoints"][0].keys() - leaks == real["healthy_endpoints"][0].keys()
    refused = entry_like(ours["unhealthy_endpoints"], "Incorrect API key")
    real_refused = entry_like(real["unhealthy_endpoints"], "Incorrect API key")
    assert refused.keys() - leaks == real_refused.keys()
    assert refused["error"].partition(" - ")[0] == real_refused["error"].partition(" - ")[0]
    if release == "1.106.2":
        assert refused["raw_request_typed_dict"].keys() == real_refused["raw_request_typed_dict"].keys()
        assert entry_like(ours["unhealthy_endpoints"], "Timeout").keys() == (
            entry_like(real["unhealthy_endpoints"], "Timeout").keys()
        )
    assert "LEAKTEST" in str(ours)


@pytest.mark.parametrize("error", ERRORS)
async def test_calls_are_billed_as_measured(error: str) -> None:
    """Every GET /health probes every deployment, some up to three times; with background checks it costs nothing."""
    deployments = [Deployment(), Deployment(error=error)]
    async with FakeLiteLLM(deployments=deployments) as proxy:
        await ask(proxy, "/health")
        await ask(proxy, "/health")
        assert proxy.billed_calls == 2 * (1 + ERRORS[error].calls)
        proxy.background, proxy.checked = True, False
        assert (await ask(proxy, "/health")).body == b"{}"
        proxy.checked = True
        assert b"healthy_endpoints" in (await ask(proxy, "/health")).body
        assert proxy.billed_calls == 2 * (1 + ERRORS[error].calls)


async def test_the_documented_shape() -> None:
    """The public documentation's proxy: status words, a list of models, dependencies without a query."""
    deployments = [Deployment(), Deployment(error="rate_limit")]
    async with FakeLiteLLM("documented", deployments=deployments, db="connected", redis="disconnected") as proxy:
        health = json.loads((await ask(proxy, "/health")).body)
        assert (health["status"], health["db"], health["redis"]) == ("healthy", "connected", "disconnected")
        assert [each["status"] for each in health["healthy_endpoints"]] == ["healthy"]
        assert json.loads((await ask(proxy, "/health/readiness")).body)["status"] == "ready"
        assert len(json.loads((await ask(proxy, "/health/models")).body)["unhealthy"]) == 1
        assert json.loads((await ask(proxy, "/health/services")).body)["redis"]["status"] == "disconnected"


async def test_state_may_change_while_it_runs() -> None:
    """Draining, a lost database, an override, a stop and a restart on the same port show at the next request."""
    async with FakeLiteLLM(key="sk-1", db="connected") as proxy:
        proxy.draining, proxy.db = True, "disconnected"
        assert (await ask(proxy, "/health/liveliness")).status == 503
        readiness = await ask(proxy, "/health/readiness")
        assert (readiness.status, json.loads(readiness.body)["db"]) == (503, "disconnected")
        proxy.overrides["/health"] = always(hang())
        assert (await ask(proxy, "/health", timeout=0.2)).failure is Failure.TIMEOUT
        proxy.overrides["/health"] = always(Response(502, b"<html>"))
        assert (await ask(proxy, "/health")).status == 502
        assert (await ask(proxy, "/metrics")).same_origin_location == "/metrics/"
        await proxy.stop()
        assert (await ask(proxy, "/health")).failure is Failure.REFUSED
        await proxy.restart()
        assert (await ask(proxy, "/health/readiness")).status == 503
        assert proxy.violations == []


async def test_a_request_with_side_effects_is_recorded() -> None:
    """What the agent must never ask for is noticed, whoever asks and in whatever spelling a server would accept."""
    async with FakeLiteLLM() as proxy:
        for path in ("/health/drain", "/Cache/ping/", "/health/services?service=slack", "/health/services"):
            await proxy._answer(Request("GET", path, {}))
    assert proxy.violations == ["/health/drain", "/Cache/ping/", "/health/services?service=slack"]
