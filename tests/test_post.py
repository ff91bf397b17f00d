"""The bounded POST: one request, one deadline, no redirect, and nothing of a peer that could hurt."""

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from backends.http_server import (
    Answer as Scripted,
)
from backends.http_server import (
    Response,
    ScriptedServer,
    always,
    drip,
    endless,
    gzip_bomb,
    gzipped,
    hang,
    raw,
    redirect,
    reset,
)
from http_support import KEY, NOW, PLAIN_TLS, nobody, nothing_left_unclosed
from hypothesis import given, settings
from hypothesis import strategies as st
from tls_support import Authority, relay

from forwarder.reply import Failure
from forwarder.secrets import Secret
from forwarder.sinks.base import Blocked, Retry
from forwarder.sinks.http import failed, misled
from forwarder.transport import HttpProblem, tls_context
from forwarder.transport.headers import USER_AGENT
from forwarder.transport.post import MAX_ANSWER, Answer, Poster

__all__ = ["nothing_left_unclosed"]  # a fixture
pytestmark = pytest.mark.usefixtures("nothing_left_unclosed")

JSON = {"content-type": "application/json"}
MOMENT = 1.0  # seconds past its timeout in which a post must have returned


@contextmanager
def poster(url: str, context: ssl.SSLContext = PLAIN_TLS, *, proxy: str | None = None) -> Iterator[Poster]:
    made = Poster(url, {"Authorization": Secret(f"Bearer {KEY}")}, context, proxy=proxy, clock=lambda: NOW)
    try:
        yield made
    finally:
        made.close()


async def post(made: Poster, body: bytes = b"{}", path: str = "/v1", timeout: float = 5.0) -> Answer:
    return await asyncio.to_thread(made.post, path, body, JSON, timeout=timeout)


async def answer_to(script: Scripted, body: bytes = b"{}", timeout: float = 5.0) -> Answer:
    async with ScriptedServer(always(script)) as server:
        with poster(server.url) as made:
            answer = await post(made, body, timeout=timeout)
    await asyncio.sleep(0)  # transports that were aborted close in the loop's next round
    return answer


# --- a peer that behaves -----------------------------------------------------------------------------------------


async def test_the_request_is_what_was_asked_for() -> None:
    """Path below the prefix, headers, key and body arrive; status, headers and body come back."""
    reply = Response(202, b'{"ok":true}', {"content-type": "application/json; charset=utf-8", "X-Id": "7"})
    async with ScriptedServer(always(reply)) as server:
        with poster(server.url + "/otlp/") as made:
            answer = await post(made, b"body", "/v1/metrics")
    (request,) = server.requests
    assert (request.method, request.path, request.body) == ("POST", "/otlp/v1/metrics", b"body")
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.headers["host"] == server.url.removeprefix("http://")
    assert request.headers["user-agent"] == USER_AGENT
    assert request.headers["content-type"] == "application/json"
    assert (answer.status, answer.failure, answer.body) == (202, None, b'{"ok":true}')
    assert (answer.content_type, answer.headers["x-id"]) == ("application/json", "7")


async def test_a_url_without_a_path_and_a_post_without_one() -> None:
    """The root is a path as well."""
    async with ScriptedServer() as server:
        with poster(server.url) as made:
            await post(made, path="")
            await post(made, path="/")
    assert [request.path for request in server.requests] == ["/", "/"]


async def test_a_connection_is_used_again() -> None:
    """A handshake for every batch would cost more than the batch."""
    async with ScriptedServer() as server:
        with poster(server.url) as made:
            for _ in range(3):
                assert (await post(made)).status == 200
    assert server.connections == 1


async def test_a_connection_that_the_peer_closed_is_opened_anew() -> None:
    """What an idle time-out of the backend closed is no failed delivery."""
    async with ScriptedServer(always(Response(headers={"connection": "close"}))) as server:
        with poster(server.url) as made:
            for _ in range(3):
                assert (await post(made)).failure is None
    assert server.connections == 3


@pytest.mark.parametrize(("value", "seconds"), [("7", 7.0), ("Wed, 18 Nov 2026 11:07:20 GMT", 40.0), ("soon", None)])
async def test_retry_after_is_read(value: str, seconds: float | None) -> None:
    """As seconds or as a date."""
    assert (await answer_to(Response(429, headers={"retry-after": value}))).retry_after == seconds


async def test_a_compressed_answer_is_read() -> None:
    """It was not asked for, but a delivery that is not understood would be made again for ever."""
    assert (await answer_to(gzipped(b"hello"))).body == b"hello"


async def test_large_bodies_go_whole() -> None:
    """More than any buffer on the way holds."""
    body = bytes(range(256)) * 20_000
    async with ScriptedServer() as server:
        with poster(server.url) as made:
            assert (await post(made, body)).status == 200
    assert server.requests[0].body == body


# --- a peer that does not ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "failure", "detail"),
    [
        (hang(), Failure.TIMEOUT, "no answer in time"),
        (
            hang(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab"),
            Failure.TIMEOUT,
            "the answer was not complete in time",
        ),
        (drip(Response(200, b"x" * 200), every=0.05), Failure.TIMEOUT, "no answer in time"),
        (raw(), Failure.CONNECTION, "the peer closed early"),
        (raw(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab"), Failure.CONNECTION, "the peer closed early"),
        (raw(b"SSH-2.0-OpenSSH\r\n\r\n"), Failure.CONNECTION, "the answer is not HTTP"),
        (raw(b"HTTP/1.1 999 What\r\n\r\n"), Failure.CONNECTION, "the status is none of HTTP's"),
        (reset(), Failure.CONNECTION, "the peer reset the connection"),
        (Response(200, b"x" * (MAX_ANSWER + 1)), Failure.TOO_LARGE, f"the answer is over {MAX_ANSWER} bytes"),
        (
            endless(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 9000),
            Failure.TOO_LARGE,
            f"the answer is over {MAX_ANSWER} bytes",
        ),
        (gzip_bomb(10 * MAX_ANSWER), Failure.TOO_LARGE, f"the answer is over {MAX_ANSWER} bytes"),
        (gzipped(b"hello", keep=8), Failure.ENCODING, "the compressed answer is cut off"),
        (Response(200, b"hello", {"content-encoding": "gzip"}), Failure.ENCODING, "the compressed answer is damaged"),
        (
            Response(200, b"hello", {"content-encoding": "br"}),
            Failure.ENCODING,
            "a content-encoding that was not asked",
        ),
    ],
    ids=[
        "hang",
        "half",
        "drip",
        "closed",
        "cut",
        "ssh",
        "status",
        "reset",
        "large",
        "endless",
        "bomb",
        "short-gzip",
        "bad-gzip",
        "br",
    ],
)
async def test_whatever_the_peer_does_is_an_answer(script: Scripted, failure: Failure, detail: str) -> None:
    """Never an exception, never past the deadline, and in our own words."""
    began = time.monotonic()
    answer = await answer_to(script, timeout=0.5)
    assert time.monotonic() - began < 0.5 + MOMENT
    assert (answer.failure, answer.body) == (failure, b"")
    assert answer.detail.startswith(detail)


async def test_a_peer_that_reads_too_slowly_is_given_up() -> None:
    """Each byte that it takes does not buy it more time."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        done = threading.Event()

        def sip() -> None:
            connection, _ = server.accept()
            with connection:
                while not done.wait(0.02) and connection.recv(1000):
                    pass

        thread = threading.Thread(target=sip)
        thread.start()
        began = time.monotonic()
        with poster(f"http://127.0.0.1:{server.getsockname()[1]}") as made:
            answer = await post(made, bytes(20_000_000), timeout=0.5)
        done.set()
        await asyncio.to_thread(thread.join)
    assert time.monotonic() - began < 0.5 + MOMENT
    assert answer.failure is Failure.TIMEOUT


async def test_an_answer_before_the_end_of_the_request_is_read() -> None:
    """A backend that refuses a large body says so and closes, without reading all of it."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(Response(413, headers={"connection": "close"}).encode())
        await writer.drain()
        writer.write_eof()
        while await reader.read(65536):
            pass
        writer.close()
        await writer.wait_closed()
        served.set()

    served = asyncio.Event()
    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with server:
        with poster(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as made:
            assert (await post(made, bytes(2_000_000))).status == 413
        await served.wait()


async def test_nobody_there() -> None:
    """A refused connection and a name that does not resolve are told apart."""
    with nobody() as url, poster(url) as made:
        assert (await post(made)).failure is Failure.REFUSED
    with poster("http://backend.invalid") as made:
        assert (await post(made)).failure is Failure.DNS


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_is_followed(status: int) -> None:
    """The key goes to nobody else, and the body is not lost in a GET."""
    async with ScriptedServer() as other, ScriptedServer(always(redirect(other.url, status))) as server:
        with poster(server.url) as made:
            assert (await post(made)).status == status
    assert other.requests == []


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_an_answer(data: bytes) -> None:
    """Whatever comes back from the socket, `post` returns."""
    answer = asyncio.run(answer_to(raw(data), timeout=2.0))
    assert answer.failure is not None or answer.status is not None


async def test_nothing_of_the_peer_is_in_a_message() -> None:
    """It may echo what it was sent, the key among it."""
    echo = f"{KEY} HTTP/1.1\r\n\r\n".encode()
    for script in (raw(echo), Response(400, echo, {"x-echo": KEY, "location": KEY})):
        answer = await answer_to(script)
        assert KEY not in repr(answer)


# --- TLS and forward proxies -------------------------------------------------------------------------------------


async def test_certificates_are_verified(authority: Authority) -> None:
    """A peer whose certificate is not of the configured authority gets no byte of the request."""
    async with ScriptedServer(tls=authority.server()) as server:
        with poster(server.url, tls_context(authority.ca_file, None, None)) as made:
            assert (await post(made)).status == 200
        with poster(server.url) as made:
            answer = await post(made)
    assert answer.failure is Failure.TLS
    assert answer.detail.startswith("certificate verify failed")
    assert len(server.requests) == 1


async def test_the_deadline_holds_in_the_handshake() -> None:
    """A peer that accepts and says nothing."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        poster(f"https://127.0.0.1:{server.getsockname()[1]}") as made,
    ):
        began = time.monotonic()
        answer = await post(made, timeout=0.3)
    assert time.monotonic() - began < 0.3 + MOMENT
    assert answer.failure is Failure.TIMEOUT


async def test_a_configured_proxy_is_used(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """It carries https:// without seeing the key; one of the environment is not asked."""
    async with (
        ScriptedServer(relay) as proxy,
        ScriptedServer(tls=authority.server()) as server,
        ScriptedServer() as other,
    ):
        monkeypatch.setenv("HTTPS_PROXY", other.url)
        with poster(server.url, tls_context(authority.ca_file, None, None), proxy=proxy.url) as made:
            assert (await post(made)).status == 200
        assert proxy.requests[0].method == "CONNECT"
        assert KEY not in str(proxy.requests[0])
        assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
        with poster(server.url, tls_context(authority.ca_file, None, None)) as made:
            assert (await post(made)).status == 200
        assert other.connections == 0


async def test_a_failing_proxy_is_not_a_failing_backend() -> None:
    """Told apart, because somebody else has to mend it."""
    async with ScriptedServer(always(Response(407))) as proxy:
        for target, address in (
            ("https://a.test", proxy.url),
            ("http://a.test", proxy.url),
            ("https://a.test", "http://127.0.0.1:1"),
        ):
            with poster(target, proxy=address) as made:
                assert (await post(made)).failure is Failure.PROXY


# --- its own ways ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Poster("ftp://h", {}, PLAIN_TLS), "does not begin with http"),
        (lambda: Poster("http://h", {"a b": "c"}, PLAIN_TLS), "not the name of a header"),
        (lambda: Poster("http://h", {"x-key": "a\r\nb: c"}, PLAIN_TLS), "not printable ASCII"),
        (lambda: Poster("http://h", {}, PLAIN_TLS, proxy="https://p"), "must begin with http://"),
    ],
)
def test_settings_that_cannot_work_are_refused(make: Callable[[], Poster], reason: str) -> None:
    """Before anything is sent, with the fix."""
    with pytest.raises(HttpProblem, match=reason) as caught:
        make()
    assert caught.value.hint or "header" in caught.value.reason


async def test_close_is_safe_and_final() -> None:
    """Twice, and before anything was sent; afterwards nothing is sent."""
    async with ScriptedServer() as server:
        with poster(server.url) as made:
            made.close()
            made.close()
            with pytest.raises(RuntimeError):
                made.post("/", b"", {}, timeout=1)
    assert server.connections == 0


def test_its_repr_shows_where_and_nothing_else() -> None:
    """Credentials stand in headers, and perhaps in a path."""
    with poster("https://intake.example.com/key/1234") as made:
        assert repr(made) == "Poster('https://intake.example.com')"


# --- what every HTTP backend means alike -------------------------------------------------------------------------


def page(status: int) -> Answer:
    return Answer(status, headers={"content-type": "text/html; charset=utf-8"})


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (Answer(failure=Failure.REFUSED, detail="d"), Retry("no answer from o: d")),
        (Answer(200, Failure.TIMEOUT, "d"), Retry("no answer from o: d, after HTTP 200")),
        (Answer(failure=Failure.TLS, detail="d"), Blocked("no answer from o: d")),
        (Answer(200, Failure.TOO_LARGE, "d"), Blocked("no answer from o: d, after HTTP 200")),
        (Answer(200), None),
    ],
)
def test_no_answer_passes_or_has_to_be_mended(answer: Answer, outcome: Retry | Blocked | None) -> None:
    """Networks come back by themselves; certificates do not."""
    assert failed(answer, "o") == outcome


@pytest.mark.parametrize(
    ("answer", "blocked"),
    [
        (Answer(302), True),
        (Answer(304), True),
        (Answer(401), True),
        (Answer(403), True),
        (Answer(404), True),
        (page(200), True),
        (page(400), True),
        (page(502), False),
        (Answer(200), False),
        (Answer(400), False),
        (Answer(413), False),
        (Answer(429), False),
        (Answer(503), False),
    ],
)
def test_somebody_else_answers(answer: Answer, blocked: bool) -> None:
    """Keys, paths, redirects and log-in pages are nothing that sending again would mend, nor the data's fault."""
    outcome = misled(answer, "o")
    assert isinstance(outcome, Blocked) is blocked
    assert outcome is None or outcome.reason.startswith("o ")
