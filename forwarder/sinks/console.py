"""One JSON object per event on a line of standard output: the default sink, and the form other programs pipe.

    {"name":"litellm.up","kind":"gauge","value":1.0,"unit":"1","time":"2026-11-23T07:12:10.123456789Z",
     "attributes":{},"resource":{"litellm.target":"eu"}}

Floats are written so that they read back to the same value, times to the nanosecond, everything outside ASCII and
every control character as a JSON escape: no text can end a line or reach the terminal as a control sequence.
"""

import json
import os
import select
import stat
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from forwarder.events import Batch, Change, Event, Histogram, Metric
from forwarder.sinks.base import Blocked, Delivered, Limits, Outcome, Retry

# A pipe takes this much at once or not at all (pipe(7)): lines no longer than this are never cut nor mixed with what
# others write there, such as our own log after `2>&1`.
PIPE_BUF: Final = 4096
# So often in a row poll() may see room where a write finds none. A terminal with room for one character and a line
# end to write, which takes two, would have us go round until the timeout.
CROWDED: Final = 1000


class ConsoleSink:
    limits: Final = Limits(max_events=5000, max_bytes=4_000_000)

    def __init__(self, name: str, fd: int | None = 1) -> None:
        """`fd` None: the process was started without standard output."""
        self.name: Final = name
        self._fd = fd
        self._cut: bool | None = None  # the last attempt ended within a line; None: not looked yet

    def __repr__(self) -> str:
        return f"ConsoleSink({self.name!r})"

    def send(self, batches: Sequence[Batch], *, timeout: float) -> Outcome:
        if self._fd is None:
            return Blocked("the process was started without standard output")
        deadline = time.monotonic() + timeout
        # The same events are sent again after an attempt that ended within a line. End that line first, so that each
        # line is whole or broken off.
        if self._cut is None:
            self._cut = _ends_within_a_line(self._fd)
        lines = ["\n"] if self._cut else []
        lines += [line(event, batch) for batch in batches for event in batch.events]
        data = "".join(lines).encode("ascii")
        fd = _own(self._fd)
        try:
            return self._write(self._fd if fd is None else fd, data, deadline)
        finally:
            if fd is not None:
                os.close(fd)

    def close(self) -> None:
        """Nothing to close: standard output belongs to the process."""

    def _write(self, fd: int, data: bytes, deadline: float) -> Outcome:
        poller = select.poll()
        poller.register(fd, select.POLLOUT)
        start = 1 if self._cut else 0  # the line that is ended first is none of this call's
        written = crowded = 0
        while written < len(data):
            remaining = deadline - time.monotonic()
            if remaining <= 0 or crowded > CROWDED or not poller.poll(remaining * 1000):
                whole = data.count(b"\n", start, max(start, written))
                return Retry("standard output takes no more: its reader is too slow", delivered=whole)
            end = data.rfind(b"\n", written, written + PIPE_BUF) + 1 or written + PIPE_BUF
            try:
                written += os.write(fd, data[written:end])
            except BlockingIOError:
                crowded += 1  # another writer was there first
            except BrokenPipeError:
                # What lies in the pipe nobody will read, and how much of it was read cannot be known.
                return Blocked("the reader of standard output is gone")
            except OSError as error:
                reason = f"standard output cannot be written: {error.strerror or type(error).__name__}"
                return Retry(reason, delivered=data.count(b"\n", start, max(start, written)))
            else:
                crowded = 0
                self._cut = data[written - 1] != ord("\n")
        return Delivered()


def _ends_within_a_line(fd: int) -> bool:
    """Whether standard output is a file that an earlier run left with half a line (a full disk, a kill)."""
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return False
        # Opened anew, because `fd` may be open for writing only.
        with open(f"/proc/self/fd/{fd}", "rb") as file:  # noqa: PTH123 - a descriptor's own name
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    except OSError:
        return False  # empty, or not ours to read


def _own(fd: int) -> int | None:
    """The same pipe or terminal opened once more, non-blocking; None where that cannot be.

    poll() alone does not keep a write from blocking: a terminal takes a part and waits with the rest, and another
    writer may fill a pipe in between. To set O_NONBLOCK on `fd` itself would set it for all who share it: the shell,
    our own log. A file is not opened again, since its offset is shared on purpose (`>> file 2>&1`), nor need it be.
    """
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return None  # no /proc here, or a terminal or pipe that belongs to another user
    return None


def line(event: Event, batch: Batch) -> str:
    record: dict[str, object] = {"name": event.name}
    match event:
        case Metric():
            record["kind"] = event.kind
            if event.value is not None:
                record["value"] = event.value
            if event.histogram is not None:
                record["histogram"] = _histogram(event.histogram)
            record["unit"] = event.unit
            if event.start_time is not None:
                record["start_time"] = rfc3339(event.start_time)
            if event.delta is not None:
                delta: dict[str, object] = {"since": rfc3339(event.delta.since)}
                if event.delta.value is not None:
                    delta["value"] = event.delta.value
                if event.delta.histogram is not None:
                    delta["histogram"] = _histogram(event.delta.histogram)
                record["delta"] = delta
        case Change():
            record |= {"kind": "change", "severity": event.severity, "title": event.title, "text": event.text}
    record |= {"time": rfc3339(event.time), "attributes": event.attributes, "resource": batch.resource.attributes}
    return json.dumps(record, separators=(",", ":")) + "\n"


def rfc3339(time_ns: int) -> str:
    seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"


def _histogram(histogram: Histogram) -> dict[str, object]:
    return {
        "bounds": histogram.bounds,
        "counts": histogram.counts,
        "sum": histogram.sum,
        "count": histogram.count,
    }
