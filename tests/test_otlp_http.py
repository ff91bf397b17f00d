"""OTLP over HTTP: what every answer of a receiver comes to."""

import gzip
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate

import pytest
from backends.http_server import Answer, Response, drip, redirect, reset
from backends.otlp import PROTOBUF, HttpReceiver, instance, protobuf
from backends.sinks import CANARY
from http_support import NOW, PLAIN_TLS, nobody
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsPartialSuccess, ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsPartialSuccess,
    ExportMetricsServiceResponse,
)

from forwarder.events import Batch, Change, Event, Metric, Resource
from forwarder.secrets import Secret
from forwarder.sinks.base import Blocked, Delivered, Outcome, Rejected, Retry
from forwarder.sinks.otlp.http import OtlpHttp
from forwarder.transport.post import MAX_ANSWER, Poster

POINT = Metric("litellm.up", "gauge", "1", NOW, 1.0)
CHANGE = Change("litellm.proxy.down", NOW, "error", "eu is down")
PEER = "texts-of-a-peer"  # stands in every answer; must stand in no reason


@contextmanager
def receiver() -> Iterator[HttpReceiver]:
    made = HttpReceiver(CANARY)
    try:
        yield made
    finally:
        made.close()


def send(address: str, *events: Event, key: str = CANARY, timeout: float = 5.0, compress: bool = True) -> Outcome:
    headers = {"authorization": Secret(f"Bearer {key}")}
    poster = Poster(address, headers, PLAIN_TLS, clock=lambda: NOW)
    sink = OtlpHttp("otlp", poster, instance, compress=compress)
    try:
        return sink.send([Batch(Resource({"litellm.target": "eu"}), NOW, events)], timeout=timeout)
    finally:
        sink.close()


def answered(answer: Answer, *events: Event) -> Outcome:
    with receiver() as made:
        made.answer = lambda _: answer
        outcome = send(made.address, *(events or (POINT, POINT)))
    if not isinstance(outcome, Delivered):
        assert outcome.reason.isprintable()
    assert PEER not in repr(outcome)
    return outcome


def text(status: int, body: str = "", content_type: str = "text/plain", **headers: str) -> Response:
    headers = {"content-type": content_type, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return Response(status, f"{PEER} {body}".encode(), headers)


# --- what is sent -------------------------------------------------------------------------------------------------


def test_a_request_is_as_the_specification_has_it() -> None:
    """Path, content type, compression."""
    with receiver() as made:
        assert send(made.address, POINT) == Delivered()
        assert send(made.address, CHANGE, compress=False) == Delivered()
        first, second = made.requests
    assert (first.path, second.path) == ("/otlp/v1/metrics", "/otlp/v1/logs")
    assert first.headers["content-type"] == second.headers["content-type"] == PROTOBUF
    assert first.headers["content-encoding"] == "gzip"
    assert "content-encoding" not in second.headers


def test_a_repeat_is_the_same_bytes() -> None:
    """No time of now is in a request, not even that of compression."""
    with receiver() as made:
        for _ in range(2):
            send(made.address, POINT, CHANGE)
        first, second = (request.body for request in made.requests)
    assert first == second
    assert first[4:8] == bytes(4), "the time in the head of gzip"


def test_one_call_is_one_request_of_the_first_events() -> None:
    with receiver() as made:
        assert send(made.address, POINT, POINT, CHANGE, POINT) == Delivered(events=2)
        assert len(made.requests) == 1


# --- what is a delivery -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        Response(200),
        Response(204),
        Response(202),
        protobuf(ExportMetricsServiceResponse()),
        protobuf(ExportMetricsServiceResponse(partial_success=ExportMetricsPartialSuccess())),
        Response(200, b"{}", {"content-type": "application/json"}),
        Response(200, b'{"partialSuccess":{}}', {"content-type": "application/json; charset=utf-8"}),
        Response(200, gzip.compress(b"\x0a\x00"), {"content-type": PROTOBUF, "content-encoding": "gzip"}),
    ],
)
def test_an_answer_in_otlp_is_a_delivery(answer: Response) -> None:
    """Prometheus and VictoriaMetrics answer nothing, Loki 204, collectors a message; JSON means the same."""
    assert answered(answer) == Delivered()


@pytest.mark.parametrize(
    "answer",
    [
        text(200, "<html>Log in</html>", "text/html"),
        text(200, "ok"),
        text(200, '{"status":"ok"}', "application/json"),
        Response(200, b'{"status":"ok"}', {"content-type": "application/json"}),
        Response(200, b"[]", {"content-type": "application/json"}),
        Response(200, b"[" * 5000, {"content-type": "application/json"}),
        Response(200, b"\xff\xff\xff", {"content-type": PROTOBUF}),
        Response(200, b"x" * (MAX_ANSWER + 1), {"content-type": PROTOBUF}),
        Response(200, b"\x1f\x8b broken", {"content-type": PROTOBUF, "content-encoding": "gzip"}),
        Response(201),
        Response(206),
        Response(304),
        redirect("/elsewhere", 302),
        redirect("/elsewhere", 308),
    ],
)
def test_anything_else_is_not_a_delivery(answer: Response) -> None:
    """A login page, a gateway's greeting, a redirect: the data stays, and somebody has to look."""
    assert isinstance(answered(answer), Blocked)


def test_a_reply_lost_on_the_way_is_tried_again() -> None:
    """The data may be stored; at least once is the promise."""
    for answer in (reset(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nab"), reset()):
        assert isinstance(answered(answer), Retry)


def test_nobody_there_is_tried_again() -> None:
    with nobody() as url:
        outcome = send(url, POINT)
    assert isinstance(outcome, Retry)
    assert "nothing listens there" in outcome.reason


def test_an_answer_that_drips_ends_with_the_time() -> None:
    with receiver() as made:
        made.answer = lambda _: drip(Response(200, b"x" * 50), every=0.05)
        assert isinstance(send(made.address, POINT, timeout=0.3), Retry)


# --- partial success ----------------------------------------------------------------------------------------------


def test_a_partial_success_is_final() -> None:
    """OTLP forbids sending it again; what was refused is counted, and the reason holds none of the peer's words."""
    partial = ExportMetricsPartialSuccess(rejected_data_points=1, error_message=PEER)
    outcome = answered(protobuf(ExportMetricsServiceResponse(partial_success=partial)))
    assert outcome == Delivered(1, "the receiver refused 1 points")
    logs = ExportLogsPartialSuccess(rejected_log_records=5, error_message=f"{PEER} err-mimir-max-active-series.")
    outcome = answered(protobuf(ExportLogsServiceResponse(partial_success=logs)), CHANGE, POINT)
    assert outcome == Delivered(1, "the receiver refused 5 records (err-mimir-max-active-series)", 1)
    partial.error_message = "out of order sample"
    assert answered(protobuf(ExportMetricsServiceResponse(partial_success=partial))) == Delivered(
        1, "the receiver refused 1 points for their time"
    )
    body = b'{"partialSuccess":{"rejectedDataPoints":"2"}}'
    assert answered(Response(200, body, {"content-type": "application/json"})) == Delivered(
        2, "the receiver refused 2 points"
    )


def test_a_warning_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing was refused, but the receiver has something to say."""
    partial = ExportMetricsPartialSuccess(error_message=PEER)
    with receiver() as made, caplog.at_level(logging.WARNING):
        made.answer = lambda _: protobuf(ExportMetricsServiceResponse(partial_success=partial))
        sink = OtlpHttp("otlp", Poster(made.address, {"authorization": f"Bearer {CANARY}"}, PLAIN_TLS), instance)
        for _ in range(3):
            assert sink.send([Batch(Resource(), NOW, (POINT,))], timeout=5) == Delivered()
        sink.close()
    (record,) = caplog.records
    assert record.getMessage().startswith("the receiver takes everything, but with a warning")
    assert PEER not in caplog.text


# --- what is tried again ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 429, 502, 503, 504])
def test_what_may_pass_is_tried_again(status: int) -> None:
    """When the receiver says; also where a gateway's page says it."""
    date = formatdate(NOW / 1e9 + 90, usegmt=True)
    for answer, after in (
        (text(status, retry_after="7"), 7.0),
        (text(status, retry_after=date), 90.0),
        (text(status, "<html>", "text/html"), None),
    ):
        outcome = answered(answer)
        assert isinstance(outcome, Retry)
        assert outcome.reason.endswith(f"answers HTTP {status}")
        assert outcome.after == (after if after is None else pytest.approx(after, abs=1))


@pytest.mark.parametrize(
    "status", [401, 402, 403, 404, 405, 406, 407, 409, 410, 411, 415, 418, 421, 431, 451, 500, 501, 505, 507, 599]
)
def test_what_somebody_must_mend_keeps_the_data(status: int) -> None:
    """OTLP says that it must not be tried again at once, and it is not: slowly. Nothing is thrown away for it."""
    assert isinstance(answered(text(status)), Blocked)


def test_a_receiver_without_logs_is_told_how_to_go_on() -> None:
    """Prometheus takes no log records; a change must not hold up the metrics behind it without a hint."""
    outcome = answered(Response(404), CHANGE)
    assert isinstance(outcome, Blocked)
    assert outcome.reason.endswith("has nothing at /v1/logs (HTTP 404): if it takes no logs, set changes = false")


def test_a_wrong_key_says_so() -> None:
    with receiver() as made:
        outcome = send(made.address, POINT, key="wrong")
    assert isinstance(outcome, Blocked)
    assert outcome.reason.endswith("refuses the key (HTTP 401)")


# --- what is refused ----------------------------------------------------------------------------------------------


def test_what_is_not_understood_is_refused() -> None:
    """The pump finds the event at fault."""
    for status in (400, 422):
        outcome = answered(text(status, "bad (err-mimir-label-invalid)"))
        assert isinstance(outcome, Rejected)
        assert outcome.reason.endswith(f"refuses the data (HTTP {status}) (err-mimir-label-invalid)")
        assert not outcome.too_old


def test_a_gateways_bad_request_is_not_the_fault_of_the_data() -> None:
    """An nginx answers 400 in HTML, to plain HTTP on its TLS port for instance."""
    assert isinstance(answered(text(400, "<html>", "text/html")), Blocked)


def test_what_is_too_large_is_halved() -> None:
    """Whoever says it, a page for people included."""
    for content_type in ("text/plain", "text/html"):
        outcome = answered(text(413, "", content_type), POINT, POINT, CHANGE)
        assert isinstance(outcome, Rejected)
        assert outcome.events == 2


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, "the sample has been rejected because its timestamp is too old (err-mimir-sample-timestamp-too-old). …"),
        (400, "another sample with a more recent timestamp has been ingested (err-mimir-sample-out-of-order)"),
        (400, "(err-mimir-sample-duplicate-timestamp)"),
        (400, "received a sample whose timestamp is too far in the future (err-mimir-too-far-in-future)"),
        (400, "out of order sample"),
        (400, "out of bounds"),
        (400, "duplicate sample for timestamp"),
        (409, "add 3 series: out of order sample"),
        (500, "too old sample"),
        (400, "entry with timestamp 1 ignored, reason: 'entry too far behind, oldest acceptable timestamp is: 2'"),
        (400, "entry for stream '{}' has timestamp too old: 1"),
    ],
)
def test_a_refusal_of_the_time_is_known_as_one(status: int, body: str) -> None:
    """The event is not at fault, nor the sink: it counts as expired."""
    outcome = answered(text(status, body))
    assert isinstance(outcome, Rejected)
    assert outcome.too_old
    assert f"refuses the time of an event (HTTP {status})" in outcome.reason


def test_a_broken_program_is_not_a_refusal_of_the_time() -> None:
    """Java's words for a wrong index are nearly Prometheus' for a wrong time."""
    assert isinstance(answered(text(500, "Index 5 out of bounds for length 5")), Blocked)
    assert isinstance(answered(text(403, "out of bounds")), Blocked)


@pytest.mark.parametrize("said", ["", "sk-", "abcdef", "label-invalid-abcdef", "max-active-seriesabc"])
def test_no_words_of_a_peer_get_into_a_reason(said: str) -> None:
    """Only codes of a closed list; what only looks like one is not repeated."""
    outcome = answered(text(400, f"err-mimir-{said} {PEER}\n"))
    assert isinstance(outcome, Rejected)
    assert outcome.reason.endswith("refuses the data (HTTP 400)")
