"""Every command as a user calls it: what it says, how it exits, and that nobody is shown a traceback."""

import json
import signal
import time
from pathlib import Path

import pytest
from backends.http_server import ScriptedServer, always, hang
from backends.litellm import Deployment, FakeLiteLLM
from program import Finished, call, call_shell, on_terminal, write_config

from forwarder import catalog
from forwarder.events import Batch, Resource
from forwarder.spool.base import Burial, Position, Settlement
from forwarder.spool.sqlite import SqliteSpool


def said(finished: Finished, code: int, *parts: str) -> None:
    """The exit code, the parts in what was said, and no traceback."""
    assert finished.code == code, finished
    for part in parts:
        assert part in finished.out + finished.err
    assert "Traceback" not in finished.err


# --- signals that come early ------------------------------------------------------------------------------------


# A program inherits what is ignored: nohup has SIGHUP ignored in all that it starts, these tests too.
HUNG_UP = 3 if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else -signal.SIGHUP


@pytest.mark.parametrize(
    ("command", "number", "code"),
    [
        ("run", signal.SIGINT, 130),
        ("status", signal.SIGINT, 130),
        ("run", signal.SIGTERM, 0),
        ("run", signal.SIGHUP, 3),
        ("status", signal.SIGTERM, -signal.SIGTERM),
        ("status", signal.SIGHUP, HUNG_UP),
    ],
)
async def test_a_signal_while_the_program_is_imported(
    command: str, number: signal.Signals, code: int, tmp_path: Path
) -> None:
    """Ctrl-C ends it with 130, a stop of the agent is one, its reload is none (3: it went on); always without a word.
    Commands beside the agent are ended as any program.
    """
    (tmp_path / "click.py").write_text(f"import os\nos.kill(os.getpid(), {int(number)})\nlen('')\nos._exit(3)\n")
    assert await call(command, cwd=tmp_path) == Finished(code, "", "")


# --- check ------------------------------------------------------------------------------------------------------


async def test_check_a_healthy_proxy(tmp_path: Path) -> None:
    """One line, exit code 0, and only what needs no key and costs nothing is asked."""
    async with FakeLiteLLM(key="sk-x") as proxy:
        finished = await call("check", proxy.url, cwd=tmp_path)
        said(finished, 0, f"healthy: {proxy.url}: alive and ready\n")
        assert {request.path for request in proxy.requests} == {"/health/liveliness", "/health/readiness"}


async def test_check_an_unhealthy_proxy(tmp_path: Path) -> None:
    """Alive, but its database is gone: exit code 1."""
    async with FakeLiteLLM() as proxy:
        proxy.db = "disconnected"
        said(await call("check", proxy.url, cwd=tmp_path), 1, "unhealthy: ", "alive, but")


async def test_check_an_unreachable_proxy(tmp_path: Path) -> None:
    """Nothing listens; a host that does not answer; a name that does not resolve: exit code 2."""
    async with FakeLiteLLM() as proxy:
        await proxy.stop()
        said(await call("check", proxy.url, cwd=tmp_path), 2, "unreachable: ", "nothing listens there")
    async with ScriptedServer(always(hang())) as server:
        said(
            await call("check", server.url, "--timeout", "0.3", cwd=tmp_path), 2, "unreachable: ", "no answer in time"
        )
    said(await call("check", "http://no-such-host.invalid", cwd=tmp_path), 2, "does not resolve")


async def test_check_quietly(tmp_path: Path) -> None:
    """For scripts that want the exit code alone."""
    async with FakeLiteLLM() as proxy:
        assert await call("check", "-q", proxy.url, cwd=tmp_path) == Finished(0, "", "")


async def test_check_the_configured_targets(tmp_path: Path) -> None:
    """Without a URL: every target, and the worst of their exit codes."""
    async with FakeLiteLLM() as one, FakeLiteLLM() as two:
        write_config(tmp_path, [one.url, two.url])
        await two.stop()
        said(await call("check", cwd=tmp_path), 2, f"healthy: t0 ({one.url})", f"unreachable: t1 ({two.url})")


# --- inspect ----------------------------------------------------------------------------------------------------


async def test_inspect_does_not_pay_unasked(tmp_path: Path) -> None:
    """Where nobody can be asked (no terminal), /health is not called, and the output says so."""
    async with FakeLiteLLM() as proxy:
        said(await call("inspect", proxy.url, cwd=tmp_path), 0, "HEALTHY", "1.106.2", "--yes")
        assert proxy.asked("/health") == proxy.billed_calls == 0


async def test_inspect_with_yes_shows_each_deployment_with_its_class(tmp_path: Path) -> None:
    """Counts, failing ones first, error classes; none of the secrets in the reply."""
    async with FakeLiteLLM("1.80.17", key="sk-x") as proxy:
        proxy.deployments = [Deployment("openai/good", "a"), Deployment("openai/bad", "b", error="rate_limit")]
        finished = await call("inspect", proxy.url, "--yes", cwd=tmp_path, env={"LITELLM_API_KEY": "sk-x"})
        said(finished, 0, "1 healthy", "1 failing", "FAIL  b (openai/bad)", "rate_limit")
        assert finished.out.index("openai/bad") < finished.out.index("openai/good")
        assert "LEAKTEST" not in finished.out
        assert "\x1b" not in finished.out  # colour is for terminals


@pytest.mark.parametrize(("answer", "billed"), [(b"n\n", 0), (b"y\n", 2)])
async def test_inspect_asks_on_a_terminal_before_it_pays(answer: bytes, billed: int, tmp_path: Path) -> None:
    """With the number of deployments, in colour; no is no, and yes is one poll."""
    async with FakeLiteLLM() as proxy:
        code, shown = await on_terminal("inspect", proxy.url, cwd=tmp_path, answer=answer, until=b"[y/N]")
        assert code == 0
        assert "each of its 2 deployments" in shown
        assert "\x1b[32m" in shown
        assert (proxy.asked("/health"), proxy.billed_calls) == (min(billed, 1), billed)


async def test_inspect_as_json_is_for_programs(tmp_path: Path) -> None:
    """The same facts, in one parseable document."""
    async with FakeLiteLLM("documented") as proxy:
        proxy.db, proxy.redis = "connected", "disconnected"
        finished = await call("inspect", proxy.url, "--yes", "--json", cwd=tmp_path)
        (view,) = json.loads(finished.out)
        assert view["status"] == "healthy"
        assert view["dependencies"]["redis"] == "disconnected"
        assert view["healthy"] == 2
        assert view["endpoints"]["backlog"]["state"] == "absent"


async def test_inspect_a_proxy_that_is_not_there(tmp_path: Path) -> None:
    """Says so and exits with 2; nothing is asked for."""
    async with FakeLiteLLM() as proxy:
        await proxy.stop()
        said(await call("inspect", proxy.url, "--yes", cwd=tmp_path), 2, "UNREACHABLE", "nothing listens there")


async def test_inspect_an_unknown_target(tmp_path: Path) -> None:
    """Names those there are."""
    write_config(tmp_path, ["http://127.0.0.1:1"])
    said(await call("inspect", "-t", "nope", cwd=tmp_path), 64, "nope", "t0")
    said(await call("inspect", "-t", "t0", "http://127.0.0.1:1", cwd=tmp_path), 64, "not both")
    said(await call("inspect", "--key-env", "NOPE", "http://127.0.0.1:1", cwd=tmp_path), 64, "NOPE is not set")


# --- validate and the configuration -------------------------------------------------------------------------------


async def test_validate(tmp_path: Path) -> None:
    """Good: one line and the arithmetic. Bad: everything at once and exit code 78."""
    write_config(tmp_path, ["http://127.0.0.1:1"])
    said(await call("validate", cwd=tmp_path), 0, "valid; 1 target, 1 sink", "288 polls a day")
    (tmp_path / "config.toml").write_text('[agent]\nstate_dri = "x"\n[[targets]]\nname = "a"\nurl = "ftp://x"\n')
    said(
        await call("validate", cwd=tmp_path),
        78,
        "3 problems",
        "agent.state_dri",
        "state_dir",
        "targets[0].url",
        "sinks",
    )
    said(await call("run", cwd=tmp_path), 78, "3 problems")


async def test_no_configuration(tmp_path: Path) -> None:
    """Says where it looked."""
    said(await call("run", cwd=tmp_path), 78, "config.toml", "/etc/litellm-forwarder", "--config")


async def test_schema(tmp_path: Path) -> None:
    """For editors."""
    finished = await call("validate", "--schema", cwd=tmp_path)
    assert json.loads(finished.out)["properties"].keys() >= {"agent", "targets", "sinks"}


# --- standard streams -------------------------------------------------------------------------------------------


async def test_without_standard_output(tmp_path: Path) -> None:
    """Started with it closed: the exit code still tells, and nothing is written to whatever gets its number.

    The console sink delivers nothing, instead of claiming to.
    """
    async with FakeLiteLLM() as proxy:
        write_config(tmp_path, [proxy.url], more='drain_timeout = "5s"')
        closed = 'exec "$0" -m forwarder "$@" <&- >&-'
        for command, code in ((["check", proxy.url], 0), (["catalog"], 0), (["poll", "--once"], 1)):
            finished = await call_shell(closed, *command, cwd=tmp_path)
            said(finished, code)
            assert finished.out == ""
        (account,) = json.loads((await call("spool", "ledger", "--json", cwd=tmp_path)).out)
        assert account["delivered"] == 0
        assert account["pending"] == account["accepted"] > 0


async def test_a_full_disk_under_standard_output(tmp_path: Path) -> None:
    """A health check still tells by its exit code; anything else says that it could not be written."""
    async with FakeLiteLLM() as proxy:
        full = 'exec "$0" -m forwarder "$@" > /dev/full'
        said(await call_shell(full, "check", proxy.url, cwd=tmp_path), 0, "standard output cannot be written")
        said(await call_shell(full, "catalog", cwd=tmp_path), 74, "standard output cannot be written")
        said(await call_shell(full, "--help", cwd=tmp_path), 74, "standard output cannot be written")


async def test_a_reader_that_has_seen_enough(tmp_path: Path) -> None:
    """`catalog | head -1` is no failure."""
    finished = await call_shell('"$0" -m forwarder "$@" | head -1; exit ${PIPESTATUS[0]}', "catalog", cwd=tmp_path)
    said(finished, 0, "litellm.health")
    assert finished.err == ""


# --- catalog, completion, help ------------------------------------------------------------------------------------


async def test_catalog(tmp_path: Path) -> None:
    """Every metric and change, for people and for programs."""
    finished = await call("catalog", cwd=tmp_path)
    for name in [metric.name for metric in catalog.METRICS] + [change.name for change in catalog.CHANGES]:
        assert name in finished.out
    listed = json.loads((await call("catalog", "--json", cwd=tmp_path)).out)
    assert [metric["name"] for metric in listed["metrics"]] == [metric.name for metric in catalog.METRICS]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
async def test_completion(shell: str, tmp_path: Path) -> None:
    """The script is printed, and what it calls completes commands."""
    said(await call("completion", shell, cwd=tmp_path), 0, "_LITELLM_FORWARDER_COMPLETE")
    env = {"_LITELLM_FORWARDER_COMPLETE": "bash_complete", "COMP_WORDS": "litellm-forwarder in", "COMP_CWORD": "1"}
    said(await call(cwd=tmp_path, env=env), 0, "inspect")


@pytest.mark.parametrize(
    "command",
    [
        "",
        "run",
        "poll",
        "status",
        "alive",
        "doctor",
        "check",
        "inspect",
        "validate",
        "spool",
        "spool replay",
        "catalog",
        "completion",
    ],
)
async def test_help(command: str, tmp_path: Path) -> None:
    """Every command explains itself."""
    said(await call(*command.split(), "--help", cwd=tmp_path), 0, "Usage: litellm-forwarder")


@pytest.mark.parametrize("wrong", [["nope"], ["poll"], ["check", "--nope"], ["spool", "replay", "--sink", "a"]])
async def test_a_wrong_command_line(wrong: list[str], tmp_path: Path) -> None:
    """Exit code 64, so that it is not taken for an unreachable proxy (2)."""
    said(await call(*wrong, cwd=tmp_path), 64, "Usage:")


async def test_a_bad_url(tmp_path: Path) -> None:
    """The problem and the fix; a password in it is not echoed."""
    finished = await call("check", "http://user:CANARY@host", cwd=tmp_path)
    said(finished, 64, "URL")
    assert "CANARY" not in finished.err


async def test_inspect_with_a_wrong_key(tmp_path: Path) -> None:
    """The key is the first thing told under a headline that does not need one."""
    async with FakeLiteLLM(key="sk-right") as proxy:
        finished = await call("inspect", proxy.url, "--no", cwd=tmp_path, env={"LITELLM_API_KEY": "sk-wrong"})
    head, why, trouble, *_ = finished.out.splitlines()
    assert (head.split()[0], why) == ("HEALTHY", "  alive and ready")
    assert trouble.startswith("  cannot read ")
    assert "key" in trouble
    assert "sk-wrong" not in finished.out + finished.err


# --- spool --------------------------------------------------------------------------------------------------------


@pytest.fixture
async def buried(tmp_path: Path) -> Path:
    """A folder whose spool has three events for the console, two of them dead letters."""
    write_config(tmp_path, ["http://127.0.0.1:1"])
    spool = SqliteSpool(tmp_path / "state" / "spool.db")
    await spool.open()
    await spool.attach(["console"])
    now = time.time_ns()
    events = tuple(catalog.UP.at(now, value) for value in (0, 1, 1))
    batch = Batch(Resource({"litellm.target": "eu"}), now, events)
    await spool.put(batch)
    dead = [Burial(Batch(batch.resource, now, (event,)), "bad name") for event in events[:2]]
    (piece,) = await spool.read("console", max_events=2, max_bytes=10_000)
    assert piece.end > Position()
    await spool.settle("console", Settlement(upto=piece.end, rejected=2, dead=dead))
    await spool.close()
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "code"), [(("validate", "-c", "none.toml"), 78), (("nonsense",), 64), (("spool", "ledger"), 78)]
)
async def test_an_error_that_cannot_be_written_is_in_the_exit_code(
    tmp_path: Path, arguments: tuple[str, ...], code: int
) -> None:
    """A full disk under standard error changes nothing about what went wrong."""
    finished = await call_shell('exec "$0" -m forwarder "$@" 2> /dev/full', *arguments, cwd=tmp_path)
    assert finished.code == code


async def test_the_ledger_tells_what_nobody_confirms(tmp_path: Path) -> None:
    """A Datadog agent acknowledges nothing: its `delivered` is what it was handed."""
    write_config(tmp_path, ["http://127.0.0.1:1"])
    with (tmp_path / "config.toml").open("a") as file:
        file.write('[sinks.dd]\ntype = "datadog"\naddress = "udp://127.0.0.1:1"\n')
    assert (await call("poll", "--once", cwd=tmp_path)).code in (0, 1)
    lines = (await call("spool", "ledger", cwd=tmp_path)).out.splitlines()
    assert [line.split()[0] for line in lines if "confirms nothing" in line] == ["dd"]
    accounts = json.loads((await call("spool", "ledger", "--json", cwd=tmp_path)).out)
    assert {account["sink"]: account["confirmed"] for account in accounts} == {"console": True, "dd": False}


async def test_ledger_and_dead_letters(buried: Path) -> None:
    """What became of every event, and the letters one by one."""
    said(await call("spool", "ledger", cwd=buried), 0, "console", "yes")
    finished = await call("spool", "list", cwd=buried)
    assert len(finished.out.splitlines()) == 2
    said(finished, 0, "litellm.up", "bad name")
    letter = json.loads((await call("spool", "show", "1", cwd=buried)).out)
    assert letter["event"]["resource"] == {"litellm.target": "eu"}
    said(await call("spool", "show", "77", cwd=buried), 1, "no dead letter 77")


async def test_replay_and_purge(buried: Path) -> None:
    """One goes back into the queue and is delivered by the next round, the other is forgotten; the ledger adds up."""
    said(await call("spool", "replay", "1", "--sink", "console", cwd=buried), 0, "1 put back")
    said(await call("spool", "purge", "--all", "--sink", "console", cwd=buried), 0, "1 forgotten")
    said(await call("spool", "list", cwd=buried), 0, "no dead letters")
    said(await call("spool", "purge", "9", "--sink", "console", cwd=buried), 1, "0 forgotten", "1 of the ids")
    said(await call("spool", "replay", "--all", "--sink", "nope", cwd=buried), 64, "nope", "console")
    (account,) = json.loads((await call("spool", "ledger", "--json", cwd=buried)).out)
    assert (account["accepted"], account["pending"], account["rejected"]) == (3, 2, 1)


async def test_no_spool_yet(tmp_path: Path) -> None:
    """Says where it would be, and creates nothing."""
    write_config(tmp_path, ["http://127.0.0.1:1"])
    said(await call("spool", "ledger", cwd=tmp_path), 73, "state")
    assert not (tmp_path / "state").exists()


async def test_a_state_folder_that_cannot_be(tmp_path: Path) -> None:
    """Exit code 73, what, where and how to mend it."""
    write_config(tmp_path, ["http://127.0.0.1:1"])
    (tmp_path / "state").write_text("a file")
    said(await call("run", cwd=tmp_path), 73, str(tmp_path / "state"), "state_dir")
