"""What one address is told, and when it is left in peace."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from fnmatch import fnmatchcase
from typing import Final

from cronsim import CronSim

from forwarder.events import Change, Severity

SECOND: Final = 1_000_000_000  # ns
_RANK: Final = {"info": 0, "warning": 1, "error": 2}


@dataclass(frozen=True, slots=True)
class Window:
    """Planned work: from each time that `start` (crontab's five fields) names in `zone`, for `duration` seconds.

    cronsim goes by Debian's cron where the clock is put forward or back: a start in the hour that is left out comes at
    its end, one in the hour that is there twice comes once.
    """

    start: str
    duration: float
    zone: tzinfo
    targets: Sequence[str] = ("*",)

    def until(self, target: str, now: int) -> int | None:
        """When the window that holds `now` ends (both ns UTC); None outside of any, and for other targets."""
        if not matches(self.targets, target):
            return None
        moment = datetime.fromtimestamp(now / SECOND, UTC)
        length = timedelta(seconds=self.duration)
        end = None  # of windows that overlap, the last to begin ends last
        for start in CronSim(self.start, (moment - length).astimezone(self.zone)):
            begins = start.astimezone(UTC)
            if begins > moment:
                break
            end = begins + length
        return None if end is None else int(end.timestamp() * SECOND)


@dataclass(frozen=True, slots=True)
class Rules:
    """`severity`: the least that is told. `changes` and `targets`: patterns of names. Times in seconds; `remind` None:
    never. `flapping`: so many changes of one thing within `flapping_within` are called flapping.
    """

    severity: Severity = "warning"
    changes: Sequence[str] = ("*",)
    targets: Sequence[str] = ("*",)
    group: float = 30.0
    remind: float | None = None
    max_per_hour: int = 20
    flapping: int = 6
    flapping_within: float = 1800.0
    maintenance: Sequence[Window] = ()

    def wants(self, change: Change, target: str) -> bool:
        return (
            _RANK[change.severity] >= _RANK[self.severity]
            and matches(self.changes, change.name)
            and matches(self.targets, target)
        )

    def quiet_until(self, target: str, now: int) -> int | None:
        """When the maintenance of `target` that is under way ends; None if none is (ns UTC)."""
        return max((end for one in self.maintenance if (end := one.until(target, now)) is not None), default=None)


def matches(patterns: Sequence[str], name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
