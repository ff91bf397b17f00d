"""A look at one proxy, now, for `check` and `inspect`: gathered from the same GETs and normalisers as the agent's."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import click

from forwarder import cost
from forwarder.http import Client
from forwarder.normalize import normalize
from forwarder.normalize.deployments import named
from forwarder.normalize.proxy import TRANSPORT, verdict_of
from forwarder.normalize.reading import Deployment, Endpoint, Reading
from forwarder.poll import fetch
from forwarder.reply import Reply

ESSENTIAL: Final[tuple[Endpoint, ...]] = ("liveliness", "readiness")
CHEAP: Final[tuple[Endpoint, ...]] = (
    *ESSENTIAL,
    "readiness_details",
    "models",
    "services",
    "shared_status",
    "backlog",
    "model_info",
)

Status = Literal["healthy", "unhealthy", "unknown", "unreachable"]


@dataclass(frozen=True, slots=True)
class Seen:
    reply: Reply
    reading: Reading


@dataclass(frozen=True, slots=True)
class View:
    """What was seen of one proxy. `said` holds the endpoints that were asked."""

    target: str | None  # its name, where it has one
    url: str
    said: Mapping[Endpoint, Seen]

    @property
    def label(self) -> str:
        return f"{self.target} ({self.url})" if self.target else self.url

    @property
    def wants_key(self) -> bool:
        return any(seen.reading.error == "auth" for seen in self.said.values())

    @property
    def status(self) -> Status:
        if self.said["liveliness"].reading.error in TRANSPORT:
            return "unreachable"
        health = verdict_of({endpoint: seen.reading for endpoint, seen in self.said.items()})
        return {True: "healthy", False: "unhealthy", None: "unknown"}[health]  # type: ignore[return-value]

    @property
    def why(self) -> str:
        """One clause: what the status rests on."""
        liveliness, readiness = (self.said[endpoint] for endpoint in ESSENTIAL)
        if liveliness.reading.alive is not True:
            return liveliness.reading.detail or _says("liveliness", liveliness)
        if readiness.reading.ready is not True:
            return "alive, but " + (readiness.reading.detail or _says("readiness", readiness))
        if any(seen.reading.complaint for seen in self.said.values()):
            return "alive and ready, but it calls itself unhealthy"
        return "alive and ready"

    @property
    def version(self) -> str | None:
        return next((s.reading.version for s in self.said.values() if s.reading.version), None)

    @property
    def dependencies(self) -> dict[str, bool]:
        found: dict[str, bool] = {}
        for seen in self.said.values():
            found |= seen.reading.dependencies
        return found

    @property
    def source(self) -> Endpoint | None:
        """Where the deployments are from: what the proxy last checked, or else its free list."""
        for endpoint in ("health", "models"):
            if endpoint in self.said and self.said[endpoint].reading.deployments is not None:
                return endpoint
        return None

    @property
    def deployments(self) -> tuple[Deployment, ...] | None:
        if self.source is None or (listed := self.said[self.source].reading.deployments) is None:
            return None
        info = self.said.get("model_info")
        return named(listed, info.reading.names or {}) if info else listed

    @property
    def background(self) -> bool:
        """The proxy says that it checks its deployments by itself."""
        return any(seen.reading.background for seen in self.said.values())

    @property
    def configured(self) -> int | None:
        return next((s.reading.configured for s in self.said.values() if s.reading.configured is not None), None)

    def gauge(self, name: str) -> list[tuple[dict[str, Any], float]]:
        """Attributes and value of each point of a metric."""
        points = (metric for seen in self.said.values() for metric in seen.reading.metrics)
        return [(dict(m.attributes), m.value) for m in points if m.name == name and m.value is not None]


async def look(  # noqa: PLR0913 - what to ask, and how
    client: Client, target: str | None, url: str, endpoints: Iterable[Endpoint], *, timeout: float, keyed: bool
) -> View:
    """Ask the endpoints, all at once. Never raises for what a proxy does."""

    async def ask(endpoint: Endpoint) -> tuple[Endpoint, Seen]:
        reply = await fetch(client, endpoint, timeout)
        return endpoint, Seen(reply, normalize(endpoint, reply, keyed=keyed))

    return View(target, url, dict(await asyncio.gather(*(ask(endpoint) for endpoint in endpoints))))


# --- for people and for programs ----------------------------------------------------------------------------------


def as_json(view: View) -> dict[str, Any]:
    deployments = view.deployments
    return {
        "target": view.target,
        "url": view.url,
        "status": view.status,
        "reason": view.why,
        "version": view.version,
        "dependencies": {name: "connected" if up else "disconnected" for name, up in view.dependencies.items()},
        "router_models": next((int(value) for _, value in view.gauge("litellm.router.models")), None),
        "background_checks": view.background or None,
        "deployments_from": view.source,
        "healthy": None if deployments is None else sum(d.up for d in deployments),
        "unhealthy": None if deployments is None else sum(not d.up for d in deployments),
        "deployments": None
        if deployments is None
        else [
            {
                "name": d.name,
                "model": d.model,
                "id": d.id,
                "provider": d.provider,
                "healthy": d.up,
                "error_type": d.error_type,
                "http_status": d.http_status,
                "check_age_seconds": d.check_age,
            }
            for d in deployments
        ],
        "endpoints": {
            endpoint: {
                "state": _state(seen),
                "http_status": seen.reply.status,
                "seconds": round(seen.reply.elapsed, 4),
                "detail": seen.reading.detail or None,
            }
            for endpoint, seen in view.said.items()
        },
    }


_COLOURS: Final = {"healthy": "green", "unhealthy": "red", "unknown": "yellow", "unreachable": "red"}


def as_text(view: View) -> str:
    """The detailed view, in colour (click drops the colour where no terminal is)."""
    version = f"LiteLLM {view.version}" if view.version else "release not said"
    lines = [f"{click.style(view.status.upper(), fg=_COLOURS[view.status], bold=True)}  {view.label}  {version}"]
    lines.append(f"  {view.why}")
    # Before what was read: the headline rests on that alone.
    for detail, endpoints in _troubles(view).items():
        lines.append(f"  {click.style('cannot read', fg='yellow')} {', '.join(endpoints)}: {detail}")
    lines += [*_row("dependencies", _dependencies(view)), *_row("backlog", _backlog(view))]
    lines += _row("deployments", _counts(view))
    lines += ["    " + _deployment(deployment) for deployment in _failing_first(view.deployments or ())]
    absent = [endpoint for endpoint, seen in view.said.items() if seen.reading.absent]
    lines += _row("not offered here", ", ".join(absent))
    return "\n".join(lines)


def billed_warning(view: View, target_has_key: bool) -> str:
    """What a poll of /health would cost."""
    count = view.configured
    how_many = f"each of its {count:,} deployments" if count else "every deployment"
    most = f" (up to {count * cost.CALLS_IF_FAILING:,} if they fail)" if count else ""
    unknown = "" if count or target_has_key else "; how many is not known without a key"
    return f"GET /health makes one real, billed call to {how_many}{most}{unknown}"


def _row(label: str, text: str) -> list[str]:
    return [f"  {click.style(label, dim=True)}: {text}"] if text else []


def _dependencies(view: View) -> str:
    latency = {a["dependency"]: value for a, value in view.gauge("litellm.dependency.latency")}
    parts = []
    if not view.dependencies:
        return "not said (proxies without a database and those that lost it at start say the same)"
    for name in ("database", "redis", "router"):
        up = view.dependencies.get(name)
        word = {True: click.style("connected", fg="green"), False: click.style("down", fg="red"), None: "not said"}[up]
        parts.append(f"{name} {word}" + (f" ({latency[name] * 1000:.1f} ms)" if name in latency else ""))
    models = next((int(value) for _, value in view.gauge("litellm.router.models")), None)
    return ", ".join(parts) + (f" with {models:,} models" if models is not None else "")


def _backlog(view: View) -> str:
    return ", ".join(
        f"{value:.0f} {a['state'].replace('_', ' ')}" for a, value in view.gauge("litellm.backlog.requests")
    )


def _counts(view: View) -> str:
    if view.deployments is None:
        if "health" in view.said:
            return "none shown yet" if view.background else "not shown"
        return "not asked, since asking may cost money (--yes asks)"
    up = sum(deployment.up for deployment in view.deployments)
    down = len(view.deployments) - up
    failing = click.style(f"{down:,} failing", fg="red") if down else "none failing"
    seconds = view.said[view.source].reply.elapsed if view.source else 0.0
    return f"{click.style(f'{up:,} healthy', fg='green')}, {failing} (from {view.source}, {seconds:.1f} s)"


def _troubles(view: View) -> dict[str, list[Endpoint]]:
    """What hindered reading, and where: most troubles are shared."""
    found: dict[str, list[Endpoint]] = {}
    for endpoint, seen in view.said.items():
        if seen.reading.error and endpoint not in ESSENTIAL:
            found.setdefault(seen.reading.detail or seen.reading.error, []).append(endpoint)
    return found


def _failing_first(deployments: Iterable[Deployment]) -> list[Deployment]:
    return sorted(deployments, key=lambda d: (d.up, d.name or "", d.model, d.id))


def _deployment(deployment: Deployment) -> str:
    mark = click.style("ok  ", fg="green") if deployment.up else click.style("FAIL", fg="red", bold=True)
    why = ""
    if not deployment.up:
        status = f" {deployment.http_status}" if deployment.http_status is not None else ""
        why = f"  {deployment.error_type or 'other'}{status}"
    age = f"  checked {deployment.check_age:,.0f} s ago" if deployment.check_age is not None else ""
    name = f"{deployment.name} ({deployment.model})" if deployment.name else deployment.model
    return f"{mark}  {name:<44} {click.style(f'{deployment.short_id:<18}', dim=True)}{why}{age}"


def _says(endpoint: str, seen: Seen) -> str:
    return f"{endpoint} answered {seen.reply.status}" if seen.reply.status else f"{endpoint} did not answer"


def _state(seen: Seen) -> str:
    if seen.reading.absent:
        return "absent"
    return seen.reading.error or "read"
