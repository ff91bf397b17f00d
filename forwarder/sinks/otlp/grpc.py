"""OTLP/gRPC: one unary call for each `send`. Importing this loads grpc.

What an answer comes to (the retry table is that of the OTLP specification; docs/adr/0009 says where we leave it):

    OK with a response message                        Delivered, less what `partial_success` refuses
    the request is too large                          Rejected: the pump sends half of it
    CANCELLED, DEADLINE_EXCEEDED, ABORTED,
    OUT_OF_RANGE, UNAVAILABLE, DATA_LOSS,
    RESOURCE_EXHAUSTED with RetryInfo                 Retry, after RetryInfo
    a refusal of an event's time                      Rejected(too_old)
    INVALID_ARGUMENT                                  Rejected
    everything else                                   Blocked: a key, an address or the receiver is wrong

The generated stubs would encode the request a second time, so the two methods are called by their names, with bytes.

grpcio 1.85: a blocking call starts no thread of Python's and sleeps nowhere; the C core keeps a few threads of its own
for the process. A channel that could not connect refuses calls without trying until a back-off of its own has passed,
so one that failed is closed, and the next send opens another.
"""

import re
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from forwarder.events import Batch
from forwarder.secrets import Secret
from forwarder.sinks.base import Blocked, Delivered, Limits, Outcome, Rejected, Retry
from forwarder.sinks.otlp.encode import MAX_REQUEST, Cache, Request, Signal, encode
from forwarder.sinks.otlp.replies import Verdict, about_time, code, parsed
from forwarder.transport import tls_context
from forwarder.transport.headers import MAX_RETRY_AFTER, USER_AGENT
from forwarder.transport.post import MAX_ANSWER

_METHODS: Final = {
    "metrics": "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
    "logs": "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
}
_LATER: Final = frozenset(
    {
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
# The request's size, in the words of the servers in Go, C++, Java and Rust.
_SIZE: Final = frozenset({grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.OUT_OF_RANGE})
_TOO_LARGE: Final = re.compile("larger than max|exceeds maximum size|length too large")
_DETAILS: Final = "grpc-status-details-bin"
# What the C core says in the details of UNAVAILABLE, and what it means.
_BROKEN: Final = {
    "Connection refused": "nothing listens there",
    "lookup": "the host name does not resolve",
    "Connection reset": "the connection broke",
    "Socket closed": "the connection broke",
    "failed to connect": "no connection",
}
_TLS: Final = ("CERTIFICATE_VERIFY_FAILED", "Ssl handshake failed", "WRONG_VERSION_NUMBER", "peer does not match")


class OtlpGrpc:
    def __init__(  # noqa: PLR0913 - settings, told by name
        self,
        name: str,
        address: str,
        headers: Mapping[str, Secret | str],
        instance: Callable[[], str],
        *,
        credentials: grpc.ChannelCredentials | None = None,
        proxy: str | None = None,
        compress: bool = True,
        changes: bool = True,
        max_age: float | None = None,
        max_bytes: int = MAX_REQUEST,
    ) -> None:
        """`address` is host and port; names of `headers` are in lower case. Without `credentials` there is no TLS.
        `instance` is asked with each send which agent this is. `max_age` is in seconds, `max_bytes` before
        compression.
        """
        self.name: Final = name
        # A point is longer in OTLP than in the spool: so much of it makes about one request.
        self.limits: Final = Limits(max_events=10_000, max_bytes=max_bytes // 2, max_age=max_age)
        self._address = address
        self._headers = tuple(headers.items())
        self._instance = instance
        self._credentials = credentials
        self._compression = grpc.Compression.Gzip if compress else grpc.Compression.NoCompression
        self._changes = changes
        self._max_bytes = max_bytes
        self._options = [
            ("grpc.enable_retries", 0),  # not even those that are called transparent: one call is one attempt
            ("grpc.use_local_subchannel_pool", 1),  # else another sink's back-off would hold for this one
            ("grpc.service_config_disable_resolution", 1),
            ("grpc.max_receive_message_length", MAX_ANSWER),
            ("grpc.primary_user_agent", USER_AGENT),
            # Without the proxy of the configuration, none: the core would take one from the environment.
            ("grpc.enable_http_proxy", 0) if proxy is None else ("grpc.http_proxy", proxy),
        ]
        self._channel: grpc.Channel | None = None
        self._cache = Cache()
        self._verdict = Verdict(name)

    def __repr__(self) -> str:
        return f"OtlpGrpc({self.name!r}, {self._address!r})"

    def send(self, batches: Sequence[Batch], *, timeout: float) -> Outcome:
        started = time.monotonic()
        request = encode(batches, self._instance(), self._cache, changes=self._changes, max_bytes=self._max_bytes)
        given = sum(len(batch.events) for batch in batches)
        events = None if request.events == given else request.events
        if not request.sent:
            return Delivered(events=events)
        export: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._open().unary_unary(_METHODS[request.signal])
        headers = tuple((name, each.reveal() if isinstance(each, Secret) else each) for name, each in self._headers)
        left = max(0.001, timeout - (time.monotonic() - started))
        try:
            answer = export(request.data, timeout=left, metadata=headers)
        except grpc.RpcError as error:
            self.close()
            return self._failed(request, cast("grpc.Call", error), events)
        response = parsed(request.signal, answer)
        if response is None:
            return Blocked(f"{self._address} answers, but not in OTLP")
        return self._verdict.delivered(request, response, events)

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def _open(self) -> grpc.Channel:
        if self._channel is None:
            target = f"dns:{self._address}"
            if self._credentials is None:
                self._channel = grpc.insecure_channel(target, self._options, self._compression)
            else:
                self._channel = grpc.secure_channel(target, self._credentials, self._options, self._compression)
        return self._channel

    def _failed(self, request: Request, error: grpc.Call, events: int | None) -> Retry | Rejected | Blocked:
        status, text = error.code(), error.details() or ""
        says = f"{self._address} answers {status.name}"
        if status == grpc.StatusCode.UNAVAILABLE and any(words in text for words in _TLS):
            return Blocked(f"no connection to {self._address}: TLS fails; is its certificate trusted?")
        if status in _SIZE and _TOO_LARGE.search(text) and "CLIENT:" not in text:
            return Rejected(f"{self._address} takes no request of {len(request.data)} bytes", events)
        after = _retry_info(error)
        if status in _LATER or (status == grpc.StatusCode.RESOURCE_EXHAUSTED and after is not None):
            why = next((f": {meaning}" for words, meaning in _BROKEN.items() if words in text), "")
            return Retry(says + why, after)
        if about_time(text):
            return Rejected(f"{says}: it refuses the time of an event{code(text)}", events, too_old=True)
        if status == grpc.StatusCode.INVALID_ARGUMENT:
            return Rejected(f"{says}: it refuses the data{code(text)}", events)
        return Blocked(says + _hint(status, text, request.signal))


def _hint(status: grpc.StatusCode, text: str, signal: Signal) -> str:
    match status:
        case grpc.StatusCode.UNAUTHENTICATED | grpc.StatusCode.PERMISSION_DENIED:
            return ": it refuses the key"
        case grpc.StatusCode.UNIMPLEMENTED if signal == "logs":
            return " to log records: if it takes none, set changes = false"
        case grpc.StatusCode.UNIMPLEMENTED:
            return ": is it a receiver of OTLP?"
        case grpc.StatusCode.RESOURCE_EXHAUSTED if "CLIENT:" in text:  # said by the library, about the answer
            return f": its answer is over {MAX_ANSWER} bytes; is it a receiver of OTLP?"
        case _:
            return ""


def _retry_info(error: grpc.Call) -> float | None:
    """Seconds that the receiver asks to wait; None if it does not."""
    for name, value in error.trailing_metadata() or ():
        if name != _DETAILS or not isinstance(value, bytes):
            continue
        with suppress(DecodeError):
            status = Status.FromString(value)
            for detail in status.details:
                info = RetryInfo()
                if detail.Unpack(info):
                    return min(max(info.retry_delay.seconds + info.retry_delay.nanos / 1e9, 0.0), MAX_RETRY_AFTER)
    return None


def tls(ca_file: Path | None, client_cert: Path | None, client_key: Path | None) -> grpc.ChannelCredentials:
    """TLS as everywhere else in the agent: the system's authorities instead of those that grpc brings along. Reads the
    files. HttpProblem or OSError when it cannot.
    """
    chain = client_cert.read_bytes() if client_cert else None
    key = (client_key or client_cert).read_bytes() if client_cert else None
    return grpc.ssl_channel_credentials(_authorities(ca_file), key, chain)


def _authorities(ca_file: Path | None) -> bytes:
    if ca_file is not None:
        return ca_file.read_bytes()
    context = tls_context(None, None, None)
    folder = ssl.get_default_verify_paths().capath
    for path in Path(folder).glob("*.0") if folder else ():  # OpenSSL reads these when it needs them; grpc does not
        with suppress(OSError):
            context.load_verify_locations(path)
    return "".join(map(ssl.DER_cert_to_PEM_cert, context.get_ca_certs(binary_form=True))).encode("ascii")
