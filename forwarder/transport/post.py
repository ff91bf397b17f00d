"""The bounded POST: one request, one deadline for all of it, no redirect, a cap on the answer.

    poster = Poster("https://otlp.example.com/otlp", {"Authorization": secret}, tls_context(None, None, None))
    answer = poster.post("/v1/metrics", body, {"content-type": "application/x-protobuf"}, timeout=10.0)

Whatever the network or the peer does comes back as an `Answer`. No environment variable is read (proxies, netrc, CA
files), no cookie kept, no URL logged. Synchronous: sinks are called in threads of their own.
"""

import ssl
import sys
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import httpcore

from forwarder.reply import Failure
from forwarder.secrets import Secret
from forwarder.transport.deadline import DeadlineBackend
from forwarder.transport.failures import Failed, classify
from forwarder.transport.headers import USER_AGENT, retry_after
from forwarder.transport.settings import HttpProblem, checked_headers, checked_url

MAX_ANSWER: Final = 64 * 1024  # bytes; a backend's answers are far smaller
_MAX_HEADER: Final = 1000  # characters of a header that we keep
# A request sent in the very moment in which the peer closes an idle connection fails, and is sent again later.
_KEEP_ALIVE: Final = 4.0  # seconds; nobody was seen to close sooner


@dataclass(frozen=True, slots=True)
class Answer:
    """What one POST came to. `status` is None when no status line arrived; it may stand beside a `failure`.

    `headers` have lower-case names and are printable; `body` is decoded. Neither is in the repr, because a peer may
    echo what it was sent. `detail` is one clause for an operator, made by us: no URL, no text of the peer.
    `retry_after` is in seconds.
    """

    status: int | None = None
    failure: Failure | None = None
    detail: str = ""
    retry_after: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)

    @property
    def content_type(self) -> str:
        """Without parameters, in lower case: `application/json`."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


class Poster:
    """POSTs to one origin. The constructor does no I/O; one thread at a time uses it; `close` it in the end.

    `url` is scheme, host, port and perhaps a path prefix. `headers`, the key among them, go to that origin only (for
    an http:// one `proxy` reads them too). `max_answer` is in bytes, as sent and as decoded. `clock` gives ns UTC,
    `monotonic` seconds. Raises HttpProblem for settings that no request can be made from.
    """

    def __init__(  # noqa: PLR0913 - settings, told by name
        self,
        url: str,
        headers: Mapping[str, Secret | str],
        context: ssl.SSLContext,
        *,
        proxy: str | None = None,
        max_answer: int = MAX_ANSWER,
        clock: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        base = checked_url(url, "URL")
        self.origin: Final = f"{base.scheme}://{base.netloc.decode('ascii')}"  # for messages: no path, no credentials
        self._prefix = base.path.rstrip("/")
        self._url = httpcore.URL(
            scheme=base.scheme.encode(), host=base.raw_host, port=base.port, target=self._prefix.encode() or b"/"
        )
        self._headers = {
            "host": base.netloc.decode("ascii"),
            "user-agent": USER_AGENT,
            "accept-encoding": "identity",
            **checked_headers(headers),
        }
        self._max_answer = max_answer
        self._clock = clock
        self._proxied = proxy is not None
        self._backend = DeadlineBackend(monotonic)
        self._pool = self._make_pool(context, proxy)
        self._closed = False

    def __repr__(self) -> str:
        return f"Poster({self.origin!r})"

    def _make_pool(self, context: ssl.SSLContext, proxy: str | None) -> httpcore.ConnectionPool:
        if proxy is None:
            return httpcore.ConnectionPool(
                ssl_context=context, max_connections=1, keepalive_expiry=_KEEP_ALIVE, network_backend=self._backend
            )
        through = checked_url(proxy, "proxy URL")
        if through.scheme != "http":
            raise HttpProblem(
                "a forward proxy must begin with http://", "what goes to https:// is encrypted in it too"
            )
        return httpcore.HTTPProxy(
            proxy_url=httpcore.URL(scheme=b"http", host=through.raw_host, port=through.port or 80, target=b"/"),
            ssl_context=context,
            max_connections=1,
            keepalive_expiry=_KEEP_ALIVE,
            network_backend=self._backend,
        )

    def close(self) -> None:
        """Close the connection. Safe twice."""
        self._closed = True
        self._pool.close()

    def post(self, path: str, body: bytes, headers: Mapping[str, str], *, timeout: float) -> Answer:
        """POST `body` to URL + `path` once, within `timeout` seconds for everything. A redirect is an Answer with its
        status. Raises RuntimeError after `close`.
        """
        if self._closed:
            raise RuntimeError("post after close")
        self._backend.begin(timeout)
        handled = sys.exception()
        seen: list[httpcore.Response] = []
        try:
            return self._exchange(path, body, headers, seen)
        except httpcore.TimeoutException:
            failed = Failed(Failure.TIMEOUT, "the answer was not complete in time" if seen else "no answer in time")
        except Failed as error:
            failed = error
        except Exception as error:  # noqa: BLE001 - whatever a peer makes the library raise, it is a failed request
            failed = classify(error, handled, proxied=self._proxied)
        status = seen[0].status if seen else None
        return Answer(status, failed.failure, failed.detail)

    def _exchange(self, path: str, body: bytes, headers: Mapping[str, str], seen: list[httpcore.Response]) -> Answer:
        request = httpcore.Request(
            "POST",
            httpcore.URL(
                scheme=self._url.scheme,
                host=self._url.host,
                port=self._url.port,
                target=(self._prefix + path).encode("ascii") or b"/",
            ),
            headers=list({**self._headers, **headers, "content-length": str(len(body))}.items()),
            content=body,
        )
        response = self._pool.handle_request(request)
        try:
            if not 200 <= response.status <= 599:
                raise Failed(Failure.CONNECTION, "the status is none of HTTP's")
            seen.append(response)
            if self._proxied and response.status == 407:
                raise Failed(Failure.PROXY, "it wants credentials")
            found = {
                name.decode("latin-1").lower(): "".join(filter(str.isprintable, value.decode("latin-1")[:_MAX_HEADER]))
                for name, value in response.headers
            }
            return Answer(
                response.status,
                retry_after=retry_after(found.get("retry-after", ""), self._clock()),
                headers=found,
                body=self._read(response, found.get("content-encoding", "")),
            )
        finally:
            response.close()  # with anything left unread this closes the connection

    def _read(self, response: httpcore.Response, encoding: str) -> bytes:
        raw = bytearray()
        for chunk in response.iter_stream():
            raw += chunk
            if len(raw) > self._max_answer:
                raise Failed(Failure.TOO_LARGE, f"the answer is over {self._max_answer} bytes")
        encoding = encoding.strip().lower()
        if encoding in ("", "identity") or not raw:
            return bytes(raw)
        # Not asked for; but to lose a delivery over it would be to send it again for ever.
        if encoding not in ("gzip", "x-gzip"):
            raise Failed(Failure.ENCODING, "a content-encoding that was not asked for")
        decoder = zlib.decompressobj(31)
        try:
            body = decoder.decompress(bytes(raw), self._max_answer)
        except zlib.error:
            raise Failed(Failure.ENCODING, "the compressed answer is damaged") from None
        if decoder.unconsumed_tail:
            raise Failed(Failure.TOO_LARGE, f"the answer is over {self._max_answer} bytes")
        if not decoder.eof:
            raise Failed(Failure.ENCODING, "the compressed answer is cut off")
        return body
