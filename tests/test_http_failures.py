"""The bounded GET when the peer or the network fails: a class of failure, within the deadline, and nothing leaked."""

import asyncio
import gzip
import itertools
import logging
import socket
import time
import tracemalloc
from collections.abc import Iterator

import pytest
from backends.http_server import (
    Answer,
    Response,
    ScriptedServer,
    always,
    drip,
    endless,
    gzip_bomb,
    gzipped,
    hang,
    raw,
    reset,
)
from http_support import KEY, MIB, client_for, ended, get, nobody, nothing_left_unclosed, open_files, until
from lookups_support import Resolver

from forwarder.reply import Failure
from forwarder.threads import DaemonThreads

__all__ = ["nothing_left_unclosed"]  # a fixture
pytestmark = pytest.mark.usefixtures("nothing_left_unclosed")

OK = b"HTTP/1.1 200 OK\r\n"
FAILING: dict[str, tuple[Answer, int | None, Failure]] = {
    "hang": (hang(), None, Failure.TIMEOUT),
    "hang in the headers": (hang(OK), None, Failure.TIMEOUT),
    "hang in the body": (hang(OK + b"content-length: 9\r\n\r\nab"), 200, Failure.TIMEOUT),
    "slow drip": (drip(Response(body=b"x" * 999), every=0.02), None, Failure.TIMEOUT),
    "slow drip of the body": (
        endless(OK + b"content-length: 9999\r\n\r\n", b"x", every=0.02),
        200,
        Failure.TIMEOUT,
    ),
    "endless 100 Continue": (
        endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n", every=0.001),
        None,
        Failure.TIMEOUT,
    ),
    "close without an answer": (raw(), None, Failure.CONNECTION),
    "close in the headers": (raw(OK), None, Failure.CONNECTION),
    "close in the body": (raw(OK + b"content-length: 9\r\n\r\nab"), 200, Failure.CONNECTION),
    "close between chunks": (raw(OK + b"transfer-encoding: chunked\r\n\r\n1\r\na\r\n"), 200, Failure.CONNECTION),
    "reset": (reset(), None, Failure.CONNECTION),
    "reset in the body": (reset(OK + b"content-length: 9\r\n\r\nab"), 200, Failure.CONNECTION),
    "garbage": (raw(b"\x16\x03\x01PEERTEXT\r\n\r\n"), None, Failure.CONNECTION),
    "HTTP/0.9": (raw(b"<html>PEERTEXT</html>\r\n\r\n"), None, Failure.CONNECTION),
    "status 99999": (raw(b"HTTP/1.1 99999 PEERTEXT\r\n\r\n"), None, Failure.CONNECTION),
    "status 700": (raw(b"HTTP/1.1 700 OK\r\ncontent-length: 0\r\n\r\n"), None, Failure.CONNECTION),
    "status 101": (raw(b"HTTP/1.1 101 Switching\r\nupgrade: x\r\n\r\n"), None, Failure.CONNECTION),
    "300 KB header": (raw(OK + b"x: " + b"a" * 300_000 + b"\r\n\r\n"), None, Failure.CONNECTION),
    "header flood": (endless(OK, b"a: b\r\n" * 999), None, Failure.CONNECTION),
    "control character in a header": (raw(OK + b"x: PEERTEXT\x00\r\n\r\n"), None, Failure.CONNECTION),
    "chunked garbage": (raw(OK + b"transfer-encoding: chunked\r\n\r\nPEERTEXT\r\n"), 200, Failure.CONNECTION),
    "negative length": (raw(OK + b"content-length: -1\r\n\r\n"), None, Failure.CONNECTION),
    "huge length": (raw(OK + b"content-length: " + b"9" * 5000 + b"\r\n\r\n"), None, Failure.CONNECTION),
    "announced too large": (raw(OK + b"content-length: 1048577\r\n\r\n"), 200, Failure.TOO_LARGE),
    "endless": (endless(OK + b"\r\n", b"x" * 65536), 200, Failure.TOO_LARGE),
    "endless compressed nothing": (
        endless(OK + b"content-encoding: gzip\r\n\r\n" + gzip.compress(b"")[:10], b"\x00\x00\x00\xff\xff" * 9999),
        200,
        Failure.TOO_LARGE,
    ),
    "gzip bomb": (gzip_bomb(64 * MIB), 200, Failure.TOO_LARGE),
    "one byte too large": (gzipped(bytes(MIB + 1)), 200, Failure.TOO_LARGE),
    "cut off gzip": (gzipped(b"hello" * 99, keep=20), 200, Failure.ENCODING),
    "damaged gzip": (Response(502, b"PEERTEXT", {"content-encoding": "gzip"}), 502, Failure.ENCODING),
    "garbage after gzip": (
        Response(200, gzip.compress(b"x") + b"garbage", {"content-encoding": "gzip"}),
        200,
        Failure.ENCODING,
    ),
    "unknown encoding": (Response(200, b"x", {"content-encoding": "PEERTEXT"}), 200, Failure.ENCODING),
    "gzip twice": (Response(200, b"x", {"content-encoding": "gzip, gzip"}), 200, Failure.ENCODING),
}


@pytest.mark.parametrize("case", FAILING)
async def test_a_failing_peer_is_a_reply_with_a_failure(case: str) -> None:
    """Whatever the peer does, `get` returns within the deadline: a class of failure, the status if one came, no body,
    a clause of ours, and the connection is closed.
    """
    answer, status, failure = FAILING[case]
    async with ScriptedServer(always(answer)) as server:
        client = client_for(server.url)
        started = time.monotonic()
        reply = await ended(client.get("/health", timeout=0.3 if failure is Failure.TIMEOUT else 10))
        took = time.monotonic() - started
        if failure is not Failure.ENCODING:  # its body may have been read to the end
            await until(lambda: server.open_connections == 0)
        await client.close()
    assert (reply.status, reply.failure, reply.body) == (status, failure, b"")
    assert took < 8
    assert reply.detail
    assert reply.detail.isprintable()
    assert len(server.requests) == 1


@pytest.mark.parametrize("case", FAILING)
async def test_no_secret_is_shown(case: str, caplog: pytest.LogCaptureFixture) -> None:
    """Neither the key, nor the path, nor what the peer wrote is in a reply's repr, its detail or a log."""
    caplog.set_level(logging.INFO)
    answer, _, failure = FAILING[case]
    async with ScriptedServer(always(answer)) as server:
        client = client_for(server.url)
        reply = await ended(client.get("/secret-path", timeout=0.2 if failure is Failure.TIMEOUT else 10))
        await client.close()
    shown = f"{client!r} {reply!r} {reply.detail} {caplog.text}"
    for text in (KEY, "secret-path", "PEERTEXT"):
        assert text not in shown


async def test_a_body_of_exactly_the_cap_is_taken() -> None:
    """The cap is the largest body allowed, plain and compressed; a call may set its own."""
    async with ScriptedServer(
        lambda r: Response(body=bytes(MIB)) if "plain" in r.path else gzipped(bytes(MIB))
    ) as server:
        client = client_for(server.url)
        assert len((await ended(client.get("/plain", timeout=10))).body) == MIB
        assert len((await ended(client.get("/gzip", timeout=10))).body) == MIB
        assert (await ended(client.get("/plain", timeout=10, max_body=MIB - 1))).failure is Failure.TOO_LARGE
        assert (await ended(client.get("/gzip", timeout=10, max_body=MIB - 1))).failure is Failure.TOO_LARGE
        await client.close()


@pytest.mark.parametrize("kind", ["bomb", "endless"])
async def test_a_hostile_body_takes_little_memory(kind: str) -> None:
    """64 KB of gzip that become 64 MB, and a body without end, cost about the cap of 1 MiB."""
    answer = gzip_bomb(64 * MIB) if kind == "bomb" else endless(OK + b"\r\n", b"x" * 65536)
    async with ScriptedServer(always(answer)) as server:
        client = client_for(server.url)
        tracemalloc.start()
        try:
            reply = await ended(client.get("/health", timeout=20))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        await client.close()
    assert reply.failure is Failure.TOO_LARGE
    assert peak < 4 * MIB


async def test_refused() -> None:
    """A port where nothing listens is told from a network that does not answer."""
    with nobody() as url:
        for same in (url, url.replace("127.0.0.1", "localhost")):
            reply = await get(same)
            assert (reply.failure, reply.detail) == (Failure.REFUSED, "nothing listens there")


async def test_unreachable() -> None:
    """An address without a route (the broadcast address never has one for TCP) is neither refused nor late."""
    assert (await get("http://255.255.255.255:9")).failure is Failure.UNREACHABLE


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Make every name resolve to these addresses, in this order."""

    def getaddrinfo(_host: object, port: int, *_args: object, **_kwargs: object) -> list[tuple[object, ...]]:
        family = {True: socket.AF_INET6, False: socket.AF_INET}
        return [(family[":" in each], socket.SOCK_STREAM, 6, "", (each, port)) for each in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
async def test_a_name_with_two_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """`localhost` as ::1 and 127.0.0.1: one that answers is enough; if none does, refused says more than no route."""
    resolve_to(monkeypatch, "::1", "127.0.0.1")
    async with ScriptedServer() as server:
        assert (await get(f"http://two.test:{server.port}")).status == 200
    with nobody() as url:
        port = url.rpartition(":")[2]
        assert (await get(f"http://two.test:{port}")).failure is Failure.REFUSED
        resolve_to(monkeypatch, "255.255.255.255", "127.0.0.1")
        assert (await get(f"http://two.test:{port}")).failure is Failure.REFUSED


async def test_a_name_that_does_not_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS has a class of its own."""

    def getaddrinfo(*_args: object, **_kwargs: object) -> list[object]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert (await get("http://nowhere.test")).failure is Failure.DNS


async def test_the_deadline_covers_dns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver that does not answer ends with the deadline, although its thread cannot be stopped."""

    def getaddrinfo(*_args: object, **_kwargs: object) -> list[object]:
        time.sleep(1.5)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    started = time.monotonic()
    reply = await get("http://slow.test", timeout=0.2)
    assert reply.failure is Failure.TIMEOUT
    assert time.monotonic() - started < 1.2


async def test_a_name_that_hangs_is_looked_up_once_for_all_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each get ends by its own deadline, as late; when the name server answers again, so does the target."""
    resolver = Resolver(monkeypatch)
    asyncio.get_running_loop().set_default_executor(DaemonThreads())
    async with ScriptedServer() as server:
        url = f"http://a.slow.test:{server.port}"
        replies = await asyncio.gather(*(get(url, timeout=0.1 + number / 100) for number in range(20)))
        assert {(reply.failure, reply.detail) for reply in replies} == {(Failure.TIMEOUT, "no answer in time")}
        assert resolver.asked == ["a.slow.test"]
        last = asyncio.create_task(get(url, timeout=10))
        await asyncio.sleep(0)
        resolver.answer.set()
        assert (await last).status == 200


async def test_the_deadline_covers_waiting_for_a_connection() -> None:
    """With every connection of the target busy, a get still ends in time; and the others are undisturbed."""
    async with ScriptedServer(always(hang())) as server:
        client = client_for(server.url)
        busy = [asyncio.create_task(client.get("/health", timeout=30)) for _ in range(8)]
        await until(lambda: len(server.requests) == 8)
        late = await ended(client.get("/health", timeout=0.2))
        assert late.failure is Failure.TIMEOUT
        assert server.connections == 8
        assert not any(task.done() for task in busy)
        for task in busy:
            task.cancel()
        await asyncio.gather(*busy, return_exceptions=True)
        await client.close()


async def test_cancelling_leaves_the_pool_usable() -> None:
    """A cancelled get passes the cancellation on, and gives its connection back: more of them than there are."""
    async with ScriptedServer(lambda r: hang(OK) if "slow" in r.path else Response(body=b"x")) as server:
        client = client_for(server.url)
        for count in range(1, 21):
            task = asyncio.create_task(client.get("/slow", timeout=30))
            await until(lambda: len(server.requests) == count)  # noqa: B023 - asked at once
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert (await ended(client.get("/fast", timeout=5))).body == b"x"
        await client.close()


async def test_failing_gets_leak_no_sockets() -> None:
    """A hundred failures of every kind leave no file descriptor open (and, warnings being errors, none unclosed)."""
    answers: Iterator[Answer] = itertools.cycle(
        [raw(), reset(), gzip_bomb(2 * MIB), raw(b"junk\r\n\r\n"), hang(OK), Response(500)]
    )
    async with ScriptedServer(lambda _request: next(answers)) as server:
        client, refused = client_for(server.url), client_for("http://127.0.0.1:1")
        await ended(client.get("/health", timeout=5))
        await until(lambda: server.open_connections == 0)
        before = open_files()
        for _ in range(50):
            await ended(client.get("/health", timeout=0.1))
            await ended(refused.get("/health", timeout=0.1))
        await client.close()
        await refused.close()
        await until(lambda: server.open_connections == 0)
        assert open_files() <= before


async def test_an_error_that_the_caller_is_handling_is_not_taken_for_the_cause() -> None:
    """Python chains errors to what is being handled meanwhile; that one has nothing to do with the GET."""
    async with ScriptedServer(always(raw())) as server:
        try:
            raise ConnectionRefusedError(111, "of something else")  # noqa: TRY301 - it must be in the chain
        except ConnectionRefusedError:
            reply = await get(server.url)
    assert reply.failure is Failure.CONNECTION
