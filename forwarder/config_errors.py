"""From pydantic's errors to ours: a dotted path, the reason in plain words and the likely fix, never a value."""

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from forwarder.errors import Problem

MAX_PROBLEMS: Final = 100  # a file that is something else altogether is not worth ten thousand lines

_REASONS: Final = {
    "string_type": ("must be text", "write it in quotes"),
    "int_type": ("must be a whole number", "without quotes"),
    "bool_type": ("must be true or false", "without quotes"),
    "model_type": ("must be a table", "{ key = value }, or a [section] of its own"),
    "model_attributes_type": ("must be a table", "{ key = value }, or a [section] of its own"),
    "mapping_type": ("must be a table", "{ key = value }, or a [section] of its own"),
    "dict_type": ("must be a table", "{ key = value }, or a [section] of its own"),
    "tuple_type": ("must be a list", "[…]"),
    "frozen_set_type": ("must be a list", "[…]"),
    "missing": ("is missing", "it is always needed"),
    "extra_forbidden": ("is not a known key", ""),
}
# Where the general words would not help enough.
SECTIONS: Final = {
    "targets": ("needs a list of proxies to watch", "write [[targets]], with two brackets, once for each proxy"),
    "sinks": ("needs at least one destination", 'write [sinks.console] and, below it, type = "console"'),
}


# What an unknown key may look like to be repeated: what has digits and capitals, or many digits, may be a secret.
_A_KEY: Final = re.compile(r"[A-Za-z_-]{1,40}|[a-z0-9_-]{1,16}")


def problems(error: ValidationError, root: type[BaseModel]) -> list[Problem]:
    """Every problem in the order of the file's sections, MAX_PROBLEMS at most."""
    details = error.errors(include_url=False, include_input=False)
    found = [_problem(detail, root) for detail in details[:MAX_PROBLEMS]]
    if len(details) > MAX_PROBLEMS:
        found.append(Problem("…", f"and {len(details) - MAX_PROBLEMS} more problems", "is it the right file?"))
    return found


def _problem(detail: ErrorDetails, root: type[BaseModel]) -> Problem:
    kind, context, loc = detail["type"], detail.get("ctx", {}), detail["loc"]
    if kind == "problem" and loc[2:] == ("[key]",):  # pydantic's mark for "the key itself is wrong"
        loc = loc[:2]
    path, tables = _walk(loc, root)
    reason, hint = _REASONS.get(kind, ("is not valid", ""))
    if kind == "problem":
        path += f".{context['key']}" if context["key"] else ""
        reason, hint = context["reason"], context["hint"]
    elif path in SECTIONS:
        reason, hint = SECTIONS[path]
    elif kind == "extra_forbidden":
        key = str(loc[-1])
        hint = _suggestion(key, tables)
        if not _A_KEY.fullmatch(key):
            path = path.removesuffix(shown(key)) + '"…"'
    elif kind == "literal_error":
        reason = "must be " + context["expected"].replace("'", '"')
    elif kind == "greater_than_equal":
        reason = f"must be at least {context['ge']}"
    elif kind == "less_than_equal":
        reason = f"must be at most {context['le']}"
    return Problem(path, reason, hint)


def _walk(loc: Sequence[int | str], root: type[BaseModel]) -> tuple[str, list[type[BaseModel]]]:
    """The dotted path of a location, and the models that describe the innermost table on it."""
    path, tables = "", [root]
    for depth, part in enumerate(loc):
        if depth == 2 and loc[0] == "sinks" and len(tables) > 1:  # its mark for the member of the union of sinks
            tables = [table for table in tables if part in get_args(table.model_fields["type"].annotation)]
            continue
        if isinstance(part, int):
            path += f"[{part}]"
            continue
        path += ("." if path else "") + shown(part)
        fields = [table.model_fields[part] for table in tables if part in table.model_fields]
        inner = [model for field in fields for model in _models(field.annotation)]
        tables = inner or tables
    return path, tables


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def shown(key: str) -> str:
    """A key as it may stand in a message: what is long or odd is not repeated, so that no key forges a line."""
    if re.fullmatch(r"[A-Za-z0-9_-]{1,40}", key):
        return key
    return f'"{key}"' if re.fullmatch(r"[A-Za-z0-9_./ -]{1,60}", key) else '"…"'


def _suggestion(key: str, tables: Sequence[type[BaseModel]]) -> str:
    known = sorted({name for table in tables for name in table.model_fields})
    close = difflib.get_close_matches(key.lower().replace("-", "_")[:40], known, n=1)
    return f"did you mean {close[0]}?" if close else "known: " + ", ".join(known)
