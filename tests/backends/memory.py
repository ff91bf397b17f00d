"""Peers of httpcore without a socket, for fuzzing: they swallow what is sent and answer fixed bytes, then close."""

from collections.abc import Iterable
from typing import Any

import httpcore


class Memory(httpcore.NetworkBackend):
    def __init__(self, data: bytes) -> None:
        self._data = data

    def begin(self, seconds: float) -> None:
        """No deadline: nothing here waits."""

    def connect_tcp(
        self,
        host: str,  # noqa: ARG002 - httpcore's signature, here and below
        port: int,  # noqa: ARG002
        timeout: float | None = None,  # noqa: ARG002
        local_address: str | None = None,  # noqa: ARG002
        socket_options: Iterable[Any] | None = None,  # noqa: ARG002
    ) -> httpcore.NetworkStream:
        return httpcore.MockStream([self._data])


class AsyncMemory(httpcore.AsyncNetworkBackend):
    def __init__(self, data: bytes) -> None:
        self._data = data

    async def connect_tcp(
        self,
        host: str,  # noqa: ARG002
        port: int,  # noqa: ARG002
        timeout: float | None = None,  # noqa: ARG002
        local_address: str | None = None,  # noqa: ARG002
        socket_options: Iterable[Any] | None = None,  # noqa: ARG002
    ) -> httpcore.AsyncNetworkStream:
        return httpcore.AsyncMockStream([self._data])
