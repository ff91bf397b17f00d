"""The status server, with a board that a test fills or of a running agent, and a client that reads one answer a
connection.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from typing import Any

import status_views as views
from program import Running

from forwarder.config_values import Address
from forwarder.status.server import StatusServer
from forwarder.status.view import View, decode


class Board:
    """Shows what a test puts into it."""

    def __init__(self) -> None:
        self.shown: View | Exception = views.troubled()
        self.problem: str | None = None
        self.waiting: list[str] = []
        self.views = 0  # given
        self.state_folder = ""

    async def view(self) -> View:
        self.views += 1
        if isinstance(self.shown, Exception):
            raise self.shown
        return self.shown

    async def metrics(self) -> str:
        return "# TYPE up gauge\nup 1.0\n"

    def dead(self) -> str | None:
        return self.problem

    def not_ready(self) -> list[str]:
        return self.waiting


class Answer:
    def __init__(self, data: bytes) -> None:
        head, _, self.body = data.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        self.status = int(lines[0].split()[1])
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}


class Site:
    def __init__(self, board: Board, port: int) -> None:
        self.board, self.port = board, port
        self.url = f"http://127.0.0.1:{port}/"

    async def send(self, data: bytes) -> Answer:
        """Send bytes, read until the server closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            return Answer(await reader.read())
        finally:
            writer.close()

    async def get(self, path: str, *, host: str = "localhost:1", method: str = "GET") -> Answer:
        return await self.send(f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())


@contextlib.asynccontextmanager
async def serving(address: Address, board: Board) -> AsyncIterator[Site]:
    server = StatusServer(address, board)
    running = asyncio.create_task(server.run())
    try:
        await server.up.wait()
        yield Site(board, int(server.url.rpartition(":")[2]))
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


# --- of a running agent ---------------------------------------------------------------------------------------------


async def site_of(running: Running) -> Site:
    """Where the agent serves, by its log."""
    await running.until(lambda: "status page" in running.err())
    found = re.search(r"status page url=http://127\.0\.0\.1:(\d+)", running.err())
    assert found
    return Site(Board(), int(found[1]))


async def view_of(site: Site) -> View:
    return decode((await site.get("/api/status")).body)


async def until(running: Running, site: Site, wanted: Any) -> View:
    """The first view for which `wanted` is true."""
    last = None
    for _ in range(300):
        last = await view_of(site)
        if wanted(last):
            return last
        await asyncio.sleep(0.1)
    raise AssertionError(f"never came true; {last and last.summary}; log:\n{running.err()}")
