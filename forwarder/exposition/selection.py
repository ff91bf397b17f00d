"""Which series of a page go on, and with which attributes: the rules of catalog.FAMILIES."""

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase, translate
from functools import lru_cache
from typing import Final

from forwarder.catalog import PERSONAL_LABELS
from forwarder.events import Attributes
from forwarder.exposition.syntax import Labels
from forwarder.normalize.reading import masked
from forwarder.normalize.reading import name as clean_name

# By label the pattern (`*`, `?`, `[…]`) that its value has: all of them must fit. A label that is not there is "", as
# in Prometheus, and NAME is the family.
Matcher = Mapping[str, str]
NAME: Final = "__name__"

PROBE: Final = "litellm-internal-health-check"  # the key, team and alias of the proxy's own probes
PROBES: Final[tuple[Matcher, ...]] = tuple(
    {label: PROBE} for label in ("api_key_alias", "hashed_api_key", "team", "team_alias")
)
# What LiteLLM writes where it has no value: Python's None. Unknown is absence; Prometheus sees no label in "".
_MISSING: Final = frozenset({"", "None"})
# From `://` on, not from the scheme: a value of 64 KiB letters would be searched from each of them, for seconds.
_URL: Final = re.compile(r"://(?:\S*@)?([^?#\s]*)(?:[?#]\S*)?")
_CACHED: Final = 1024  # characters


class Selection:
    """Frozen rules of one target. `include` and `exclude` are patterns (`*`, `?`, `[…]`) for names of families; of
    their series those go on that one of `include_series` fits (without any: all) and none of `exclude_series`.
    """

    def __init__(
        self,
        *,
        include: Sequence[str] = ("litellm_*",),
        exclude: Sequence[str] = (),
        include_series: Sequence[Matcher] = (),
        exclude_series: Sequence[Matcher] = PROBES,
        drop_labels: Sequence[str] = PERSONAL_LABELS,
    ) -> None:
        rules = (include, exclude, include_series, exclude_series, drop_labels)
        self.fingerprint: Final = repr(rules)  # what one set of rules left out, another may let through
        self._include = tuple(include)
        self._exclude = tuple(exclude)
        self._include_series = _compiled(include_series)
        self._exclude_series = _compiled(exclude_series)
        self._drop = frozenset(drop_labels)
        self._family = lru_cache(maxsize=4096)(self._wanted)

    def family(self, name: str) -> bool:
        """Whether a family goes on, by the name of its samples without `_bucket`, `_sum`, `_count`."""
        return self._family(name)

    def _wanted(self, name: str) -> bool:
        names = (name, name.removesuffix("_total"))
        included = any(fnmatchcase(n, pattern) for n in names for pattern in self._include)
        return included and not any(fnmatchcase(n, pattern) for n in names for pattern in self._exclude)

    def attributes(self, family: str, labels: Labels) -> Attributes | None:
        """What goes on of a series' labels; None when the series does not go on. To be asked once for each series."""
        named = dict(labels, **{NAME: family})
        if self._include_series and not _fits(self._include_series, named):
            return None
        if _fits(self._exclude_series, named):
            return None
        found: Attributes = {}
        for label, value in labels:
            if label in self._drop or value in _MISSING:
                continue
            if (cleaned := clean(value) if len(value) <= _CACHED else _clean(value)) is not None:
                found[label] = cleaned
        return found


_Compiled = tuple[tuple[tuple[str, re.Pattern[str]], ...], ...]


def _compiled(matchers: Sequence[Matcher]) -> _Compiled:
    return tuple(
        tuple((label, re.compile(translate(pattern))) for label, pattern in sorted(matcher.items()))
        for matcher in matchers
    )


def _fits(matchers: _Compiled, labels: Mapping[str, str]) -> bool:
    return any(all(pattern.match(labels.get(label, "")) for label, pattern in matcher) for matcher in matchers)


def _clean(value: str) -> str | None:
    if "://" in value:
        value = _URL.sub(r"://\1", value)
    return clean_name(masked(value))


@lru_cache(maxsize=16_384)  # a page has few values, many times each
def clean(value: str) -> str | None:
    """The value of a label as it may go on; None when nothing is left."""
    return _clean(value)
