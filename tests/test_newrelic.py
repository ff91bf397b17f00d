"""The New Relic sink against an intake on a loopback socket: what goes where, and what each answer means."""

import logging
import time
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from backends.http_server import Response, redirect, reset
from backends.newrelic import EVENTS, METRICS, NOW, Intake, expect, parsed
from config_text import Parts, lines, load
from tls_support import Authority

from forwarder import config
from forwarder.build import build_sink
from forwarder.config_newrelic import NewRelicSink as Settings
from forwarder.events import Batch, Change, Delta, Event, Histogram, Metric, Resource
from forwarder.instance import Instance
from forwarder.secrets import Secret
from forwarder.sinks.base import Blocked, Delivered, Outcome, Rejected, Retry
from forwarder.sinks.newrelic import MAX_JSON, REGIONS, NewRelicSink
from forwarder.transport import tls_context

KEY = "0123456789abcdef-CANARY-NRAL"
HOUR = 3600 * 10**9
TIMEOUT = 10.0
PLAIN = tls_context(None, None, None)


@pytest.fixture
def intake() -> Iterator[Intake]:
    made = Intake(KEY)
    yield made
    made.close()


@pytest.fixture
def sink(intake: Intake) -> Iterator[NewRelicSink]:
    made = sink_for(intake.address.url)
    yield made
    made.close()


def sink_for(url: str, **settings: Any) -> NewRelicSink:
    return NewRelicSink(
        "nr", Secret(KEY), settings.pop("context", PLAIN), url=url, events_url=url, clock=lambda: NOW, **settings
    )


def gauge(value: float = 1.0, *, time: int = NOW, **attributes: str) -> Metric:
    return Metric("litellm.up", "gauge", "1", time, value, dict(attributes))


def change(time: int = NOW) -> Change:
    return Change("litellm.proxy.down", time, "error", "eu is down")


def batch(*events: Event, target: str = "eu") -> Batch:
    return Batch(Resource({"litellm.target": target, "service.namespace": "llm"}), NOW, events)


def send(sink: NewRelicSink, *events: Event) -> Outcome:
    return sink.send([batch(*events)], timeout=TIMEOUT)


def paths(intake: Intake) -> list[str]:
    return [request.path for request in intake.requests]


# --- what goes into a request -------------------------------------------------------------------------------------


def test_metrics_and_changes_go_to_their_own_address_in_their_order(intake: Intake, sink: NewRelicSink) -> None:
    """One request a call, of the leading events that belong together."""
    events: list[Event] = [gauge(1.0), gauge(2.0), change(), change(), change(), gauge(3.0)]
    taken = []
    while events:
        outcome = send(sink, *events)
        assert isinstance(outcome, Delivered)
        taken.append(outcome.events)
        events = events[outcome.events :] if outcome.events else []
    assert taken == [2, 3, None]
    assert [path == METRICS for path in paths(intake)] == [True, False, True]
    assert EVENTS.fullmatch(paths(intake)[1])


def test_without_changes_there_is_one_address(intake: Intake) -> None:
    """`changes = false` is for who lets nothing out to the Event API."""
    made = sink_for(intake.address.url, changes=False)
    assert send(made, gauge(), change(), gauge(time=NOW + 1), change(NOW - 90 * HOUR)) == Delivered()
    assert send(made, change()) == Delivered()
    assert paths(intake) == [METRICS]
    assert [fact.name for fact in intake.take()] == ["litellm.up", "litellm.up"]
    made.close()


def test_what_yields_nothing_makes_no_request(intake: Intake, sink: NewRelicSink) -> None:
    """The first reading of a counter, say."""
    first = Metric("requests", "sum", "1", NOW, 7.0, {}, 0)
    assert send(sink, first, first) == Delivered()
    assert send(sink, first, change()) == Delivered(events=1)
    assert intake.requests == []


def test_what_all_have_stands_once(intake: Intake, sink: NewRelicSink) -> None:
    """In the common block; the targets of one request keep apart what they do not share."""
    sent = [batch(gauge(1.0, a="x"), target="eu"), batch(gauge(2.0, a="x"), target="us")]
    assert sink.send(sent, timeout=TIMEOUT) == Delivered()
    payload: Any = parsed(intake.requests[0])
    assert payload[0]["common"] == {"attributes": {"service.namespace": "llm", "a": "x"}}
    assert [point["attributes"] for point in payload[0]["metrics"]] == [
        {"litellm.target": "eu"},
        {"litellm.target": "us"},
    ]
    assert intake.take() == expect(sent)


def test_a_request_stays_under_the_limit(intake: Intake, sink: NewRelicSink) -> None:
    """What does not fit goes with the next call; nothing is lost or repeated."""
    noise = [gauge(float(number), a=uuid.uuid4().hex * 60, b=uuid.uuid4().hex * 60) for number in range(900)]
    rest: list[Event] = list(noise)
    while rest:
        outcome = send(sink, *rest)
        assert isinstance(outcome, Delivered)
        rest = rest[outcome.events :] if outcome.events else []
    assert len(intake.requests) > 3
    assert intake.take() == expect([batch(*noise)])
    assert intake.broken == 0, intake.rules


def test_one_event_that_is_too_large_is_refused_without_asking(intake: Intake, sink: NewRelicSink) -> None:
    """A histogram of a hundred thousand buckets, say; the events before it go first."""
    bounds = tuple(float(number) for number in range(30_000))
    grown = Histogram(bounds, (1,) * 30_001, 1.0, 30_001)
    huge = Metric("latency", "histogram", "s", NOW, None, {}, 0, grown, Delta(NOW - HOUR, None, grown))
    assert send(sink, gauge(), huge, gauge()) == Delivered(events=1)
    assert send(sink, huge, gauge()) == Rejected(
        "one event is more than New Relic takes in a request (1 MB)", events=1
    )
    assert len(intake.requests) == 1


@pytest.mark.parametrize("text", ["plain", "\x7f", "\u00e9\u2028", '"\\\n\0'])
def test_no_request_is_longer_than_it_was_taken_to_be(text: str, intake: Intake, sink: NewRelicSink) -> None:
    """Also of what JSON escapes, and of numbers that two writers write differently."""
    many = [
        Metric("m", "gauge", "1", NOW, 1e16, {"n": f"{number}{text * (800 // len(text))}"}) for number in range(1900)
    ]
    taken = 0
    while taken < len(many):
        outcome = send(sink, *many[taken:])
        assert isinstance(outcome, Delivered)
        taken += len(many) - taken if outcome.events is None else outcome.events
    lengths = [len(zlib.decompress(request.body, wbits=31)) for request in intake.requests]
    assert len(lengths) > 1
    assert max(lengths) <= MAX_JSON


def test_many_attributes_of_one_histogram_are_shared(intake: Intake, sink: NewRelicSink) -> None:
    """Forty buckets that repeat four hundred kilobytes of attributes are one request all the same."""
    grown = Histogram(tuple(float(number) for number in range(40)), (1,) * 41, 1.0, 41)
    attributes = {f"a{number}": "x" * 4000 for number in range(90)}
    event = Metric("latency", "histogram", "s", NOW, None, dict(attributes), 0, grown, Delta(NOW - HOUR, None, grown))
    assert send(sink, event) == Delivered()
    assert intake.take() == expect([batch(event)])
    assert intake.broken == 0, intake.rules


# --- time ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (gauge(time=NOW - 48 * HOUR), "older than New Relic takes metrics (48 h)"),
        (change(NOW - 24 * HOUR), "older than New Relic takes events (24 h)"),
        (gauge(time=NOW + 24 * HOUR), "its time is a day ahead: did the clock go back?"),
        (change(NOW + 24 * HOUR), "its time is a day ahead: did the clock go back?"),
    ],
)
def test_what_new_relic_would_drop_for_its_time_is_not_sent(
    intake: Intake, sink: NewRelicSink, event: Event, reason: str
) -> None:
    """It would answer that all is well. So one is refused at a time; what goes before it goes first."""
    assert send(sink, event, gauge()) == Rejected(reason, events=1, too_old=True)
    assert intake.requests == []
    before = gauge() if isinstance(event, Metric) else change()
    assert send(sink, before, event) == Delivered(events=1)
    assert len(intake.take()) == 1


def test_the_edges_of_the_window_arrive(intake: Intake, sink: NewRelicSink) -> None:
    """Two days of outage are made up for."""
    oldest = NOW - 47 * HOUR
    count = Metric("requests", "sum", "1", oldest, 9.0, {}, 0, delta=Delta(oldest - 30 * HOUR, 4.0))
    assert send(sink, gauge(time=oldest), count, gauge(time=NOW + 23 * HOUR)) == Delivered()
    assert send(sink, change(NOW - 23 * HOUR)) == Delivered()
    assert len(intake.take()) == 4
    assert intake.broken == 0, intake.rules
    assert sink.limits.max_age == 47.5 * 3600


# --- answers ------------------------------------------------------------------------------------------------------

HTML = {"content-type": "text/html; charset=utf-8"}
JSON = {"content-type": "application/json"}


NONE = "no answer from ORIGIN"
UNLIKE = "but not as New Relic does: is the URL right?"
PAGE = "a log-in page, or a wrong URL?"
REDIRECTS = "which is not followed: is the URL right?"
BUSY = "ORIGIN takes no more for now: too many requests or points (HTTP 429)"


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (Response(400, b"{}"), Rejected("ORIGIN does not understand the request (HTTP 400)", events=2)),
        (Response(400, b"<p>", HTML), Blocked(f"ORIGIN answers with a page for people (HTTP 400): {PAGE}")),
        (Response(401), Blocked("ORIGIN refuses the key (HTTP 401)")),
        (Response(403), Blocked("ORIGIN refuses the key (HTTP 403)")),
        (Response(404), Blocked("ORIGIN has nothing at this path (HTTP 404): is the URL right?")),
        (Response(405), Blocked("ORIGIN has nothing at this path (HTTP 405): is the URL right?")),
        (Response(408), Retry("ORIGIN waited too long for the request (HTTP 408)")),
        (Response(409), Blocked(f"ORIGIN answers HTTP 409, {UNLIKE}")),
        (Response(410), Blocked("ORIGIN has nothing at this path (HTTP 410): is the URL right?")),
        (Response(411), Blocked("ORIGIN has nothing at this path (HTTP 411): is the URL right?")),
        (Response(413), Rejected("ORIGIN takes no request of this size (HTTP 413)", events=2)),
        (Response(413, b"<p>", HTML), Rejected("ORIGIN takes no request of this size (HTTP 413)", events=2)),
        (Response(415), Blocked(f"ORIGIN answers HTTP 415, {UNLIKE}")),
        (
            Response(429, headers={"retry-after": "17"}),
            Retry(BUSY, 17.0),
        ),
        (
            Response(429, b"<p>", HTML | {"retry-after": "Sun, 15 Jun 2025 15:07:20 GMT"}),
            Retry(BUSY, 39.0),
        ),
        (Response(500), Retry("ORIGIN fails (HTTP 500)")),
        (Response(502, b"<p>", HTML), Retry("ORIGIN fails (HTTP 502)")),
        (Response(503, headers={"retry-after": "5"}), Retry("ORIGIN fails (HTTP 503)", 5.0)),
        (Response(504), Retry("ORIGIN fails (HTTP 504)")),
        (redirect("http://127.0.0.1:1/"), Blocked(f"ORIGIN redirects (HTTP 307), {REDIRECTS}")),
        (redirect("/", 302), Blocked(f"ORIGIN redirects (HTTP 302), {REDIRECTS}")),
        (Response(304), Blocked(f"ORIGIN redirects (HTTP 304), {REDIRECTS}")),
        (Response(202, b"<p>", HTML), Blocked(f"ORIGIN answers with a page for people (HTTP 202): {PAGE}")),
        (Response(204), Blocked(f"ORIGIN answers HTTP 204, {UNLIKE}")),
        (Response(202), Blocked(f"ORIGIN answers HTTP 202, {UNLIKE}")),
        (Response(202, b"[" * 60_000), Blocked(f"ORIGIN answers HTTP 202, {UNLIKE}")),
        (Response(202, b'{"ok":true}'), Blocked(f"ORIGIN answers HTTP 202, {UNLIKE}")),
        (Response(202, b"\xff"), Blocked(f"ORIGIN answers HTTP 202, {UNLIKE}")),
        (
            Response(200, b'{"requestId":"f0e7bfff-001a-b000-0000-01682bcf4565"}', JSON),
            Blocked(f"ORIGIN answers HTTP 200, {UNLIKE}"),
        ),
        (
            Response(202, b"x" * 70_000),
            Blocked(f"{NONE}: the answer is over 65536 bytes, after HTTP 202"),
        ),
        (
            reset(b"HTTP/1.1 202 Accepted\r\ncontent-length: 9\r\n\r\n{"),
            Retry(f"{NONE}: the peer reset the connection, after HTTP 202"),
        ),
        (Response(202, b'{"requestId":"f0e7bfff-001a-b000-0000-01682bcf4565"}', JSON), Delivered()),
    ],
    ids=lambda value: f"{value.status}" if isinstance(value, Response) else None,
)
def test_what_an_answer_means(intake: Intake, sink: NewRelicSink, answer: Any, outcome: Outcome) -> None:
    """One request, whatever the answer; what is not New Relic's own is no delivery."""
    intake.answer(lambda _: answer)
    found = send(sink, gauge(), gauge(2.0))
    reason = getattr(found, "reason", "").replace(intake.address.url, "ORIGIN")
    expected = getattr(outcome, "reason", "")
    assert reason == expected
    assert type(found) is type(outcome)
    for field in ("events", "after", "too_old"):
        assert getattr(found, field, None) == pytest.approx(getattr(outcome, field, None))
    assert len(intake.requests) == 1


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (Response(200, b'{"success":true,"uuid":"f0e7bfff-001a-b000-0000-01682bcf4565"}'), Delivered),
        (Response(200, b'{"success":false,"uuid":"f0e7bfff-001a-b000-0000-01682bcf4565"}'), Blocked),
        (Response(200, b'{"success":true}'), Blocked),
        (Response(202, b'{"requestId":"f0e7bfff-001a-b000-0000-01682bcf4565"}'), Blocked),
        (Response(503), Retry),
    ],
)
def test_what_an_answer_of_the_event_api_means(
    intake: Intake, sink: NewRelicSink, answer: Response, kind: type[Outcome]
) -> None:
    """It has an answer of its own."""
    intake.answer(lambda _: answer)
    assert isinstance(send(sink, change()), kind)


# --- the id of a request ------------------------------------------------------------------------------------------


def ids(intake: Intake) -> list[str]:
    return [request.headers["x-request-id"] for request in intake.requests]


def test_the_same_payload_has_the_same_id(intake: Intake, sink: NewRelicSink) -> None:
    """New Relic's rule for its SDKs, which this one does not keep; another payload has another."""
    intake.answer(lambda _: Response(503))
    for value in (1.0, 1.0, 2.0):
        send(sink, gauge(value))
    first, second, third = ids(intake)
    assert first == second != third
    assert uuid.UUID(first).version == 4


def test_the_id_of_what_was_taken_is_kept(
    intake: Intake, sink: NewRelicSink, caplog: pytest.LogCaptureFixture
) -> None:
    """For New Relic's errors and its support; in the log at debug only."""
    assert sink.last_request_id == ""
    found = "f0e7bfff-001a-b000-0000-01682bcf4565"
    intake.answer(lambda _: Response(202, f'{{"requestId":"{found}"}}'.encode()))
    with caplog.at_level(logging.DEBUG, "forwarder"):
        assert send(sink, gauge()) == Delivered()
    assert sink.last_request_id == found
    (record,) = caplog.records
    assert record.levelno == logging.DEBUG
    assert record.__dict__["fields"] == {"sink": "nr", "events": 1, "request": found}


def test_an_id_of_another_form_is_not_repeated(intake: Intake, sink: NewRelicSink) -> None:
    """A relay may echo what it likes; the delivery counts all the same."""
    intake.answer(lambda request: Response(202, f'{{"requestId":"{request.headers["api-key"]}"}}'.encode()))
    assert send(sink, gauge()) == Delivered()
    assert sink.last_request_id == ""


# --- the way there ------------------------------------------------------------------------------------------------


def test_the_head_of_a_request(intake: Intake, sink: NewRelicSink) -> None:
    """The SDK's, and who uses it."""
    assert send(sink, gauge()) == Delivered()
    headers = intake.requests[0].headers
    assert headers["api-key"] == KEY
    assert headers["user-agent"].startswith("NewRelic-Python-TelemetrySDK/")
    assert "litellm-forwarder/" in headers["user-agent"]
    assert headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("value", ["http://127.0.0.1:1", "proxy.internal:3128", "http://[broken", "socks5://x", ":"])
def test_no_proxy_of_the_environment_is_used(
    intake: Intake, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, value: str
) -> None:
    """Nor looked at: the SDK would fail to start over some of these."""
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, value)
    made = sink_for(intake.address.url)
    assert send(made, gauge()) == Delivered()
    assert caplog.records == []
    made.close()


def test_a_certificate_of_nobody_known_blocks() -> None:
    """Nothing is sent to who cannot prove to be New Relic, and somebody has to look."""
    intake = Intake(KEY, tls=True)
    made = sink_for(intake.address.url)
    outcome = send(made, gauge())
    assert isinstance(outcome, Blocked)
    assert "certificate verify failed" in outcome.reason
    assert intake.requests == []
    made.close()
    intake.close()


def test_a_certificate_of_another_name_blocks(authority: Authority) -> None:
    """Even of a known authority."""
    intake = Intake(KEY, tls=authority.server("metric-api.newrelic.com"))
    made = sink_for(intake.address.url, context=tls_context(authority.ca_file, None, None))
    outcome = send(made, gauge())
    assert isinstance(outcome, Blocked)
    assert "certificate verify failed" in outcome.reason
    made.close()
    intake.close()


def test_a_relay_that_wants_a_certificate(authority: Authority, tmp_path: Path) -> None:
    """Own authority and client certificate, from the configuration to the socket."""
    intake = Intake(KEY, tls=authority.server(client_needed=True))
    text = f"""
        [sinks.nr]
        type = "newrelic"
        api_key = {{ env = "K" }}
        url = "{intake.address.url}"
        events_url = "{intake.address.url}"
        ca_file = "{authority.ca_file}"
        client_cert = "{authority.client_cert}"
        client_key = "{authority.client_key}"
    """
    made = build_sink("nr", load(tmp_path, Parts(more=text).text(), {"K": KEY}).sinks["nr"], Instance(tmp_path))
    now = time.time_ns()
    assert made.send([Batch(Resource({}), now, (gauge(time=now),))], timeout=TIMEOUT) == Delivered()
    made.close()
    intake.close()


# --- configuration ------------------------------------------------------------------------------------------------


def configured(folder: Path, more: str = "", key: str = KEY) -> Settings:
    text = Parts(more=f'[sinks.nr]\ntype = "newrelic"\napi_key = {{ env = "K" }}\n{more}').text()
    found = load(folder, text, {"K": key}).sinks["nr"]
    assert isinstance(found, Settings)
    return found


def mistakes(folder: Path, more: str, environ: dict[str, str] | None = None) -> list[str]:
    text = Parts(more=f'[sinks.nr]\ntype = "newrelic"\n{more}').text()
    return lines(folder, text, {"K": KEY} if environ is None else environ)


@pytest.mark.parametrize("region", ["us", "eu"])
def test_a_region_is_all_it_takes(tmp_path: Path, region: str) -> None:
    """Beside the key."""
    made = build_sink("nr", configured(tmp_path, f'region = "{region}"'), Instance(tmp_path))
    assert isinstance(made, NewRelicSink)
    assert (made._metrics.poster.origin, made._events.poster.origin) == REGIONS[region]
    made.close()


KEYED = 'api_key = { env = "K" }\n'
PASTED = "(was the secret itself written here?)"
EXPORT = "(export NEW_RELIC_LICENSE_KEY=… before starting)"
LICENSE = "(a license key is needed, of the type INGEST - LICENSE)"


@pytest.mark.parametrize(
    ("more", "environ", "found"),
    [
        ("", {}, "api_key: is missing (it is always needed)"),
        (KEYED, {}, f"api_key: the environment variable it names is not set {PASTED}"),
        (
            'api_key = { env = "NEW_RELIC_LICENSE_KEY" }',
            {},
            f"api_key: environment variable NEW_RELIC_LICENSE_KEY is not set {EXPORT}",
        ),
        (
            'api_key = { env = "K", optional = true }',
            {},
            "api_key: is missing (New Relic takes nothing without)",
        ),
        (KEYED, {"K": "NRAK-CANARY"}, f"api_key: is a user key {LICENSE}"),
        (KEYED, {"K": "eu01xxCANARY"}, 'api_key: holds a license key of the EU (set region = "eu")'),
        (KEYED + 'region = "jp"', None, 'region: must be "us" or "eu"'),
        (
            KEYED + 'url = "http://relay.example"\nevents_url = "https://relay.example"',
            None,
            "url: would send the license key in the clear (https://, unless it is this machine)",
        ),
        (
            KEYED + 'url = "https://metric-api.newrelic.com/metric/v1"\nchanges = false',
            None,
            "url: must be a base address (leave out the path of the API)",
        ),
        (KEYED + 'url = "https://r.example"', None, "url: needs events_url beside it (or changes = false)"),
        (
            KEYED + 'events_url = "https://r.example"',
            None,
            "events_url: needs url beside it (both are of one account)",
        ),
        (
            KEYED + 'proxy = "https://proxy.example"',
            None,
            "proxy: must begin with http:// (what goes to https:// is encrypted in it too)",
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_told(tmp_path: Path, more: str, environ: dict[str, str] | None, found: str) -> None:
    """At start, with the fix, and without the key."""
    assert mistakes(tmp_path, more, environ) == [f"sinks.nr.{found}"]


@pytest.mark.parametrize(
    "url", ["http://localhost:8080", "http://127.0.0.2", "http://[::1]:80/nr", "https://r.example/nr"]
)
def test_relays(tmp_path: Path, url: str) -> None:
    """On this machine without TLS, elsewhere with."""
    made = build_sink(
        "nr", configured(tmp_path, f'url = "{url}"\nevents_url = "{url}"\nregion = "us"', "eu01xx"), Instance(tmp_path)
    )
    assert repr(made) == "NewRelicSink('nr')"
    made.close()


def test_looking_without_the_secrets_needs_none(tmp_path: Path) -> None:
    """`spool list` works on a machine that has no key; such a configuration builds no sink."""
    path = tmp_path / "config.toml"
    path.write_text(Parts(more='[sinks.nr]\ntype = "newrelic"\napi_key = { env = "K" }').text())
    found = config.load(path, {}, secrets=False).sinks["nr"]
    with pytest.raises(ValueError, match="the secrets were not read"):
        build_sink("nr", found, Instance(tmp_path))
