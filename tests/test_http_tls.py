"""The bounded GET over TLS and through forward proxies."""

import asyncio
import itertools
from pathlib import Path

import pytest
from backends.http_server import Response, ScriptedServer, always
from cryptography.hazmat.primitives import serialization
from http_support import KEY, client_for, ended, get, nothing_left_unclosed, until
from tls_support import Authority, relay

from forwarder.reply import Failure
from forwarder.transport import HttpProblem, tls_context

__all__ = ["nothing_left_unclosed"]  # a fixture
pytestmark = pytest.mark.usefixtures("nothing_left_unclosed")


async def test_tls_with_a_private_ca(authority: Authority) -> None:
    """`ca_file` is what a proxy with a private certificate needs, and all it needs."""
    async with ScriptedServer(tls=authority.server()) as server:
        reply = await get(server.url, context=tls_context(authority.ca_file, None, None))
    assert (reply.status, reply.failure) == (200, None)


async def test_an_unknown_ca_is_refused(authority: Authority) -> None:
    """A certificate of an unknown CA fails, and nothing of the request, the key least of all, reaches the server."""
    async with ScriptedServer(tls=authority.server()) as server:
        reply = await get(server.url)
        assert server.requests == []
    assert reply.failure is Failure.TLS
    assert reply.detail == "certificate verify failed: unable to get local issuer certificate"


async def test_a_certificate_for_another_host_is_refused(authority: Authority) -> None:
    """The name is verified too, and the host does not appear in the detail."""
    async with ScriptedServer(tls=authority.server("other.test")) as server:
        reply = await get(server.url, context=tls_context(authority.ca_file, None, None))
        assert server.requests == []
    assert (reply.failure, reply.detail) == (Failure.TLS, "certificate verify failed: IP address mismatch")


async def test_tls_where_the_peer_speaks_plain_http() -> None:
    """https:// in the configuration of a proxy without TLS is told as what it is."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1") as server:
        reply = await get(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    assert (reply.failure, reply.detail) == (Failure.TLS, "the peer does not speak TLS")


async def test_a_handshake_that_hangs_leaves_no_socket() -> None:
    """The deadline ends a TLS handshake too, and closes the socket, which httpcore alone does not."""
    async with ScriptedServer() as server:  # it waits for the end of a request that never comes
        client = client_for(server.url.replace("http:", "https:"))
        assert (await ended(client.get("/health", timeout=0.2))).failure is Failure.TIMEOUT
        await until(lambda: server.open_connections == 0)
        await client.close()


async def test_client_certificates(authority: Authority) -> None:
    """mTLS: with the certificate the request passes, without it the failure is one of the connection."""
    async with ScriptedServer(tls=authority.server(client_needed=True)) as server:
        context = tls_context(authority.ca_file, authority.client_cert, authority.client_key)
        assert (await get(server.url, context=context)).status == 200
        reply = await get(server.url, context=tls_context(authority.ca_file, None, None))
        # TLS 1.3 clients are done before the server looks at their certificate: its alert races its reset
        assert reply.failure in (Failure.TLS, Failure.CONNECTION)
        assert len(server.requests) == 1


def test_tls_files_that_cannot_be_used(authority: Authority, tmp_path: Path) -> None:
    """What is wrong with a file is said at load, by path and reason, not at the first poll."""
    junk = tmp_path / "junk.pem"
    junk.write_text("junk")
    other = tmp_path / "other.key"
    authority.ca.issue_cert("x.test").private_key_pem.write_to_path(str(other))
    locked = tmp_path / "locked.key"
    key = serialization.load_pem_private_key(authority.client_key.read_bytes(), None)
    locked.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"x"),
        )
    )
    cases: list[tuple[Path | None, Path | None, Path | None, str]] = [
        (tmp_path / "none.pem", None, None, "does not exist"),
        (junk, None, None, "cannot be used"),
        (tmp_path, None, None, "cannot be"),
        (None, junk, None, "cannot be used"),
        (None, authority.client_cert, tmp_path / "none.key", "does not exist"),
        (None, authority.client_cert, other, "key values mismatch"),
        (None, authority.client_cert, locked, "encrypted"),
        (None, None, authority.client_key, "without a client certificate"),
    ]
    for ca_file, cert, key_file, reason in cases:
        with pytest.raises(HttpProblem, match=reason) as caught:
            tls_context(ca_file, cert, key_file)
        assert caught.value.hint or reason == "cannot be"


async def test_the_environment_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where requests go is configured, not inherited: neither proxies nor netrc of the environment matter."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password else")
    async with ScriptedServer() as server, ScriptedServer() as other:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, other.url)
        monkeypatch.setenv("NETRC", str(netrc))
        assert (await get(server.url)).status == 200
        assert (len(server.requests), other.connections) == (1, 0)
        assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"


async def test_a_configured_proxy_is_used(authority: Authority) -> None:
    """http:// targets are asked for by the proxy; to https:// targets it only carries bytes, and sees no key."""
    async with ScriptedServer(relay) as proxy, ScriptedServer(tls=authority.server()) as server:
        plain = client_for("http://litellm.test", proxy=proxy.url)
        reply = await plain.get("/health", timeout=5)
        assert (reply.body, proxy.requests[0].path) == (b"through the proxy", "http://litellm.test/health")
        tunnelled = client_for(server.url, tls_context(authority.ca_file, None, None), proxy=proxy.url)
        assert (await tunnelled.get("/health", timeout=5)).status == 200
        assert proxy.requests[1].method == "CONNECT"
        assert KEY not in str(proxy.requests[1])
        assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
        await plain.close()
        await tunnelled.close()


async def test_a_failing_proxy_is_not_a_failing_target() -> None:
    """A proxy that is down, refuses the tunnel or wants credentials is told from a target that is down."""
    async with ScriptedServer(always(Response(407))) as proxy:
        down = "http://127.0.0.1:1"
        for target, address in itertools.product(("http://litellm.test", "https://litellm.test"), (down, proxy.url)):
            client = client_for(target, proxy=address)
            reply = await ended(client.get("/health", timeout=5))
            await client.close()
            assert reply.failure is Failure.PROXY
