"""Recorded replies of LiteLLM 1.53.1, 1.80.17 and 1.106.2, and documented ones, read as we promise.

The golden files hold the whole reading of every capture, one file per version and configuration. After a change that
is meant, `GOLDEN=write pytest tests/test_normalize_golden.py` writes them anew: read the diff. What matters is stated
here by hand as well, so that a golden file that was written wrongly does not pass.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from captured import NOW, Capture, capture, captures

from forwarder import catalog
from forwarder.normalize import count_metrics, deployment_metrics, normalize

GOLDEN = Path(__file__).parent / "golden"
RELEASES = ("1.53.1", "1.80.17", "1.106.2")


def _as_json(captured: Capture) -> dict[str, Any]:
    reading = captured.reading()
    fields = {
        field: getattr(reading, field)
        for field in ("error", "detail", "alive", "ready", "complaint", "version", "background", "configured")
    }
    said = {field: value for field, value in fields.items() if value not in (None, "")}
    if reading.absent:
        said["absent"] = True
    if reading.dependencies:
        said["dependencies"] = dict(reading.dependencies)
    said["metrics"] = [f"{m.name} {m.value} {m.unit} {json.dumps(m.attributes)}" for m in reading.metrics]
    if reading.deployments is not None:
        said["counts"] = [f"{metric.name} {metric.value}" for metric in count_metrics(reading, NOW)]
        said["deployments"] = [
            f"{'up' if d.up else 'down'} {d.id} {d.model} {d.provider} {d.error_type} {d.http_status} {d.check_age}"
            for d in reading.deployments
        ]
    return said


def _by_file() -> dict[str, list[Capture]]:
    found: dict[str, list[Capture]] = {}
    for captured in captures():
        version, configuration, _ = captured.path.split("/")
        found.setdefault(f"{version}.{configuration}.json", []).append(captured)
    return found


BY_FILE = _by_file()


@pytest.mark.parametrize("file", BY_FILE)
def test_golden(file: str) -> None:
    """Every reading is exactly what it was: a changed id, class or number is a changed series for the user."""
    readings = {captured.path.rpartition("/")[2]: _as_json(captured) for captured in BY_FILE[file]}
    if os.environ.get("GOLDEN") == "write":
        (GOLDEN / file).write_text(json.dumps(readings, indent=1, ensure_ascii=False) + "\n")
    assert readings == json.loads((GOLDEN / file).read_text())


def test_no_stray_golden_file() -> None:
    """A golden file whose captures are gone would look like a promise that is still checked."""
    assert {file.name for file in GOLDEN.glob("*.json")} == set(BY_FILE)


# --- what matters, by hand ------------------------------------------------------------------------------------------

# Upstream of the test bed → class, status. 1.53.1 took an answer that is not JSON for healthy.
BY_UPSTREAM = {
    "http://127.0.0.1:9/v1": "connection",
    "/e401/v1": "authentication",
    "/e429/v1": "rate_limit",
    "/e500/v1": "server_error",
    "/html/v1": "bad_gateway",
    "/e404/v1": "not_found",
    "/notjson/v1": "invalid_response",
    "/hang/v1": "timeout",
}


@pytest.mark.parametrize("release", RELEASES)
def test_every_failure_has_its_class(release: str) -> None:
    """The class of each failing deployment is the one its upstream was set up to produce, on every release."""
    captured = capture(f"{release}/key/health.key")
    reading = captured.reading()
    assert reading.deployments is not None
    failing = [deployment for deployment in reading.deployments if not deployment.up]
    assert len(failing) == len(captured.content["unhealthy_endpoints"])
    checked = 0
    for entry, deployment in zip(captured.content["unhealthy_endpoints"], failing, strict=True):
        for upstream, error_type in BY_UPSTREAM.items():
            if entry.get("api_base", "").endswith(upstream):
                assert deployment.error_type == error_type, upstream
                checked += 1
    assert checked == (7 if release == "1.53.1" else 8)
    assert all(deployment.error_type in catalog.DEPLOYMENT_ERRORS for deployment in failing)


def test_a_deployment_without_credentials_is_named_so() -> None:
    """1.106.2 alone starts without an api_key; the class tells a mistake of configuration from a refused key."""
    reading = capture("1.106.2/key/health.key").reading()
    assert reading.deployments is not None
    assert [d.error_type for d in reading.deployments].count("missing_credentials") == 1


def test_status_of_failures_is_what_the_proxy_gave() -> None:
    """1.106 gives exception_status, 1.53.1 writes it into the text, 1.80.17 gives none: absent, not guessed."""
    by_release = {release: capture(f"{release}/key/health.key").reading().deployments or () for release in RELEASES}
    statuses = {release: [d.http_status for d in found if not d.up] for release, found in by_release.items()}
    assert statuses == {
        "1.53.1": [404, None, 401, 429, 500, 502, 404, None],
        "1.80.17": [None] * 9,
        "1.106.2": [500, 500, 401, 429, 500, 502, 500, 404, 408, 500],
    }


@pytest.mark.parametrize(
    ("release", "healthy", "unhealthy"), [("1.53.1", 7, 8), ("1.80.17", 6, 9), ("1.106.2", 6, 10)]
)
def test_counts_are_the_lengths_of_the_lists(release: str, healthy: int, unhealthy: int) -> None:
    """litellm.healthy_models is what the user's documentation says: how many the proxy lists as healthy."""
    reading = capture(f"{release}/key/health.key").reading()
    assert [(m.name, m.value) for m in count_metrics(reading, NOW)] == [
        ("litellm.healthy_models", healthy),
        ("litellm.unhealthy_models", unhealthy),
    ]
    metrics = deployment_metrics(reading.deployments or (), NOW)
    up = [m.value for m in metrics if m.name == "litellm.deployment.up"]
    assert (up.count(1.0), up.count(0.0)) == (healthy, unhealthy)
    failures = [m for m in metrics if m.name == "litellm.deployment.failure"]
    assert len(failures) == unhealthy
    assert all("error.type" in m.attributes for m in failures)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("other", ["key/health.key.second", "key-bg/health.t25", "nokey/health.none"])
def test_ids_are_the_same_from_poll_to_poll(release: str, other: str) -> None:
    """Two polls, and a poll with background checks on, name the same deployments alike."""
    if (release, other) == ("1.80.17", "nokey/health.none"):
        other = "key-bg/health.t25b"  # not recorded for that release
    first, second = capture(f"{release}/key/health.key").reading(), capture(f"{release}/{other}").reading()
    assert first.deployments
    assert [d.id for d in first.deployments] == [d.id for d in second.deployments or ()]


def test_ids_are_the_same_after_an_upgrade() -> None:
    """1.53.1 and 1.80.17, neither of which gives model_id, come to the same ids, although one of them listed a
    failing deployment as healthy.
    """
    old, new = capture("1.53.1/key/health.key").reading(), capture("1.80.17/key/health.key").reading()
    assert {d.id for d in old.deployments or ()} == {d.id for d in new.deployments or ()}


@pytest.mark.parametrize("release", RELEASES)
def test_background_checks_before_their_first_cycle(release: str) -> None:
    """200 `{}` means "not yet", not "no models": nothing is counted and nobody is removed."""
    reading = capture(f"{release}/key-bg/health.t0").reading()
    assert (reading.error, reading.deployments, reading.background) == (None, None, True)
    assert count_metrics(reading, NOW) == []


@pytest.mark.parametrize("path", ["1.106.2/key/health.model-bad-key", "1.106.2/key/health.model-unknown"])
def test_a_targeted_check_that_fails_is_readable(path: str) -> None:
    """503 with the normal body is an answer, not a server error (1.106 and later)."""
    captured = capture(path)
    assert captured.status == 503
    assert captured.reading().error is None
    assert captured.reading().deployments is not None


@pytest.mark.parametrize(
    "captured", [c for c in captures() if c.path.endswith((".none", ".bad"))], ids=lambda c: c.path
)
def test_refused_keys(captured: Capture) -> None:
    """A missing or wrong key is `auth`, in each of the ways the releases say it, and never looks like anything else;
    what is open to all is read without a key; what a release lacks is absent.
    """
    reading = captured.reading()
    if captured.endpoint in ("liveliness", "readiness"):
        assert reading.error is None
        assert (reading.alive or reading.ready) is True
    elif captured.status == 404:
        assert reading.absent
    elif "/nokey/" in captured.path or "/plain6/" in captured.path:  # configured without a master key
        assert reading.error is None
    else:
        assert reading.error == "auth"
        assert ("refused" in reading.detail) is captured.keyed


def test_a_crash_on_a_keyless_request_is_no_crash_of_the_proxy() -> None:
    """1.106.2 answers 500 to a request without a key; with a key configured the same answer is a server error."""
    captured = capture("1.106.2/key/health.none")
    assert captured.status == 500
    assert normalize("health", captured.reply(), keyed=False).error == "auth"
    assert normalize("health", captured.reply(), keyed=True).error == "http_5xx"


@pytest.mark.parametrize("release", ["1.80.17", "1.106.2"])
def test_latest_without_a_database_is_absent(release: str) -> None:
    """A proxy without a database has no stored checks; that is no failure to alarm about."""
    reading = capture(f"{release}/key/health-latest.key").reading()
    assert reading.absent
    assert reading.metrics == ()


def test_versions() -> None:
    """The version comes with the long readiness body (to 1.80), or with readiness details and a key (1.106)."""
    assert capture("1.53.1/key/health-readiness.none").reading().version == "1.53.1"
    assert capture("1.80.17/key/health-readiness.none").reading().version == "1.80.17"
    assert capture("1.106.2/key/health-readiness.none").reading().version is None
    assert capture("1.106.2/key/health-readiness-details.key").reading().version == "1.106.2"


def test_a_proxy_without_a_database_has_no_database_down() -> None:
    """`db: "Not connected"` is how real proxies say that none is configured."""
    for release in RELEASES:
        reading = capture(f"{release}/key/health-readiness.key").reading()
        assert (reading.ready, reading.complaint, reading.dependencies) == (True, False, {})


def test_documented_health() -> None:
    """The documented shape is first-class: status, dependencies, version, counts and classes all come through."""
    reading = capture("documented/unhealthy/health.key").reading()
    assert (reading.complaint, reading.version) == (True, "1.50.0")
    assert reading.dependencies == {"database": False, "redis": True}
    assert [(d.model, d.up, d.error_type, d.provider) for d in reading.deployments or ()] == [
        ("gpt-4", True, None, None),
        ("claude-3-opus", False, "authentication", None),
        ("gpt-3.5-turbo", False, "rate_limit", None),
        ("mistral/mistral-large", False, "timeout", "mistral"),
    ]


def test_documented_readiness_liveliness_and_models() -> None:
    """not_ready is not ready; an empty 200 is alive; last_check becomes an age."""
    ready, not_ready = (capture(f"documented/{s}/health-readiness.key").reading() for s in ("healthy", "unhealthy"))
    assert (ready.ready, ready.dependencies) == (True, {"database": True, "router": True})
    assert (not_ready.ready, not_ready.error, not_ready.complaint) == (False, None, True)
    assert not_ready.dependencies == {"database": False, "router": True}
    assert capture("documented/healthy/health-liveliness.key").reading().alive is True
    models = capture("documented/unhealthy/health-models.key").reading()
    assert [(d.model, d.up, d.error_type, d.check_age) for d in models.deployments or ()] == [
        ("gpt-4", True, None, 60.0),
        ("azure/gpt-4", False, "other", 120.0),
    ]
    metrics = deployment_metrics(models.deployments or (), NOW)
    assert [m.value for m in metrics if m.name == "litellm.deployment.check.age"] == [60.0, 120.0]


def test_documented_services() -> None:
    """Latencies are seconds here and milliseconds there."""
    reading = capture("documented/healthy/health-services.key").reading()
    found = {(m.name, m.attributes.get("dependency")): m.value for m in reading.metrics}
    assert found["litellm.dependency.latency", "database"] == 0.0025
    assert found["litellm.dependency.up", "router"] == 1
    assert found["litellm.router.models", None] == 10
    assert capture("documented/unhealthy/health-services.key").reading().dependencies["database"] is False


def test_stored_and_shared_checks() -> None:
    """Ages of checks: per deployment only where the proxy gives the id that /health gives as well."""
    latest = capture("documented/healthy/health-latest.key").reading()
    ages = [(m.value, m.attributes) for m in latest.metrics if m.name == "litellm.deployment.check.age"]
    assert ages == [(60.0, {"deployment.id": "my-stable-id-1"})]
    shared = capture("documented/healthy/health-shared-status.key").reading()
    assert shared.background is None
    assert ("litellm.check.cache.age", 42.5) in [(m.name, m.value) for m in shared.metrics]
    assert capture("1.106.2/key/health-shared-status.key").reading().background is None
