"""Log lines: one event of interest each, `key=value` or JSON, on standard error.

    2026-11-23T07:12:10Z WARNING cannot read the endpoint target=eu endpoint=health error=timeout
    {"time": "2026-11-23T07:12:10.123Z", "level": "warning", "message": "cannot read the endpoint", "target": "eu", …}

A message and its values are kept apart until the line is formatted, so that no value can break out of its line.
Secrets and texts of peers never come here: callers log names, classes and clauses of our own. What an exception says
is not ours (the HTTP library quotes header values), so of one that is logged only the types and places are shown.
"""

import json
import logging
import os
import re
import time
import traceback
from collections.abc import Mapping
from typing import Final, Literal, TextIO

Format = Literal["text", "json"]

_PLAIN: Final = re.compile(r"[\w.:/@+,-]+", re.ASCII)
# syslog's numbers, as sd-daemon(3) wants them at the beginning of a line.
_PRIORITIES: Final = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
REMIND: Final = 3_600_000_000_000  # ns


def fields(**values: object) -> dict[str, dict[str, object]]:
    """For `extra=` of a logging call; None values are left out."""
    return {"fields": {key: value for key, value in values.items() if value is not None}}


class Reminder:
    """For what goes on: it is told when it begins and when it ends, and in between once an hour. `now` is ns UTC."""

    def __init__(self, now: int) -> None:
        self._told = now

    def due(self, now: int) -> bool:
        """Whether to tell it again now; if so, the next hour begins."""
        if 0 <= now - self._told < REMIND:
            return False
        self._told = now
        return True


class LineFormatter(logging.Formatter):
    """One line for each record. `journal`: for journald, which has a clock and takes the level from a prefix."""

    def __init__(self, form: Format = "text", *, journal: bool = False) -> None:
        super().__init__()
        self._form = form
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        values = dict(getattr(record, "fields", {}))
        error = record.exc_info[1] if record.exc_info else None
        trace = ""
        if not record.name.startswith("forwarder"):
            values["logger"] = record.name
            if error is not None:
                values["error"] = type(error).__name__
        elif error is not None:
            trace = trace_of(error)
        message = record.getMessage()
        text = (
            self._json(record, message, values, trace)
            if self._form == "json"
            else self._text(record, message, values, trace)
        )
        if not self._journal:
            return text
        prefix = f"<{_PRIORITIES.get(record.levelno, 6)}>"
        return "\n".join(prefix + line for line in text.split("\n"))

    def _text(self, record: logging.LogRecord, message: str, values: Mapping[str, object], trace: str) -> str:
        parts = [] if self._journal else [time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))]
        parts += [record.levelname, one_line(message)]
        parts += [f"{key}={_value(value)}" for key, value in values.items()]
        line = " ".join(parts)
        # A traceback means a bug of ours and is worth its lines.
        return f"{line}\n{trace}" if trace else line

    def _json(self, record: logging.LogRecord, message: str, values: Mapping[str, object], trace: str) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z"
        plain = {key: value if isinstance(value, bool | int | float) else str(value) for key, value in values.items()}
        head = {"time": stamp, "level": record.levelname.lower(), "message": message}
        return json.dumps(head | plain | head | ({"traceback": trace} if trace else {}))


def configure(level: str, stream: TextIO, form: Format = "text", environ: Mapping[str, str] = os.environ) -> None:
    """Send the agent's log to `stream`. Libraries speak from WARNING up: at INFO, httpx logs whole URLs."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LineFormatter(form, journal=is_journal(stream, environ)))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("forwarder").setLevel(level.upper())
    # Our jobs only start tasks; what they come to is logged by the poller. At a stop APScheduler cancels jobs that
    # have not begun, and would log each with a traceback.
    logging.getLogger("apscheduler").setLevel(logging.CRITICAL)
    # It warns of each request that it refuses: anybody who reaches the status pages could fill the log.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    # It would log each packet that an agent does not take; the pump says what the sink makes of it, once.
    logging.getLogger("datadog").setLevel(logging.CRITICAL)


def is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether what is written there goes to journald: JOURNAL_STREAM names its device and inode (systemd.exec(5)).
    That the variable is set says nothing: it is inherited also where the stream was redirected.
    """
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):  # closed, or no file at all
        return False
    return environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def trace_of(error: BaseException) -> str:
    """A traceback without what the exceptions say, those that led to it first."""
    blocks: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(blocks) < 10:
        places = "".join(traceback.format_tb(cause.__traceback__))
        blocks.insert(
            0, f"Traceback (most recent call last):\n{places}{type(cause).__module__}.{type(cause).__name__}"
        )
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return "\nwhich led to:\n".join(blocks)


def one_line(text: str) -> str:
    return text if text.isprintable() else json.dumps(text, ensure_ascii=True)[1:-1]


def _value(value: object) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=True)
