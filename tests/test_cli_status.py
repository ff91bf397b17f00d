"""`status` and `alive` against a status server, and what they say where none is."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import click
import pytest
import status_views as views
from backends.http_server import Response, ScriptedServer, always, raw
from program import call, on_terminal, write_config
from status_site import Board, Site, serving

from forwarder.cli.status import as_text
from forwarder.config_values import Address
from forwarder.status.view import decode, encode


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with serving(Address("127.0.0.1", 0), Board()) as found:
        yield found


async def test_status_by_the_configured_address(site: Site, tmp_path: Path) -> None:
    """The worst first; exit code 1 while something is the matter, 0 when nothing is. It needs no secrets."""
    write_config(tmp_path, ["http://127.0.0.1:1"], 'api_key = { env = "UNSET" }', listen=f"127.0.0.1:{site.port}")
    finished = await call("status", cwd=tmp_path)
    assert finished.code == 1, finished.err
    assert finished.out.startswith("UNHEALTHY  proxy us is unhealthy; proxy ap is degraded")
    site.board.shown = views.view()
    finished = await call("status", cwd=tmp_path)
    assert finished.code == 0
    assert finished.out.startswith("ALL IS WELL\n")
    assert "\x1b" not in finished.out  # colour is for terminals


async def test_status_as_json(site: Site, tmp_path: Path) -> None:
    """What /api/status says, whole."""
    finished = await call("status", "--json", "--url", site.url, cwd=tmp_path)
    assert decode(finished.out.encode()) == views.troubled()
    assert json.loads(finished.out)["targets"][0]["name"] == "us"


def test_the_table() -> None:
    """What is not known is a question mark; failing deployments are listed; nothing is cut where no width is given."""
    text = click.unstyle(as_text(views.troubled()))
    lines = {line.split()[0]: line for line in text.splitlines() if line}
    assert lines["us"].split()[:4] == ["us", "unhealthy", "4", "min"]
    assert " ?   ? " in lines["us"]
    assert "97.2 %" in lines["us"]
    assert lines["us"].endswith("nothing listens there")
    assert "1,044 of 5,000" in lines["eu"]
    assert "gpt-4o-1 (azure/gpt-4o-2024-08-06) [d7ce849b0001…] fails: authentication 401, for 7 min" in text
    assert "41 min" in lines["newrelic"]
    assert "handed over" in lines["datadog"]
    assert "14,100" in lines["newrelic"]


def test_many_failing_deployments() -> None:
    """Ten are listed, the others counted."""
    failing = [views.failing(number) for number in range(30)]
    text = as_text(views.view([views.target(listing=views.listing(failing))]))
    assert text.count("fails: rate_limit") == 10
    assert "and 20 more that fail" in text


@pytest.mark.parametrize("width", [30, 60, 80, 120, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    """However long a reason is."""
    reason = "a very long reason that goes on and on " * 10
    view = views.view(
        [views.target(reason=reason), views.degraded()], [views.sink(last_error=reason)], summary=(reason,)
    )
    for line in click.unstyle(as_text(view, width)).splitlines():
        assert len(line) <= width


def test_a_reason_that_does_not_fit_stands_below() -> None:
    """Why something is wrong is what one came for: at 80 columns nothing of it is missing."""
    reason = "https://otlp.example.com refuses the key (HTTP 401); renew it where the sink's token comes from"
    view = views.view([views.target(reason=reason)], [views.sink(last_error=reason, last_error_time=views.NOW)])
    text = click.unstyle(as_text(view, 80))
    assert " ".join(text.split()).count(reason) == 2
    assert "\n    https://otlp" in text
    assert "↓" not in click.unstyle(as_text(view, 300))


def test_control_sequences_do_not_reach_the_terminal() -> None:
    """Whoever listens at that address may be anybody."""
    evil = "\x1b[2J\x1b]0;owned\x07\r\n\u202ename"
    deployments = [views.failing(1, error=evil)]
    view = views.view(
        [views.target(evil, reason=evil, version=evil, listing=views.listing(deployments))],
        [views.sink(evil, last_error=evil, last_error_time=views.NOW)],
        summary=(evil,),
        not_ready=(evil,),
        version=evil,
    )
    assert all(each.isprintable() for each in click.unstyle(as_text(view)).replace("\n", ""))


async def test_watch_redraws_until_interrupted(site: Site, tmp_path: Path) -> None:
    """On the terminal's other screen, which is left in the end; Ctrl-C is no failure."""
    code, shown = await on_terminal(
        "status", "--watch", "--interval", "0.5", "--url", site.url, cwd=tmp_path, answer=b"\x03", until=b"newrelic"
    )
    assert code == 0
    assert shown.startswith("\x1b[?1049h")
    assert "UNHEALTHY" in shown
    assert shown.rstrip().endswith("\x1b[?1049l")
    assert "Traceback" not in shown


async def test_no_colour_where_none_is_wanted(site: Site, tmp_path: Path) -> None:
    """NO_COLOR is honoured on a terminal."""
    arguments = ("status", "--url", site.url)
    _, shown = await on_terminal(*arguments, cwd=tmp_path, answer=b"", until=b"never")
    assert "\x1b[31m" in shown
    _, shown = await on_terminal(*arguments, cwd=tmp_path, answer=b"", until=b"never", env={"NO_COLOR": "1"})
    assert "UNHEALTHY" in shown
    assert "\x1b[31m" not in shown


async def test_watch_needs_a_terminal(site: Site, tmp_path: Path) -> None:
    """A file full of escape sequences helps nobody."""
    finished = await call("status", "--watch", "--url", site.url, cwd=tmp_path)
    assert finished.code == 64
    assert "--watch needs a terminal" in finished.err


@pytest.mark.parametrize("broken", ["[nonsense]\n", "[[targets]]\nname = 5\n"])
async def test_alive_outlives_a_file_that_was_broken_meanwhile(site: Site, tmp_path: Path, broken: str) -> None:
    """Killing the agent for it would end what works: it could not start again."""
    write_config(tmp_path, ["http://127.0.0.1:1"], listen=f"127.0.0.1:{site.port}")
    with (tmp_path / "config.toml").open("a") as file:
        file.write(broken)
    assert (await call("validate", cwd=tmp_path)).code == 78
    assert (await call("alive", cwd=tmp_path)).out == "alive\n"


async def test_another_agent_at_our_address_does_not_make_ours_alive(site: Site, tmp_path: Path) -> None:
    """Told by the state folder; where no configuration says which is ours, whoever answers is meant."""
    write_config(tmp_path, ["http://127.0.0.1:1"], listen=f"127.0.0.1:{site.port}")
    site.board.state_folder = "another"
    finished = await call("alive", cwd=tmp_path)
    assert finished.code == 1
    assert "another agent answers" in finished.err
    assert (await call("alive", "--url", site.url, cwd=tmp_path)).code == 0


async def test_what_speaks_no_http_is_no_agent(tmp_path: Path) -> None:
    """A mail server, say."""
    async with ScriptedServer(always(raw(b"220 mail.example.test ESMTP\r\n"))) as server:
        finished = await call("status", "--url", server.url, cwd=tmp_path)
    assert finished.code == 2
    assert "is no litellm-forwarder: it speaks no HTTP" in finished.err


@pytest.mark.parametrize("text", ["no TOML", "", "agent = 5", '[agent]\nlisten = "nonsense"'])
async def test_alive_without_a_readable_address_asks_at_the_default(tmp_path: Path, text: str) -> None:
    """Nobody is there in this test, or another agent; either way no error of the configuration is the answer."""
    (tmp_path / "config.toml").write_text(text)
    finished = await call("alive", cwd=tmp_path)
    assert finished.code in (0, 1)
    assert "127.0.0.1:9464" in finished.err or finished.out == "alive\n"


async def test_alive_speaks_of_the_agent_alone(site: Site, tmp_path: Path) -> None:
    """Proxies down and sinks blocked: alive. Its scheduler dead: not."""
    write_config(tmp_path, ["http://127.0.0.1:1"], listen=f"127.0.0.1:{site.port}")
    finished = await call("alive", cwd=tmp_path)
    assert (finished.code, finished.out) == (0, "alive\n")
    site.board.problem = "the scheduler is 90 s behind"
    finished = await call("alive", cwd=tmp_path)
    assert finished.code == 1
    assert "the scheduler is 90 s behind" in finished.err


async def test_where_no_agent_answers(tmp_path: Path) -> None:
    """2 for status, 1 for alive, and what to look at; never a traceback."""
    write_config(tmp_path, ["http://127.0.0.1:1"], listen="off")
    for command, code in (("status", 2), ("alive", 1)):
        finished = await call(command, cwd=tmp_path)
        assert finished.code == code
        assert 'agent.listen is "off"' in finished.err
        finished = await call(command, "--url", "http://127.0.0.1:1", cwd=tmp_path)
        assert finished.code == code
        assert "nothing listens there" in finished.err
        assert "a changed agent.listen only after a restart, until then --url asks it" in finished.err
    write_config(tmp_path, ["http://127.0.0.1:1"], listen="127.0.0.1:0")
    assert "--url" in (await call("status", cwd=tmp_path)).err
    assert (await call("status", "--url", "ftp://x", cwd=tmp_path)).code == 64
    for secret in ("http://u:sk-CANARY@127.0.0.1:1", "http://127.0.0.1:1/?k=CANARY"):
        for command in ("status", "alive"):
            finished = await call(command, "--url", secret, cwd=tmp_path)
            assert (finished.code, "CANARY" in finished.err) == (64, False)


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"{}", b"[]", b"\xff", b'{"service":"other","format":1}', encode(views.view())[:-9]],
)
async def test_who_is_no_agent_is_not_believed(body: bytes, tmp_path: Path) -> None:
    """Another program on that port is neither well nor alive."""
    async with ScriptedServer(always(Response(200, body))) as server:
        for command, code in (("status", 2), ("alive", 1)):
            finished = await call(command, "--url", server.url, cwd=tmp_path)
            assert finished.code == code
            assert "no litellm-forwarder" in finished.err or "not well" in finished.err
            assert "Traceback" not in finished.err


async def test_an_agent_of_another_release(tmp_path: Path) -> None:
    """Whose status has another format: said so."""
    body = encode(views.view()).replace(b'"format":1', b'"format":2')
    async with ScriptedServer(always(Response(200, body))) as server:
        finished = await call("status", "--url", server.url, cwd=tmp_path)
        assert finished.code == 2
        assert "another release" in finished.err
