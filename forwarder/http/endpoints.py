"""Which paths may be requested at all. Configuration cannot lift this: it is asked at the one place that sends."""

import re
from itertools import pairwise
from typing import Final

# GETs that change something (LiteLLM 1.53 to 1.109): /health/drain takes the worker out of service,
# /health/test_connection and /health/services?service= send test requests and alerts, /cache/ping writes a key.
# Looked for anywhere in the path, because a base URL or a gateway may put a prefix before it.
_FORBIDDEN: Final = (("health", "drain"), ("health", "test_connection"), ("cache", "ping"))
_FORBIDDEN_WITH_QUERY: Final = (("health", "services"),)  # bare, it is the documented report of dependencies

# Nothing else can be judged: behind an escape, a backslash or a `;` a gateway may see another path than we do.
_PLAIN_PATH: Final = re.compile(r"(?:/[A-Za-z0-9_~:@+,=.-]+)*/?")
_PLAIN_QUERY: Final = re.compile(r"[A-Za-z0-9_~:@+,=.!$&'()*/;?%\[\]-]*")


class ForbiddenEndpoint(Exception):  # noqa: N818 - says what it is; a bug of ours, since paths are constants
    """A path with side effects, or one not plain enough to tell, was about to be requested."""


def allowed(target: str) -> bool:
    """Whether `target`, the whole path and query as sent, is plain and leads to nothing with side effects."""
    path, mark, query = target.partition("?")
    if not _PLAIN_PATH.fullmatch(path) or not _PLAIN_QUERY.fullmatch(query):
        return False
    segments = path.lower().strip("/").split("/")
    if "." in segments or ".." in segments:
        return False
    pairs = set(pairwise(segments))
    return pairs.isdisjoint(_FORBIDDEN) and not (mark and pairs.intersection(_FORBIDDEN_WITH_QUERY))
