"""The status pages of the whole program, as a process: what they say is true, also after a restart."""

import json
import signal
import socket
from pathlib import Path

import pytest
from backends.litellm import FakeLiteLLM
from program import agent, call, write_config
from status_site import site_of, until

from forwarder.status.view import View

KEY = {"KEY": "sk-CANARY-KEY"}
TARGET = 'api_key = { env = "KEY" }\ninterval = "1s"\ntimeout = "2s"\nhealth = { background = "on" }'


def told(view: View) -> set[str]:
    """The names of the first target's changes."""
    return {change.name for change in view.targets[0].changes}


async def test_what_it_says_is_true(tmp_path: Path) -> None:
    """Starting, healthy, degraded, down, and back; the sink's ledger; nothing secret on any page."""
    async with FakeLiteLLM("1.80.17", key="sk-CANARY-KEY") as proxy:
        write_config(tmp_path, [proxy.url], TARGET, listen="127.0.0.1:0")
        async with agent(tmp_path, env=KEY) as running:
            site = await site_of(running)
            view = await until(running, site, lambda v: not v.not_ready and v.targets[0].listing)
            (target,), (sink,) = view.targets, view.sinks
            assert (target.name, target.state, target.version) == ("t0", "healthy", "1.80.17")
            assert [each.state for each in target.listing.deployments] == ["up", "up"]  # type: ignore[union-attr]
            assert (await site.get("/healthz")).status == (await site.get("/readyz")).status == 200
            assert sink.type == "console"
            assert sink.ledger is not None
            assert sink.ledger.adds_up

            proxy.deployments[1].error = "rate_limit"
            view = await until(running, site, lambda v: v.targets[0].state == "degraded")
            failing = view.targets[0].listing.deployments[0]  # type: ignore[union-attr]
            assert (failing.model, failing.error_type) == ("anthropic/claude", "rate_limit")

            await proxy.stop()
            view = await until(running, site, lambda v: "litellm.proxy.down" in told(v))
            assert view.targets[0].reason == "nothing listens there"
            assert view.summary == ("proxy t0 is unhealthy",)
            assert not view.targets[0].listing.current  # type: ignore[union-attr]
            assert (await site.get("/healthz")).status == 200
            pages = b"".join([(await site.get(path)).body for path in ("/", "/api/status", "/healthz", "/readyz")])

            await proxy.restart()
            await until(running, site, lambda v: "litellm.proxy.up" in told(v))
            running.signal(signal.SIGTERM)
            assert await running.ended() == 0
        assert b"CANARY" not in pages
        assert b"LEAKTEST" not in pages

        async with agent(tmp_path, env=KEY) as running:
            site = await site_of(running)
            (target,) = (await until(running, site, lambda v: v.targets[0].state == "degraded")).targets
            assert {change.name for change in target.changes} >= {"litellm.proxy.down", "litellm.proxy.up"}
            assert sum(each.unhealthy for each in target.history) >= 1
            assert target.healthy_ratio is not None
            assert target.healthy_ratio < 1


@pytest.mark.parametrize("key", ["sk-wrong", None])
async def test_a_key_that_is_refused_is_not_all_well(tmp_path: Path, key: str | None) -> None:
    """The proxy is alive and ready, which needs no key; but whether its deployments are well nobody knows."""
    async with FakeLiteLLM("1.80.17", key="sk-CANARY-KEY") as proxy:
        write_config(tmp_path, [proxy.url], TARGET if key else 'interval = "1s"', listen="127.0.0.1:0")
        async with agent(tmp_path, env={"KEY": key} if key else {}) as running:
            site = await site_of(running)
            view = await until(running, site, lambda v: v.targets[0].state == "healthy" and v.summary)
            why = "the key was refused" if key else "the proxy wants a key and none is configured"
            assert view.summary[0].startswith(f"proxy t0: {why}")
            assert view.targets[0].reason.startswith(f"alive and ready, but {why}")
            finished = await call("status", "--url", site.url, cwd=tmp_path)
            assert (finished.code, finished.out.partition("  ")[0]) == (1, "DEGRADED")


async def test_a_taken_port_does_not_stop_the_agent(tmp_path: Path) -> None:
    """It polls and delivers; the log says what to do about the page."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        async with FakeLiteLLM() as proxy:
            write_config(tmp_path, [proxy.url], listen=f"127.0.0.1:{taken.getsockname()[1]}")
            async with agent(tmp_path) as running:
                await running.until(lambda: "litellm.healthy_models" in running.names())
                assert "no status page: its address cannot be used" in running.err()
                assert "agent.listen" in running.err()
                running.signal(signal.SIGTERM)
                assert await running.ended() == 0


@pytest.mark.parametrize(
    ("listen", "said"),
    [
        ("9464", "is not an IP address and a port"),
        ("litellm.example.com:80", "is not an IP address and a port"),
        ("999.1.1.1:80", "has no IP address"),
        ("127.0.0.1:70000", "has a port above 65535"),
    ],
)
async def test_an_address_that_is_none(tmp_path: Path, listen: str, said: str) -> None:
    """Told with the other problems of the configuration."""
    write_config(tmp_path, ["http://127.0.0.1:1"], listen=listen)
    finished = await call("validate", cwd=tmp_path)
    assert finished.code == 78
    assert f"agent.listen: {said}" in finished.err


async def test_a_round_for_cron_serves_nothing(tmp_path: Path) -> None:
    """`poll --once` beside an agent does not fight for its port."""
    async with FakeLiteLLM() as proxy:
        write_config(tmp_path, [proxy.url], listen="127.0.0.1:0")
        finished = await call("poll", "--once", cwd=tmp_path)
        assert finished.code == 0
        assert "status page" not in finished.err
        assert json.loads(finished.out.splitlines()[0])
