"""What events become in New Relic: items for the SDK's clients, within the limits of the Metric API and the Event API.

    gauge       a gauge
    sum         a count of what it grew by since the reading before; of a first reading, nothing
    histogram   a summary {count, sum} under its own name, and counts `<name>_bucket` with `le`, as New Relic's
                `bucketPercentile` wants them; where nothing was observed, nothing
    change      an event of the type `LiteLLMChange`

The limits are those of docs.newrelic.com (Metric API: limits and restricted attributes; Event API: limits). They are
enforced there after the answer, and what breaks them vanishes: so they are kept here. Where the documentation can be
read in two ways (characters or bytes, 255 or fewer) the stricter reading is kept.
"""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from newrelic_telemetry_sdk import CountMetric, Event, GaugeMetric, SummaryMetric

from forwarder.events import Attributes, AttributeValue, Change, Delta, Histogram, Metric

Item = dict[str, Any]  # the SDK's Metric and Event are dicts, of what goes into the JSON

EVENT_TYPE: Final = "LiteLLMChange"
MAX_NAME: Final = 254  # UTF-8 bytes of a name; "less than 255 characters"
MAX_VALUE: Final = 4095  # UTF-8 bytes of an attribute's value
MAX_METRIC_ATTRIBUTES: Final = 100
MAX_EVENT_ATTRIBUTES: Final = 250  # of 255, with the type and the time
BUCKET: Final = "_bucket"

# Keys of the APIs' own JSON, and what New Relic overwrites or takes for the identity of an entity; in lower case.
RESERVED: Final = frozenset(
    {
        "accountid", "appid", "attributes", "common", "count", "endtimestamp", "entity.guid", "entity.name",
        "entity.type", "eventtype", "interval.ms", "max", "metricname", "metrics", "min", "newrelic.source", "sum",
        "timestamp", "type", "value",
    }
)  # fmt: skip
_FOREIGN: Final = re.compile(r"[^A-Za-z0-9:._]")  # in the name of an attribute
_LONG: Final = range(-(2**63), 2**63)  # a number outside of Java's long would drop its point, or the common block


# --- attributes ---------------------------------------------------------------------------------------------------


def fitting(attributes: Mapping[str, AttributeValue], *, most: int, taken: Iterable[str] = ()) -> Attributes:
    """The first `most` of the attributes, under names that New Relic takes and that are not among `taken`.

    A name keeps its letters, digits, colons, dots and underscores; anything else becomes an underscore. One that is
    reserved, or reserved but for underscores at its end, gets one more, so that `value` and `value_` stay apart; so
    does one that is there already, until it is not.
    """
    fitted: Attributes = {}
    names = set(taken)
    for name, value in itertools.islice(attributes.items(), most):
        found = base = _attribute_name(name)
        for more in itertools.count(1):
            if found not in names:
                break
            found = base[: MAX_NAME - more] + "_" * more
        names.add(found)
        fitted[found] = text(value, MAX_VALUE) if isinstance(value, str) or value not in _LONG else value
    return fitted


@lru_cache(maxsize=4096)
def _attribute_name(name: str) -> str:
    clean = _FOREIGN.sub("_", name)[: MAX_NAME - 1] or "_"
    return clean + "_" if clean.rstrip("_").lower() in RESERVED else clean


def text(value: AttributeValue, most: int) -> str:
    """As text of UTF-8, cut to `most` bytes; half of a surrogate pair becomes U+FFFD."""
    found = str(value)
    try:
        data = found.encode()
    except UnicodeEncodeError:
        found = found.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        data = found.encode()
    return found if len(data) <= most else data[:most].decode(errors="ignore")


# --- metrics ------------------------------------------------------------------------------------------------------


def metric_items(metric: Metric, resource: Attributes, *, oldest: int, buckets: bool) -> list[Item]:
    """`oldest`: the earliest start (ns UTC) that an interval may have; one that began before is shortened, because
    New Relic would drop its count. `buckets`: percentiles of histograms are wanted.

    What grew by less than nothing is no growth that anybody could have seen, and is left out.
    """
    name = text(metric.name, MAX_NAME)
    match metric:
        case Metric(kind="gauge", value=float() | int() as value):
            return [GaugeMetric(name, value, _tags(metric, resource, name), end_time_ms=_ms(metric.time))]
        case Metric(kind="sum", delta=Delta(value=float() | int() as value) as delta) if value >= 0:
            end, interval = _interval(delta, metric.time, oldest)
            return [CountMetric(name, value, interval, _tags(metric, resource, name), end_time_ms=end)]
        case Metric(kind="histogram", delta=Delta(histogram=Histogram() as grown) as delta) if _grew(grown):
            end, interval = _interval(delta, metric.time, oldest)
            tags = _tags(metric, resource, name)
            # The smallest and the largest are not known. New Relic's SDK for Go sends null for that, too.
            summary = SummaryMetric(name, grown.count, grown.sum, None, None, interval, tags, end_time_ms=end)
            return [summary, *_buckets(metric, resource, grown, end, interval)] if buckets else [summary]
    return []


def _tags(metric: Metric, resource: Attributes, name: str) -> Attributes:
    return fitting(resource | metric.attributes, most=MAX_METRIC_ATTRIBUTES, taken=[name])


def _ms(time: int) -> int:
    return time // 1_000_000


def _interval(delta: Delta, time: int, oldest: int) -> tuple[int, int]:
    """End and length in ms. The SDK (0.9.0) makes the start of them, which is what New Relic calls the timestamp; a
    length of 0 or less it would pass on.
    """
    end = _ms(time)
    return end, max(end - _ms(max(delta.since, oldest)), 1)


def _grew(grown: Histogram) -> bool:
    return grown.count > 0 and min(grown.counts, default=0) >= 0


def _buckets(metric: Metric, resource: Attributes, grown: Histogram, end: int, interval: int) -> list[Item]:
    """All of them, also those in which nothing fell: without its lower bound a percentile would be guessed from 0."""
    name = text(metric.name, MAX_NAME - len(BUCKET)) + BUCKET
    tags = fitting(resource | metric.attributes, most=MAX_METRIC_ATTRIBUTES - 1, taken=[name, "le"])
    bounds = [repr(bound) for bound in grown.bounds] + ["+Inf"]
    return [
        CountMetric(name, up_to, interval, {"le": bound, **tags}, end_time_ms=end)
        for bound, up_to in zip(bounds, itertools.accumulate(grown.counts), strict=True)
    ]


def shared(items: Sequence[Item]) -> Attributes:
    """What all have among their attributes, for the `common` block."""
    common = dict(items[0].get("attributes", {}))
    for item in items[1:]:
        own = item.get("attributes", {})
        for name in [name for name, value in common.items() if own.get(name) != value]:
            del common[name]
    return common


def without(item: Item, common: Attributes) -> Item:
    """The item, less what stands in the common block."""
    own = {name: value for name, value in item.get("attributes", {}).items() if name not in common}
    return {**item, "attributes": own}


# --- changes ------------------------------------------------------------------------------------------------------


def change_item(change: Change, resource: Attributes) -> Item:
    own = {"name": change.name, "severity": change.severity, "title": change.title, "text": change.text}
    # Also where there is no text: an attribute of that name is not the change's.
    tags = fitting(resource | change.attributes, most=MAX_EVENT_ATTRIBUTES - len(own), taken=own)
    own = {key: text(value, MAX_VALUE) for key, value in own.items() if value}
    # Not 0: the SDK (0.9.0) would make it now.
    return dict(Event(EVENT_TYPE, own | tags, timestamp_ms=max(_ms(change.time), 1)))
