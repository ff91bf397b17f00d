"""What one bounded GET came to. Made by `forwarder.http`, read by `forwarder.normalize`."""

from dataclasses import dataclass, field
from enum import StrEnum


class Failure(StrEnum):
    """Why there is no complete reply. Values are the `error.type` of `litellm.probe.failure`."""

    TIMEOUT = "timeout"  # the total deadline passed, whatever trickled in before
    DNS = "dns"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"  # no route, network down
    TLS = "tls"
    CONNECTION = "connection"  # reset, closed early, not HTTP
    TOO_LARGE = "too_large"  # body over the cap, raw or decoded
    ENCODING = "encoding"  # a content-encoding that is damaged or that we did not ask for
    PROXY = "proxy"  # the configured forward proxy failed


@dataclass(frozen=True, slots=True)
class Reply:
    """`time` is ns UTC when the reply (or the failure) was complete; `elapsed` is seconds since the request began.

    `status` is None when no status line arrived; it may stand beside a `failure` (the body broke off).
    `body` is decoded; it is left out of repr because proxies put secrets in it. `detail` is one short clause for
    a log, made by us: no URL, no header, no text of the peer.
    """

    time: int
    elapsed: float
    status: int | None = None
    failure: Failure | None = None
    content_type: str = ""
    body: bytes = field(default=b"", repr=False)
    detail: str = ""
    retry_after: float | None = None
    same_origin_location: str | None = field(default=None, repr=False)
