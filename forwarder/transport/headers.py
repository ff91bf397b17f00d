"""Headers that every request sends or every answer may bring."""

from datetime import UTC
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from typing import Final

USER_AGENT: Final = f"litellm-forwarder/{version('litellm-forwarder')}"
MAX_RETRY_AFTER: Final = 24 * 3600.0  # seconds; what says more is taken to say this


def retry_after(value: str, now: int) -> float | None:
    """Seconds (RFC 9110 10.2.3: a number of seconds or a date), 0 to MAX_RETRY_AFTER; None if it is neither.
    `now` is ns UTC.
    """
    if not value.isascii() or len(value) > 100:
        return None
    if value.isdigit():
        return min(float(value), MAX_RETRY_AFTER)
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    if date.tzinfo is None:  # "-0000": the zone is unknown; HTTP dates are GMT
        date = date.replace(tzinfo=UTC)
    return min(max(date.timestamp() - now / 1e9, 0.0), MAX_RETRY_AFTER)
