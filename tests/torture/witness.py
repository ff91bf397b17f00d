"""The console's lines read back to what was put. Pure."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from forwarder.events import Batch, Change, Delta, Event, Histogram, Metric, Resource


def batches(records: Iterable[Mapping[str, Any]]) -> list[Batch]:
    """Every line an event, each in a batch of its own."""
    return [batch_of(record) for record in records]


def batch_of(record: Mapping[str, Any]) -> Batch:
    event = event_of(record)
    return Batch(Resource(dict(record["resource"])), event.time, (event,))


def event_of(record: Mapping[str, Any]) -> Event:
    """Back from its line to the event, exactly."""
    time = nanoseconds(record["time"])
    if record["kind"] == "change":
        return Change(
            record["name"], time, record["severity"], record["title"], record["text"], dict(record["attributes"])
        )
    delta = record.get("delta")
    return Metric(
        record["name"],
        record["kind"],
        record["unit"],
        time,
        record.get("value"),
        dict(record["attributes"]),
        nanoseconds(record["start_time"]) if "start_time" in record else None,
        _histogram(record.get("histogram")),
        Delta(nanoseconds(delta["since"]), delta.get("value"), _histogram(delta.get("histogram"))) if delta else None,
    )


def _histogram(shown: Mapping[str, Any] | None) -> Histogram | None:
    return Histogram(tuple(shown["bounds"]), tuple(shown["counts"]), shown["sum"], shown["count"]) if shown else None


def nanoseconds(text: str) -> int:
    seconds, fraction = text.removesuffix("Z").split(".")
    return int(datetime.fromisoformat(f"{seconds}+00:00").timestamp()) * 10**9 + int(fraction)
