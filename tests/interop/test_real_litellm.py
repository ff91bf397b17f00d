"""The agent on real LiteLLM proxies of three generations. `make interop` installs them; without, these are skipped."""

import json
import os
import re
import signal
from pathlib import Path

import pytest
from program import Running, agent, call, write_config

from interop.litellm_lab import DEPLOYMENTS, MASTER_KEY, RELEASES, Upstream, installed, proxy

KEY = {"KEY": MASTER_KEY}
WITH_KEY = 'api_key = { env = "KEY" }\ninterval = "1s"'

real = [
    pytest.param(
        release,
        marks=pytest.mark.skipif(
            not (installed(release) and "INTEROP" in os.environ),
            reason=f"a real LiteLLM {release} is for `make interop`",
        ),
    )
    for release in RELEASES
]


@pytest.mark.parametrize("release", real)
async def test_every_deployment_and_every_class_of_failure(release: str, tmp_path: Path) -> None:
    """One reading of a real proxy: up and ready, every deployment told by what ails it, the upstreams called as often
    as the estimate says at most, and none of the secrets that the proxy's replies are full of.
    """
    async with Upstream() as upstream, proxy(release, upstream, tmp_path) as running:
        write_config(tmp_path, [running.url], WITH_KEY)
        upstream.calls.clear()
        finished = await call("poll", "--once", cwd=tmp_path, env=KEY)
    assert finished.code == 0, finished.err
    events = [json.loads(line) for line in finished.out.splitlines()]
    values = {event["name"]: event.get("value") for event in events}
    assert values["litellm.up"] == values["litellm.ready"] == values["litellm.health"] == 1
    assert values["litellm.healthy_models"] == sum(error is None for error in DEPLOYMENTS.values())
    assert values["litellm.unhealthy_models"] == sum(error is not None for error in DEPLOYMENTS.values())
    failures = sorted(
        event["attributes"]["error.type"] for event in events if event["name"] == "litellm.deployment.failure"
    )
    assert failures == sorted(error for error in DEPLOYMENTS.values() if error)
    (version,) = {event["attributes"]["version"] for event in events if event["name"] == "litellm.info"}
    assert version == release
    assert sum(upstream.calls.values()) <= values["litellm.probe.billed_calls"]
    for path in [Path(at) / name for at, _, names in os.walk(tmp_path / "state") for name in names]:
        assert b"LEAKTEST" not in path.read_bytes(), path
    assert "LEAKTEST" not in finished.out + finished.err


def told(running: Running, state: str) -> int:
    """How often the change of the deployment `ok` was told. Its id is ours only from 1.106 on; a digest before."""
    return len(re.findall(rf": ok \(openai/gpt-4o\) \[[^]]+\] is {state}", running.err()))


@pytest.mark.parametrize("release", real)
async def test_a_proxy_killed_and_a_deployment_that_fails_and_recovers(release: str, tmp_path: Path) -> None:
    """With background checks: a deployment goes and comes back, then the proxy dies. Each is told, once, and nothing
    is said of deployments that nobody sees any more.
    """
    async with Upstream() as upstream, proxy(release, upstream, tmp_path, background=True) as running_proxy:
        more = '\nhealth = { interval = "15s", background = "on" }'
        write_config(tmp_path, [running_proxy.url], WITH_KEY + more)
        async with agent(tmp_path, env=KEY) as running:
            await running.until(lambda: "litellm.healthy_models" in running.names())
            upstream.failing.add("ok")
            await running.until(lambda: told(running, "unhealthy") == 1)
            upstream.failing.clear()
            await running.until(lambda: told(running, "healthy") == 1)
            await running_proxy.die()
            await running.until(lambda: "litellm.proxy.down" in running.names())
            running.signal(signal.SIGTERM)
            assert await running.ended() == 0
    assert told(running, "unhealthy") == told(running, "healthy") == 1, running.err()
    names = running.names()
    assert names.count("litellm.proxy.down") == 1
    assert not {"litellm.deployment.up", "litellm.healthy_models"} & set(names[names.index("litellm.proxy.down") :])
    assert "Traceback" not in running.err()
