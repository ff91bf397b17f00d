"""What an exception out of httpx or httpcore means. The useful part is hidden: 'All connection attempts failed' is all
that httpx 0.28 says of refused and unreachable alike, and the OSError below it is one of a group when a name has two
addresses.
"""

import errno
import os
import socket
import ssl
from collections.abc import Iterator
from typing import Final

import httpcore

from forwarder.reply import Failure
from forwarder.threads import TooManyLookups

# By errno, what says most first: of a name with two addresses one may refuse while the other has no route.
_NETWORK: Final = {
    errno.ECONNREFUSED: (Failure.REFUSED, "nothing listens there"),
    errno.EHOSTUNREACH: (Failure.UNREACHABLE, "no route to the host"),
    errno.ENETUNREACH: (Failure.UNREACHABLE, "no route to the network"),
    errno.EHOSTDOWN: (Failure.UNREACHABLE, "the host is down"),
    errno.ENETDOWN: (Failure.UNREACHABLE, "the network is down"),
    errno.EADDRNOTAVAIL: (Failure.UNREACHABLE, "the address cannot be reached from here"),
    errno.EACCES: (Failure.UNREACHABLE, "a local rule forbids the connection"),
    errno.EPERM: (Failure.UNREACHABLE, "a local rule forbids the connection"),
    errno.ETIMEDOUT: (Failure.TIMEOUT, "no answer in time"),
    errno.ECONNRESET: (Failure.CONNECTION, "the peer reset the connection"),
    errno.EPIPE: (Failure.CONNECTION, "the peer reset the connection"),
}


class Failed(Exception):  # noqa: N818 - carries an outcome to where the Reply is made
    def __init__(self, failure: Failure, detail: str) -> None:
        super().__init__(detail)
        self.failure = failure
        self.detail = detail


def classify(error: Exception, handled: BaseException | None, *, proxied: bool) -> Failed:
    """The failure behind `error`, in our words. `handled` is an exception that the caller was handling already: Python
    chains it to every error raised meanwhile, and it is no cause of them.
    """
    causes = list(_causes(error, handled))
    own = _httpcore(causes)
    connecting = isinstance(own, httpcore.ConnectError)
    if detail := _tls_detail(causes, connecting=connecting):
        return Failed(Failure.TLS, detail)
    if isinstance(own, httpcore.ProxyError):
        status = str(own)[:3]
        return Failed(Failure.PROXY, f"it answered CONNECT with {status}" if status.isdigit() else "no tunnel")
    failed = _classify_network(causes, own)
    if connecting and proxied:  # then every connection is one to the forward proxy
        return Failed(Failure.PROXY, failed.detail)
    return failed


def unasked(error: Exception, handled: BaseException | None) -> TooManyLookups | None:
    """What of `error` tells that nobody was asked, for a reason that is the agent's own."""
    return next((cause for cause in _causes(error, handled) if isinstance(cause, TooManyLookups)), None)


def _httpcore(causes: list[BaseException]) -> BaseException:
    """The error of httpcore: what was raised, or what httpx raised its own of the same name from."""
    return next((cause for cause in causes[:2] if type(cause).__module__.startswith("httpcore")), causes[0])


def _classify_network(causes: list[BaseException], own: BaseException) -> Failed:
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return Failed(Failure.DNS, "the host name does not resolve")
    codes = {cause.errno for cause in causes if isinstance(cause, OSError) and cause.errno}
    for code, (failure, detail) in _NETWORK.items():
        if code in codes:
            return Failed(failure, detail)
    if codes:  # of our own, mostly: too many open files
        return Failed(Failure.CONNECTION, os.strerror(min(codes)).lower())
    return Failed(Failure.CONNECTION, _protocol_detail(own))


def _protocol_detail(error: BaseException) -> str:
    if isinstance(error, httpcore.NetworkError):
        return "the connection broke"
    if not isinstance(error, httpcore.ProtocolError):
        return f"unexpected {type(error).__name__}"
    closed = str(error).startswith(("Server disconnected", "peer closed connection"))  # httpcore's and h11's words
    return "the peer closed early" if closed else "the answer is not HTTP"


def _tls_detail(causes: list[BaseException], *, connecting: bool) -> str:
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            # OpenSSL's own words, except that it appends the host: "Hostname mismatch, certificate is not valid for"
            return f"certificate verify failed: {cause.verify_message.partition(',')[0]}"
    for cause in causes:
        # asyncio and anyio use the two Want errors as control flow, so they stand in the chain of unrelated errors.
        if isinstance(cause, ssl.SSLWantReadError | ssl.SSLWantWriteError) or not isinstance(cause, ssl.SSLError):
            continue
        if isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            if connecting:
                return "the peer closed during the handshake"
            continue
        if cause.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG"):
            return "the peer does not speak TLS"
        return (cause.reason or "handshake failed").replace("_", " ").lower()
    return ""


def _causes(error: BaseException, handled: BaseException | None) -> Iterator[BaseException]:
    """`error`, what it was raised from or during, and members of groups, nearest first, each once."""
    seen = {id(handled)}
    queue: list[BaseException | None] = [error]
    for each in queue:
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        queue += [each.__cause__, each.__context__]
        if isinstance(each, BaseExceptionGroup):
            queue += each.exceptions
