"""Replies that no recording holds, case by case: what each status and body means for each endpoint."""

import json

import pytest
from captured import NOW

from forwarder import catalog
from forwarder.normalize import Endpoint, normalize
from forwarder.reply import Failure, Reply

HTML = b"<!doctype html><html><body>502</body></html>"
JSON = "application/json"


def _reply(status: int | None, body: bytes = b"", content_type: str = JSON, failure: Failure | None = None) -> Reply:
    return Reply(NOW, 0.01, status, failure, content_type, body)


@pytest.mark.parametrize(
    ("reply", "alive", "error"),
    [
        (_reply(200, b'"I\'m alive!"'), True, None),
        (_reply(200, b"{}"), True, None),
        (_reply(200), True, None),
        (_reply(204), True, None),
        (_reply(200, b"I'm alive!", "text/plain"), True, None),
        (_reply(200, b"OK", "text/html; charset=utf-8"), True, None),  # what Flask calls any string
        (_reply(200, b" \n" + HTML, "text/html"), False, "not_json"),
        (_reply(503, b'{"status":"shutting_down"}'), False, None),
        (_reply(503, b'{"status":"healthy"}'), False, "http_5xx"),
        (_reply(502, HTML, "text/html"), False, "http_5xx"),
        (_reply(404, b'{"detail":"Not Found"}'), False, "not_found"),
        (_reply(302), False, "redirect"),
        (_reply(418), False, "http_4xx"),
        (_reply(401), None, "auth"),
        (_reply(403, HTML), None, "auth"),
        (_reply(429), None, "rate_limited"),
        (_reply(None, failure=Failure.REFUSED), False, "refused"),
        (_reply(200, b"\"I'm", failure=Failure.TIMEOUT), False, "timeout"),
        (_reply(None), False, "connection"),
    ],
)
def test_liveliness(reply: Reply, alive: bool | None, error: str | None) -> None:
    """Alive is any 2xx that is no page; not seeing is not the same as down."""
    reading = normalize("liveliness", reply, keyed=True)
    assert (reading.alive, reading.error) == (alive, error)
    assert [m.value for m in reading.metrics if m.name == "litellm.up"] == ([] if alive is None else [alive])


@pytest.mark.parametrize(
    ("reply", "ready", "error"),
    [
        (_reply(200, b'{"status":"healthy","db":"connected"}'), True, None),
        (_reply(200, b"{}"), True, None),
        (_reply(200), True, None),
        (_reply(200, b"ok", "text/plain"), True, None),
        (_reply(200, b'{"status":"not_ready"}'), False, None),
        (_reply(503, b'{"status":"not_ready"}'), False, None),
        (_reply(500, b'{"status":"not_ready"}'), False, None),
        (_reply(503, b'{"status":"healthy","db":"disconnected"}'), False, None),  # 1.109.1
        (_reply(503, b'{"detail":"Service Unhealthy (All connection attempts failed)"}'), False, None),  # 1.77.7
        (_reply(500, b'{"detail":"x"}'), False, "http_5xx"),
        (_reply(503, HTML, "text/html"), False, "http_5xx"),
        (_reply(200, HTML, "text/html"), None, "not_json"),
        (_reply(200, b'{"status":"rea'), None, "malformed"),
        (_reply(401), None, "auth"),
        (_reply(404), None, "not_found"),
        (_reply(307), None, "redirect"),
        (_reply(429), None, "rate_limited"),
        (_reply(None, failure=Failure.TIMEOUT), None, "timeout"),
    ],
)
def test_readiness(reply: Reply, ready: bool | None, error: str | None) -> None:
    """Ready is the status code, except where the documented word says otherwise; unknown is not "not ready"."""
    reading = normalize("readiness", reply, keyed=True)
    assert (reading.ready, reading.error) == (ready, error)
    assert [m.value for m in reading.metrics if m.name == "litellm.ready"] == ([] if ready is None else [ready])


def test_readiness_tells_of_the_database() -> None:
    """1.109.1 with its database down: 503, while the status word still says healthy."""
    reading = normalize("readiness", _reply(503, b'{"status":"healthy","db":"disconnected"}'), keyed=False)
    assert (reading.dependencies, reading.complaint) == ({"database": False}, False)
    stalled = normalize("readiness", _reply(503, b'{"status":"healthy","db":"stalled"}'), keyed=False)
    assert stalled.dependencies == {"database": False}


@pytest.mark.parametrize(
    "endpoint", ["health", "models", "services", "shared_status", "backlog", "latest", "model_info"]
)
@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (_reply(200, b"[]"), "unexpected"),
        (_reply(200, b'{"detail":"hello"}'), "unexpected"),
        (_reply(200, b"null"), "unexpected"),
        (_reply(200, HTML, "text/html"), "not_json"),
        (_reply(200, b"hello", "text/plain"), "not_json"),
        (_reply(200, b"", "text/plain"), "not_json"),
        (_reply(200, b"9e", JSON), "malformed"),
        (_reply(200, b'{"healthy_endpoints": [{"mod'), "malformed"),
        (_reply(200, b"[" * 200_000), "malformed"),
        (_reply(200, b"9" * 5_000), "malformed"),
        (_reply(400, b'{"error":{"type":"no_db_connection"}}'), "auth"),
        (_reply(400, b'{"error":{"type":"auth_error"}}'), "http_4xx"),
        (_reply(302), "redirect"),
        (_reply(429), "rate_limited"),
        (_reply(500, b"Internal Server Error", "text/plain"), "http_5xx"),
        (_reply(504, HTML), "http_5xx"),
        (_reply(200, b"{}", failure=Failure.TOO_LARGE), "too_large"),
    ],
)
def test_what_is_not_an_answer(endpoint: Endpoint, reply: Reply, error: str) -> None:
    """A reply that cannot be read says why, succeeds in nothing, and tells nothing about what it did not show."""
    reading = normalize(endpoint, reply, keyed=True)
    assert reading.error == error
    assert error in catalog.PROBE_ERRORS
    assert reading.detail
    assert (reading.deployments, reading.healthy, reading.configured, reading.background) == (None, None, None, None)
    found = {metric.name: metric for metric in reading.metrics}
    assert found["litellm.probe.success"].value == 0
    assert found["litellm.probe.failure"].attributes == {"endpoint": endpoint, "error.type": error}
    assert ("litellm.probe.response.size" in found) is (reply.failure is None)
    assert not any(name.startswith(("litellm.deployment", "litellm.dependency")) for name in found)


@pytest.mark.parametrize("status", [404, 405, 422])
def test_absent_endpoints_say_nothing(status: int) -> None:
    """An endpoint that a release does not have is no failure: no metrics at all."""
    reading = normalize("models", _reply(status, b"{}"), keyed=True)
    assert reading.absent
    assert (reading.error, reading.metrics) == (None, ())


@pytest.mark.parametrize(
    ("moment", "age"),
    [
        ("2024-01-15T10:30:00Z", 60.0),
        ("2024-01-15T10:30:00", 60.0),  # no zone: UTC
        ("2024-01-15T11:30:00+01:00", 60.0),
        ("2024-01-15T10:31:00Z", 0.0),
        ("2024-01-15T10:31:01Z", None),  # the future
        ("1970-01-01T00:00:00Z", None),  # a placeholder
        ("0001-01-01T00:00:00+14:00", None),
        ("9999-12-31T23:59:59-14:00", None),
        ("yesterday", None),
        ("", None),
        (1_705_314_600, None),
        (None, None),
    ],
)
def test_ages(moment: object, age: float | None) -> None:
    """An age is sent when the moment makes sense; it is never negative, nor half a century."""
    body = json.dumps({"healthy": [{"model": "m", "last_check": moment}], "unhealthy": []}).encode()
    deployments = normalize("models", _reply(200, body), keyed=True).deployments
    assert [deployment.check_age for deployment in deployments or ()] == [age]


@pytest.mark.parametrize("number", [-1, -0.5, "7", True, None, float("nan"), float("inf"), 10**400, [], {}])
def test_numbers_that_are_none(number: object) -> None:
    """What is not a finite number of zero or more is not sent."""
    backlog = json.dumps({"in_flight_requests": number, "queued_requests": 3}).encode()
    services = json.dumps({"database": {"latency_ms": number}, "router": {"models": number}}).encode()
    shared = json.dumps({"shared_health_check_enabled": True, "status": {"cache_age_seconds": number}}).encode()
    bodies: dict[Endpoint, bytes] = {"backlog": backlog, "services": services, "shared_status": shared}
    sent = [
        (metric.name, metric.value)
        for endpoint, body in bodies.items()
        for metric in normalize(endpoint, _reply(200, body), keyed=True).metrics
        if not metric.name.startswith("litellm.probe.")
    ]
    assert sent == [("litellm.backlog.requests", 3.0)]


def test_a_flood_of_small_values_is_refused_unparsed() -> None:
    """Sixteen megabytes of `{}` would take a gigabyte of memory."""
    body = b"[" + b"{}," * 600_000 + b"{}]"
    reply = Reply(NOW, 0.1, 200, content_type="application/json", body=body)
    assert normalize("health", reply, keyed=True).error == "too_large"
