"""The documented scenario with the whole program: an upstream dies, one message; it comes back, one recovery."""

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from backends.litellm import Deployment, FakeLiteLLM
from backends.notify import PASSWORD, MailServer, Webhook
from notify_support import configured
from program import PATIENCE, Running, agent, call

URL = {"MAIL_URL": ""}


@pytest.fixture
def mail() -> Iterator[MailServer]:
    server = MailServer()
    yield server
    server.close()


async def arrived(running: Running, mail: MailServer, count: int) -> None:
    await running.until(lambda: len(mail.received) >= count)


async def test_an_upstream_dies_and_comes_back(tmp_path: Path, mail: MailServer) -> None:
    """One message when it fails, one when it is well again; over a restart, and while the mail server is away."""
    async with FakeLiteLLM("1.80.17") as proxy:
        proxy.deployments = [Deployment(f"openai/gpt-{n}", f"gpt-{n}") for n in range(3)]
        env = configured(tmp_path, proxy.url, mail)
        async with agent(tmp_path, env=env) as running:
            await running.until(lambda: "started" in running.err())
            await asyncio.sleep(0)
            polled = len(proxy.requests)
            await running.until(lambda: len(proxy.requests) > polled + 20)  # a baseline was read
            assert mail.received == []
            proxy.deployments[1].error = "timeout"
            await arrived(running, mail, 1)
            (first,) = mail.take()
            assert first.message["subject"] == "[LiteLLM] prod: gpt-1 unhealthy"
            assert "timeout: no answer in time" in first.part("plain")
            running.signal(signal.SIGTERM)
            assert await running.ended() == 0
        mail.away()
        async with agent(tmp_path, env=env) as running:
            proxy.deployments[1].error = None
            await running.until(lambda: "cannot deliver" in running.err())
            assert PASSWORD not in running.err()
            assert "example.test" not in running.err()
            mail.back()
            await arrived(running, mail, 1)
            (second,) = mail.take()
            assert second.message["subject"] == "[LiteLLM] prod: gpt-1 healthy again"
            assert second.message["in-reply-to"] == first.message["message-id"]
            assert "is healthy again after" in second.part("plain")
            running.signal(signal.SIGTERM)
            assert await running.ended() == 0
    assert mail.received == []
    spool = b"".join(path.read_bytes() for path in (tmp_path / "state").iterdir() if path.is_file())
    assert PASSWORD.encode() not in spool


async def test_a_sample_reaches_every_address(tmp_path: Path, mail: MailServer) -> None:
    """`notify test`: a tick or the failure with its fix for each, and an exit code for all."""
    hook = Webhook()
    try:
        more = '[sinks.chat]\ntype = "notify"\nurl = { env = "CHAT_URL" }\n'
        env = configured(tmp_path, "http://127.0.0.1:1", mail, more) | {"CHAT_URL": hook.url()}
        finished = await call("notify", "test", cwd=tmp_path, env=env | {"PYTHONIOENCODING": "utf-8"})
        assert (finished.code, finished.err) == (0, "")
        assert finished.out.splitlines() == [
            "✓ mail: taken; look whether it arrived",
            "✓ chat: taken; look whether it arrived",
        ]
        (received,) = mail.take()
        assert received.message["subject"] == "[LiteLLM] test message"
        assert "Sink: mail" in received.part("plain")
        (told,) = hook.take()
        assert "Sink: chat" in told["message"]
        env["MAIL_URL"] = mail.url(password="wrong")
        finished = await call("notify", "test", "mail", cwd=tmp_path, env=env | {"PYTHONIOENCODING": "ascii"})
        assert finished.code == 1
        assert finished.out == (
            "failed mail: the mail server refuses user name or password (535); "
            "renew the password; many providers want one made for this application\n"
        )
        assert hook.requests == []
    finally:
        hook.close()


async def test_what_notify_test_cannot_test(tmp_path: Path, mail: MailServer) -> None:
    """A sink that is not there, and none at all, are mistakes of the command line."""
    env = configured(tmp_path, "http://127.0.0.1:1", mail)
    finished = await call("notify", "test", "chat", cwd=tmp_path, env=env)
    assert finished.code == 64
    assert "there are: mail" in finished.err
    (tmp_path / "config.toml").write_text(
        '[[targets]]\nname = "a"\nurl = "http://127.0.0.1:1"\n[sinks.c]\ntype = "console"\n'
    )
    finished = await call("notify", "test", cwd=tmp_path, env=env)
    assert finished.code == 64
    assert "no sink of type notify" in finished.err


assert PATIENCE > 20, "the second message waits for the pump's pauses"
