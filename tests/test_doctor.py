"""`doctor`: what it finds, what it says to do, and what it leaves alone."""

import json
import os
import socket
from pathlib import Path
from typing import Any

from backends.litellm import FakeLiteLLM
from program import agent, call, names_in, write_config

KEY = {"KEY": "sk-CANARY-KEY"}
WITH_KEY = 'api_key = { env = "KEY" }'


async def doctor(folder: Path, *arguments: str, env: dict[str, str] | None = None) -> tuple[int, list[dict[str, Any]]]:
    finished = await call("doctor", "--json", *arguments, cwd=folder, env=KEY if env is None else env)
    assert "Traceback" not in finished.err
    assert "CANARY" not in finished.out + finished.err
    assert "LEAKTEST" not in finished.out + finished.err
    found = json.loads(finished.out)
    assert found["ok"] == (finished.code == 0)
    return finished.code, found["findings"]


def said(findings: list[dict[str, Any]], about: str, verdict: str) -> str:
    return " ".join(each["text"] for each in findings if (each["about"], each["verdict"]) == (about, verdict))


async def test_all_is_well(tmp_path: Path) -> None:
    """Ticks, on a terminal and in JSON. /health is not paid for unasked, and nothing is created."""
    async with FakeLiteLLM(key="sk-CANARY-KEY") as proxy:
        write_config(tmp_path, [proxy.url], WITH_KEY)
        finished = await call("doctor", cwd=tmp_path, env=KEY | {"PYTHONIOENCODING": "utf-8"})
        assert finished.code == 0, finished.out
        assert "✓ target t0: reads liveliness, readiness" in finished.out
        assert "each of its 2 deployments" in finished.out
        assert "doctor --billed" in finished.out
        assert finished.out.endswith("\nnothing failed\n")
        assert proxy.asked("/health") == proxy.billed_calls == 0
        assert proxy.violations == []
    assert not (tmp_path / "state").exists()


async def test_health_is_read_where_somebody_pays_or_it_is_free(tmp_path: Path) -> None:
    """By --billed, or where the configuration says that the proxy checks by itself."""
    async with FakeLiteLLM() as proxy:
        write_config(tmp_path, [proxy.url])
        _, findings = await doctor(tmp_path, "--billed")
        assert "health" in said(findings, "target t0", "good")
        assert proxy.asked("/health") == 1
        write_config(tmp_path, [proxy.url], 'health = { background = "on" }')
        await doctor(tmp_path)
        assert proxy.asked("/health") == 2


async def test_what_does_not_work(tmp_path: Path) -> None:
    """A proxy that is not there, one that refuses the key: each with its fix, and exit code 1."""
    async with FakeLiteLLM(key="sk-other") as proxy:
        write_config(tmp_path, [proxy.url, "http://127.0.0.1:1"], WITH_KEY)
        code, findings = await doctor(tmp_path)
        assert code == 1
        assert "key is missing, wrong or not allowed" in said(findings, "target t0", "bad")
        assert "nothing listens there" in said(findings, "target t1", "bad")
        assert "give api_key the right key" in {each["fix"] for each in findings}


async def test_a_wrong_configuration(tmp_path: Path) -> None:
    """Every problem is a finding."""
    write_config(tmp_path, ["ftp://x"], WITH_KEY, listen="nowhere")
    code, findings = await doctor(tmp_path, env={})
    assert code == 1
    assert {each["text"].partition(":")[0] for each in findings} == {
        "agent.listen",
        "targets[0].url",
        "targets[0].api_key",
    }


async def test_files_and_folders(reachable: Path) -> None:
    """A key that everybody may read, and a state folder that cannot be one."""
    tmp_path = reachable
    async with FakeLiteLLM(key="sk-CANARY-KEY") as proxy:
        key = tmp_path / "key"
        key.write_text("sk-CANARY-KEY\n")
        key.chmod(0o644)
        write_config(tmp_path, [proxy.url], 'api_key = { file = "key" }')
        code, findings = await doctor(tmp_path)
        assert code == 0
        assert "can be read by every user" in said(findings, "secrets", "warning")
        key.chmod(0o600)
        (tmp_path / "state").mkdir()
        (tmp_path / "state").chmod(0o777)
        assert "every user may write" in said((await doctor(tmp_path))[1], "state folder", "warning")
        (tmp_path / "state").rmdir()
        (tmp_path / "state").write_text("a file")
        code, findings = await doctor(tmp_path)
        assert code == 1
        assert "no file that holds a key" in said(findings, "secrets", "good")
        assert "cannot be written" in said(findings, "state folder", "bad")


async def test_a_state_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """/proc lets root write, as far as its permissions say, and takes no folder. Nothing is left where one can be."""
    async with FakeLiteLLM() as proxy:
        write_config(tmp_path, [proxy.url])
        before = names_in(tmp_path)
        code, findings = await doctor(tmp_path)
        assert (code, names_in(tmp_path)) == (0, before)
        assert "can be made" in said(findings, "state folder", "good")
        config = tmp_path / "config.toml"
        config.write_text(config.read_text().replace('"state"', '"/proc/litellm"'))
        code, findings = await doctor(tmp_path)
        assert code == 1
        assert said(findings, "state folder", "bad").startswith("/proc cannot be written by this user: ")


async def test_beside_a_running_agent(tmp_path: Path) -> None:
    """It is found, by its lock and its page, and goes on."""
    async with FakeLiteLLM() as proxy:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        write_config(tmp_path, [proxy.url], listen=f"127.0.0.1:{port}")
        async with agent(tmp_path) as running:
            await running.until(lambda: "status page" in running.err())
            code, findings = await doctor(tmp_path)
            assert code == 0, findings
            assert f"pid {running.process.pid}" in said(findings, "state folder", "note")
            assert "an agent" in said(findings, "status page", "good")
            assert "forwarder.test" not in running.names()


async def test_another_program_on_the_port(tmp_path: Path) -> None:
    """Named as what hinders the status page."""
    async with FakeLiteLLM() as proxy, FakeLiteLLM() as other:
        write_config(tmp_path, [proxy.url], listen=f"127.0.0.1:{other.port}")
        code, findings = await doctor(tmp_path)
        assert code == 1
        assert "is no litellm-forwarder" in said(findings, "status page", "bad")


async def test_another_agent_on_the_port(tmp_path: Path) -> None:
    """It is not taken for ours, by `doctor` or `status`: it has another state folder, whose path it does not tell."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    theirs.mkdir()
    async with FakeLiteLLM() as proxy:
        with socket.create_server(("127.0.0.1", 0)) as free:
            listen = f"127.0.0.1:{free.getsockname()[1]}"
        write_config(ours, [proxy.url], listen=listen)
        write_config(theirs, [proxy.url], listen=listen)
        async with agent(theirs) as running:
            await running.until(lambda: "status page" in running.err())
            code, findings = await doctor(ours)
            assert code == 1
            assert "another agent answers" in said(findings, "status page", "bad")
            finished = await call("status", cwd=ours)
            assert (finished.code, finished.out) == (2, "")
            assert "another agent answers" in finished.err
            shown = await call("status", "--json", "--url", f"http://{listen}", cwd=ours)
            assert json.loads(shown.out)["sinks"]
            assert str(tmp_path) not in shown.out
            assert (await call("status", "--json", cwd=theirs)).code < 2


async def test_people_are_not_woken(tmp_path: Path) -> None:
    """A sink that tells people is built, but sent nothing: `notify test` is for that."""
    async with FakeLiteLLM() as proxy:
        write_config(tmp_path, [proxy.url])
        with (tmp_path / "config.toml").open("a") as file:
            file.write('[sinks.people]\ntype = "notify"\nurl = { file = "url" }\n')
        (tmp_path / "url").write_text("mailto://127.0.0.1:9/?from=agent@example.test")
        code, findings = await doctor(tmp_path)
        assert code == 0, findings
        assert "`litellm-forwarder notify test people` sends a sample" in said(findings, "sink people", "note")


async def test_a_sink_gets_one_marked_test(tmp_path: Path) -> None:
    """An event and a gauge, named as a test; handed over where nothing acknowledges. One that is not there is told."""
    async with FakeLiteLLM() as proxy:
        path = tmp_path / "dsd.socket"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as backend:
            backend.bind(str(path))
            backend.settimeout(10)
            write_config(tmp_path, [proxy.url])
            with (tmp_path / "config.toml").open("a") as file:
                file.write(f'[sinks.dd]\ntype = "datadog"\naddress = "unix://{path}"\n')
            code, findings = await doctor(tmp_path)
            assert code == 0, findings
            assert "handed over" in said(findings, "sink dd", "good")
            got = backend.recv(65536)
            while b"_e{" not in got or b"forwarder.test:1" not in got:
                got += backend.recv(65536)
        os.unlink(path)  # noqa: PTH108 - a socket
        code, findings = await doctor(tmp_path)
        assert code == 1
        assert said(findings, "sink dd", "bad")
