"""OTLP over gRPC: what every status of a receiver comes to."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from backends.otlp import GrpcReceiver, instance
from backends.sinks import CANARY
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from http_support import NOW, nobody
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsPartialSuccess,
    ExportMetricsServiceResponse,
)
from tls_support import Authority

from forwarder.events import Batch, Change, Event, Metric, Resource
from forwarder.secrets import Secret
from forwarder.sinks.base import Blocked, Delivered, Outcome, Rejected, Retry
from forwarder.sinks.otlp.grpc import OtlpGrpc, tls
from forwarder.transport.post import MAX_ANSWER

Code = grpc.StatusCode
Context = grpc.ServicerContext
POINT = Metric("litellm.up", "gauge", "1", NOW, 1.0)
CHANGE = Change("litellm.proxy.down", NOW, "error", "eu is down")
PEER = "texts-of-a-peer"  # stands in every answer; must stand in no reason


@contextmanager
def receiver(**options: Any) -> Iterator[GrpcReceiver]:
    made = GrpcReceiver(CANARY, **options)
    try:
        yield made
    finally:
        made.close()


def send(address: str, *events: Event, key: str = CANARY, timeout: float = 5.0, **options: Any) -> Outcome:
    sink = OtlpGrpc("otlp", address, {"authorization": Secret(f"Bearer {key}")}, instance, **options)
    try:
        outcome = sink.send([Batch(Resource({"litellm.target": "eu"}), NOW, events)], timeout=timeout)
    finally:
        sink.close()
    assert PEER not in repr(outcome)
    return outcome


def answered(answer: Callable[[Context], bytes], *events: Event) -> Outcome:
    with receiver() as made:
        made.answer = answer
        return send(made.address, *(events or (POINT, POINT)))


def aborting(code: Code, details: str = "", after: float | None = None) -> Callable[[Context], bytes]:
    def answer(context: Context) -> bytes:
        if after is not None:
            info, wrapped = RetryInfo(), AnyMessage()
            info.retry_delay.FromNanoseconds(int(after * 1e9))
            wrapped.Pack(info)
            status = Status(code=code.value[0], message=details, details=[wrapped])
            context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        context.abort(code, f"{PEER} {details}")
        raise AssertionError

    return answer


def test_metrics_and_changes_go_to_their_services() -> None:
    """With the key, compressed; each call is one request of the first events."""
    with receiver() as made:
        assert send(made.address, POINT, CHANGE) == Delivered(events=1)
        assert send(made.address, CHANGE) == Delivered()
        assert [fact.name for fact in made.take()] == ["litellm.up", "litellm.proxy.down"]
        assert made.metadata[0]["user-agent"].startswith("litellm-forwarder/")  # type: ignore[arg-type]  # it is no -bin


def test_a_partial_success_is_final() -> None:
    partial = ExportMetricsPartialSuccess(rejected_data_points=2, error_message=PEER)
    message = ExportMetricsServiceResponse(partial_success=partial).SerializeToString()
    assert answered(lambda _: message) == Delivered(2, "the receiver refused 2 points")


@pytest.mark.parametrize(
    "code",
    [Code.CANCELLED, Code.DEADLINE_EXCEEDED, Code.ABORTED, Code.OUT_OF_RANGE, Code.UNAVAILABLE, Code.DATA_LOSS],
)
def test_what_may_pass_is_tried_again(code: Code) -> None:
    """The retry table of the specification."""
    outcome = answered(aborting(code))
    assert isinstance(outcome, Retry)
    assert outcome.reason.endswith(f"answers {code.name}")


def test_the_receiver_says_how_long_to_wait() -> None:
    """By RetryInfo, which also makes RESOURCE_EXHAUSTED something that passes."""
    for code in (Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED):
        outcome = answered(aborting(code, after=12.5))
        assert isinstance(outcome, Retry)
        assert outcome.after == 12.5
    assert isinstance(answered(aborting(Code.RESOURCE_EXHAUSTED)), Blocked)


def test_damaged_details_are_none() -> None:
    """A peer may send anything there."""

    def answer(context: Context) -> bytes:
        context.set_trailing_metadata((("grpc-status-details-bin", b"\xff\xff\xff"),))
        context.abort(Code.UNAVAILABLE, PEER)
        raise AssertionError

    assert isinstance(answered(answer), Retry)


@pytest.mark.parametrize(
    "code",
    [
        Code.UNAUTHENTICATED, Code.PERMISSION_DENIED, Code.UNIMPLEMENTED, Code.NOT_FOUND, Code.INTERNAL, Code.UNKNOWN,
        Code.FAILED_PRECONDITION, Code.ALREADY_EXISTS,
    ],
)  # fmt: skip
def test_what_somebody_must_mend_keeps_the_data(code: Code) -> None:
    """Nothing is thrown away for a wrong key or a broken receiver."""
    assert isinstance(answered(aborting(code)), Blocked)


def test_a_receiver_without_logs_is_told_how_to_go_on() -> None:
    outcome = answered(aborting(Code.UNIMPLEMENTED), CHANGE)
    assert isinstance(outcome, Blocked)
    assert outcome.reason.endswith("if it takes none, set changes = false")


def test_what_is_not_understood_is_refused() -> None:
    outcome = answered(aborting(Code.INVALID_ARGUMENT, "err-mimir-label-invalid"))
    assert isinstance(outcome, Rejected)
    assert outcome.reason.endswith("it refuses the data (err-mimir-label-invalid)")


def test_a_refusal_of_the_time_is_known_as_one() -> None:
    """Under any code that is not tried again."""
    for code in (Code.INVALID_ARGUMENT, Code.FAILED_PRECONDITION, Code.INTERNAL):
        outcome = answered(aborting(code, "out of order sample"))
        assert isinstance(outcome, Rejected)
        assert outcome.too_old


@pytest.mark.parametrize(
    ("code", "details"),
    [
        (Code.RESOURCE_EXHAUSTED, "grpc: received message larger than max (5000000 vs. 4194304)"),
        (Code.RESOURCE_EXHAUSTED, "grpc: received message after decompression larger than max (1 vs. 2)"),
        (Code.RESOURCE_EXHAUSTED, "gRPC message exceeds maximum size 4194304: 5000000"),
        (Code.OUT_OF_RANGE, "Error, decoded message length too large: found 2 bytes, the limit is: 1 bytes"),
    ],
)
def test_what_is_too_large_is_halved(code: Code, details: str) -> None:
    """In the words of Go, Java and Rust."""
    outcome = answered(aborting(code, details), POINT, POINT, CHANGE)
    assert isinstance(outcome, Rejected)
    assert outcome.events == 2


def test_a_real_server_finds_it_too_large() -> None:
    """In the words of C++, when the library itself says them."""
    with receiver() as made:
        points = [Metric("a", "gauge", "1", NOW, 1.0, {"m": f"{i}" * 400}) for i in range(3000)]
        outcome = send(made.address, *points, max_bytes=20_000_000)
    assert isinstance(outcome, Rejected)
    assert outcome.reason.endswith("bytes")


def test_an_answer_too_large_is_not_the_fault_of_the_request() -> None:
    """The library reports both alike, but for one word."""
    outcome = answered(lambda _: b"\x0a" * (MAX_ANSWER + 1))
    assert isinstance(outcome, Blocked)
    assert "its answer is over" in outcome.reason


def test_an_answer_that_is_no_message_is_not_a_delivery() -> None:
    assert isinstance(answered(lambda _: b"<html>\xff\xff"), Blocked)


def test_nobody_there_is_tried_again() -> None:
    with nobody() as url:
        outcome = send(url.removeprefix("http://"), POINT)
    assert isinstance(outcome, Retry)
    assert outcome.reason.endswith("UNAVAILABLE: nothing listens there")


def test_a_receiver_that_comes_back_is_found_at_once() -> None:
    """The channel's own back-off, which would refuse calls for a second and more, is not waited for."""
    with receiver() as made:
        sink = OtlpGrpc("otlp", made.address, {"authorization": f"Bearer {CANARY}"}, instance)
        batches = [Batch(Resource(), NOW, (POINT,))]
        made.misbehave("close")
        for _ in range(3):
            assert isinstance(sink.send(batches, timeout=5), Retry)
        made.misbehave(None)
        assert sink.send(batches, timeout=5) == Delivered()
        sink.close()


def test_no_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The core would take one of four variables."""
    with receiver() as made, nobody() as url:
        for name in ("grpc_proxy", "http_proxy", "https_proxy"):
            monkeypatch.setenv(name, url)
        assert send(made.address, POINT) == Delivered()
        # The configured one is: here it is nobody's, and so there is no way.
        assert isinstance(send(made.address, POINT, proxy=url), Retry)


def test_tls_trusts_whom_the_configuration_trusts(authority: Authority) -> None:
    """Certificates of the configured CA; others are a matter for somebody to look at, not of waiting."""
    made_for = authority.ca.issue_cert("127.0.0.1")
    key, chain = made_for.private_key_pem.bytes(), made_for.cert_chain_pems[0].bytes()
    credentials = grpc.ssl_server_credentials([(key, chain)], authority.ca.cert_pem.bytes(), require_client_auth=True)
    mutual = tls(authority.ca_file, authority.client_cert, authority.client_key)
    with receiver(credentials=credentials) as made:
        assert send(made.address, POINT, credentials=mutual) == Delivered()
        outcome = send(made.address, POINT, credentials=tls(None, None, None))
    assert isinstance(outcome, Blocked)
    assert "TLS fails" in outcome.reason
