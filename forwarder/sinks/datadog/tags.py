"""Names and tags as Datadog keeps them, made so by us: the backend would silently do most of it, the client some of
it otherwise, and `|`, `,` and newlines would forge lines.

Tags [Datadog, Getting Started with Tags]: `key:value`, at most 200 characters; begin with a letter; hold letters and
digits of any script, `_ - : . /`, everything else becomes `_`; are lower case; do not end in a colon.
Metric names [Datadog, Custom Metrics]: ASCII letters, digits, `_` and `.`; begin with a letter; 200 characters.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from hashlib import sha256
from typing import Final

from forwarder.events import Attributes, AttributeValue

MAX_NAME: Final = 200
MAX_TAG: Final = 200
MAX_KEY: Final = 100  # so that any key leaves room for a value
# What Datadog's unified service tagging calls them.
UNIFIED: Final = {
    "deployment.environment.name": "env",
    "deployment.environment": "env",
    "service.name": "service",
    "service.version": "version",
}
# Two deployments must not become one series because their ids differ only in what cleaning takes away.
IDENTITY: Final = "deployment.id"

_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9_.]")
_NOT_IN_KEYS: Final = re.compile(r"[^\w./-]")
_NOT_IN_VALUES: Final = re.compile(r"[^\w:./-]")


def tags(attributes: Mapping[str, AttributeValue]) -> tuple[str, ...]:
    """One tag for each attribute with a value, sorted, each once; keys as `unified` made them."""
    found = {_tag(key, str(value)) for key, value in attributes.items()}
    return tuple(sorted(tag for tag in found if tag))


def unified(attributes: Attributes) -> Attributes:
    """The same under Datadog's names, so that none stands there twice."""
    return {UNIFIED.get(key, key): value for key, value in attributes.items()}


@lru_cache(maxsize=4096)
def _tag(key: str, value: str) -> str:
    """Empty where nothing is left of the value."""
    name = _letter_first(_NOT_IN_KEYS.sub("_", key.lower()))[:MAX_KEY]
    room = MAX_TAG - len(name) - 1
    clean = _NOT_IN_VALUES.sub("_", value.lower())[:room].rstrip(":")
    if key == IDENTITY and clean and clean != value:
        digest = sha256(value.encode("utf-8", "surrogatepass")).hexdigest()[:8]
        clean = f"{clean[: room - 9]}-{digest}"
    return f"{name}:{clean}" if clean else ""


@lru_cache(maxsize=4096)
def metric_name(name: str, suffix: str = "") -> str:
    return _letter_first(_NOT_IN_NAMES.sub("_", name))[: MAX_NAME - len(suffix)] + suffix


def _letter_first(text: str) -> str:
    return text if text[:1].isalpha() else f"x{text}"
