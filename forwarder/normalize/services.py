"""The smaller endpoints: dependencies, shared checks, backlog, stored checks, configured models."""

from collections.abc import Mapping
from typing import Any, Final

from forwarder import catalog
from forwarder.events import Metric, finite
from forwarder.normalize.deployments import MAX_LISTED, age, deployment_id, names
from forwarder.normalize.envelope import Envelope
from forwarder.normalize.proxy import connected
from forwarder.normalize.reading import Reading
from forwarder.reply import Reply

_STATES: Final = ("in_flight", "admitted", "queued", "rejected")


def services(envelope: Envelope, reply: Reply) -> Reading:
    """The documented {"database": {"status", "latency_ms"}, "redis": {…}, "router": {"status", "models"}}.
    Real proxies want ?service=, which is never asked, and answer 422: absent.
    """
    content = envelope.readable or {}
    found = {name: content[name] for name in ("database", "redis", "router") if isinstance(content.get(name), dict)}
    if not found:
        return Reading(error=envelope.error or "unexpected")
    states = {name: connected(service.get("status")) for name, service in found.items()}
    metrics: list[Metric] = []
    for name, service in found.items():
        if (latency := _count(service, "latency_ms")) is not None:
            metrics.append(catalog.DEPENDENCY_LATENCY.at(reply.time, latency / 1_000, {"dependency": name}))
    if (routed := _count(found.get("router", {}), "models")) is not None:
        metrics.append(catalog.ROUTER_MODELS.at(reply.time, routed))
    return Reading(dependencies={name: up for name, up in states.items() if up is not None}, metrics=tuple(metrics))


def shared_status(envelope: Envelope, reply: Reply) -> Reading:
    """Health checks shared between workers over Redis (1.80 and later): the only age of check results that a real
    proxy tells. It is no evidence that /health is free: the setting alone does not switch background checks on.
    """
    content = envelope.object if envelope.successful else None
    if content is None or not isinstance(enabled := content.get("shared_health_check_enabled"), bool):
        return Reading(error=envelope.error or "unexpected")
    if not enabled:
        return Reading()
    status = content.get("status")
    cache_age = _count(status, "cache_age_seconds") if isinstance(status, dict) else None
    metrics = () if cache_age is None else (catalog.CHECK_CACHE_AGE.at(reply.time, cache_age),)
    return Reading(metrics=metrics)


def backlog(envelope: Envelope, reply: Reply) -> Reading:
    """Requests in the worker that answered (1.106 and later); other workers have their own."""
    content = (envelope.object if envelope.successful else None) or {}
    counts = {state: _count(content, f"{state}_requests") for state in _STATES}
    metrics = [
        catalog.BACKLOG_REQUESTS.at(reply.time, count, {"state": state})
        for state, count in counts.items()
        if count is not None
    ]
    if not metrics:
        return Reading(error=envelope.error or "unexpected")
    return Reading(metrics=tuple(metrics))


def latest(envelope: Envelope, reply: Reply) -> Reading:
    """Checks that the proxy stored in its database: the age of each deployment's latest one.

    Of use only where `model_id` is given: it is the deployment.id of /health then. The model is the public name here,
    another one than /health gives, so the points carry deployment.id alone. Whether a deployment is up stays the
    business of the listing: two sources for one verdict would contradict each other.
    """
    content = envelope.object or {}
    if envelope.status == 500 and content.get("detail") == {"error": "Database not initialized"}:
        return Reading(absent=True)
    checks = content.get("latest_health_checks")
    if not envelope.successful or not isinstance(checks, dict):
        return Reading(error=envelope.error or "unexpected")
    ages: dict[str, float] = {}
    for check in checks.values():
        id_ = deployment_id(check.get("model_id")) if isinstance(check, dict) else None
        since = age(check.get("checked_at"), reply.time) if id_ else None
        if id_ and since is not None and (id_ in ages or len(ages) < MAX_LISTED):
            ages[id_] = min(since, ages.get(id_, since))
    return Reading(
        metrics=tuple(
            catalog.DEPLOYMENT_CHECK_AGE.at(reply.time, since, {"deployment.id": id_}) for id_, since in ages.items()
        )
    )


def model_info(envelope: Envelope, reply: Reply) -> Reading:  # noqa: ARG001 - all endpoints are called alike
    """What is configured: how many deployments a /health without background checks will bill for, and their names."""
    content = envelope.object if envelope.successful else None
    data = content.get("data") if content else None
    if not isinstance(data, list):
        return Reading(error=envelope.error or "unexpected")
    return Reading(configured=len(data), names=names(data[:MAX_LISTED]))


def _count(content: Mapping[str, Any], key: str) -> float | None:
    """A number that is not negative."""
    number = finite(content.get(key))
    return number if number is not None and number >= 0 else None
