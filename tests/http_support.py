"""What the tests of the bounded GET share: a client with a canary key, and waiting without guessing."""

import asyncio
import contextlib
import gc
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path

import pytest

from forwarder.http import Client
from forwarder.reply import Reply
from forwarder.secrets import Secret
from forwarder.transport import tls_context

KEY = "sk-CANARY-1234"
MIB = 1 << 20
PLAIN_TLS = tls_context(None, None, None)
NOW = 1_795_000_000_000_000_000  # ns; 2026-11-18


def client_for(url: str, context: ssl.SSLContext = PLAIN_TLS, *, proxy: str | None = None) -> Client:
    headers: dict[str, Secret | str] = {"Authorization": Secret(f"Bearer {KEY}"), "x-team": "a"}
    return Client(url, headers, context, max_body=MIB, proxy=proxy)


async def ended(reply: Coroutine[None, None, Reply]) -> Reply:
    """What a get came to; a deadline that is not kept fails the test instead of hanging it."""
    async with asyncio.timeout(20):
        return await reply


async def get(url: str, path: str = "/health", *, timeout: float = 5.0, context: ssl.SSLContext = PLAIN_TLS) -> Reply:
    client = client_for(url, context)
    try:
        return await ended(client.get(path, timeout=timeout))
    finally:
        await client.close()


@contextlib.contextmanager
def nobody() -> Iterator[str]:
    """A URL where nothing listens, and where nothing else can begin to meanwhile."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


@pytest.fixture
async def nothing_left_unclosed() -> AsyncIterator[None]:
    """An unclosed socket warns when it is collected; make that happen in the test that left it."""
    yield
    await asyncio.sleep(0)  # transports that were aborted close in the loop's next round
    gc.collect()


def open_files() -> int:
    return sum(1 for _ in Path("/dev/fd").iterdir())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in the kernel and in libraries
            await asyncio.sleep(0.01)
