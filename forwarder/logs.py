"""Log lines: one event of interest each, `key=value`, on standard error.

    2026-11-23T07:12:10Z WARNING cannot read the endpoint target=eu endpoint=health error=timeout

A message and its values are kept apart until the line is formatted, so that no value can break out of its line.
Secrets and texts of peers never come here: callers log names, classes and clauses of our own.
"""

import json
import logging
import re
import time
from typing import Final, TextIO

_PLAIN: Final = re.compile(r"[\w.:/@+,-]+", re.ASCII)


def fields(**values: object) -> dict[str, dict[str, object]]:
    """For `extra=` of a logging call; None values are left out."""
    return {"fields": {key: value for key, value in values.items() if value is not None}}


class KeyValueFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        parts = [stamp, record.levelname, one_line(record.getMessage())]
        parts += [f"{key}={_value(value)}" for key, value in getattr(record, "fields", {}).items()]
        line = " ".join(parts)
        # A traceback means a bug of ours and is worth its lines.
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def configure(level: str, stream: TextIO) -> None:
    """Send the agent's log to `stream`. Libraries speak from WARNING up: at INFO, httpx logs whole URLs."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(KeyValueFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("forwarder").setLevel(level.upper())
    # Our jobs only start tasks; what they come to is logged by the poller. At a stop APScheduler cancels jobs that
    # have not begun, and would log each with a traceback.
    logging.getLogger("apscheduler").setLevel(logging.CRITICAL)
    # It would log each packet that an agent does not take; the pump says what the sink makes of it, once.
    logging.getLogger("datadog").setLevel(logging.CRITICAL)


def one_line(text: str) -> str:
    return text if text.isprintable() else json.dumps(text, ensure_ascii=True)[1:-1]


def _value(value: object) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=True)
