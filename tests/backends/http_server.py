"""A scripted HTTP/1.1 server on a loopback socket, honest or not.

    async with ScriptedServer(lambda request: Response(body=b"hi")) as server:
        ...  # server.url, server.requests

A handler takes a request and gives an answer, at once or as an awaitable: a `Response`, or a script, which writes what
it likes to the connection, after which the connection is closed. `always(answer)` is a handler.
"""

import asyncio
import contextlib
import gzip
import inspect
import itertools
import socket
import ssl
import struct
import traceback
import zlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self


@dataclass(frozen=True)
class Request:
    """`path` is the target as it was sent, with its query; names of `headers` are lower case; `body` is as sent."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass(frozen=True)
class Response:
    """`content-length` is added unless `headers` has it (any name in lower case)."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    def encode(self) -> bytes:
        headers = {"content-length": str(len(self.body)), **self.headers}
        head = [f"HTTP/1.1 {self.status} Scripted", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join([*head, "", ""]).encode("latin-1") + self.body


Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Answer = Response | Script
Handler = Callable[[Request], Answer | Awaitable[Answer]]


def always(answer: Answer) -> Handler:
    return lambda _request: answer


def raw(data: bytes = b"") -> Script:
    """Just these bytes, then an orderly close."""
    return _parts(lambda: [data], 0.0)


def endless(first: bytes, part: bytes, *, every: float = 0.0) -> Script:
    """`first`, then `part` again and again, every `every` seconds, until the client goes away."""
    return _parts(lambda: itertools.chain([first], itertools.repeat(part)), every)


def drip(response: Response, *, every: float, step: int = 1) -> Script:
    """The response, `step` bytes every `every` seconds."""
    data = response.encode()
    return _parts(lambda: (data[at : at + step] for at in range(0, len(data), step)), every)


def _parts(parts: Callable[[], Iterable[bytes]], every: float) -> Script:
    async def script(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for part in parts():
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(every)

    return script


def hang(first: bytes = b"") -> Script:
    """`first`, then nothing until the client goes away."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(first)
        await writer.drain()
        while await reader.read(1024):
            pass

    return script


def reset(first: bytes = b"") -> Script:
    """`first`, then a TCP reset."""

    async def script(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(first)
        await writer.drain()
        await asyncio.sleep(0.05)  # a reset overtakes what the client has not read yet
        linger_zero = struct.pack("ii", 1, 0)
        with contextlib.suppress(OSError):  # the client has gone before
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_zero)
        writer.transport.abort()

    return script


def redirect(location: str, status: int = 307) -> Response:
    return Response(status, headers={"location": location})


def gzipped(body: bytes, *, status: int = 200, keep: int | None = None) -> Response:
    """A compressed response; with `keep` only so many bytes of it, under a content-length that agrees."""
    return Response(status, gzip.compress(body)[:keep], {"content-encoding": "gzip"})


def gzip_bomb(size: int) -> Response:
    """`size` zero bytes, about a thousandth of that on the wire, made without ever holding them."""
    compressor = zlib.compressobj(9, wbits=31)
    step = bytes(1 << 20)
    parts = [compressor.compress(step[: min(len(step), size - at)]) for at in range(0, size, len(step))]
    return Response(200, b"".join([*parts, compressor.flush()]), {"content-encoding": "gzip"})


class ScriptedServer:
    """The server; an async context manager. An exception out of a handler is raised again when the context ends."""

    def __init__(
        self,
        handler: Handler = always(Response()),  # noqa: B008 - keeps no state
        *,
        tls: ssl.SSLContext | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.handler = handler
        self.host = host
        self.port = port
        self.requests: list[Request] = []
        self.connections = 0  # accepted ever
        self._scheme = "https" if tls else "http"
        self._tls = tls
        self._errors: list[Exception] = []
        self._tasks: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self._scheme}://{host}:{self.port}"

    @property
    def open_connections(self) -> int:
        return len(self._tasks)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, self.host, self.port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
        if self._errors and error is None:
            raise self._errors[0]

    async def stop(self) -> None:
        """As if the process died: nothing listens, every connection is cut. Safe twice."""
        self._server.close()
        for task, writer in list(self._tasks.items()):
            writer.transport.abort()
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A plain function, so that asyncio leaves the task, and the errors in it, to us.
        self.connections += 1
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks[task] = writer
        task.add_done_callback(self._tasks.pop)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        gone = asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError, ssl.SSLError
        try:
            with contextlib.suppress(*gone):
                while await self._exchange(reader, writer):
                    pass
        except Exception as error:  # noqa: BLE001 - raised again at the end of the context
            traceback.print_exc()
            self._errors.append(error)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; whether the connection stays open."""
        request = await _read_request(reader)
        self.requests.append(request)
        answer = self.handler(request)
        if inspect.isawaitable(answer):
            answer = await answer
        if not isinstance(answer, Response):
            await answer(reader, writer)
            return False
        writer.write(answer.encode())
        await writer.drain()
        return "close" not in (request.headers.get("connection"), answer.headers.get("connection"))


async def _read_request(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    line, *fields = head.split("\r\n")
    method, path, _ = line.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in fields if each)}
    if headers.get("transfer-encoding", "").lower() == "chunked":
        body = await _read_chunks(reader)
    else:
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method, path, headers, body)


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readuntil(b"\r\n")
    return body
