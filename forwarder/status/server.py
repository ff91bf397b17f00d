"""The HTTP server of the status pages, in the agent's own loop.

It serves whoever can reach its address, without a password: so it listens on loopback unless told otherwise, answers
GET and HEAD alone, and shows nothing that is secret. On loopback a `Host` that is not loopback's is refused, or else
a web page could read it through the visitor's browser (DNS rebinding). Each connection is for one request and has a
time limit, and there are so many at most: who opens connections and says nothing makes way for who comes. A page is
made once for a view, however many ask for it, and in a thread: large ones would hold up the polls.

An address that is taken is told and tried again; it does not end the agent, whose work does not need the page.
"""

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final, Protocol

import h11
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from forwarder.config_values import Address
from forwarder.logs import fields
from forwarder.status import exposition
from forwarder.status.page import Page
from forwarder.status.view import SERVICE, View, encode

log = logging.getLogger(__name__)

AGAIN: Final = 30.0  # seconds between attempts to listen
PER_CONNECTION: Final = 15.0  # seconds
MOST: Final = 64  # requests for pages at a time; more are answered 503
CONNECTIONS: Final = 2 * MOST
HEAD: Final = 16 * 1024  # bytes of a request's head
LOCAL: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
HEADERS: Final = (
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cache-Control", "no-store"),
    ("Connection", "close"),
)
PROBES: Final = frozenset({"/healthz", "/readyz"})  # answered also while pages are not
# For what is no page: nothing in it may be run, shown in a frame or fetched.
NOTHING: Final = "default-src 'none'; frame-ancestors 'none'"


class Shown(Protocol):
    """What is shown; `forwarder.status.board.Board` is it."""

    @property
    def state_folder(self) -> str: ...
    async def view(self) -> View: ...
    async def metrics(self) -> str: ...
    def dead(self) -> str | None: ...
    def not_ready(self) -> list[str]: ...


def app(board: Shown, *, loopback: bool) -> ASGIApp:
    """The pages of a board. `loopback`: requests with a foreign Host are refused."""
    page = Page()
    main, whole, json = _Rendered(page.main), _Rendered(page.whole), _Rendered(encode)

    async def index(request: Request) -> Response:
        rendered = main if "main" in request.query_params else whole
        body = await rendered.of(await board.view())
        return Response(body, media_type="text/html", headers={"Content-Security-Policy": page.policy})

    async def status(_request: Request) -> Response:
        return Response(await json.of(await board.view()), media_type="application/json")

    async def metrics(_request: Request) -> Response:
        return Response(await board.metrics(), headers={"Content-Type": exposition.CONTENT_TYPE})

    async def healthz(_request: Request) -> Response:
        return _verdict([reason] if (reason := board.dead()) else [], board.state_folder)

    async def readyz(_request: Request) -> Response:
        return _verdict(board.not_ready(), board.state_folder)

    async def bug(request: Request, error: Exception) -> Response:
        log.error("bug in the status server", exc_info=error, extra=fields(path=request.url.path))
        return PlainTextResponse("a bug in litellm-forwarder; its log says more\n", 500)

    routes = [
        Route("/", index),
        Route("/api/status", status),
        Route("/metrics", metrics),
        Route("/healthz", healthz),
        Route("/readyz", readyz),
    ]
    return _Guard(Starlette(routes=routes, exception_handlers={Exception: bug}), loopback=loopback)


class _Rendered:
    """What was made last, as long as the view is the same: the board gives a view again for a second."""

    def __init__(self, render: Callable[[View], str | bytes]) -> None:
        self._render = render
        self._lock = asyncio.Lock()
        self._view: View | None = None
        self._body: str | bytes = b""

    async def of(self, view: View) -> str | bytes:
        async with self._lock:
            if view is not self._view:
                self._body = await asyncio.to_thread(self._render, view)
                self._view = view
            return self._body


def _verdict(problems: list[str], state_folder: str) -> Response:
    said = {"service": SERVICE, "status": "fail" if problems else "ok", "problems": problems}
    return JSONResponse({**said, "state_folder": state_folder}, 503 if problems else 200)


class _Guard:
    """Who may ask, and the headers of every answer."""

    def __init__(self, inner: ASGIApp, *, loopback: bool) -> None:
        self._inner = inner
        self._loopback = loopback
        self._busy = 0  # requests for pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                more = [*HEADERS, ("Content-Security-Policy", NOTHING)]
                message["headers"] = [
                    *message["headers"],
                    *((n.lower().encode(), v.encode()) for n, v in more if n.lower().encode() not in present),
                ]
            # Whoever sent what is no HTTP after its request has been answered 400 already: that is no bug.
            try:
                await send(message)
            except h11.LocalProtocolError:
                while (await receive())["type"] != "http.disconnect":
                    pass

        if self._loopback and not self._local(scope):
            text = (
                "this status page answers to localhost and 127.0.0.1 only; see `agent.listen` in the configuration\n"
            )
            await PlainTextResponse(text, 421)(scope, receive, with_headers)
            return
        if scope["path"] in PROBES:
            await self._inner(scope, receive, with_headers)
            return
        if self._busy >= MOST:
            await PlainTextResponse("too many ask at once; come again\n", 503)(scope, receive, with_headers)
            return
        self._busy += 1
        try:
            await self._inner(scope, receive, with_headers)
        finally:
            self._busy -= 1

    @staticmethod
    def _local(scope: Scope) -> bool:
        """Any port: it may have been forwarded."""
        host = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")
        bare = host if host.endswith("]") else host.rpartition(":")[0] or host
        if bare.lower().rstrip(".") in LOCAL:
            return True
        try:
            return ipaddress.ip_address(bare.strip("[]")).is_loopback
        except ValueError:
            return False


class _Connection(H11Protocol):
    """One request, within PER_CONNECTION seconds. uvicorn 0.54 waits for ever for the head of the first request."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in uvicorn
        super().connection_made(transport)
        self.limit = self.loop.call_later(PER_CONNECTION, transport.abort)
        if len(self.connections) > CONNECTIONS:  # each takes one of the files that polls and sends need
            # Who has not asked yet, else whose answer only waits to be read.
            others = [each for each in self.connections if isinstance(each, _Connection) and each is not self]
            idle = [each for each in others if each.cycle is None or each.cycle.response_complete]
            oldest = min(idle, key=lambda each: (each.cycle is not None, each.limit.when()), default=self)
            self.connections.discard(oldest)  # as is done when it is lost, but many may come before that
            oldest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.limit.cancel()
        super().connection_lost(exc)


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """They are the agent's."""
        yield


class StatusServer:
    """`run` listens and serves until it is cancelled. `url` is where, once `up` is set."""

    def __init__(self, address: Address, board: Shown) -> None:
        self.address = address
        self.url = ""
        self.up: Final = asyncio.Event()
        self._board = board

    async def run(self, sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep) -> None:
        """Serve until cancelled. Never raises for what the network does."""
        if not self.address.loopback:
            log.warning(
                "the status page is open to whoever reaches its address: it has no password",
                extra=fields(listen=self.address),
            )
        listening = await self._listen(sleep)
        config = uvicorn.Config(
            app(self._board, loopback=self.address.loopback),
            http=_Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            backlog=MOST // 2,  # asyncio accepts so many before it reads from any: they must not push out one another
            h11_max_incomplete_event_size=HEAD,
            timeout_graceful_shutdown=1,
        )
        server = _Server(config)
        serving = asyncio.create_task(server.serve([listening]))
        try:
            await asyncio.shield(serving)
        finally:
            self.up.clear()
            server.should_exit = True
            await serving

    async def _listen(self, sleep: Callable[[float], Awaitable[Any]]) -> socket.socket:
        told = ""
        while True:
            try:
                listening = self._bind()
            except OSError as error:
                reason = error.strerror or type(error).__name__
                if reason != told:
                    log.error(  # noqa: TRY400 - said
                        "no status page: its address cannot be used; trying again. Stop what listens there, or set "
                        'agent.listen to another address, or to "off"',
                        extra=fields(listen=self.address, reason=reason),
                    )
                told = reason
                await sleep(AGAIN)
            else:
                self.url = Address(self.address.host, listening.getsockname()[1]).url
                self.up.set()
                log.info("status page", extra=fields(url=self.url))
                return listening

    def _bind(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self.address.host else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a restart need not wait for TIME_WAIT
            listening.bind((self.address.host, self.address.port))
            listening.listen(MOST)
            listening.setblocking(False)
        except OSError:
            listening.close()
            raise
        return listening
