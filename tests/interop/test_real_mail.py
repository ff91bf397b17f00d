"""E-mail through a real mail server. `make interop` unpacks one; without, these are skipped."""

import signal
from pathlib import Path

from backends.litellm import Deployment, FakeLiteLLM
from notify_support import configured
from program import Running, agent, call

from interop.exim import PASSWORD, Exim, exim


async def delivered(running: Running, server: Exim, count: int) -> None:
    await running.until(lambda: len(server.mails()) >= count)
    assert len(server.mails()) == count


async def test_an_outage_is_one_mail_and_its_end_another_in_the_same_thread(tmp_path: Path) -> None:
    """Over STARTTLS with a log-in; the second waits in the spool while the mail server is dead, through a restart."""
    async with exim() as server, FakeLiteLLM("1.106.2") as proxy:
        proxy.deployments = [Deployment(f"openai/gpt-{n}", f"gpt-{n}") for n in range(3)]
        env = configured(tmp_path, proxy.url, server)
        async with agent(tmp_path, env=env) as running:
            await running.until(lambda: proxy.asked("/health") >= 2)
            proxy.deployments[1].error = "timeout"
            await delivered(running, server, 1)
            await server.kill()
            proxy.deployments[1].error = None
            await running.until(lambda: "cannot deliver" in running.err())
            running.signal(signal.SIGKILL)
            await running.ended()
        async with agent(tmp_path, env=env) as running:
            await running.until(lambda: "cannot deliver" in running.err())
            await server.start()
            await delivered(running, server, 2)
            running.signal(signal.SIGTERM)
            assert await running.ended() == 0
        first, second = server.mails()
        log = server.log()
    assert first["subject"] == "[LiteLLM] prod: gpt-1 unhealthy"
    assert second["subject"] == "[LiteLLM] prod: gpt-1 healthy again"
    assert second["in-reply-to"] == first["message-id"]
    for mail in (first, second):
        assert [part.get_content_type() for part in mail.walk()] == [
            "multipart/alternative",
            "text/plain",
            "text/html",
        ]
    assert log.count("P=esmtpsa") == 2  # TLS, and logged in
    assert PASSWORD not in log


async def test_what_a_real_server_refuses_is_told_with_its_fix(tmp_path: Path) -> None:
    """A recipient that is not there, a wrong password: each in words that help, with the code of the server."""
    async with exim() as server:
        env = configured(tmp_path, "http://127.0.0.1:1", server)
        some = await call("notify", "test", cwd=tmp_path, env={"MAIL_URL": server.url("&to=nobody@x.test,ops@x.test")})
        none = await call("notify", "test", cwd=tmp_path, env={"MAIL_URL": server.url("&to=nobody@x.test")})
        wrong = await call("notify", "test", cwd=tmp_path, env={"MAIL_URL": server.url(password="wrong")})
        good = await call("notify", "test", cwd=tmp_path, env=env)
        assert len(server.mails()) == 2
    assert good.code == 0
    assert "(550)" in some.out + some.err
    assert (none.code, "(550)" in none.out) == (1, True)
    assert (wrong.code, "refuses user name or password (535)" in wrong.out) == (1, True)
    for said in (some, none, wrong):
        assert "@" not in said.out + said.err
        assert PASSWORD not in said.out + said.err
