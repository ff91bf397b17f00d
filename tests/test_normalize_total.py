"""The normaliser takes anything: any bytes, any JSON, any status, recorded replies with anything in place of any part.

For each: it does not raise, every number is finite, every attribute is in the allow-list, every string is clean, and
the events survive their codec.
"""

import copy
import json
import math
import re
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from captured import NOW, Capture, captures
from hypothesis import given, settings
from hypothesis import strategies as st

from forwarder import catalog, events
from forwarder.normalize import Endpoint, Reading, count_metrics, deployment_metrics, normalize
from forwarder.normalize.changes import ChangeState, decode, encode, observe
from forwarder.normalize.failure import failure
from forwarder.normalize.reading import MAX_NAME
from forwarder.reply import Failure, Reply

ENDPOINTS: tuple[Endpoint, ...] = get_args(Endpoint)
ALLOWED = {metric.name: set(metric.attributes) for metric in catalog.METRICS} | {
    change.name: set(change.attributes) for change in catalog.CHANGES
}
CLOSED: dict[str, set[str]] = {
    "endpoint": set(ENDPOINTS),
    "dependency": {"database", "redis", "router"},
    "state": {"in_flight", "admitted", "queued", "rejected"},
}
DIRTY = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def check(reading: Reading) -> list[events.Event]:
    """Everything that comes of a reading, checked and through the codec."""
    assert reading.error is None or reading.error in catalog.PROBE_ERRORS
    found: list[events.Event] = [*reading.metrics, *count_metrics(reading, NOW)]
    found += deployment_metrics(reading.deployments or (), NOW)
    state = ChangeState()
    for _ in range(2):
        state, told = observe(
            state, reading, NOW, target="eu", source="health", failure_threshold=1, success_threshold=1
        )
        assert decode(encode(state)) == state
        found += told
    for event in found:
        assert event.attributes.keys() <= ALLOWED[event.name]
        for key, value in event.attributes.items():
            if isinstance(value, str):
                assert 0 < len(value) <= MAX_NAME
                assert not DIRTY.search(value)
            else:
                assert 100 <= value <= 599, key
            assert key not in CLOSED or value in CLOSED[key]
            if key == "error.type":
                assert value in {**catalog.PROBE_ERRORS, **catalog.DEPLOYMENT_ERRORS}
        if isinstance(event, events.Metric):
            assert event.value is not None
            assert math.isfinite(event.value)
            assert event.value >= 0
        else:
            assert not DIRTY.search(event.title + event.text)
    points = [(e.name, tuple(sorted(e.attributes.items()))) for e in found if isinstance(e, events.Metric)]
    assert len(points) == len(set(points)), "two points of one series in one reading"
    batch = events.Batch(events.Resource(), NOW, tuple(found))
    assert events.decode(events.encode(batch)) == batch
    return found


SECOND = st.sampled_from(
    [0, 1, 200, 204, 302, 307, 400, 401, 403, 404, 405, 418, 422, 429, 500, 502, 503, 504, 999, -1]
)
STATUS = st.none() | st.just(200) | SECOND | st.integers()
TYPES = st.sampled_from(["application/json", "text/html", "text/plain; charset=utf-8", "", "\x00"])
WORDS = st.sampled_from([
    "healthy", "unhealthy", "ready", "not_ready", "connected", "disconnected", "stalled", "Not connected",
    "shutting_down", "2024-01-15T10:30:00Z", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "\ud800", "a/b",
    "http://u:p@[::1", "litellm.Timeout: x", "Error code: 401", "x" * 300, "\r\n", "huggingface/https://h/v1", "id",
    "id#2",
])  # fmt: skip
KEYS = st.sampled_from([
    "healthy_endpoints", "unhealthy_endpoints", "healthy", "unhealthy", "status", "db", "redis", "litellm_version",
    "db_initialized", "router_initialized", "database", "router", "latency_ms", "models", "model", "model_id",
    "api_base", "error", "exception_status", "last_check", "latest_health_checks", "checked_at", "data", "detail",
    "type", "shared_health_check_enabled", "cache_age_seconds", "in_flight_requests", "queued_requests",
])  # fmt: skip
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -(10**400), 200, 429, -5])
    | st.floats()
    | WORDS
    | st.text(max_size=20)
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(KEYS | st.text(max_size=5), inner, max_size=6),
    max_leaves=40,
)
ENTRY = st.dictionaries(KEYS, SCALARS, max_size=8) | SCALARS
LISTS = st.fixed_dictionaries(
    {"healthy_endpoints": st.lists(ENTRY, max_size=8), "unhealthy_endpoints": st.lists(ENTRY)}
)


def _dump(value: Any) -> bytes:
    return json.dumps(value).encode()  # NaN and Infinity as Python writes and reads them; proxies in Python do


@settings(deadline=None)
@given(
    endpoint=st.sampled_from(ENDPOINTS), status=STATUS, body=st.binary(max_size=300), kind=TYPES, keyed=st.booleans()
)
def test_any_bytes(endpoint: Endpoint, status: int | None, body: bytes, kind: str, keyed: bool) -> None:
    """No bytes and no status break the normaliser."""
    check(normalize(endpoint, Reply(NOW, 0.1, status, content_type=kind, body=body), keyed=keyed))


@settings(deadline=None)
@given(endpoint=st.sampled_from(ENDPOINTS), status=STATUS, content=JSON, keyed=st.booleans())
def test_any_json(endpoint: Endpoint, status: int | None, content: Any, keyed: bool) -> None:
    """No JSON does either, with our keys in places where they do not belong."""
    reply = Reply(NOW, 0.1, status, content_type="application/json", body=_dump(content))
    check(normalize(endpoint, reply, keyed=keyed))


@settings(deadline=None)
@given(content=LISTS)
def test_any_lists_of_deployments(content: dict[str, list[Any]]) -> None:
    """Lists of anything: counted to the last entry, listed where they are deployments, no two with one id."""
    reading = normalize("health", Reply(NOW, 0.1, 200, body=_dump(content)), keyed=True)
    check(reading)
    assert reading.healthy == len(content["healthy_endpoints"])
    assert reading.unhealthy == len(content["unhealthy_endpoints"])
    ids = [deployment.id for deployment in reading.deployments or ()]
    assert len(ids) == len(set(ids))


@settings(deadline=None)
@given(
    endpoint=st.sampled_from(ENDPOINTS),
    fault=st.sampled_from(Failure),
    status=STATUS,
    elapsed=st.floats() | st.just(math.nan),
    body=st.binary(max_size=50),
)
def test_any_failure_of_the_transport(
    endpoint: Endpoint, fault: Failure, status: int | None, elapsed: float, body: bytes
) -> None:
    """A broken transport is what it is, whatever arrived before; only liveliness draws a conclusion from it."""
    reading = normalize(endpoint, Reply(NOW, elapsed, status, fault, body=body), keyed=True)
    check(reading)
    assert reading.error == fault.value
    assert reading.alive is (False if endpoint == "liveliness" else None)
    assert (reading.ready, reading.deployments, reading.absent) == (None, None, False)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in parsed JSON."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


MUTABLE = [captured for captured in captures() if captured.content is not None and "many200" not in captured.path]


@settings(deadline=None)
@given(captured=st.sampled_from(MUTABLE), data=st.data())
def test_recorded_replies_with_anything_in_any_place(captured: Capture, data: st.DataObject) -> None:
    """A recorded reply in which one part was replaced, removed or renamed, or whose bytes were cut off."""
    content = {"root": copy.deepcopy(captured.content)}
    places = list(_places(content))
    container, key = places[data.draw(st.integers(0, len(places) - 1))]
    if data.draw(st.booleans()) or container is content:
        container[key] = data.draw(JSON)
    else:
        del container[key]
    body = _dump(content["root"])
    body = body[: data.draw(st.just(len(body)) | st.integers(0, len(body)))]
    reply = Reply(NOW, captured.elapsed, captured.status, content_type=captured.content_type, body=body)
    for keyed in (True, False):
        check(normalize(captured.endpoint, reply, keyed=keyed))


@settings(deadline=None)
@given(entry=st.dictionaries(KEYS, SCALARS), error=st.text() | WORDS, status=SCALARS)
def test_any_failing_entry_has_a_class_of_the_closed_list(entry: dict[str, Any], error: str, status: Any) -> None:
    """error.type is bounded: no upstream can make a new one, nor pass a status that is none."""
    for given_entry in (entry, {**entry, "error": error}, {**entry, "error": error, "exception_status": status}):
        error_type, http_status = failure(given_entry)
        assert error_type in catalog.DEPLOYMENT_ERRORS
        assert http_status is None or 100 <= http_status <= 599


@pytest.mark.parametrize(
    "error",
    [
        "<" * 2_000_000,
        "error code: " * 200_000,
        "A" * 2_000_000 + ":",
        "litellm." * 300_000,
        " " * 2_000_000 + "x",
        "5" * 2_000_000,
    ],
    ids=lambda error: error[:12],
)
def test_long_errors_cost_little(error: str) -> None:
    """Only the start of a line is looked at, however long: 200 hostile entries are read at once, not in minutes."""
    body = _dump({"healthy_endpoints": [], "unhealthy_endpoints": [{"model": "m", "error": error}] * 3})
    reading = normalize("health", Reply(NOW, 0.1, 200, body=body), keyed=True)
    assert len(reading.deployments or ()) == 3
    for _ in range(200):
        failure({"error": error})


def test_a_flood_of_deployments_is_counted_but_not_listed() -> None:
    """Past the cap the counts stay true, and which deployments are followed does not depend on who is healthy."""
    models = [{"model": f"openai/m{number}"} for number in range(5_100)]
    sick = {"model": "openai/m7", "error": "Timeout exceeded"}
    healthy = _dump({"healthy_endpoints": models, "unhealthy_endpoints": []})
    mixed = _dump(
        {"healthy_endpoints": [m for m in models if m["model"] != "openai/m7"], "unhealthy_endpoints": [sick]}
    )
    before, after = (normalize("health", Reply(NOW, 0.1, 200, body=body), keyed=True) for body in (healthy, mixed))
    assert (before.healthy, after.healthy, after.unhealthy) == (5_100, 5_099, 1)
    assert before.deployments is not None
    assert len(before.deployments) == 5_000
    assert {d.id for d in before.deployments} == {d.id for d in after.deployments or ()}
    assert "5100" in before.detail


def test_entries_that_are_no_deployments() -> None:
    """A string is a model name; a number or null is counted, because the proxy lists it, and not listed."""
    body = _dump({"healthy_endpoints": ["gpt-4", 7, None], "unhealthy_endpoints": [[]]})
    reading = normalize("health", Reply(NOW, 0.1, 200, body=body), keyed=True)
    assert (reading.healthy, reading.unhealthy) == (3, 1)
    assert [d.model for d in reading.deployments or ()] == ["gpt-4"]
    assert "3 entries" in reading.detail


def test_a_missing_list_is_not_an_empty_one() -> None:
    """What a reply does not say is not sent as 0."""
    reading = normalize("health", Reply(NOW, 0.1, 200, body=b'{"healthy_endpoints": [{"model": "m"}]}'), keyed=True)
    assert [m.name for m in count_metrics(reading, NOW)] == ["litellm.healthy_models"]
    broken = normalize("health", Reply(NOW, 0.1, 200, body=b'{"healthy_endpoints": null, "status": "x"}'), keyed=True)
    assert broken.error == "unexpected"
