"""Sockets for httpcore of which everything together ends at one deadline: lookup, connecting, TLS, every byte.

httpcore's own (1.0.9) take a time for each read and each write, so that a peer that drips or drinks slowly resets it
with every byte. A name lookup is the one thing that cannot be ended from this thread; the resolver's own limits hold.
"""

import select
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import httpcore

_CHUNK: Final = 256 * 1024  # bytes handed to one send; what a socket takes of them restarts no clock


class DeadlineBackend(httpcore.NetworkBackend):
    """`begin` sets the deadline of all that follows. The times that httpcore passes along are not used."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._until = 0.0

    def begin(self, seconds: float) -> None:
        self._until = self._monotonic() + seconds

    def left(self) -> float:
        """Seconds, always more than 0. Raises TimeoutError when there are none."""
        left = self._until - self._monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002 - httpcore's signature
        local_address: str | None = None,  # noqa: ARG002 - as above
        socket_options: Iterable[Any] | None = None,  # noqa: ARG002 - as above
    ) -> httpcore.NetworkStream:
        with _translated(httpcore.ConnectTimeout, httpcore.ConnectError):
            return _Stream(self._connect(host, port), self)

    def _connect(self, host: str, port: int) -> socket.socket:
        last: OSError | None = None
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            connection = socket.socket(family, kind, protocol)
            try:
                connection.settimeout(self.left())
                connection.connect(address)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as error:
                connection.close()
                if isinstance(error, TimeoutError):
                    raise
                last = error
            else:
                return connection
        raise last or OSError("the name has no address")


class _Stream(httpcore.NetworkStream):
    def __init__(self, connection: socket.socket, deadline: DeadlineBackend) -> None:
        self._socket = connection
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002 - httpcore's signature
        with _translated(httpcore.ReadTimeout, httpcore.ReadError):
            self._socket.settimeout(self._deadline.left())
            return self._socket.recv(max_bytes)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002 - httpcore's signature
        rest = memoryview(buffer)
        with _translated(httpcore.WriteTimeout, httpcore.WriteError):
            while rest:
                self._socket.settimeout(self._deadline.left())
                rest = rest[self._socket.send(rest[:_CHUNK]) :]

    def close(self) -> None:
        self._socket.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002 - httpcore's signature
    ) -> httpcore.NetworkStream:
        with _translated(httpcore.ConnectTimeout, httpcore.ConnectError):
            try:
                # The time of a handshake is one for all of it (CPython, Modules/_ssl.c).
                self._socket.settimeout(self._deadline.left())
                return _Stream(ssl_context.wrap_socket(self._socket, server_hostname=server_hostname), self._deadline)
            except BaseException:
                self.close()
                raise

    def get_extra_info(self, info: str) -> object:
        match info:
            case "is_readable":  # of an idle connection: the peer has closed it
                poller = select.poll()
                poller.register(self._socket, select.POLLIN)
                return bool(poller.poll(0))
            case "socket":
                return self._socket
            case _:  # "ssl_object" too: it tells of HTTP/2, which is never offered
                return None


@contextmanager
def _translated(late: type[Exception], failed: type[Exception]) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise late from error
    except (OSError, UnicodeError) as error:  # UnicodeError: a label of the host is too long to be looked up
        raise failed from error
