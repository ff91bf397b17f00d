"""From what pollers, pumps and spool know to the `View`. Pure: data in, data out; times are ns UTC."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import Final, Literal

from forwarder import catalog, cost
from forwarder.config import Target
from forwarder.normalize.reading import Deployment, Endpoint, Reading
from forwarder.poll import Said, Seen
from forwarder.pump import PumpStatus
from forwarder.spool.base import Account
from forwarder.status import view
from forwarder.status.history import SLICE, History, Told
from forwarder.status.view import STATES, Ledger, Sink, State, View, ago, moment

_VERSION: Final = version(view.SERVICE)
# Sinks whose state says that something is wrong.
TROUBLED: Final = frozenset({"blocked", "spool_unavailable", "retrying"})
LATE: Final = 300.0  # seconds that the oldest event may wait before a sink is said to be behind


@dataclass(frozen=True, slots=True)
class Watched:
    """One target: as configured, which endpoints are read, what its poller knows, and what was observed."""

    target: Target
    endpoints: Sequence[Endpoint]
    seen: Seen
    history: History


@dataclass(frozen=True, slots=True)
class Delivering:
    """One sink. `account` is None while the spool cannot be read."""

    name: str
    type: str
    acknowledged: bool
    status: PumpStatus
    account: Account | None


def build(  # noqa: PLR0913 - all by name: everything the agent knows
    *,
    now: int,
    started: int,
    targets: Iterable[Watched],
    sinks: Iterable[Delivering],
    changes: Sequence[Told],
    not_ready: Sequence[str],
    state_folder: str,
) -> View:
    """Everything, worst first."""
    seen = sorted((_target(each, now) for each in targets), key=_worst)
    shown = sorted((_sink(each, now) for each in sinks), key=lambda s: (view.SINK_STATES.index(s.state), s.name))
    return View(
        format=view.FORMAT,
        service=view.SERVICE,
        version=_VERSION,
        time=moment(now),
        started=moment(started),
        state=min((target.state for target in seen), key=STATES.index, default="unknown"),
        summary=(*_about_targets(seen), *_about_sinks(shown)),
        not_ready=tuple(not_ready),
        targets=tuple(seen),
        sinks=tuple(shown),
        changes=_changes(changes),
        state_folder=state_folder,
    )


def _worst(target: view.Target) -> tuple[int, str]:
    return STATES.index(target.state), target.name


def _about_targets(targets: Sequence[view.Target]) -> list[str]:
    said = []
    for state in ("unhealthy", "degraded", "unknown"):
        names = [target.name for target in targets if target.state == state]
        if len(names) == 1:
            said.append(f"proxy {names[0]} is {state}")
        elif names:
            said.append(f"{len(names)} of {len(targets)} proxies are {state}")
    refused = {target.name: why for target in targets if (why := _refused(target.endpoints))}
    if len(refused) > 1:
        said.append(f"{len(refused)} of {len(targets)} proxies refuse the key, or want one")
    else:
        said += [f"proxy {name}: {why}" for name, why in refused.items()]
    return said


def _refused(endpoints: Sequence[view.Endpoint]) -> str:
    """Why a proxy that is well shows nothing of its deployments; empty where it is not the key."""
    return next((each.detail for each in endpoints if each.error == "auth"), "")


def _about_sinks(sinks: Sequence[Sink]) -> list[str]:
    words = {"blocked": "blocked", "retrying": "failing, trying again", "spool_unavailable": "without its spool"}
    said = [f"sink {sink.name} is {words[sink.state]}" for sink in sinks if sink.state in words]
    behind = [sink for sink in sinks if sink.state not in words and (sink.lag_seconds or 0) > LATE]
    return said + [f"sink {sink.name} is {ago(sink.lag_seconds or 0)} behind" for sink in behind]


# --- targets ------------------------------------------------------------------------------------------------------


def _target(watched: Watched, now: int) -> view.Target:
    history, said = watched.history, watched.seen.said
    history.look(now)
    endpoints = tuple(_endpoint(e, watched.seen, now) for e in watched.endpoints)
    refused = _refused(endpoints)
    listing = _listing(history, said, now)
    dependencies = history.dependencies(now)
    slices = history.slices(now)
    healthy = sum(each.healthy for _, each in slices)
    readings = healthy + sum(each.unhealthy for _, each in slices)
    return view.Target(
        name=watched.target.name,
        url=watched.target.url,
        state="unknown" if history.seen is None else history.state,
        reason=_reason(history, {e: each.reading for e, each in said.items() if now <= each.until}, now, refused),
        since=None if history.seen is None else moment(history.since),
        seen=None if history.seen is None else moment(history.seen),
        version=history.version,
        dependencies=tuple(
            view.Dependency(name, "connected" if up else "disconnected")
            for name, up in sorted(dependencies.items(), key=lambda item: (item[1], item[0]))
        ),
        listing=listing,
        endpoints=endpoints,
        cost=_cost(watched, now) if "health" in watched.endpoints else None,
        slice_seconds=SLICE // 1_000_000_000,
        history=tuple(
            view.Slice(moment(start), each.state, each.healthy, each.unhealthy, each.failing) for start, each in slices
        ),
        healthy_ratio=healthy / readings if readings else None,
        seen_ratio=sum(each.state != "unknown" for _, each in slices) / len(slices),
        changes=_changes(history.changes),
    )


def _reason(history: History, fresh: Mapping[Endpoint, Reading], now: int, refused: str) -> str:
    """One clause: what the state rests on, and what keeps more from being known."""
    liveliness, readiness = fresh.get("liveliness"), fresh.get("readiness")
    if liveliness is None:
        return "not read lately" if history.latest else "not read yet"
    if liveliness.alive is not True:
        return liveliness.detail or "it says that it is shutting down"
    if readiness is None:
        return "alive; whether it is ready was not read yet"
    if readiness.ready is not True:
        return "alive, but " + (readiness.detail or "its readiness endpoint does not answer 2xx")
    wrong = ["it calls itself unhealthy"] if any(reading.complaint for reading in fresh.values()) else []
    if failing := history.failing(now):
        wrong.append("1 deployment fails" if failing == 1 else f"{failing:,} deployments fail")
    wrong += [f"{name} is disconnected" for name, up in history.dependencies(now).items() if not up]
    if refused:
        wrong.append(refused)
    return "alive and ready" + (", but " + " and ".join(wrong) if wrong else "")


def _listing(history: History, said: Mapping[Endpoint, Said], now: int) -> view.Listing | None:
    if history.listing is None:
        return None
    up, down = (history.listing.value(m) for m in (catalog.HEALTHY_MODELS, catalog.UNHEALTHY_MODELS))
    current = history.current(now)
    last = next((each.reading.deployments for e, each in said.items() if e == history.listed_by), None)
    deployments = last if current and last is not None else _from_points(history)
    rank = {"down": 0, "unknown": 1, "up": 2}
    shown = [_deployment(each, history, current=current) for each in deployments]
    shown.sort(key=lambda d: (rank[d.state], d.listed, d.name or "", d.model, d.id))
    return view.Listing(
        time=moment(history.listing.time),
        current=current,
        up=None if up is None else int(up),
        down=None if down is None else int(down),
        deployments=tuple(shown),
    )


def _from_points(history: History) -> list[Deployment]:
    """The deployments of a listing that is over, out of the points that were made of it."""
    assert history.listing is not None  # noqa: S101 - the caller looked
    why = {
        attributes["deployment.id"]: attributes for attributes, _ in history.listing.values(catalog.DEPLOYMENT_FAILURE)
    }
    found = []
    for attributes, value in history.listing.values(catalog.DEPLOYMENT_UP):
        failure = why.get(attributes["deployment.id"], {})
        status = failure.get("http.response.status_code")
        found.append(
            Deployment(
                id=str(attributes["deployment.id"]),
                model=str(attributes["model"]),
                provider=_text(attributes.get("provider")),
                up=value == 1,
                error_type=_text(failure.get("error.type")),
                http_status=status if isinstance(status, int) else None,
                name=_text(attributes.get("model.name")),
            )
        )
    return found


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _deployment(each: Deployment, history: History, *, current: bool) -> view.Deployment:
    listed: Literal["up", "down"] = "up" if each.up else "down"
    up, since = history.deployments.get(each.id, (None, 0))
    return view.Deployment(
        id=each.id,
        short_id=each.short_id,
        model=each.model,
        name=each.name,
        provider=each.provider,
        state=listed if current else "unknown",
        listed=listed,
        since=moment(since) if up == each.up else None,
        error_type=None if each.up else each.error_type or "other",
        http_status=each.http_status,
        check_age_seconds=each.check_age,
    )


def _endpoint(endpoint: Endpoint, seen: Seen, now: int) -> view.Endpoint:
    said = seen.said.get(endpoint)
    asked, not_before = seen.asked.get(endpoint), seen.not_before.get(endpoint, 0)
    waits = moment(not_before) if not_before > now else None
    time = None if asked is None else moment(asked)
    if said is None:
        return view.Endpoint(endpoint, "waiting", None, "", time, waits)
    reading = said.reading
    if reading.absent:
        return view.Endpoint(endpoint, "absent", None, reading.detail, time, waits)
    return view.Endpoint(endpoint, "failed" if reading.error else "read", reading.error, reading.detail, time, waits)


def _cost(watched: Watched, now: int) -> view.Cost:
    seen = watched.seen
    account, budget = cost.today(seen.account, now), seen.budget
    free = cost.free(account, budget)
    next_ = now + int(cost.due_in(account, budget, now) * 1e9)
    waiting: Literal["budget", "proxy", "pause"] | None = None
    liveliness = seen.said.get("liveliness")
    if not cost.affordable(account, budget):
        waiting, next_ = "budget", _midnight(now)
    elif liveliness is None or liveliness.reading.alive is False:
        waiting = "proxy"
    elif seen.not_before.get("health", 0) > next_:
        waiting, next_ = "pause", seen.not_before["health"]
    return view.Cost(
        free=free,
        certain=not free or account.certain or budget.background == "on",
        day=account.day,
        spent=account.spent,
        budget=budget.per_day,
        left=cost.remaining(account, budget),
        next_poll_calls=0 if free else cost.expected(account),
        next=None if waiting == "proxy" else moment(next_),
        waiting=waiting,
    )


def _midnight(now: int) -> int:
    day = datetime.fromtimestamp(now // 1_000_000_000, UTC).replace(hour=0, minute=0, second=0)
    return int((day + timedelta(days=1)).timestamp()) * 1_000_000_000


def _changes(changes: Sequence[Told]) -> tuple[view.Change, ...]:
    return tuple(view.Change(moment(each.time), each.name, each.severity, each.title) for each in reversed(changes))


# --- sinks --------------------------------------------------------------------------------------------------------


def _sink(each: Delivering, now: int) -> Sink:
    status, account = each.status, each.account
    lag: float | None = None
    if account is not None:
        lag = 0.0 if account.oldest_pending is None else max(0.0, (now - account.oldest_pending) / 1e9)
    return Sink(
        name=each.name,
        type=each.type,
        state=status.state,
        reason=status.reason,
        since=moment(status.since),
        attempts=status.attempts if status.state in TROUBLED else 0,
        acknowledged=each.acknowledged,
        lag_seconds=lag,
        last_success=None if status.last_success is None else moment(status.last_success),
        last_error=status.last_error,
        last_error_time=None if status.failed_at is None else moment(status.failed_at),
        ledger=None if account is None else _ledger(account),
    )


def _ledger(account: Account) -> Ledger:
    return Ledger(
        accepted=account.accepted,
        delivered=account.delivered,
        pending=account.pending,
        rejected=account.rejected,
        expired=account.expired,
        dropped=account.dropped,
        dead_letters=account.dead_letters,
        adds_up=account.adds_up,
    )


__all__ = ["LATE", "TROUBLED", "Delivering", "State", "Watched", "build"]
