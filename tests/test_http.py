"""The bounded GET with a peer that behaves: what it asks, what it gives back, and where the key goes."""

import asyncio
import gzip
import itertools
import zlib

import pytest
from backends.http_server import Response, ScriptedServer, always, drip, raw, redirect
from http_support import KEY, MIB, NOW, PLAIN_TLS, client_for, get, until

from forwarder.http import Client
from forwarder.reply import Reply
from forwarder.secrets import Secret

OK = b"HTTP/1.1 200 OK\r\n"

# --- an honest peer ----------------------------------------------------------------------------------------------


async def test_a_reply_is_given_as_it_is() -> None:
    """Status, content type, body and the moment of completion arrive; the request says who asks and brings the key."""
    answer = Response(503, b'{"db":"disconnected"}', {"content-type": "application/json"})
    async with ScriptedServer(always(answer)) as server:
        client = Client(
            server.url + "/litellm/",
            {"Authorization": Secret(f"Bearer {KEY}")},
            PLAIN_TLS,
            max_body=MIB,
            clock=lambda: NOW,
            monotonic=itertools.count(10.0, 0.25).__next__,
        )
        reply = await client.get("/health/readiness?a=b", timeout=5, accept="text/plain")
        await client.close()
    assert reply == Reply(
        time=NOW, elapsed=0.25, status=503, content_type="application/json", body=b'{"db":"disconnected"}'
    )
    (request,) = server.requests
    assert (request.method, request.path) == ("GET", "/litellm/health/readiness?a=b")
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.headers["user-agent"].startswith("litellm-forwarder/")
    assert (request.headers["accept"], request.headers["accept-encoding"]) == ("text/plain", "gzip")


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(b"hello " * 1000)),
        ("GZIP", gzip.compress(b"hello " * 1000)),
        ("gzip", gzip.compress(b"hello " * 400) + gzip.compress(b"hello " * 600)),
        ("deflate", zlib.compress(b"hello " * 1000)),
        ("identity", b"hello " * 1000),
    ],
    ids=["gzip", "upper-case", "two-members", "deflate", "identity"],
)
@pytest.mark.parametrize("step", [None, 1, 7])
async def test_content_encodings_are_decoded(encoding: str, body: bytes, step: int | None) -> None:
    """However the network cuts the compressed bytes, the decoded body is whole."""
    answer = Response(200, body, {"content-encoding": encoding})
    slow = answer if step is None else drip(answer, every=0, step=step)
    async with ScriptedServer(always(slow)) as server:
        reply = await get(server.url)
    assert (reply.failure, reply.body) == (None, b"hello " * 1000)


async def test_an_empty_body_needs_no_gzip_trailer() -> None:
    """A gateway that names an encoding on an empty reply has not damaged anything."""
    async with ScriptedServer(always(Response(204, b"", {"content-encoding": "gzip"}))) as server:
        reply = await get(server.url)
    assert (reply.status, reply.failure, reply.body) == (204, None, b"")


async def test_a_connection_is_used_again() -> None:
    """The endpoints of a target that are read together share one connection."""
    async with ScriptedServer() as server:
        client = client_for(server.url)
        for _ in range(5):
            assert (await client.get("/health", timeout=5)).failure is None
        await client.close()
    assert (server.connections, len(server.requests)) == (1, 5)


async def test_a_connection_that_the_peer_closed_is_not_used_again() -> None:
    """A server that closes idle connections without saying so does not look down."""
    async with ScriptedServer(always(raw(Response(body=b"x").encode()))) as server:
        client = client_for(server.url)
        for _ in range(3):
            assert (await client.get("/health", timeout=5)).failure is None
            await asyncio.sleep(0.05)  # the FIN is on its way
        await client.close()
    assert server.connections == 3


async def test_close_is_safe_twice_and_final() -> None:
    """Closing again does nothing; asking afterwards is a bug and says so."""
    async with ScriptedServer() as server:
        client = client_for(server.url)
        await client.get("/health", timeout=5)
        await client.close()
        await client.close()
        await until(lambda: server.open_connections == 0)
        with pytest.raises(RuntimeError):
            await client.get("/health", timeout=5)


async def test_cookies_are_not_kept() -> None:
    """A peer cannot plant state in us, nor fill our memory with it."""
    async with ScriptedServer(always(Response(headers={"set-cookie": "a=b; Path=/"}))) as server:
        client = client_for(server.url)
        await client.get("/health", timeout=5)
        await client.get("/health", timeout=5)
        await client.close()
    assert "cookie" not in server.requests[1].headers


# --- redirects and the key ---------------------------------------------------------------------------------------


async def test_a_redirect_never_carries_the_key_away() -> None:
    """A redirect to another origin is not followed: that origin is not even connected to."""
    async with ScriptedServer() as thief, ScriptedServer(always(redirect(f"{thief.url}/health", 302))) as server:
        reply = await get(server.url)
        assert (reply.status, reply.failure, reply.same_origin_location) == (302, None, None)
        assert (thief.connections, len(server.requests)) == (0, 1)


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("{url}/gw/metrics/", "/metrics/"),
        ("/gw/metrics/", "/metrics/"),
        ("metrics/", "/metrics/"),
        ("{url}/gw/metrics/?a=b#c", "/metrics/"),
        ("/metrics/", None),  # not below the prefix
        ("/gw/health/drain", None),
        ("/gw/x/../Health//drain", None),
        ("//127.0.0.1/gw/metrics/", None),  # another port
        ("https://127.0.0.1:{port}/gw/metrics/", None),
        ("http://user@127.0.0.1:{port}/gw/metrics/", None),
        ("http://[bad/", None),
        ("\xff\xfe", None),
        ("", None),
        ("/gw/" + "a" * 5000, None),
    ],
)
async def test_a_redirect_within_the_origin_is_reported(location: str, expected: str | None) -> None:
    """The path of `/metrics` -> `/metrics/` can be asked for next; nothing else about a Location is believed."""
    async with ScriptedServer() as server:
        server.handler = always(redirect(location.format(url=server.url, port=server.port)))
        reply = await get(server.url + "/gw", "/metrics")
    assert (reply.status, reply.failure, reply.same_origin_location) == (307, None, expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("20", 20.0),
        ("0", 0.0),
        ("99999999999", 86400.0),
        ("9" * 90, 86400.0),
        ("Wed, 18 Nov 2026 11:25:00 GMT", 1100.0),
        ("Wed, 18 Nov 2020 11:25:00 GMT", 0.0),
        ("Wed, 18 Nov 9999 11:25:00 GMT", 86400.0),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
        ("Wed, 99 Nov 2026 99:99:99 GMT", None),
        ("\xb2", None),
        ("", None),
        ("9" * 200, None),
    ],
)
async def test_retry_after(value: str, expected: float | None) -> None:
    """Seconds or a date, within a day; garbage is as good as nothing."""
    async with ScriptedServer(always(Response(429, headers={"retry-after": value}))) as server:
        client = Client(server.url, {}, PLAIN_TLS, max_body=MIB, clock=lambda: NOW)
        reply = await client.get("/health", timeout=5)
        await client.close()
    assert (reply.status, reply.failure, reply.retry_after) == (429, None, expected)


async def test_odd_headers_are_harmless() -> None:
    """Bytes that are no UTF-8 are legal in a header; what is kept of it is short and printable."""
    head = OK + b"content-type: text/\xff\xfe; x=" + b"a" * 5000 + b"\r\nx: \xff\r\ncontent-length: 2\r\n\r\nok"
    async with ScriptedServer(always(raw(head))) as server:
        reply = await get(server.url)
    assert (reply.failure, reply.body) == (None, b"ok")
    assert reply.content_type.isprintable()
    assert len(reply.content_type) <= 1000
