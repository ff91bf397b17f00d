"""The JSON of Datadog's intake: what goes into one request, and how large it is. Pure.

/api/v2/series takes 512,000 bytes compressed and 5,242,880 bytes in all [API reference, Submit metrics]; the same is
kept for check runs. /api/v1/events takes one event.
"""

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from forwarder.sinks.datadog.points import SOURCE, Check, Item, Note, Point

MAX_RAW: Final = 5_242_880  # bytes
MAX_COMPRESSED: Final = 512_000  # bytes
ROOM: Final = 1000  # bytes for what stands around the list
TYPES: Final = {"count": 1, "gauge": 3}

_encode: Final = msgspec.json.Encoder().encode


@dataclass(frozen=True)
class Parts:
    """What one event adds to a request's lists, encoded."""

    series: tuple[bytes, ...] = ()
    checks: tuple[bytes, ...] = ()

    @property
    def size(self) -> int:
        return sum(len(part) + 1 for part in (*self.series, *self.checks))


def parts(items: Sequence[Item]) -> Parts:
    """Of the points and checks among them."""
    return Parts(
        tuple(_encode(_series(item)) for item in items if isinstance(item, Point)),
        tuple(_encode(_check(item)) for item in items if isinstance(item, Check)),
    )


def series(events: Sequence[Parts]) -> bytes:
    """The body of /api/v2/series; empty where there is no point."""
    found = [part for each in events for part in each.series]
    return b'{"series":[%b]}' % b",".join(found) if found else b""


def check_runs(events: Sequence[Parts]) -> bytes:
    """The body of /api/v1/check_run; empty where there is no check."""
    found = [part for each in events for part in each.checks]
    return b"[%b]" % b",".join(found) if found else b""


def note(item: Note) -> bytes:
    """The body of /api/v1/events."""
    return _encode(
        {
            "title": item.title,
            "text": item.text,
            "alert_type": item.alert,
            "aggregation_key": item.key,
            "source_type_name": SOURCE,
            "date_happened": item.time,
            "tags": item.tags,
        }
    )


def compressed(body: bytes) -> bytes:
    return gzip.compress(body, compresslevel=6, mtime=0)


def _series(point: Point) -> dict[str, Any]:
    found = {
        "metric": point.name,
        "type": TYPES[point.kind],
        "points": ({"timestamp": point.time, "value": point.value},),
        "tags": point.tags,
    }
    return found | {"interval": point.interval} if point.kind == "count" else found


def _check(check: Check) -> dict[str, Any]:
    return {
        "check": check.name,
        "status": check.status,
        "timestamp": check.time,
        "tags": check.tags,
        "message": check.message,
    }
