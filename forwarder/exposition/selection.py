"""Which series of a page go on, and with which attributes: the rules of catalog.FAMILIES."""

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Final

from forwarder.catalog import PERSONAL_LABELS
from forwarder.events import Attributes
from forwarder.exposition.syntax import Labels
from forwarder.normalize.reading import name as clean_name

PROBE: Final = "litellm-internal-health-check"  # the key, team and alias of the proxy's own probes
_PROBE_LABELS: Final = frozenset({"api_key_alias", "hashed_api_key", "team", "team_alias"})
# What LiteLLM writes where it has no value: Python's None. Unknown is absence; Prometheus sees no label in "".
_MISSING: Final = frozenset({"", "None"})
_URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)(?:\S*@)?([^?#\s]*)(?:[?#]\S*)?")
_KEY: Final = re.compile(r"\b(sk-|Bearer\s+)[A-Za-z0-9._~+/=-]{4,}", re.IGNORECASE)


class Selection:
    """Frozen rules of one target. `include` and `exclude` are patterns (`*`, `?`, `[…]`) for names of families."""

    def __init__(
        self,
        *,
        include: Sequence[str] = ("litellm_*",),
        exclude: Sequence[str] = (),
        drop_labels: Sequence[str] = PERSONAL_LABELS,
        health_probes: bool = False,
    ) -> None:
        self._include = tuple(include)
        self._exclude = tuple(exclude)
        self._drop = frozenset(drop_labels)
        self._health_probes = health_probes
        self._family = lru_cache(maxsize=4096)(self._wanted)

    @property
    def fingerprint(self) -> str:
        """The same for the same rules: what one set of rules left out, another may let through."""
        return repr((self._include, self._exclude, sorted(self._drop), self._health_probes))

    def family(self, name: str) -> bool:
        """Whether a family goes on, by the name of its samples without `_bucket`, `_sum`, `_count`."""
        return self._family(name)

    def _wanted(self, name: str) -> bool:
        names = (name, name.removesuffix("_total"))
        included = any(fnmatchcase(n, pattern) for n in names for pattern in self._include)
        return included and not any(fnmatchcase(n, pattern) for n in names for pattern in self._exclude)

    def attributes(self, labels: Labels) -> Attributes | None:
        """What goes on of the labels; None when the series does not go on."""
        found: Attributes = {}
        for label, value in labels:
            if not self._health_probes and value == PROBE and label in _PROBE_LABELS:
                return None
            if label in self._drop or value in _MISSING:
                continue
            if (cleaned := clean(value)) is not None:
                found[label] = cleaned
        return found


@lru_cache(maxsize=16_384)  # a page has few values, many times each
def clean(value: str) -> str | None:
    """The value of a label as it may go on; None when nothing is left."""
    if "://" in value:
        value = _URL.sub(r"\1\2", value)
    return clean_name(_KEY.sub(r"\1***", value))
