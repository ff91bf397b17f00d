"""The whole program, as a process, against a fake proxy on a real socket."""

import asyncio
import json
import os
import signal
from collections import Counter
from pathlib import Path

import pytest
from backends.litellm import Deployment, FakeLiteLLM
from program import agent, call, ledger, names_in, write_config

from forwarder.errors import Exit

KEY = {"KEY": "sk-CANARY-KEY"}
WITH_KEY = 'api_key = { env = "KEY" }'


async def test_polls_spools_delivers_and_drains(tmp_path: Path) -> None:
    """The main job: everything seen comes out, SIGTERM drains, the ledger adds up and nothing is left."""
    async with FakeLiteLLM(key="sk-CANARY-KEY") as proxy:
        proxy.deployments[1].error = "rate_limit"
        write_config(tmp_path, [proxy.url], WITH_KEY + '\ninterval = "1s"')
        async with agent(tmp_path, env=KEY) as running:
            await running.until(lambda: "litellm.deployment.failure" in running.names())
            running.signal(signal.SIGTERM)
            assert await running.ended() == 0
        events = running.events()
        (failure,) = [event for event in events if event["name"] == "litellm.deployment.failure"]
        assert failure["attributes"]["error.type"] == "rate_limit"
        assert failure["resource"] == {"litellm.target": "t0"}
        account = await ledger(tmp_path)
        assert account["pending"] == 0, running.err()
        assert account["delivered"] == account["accepted"]
        assert account["delivered"] == len(events)
        assert proxy.violations == []


@pytest.mark.parametrize("release", ["documented", "1.53.1", "1.80.17", "1.106.2"])
async def test_every_shape_of_proxy(release: str, tmp_path: Path) -> None:
    """The documented API and three releases: health, deployments and release are seen in all."""
    async with FakeLiteLLM(release, key="sk-CANARY-KEY") as proxy:  # type: ignore[arg-type] # the parameters are releases
        write_config(tmp_path, [proxy.url], WITH_KEY)
        finished = await call("poll", "--once", cwd=tmp_path, env=KEY)
        assert finished.code == 0, finished.err
        events = [json.loads(line) for line in finished.out.splitlines()]
        values = {event["name"]: event.get("value") for event in events}
        assert values["litellm.health"] == values["litellm.up"] == values["litellm.ready"] == 1
        assert values["litellm.healthy_models"] == 2
        assert {e["attributes"]["version"] for e in events if e["name"] == "litellm.info"} == {proxy.version}
        assert len([event for event in events if event["name"] == "litellm.deployment.up"]) == 2
        assert "LEAKTEST" not in finished.out + finished.err
        assert proxy.violations == []


async def test_killed_under_load_again_and_again_nothing_is_lost(tmp_path: Path) -> None:
    """At any moment of kill -9: every event that the ledger accepted came out, at most one send per kill twice."""
    async with FakeLiteLLM("1.80.17") as proxy:
        proxy.deployments = [Deployment(f"openai/model-{n}", f"m{n}") for n in range(10)]
        write_config(tmp_path, [proxy.url] * 20, 'interval = "1s"\nhealth = { interval = "15s", background = "on" }')
        runs = []
        for _ in range(4):
            async with agent(tmp_path) as running:
                await running.until(lambda running=running: running.out().count("\n") > 500)  # type: ignore[misc] # bound now
                running.signal(signal.SIGKILL)
                await running.ended()
            runs.append(running)
        async with agent(tmp_path) as running:
            await running.until(lambda: bool(running.events()))
            running.signal(signal.SIGTERM)
            assert await running.ended() == 0
        runs.append(running)
    seen = Counter(
        (e["resource"]["litellm.target"], e["name"], e["time"], json.dumps(e["attributes"]))
        for run in runs
        for e in run.events()
    )
    account = await ledger(tmp_path)
    assert account["pending"] == account["dropped"] == account["rejected"] == 0
    assert len(seen) == account["accepted"] == account["delivered"]
    assert max(seen.values()) <= 2


async def test_a_slow_health_in_flight_does_not_hold_the_stop(tmp_path: Path) -> None:
    """The poll is given up; what it may have cost stays booked."""
    async with FakeLiteLLM() as proxy:
        proxy.health_delay = 600
        write_config(tmp_path, [proxy.url], 'interval = "1s"')
        async with agent(tmp_path) as running:
            await running.until(lambda: proxy.asked("/health") == 1)
            running.signal(signal.SIGTERM)
            assert await running.ended() == 0
        finished = await call("poll", "--once", cwd=tmp_path)
        assert proxy.asked("/health") == 1
        assert "litellm.up" in finished.out


async def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    """Though the reader of standard output takes nothing and the drain would wait for it; nothing is lost by it."""
    async with FakeLiteLLM("1.80.17") as proxy:
        proxy.deployments = [Deployment(f"openai/model-{n}", f"m{n}") for n in range(300)]
        write_config(
            tmp_path,
            [proxy.url],
            'interval = "1s"\nhealth = { interval = "15s", background = "on" }',
            more='drain_timeout = "1h"',
        )
        reader, writer = os.pipe()
        try:
            async with agent(tmp_path, stdout=writer) as running:
                await running.until(lambda: proxy.asked("/health") >= 1 and "started" in running.err())
                await asyncio.sleep(1.5)  # until the pipe is full: nobody reads it
                running.signal(signal.SIGTERM)
                await running.until(lambda: "stopping" in running.err())
                await asyncio.sleep(0.7)  # a second signal right behind the first is taken for the same one
                running.signal(signal.SIGTERM)
                assert await running.ended() == 0
                assert "stopped at once" in running.err()
        finally:
            os.close(reader)
            os.close(writer)
        account = await ledger(tmp_path)
        assert account["pending"] > 0


async def test_a_second_agent_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    """Two would send everything twice. The message says who has it and what to do."""
    async with FakeLiteLLM() as proxy:
        write_config(tmp_path, [proxy.url])
        async with agent(tmp_path) as running:
            await running.until(lambda: "started" in running.err())
            finished = await call("run", cwd=tmp_path)
            assert finished.code == Exit.BUSY
            assert str(running.process.pid) in finished.err
            assert "Traceback" not in finished.err


async def test_a_proxy_that_goes_and_comes_back(tmp_path: Path) -> None:
    """Down and up are told once each; health is 0 meanwhile; one line in the log for each."""
    async with FakeLiteLLM() as proxy:
        write_config(tmp_path, [proxy.url], 'interval = "1s"\ntimeout = "2s"')
        async with agent(tmp_path) as running:
            await running.until(lambda: "litellm.healthy_models" in running.names())
            await proxy.stop()
            await running.until(lambda: "litellm.proxy.down" in running.names())
            await proxy.restart()
            await running.until(lambda: "litellm.proxy.up" in running.names())
            running.signal(signal.SIGTERM)
            assert await running.ended() == 0
        names = Counter(running.names())
        assert names["litellm.proxy.down"] == names["litellm.proxy.up"] == 1
        assert not [name for name in names if name.endswith((".removed", ".added"))]
        assert running.err().count("cannot read the proxy") == 1


async def test_a_damaged_spool_is_moved_aside_and_told(tmp_path: Path) -> None:
    """The agent starts all the same, says so, and tells the backends."""
    async with FakeLiteLLM() as proxy:
        write_config(tmp_path, [proxy.url])
        (tmp_path / "state").mkdir()
        (tmp_path / "state" / "spool.db").write_bytes(b"not a database " * 1000)
        finished = await call("poll", "--once", cwd=tmp_path)
        assert finished.code == 0
        assert "forwarder.data.lost" in finished.out
        assert "damaged" in finished.err
        assert any(name.startswith("spool.db.damaged-") for name in names_in(tmp_path / "state"))


async def test_poll_once_from_cron_does_not_pay_every_time(tmp_path: Path) -> None:
    """`/health` keeps its interval across runs."""
    async with FakeLiteLLM() as proxy:
        write_config(tmp_path, [proxy.url])
        for _ in range(3):
            assert (await call("poll", "--once", cwd=tmp_path)).code == 0
        assert proxy.asked("/health") == 1
        assert proxy.asked("/health/liveliness") == 3


async def test_no_secret_anywhere(tmp_path: Path) -> None:
    """The key, and what the proxy's replies are full of: in no output, no log at debug level, no byte on disk."""
    async with FakeLiteLLM("1.80.17", key="sk-CANARY-KEY") as proxy:
        proxy.deployments = [Deployment(error="authentication"), Deployment(error="timeout"), Deployment()]
        write_config(tmp_path, [proxy.url], WITH_KEY + '\ninterval = "1s"', more='log_level = "debug"')
        async with agent(tmp_path, env=KEY) as running:
            await running.until(lambda: "litellm.deployment.failure" in running.names())
            running.signal(signal.SIGTERM)
            assert await running.ended() == 0
        written = [Path(at) / name for at, _, names in os.walk(tmp_path) for name in names if name != "config.toml"]
        assert {"spool.db", "out-0", "err-0"} <= {path.name for path in written}
        for path in written:
            for secret in (b"CANARY", b"LEAKTEST", b"sk-"):
                assert secret not in path.read_bytes(), path
