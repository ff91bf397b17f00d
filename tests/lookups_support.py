"""A name server that does not answer until it is told to."""

import socket
import threading
from typing import Any

import pytest


class Resolver:
    """In the place of `socket.getaddrinfo`. Names that end in `.slow.test` hang; then every name is 127.0.0.1."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.answer = threading.Event()
        self.error: OSError | None = None
        lookup = self._lookup  # one object: a method is another one each time that it is named
        monkeypatch.setattr(socket, "getaddrinfo", lookup)

    def _lookup(self, host: str | bytes, port: int, *_: Any, **__: Any) -> list[Any]:
        name = host.decode() if isinstance(host, bytes) else host
        self.asked.append(name)
        if name.endswith(".slow.test"):
            assert self.answer.wait(60)
        if self.error:
            raise self.error
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]
