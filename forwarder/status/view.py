"""What the agent knows at one moment, as data. The page, `/api/status` and `litellm-forwarder status` are renderings
of it, so they never disagree.

These structs are the documented shape of `/api/status` (docs/status.md). Fields may be added; removing or renaming
one, or changing what it means, raises FORMAT. Times are UTC; lists of targets and deployments begin with the worst.
Nothing here is text that a proxy or a backend sent, but names, cleaned and cut (`normalize.reading.name`).
"""

from datetime import UTC, datetime
from typing import Final, Literal

import msgspec

FORMAT: Final = 1
SERVICE: Final = "litellm-forwarder"

# Worst first. degraded: it answers and calls itself well, but deployments fail or a dependency is down.
# unknown: it was not seen, or not lately; never taken for well.
State = Literal["unhealthy", "degraded", "unknown", "healthy"]
STATES: Final[tuple[State, ...]] = ("unhealthy", "degraded", "unknown", "healthy")
SinkState = Literal["blocked", "spool_unavailable", "retrying", "delivering", "idle"]
SINK_STATES: Final[tuple[SinkState, ...]] = ("blocked", "spool_unavailable", "retrying", "delivering", "idle")


class Slice(msgspec.Struct, frozen=True):
    """A part of the last 24 hours. `state` is the worst that was seen in it; unknown: nothing was. `healthy` and
    `unhealthy` count readings of the proxy's health, `failing` is the most deployments that failed at a time.
    """

    start: datetime
    state: State
    healthy: int
    unhealthy: int
    failing: int


class Change(msgspec.Struct, frozen=True):
    """One transition that was told: `name` is the catalog's, `title` one line."""

    time: datetime
    name: str
    severity: Literal["info", "warning", "error"]
    title: str


class Dependency(msgspec.Struct, frozen=True):
    name: str
    state: Literal["connected", "disconnected"]


class Deployment(msgspec.Struct, frozen=True):
    """`name` is what clients ask for, where known. `state` is unknown when the listing it stands in is too old, or
    reading another one failed; `listed` is what that listing said. `since`: first seen so, and not otherwise since.
    """

    id: str
    short_id: str
    model: str
    name: str | None
    provider: str | None
    state: Literal["down", "unknown", "up"]
    listed: Literal["down", "up"]
    since: datetime | None
    error_type: str | None = None
    http_status: int | None = None
    check_age_seconds: float | None = None


class Listing(msgspec.Struct, frozen=True):
    """The deployments as the proxy last listed them. `current` False: too long ago to be taken for now.
    `up` and `down` are the lengths of the proxy's lists; None where it did not give that list.
    """

    time: datetime
    current: bool
    up: int | None
    down: int | None
    deployments: tuple[Deployment, ...]


class Endpoint(msgspec.Struct, frozen=True):
    """One URL path that is read. `state`: read, failed, absent (the proxy does not offer it) or waiting (not asked
    yet). `error`: a class of `litellm.probe.failure`. `detail`: one clause why it failed or is absent; of the metrics
    page also what of it does not go on. `next`: not asked again before then (absent, key refused).
    """

    name: str
    state: Literal["failed", "waiting", "read", "absent"]
    error: str | None
    detail: str
    time: datetime | None
    next: datetime | None


class Cost(msgspec.Struct, frozen=True):
    """The cost guard's account of `/health`, in calls to deployments; `day` is the UTC day that `spent` counts.

    `free`: the proxy checks in the background; `certain`: it said so, or the configuration does. `budget` and `left`
    are None when it is unlimited. `waiting`: why `/health` is not polled though its time has come: budget (spent),
    proxy (down or not heard yet), pause (the key was refused); None when it will be polled at `next`.
    """

    free: bool
    certain: bool
    day: str
    spent: int
    budget: int | None
    left: int | None
    next_poll_calls: int
    next: datetime | None
    waiting: Literal["budget", "proxy", "pause"] | None


class Target(msgspec.Struct, frozen=True):
    """`reason` is one clause. `since`: first seen so, and not otherwise since; None while nothing was read. `seen`:
    when the proxy's health was last read, whatever it was. `healthy_ratio`: healthy readings of all in the last 24
    hours, 0 to 1; `seen_ratio`: the part of these 24 hours in which there were any. `cost` is None when /health is not
    read.
    """

    name: str
    url: str
    state: State
    reason: str
    since: datetime | None
    seen: datetime | None
    version: str | None
    dependencies: tuple[Dependency, ...]
    listing: Listing | None
    endpoints: tuple[Endpoint, ...]
    cost: Cost | None
    slice_seconds: int
    history: tuple[Slice, ...]
    healthy_ratio: float | None
    seen_ratio: float
    changes: tuple[Change, ...]


class Ledger(msgspec.Struct, frozen=True):
    """In events: accepted = delivered + pending + rejected + expired + dropped. `dead_letters` are kept now."""

    accepted: int
    delivered: int
    pending: int
    rejected: int
    expired: int
    dropped: int
    dead_letters: int
    adds_up: bool


class Sink(msgspec.Struct, frozen=True):
    """`acknowledged` False: the backend does not say whether it has the events (DogStatsD); `delivered` then means
    handed over. `lag_seconds`: the age of the oldest event that waits; 0 when none does. `reason` goes with the state,
    `attempts` counts failures in a row. `ledger` and `lag_seconds` are None while the spool cannot be read. Times are
    since the agent's start.
    """

    name: str
    type: str
    state: SinkState
    reason: str
    since: datetime
    attempts: int
    acknowledged: bool
    lag_seconds: float | None
    last_success: datetime | None
    last_error: str
    last_error_time: datetime | None
    ledger: Ledger | None


class View(msgspec.Struct, frozen=True):
    """`summary`: what is the matter, worst first; empty when nothing is. `not_ready`: what `/readyz` waits for.
    `changes`: losses of the agent itself, newest first. `state_folder`: the `instance.fingerprint` of the agent's.
    """

    format: int
    service: str
    version: str
    time: datetime
    started: datetime
    state: State
    summary: tuple[str, ...]
    not_ready: tuple[str, ...]
    targets: tuple[Target, ...]
    sinks: tuple[Sink, ...]
    changes: tuple[Change, ...]
    state_folder: str = ""


def moment(ns: int) -> datetime:
    """`ns` UTC as a datetime, to the microsecond."""
    return datetime.fromtimestamp(ns // 1_000_000_000, UTC).replace(microsecond=ns % 1_000_000_000 // 1000)


def ago(seconds: float) -> str:
    """A length of time for people: two places at most ("3 h 20 min"), nothing below a second."""
    left = max(0, int(seconds))
    if left < 60:
        return f"{left} s"
    units = [(left // 86400, "d"), (left // 3600 % 24, "h"), (left // 60 % 60, "min")]
    first = next(place for place, (count, _) in enumerate(units) if count)
    return " ".join(f"{count} {unit}" for count, unit in units[first : first + 2] if count)


encode: Final = msgspec.json.Encoder().encode
decode: Final = msgspec.json.Decoder(View).decode  # raises msgspec.DecodeError, msgspec.ValidationError
