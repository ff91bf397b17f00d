"""The GET itself. Whatever the network or the peer does comes back as a `Reply`.

It goes through httpx's transport rather than its client: there a `Set-Cookie` cannot fill a cookie jar, no `Location`
is parsed before the status is known, no environment is read and no URL is logged (httpx 0.28.1), so that none of it
has to be switched off. httpx has no total deadline (each byte of a slow drip resets its timeouts): asyncio's is used.
"""

import asyncio
import ssl
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import httpcore
import httpx

from forwarder.http.body import read_body
from forwarder.http.endpoints import ForbiddenEndpoint, allowed
from forwarder.http.settings import checked_base, checked_proxy
from forwarder.reply import Failure, Reply
from forwarder.secrets import Secret
from forwarder.transport.failures import Failed, classify, unasked
from forwarder.transport.headers import USER_AGENT, retry_after
from forwarder.transport.settings import checked_headers

_MAX_HEADER: Final = 1000  # characters of a header that we keep

# uvicorn closes an idle connection after 5 s, gunicorn after 2 s. A request sent in that very moment fails as if the
# proxy were down, and repeating it could cost money (/health): so only a connection that was just used is used again.
_LIMITS: Final = httpx.Limits(max_connections=8, max_keepalive_connections=4, keepalive_expiry=1.0)


@dataclass(slots=True)
class _Partial:
    """What is known so far, so that a failure keeps the status."""

    status: int | None = None
    content_type: str = ""
    retry_after: float | None = None
    location: str | None = None
    body: bytes = b""


class _Opened:
    """The connection that a request opened. httpcore 1.0.9 forgets it when the request is cancelled, as our deadline
    does, in the middle of the TLS handshake: then the socket stays open until it is garbage.
    """

    def __init__(self) -> None:
        self._stream: httpcore.AsyncNetworkStream | None = None

    async def trace(self, event: str, info: dict[str, object]) -> None:
        """Given to httpcore, which calls it at every step of a request."""
        stream = info.get("return_value")
        if event == "connection.connect_tcp.complete" and isinstance(stream, httpcore.AsyncNetworkStream):
            self._stream = stream

    async def close(self) -> None:
        if self._stream is not None:
            await self._stream.aclose()


class Client:
    """GETs for one target. The constructor does no I/O; one event loop uses it; `close` it in the end.

    `base_url` is scheme, host, port and perhaps a path prefix. `headers`, the key among them, go to that origin only
    (for an http:// one `proxy` reads them too). `max_body` is in bytes and holds for the body as sent and as decoded.
    `clock` gives ns UTC, `monotonic` seconds. Raises HttpProblem for settings that no request can be made from.
    """

    def __init__(  # noqa: PLR0913 - settings, told by name
        self,
        base_url: str,
        headers: Mapping[str, Secret | str],
        context: ssl.SSLContext,
        *,
        max_body: int,
        proxy: Secret | str | None = None,
        clock: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._base = checked_base(base_url)
        self._prefix = self._base.path.rstrip("/")
        self._headers = {"user-agent": USER_AGENT, **checked_headers(headers), "accept-encoding": "gzip"}
        self._max_body = max_body
        self._clock = clock
        self._monotonic = monotonic
        self._proxied = proxy is not None
        self._closed = False
        self._transport = httpx.AsyncHTTPTransport(
            verify=context,
            trust_env=False,
            limits=_LIMITS,
            proxy=None if proxy is None else checked_proxy(proxy, context),
        )

    def __repr__(self) -> str:
        return f"Client({str(self._base)!r})"

    async def close(self) -> None:
        """Close every connection. Safe twice."""
        self._closed = True
        await self._transport.aclose()

    async def get(
        self, path: str, *, timeout: float, accept: str = "application/json", max_body: int | None = None
    ) -> Reply:
        """GET base URL + `path` once, within `timeout` seconds for everything: DNS, connecting, TLS, the last byte.

        `path` begins with a slash and may have a query. What goes wrong outside is a Reply with `failure` and no body.
        A redirect is a Reply with its status; if it leads to this origin and below the prefix of the base URL,
        `same_origin_location` is a path for another `get`. Raises ForbiddenEndpoint before any connection is made,
        TooManyLookups when the name of the host could not even be looked up, and RuntimeError after `close`.
        """
        target = self._prefix + path
        if not path.startswith("/") or not allowed(target):
            raise ForbiddenEndpoint(f"{path!r} has side effects, or is not plain enough to tell")
        if self._closed:
            raise RuntimeError("get after close")
        url = self._base.copy_with(raw_path=target.encode("ascii"))
        request = httpx.Request("GET", url, headers={**self._headers, "accept": accept})
        partial = _Partial()
        failed: Failed | None = None
        handled = sys.exception()
        started = self._monotonic()
        try:
            async with asyncio.timeout(timeout):
                await self._read(request, partial, self._max_body if max_body is None else max_body)
        except TimeoutError:
            late = "no answer in time" if partial.status is None else "the answer was not complete in time"
            failed = Failed(Failure.TIMEOUT, late)
        except Failed as error:
            failed = error
        except Exception as error:  # noqa: BLE001 - whatever a peer makes the libraries raise, it is a failed request
            if reason := unasked(error, handled):
                raise reason from None
            failed = classify(error, handled, proxied=self._proxied)
        return Reply(
            time=self._clock(),
            elapsed=self._monotonic() - started,
            status=partial.status,
            failure=failed.failure if failed else None,
            content_type=partial.content_type,
            body=b"" if failed else partial.body,
            detail=failed.detail if failed else "",
            retry_after=partial.retry_after,
            same_origin_location=partial.location,
        )

    async def _read(self, request: httpx.Request, partial: _Partial, limit: int) -> None:
        opened = _Opened()
        request.extensions["trace"] = opened.trace
        try:
            response = await self._transport.handle_async_request(request)
        except BaseException:
            await opened.close()
            raise
        try:
            if not 200 <= response.status_code <= 599:
                raise Failed(Failure.CONNECTION, "the status is none of HTTP's")
            headers = response.headers
            partial.status = response.status_code
            partial.content_type = "".join(filter(str.isprintable, headers.get("content-type", "")[:_MAX_HEADER]))
            partial.retry_after = retry_after(headers.get("retry-after", ""), self._clock())
            if response.status_code in (301, 302, 303, 307, 308):
                partial.location = self._same_origin(request.url, headers.get("location", ""))
            if self._proxied and response.status_code == 407:
                raise Failed(Failure.PROXY, "it wants credentials")
            length = headers.get("content-length", "")
            if length.isdigit() and int(length) > limit:
                raise Failed(Failure.TOO_LARGE, f"the body is over {limit} bytes")
            partial.body = await read_body(response.aiter_raw(), headers.get("content-encoding", ""), limit)
        finally:
            await response.aclose()  # with anything left unread this closes the connection

    def _same_origin(self, asked: httpx.URL, location: str) -> str | None:
        """The path of a redirect as `get` takes it, without its query; None if it leads anywhere else."""
        if not location or len(location) > _MAX_HEADER:
            return None
        try:
            url = asked.join(location)
            path = url.raw_path.decode("ascii").partition("?")[0]
        except (httpx.InvalidURL, ValueError):
            return None
        if _origin(url) != _origin(asked) or url.userinfo:
            return None
        if not path.startswith(self._prefix + "/") or not allowed(path):
            return None
        return path.removeprefix(self._prefix)


def _origin(url: httpx.URL) -> tuple[str, bytes, int | None]:
    return url.scheme, url.raw_host, url.port or {"http": 80, "https": 443}.get(url.scheme)
