"""New Relic's SDK over our own bounded POST.

The SDK makes the payload and the headers; what it would do with them is done better elsewhere. Left to itself
(newrelic-telemetry-sdk 0.9.0) it

- waits for ever without a `timeout`, and with one waits that long for every read anew;
- reads an answer of any size, and decompresses it;
- gives each request an id of its own, also the same one sent again;
- goes through the proxy of `HTTPS_PROXY`, whatever `NO_PROXY` says, and fails to start over one that it cannot parse;
- speaks TLS to a bare host name only, so that no relay on this machine can be reached.

`POOL_CLS` is its own place to put something else where urllib3's pool of connections would be.
"""

import hashlib
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Final

from newrelic_telemetry_sdk import EventClient, MetricClient
from urllib3 import HTTPResponse

from forwarder.events import Attributes
from forwarder.secrets import Secret
from forwarder.transport.headers import USER_AGENT
from forwarder.transport.post import Answer, Poster


class Channel:
    """One of New Relic's addresses, and the pool that the SDK's client for it sends through."""

    def __init__(self, client: type["_Metrics | _Events"], key: Secret, poster: Poster) -> None:
        self.headers: dict[str, str] = {}
        self.poster: Final = poster
        self._answer = Answer()
        # The poster reads what is not compressed; the SDK would ask for compression.
        self._client = client(key.reveal(), channel=self, headers={"accept-encoding": "identity"})
        self._client.add_version_info(*USER_AGENT.split("/"))

    def send(self, items: Sequence[dict[str, Any]], common: Attributes, *, timeout: float) -> Answer:
        """One request. `common` are attributes of all items; events have none."""
        self._client.send_batch(items, **({"common": {"attributes": common}} if common else {}), timeout=timeout)
        return self._answer

    def urlopen(
        self, _method: str, path: str, *, body: bytes, headers: Mapping[str, str], timeout: float
    ) -> HTTPResponse:
        """What the SDK calls. It is told the status only, since it looks at nothing."""
        # An id belongs to a payload: the same bytes sent again are the same request (New Relic's specification of
        # telemetry SDKs). It has to look like a random one.
        request_id = uuid.UUID(bytes=hashlib.sha256(body).digest()[:16], version=4)
        self._answer = self.poster.post(path, body, {**headers, "x-request-id": str(request_id)}, timeout=timeout)
        return HTTPResponse(status=self._answer.status or 0)

    def close(self) -> None:
        self.poster.close()


def metrics(key: Secret, poster: Poster) -> Channel:
    return Channel(_Metrics, key, poster)


def events(key: Secret, poster: Poster) -> Channel:
    return Channel(_Events, key, poster)


def _given(*, channel: Channel, headers: dict[str, str], **_of_urllib3: object) -> Channel:
    channel.headers = headers
    return channel


class _OverPoster:
    """Goes before the SDK's client in the order of bases."""

    POOL_CLS = staticmethod(_given)

    def _parse_proxy_settings(self, _of_urllib3: object = None) -> tuple[None, None]:
        return None, None  # the poster knows the proxy


class _Metrics(_OverPoster, MetricClient):  # type: ignore[misc]  # the SDK has no types
    pass


class _Events(_OverPoster, EventClient):  # type: ignore[misc]  # as above
    pass
