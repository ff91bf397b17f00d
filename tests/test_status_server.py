"""The status server over real sockets: what it answers, to whom, and what nobody can do to it."""

import asyncio
import contextlib
import itertools
import json
import logging
import socket
import sys
import threading
from collections.abc import AsyncIterator

import pytest
import status_views as views
from status_site import Board, Site, serving

from forwarder.config_values import Address
from forwarder.status import server as module
from forwarder.status.page import Page
from forwarder.status.server import CONNECTIONS, MOST, StatusServer
from forwarder.status.view import View, decode


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with serving(Address("127.0.0.1", 0), Board()) as found:
        yield found


async def test_what_it_serves(site: Site) -> None:
    """The page, its changing part, and the JSON, which reads back as the view."""
    page = await site.get("/")
    assert page.status == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.body.startswith(b"<!doctype html>")
    assert "sha256-" in page.headers["content-security-policy"]
    assert (await site.get("/?main")).body.startswith(b"<main")
    status = await site.get("/api/status")
    assert status.headers["content-type"] == "application/json"
    assert decode(status.body) == site.board.shown
    assert json.loads(status.body)["format"] == 1


async def test_health_and_readiness_are_the_agents_own(site: Site) -> None:
    """200 or 503, with the reasons, whatever proxies and sinks do."""
    site.board.state_folder = "0f"
    said = {"service": "litellm-forwarder", "status": "ok", "problems": [], "state_folder": "0f"}
    for path in ("/healthz", "/readyz"):
        answer = await site.get(path)
        assert answer.status == 200
        assert json.loads(answer.body) == said
    site.board.problem, site.board.waiting = "the scheduler is 90 s behind", ["target eu was not read yet"]
    answer = await site.get("/healthz")
    assert answer.status == 503
    assert json.loads(answer.body)["problems"] == ["the scheduler is 90 s behind"]
    assert (await site.get("/readyz")).status == 503


async def test_every_answer_has_the_headers(site: Site) -> None:
    """Nothing is sniffed, framed, cached or kept open."""
    for path in ["/", "/?main", "/api/status", "/healthz", "/readyz", "/no/such", "/api/../etc"]:
        answer = await site.get(path)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["connection"] == "close"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert "server" not in answer.headers


async def test_only_reading(site: Site) -> None:
    """Nothing can be changed over it, so nothing else is answered."""
    methods = ("POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "NONSENSE")
    for method, path in itertools.product(methods, ("/", "/api/status", "/healthz")):
        assert (await site.get(path, method=method)).status == 405


async def test_head(site: Site) -> None:
    """The headers of GET, without the body."""
    answer = await site.get("/", method="HEAD")
    assert (answer.status, answer.body) == (200, b"")


async def test_on_loopback_it_answers_to_loopback_names(site: Site) -> None:
    """By any port, because it may have been forwarded."""
    for host in ("localhost", "LOCALHOST:9464", "localhost.:80", "127.0.0.1:9464", "127.8.8.8", "[::1]", "[::1]:9464"):
        assert (await site.get("/healthz", host=host)).status == 200


async def test_on_loopback_other_names_are_refused(site: Site) -> None:
    """A web page that had its own name resolve to 127.0.0.1 reads nothing."""
    evil = (
        "evil.example",
        "evil.example:9464",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "",
        "[",
        "10.0.0.1",
    )
    for host, path in itertools.product(evil, ("/", "/api/status")):
        answer = await site.get(path, host=host)
        assert answer.status == 421
        assert b"eu" not in answer.body


async def test_elsewhere_any_name_is_answered(caplog: pytest.LogCaptureFixture) -> None:
    """A kubelet asks by the pod's address. The log says that there is no password."""
    async with serving(Address("0.0.0.0", 0), Board()) as site:  # noqa: S104 - that is the case
        assert (await site.get("/healthz", host="10.1.2.3:9464")).status == 200
    assert "it has no password" in caplog.text


async def test_a_bug_is_told_in_the_log_alone(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """The server goes on."""
    site.board.shown = RuntimeError("CANARY")
    answer = await site.get("/")
    assert answer.status == 500
    assert b"CANARY" not in answer.body
    assert "bug in the status server" in caplog.text
    site.board.shown = views.view()
    assert (await site.get("/")).status == 200


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01\x02\x00nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 70_000]
)
async def test_what_is_not_a_request(site: Site, data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Answered 400; no line in the agent's log for what anybody may send."""
    with caplog.at_level(logging.INFO, "forwarder"):
        assert (await site.send(data)).status == 400
    assert not [record for record in caplog.records if record.name.startswith("forwarder")]
    assert (await site.get("/healthz")).status == 200


async def test_who_says_nothing_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in the middle of a request."""
    monkeypatch.setattr(module, "PER_CONNECTION", 0.05)
    async with serving(Address("127.0.0.1", 0), Board()) as site:
        for first in (b"", b"GET / HTT", b"GET / HTTP/1.1\r\nHost: localhost\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
            writer.write(first)
            async with asyncio.timeout(10):
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
            writer.close()


async def test_who_opens_connections_and_says_nothing_keeps_no_probe_out(site: Site) -> None:
    """The oldest of them makes way; else anybody could have the agent restarted by whoever looks whether it lives."""
    idle = [await asyncio.open_connection("127.0.0.1", site.port) for _ in range(CONNECTIONS + 10)]
    for path in ("/healthz", "/readyz", "/", "/healthz"):
        assert (await site.get(path)).status == 200
    gone = 0
    for reader, writer in idle:
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(0.02):
                await reader.read()
        gone += reader.at_eof() or reader.exception() is not None
        writer.close()
    assert 10 <= gone < MOST


# In a process of its own, whose files are not ours: opens connections, and then does nothing until its end.
VISITORS = """
import socket, sys, time
port, count, request = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3].encode()
opened = []
for _ in range(count):
    each = socket.socket()
    each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    each.setblocking(bool(request))
    each.connect_ex(("127.0.0.1", port))
    if request:
        each.sendall(request)
        time.sleep(0.02)  # one after the other: so many at once are answered 503
    opened.append(each)
print("opened", flush=True)
sys.stdin.read()
"""


@contextlib.asynccontextmanager
async def visitors(port: int, count: int, request: str = "") -> AsyncIterator[None]:
    """So many, who have all come."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        VISITORS,
        str(port),
        str(count),
        request,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        assert await process.stdout.readline() == b"opened\n"
        yield
    finally:
        process.kill()
        await process.wait()


async def test_who_does_not_read_keeps_no_probe_out(site: Site) -> None:
    """Answers that nobody takes wait in connections that are in use, and these make way too."""
    site.board.shown = views.view([views.degraded("t", 9000)])  # a page larger than what the kernel keeps
    async with visitors(site.port, CONNECTIONS + 10, "GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"):
        for _ in range(100):
            await asyncio.sleep(0.01)
        for path in ("/healthz", "/readyz", "/healthz"):
            assert (await site.get(path)).status == 200


async def test_those_that_come_at_once_do_not_all_push_out_the_same_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds in one turn of the loop: there are never many more than the limit."""
    found: set[object] = set()
    most = 0

    class Counted(module._Connection):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in uvicorn
            nonlocal most
            found.add(self)
            super().connection_made(transport)
            most = max(most, len(found))

        def connection_lost(self, exc: Exception | None) -> None:
            found.remove(self)
            super().connection_lost(exc)

    monkeypatch.setattr(module, "_Connection", Counted)
    async with serving(Address("127.0.0.1", 0), Board()) as site, visitors(site.port, 900):
        for _ in range(300):
            await asyncio.sleep(0.01)
        assert (await site.get("/healthz")).status == 200
    assert CONNECTIONS < most <= CONNECTIONS + MOST


async def test_pages_have_a_limit_and_probes_have_none(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for pages without end is told to come again, and the agent is alive all the same."""
    monkeypatch.setattr(module, "MOST", 0)
    assert (await site.get("/")).status == 503
    assert (await site.get("/healthz")).status == 200


async def test_a_page_is_made_once_for_a_view(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many ask for it, whatever they add to the path; and in a thread, because a large one takes long."""
    threads = []
    made = views.troubled()
    right = Page.whole

    def whole(self: Page, view: View) -> str:
        threads.append(threading.current_thread())
        return right(self, view)

    monkeypatch.setattr(Page, "whole", whole)
    async with serving(Address("127.0.0.1", 0), Board()) as other:
        other.board.shown = made
        bodies = await asyncio.gather(*(other.get(f"/?{number}") for number in range(20)))
        assert len({answer.body for answer in bodies}) == 1
        assert len(threads) == 1
        assert threads[0] is not threading.main_thread()
        other.board.shown = views.view()
        assert (await other.get("/")).body != bodies[0].body
        assert len(threads) == 2


HOST = b"host: localhost\r\n"
GET = b"GET / HTTP/1.1\r\n" + HOST
FLOODS = {  # the beginning, and what follows without end
    "headers": (GET, b"a: b\r\n" * 10_000),
    "one header": (GET + b"a: ", b"x" * 65536),
    "a path": (b"GET /", b"x" * 65536),
    "empty lines": (b"", b"\r\n" * 10_000),
    "a body": (GET + b"content-length: 99999999999\r\n\r\n", b"x" * 65536),
    "chunks": (GET + b"transfer-encoding: chunked\r\n\r\n", b"1\r\na\r\n" * 10_000),
    "a chunk's extension": (GET + b"transfer-encoding: chunked\r\n\r\n1;a=", b"x" * 65536),
    "requests": (b"", b"GET /healthz HTTP/1.1\r\n" + HOST + b"\r\n" * 1000),
    "two lengths": (GET + b"content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", b"x" * 65536),
    "surrogates": (b"GET /\xed\xa0\x80%ed%a0%80 HTTP/1.1\r\nhost: \xed\xa0\x80\r\n\r\n", b"\xed\xa0\x80" * 20_000),
}


@pytest.mark.parametrize("what", FLOODS)
async def test_a_flood_from_a_visitor_is_let_go(site: Site, what: str, caplog: pytest.LogCaptureFixture) -> None:
    """It gets one answer at most, not much of it is taken, it fills no log, and others are served meanwhile."""
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    poured = 0

    async def pour() -> None:
        nonlocal poured
        first, part = FLOODS[what]
        writer.write(first)
        with contextlib.suppress(ConnectionError):
            while poured < 64 << 20:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0)
                poured += len(part)

    async with asyncio.timeout(30):
        pouring = asyncio.create_task(pour())
        assert (await site.get("/healthz")).status == 200
        answers = b""
        with contextlib.suppress(ConnectionError):
            while part := await reader.read(1 << 16):
                answers += part
        pouring.cancel()
        await asyncio.gather(pouring, return_exceptions=True)
    writer.close()
    assert answers.count(b"HTTP/1.1 ") <= 1
    assert poured < 32 << 20  # the kernel's buffers hold some
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []  # below it is not shown
    assert (await site.get("/healthz")).status == 200


async def test_connections_do_not_use_up_the_files(site: Site) -> None:
    """Who opens hundreds and says nothing keeps few of them: polls and sends need files too."""
    many = [await asyncio.open_connection("127.0.0.1", site.port) for _ in range(4 * MOST)]
    ends = [asyncio.create_task(reader.read()) for reader, _ in many]
    async with asyncio.timeout(10):
        while sum(end.done() for end in ends) < 2 * MOST:
            await asyncio.wait([end for end in ends if not end.done()], return_when=asyncio.FIRST_COMPLETED)
    for _, writer in many:
        writer.close()
    await asyncio.gather(*ends, return_exceptions=True)


async def test_a_taken_address_is_told_once_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    """The agent's work does not need the page; when the address is free there is one."""
    taken = socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    tried = 0

    async def sleep(_seconds: float) -> None:
        nonlocal tried
        tried += 1
        if tried == 3:
            taken.close()

    server = StatusServer(Address("127.0.0.1", port), Board())
    running = asyncio.create_task(server.run(sleep))
    async with asyncio.timeout(10):
        await server.up.wait()
    assert tried == 3
    assert caplog.text.count("no status page: its address cannot be used") == 1
    assert (await Site(Board(), port).get("/healthz")).status == 200
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


async def test_stopping_frees_the_address_at_once() -> None:
    """Though somebody holds a connection."""
    async with serving(Address("127.0.0.1", 0), Board()) as site:
        _, writer = await asyncio.open_connection("127.0.0.1", site.port)
    writer.close()
    socket.create_server(("127.0.0.1", site.port)).close()


def test_where_it_is_reached() -> None:
    """From here, an address of all interfaces is reached by loopback."""
    assert Address("127.0.0.1", 1).url == "http://127.0.0.1:1"
    assert Address("::", 2).url == "http://[::1]:2"
    assert Address("0.0.0.0", 3).url == "http://127.0.0.1:3"  # noqa: S104 - that is the case
    assert Address("10.0.0.1", 4).url == "http://10.0.0.1:4"
