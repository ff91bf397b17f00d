"""As much of JSON Schema as our own schema uses; any other keyword fails loudly, so that none goes unchecked."""

import re
from collections.abc import Iterator
from typing import Any

ANNOTATIONS = {"$schema", "$defs", "title", "description", "default", "additionalProperties", "discriminator"}
TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": (list, tuple),
    "string": str,
    "boolean": bool,
    "integer": int,
}


def complaints(value: Any, schema: dict[str, Any], root: dict[str, Any], path: str = "$") -> Iterator[str]:
    """Every way in which `value` breaks `schema`; nothing when it is valid."""
    for keyword, rule in schema.items():
        yield from (f"{path}: {keyword}: {text}" for text in _broken(keyword, rule, value, root, path))
    if isinstance(value, dict) and schema.get("additionalProperties") is False:
        for key in value:
            if key not in schema.get("properties", {}) and not _matching(key, schema):
                yield f"{path}.{key}: additionalProperties"


def _matching(key: str, schema: dict[str, Any]) -> list[Any]:
    return [rule for pattern, rule in schema.get("patternProperties", {}).items() if re.search(pattern, key)]


def _broken(keyword: str, rule: Any, value: Any, root: dict[str, Any], path: str) -> Iterator[str]:  # noqa: C901, PLR0912 - one case per keyword
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    match keyword:
        case "$ref":
            yield from complaints(value, root["$defs"][rule.removeprefix("#/$defs/")], root, path)
        case "type":
            names = [rule] if isinstance(rule, str) else rule
            if not any(isinstance(value, TYPES[n]) and (n == "boolean" or not isinstance(value, bool)) for n in names):
                yield f"is not {rule}"
        case "properties" if isinstance(value, dict):
            for key, inner in rule.items():
                if key in value:
                    yield from complaints(value[key], inner, root, f"{path}.{key}")
        case "patternProperties" if isinstance(value, dict):
            for key, item in value.items():
                for inner in _matching(key, {"patternProperties": rule}):
                    yield from complaints(item, inner, root, f"{path}.{key}")
        case "items" if isinstance(value, list | tuple):
            for index, item in enumerate(value):
                yield from complaints(item, rule, root, f"{path}[{index}]")
        case "required" if isinstance(value, dict) and set(rule) - value.keys():
            yield f"{sorted(set(rule) - value.keys())}"
        case "minItems" | "minProperties" | "minLength" if hasattr(value, "__len__") and len(value) < rule:
            yield "too few"
        case "enum" if value not in rule:
            yield "not listed"
        case "const" if value != rule:
            yield "another value"
        case "pattern" if isinstance(value, str) and not re.search(rule, value):
            yield "does not match"
        case "minimum" if is_number and value < rule:
            yield "too small"
        case "maximum" if is_number and value > rule:
            yield "too large"
        case "anyOf" | "oneOf":
            valid = sum(1 for inner in rule if not list(complaints(value, inner, root, path)))
            if valid == 0 or (keyword == "oneOf" and valid > 1):
                yield f"{valid} alternatives fit"
        case "uniqueItems":
            assert rule is False
        case _:
            assert keyword in ANNOTATIONS | CONDITIONAL, f"unknown keyword {keyword}"


# Known, and looked at above only when they apply to the value at hand.
CONDITIONAL = {
    "properties",
    "patternProperties",
    "items",
    "required",
    "minItems",
    "minProperties",
    "minLength",
    "enum",
    "const",
    "pattern",
    "minimum",
    "maximum",
}
