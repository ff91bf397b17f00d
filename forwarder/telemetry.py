"""The agent's own metrics, counted by OpenTelemetry meters (`meters`).

    telemetry = Telemetry()
    telemetry.sent("grafana", "delivered", 0.12)       # by whoever does it
    metrics = telemetry.read(Observed(accounts, …))    # by whoever tells it: cumulative, without deltas

There may be several readers (the status page, a scrape, the batch that goes to the sinks); each that needs deltas
keeps its own `Since`.
"""

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Final

import msgspec

from forwarder import catalog
from forwarder.catalog import MetricDef
from forwarder.events import Attributes, Delta, Metric, Resource
from forwarder.spool.base import Account

INSTANCE: Final = "service.instance.id"
STATM: Final = Path("/proc/self/statm")
# In the ledger's words; `accepted` and `pending` are the queue.
COLUMNS: Final = ("delivered", "rejected", "expired", "dropped")


def own_resource(configured: Mapping[str, str | int], instance: str) -> Resource:
    """The resource of what the agent says about itself. Without an instance, two agents would write to one series."""
    return Resource({INSTANCE: instance, **configured})


@dataclass(frozen=True, slots=True)
class Observed:
    """What gauges show, looked up by whoever reads. What is not known is left out.

    `up`: sink → whether its last send succeeded. `spool_size`: bytes on disk.
    """

    accounts: Sequence[Account] = ()
    up: Mapping[str, bool] = field(default_factory=dict)
    spool_size: int | None = None


class Telemetry:
    """The instruments, one method for each thing that is counted. Not for use by several threads."""

    def __init__(
        self,
        *,
        window: float = 60.0,
        clock: Callable[[], int] = time.time_ns,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        """`window`: seconds that a worst value is shown for, and twice that at most."""
        from forwarder.meters import Meters

        self.started: Final = clock()
        self._clock = clock
        self._steady = steady
        self._began = steady()
        self._gauges: dict[str, list[tuple[float, Attributes]]] = {}
        self._meters = Meters(_OWN, lambda name: self._gauges.get(name, []))
        self._late = _Worst(window, steady)
        self._lag = _Worst(window, steady)
        self._ledger: dict[tuple[str, str], int] = {}
        self._release = version("litellm-forwarder")

    # --- counting -------------------------------------------------------------------------------------------------

    def polled(self, target: str, endpoint: str, outcome: str, size: int = 0) -> None:
        """`outcome` is one of catalog.POLL_OUTCOMES; `size` in bytes."""
        self._add(catalog.POLLS, 1, {"litellm.target": target, "endpoint": endpoint, "outcome": outcome})
        if size:
            self._add(catalog.POLL_BYTES, size, {"litellm.target": target})

    def sent(self, sink: str, outcome: str, seconds: float) -> None:
        self._add(catalog.SENDS, 1, {"sink": sink, "outcome": outcome})
        self._add(catalog.SEND_DURATION, max(0.0, seconds), {"sink": sink})

    def lost(self, events: int, reason: str, sink: str = "") -> None:
        self._add(catalog.EVENTS_LOST, events, {"sink": sink, "reason": reason} if sink else {"reason": reason})

    def late(self, seconds: float) -> None:
        """A poll began so long after it was due."""
        self._late.note(seconds)

    def lagged(self, seconds: float) -> None:
        """The event loop came so much later than it was asked to."""
        self._lag.note(seconds)

    def _add(self, metric: MetricDef, amount: float, attributes: Attributes) -> None:
        self._meters.add(metric.name, amount, attributes)

    # --- reading --------------------------------------------------------------------------------------------------

    def read(self, observed: Observed) -> list[Metric]:
        """Every point there is now. Sums are cumulative since `started`, all of them."""
        now = self._clock()
        self.count(observed.accounts)
        self._gauges = self._look(observed, now)
        metrics = []
        for name, value, attributes in self._meters.collect():
            metric = _BY_NAME[name]
            start = self.started if metric.kind == "sum" else None
            if math.isfinite(value):
                metrics.append(metric.at(now, value, attributes, start_time=start))
        return metrics

    def count(self, accounts: Iterable[Account]) -> None:
        """Count what the ledger's columns grew by; for a sink that was not seen before, from now on. The columns hold
        what was before the start, and a replay takes from one of them.
        """
        for account in accounts:
            for column in COLUMNS:
                now, key = getattr(account, column), (account.sink, column)
                before = self._ledger.get(key, now)
                self._ledger[key] = now
                self._add(catalog.EVENTS, max(0, now - before), {"sink": account.sink, "outcome": column})

    def _look(self, observed: Observed, now: int) -> dict[str, list[tuple[float, Attributes]]]:
        gauges: dict[str, list[tuple[float, Attributes]]] = {}

        def show(metric: MetricDef, value: float | None, attributes: Attributes | None = None) -> None:
            if value is not None:
                gauges.setdefault(metric.name, []).append((value, attributes or {}))

        for sink, up in observed.up.items():
            show(catalog.SINK_UP, int(up), {"sink": sink})
        for account in observed.accounts:
            if account.attached:
                sink_only: Attributes = {"sink": account.sink}
                oldest = account.oldest_pending
                age = 0.0 if oldest is None or not account.pending else max(0.0, (now - oldest) / 1e9)
                show(catalog.QUEUE_EVENTS, account.pending, sink_only)
                show(catalog.QUEUE_AGE, age, sink_only)
                show(catalog.DEAD_LETTERS, account.dead_letters, sink_only)
        show(catalog.SPOOL_SIZE, observed.spool_size)
        show(catalog.POLL_LATENESS, self._late.value())
        show(catalog.LOOP_LAG, self._lag.value())
        show(catalog.MEMORY, resident_memory())
        show(catalog.UPTIME, self._steady() - self._began)
        show(catalog.AGENT_INFO, 1, {"version": self._release})
        return gauges


class Since:
    """What the sums grew by from one reading to the next, for one reader. `started` in ns UTC."""

    def __init__(self, started: int) -> None:
        self._time = started
        self._values: dict[tuple[str, frozenset[tuple[str, str | int]]], float] = {}

    def deltas(self, metrics: Iterable[Metric]) -> list[Metric]:
        """The same metrics, the sums with their deltas. The same again next time, unless `taken` is called."""
        return [self._with_delta(each) if each.kind == "sum" else each for each in metrics]

    def _with_delta(self, metric: Metric) -> Metric:
        before = self._values.get(_series(metric), 0.0)
        delta = Delta(min(self._time, metric.time), (metric.value or 0.0) - before)
        return msgspec.structs.replace(metric, delta=delta)

    def taken(self, metrics: Iterable[Metric]) -> None:
        """These have arrived where they were to go: the next deltas begin here."""
        for metric in metrics:
            if metric.kind == "sum":
                self._values[_series(metric)] = metric.value or 0.0
            self._time = metric.time


def resident_memory() -> int | None:
    """Bytes of this process in memory; None where the system does not say (other than Linux)."""
    try:
        return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


class _Worst:
    """The largest value of the current window and the one before it; None when there was none."""

    def __init__(self, window: float, steady: Callable[[], float]) -> None:
        self._window = window
        self._steady = steady
        self._began = steady()
        self._now: float | None = None
        self._before: float | None = None

    def note(self, value: float) -> None:
        self._turn()
        self._now = value if self._now is None else max(self._now, value)

    def value(self) -> float | None:
        self._turn()
        return max((each for each in (self._now, self._before) if each is not None), default=None)

    def _turn(self) -> None:
        passed = self._steady() - self._began
        if passed >= self._window:
            self._before = self._now if passed < 2 * self._window else None
            self._now = None
            self._began = self._steady()


_OWN: Final = tuple(metric for metric in catalog.METRICS if metric.name.startswith("forwarder."))
_BY_NAME: Final = {metric.name: metric for metric in _OWN}


def _series(metric: Metric) -> tuple[str, frozenset[tuple[str, str | int]]]:
    return metric.name, frozenset(metric.attributes.items())
