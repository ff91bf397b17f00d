"""The metrics page of one target, from a reply to what is stored: points, what is told about the page, and the
state that the next reading counts from.
"""

from dataclasses import dataclass, replace
from typing import Final

from forwarder import catalog
from forwarder.config import Target
from forwarder.config_metrics import Metrics
from forwarder.events import Change, Event
from forwarder.exposition import state
from forwarder.exposition.counters import Counters
from forwarder.exposition.page import Page
from forwarder.exposition.selection import PROBES, Selection
from forwarder.http import Client
from forwarder.normalize import normalize
from forwarder.normalize.reading import Reading
from forwarder.reply import Reply

PATH: Final = "/metrics/"
ACCEPT: Final = "text/plain;version=0.0.4"  # OpenMetrics is read too, where a proxy sends nothing else


async def fetch_metrics(client: Client, settings: Metrics) -> Reply:
    """The page, behind one redirect within the same origin (`/metrics` and `/metrics/` lead to each other)."""
    timeout, max_body = settings.timeout, settings.max_body
    reply = await client.get(PATH, accept=ACCEPT, timeout=timeout, max_body=max_body)
    if reply.same_origin_location is not None:
        reply = await client.get(reply.same_origin_location, accept=ACCEPT, timeout=timeout, max_body=max_body)
    return reply


_MIXED: Final = (
    "The counters go up and down. Sums and histograms are withheld until one process answers. Workers of one proxy "
    "need PROMETHEUS_MULTIPROC_DIR to share their counters; pods behind one address need a target each."
)


@dataclass(frozen=True, slots=True)
class Scrape:
    """What one reply came to. `state` is to be stored with the events; None: nothing was counted."""

    reading: Reading
    events: list[Event]
    state: bytes | None = None


class Scraper:
    """`open` takes up what the last run stored; `read` a reply; `stored` says that its events and state are safe, else
    the next reading counts from the one before. Not for two threads at once.
    """

    def __init__(self, target: Target) -> None:
        self._target: Final = target.name
        settings = target.metrics
        self._max_series = settings.max_series
        dropped = (set(catalog.PERSONAL_LABELS) - set(settings.keep_labels)) | set(settings.drop_labels)
        selection = Selection(
            include=settings.include,
            exclude=settings.exclude,
            include_series=settings.include_series,
            exclude_series=(*settings.exclude_series, *(() if settings.health_probes else PROBES)),
            drop_labels=sorted(dropped),
        )
        self._page = Page(selection, max_series=settings.max_series, buckets=settings.buckets)
        self._counters = Counters(self._page)

    def open(self, stored: bytes) -> None:
        """State that cannot be read starts anew: the first reading then has no deltas. CodecError says so."""
        state.restore(self._counters, state.decode(stored), self._page.fingerprint)

    def read(self, reply: Reply, *, keyed: bool) -> Scrape:
        """Total, as `normalize` is. Takes a fraction of a second for a large page."""
        reading = normalize("metrics", reply, keyed=keyed)
        events: list[Event] = list(reading.metrics)
        if reading.error or reading.absent:
            return Scrape(reading, events)
        self._page.read(reply.body)
        events += self._counters.observe(reply.time)
        events += self._about(reply.time)
        reading = replace(reading, detail=self._detail())
        return Scrape(reading, events, state.encode(self._counters, self._page.fingerprint))

    def stored(self) -> None:
        self._counters.commit()

    def _about(self, time: int) -> list[Event]:
        page, counters = self._page, self._counters
        counts = {
            "kept": page.kept - counters.withheld,
            "dropped": page.capped,
            "withheld": counters.withheld,
            "malformed": page.malformed + counters.malformed,
        }
        found: list[Event] = [catalog.METRICS_SERIES.at(time, n, {"state": s}) for s, n in counts.items()]
        found.append(catalog.METRICS_BAD_LINES.at(time, page.bad_lines))
        return [*found, *self._changes(time)]

    def _detail(self) -> str:
        """What is wrong with a page that can be read, for the status."""
        page, counters = self._page, self._counters
        found = []
        if counters.mixed if counters.turned is None else counters.turned:
            found.append(f"several processes answer in turn. {_MIXED}")
        if page.capped:
            found.append(f"{page.capped:,} lines are dropped, over metrics.max_series")
        if malformed := page.malformed + counters.malformed:
            found.append(f"{malformed:,} malformed histograms or counters are left out")
        if page.bad_lines:
            found.append(f"{page.bad_lines:,} lines cannot be read")
        return "; ".join(found)

    def _changes(self, time: int) -> list[Change]:
        found = []
        if self._page.capped and not self._counters.capped:
            title = f"{self._target}: the metrics page has more than {self._max_series:,} series"
            text = (
                f"{self._page.capped:,} lines are dropped. Raise metrics.max_series, or leave out families "
                "(metrics.exclude) or labels (metrics.drop_labels)."
            )
            found.append(catalog.METRICS_CAPPED.at(time, title, text))
        if self._counters.turned is True:
            title = f"{self._target}: several processes answer for the metrics page in turn"
            found.append(catalog.METRICS_MIXED.at(time, title, _MIXED))
        if self._counters.turned is False:
            title = f"{self._target}: one process answers for the metrics page again"
            found.append(catalog.METRICS_UNMIXED.at(time, title, "Sums and histograms go on."))
        return found
