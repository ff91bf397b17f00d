"""OTLP/HTTP with binary protobuf: one POST to /v1/metrics or /v1/logs for each call.

What an answer comes to (the retry table is that of the OTLP specification, and docs/adr/0009 says where we leave it):

    200, 202, 204 with a response message or nothing   Delivered, less what `partial_success` refuses
    408, 429, 502, 503, 504, no answer                 Retry, after Retry-After
    413                                                Rejected: the pump sends half of it
    400, 409, 422, 500 that speak of an event's time   Rejected(too_old)
    400, 422                                           Rejected
    everything else                                    Blocked: a key, a URL or a gateway is wrong, or broken
"""

import gzip
import time
from collections.abc import Callable, Sequence
from typing import Final

from forwarder.events import Batch
from forwarder.sinks.base import Blocked, Delivered, Limits, Outcome, Rejected, Retry
from forwarder.sinks.http import failed, misled
from forwarder.sinks.otlp.encode import MAX_REQUEST, Cache, Request, encode
from forwarder.sinks.otlp.replies import Verdict, about_time, code, parsed
from forwarder.transport.post import Answer, Poster

# Level 3 takes a quarter of level 6's time and leaves a tenth more (10 MB of points, zlib 1.2.13).
_LEVEL: Final = 3
_PROTOBUF: Final = "application/x-protobuf"
_TAKEN: Final = frozenset({200, 202, 204})  # 204: Loki
_LATER: Final = frozenset({408, 429, 502, 503, 504})
_UNDERSTOOD: Final = frozenset({400, 422})
_SPEAKING: Final = frozenset({400, 409, 422, 500})  # 409: Thanos; 500: Prometheus, of a "too old sample"
_HEADERS: Final = {"content-type": _PROTOBUF, "accept": _PROTOBUF}


class OtlpHttp:
    def __init__(  # noqa: PLR0913 - settings, told by name
        self,
        name: str,
        poster: Poster,
        instance: Callable[[], str],
        *,
        compress: bool = True,
        changes: bool = True,
        max_age: float | None = None,
        max_bytes: int = MAX_REQUEST,
    ) -> None:
        """`instance` is asked with each send which agent this is. `max_age` is in seconds, `max_bytes` before
        compression.
        """
        self.name: Final = name
        # A point is longer in OTLP than in the spool: so much of it makes about one request.
        self.limits: Final = Limits(max_events=10_000, max_bytes=max_bytes // 2, max_age=max_age)
        self._poster = poster
        self._instance = instance
        self._compress = compress
        self._changes = changes
        self._max_bytes = max_bytes
        self._cache = Cache()
        self._verdict = Verdict(name)

    def __repr__(self) -> str:
        return f"OtlpHttp({self.name!r}, {self._poster.origin!r})"

    def send(self, batches: Sequence[Batch], *, timeout: float) -> Outcome:
        started = time.monotonic()
        request = encode(batches, self._instance(), self._cache, changes=self._changes, max_bytes=self._max_bytes)
        given = sum(len(batch.events) for batch in batches)
        events = None if request.events == given else request.events
        if not request.sent:
            return Delivered(events=events)
        headers, body = _HEADERS, request.data
        if self._compress:
            headers, body = {**_HEADERS, "content-encoding": "gzip"}, gzip.compress(body, _LEVEL, mtime=0)
        left = max(0.001, timeout - (time.monotonic() - started))
        answer = self._poster.post(f"/v1/{request.signal}", body, headers, timeout=left)
        return self._outcome(request, answer, events)

    def close(self) -> None:
        self._poster.close()

    def _outcome(self, request: Request, answer: Answer, events: int | None) -> Outcome:
        origin, status = self._poster.origin, answer.status
        if status in _LATER:
            return Retry(f"{origin} answers HTTP {status}", after=answer.retry_after)
        if status == 413:
            return Rejected(f"{origin} takes no request of {len(request.data)} bytes (HTTP 413)", events)
        if request.signal == "logs" and status in (404, 405):
            return Blocked(
                f"{origin} has nothing at /v1/logs (HTTP {status}): if it takes no logs, set changes = false"
            )
        if outcome := failed(answer, origin) or misled(answer, origin):
            return outcome
        return self._taken(request, answer, events) if status in _TAKEN else self._refused(answer, events)

    def _taken(self, request: Request, answer: Answer, events: int | None) -> Delivered | Blocked:
        response = None
        if not answer.body or answer.content_type == _PROTOBUF:
            response = parsed(request.signal, answer.body)
        elif answer.content_type == "application/json":
            response = parsed(request.signal, answer.body, json=True)
        if response is None:
            return Blocked(f"{self._poster.origin} answers HTTP {answer.status}, but not in OTLP: is the URL right?")
        return self._verdict.delivered(request, response, events)

    def _refused(self, answer: Answer, events: int | None) -> Rejected | Blocked:
        origin, status = self._poster.origin, answer.status
        text = answer.body.decode("utf-8", "replace")
        if status in _SPEAKING and about_time(text):
            return Rejected(f"{origin} refuses the time of an event (HTTP {status}){code(text)}", events, too_old=True)
        if status in _UNDERSTOOD:
            return Rejected(f"{origin} refuses the data (HTTP {status}){code(text)}", events)
        return Blocked(f"{origin} answers HTTP {status}")
