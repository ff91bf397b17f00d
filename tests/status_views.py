"""Views of every kind, for tests of their renderings. Time stands still at NOW."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from forwarder.status.view import (
    FORMAT,
    SERVICE,
    Change,
    Cost,
    Dependency,
    Deployment,
    Endpoint,
    Ledger,
    Listing,
    Sink,
    Slice,
    State,
    Target,
    View,
)

NOW = datetime(2026, 11, 24, 14, 32, 10, tzinfo=UTC)
QUARTER = timedelta(minutes=15)


def before(**length: float) -> datetime:
    return NOW - timedelta(**length)


def slices(word: str = "h" * 96) -> tuple[Slice, ...]:
    """H healthy, d two deployments failing, u unhealthy, p partly unhealthy, anything else not seen; oldest first."""
    start = NOW.replace(minute=30, second=0) - QUARTER * (len(word) - 1)
    kinds: dict[str, tuple[State, int, int, int]] = {
        "h": ("healthy", 180, 0, 0),
        "d": ("degraded", 180, 0, 2),
        "u": ("unhealthy", 0, 180, 0),
        "p": ("unhealthy", 160, 20, 1),
    }
    return tuple(Slice(start + QUARTER * n, *kinds.get(kind, ("unknown", 0, 0, 0))) for n, kind in enumerate(word))


def deployment(number: int = 0, **more: Any) -> Deployment:
    up = Deployment(
        id=f"d7ce849b{number:04}f00dfacecafe",
        short_id=f"d7ce849b{number:04}…",
        model="azure/gpt-4o-2024-08-06",
        name=f"gpt-4o-{number}",
        provider="azure",
        state="up",
        listed="up",
        since=before(hours=5),
    )
    return msgspec.structs.replace(up, **more)


def failing(number: int, error: str = "rate_limit", status: int | None = 429) -> Deployment:
    return deployment(
        number, state="down", listed="down", error_type=error, http_status=status, since=before(minutes=7)
    )


def listing(deployments: Sequence[Deployment], *, current: bool = True) -> Listing:
    down = sum(each.listed == "down" for each in deployments)
    return Listing(before(seconds=42), current, len(deployments) - down, down, tuple(deployments))


def target(name: str = "eu", **more: Any) -> Target:
    healthy = Target(
        name=name,
        url=f"https://litellm-{name}.example.com",
        state="healthy",
        reason="alive and ready",
        since=before(hours=20),
        seen=before(seconds=3),
        version="1.80.17",
        dependencies=(Dependency("database", "connected"), Dependency("redis", "connected")),
        listing=listing([deployment(n) for n in range(6)]),
        endpoints=(
            Endpoint("liveliness", "read", None, "", before(seconds=3), None),
            Endpoint("models", "absent", None, "not offered here (HTTP 404)", before(minutes=9), NOW + QUARTER),
        ),
        cost=Cost(
            free=False,
            certain=True,
            day="2026-11-24",
            spent=1044,
            budget=5000,
            left=3956,
            next_poll_calls=6,
            next=NOW + timedelta(minutes=3),
            waiting=None,
        ),
        slice_seconds=900,
        history=slices(),
        healthy_ratio=1.0,
        seen_ratio=1.0,
        changes=(),
    )
    return msgspec.structs.replace(healthy, **more)


def down(name: str = "us") -> Target:
    return target(
        name,
        state="unhealthy",
        reason="nothing listens there",
        since=before(minutes=4),
        listing=listing(
            [deployment(n, state="unknown") for n in range(5)] + [deployment(9, state="unknown", listed="down")],
            current=False,
        ),
        endpoints=tuple(
            Endpoint(each, "failed", "refused", "nothing listens there", before(seconds=3), None)
            for each in ("liveliness", "readiness", "health")
        ),
        history=slices("." * 20 + "h" * 40 + "pd" + "h" * 30 + "dpuu"),
        healthy_ratio=0.972,
        seen_ratio=0.79,
        changes=(
            Change(before(minutes=4), "litellm.proxy.down", "error", f"{name}: the proxy is down (refused)"),
            Change(
                before(hours=1), "litellm.deployment.unhealthy", "warning", f"{name}: gpt-4o is unhealthy (timeout)"
            ),
            Change(before(hours=9), "litellm.deployment.healthy", "info", f"{name}: gpt-4o is healthy"),
        ),
    )


def degraded(name: str = "ap", count: int = 15) -> Target:
    members = [failing(0), failing(1, "authentication", 401), *(deployment(n) for n in range(2, count))]
    return target(
        name,
        state="degraded",
        reason="alive and ready, but 2 deployments fail",
        since=before(minutes=7),
        listing=listing(members),
        history=slices("h" * 60 + "ddd" + "h" * 30 + "ddd"),
    )


def unknown(name: str = "new") -> Target:
    return target(
        name,
        state="unknown",
        reason="not read yet",
        since=None,
        seen=None,
        version=None,
        dependencies=(),
        listing=None,
        endpoints=(Endpoint("liveliness", "waiting", None, "", None, None),),
        cost=None,
        history=slices("." * 96),
        healthy_ratio=None,
        seen_ratio=0.0,
    )


def sink(name: str = "grafana", **more: Any) -> Sink:
    fine = Sink(
        name=name,
        type="otlp",
        state="idle",
        reason="",
        since=before(seconds=4),
        attempts=0,
        acknowledged=True,
        lag_seconds=0.0,
        last_success=before(seconds=4),
        last_error="",
        last_error_time=None,
        ledger=Ledger(1_204_330, 1_204_330, 0, 0, 0, 0, 0, adds_up=True),
    )
    return msgspec.structs.replace(fine, **more)


def blocked(name: str = "newrelic") -> Sink:
    return sink(
        name,
        type="newrelic",
        state="blocked",
        reason="403: the license key is not accepted",
        attempts=14,
        since=before(minutes=41),
        lag_seconds=2460.0,
        last_success=before(minutes=41),
        last_error="403: the license key is not accepted",
        last_error_time=before(minutes=2),
        ledger=Ledger(1_204_330, 1_190_000, 14_100, 130, 0, 100, 130, adds_up=True),
    )


def view(targets: Sequence[Target] = (), sinks: Sequence[Sink] = (), **more: Any) -> View:
    calm = View(
        format=FORMAT,
        service=SERVICE,
        version="0.1.0",
        time=NOW,
        started=before(days=3, hours=4),
        state="healthy",
        summary=(),
        not_ready=(),
        targets=tuple(targets) or (target(),),
        sinks=tuple(sinks) or (sink(),),
        changes=(),
    )
    return msgspec.structs.replace(calm, **more)


def troubled() -> View:
    """One of each."""
    return view(
        [down(), degraded(), unknown(), target()],
        [blocked(), sink("datadog", type="datadog", acknowledged=False), sink()],
        state="unhealthy",
        summary=("proxy us is unhealthy", "proxy ap is degraded", "proxy new is unknown", "sink newrelic is blocked"),
        changes=(Change(before(minutes=12), "forwarder.data.lost", "error", "100 events lost for sink newrelic"),),
    )


def crowd() -> View:
    """Forty proxies, one of them with two hundred deployments."""
    return view(
        [down("t00"), degraded("t01", 200), *(target(f"t{n:02}") for n in range(2, 40))],
        state="unhealthy",
        summary=("proxy t00 is unhealthy", "proxy t01 is degraded"),
    )
