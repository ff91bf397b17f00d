"""What hinders reading a target, told once when it begins and once when it ends."""

import logging
from collections.abc import Set as AbstractSet

from forwarder.logs import Reminder, fields
from forwarder.normalize.reading import Endpoint

log = logging.getLogger(__name__)


class Troubles:
    """The failures of one target that go on, by class. However many endpoints share a class of failure, and however
    often it comes, it is one line. `now` is ns UTC throughout.
    """

    def __init__(self, target: str, url: str) -> None:
        self._target = target
        self._url = url
        self._since: dict[str, dict[Endpoint, int]] = {}
        self._reminders: dict[str, Reminder] = {}

    def began(self, endpoint: Endpoint, error: str, detail: str, now: int) -> None:
        for other in [other for other, since in self._since.items() if other != error and endpoint in since]:
            self._over(endpoint, other, now)
        since = self._since.setdefault(error, {})
        message = f"cannot read the proxy: {detail}" if detail else "cannot read the proxy"
        about = {"target": self._target, "url": self._url, "endpoint": endpoint, "error": error}
        if not since:
            log.warning(message, extra=fields(**about))
            self._reminders[error] = Reminder(now)
        elif self._reminders[error].due(now):
            lasting = f"{(now - min(since.values())) // 1_000_000_000}s"
            log.warning("still: %s", message, extra=fields(**about, lasting=lasting))
        elif endpoint not in since:
            log.debug("nor this endpoint", extra=fields(target=self._target, endpoint=endpoint, error=error))
        since.setdefault(endpoint, now)

    def remind(self, error: str) -> None:
        """Something was done about it: should it go on all the same, that is told again."""
        if error in self._since:
            self._reminders[error] = Reminder(0)

    def ended(self, endpoint: Endpoint, now: int) -> None:
        for error in [error for error, since in self._since.items() if endpoint in since]:
            self._over(endpoint, error, now)

    def none_of(self, errors: AbstractSet[str], now: int) -> None:
        """These classes of failure are over for every endpoint, also for those that are not asked again soon."""
        for error in errors & self._since.keys():
            for endpoint in list(self._since[error]):
                self._over(endpoint, error, now)

    def _over(self, endpoint: Endpoint, error: str, now: int) -> None:
        began = self._since[error].pop(endpoint)
        if self._since[error]:
            return
        del self._since[error]
        after = f"{(now - began) // 1_000_000_000}s"
        log.info(
            "what could not be read can be read again",
            extra=fields(target=self._target, endpoint=endpoint, error=error, after=after),
        )
