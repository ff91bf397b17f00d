"""Going over to another configuration while the agent runs: SIGHUP, and files that secrets are in."""

import asyncio
import json
import os
import signal
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trustme
from backends.http_server import Request, Response
from backends.litellm import FakeLiteLLM
from program import Running, agent, call

from forwarder import config as settings
from forwarder.reload import Names, difference

OLD, NEW = "sk-CANARY-OLD", "sk-CANARY-NEW"


def target(name: str, url: str, more: str = "") -> str:
    return f'[[targets]]\nname = "{name}"\nurl = "{url}"\ninterval = "1s"\nhealth = {{ enabled = false }}\n{more}\n'


def configure(folder: Path, *targets: str, head: str = "", sinks: str = '[sinks.out]\ntype = "console"\n') -> None:
    text = f'[agent]\nstate_dir = "state"\n{head}\n{"".join(targets)}\n{sinks}'
    (folder / "new.toml").write_text(text)
    (folder / "new.toml").replace(folder / "config.toml")  # as editors and Kubernetes do it: another file


async def hang_up(running: Running) -> str:
    """Reload, and give the log of it."""
    before = len(running.err())
    running.signal(signal.SIGHUP)
    await running.until(lambda: "reloaded" in running.err()[before:])
    return running.err()[before:]


def events_of(running: Running, name: str) -> list[dict[str, Any]]:
    return [event for event in running.events() if event["resource"].get("litellm.target") == name]


async def accounts(folder: Path) -> dict[str, dict[str, Any]]:
    finished = await call("spool", "ledger", "--json", cwd=folder)
    found = {account["sink"]: account for account in json.loads(finished.out)}
    assert all(account["adds_up"] for account in found.values())
    return found


# --- what differs ---------------------------------------------------------------------------------------------------


def test_what_differs_is_told_by_name(tmp_path: Path) -> None:
    """Each name once; a secret alone is a renewal; what cannot change in a running agent is set apart."""
    with_key = 'api_key = { env = "KEY" }'
    sinks = '[sinks.out]\ntype = "console"\n[sinks.more]\ntype = "console"\n'
    hosts = {name: target(name, f"http://{name}") for name in ("a", "b", "gone", "new")}
    configure(tmp_path, hosts["a"], hosts["b"], target("k", "http://k", with_key), hosts["gone"], sinks=sinks)
    old = settings.load(tmp_path / "config.toml", {"KEY": OLD})
    head = 'drain_timeout = "1s"\n[resource]\nenv = "x"'
    sinks = '[sinks.out]\ntype = "console"\ntimeout = "1s"\n[sinks.new]\ntype = "console"\n'
    changed = target("b", "http://elsewhere")
    configure(tmp_path, hosts["a"], changed, target("k", "http://k", with_key), hosts["new"], head=head, sinks=sinks)
    text = (tmp_path / "config.toml").read_text().replace('"state"', '"other"')
    (tmp_path / "config.toml").write_text(text)
    found = difference(old, settings.load(tmp_path / "config.toml", {"KEY": NEW}), frozenset())
    assert found.targets == Names(("new",), ("b",), ("k",), ("gone",), ("a",))
    assert found.sinks == Names(("new",), ("out",), (), ("more",), ())
    assert found.fixed == ("agent.state_dir",)
    assert found.others == ("agent.drain_timeout", "resource")


def test_a_file_that_a_table_names_renews_it(tmp_path: Path, ca_pem: bytes) -> None:
    """The same path, another certificate in it."""
    (tmp_path / "ca.pem").write_bytes(ca_pem)
    configure(tmp_path, target("a", "https://a", 'ca_file = "ca.pem"'), target("b", "https://b"))
    loaded = settings.read(tmp_path / "config.toml", {})
    assert loaded.files.keys() == {tmp_path / "ca.pem"}
    found = difference(loaded.config, loaded.config, {tmp_path / "ca.pem"})
    assert found.targets == Names(renewed=("a",), unchanged=("b",))
    assert not difference(loaded.config, loaded.config, {tmp_path / "other"})


@pytest.fixture
def ca_pem() -> bytes:
    return trustme.CA().cert_pem.bytes()


# --- SIGHUP ---------------------------------------------------------------------------------------------------------


async def test_targets_and_sinks_come_and_go_and_nothing_is_lost(tmp_path: Path) -> None:
    """A target and a sink are added, one of each is removed, one target stays: it misses no poll, and its poll in
    flight is not given up. Every event that was accepted is delivered or pending.
    """
    async with FakeLiteLLM() as stays, FakeLiteLLM() as goes, FakeLiteLLM() as comes:
        both = '[sinks.out]\ntype = "console"\n[sinks.gone]\ntype = "console"\n'
        configure(tmp_path, target("stays", stays.url), target("goes", goes.url), sinks=both)
        async with agent(tmp_path) as running:
            await running.until(lambda: bool(events_of(running, "goes")) and stays.asked("/health/readiness") > 2)
            answered = 0

            async def slowly(_request: Request) -> Response:
                nonlocal answered
                slow.set()
                await release.wait()
                answered += 1
                return Response(200, b'"I\'m alive!"', {"content-type": "application/json"})

            slow, release = asyncio.Event(), asyncio.Event()
            stays.overrides["/health/liveliness"] = slowly
            await slow.wait()
            more = '[sinks.out]\ntype = "console"\n[sinks.new]\ntype = "console"\n'
            configure(tmp_path, target("stays", stays.url), target("comes", comes.url), sinks=more)
            said = await hang_up(running)
            assert "targets_added=comes targets_removed=goes targets_unchanged=1" in said
            assert "sinks_added=new sinks_removed=gone sinks_unchanged=1" in said
            release.set()
            await running.until(lambda: answered > 0 and bool(events_of(running, "comes")))
            asked = goes.asked("/health/readiness")
            polls = stays.asked("/health/readiness")
            await running.until(lambda: stays.asked("/health/readiness") > polls + 2)
            assert goes.asked("/health/readiness") == asked
            running.signal(signal.SIGTERM)
            assert await running.ended() == 0
        failures = [e for e in events_of(running, "stays") if e["name"] == "litellm.probe.failure"]
        assert failures == []  # the poll that was in flight was answered
        times = sorted(
            {e["time"] for e in events_of(running, "stays") if e["attributes"].get("endpoint") == "readiness"}
        )
        assert len(times) >= stays.asked("/health/readiness") - 1  # the last may be cut off by the stop
        ledger = await accounts(tmp_path)
        assert {name: account["attached"] for name, account in ledger.items()} == {
            "out": True,
            "new": True,
            "gone": False,
        }
        assert ledger["out"]["pending"] == ledger["new"]["pending"] == 0
        assert 0 < ledger["new"]["accepted"] < ledger["out"]["accepted"]
        delivered = sum(account["delivered"] for account in ledger.values())
        assert len(running.events()) == delivered


async def test_a_bad_file_changes_nothing_and_says_why(tmp_path: Path) -> None:
    """Every problem, on a line each; polls go on as they were; the next good file is taken."""
    async with FakeLiteLLM() as proxy:
        configure(tmp_path, target("a", proxy.url))
        async with agent(tmp_path) as running:
            await running.until(lambda: bool(events_of(running, "a")))
            configure(tmp_path, target("b", "ftp://x"), head="drain_time = 3")
            running.signal(signal.SIGHUP)
            await running.until(lambda: running.err().count("nothing has changed") == 2)
            assert "at=agent.drain_time problem=" in running.err()
            assert "at=targets[0].url" in running.err().replace('"', "")
            seen = len(events_of(running, "a"))
            await running.until(lambda: len(events_of(running, "a")) > seen + 5)
            assert not events_of(running, "b")
            configure(tmp_path, target("b", proxy.url))
            await hang_up(running)
            await running.until(lambda: bool(events_of(running, "b")))
            assert "Traceback" not in running.err()


async def test_a_file_that_does_not_answer_keeps_no_later_reload_from_being_heard(tmp_path: Path) -> None:
    """A pipe in its place, or a network file system that hangs: said after some seconds, and polls go on meanwhile."""
    async with FakeLiteLLM() as proxy:
        configure(tmp_path, target("a", proxy.url))
        async with agent(tmp_path) as running:
            await running.until(lambda: bool(events_of(running, "a")))
            (tmp_path / "config.toml").unlink()
            os.mkfifo(tmp_path / "config.toml")
            running.signal(signal.SIGHUP)
            before = len(events_of(running, "a"))
            await running.until(lambda: "does not answer; nothing has changed" in running.err())
            assert len(events_of(running, "a")) > before
            (tmp_path / "config.toml").unlink()
            configure(tmp_path, target("b", proxy.url))
            running.signal(signal.SIGHUP)
            await running.until(lambda: bool(events_of(running, "b")))
            running.signal(signal.SIGTERM)
            assert await running.ended() == 0


async def test_too_many_files_that_do_not_answer_are_told_like_one(tmp_path: Path) -> None:
    """Every thread that may read is left behind: a hang-up is answered all the same, and the agent goes on."""
    (tmp_path / "sitecustomize.py").write_text("import forwarder.process\nforwarder.process.READERS = 0\n")
    async with FakeLiteLLM() as proxy:
        configure(tmp_path, target("a", proxy.url))
        async with agent(tmp_path, env={"PYTHONPATH": str(tmp_path)}) as running:
            await running.until(lambda: bool(events_of(running, "a")))
            running.signal(signal.SIGHUP)
            await running.until(lambda: "does not answer; nothing has changed" in running.err())
            before = len(events_of(running, "a"))
            await running.until(lambda: len(events_of(running, "a")) > before)
            assert "bug in" not in running.err()


async def test_settings_apply_without_a_restart(tmp_path: Path) -> None:
    """The resource, the log level and the agent's own metrics. A state folder cannot change, and that is said; all
    else of the file applies.
    """
    async with FakeLiteLLM() as proxy:
        configure(tmp_path, target("a", proxy.url))
        async with agent(tmp_path) as running:
            await running.until(lambda: bool(events_of(running, "a")))
            head = 'log_level = "debug"\n[telemetry]\ninterval = "1s"\n[resource]\nenv = "x"'
            configure(tmp_path, target("a", proxy.url), head=head)
            text = (tmp_path / "config.toml").read_text().replace('"state"', '"elsewhere"')
            (tmp_path / "config.toml").write_text(text)
            said = await hang_up(running)
            assert "this key cannot change while the agent runs: restart it key=agent.state_dir" in said
            assert "targets_unchanged=1" in said
            assert 'settings_changed="agent.log_level' in said or "settings_changed=agent.log_level" in said
            await running.until(lambda: "forwarder.uptime" in running.names())
            assert running.events()[-1]["resource"]["env"] == "x"
            await running.until(lambda: any(e["resource"].get("env") == "x" for e in events_of(running, "a")))
            assert not (tmp_path / "elsewhere").exists()
            running.signal(signal.SIGTERM)
            assert await running.ended() == 0


async def test_a_changed_target_goes_on_where_it_was(tmp_path: Path) -> None:
    """Its address is another now: it is polled there at once, and nothing about it is told a second time."""
    async with FakeLiteLLM(version="1.106.2") as first, FakeLiteLLM(version="1.107.0") as second:
        configure(tmp_path, target("a", first.url))
        async with agent(tmp_path) as running:
            await running.until(lambda: "litellm.info" in running.names())
            configure(tmp_path, target("a", second.url))
            assert "targets_changed=a" in await hang_up(running)
            await running.until(lambda: "litellm.version.changed" in running.names())
            asked = first.asked("/health/readiness")
            polls = second.asked("/health/readiness")
            await running.until(lambda: second.asked("/health/readiness") > polls + 2)
            assert first.asked("/health/readiness") == asked
            running.signal(signal.SIGTERM)
            assert await running.ended() == 0
        names = Counter(running.names())
        assert names["litellm.version.changed"] == 1
        assert names["litellm.proxy.up"] == names["litellm.proxy.down"] == 0


async def test_a_sink_that_left_and_comes_back_goes_on_at_its_place(tmp_path: Path) -> None:
    """It gets what is put from then on (what the others have had meanwhile is gone), and nothing twice."""
    async with FakeLiteLLM() as proxy:
        both = '[sinks.out]\ntype = "console"\n[sinks.b]\ntype = "console"\n'
        configure(tmp_path, target("a", proxy.url), sinks=both)
        async with agent(tmp_path) as running:
            await running.until(lambda: bool(running.events()))
            configure(tmp_path, target("a", proxy.url))
            await hang_up(running)
            left = datetime.now(UTC)
            # What was put before it left is written by the other one a little later.
            await running.until(lambda: datetime.fromisoformat(running.events()[-1]["time"]) > left)
            configure(tmp_path, target("a", proxy.url), sinks=both)
            assert "sinks_added=b" in await hang_up(running)
            lines = running.out().count("\n")
            await running.until(lambda: running.out().count("\n") > lines + 20)
            running.signal(signal.SIGTERM)
            assert await running.ended() == 0
        ledger = await accounts(tmp_path)
        assert ledger["b"]["attached"]
        assert ledger["b"]["pending"] == ledger["out"]["pending"] == 0
        assert ledger["b"]["accepted"] == ledger["b"]["delivered"] < ledger["out"]["delivered"]
        assert ledger["b"]["delivered"] + ledger["out"]["delivered"] == len(running.events())
        assert max(Counter(running.out().split("\n")).values()) == 2  # once for each sink


async def test_two_hang_ups_in_a_row_are_two_reloads_at_most(tmp_path: Path) -> None:
    """Impatience breaks nothing: the agent goes on as the last file says."""
    async with FakeLiteLLM() as proxy:
        configure(tmp_path, target("a", proxy.url))
        async with agent(tmp_path) as running:
            await running.until(lambda: bool(events_of(running, "a")))
            for name in ("b", "c", "d"):
                configure(tmp_path, target(name, proxy.url))
                running.signal(signal.SIGHUP)
            await running.until(lambda: bool(events_of(running, "d")))
            running.signal(signal.SIGTERM)
            assert await running.ended() == 0
        assert "bug" not in running.err()


# --- secrets in files -----------------------------------------------------------------------------------------------


async def test_a_rotated_key_heals_a_target_by_itself(tmp_path: Path) -> None:
    """No signal: the file is seen to change, as Kubernetes changes it, and the pause of five minutes is lifted."""
    async with FakeLiteLLM("1.80.17", key=NEW) as proxy:
        for number, key in enumerate((OLD, NEW)):
            (tmp_path / f"..{number}").mkdir()
            (tmp_path / f"..{number}" / "key").write_text(key)
        (tmp_path / "..data").symlink_to("..0")
        (tmp_path / "key").symlink_to("..data/key")
        configure(tmp_path, target("a", proxy.url, 'api_key = { file = "key" }'), target("b", proxy.url))
        async with agent(tmp_path) as running:
            await running.until(lambda: "error=auth" in running.err())
            assert not any(request.headers.get("authorization") == f"Bearer {NEW}" for request in proxy.requests)
            (tmp_path / "..new").symlink_to("..1")
            (tmp_path / "..new").replace(tmp_path / "..data")
            await running.until(lambda: "secrets or certificates were read anew targets_renewed=a" in running.err())
            await running.until(
                lambda: any(request.headers.get("authorization") == f"Bearer {NEW}" for request in proxy.requests)
            )
            await running.until(lambda: "what could not be read can be read again target=a" in running.err())
            running.signal(signal.SIGTERM)
            assert await running.ended() == 0
        assert "targets_unchanged=1" in running.err()
        assert "CANARY" not in running.err() + running.out()


async def test_another_wrong_key_is_told(tmp_path: Path) -> None:
    """Whoever rotated it learns at once that this one is refused too."""
    async with FakeLiteLLM("1.80.17", key=NEW) as proxy:
        (tmp_path / "key").write_text(OLD)
        configure(tmp_path, target("a", proxy.url, 'api_key = { file = "key" }'))
        async with agent(tmp_path) as running:
            await running.until(lambda: "error=auth" in running.err())
            (tmp_path / "key").write_text(OLD + "ER")
            await running.until(lambda: "still: cannot read the proxy" in running.err())
        assert running.err().index("read anew") < running.err().index("still: ")


async def test_a_key_that_goes_missing_changes_nothing(tmp_path: Path) -> None:
    """A file is removed, or emptied, before the new one is there: the key that was read goes on; said once."""
    async with FakeLiteLLM("1.80.17", key=OLD) as proxy:
        (tmp_path / "key").write_text(OLD)
        configure(tmp_path, target("a", proxy.url, 'api_key = { file = "key" }'))
        async with agent(tmp_path) as running:
            await running.until(lambda: bool(events_of(running, "a")))
            (tmp_path / "key").unlink()
            await running.until(lambda: "cannot be used; nothing has changed" in running.err())
            polls = proxy.asked("/health/shared-status")
            await running.until(lambda: proxy.asked("/health/shared-status") > polls + 4)
            assert running.err().count("cannot be used; nothing has changed") == 1
            (tmp_path / "key").write_text(OLD)
            seen = len(running.err())
            os.utime(tmp_path / "key", (1, 1))
            await running.until(lambda: proxy.asked("/health/shared-status") > polls + 8)
            assert "error=auth" not in running.err()[seen:]
            running.signal(signal.SIGTERM)
            assert await running.ended() == 0
