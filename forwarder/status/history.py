"""What was seen of one target: the last listing, the newest points, and 24 hours of history. Fed with what is put
into the spool, so that the page tells what is delivered; small and bounded, and stored beside the poller's state.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec

from forwarder import catalog
from forwarder.codec import Codec
from forwarder.events import Attributes, AttributeValue, Batch, Change, Metric, Severity
from forwarder.status.view import State

SLICE: Final = 15 * 60 * 1_000_000_000  # ns
SLICES: Final = 96  # 24 hours
CHANGES: Final = 50  # told last, kept per target
MOST: Final = 5_000  # deployments followed, as the normaliser lists

_GAUGES: Final = frozenset(m.name for m in catalog.METRICS if m.kind == "gauge" and m.name.startswith("litellm."))
_BEARING: Final = ("liveliness", "readiness", "health")  # litellm.health comes with these; without a point: unknown


class Slice(msgspec.Struct, frozen=True, array_like=True):
    """Readings of litellm.health in it, and the most deployments that failed at a time."""

    healthy: int = 0
    unhealthy: int = 0
    failing: int = 0

    @property
    def state(self) -> State:
        if self.unhealthy:
            return "unhealthy"
        if not self.healthy:
            return "unknown"
        return "degraded" if self.failing else "healthy"


class Told(msgspec.Struct, frozen=True, array_like=True):
    """A change: its time (ns), name, severity and title."""

    time: int
    name: str
    severity: Severity
    title: str


class Stored(msgspec.Struct, frozen=True, array_like=True):
    """What survives a restart. Slices by number (ns // SLICE); deployments: id to (up, first seen so in ns).
    Append fields only.
    """

    slices: dict[int, Slice] = {}
    state: State = "unknown"
    since: int = 0
    deployments: dict[str, tuple[bool, int]] = {}
    changes: tuple[Told, ...] = ()


_codec: Final = Codec(Stored, "the history of a target")
decode: Final = _codec.decode  # raises CodecError


class Points(NamedTuple):
    """The gauges of one endpoint's newest reading, and when it was (ns)."""

    time: int
    metrics: tuple[Metric, ...]

    def values(self, metric: catalog.MetricDef) -> list[tuple[Attributes, float]]:
        return [(m.attributes, m.value) for m in self.metrics if m.name == metric.name and m.value is not None]

    def value(self, metric: catalog.MetricDef) -> float | None:
        found = self.values(metric)
        return found[0][1] if found else None


# How long (seconds) what an endpoint said counts.
Lasting = Callable[[str], float]


class History:
    """One target. `lasting` tells how long a reading of an endpoint is taken for now."""

    def __init__(self, lasting: Lasting, stored: Stored | None = None) -> None:
        stored = stored or Stored()
        self.lasting = lasting
        self.latest: dict[str, Points] = {}  # by endpoint; "" for what is the cost guard's
        self.listing: Points | None = None  # the newest reading that listed deployments
        self.listed_by = ""  # its endpoint
        self.version: str | None = None
        self.state: State = stored.state
        self.since = stored.since
        self.changes = stored.changes
        self.deployments = dict(stored.deployments)
        self.urgent = False  # something changed that should be stored soon
        self._slices = dict(stored.slices)

    def see(self, batch: Batch, *, stored: bool) -> None:
        """Take in what was observed. A change that could not be `stored` is found again, and told then."""
        points = Points(batch.time, tuple(e for e in batch.events if isinstance(e, Metric) and e.name in _GAUGES))
        probed = points.values(catalog.PROBE_SUCCESS)
        endpoint = str(probed[0][0].get("endpoint", "")) if probed else ""
        if points.metrics:
            self.latest[endpoint] = points
        for attributes, _ in points.values(catalog.INFO):
            self.version = str(attributes.get("version", "")) or self.version
        if points.value(catalog.HEALTHY_MODELS) is not None or points.value(catalog.UNHEALTHY_MODELS) is not None:
            self.listing, self.listed_by = points, endpoint
            self._follow(points)
        if endpoint in _BEARING:
            self._count(points)
        if stored:
            self._tell(batch)
        self.look(batch.time)

    def _follow(self, points: Points) -> None:
        """Since when each deployment is up or down."""
        known, self.deployments = self.deployments, {}
        for attributes, value in points.values(catalog.DEPLOYMENT_UP)[:MOST]:
            id_, up = str(attributes.get("deployment.id", "")), value == 1
            before = known.get(id_)
            self.deployments[id_] = before if before and before[0] == up else (up, points.time)
        self.urgent = self.urgent or self.deployments != known

    def _count(self, points: Points) -> None:
        number = points.time // SLICE
        now = self._slices.get(number, Slice())
        health = points.value(catalog.HEALTH)
        self._slices[number] = Slice(
            now.healthy + (health == 1),
            now.unhealthy + (health == 0),
            max(now.failing, self.failing(points.time) or 0),
        )
        # Also what lies ahead, after a clock that was wrong.
        self._slices = {n: each for n, each in self._slices.items() if number - SLICES < n <= number}

    def _tell(self, batch: Batch) -> None:
        told = tuple(Told(e.time, e.name, e.severity, e.title) for e in batch.events if isinstance(e, Change))
        if told:
            self.changes = (self.changes + told)[-CHANGES:]
            self.urgent = True

    # --- what is so now ---------------------------------------------------------------------------------------------

    def fresh(self, endpoint: str, now: int) -> Points | None:
        """What the endpoint said last, if that still counts."""
        points = self.latest.get(endpoint)
        return points if points and abs(now - points.time) <= self.lasting(endpoint) * 1e9 else None

    def gauges(self, now: int) -> list[Metric]:
        """Every point that still counts, the newest of each."""
        fresh = [points for endpoint in self.latest if (points := self.fresh(endpoint, now))]
        newest: dict[tuple[str, frozenset[tuple[str, AttributeValue]]], Metric] = {}
        for points in sorted(fresh, key=lambda points: points.time):
            newest |= {(m.name, frozenset(m.attributes.items())): m for m in points.metrics}
        # litellm.health comes with three endpoints, and the newest reading may have left it open.
        return [m for m in newest.values() if m.name != catalog.HEALTH.name or self.health(now) is not None]

    def health(self, now: int) -> float | None:
        """litellm.health as last observed; None: not known, or no longer."""
        last = max((e for e in _BEARING if e in self.latest), key=lambda e: self.latest[e].time, default=None)
        points = self.fresh(last, now) if last else None
        return points.value(catalog.HEALTH) if points else None

    @property
    def seen(self) -> int | None:
        """When the target's health was last read (ns)."""
        return max((self.latest[e].time for e in _BEARING if e in self.latest), default=None)

    def current(self, now: int) -> bool:
        """Whether the listing is taken for now: it is not too old, the endpoint was not read in vain since, and the
        proxy still lives.
        """
        lives = self.latest.get("liveliness")
        dead = lives is not None and lives.value(catalog.UP) == 0
        return self.listing is not None and not dead and self.fresh(self.listed_by, now) is self.listing

    def failing(self, now: int) -> int | None:
        """How many deployments fail; None: not known, or no longer."""
        if self.listing is None or not self.current(now):
            return None
        value = self.listing.value(catalog.UNHEALTHY_MODELS)
        return None if value is None else int(value)

    def dependencies(self, now: int) -> dict[str, bool]:
        """Connected or not, as the newest reading that counts says."""
        found = [points for endpoint in self.latest if (points := self.fresh(endpoint, now))]
        return {
            str(attributes["dependency"]): value == 1
            for points in sorted(found, key=lambda points: points.time)
            for attributes, value in points.values(catalog.DEPENDENCY_UP)
        }

    def look(self, now: int) -> None:
        """Note the state, and since when it is so. Before the first reading, what was stored stands."""
        if self.seen is None:
            return
        state = self._state(now)
        if state != self.state or not self.since:
            self.urgent = self.urgent or state != self.state
            self.state, self.since = state, now

    def _state(self, now: int) -> State:
        health = self.health(now)
        if health is None:
            return "unknown"
        if health == 0:
            return "unhealthy"
        return "degraded" if self.failing(now) or not all(self.dependencies(now).values()) else "healthy"

    # --- 24 hours -----------------------------------------------------------------------------------------------

    def slices(self, now: int) -> list[tuple[int, Slice]]:
        """The last SLICES of them with their starts (ns), the current one last."""
        last = now // SLICE
        return [(n * SLICE, self._slices.get(n, Slice())) for n in range(last - SLICES + 1, last + 1)]

    def encode(self) -> bytes:
        """To be stored. What is newest is not in it: after a restart it is unknown until it is read."""
        return _codec.encode(Stored(self._slices, self.state, self.since, self.deployments, self.changes))
