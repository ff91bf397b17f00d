"""What an answer that is nobody's, or that every HTTP backend means alike, comes to."""

from typing import Final

from forwarder.reply import Failure
from forwarder.sinks.base import Blocked, Retry
from forwarder.transport.post import Answer

# What waiting does not mend: somebody has to look at certificates or at what answers there.
_WRONG: Final = frozenset({Failure.TLS, Failure.TOO_LARGE, Failure.ENCODING})


def failed(answer: Answer, origin: str) -> Retry | Blocked | None:
    """The outcome of a request without a whole answer; None where there is one."""
    if answer.failure is None:
        return None
    status = "" if answer.status is None else f", after HTTP {answer.status}"
    reason = f"no answer from {origin}: {answer.detail}{status}"
    return Blocked(reason) if answer.failure in _WRONG else Retry(reason)


def misled(answer: Answer, origin: str) -> Blocked | None:
    """The outcome where something else answers than the backend (a redirect, which is never followed with a key, a
    page for people, a wrong path) or the key is refused. None where the status leaves it open.
    """
    status = answer.status
    if status is not None and 300 <= status <= 399:
        return Blocked(f"{origin} redirects (HTTP {status}), which is not followed: is the URL right?")
    if status in (401, 403, 407):
        return Blocked(f"{origin} refuses the key (HTTP {status})")
    if status in (404, 405, 410, 411):
        return Blocked(f"{origin} has nothing at this path (HTTP {status}): is the URL right?")
    if answer.content_type in ("text/html", "application/xhtml+xml"):
        if status is not None and status >= 500:
            return None  # a gateway's error page
        return Blocked(f"{origin} answers with a page for people (HTTP {status}): a log-in page, or a wrong URL?")
    return None
