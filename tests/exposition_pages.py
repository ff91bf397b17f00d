"""Prometheus pages for tests: the recorded ones, and small ones that grow as a test says."""

import gzip
from collections.abc import Mapping
from pathlib import Path

from forwarder.events import Metric
from forwarder.exposition import state
from forwarder.exposition.counters import Counters
from forwarder.exposition.page import Page
from forwarder.exposition.selection import Selection

CAPTURES = Path(__file__).parent / "captures"
VERSIONS = ("1.53.1", "1.80.17", "1.106.2")
SECOND = 1_000_000_000
NOW = 1_795_000_000 * SECOND


def recorded(version: str) -> bytes:
    """The page of a real proxy of that release, under some traffic; secrets in it are made up."""
    return gzip.decompress((CAPTURES / version / "metrics.txt.gz").read_bytes())


def page(
    counters: Mapping[str, float],
    *,
    began: float | None = None,
    created: Mapping[str, float] | None = None,
    more: str = "",
) -> bytes:
    """`litellm_requests_total` by its labels, as prometheus_client writes it. `began`: the start of the process, s."""
    text = "# TYPE litellm_requests_total counter\n"
    text += "".join(f"litellm_requests_total{labels} {value}\n" for labels, value in counters.items())
    if created is not None:
        text += "# TYPE litellm_requests_created gauge\n"
        text += "".join(f"litellm_requests_created{labels} {value}\n" for labels, value in created.items())
    if began is not None:
        text += f"# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds {began}\n"
    return (text + more).encode()


def histogram(buckets: Mapping[str, float], total: float, labels: str = "") -> str:
    """`litellm_latency` with cumulative buckets, without its TYPE."""
    inside = labels + "," if labels else ""
    text = "".join(f'litellm_latency_bucket{{{inside}le="{le}"}} {n}\n' for le, n in buckets.items())
    around = f"{{{labels}}}" if labels else ""
    return text + f"litellm_latency_count{around} {max(buckets.values())}\nlitellm_latency_sum{around} {total}\n"


HISTOGRAM = "# TYPE litellm_latency histogram\n"


class Reader:
    """A page read again and again, 15 seconds apart unless said otherwise; each reading is stored."""

    def __init__(self, *, max_series: int = 20_000, buckets: bool = True, **rules: object) -> None:
        self.page = Page(Selection(**rules), max_series=max_series, buckets=buckets)  # type: ignore[arg-type]
        self.counters = Counters(self.page)
        self.now = NOW
        self.state = b""

    def read(self, body: bytes, *, seconds: float = 15, stored: bool = True) -> list[Metric]:
        self.now += int(seconds * SECOND)
        self.page.read(body)
        points = self.counters.observe(self.now)
        if stored:
            self.state = state.encode(self.counters, self.page.fingerprint)
            self.counters.commit()
        return points

    def restarted(self, **settings: object) -> "Reader":
        """The agent, after a restart or a crash, with these settings."""
        other = Reader(**settings)  # type: ignore[arg-type]
        state.restore(other.counters, state.decode(self.state), other.page.fingerprint)
        other.now = self.now
        return other


def deltas(points: list[Metric]) -> list[float | None]:
    """Of the sums, in their order."""
    return [point.delta.value if point.delta else None for point in points if point.kind == "sum"]


def values(points: list[Metric]) -> list[float | None]:
    return [point.value for point in points if point.kind == "sum"]
