"""Datadog's API beyond the promises of every sink (test_sink_contract.py): requests, sizes, what each answer means."""

import gzip
import json
import random
import ssl
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from backends.datadog import CLOCK, Intake, expected_requests
from backends.http_server import Answer, Request, Response, always, endless, gzip_bomb, raw, redirect, reset
from backends.sinks import rest
from http_support import nobody
from tls_support import made_in

from forwarder import catalog
from forwarder.events import Batch, Delta, Event, Histogram, Metric, Resource
from forwarder.secrets import Secret
from forwarder.sinks.base import Blocked, Delivered, Outcome, Rejected, Retry
from forwarder.sinks.datadog.api import DatadogApiSink
from forwarder.sinks.datadog.payloads import MAX_COMPRESSED, MAX_RAW
from forwarder.sinks.datadog.points import Form
from forwarder.transport import tls_context
from forwarder.transport.post import Poster

KEY = "canary-dd-api-key"
TIME = CLOCK * 10**9
PLAIN = tls_context(None, None, None)
JSON = {"content-type": "application/json"}
UP = catalog.UP.at(TIME, 1)
DOWN = catalog.PROXY_DOWN.at(TIME, "eu is down", "It does not\nanswer.", {"error.type": "timeout"})


def sink(url: str, *, context: ssl.SSLContext = PLAIN, key: str = KEY, form: Form | None = None) -> DatadogApiSink:
    poster = Poster(url, {"DD-API-KEY": Secret(key)}, context)
    return DatadogApiSink("dd", poster, form or Form(), max_age=3480, clock=lambda: TIME)


def batch(*events: Event) -> Batch:
    return Batch(Resource({"litellm.target": "eu"}), TIME, events)


def numbered(count: int, **attributes: str) -> list[Event]:
    return [Metric("n", "gauge", "1", TIME, float(i), dict(attributes)) for i in range(count)]


def send(to: DatadogApiSink, *events: Event, timeout: float = 5.0) -> Outcome:
    try:
        return to.send([batch(*events)], timeout=timeout)
    finally:
        to.close()


@pytest.fixture
def intake() -> Iterator[Intake]:
    started = Intake(KEY)
    yield started
    started.close()


def body(request: Request) -> Any:
    return json.loads(gzip.decompress(request.body))


# --- requests -----------------------------------------------------------------------------------------------------


def test_requests_are_the_documented_ones(intake: Intake) -> None:
    """Path, headers and JSON, field by field; the key is in its header and nowhere else."""
    count = Metric("requests", "sum", "1", TIME, 9.0, {}, TIME, delta=Delta(TIME - 15 * 10**9, 3.0))
    to = sink(intake.address)
    batches = [batch(UP, count, DOWN)]
    assert to.send(batches, timeout=5) == Delivered(events=2)
    assert to.send(rest(batches, 2), timeout=5) == Delivered(events=1)
    to.close()
    assert [request.path for request in intake.requests] == [
        "/relay/api/v1/check_run",
        "/relay/api/v2/series",
        "/relay/api/v1/events",
    ]
    for request in intake.requests:
        assert request.headers["dd-api-key"] == KEY
        assert KEY not in str(body(request))
        assert KEY not in request.path
    checks, series, event = map(body, intake.requests)
    where = ["litellm.target:eu"]
    assert checks == [{"check": "litellm.can_connect", "status": 0, "timestamp": CLOCK, "tags": where, "message": ""}]
    assert series == {
        "series": [
            {"metric": "litellm.up", "type": 3, "points": [{"timestamp": CLOCK, "value": 1.0}], "tags": where},
            {
                "metric": "requests",
                "type": 1,
                "interval": 15,
                "points": [{"timestamp": CLOCK, "value": 3.0}],
                "tags": where,
            },
        ]
    }
    assert event == {
        "title": "eu is down",
        "text": "It does not\nanswer.",
        "alert_type": "error",
        "aggregation_key": "change:litellm.proxy.down:eu",
        "source_type_name": "litellm",
        "date_happened": CLOCK,
        "tags": ["change:litellm.proxy.down", "error.type:timeout", "litellm.target:eu"],
    }


def test_each_call_takes_what_goes_to_one_address(intake: Intake) -> None:
    """Metrics up to the next change, or one change; what becomes nothing goes along. In order, each once."""
    first = Metric("first_reading", "sum", "1", TIME, 1.0)
    batches = [batch(first, *numbered(2)), batch(first, DOWN, DOWN), batch(*numbered(1), first)]
    to = sink(intake.address)
    left, sent = batches, []
    while left:
        outcome = to.send(left, timeout=5)
        assert isinstance(outcome, Delivered)
        assert outcome.events
        sent.append(outcome.events)
        left = rest(left, outcome.events)
    to.close()
    assert sent == [4, 1, 1, 2]
    assert intake.take() == expected_requests(batches)


def test_what_becomes_nothing_needs_no_request() -> None:
    """A first reading of a sum, a change that is not wanted: taken, and nobody is asked."""
    with nobody() as url:
        to = sink(url, form=Form(changes=False))
        assert send(to, Metric("s", "sum", "1", TIME, 1.0), DOWN) == Delivered(events=2)


def test_the_second_request_failing_fails_both(intake: Intake) -> None:
    """The service checks are stored, but said again they say the same; the metrics are not lost with them."""
    intake.answer = lambda request: Response(503) if request.path.endswith("series") else intake.taken(request)
    assert isinstance(send(sink(intake.address), UP), Retry)
    intake.answer = None
    assert send(sink(intake.address), UP) == Delivered(events=1)
    assert [fact.name for fact in intake.take()] == [
        "check litellm.can_connect",
        "check litellm.can_connect",
        "litellm.up",
    ]


def test_the_first_request_failing_spares_the_second(intake: Intake) -> None:
    """Nothing of it counts as delivered, so nothing more is sent."""
    intake.answer = always(Response(503))
    assert isinstance(send(sink(intake.address), UP), Retry)
    assert len(intake.requests) == 1


# --- sizes --------------------------------------------------------------------------------------------------------


def sent_in_full(intake: Intake, events: list[Event]) -> list[int]:
    """How many events each request held; all of them arrive, in order, and no request is refused for its size."""
    to, left, counts = sink(intake.address), [batch(*events)], []
    while left:
        outcome = to.send(left, timeout=30)
        assert isinstance(outcome, Delivered), outcome
        assert outcome.events
        counts.append(outcome.events)
        left = rest(left, outcome.events)
    to.close()
    assert [fact.value for fact in intake.take()] == [["g", float(i)] for i in range(len(events))]
    assert intake.broken == 0
    return counts


def test_requests_are_cut_to_the_raw_size(intake: Intake) -> None:
    """What compresses well meets the limit of the uncompressed size."""
    wide = {f"key{i:02}": "v" * 190 for i in range(20)}
    counts = sent_in_full(intake, numbered(3000, **wide))
    assert len(counts) == 3
    sizes = [len(gzip.decompress(request.body)) for request in intake.requests]
    assert max(sizes) <= MAX_RAW
    assert sizes[0] > MAX_RAW * 0.99


def test_requests_are_cut_to_the_compressed_size(intake: Intake) -> None:
    """What does not compress meets the other; nothing but compressing tells, so it is measured and cut."""
    dice = random.Random(1)  # noqa: S311 - text that does not compress, the same each time
    letters = string.ascii_lowercase + string.digits
    events: list[Event] = [
        Metric("n", "gauge", "1", TIME, float(i), {f"k{j}": "".join(dice.choices(letters, k=190)) for j in range(4)})
        for i in range(1500)
    ]
    counts = sent_in_full(intake, events)
    assert len(counts) > 1
    sizes = [len(request.body) for request in intake.requests]
    assert max(sizes) <= MAX_COMPRESSED
    assert sizes[0] > MAX_COMPRESSED * 0.8


def test_too_large_for_a_relay_is_halved_by_the_pump(intake: Intake) -> None:
    """A gateway before Datadog may take less, and answers with a page of its own. That is no page for people."""
    intake.answer = always(Response(413, b"<html>413</html>", {"content-type": "text/html"}))
    outcome = send(sink(intake.address), *numbered(4))
    assert isinstance(outcome, Rejected)
    assert outcome.events == 4


# --- answers ------------------------------------------------------------------------------------------------------

ERRORS = b'{"errors":["canary-from-peer"]}'
HTML = {"content-type": "text/html"}


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (Response(202, b'{"errors":[]}', JSON), Delivered),
        (Response(200, b'{"status":"ok"}', JSON), Delivered),
        (Response(202, b'{"status":"ok","event":{"id":1}}', JSON), Delivered),
        (Response(202, b'{"status":"ok","errors":["one"]}', JSON), Rejected),
        # a 2xx that is not Datadog's answer
        (Response(200, b"<html>Please log in</html>", HTML), Blocked),
        (Response(202, b"", JSON), Blocked),
        (Response(202, b"{}", JSON), Blocked),
        (Response(202, b"[]", JSON), Blocked),
        (Response(202, b"null", JSON), Blocked),
        (Response(202, b'{"errors":[]', JSON), Blocked),
        (Response(202, b"[" * 50_000, JSON), Blocked),
        (Response(202, b"\xff\xfe", JSON), Blocked),
        (Response(204), Blocked),
        (Response(201, b'{"status":"ok"}', JSON), Blocked),
        (redirect("http://127.0.0.1:1/"), Blocked),
        (Response(304), Blocked),
        # the data
        (Response(400, ERRORS, JSON), Rejected),
        (Response(413, ERRORS, JSON), Rejected),
        (Response(400, b"<html>The plain HTTP request was sent to HTTPS port</html>", HTML), Blocked),
        (Response(400, b"no such path", {"content-type": "text/plain"}), Blocked),
        # the sink
        (Response(401, ERRORS, JSON), Blocked),
        (Response(402, ERRORS, JSON), Blocked),
        (Response(403, ERRORS, JSON), Blocked),
        (Response(404, ERRORS, JSON), Blocked),
        (Response(405), Blocked),
        (Response(415, ERRORS, JSON), Blocked),
        (Response(422, ERRORS, JSON), Blocked),
        (gzip_bomb(1 << 24), Blocked),
        (endless(b"HTTP/1.1 202 Accepted\r\n\r\n", b"x" * 10_000), Blocked),
        # the moment
        (Response(408), Retry),
        (Response(429, ERRORS, JSON), Retry),
        (Response(429, b"<html>slow down</html>", HTML), Retry),
        (Response(500, ERRORS, JSON), Retry),
        (Response(502, b"<html>bad gateway</html>", HTML), Retry),
        (Response(503), Retry),
        (Response(504), Retry),
        (Response(599), Retry),
        (reset(b"HTTP/1.1 202 Accepted\r\ncontent-length: 100\r\n\r\n{"), Retry),
        (raw(b'HTTP/1.1 202 Accepted\r\ncontent-length: 100\r\n\r\n{"errors":[]}'), Retry),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_an_answer_means(intake: Intake, answer: Answer, kind: type[Outcome]) -> None:
    """Rejected only where Datadog, having understood, says so; Retry what passes; Blocked what somebody must look at.
    No reason repeats what the peer said.
    """
    intake.answer = always(answer)
    outcome = send(sink(intake.address), *numbered(2))
    assert type(outcome) is kind
    if isinstance(outcome, Delivered | Rejected):
        assert outcome.events == 2
    if not isinstance(outcome, Delivered):
        assert "canary" not in outcome.reason
        assert outcome.reason.isprintable()
        assert outcome.reason
    assert len(intake.requests) == 1


def test_the_key_follows_no_redirect(intake: Intake) -> None:
    """Neither to the same server nor to another."""
    other = Intake(KEY)
    try:
        for to in (intake, other):
            intake.answer = always(redirect(f"{to.address}/api/v2/series", 308))
            assert isinstance(send(sink(intake.address), *numbered(1)), Blocked)
        assert len(intake.requests) == 2
        assert other.requests == []
    finally:
        other.close()


@pytest.mark.parametrize(
    ("headers", "after"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"x-ratelimit-reset": "30"}, 30.0),
        ({"x-ratelimit-reset": "30", "retry-after": "7"}, 30.0),
        ({"x-ratelimit-reset": "3", "retry-after": "7"}, 7.0),
        ({"x-ratelimit-reset": "soon", "retry-after": "later"}, None),
        ({"x-ratelimit-reset": "-1"}, None),
        ({"x-ratelimit-reset": "9" * 400}, None),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_a_limited_rate_is_waited_out(
    intake: Intake, status: int, headers: dict[str, str], after: float | None
) -> None:
    """Datadog says in a header of its own when the limit ends; a gateway by Retry-After. The longer counts."""
    intake.answer = always(Response(status, ERRORS, JSON | headers))
    outcome = send(sink(intake.address), *numbered(1))
    assert isinstance(outcome, Retry)
    assert outcome.after == after


def test_a_wrong_key_blocks(intake: Intake) -> None:
    """Everything is kept until somebody mends it."""
    outcome = send(sink(intake.address, key="canary-wrong"), *numbered(1))
    assert isinstance(outcome, Blocked)
    assert "the key" in outcome.reason
    assert "canary" not in outcome.reason


def test_nobody_there_is_retried() -> None:
    """An outage is no reason to give anything up."""
    with nobody() as url:
        assert isinstance(send(sink(url), *numbered(1)), Retry)


def test_a_certificate_that_does_not_hold_blocks(tmp_path: Path) -> None:
    """Waiting mends it for nobody; with the right authority everything arrives."""
    authority = made_in(tmp_path)
    secure = Intake(KEY, context=authority.server())
    try:
        assert isinstance(send(sink(secure.address), *numbered(1)), Blocked)
        trusting = tls_context(authority.ca_file, None, None)
        assert send(sink(secure.address, context=trusting), *numbered(1)) == Delivered(events=1)
        assert len(secure.take()) == 1
    finally:
        secure.close()


# --- times --------------------------------------------------------------------------------------------------------


def test_times_up_to_ten_minutes_ahead_are_kept(intake: Intake) -> None:
    """Datadog takes them, and a resend then says the same; what lies further ahead it would drop, and is moved."""
    ahead = [Metric("n", "gauge", "1", TIME + seconds * 10**9, 1.0) for seconds in (0, 300, 540, 3600)]
    assert send(sink(intake.address), *ahead) == Delivered(events=4)
    assert [fact.time // 10**9 - CLOCK for fact in intake.take()] == [0, 300, 540, 540]


def test_buckets_arrive_if_wanted(intake: Intake) -> None:
    """The form of the configuration reaches the intake."""
    grown = Histogram((0.5,), (1, 2), 3.0, 3)
    event = Metric("h", "histogram", "s", TIME, None, {}, TIME, grown, Delta(TIME - 10**9, None, grown))
    assert send(sink(intake.address, form=Form(buckets=True)), event) == Delivered(events=1)
    assert [fact.attributes["tags"] for fact in intake.take() if fact.name == "h.bucket"] == [
        "litellm.target:eu,upper_bound:0.5",
        "litellm.target:eu,upper_bound:inf",
    ]


def test_an_acknowledged_delivery_is_a_delivery(intake: Intake) -> None:
    """Unlike by an agent."""
    assert sink(intake.address).limits.confirms
