"""One line of a Prometheus page: text format 0.0.4, and OpenMetrics 1.0, which differs little line by line.

https://prometheus.io/docs/instrumenting/exposition_formats/
https://github.com/prometheus/OpenMetrics/blob/v1.0.0/specification/OpenMetrics.md

Where this reader differs on purpose from those of prometheus_client (the oracles of tests/test_exposition_syntax.py):

- a bad line costs that line; prometheus_client raises, and the page is lost;
- lines end at a line feed alone: U+2028, U+0085, a vertical tab belong to the label they stand in;
- timestamps and exemplars are checked for form and left out: points carry the time of the reading;
- `# EOF` is not demanded: a page that is cut off is found by its framing in HTTP;
- a counter keeps the name that its samples have (prometheus_client takes `_total` off, or puts it on);
- names over MAX_NAME are bad lines;
- quoted metric names (`{"a.b"}`, UTF-8 names) are bad lines: they are sent only to who asks for them.
"""

import re
from typing import Final, NamedTuple

# Longer ones are no series that anybody wants, and must not be remembered.
MAX_LINE: Final = 64 * 1024  # bytes
# Of a metric or a label. No backend takes longer ones, and unlike values, which are cut, they would go on whole.
MAX_NAME: Final = 200  # characters

_NUMBER: Final = r"[^ \t\r{}#,]++"
# Possessive quantifiers (`*+`): without them a long line that fails at its end takes for ever.
_QUOTED: Final = r'"((?:[^"\\]|\\.)*+)"'
_LABEL: Final = rf"[ \t]*+([a-zA-Z_][a-zA-Z0-9_]*+)[ \t]*+=[ \t]*+{_QUOTED}[ \t]*+"
_LABELS: Final = re.sub(r"\((?!\?)", "(?:", rf"(?:{_LABEL}(?:,{_LABEL})*+,?+)?+[ \t]*+")  # without its groups
_SAMPLE: Final = re.compile(
    r"[ \t]*+(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*+)"
    rf"(?:[ \t]*+\{{(?P<labels>{_LABELS})\}}[ \t]*+|[ \t]++)"
    rf"(?P<value>{_NUMBER})"
    rf"(?:[ \t]++(?P<time>{_NUMBER}))?"
    rf"(?P<exemplar>[ \t]++#[ \t]*+\{{{_LABELS}\}}[ \t]++{_NUMBER}(?:[ \t]++{_NUMBER})?)?"
    r"[ \t\r]*+"
)
_EACH: Final = re.compile(_LABEL)
_ESCAPE: Final = re.compile(r'\\[\\"n]')
_ESCAPES: Final = {r"\\": "\\", r"\"": '"', r"\n": "\n"}
_IS_TYPE: Final = re.compile(rb"#[ \t]*TYPE[ \t]")
_TYPE: Final = re.compile(r"#[ \t]*TYPE[ \t]+([a-zA-Z_:][a-zA-Z0-9_:]*)[ \t]+([a-z]+)[ \t\r]*")

TYPES: Final = frozenset(
    {"counter", "gauge", "histogram", "summary", "untyped", "unknown", "info", "stateset", "gaugehistogram"}
)
Labels = tuple[tuple[str, str], ...]


class BadLineError(Exception):
    """A line that is no sample, no comment and not empty."""


class Sample(NamedTuple):
    """`key`: the line up to the space before its value, where a line that begins so can only be the same series with
    another value; empty where something follows the value.
    """

    name: str
    labels: Labels
    value: float
    key: bytes


def sample(line: bytes) -> Sample:
    """The sample of a line. Raises BadLineError."""
    if len(line) > MAX_LINE:
        raise BadLineError
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise BadLineError from None
    found = _SAMPLE.fullmatch(text)
    if found is None or len(found["name"]) > MAX_NAME:
        raise BadLineError
    if found["time"] is not None:
        number(found["time"])
    return Sample(found["name"], _labels(found["labels"] or ""), number(found["value"]), _key(line, found))


def _key(line: bytes, found: re.Match[str]) -> bytes:
    tail = found.string[found.start("value") :]  # ASCII, so it has as many bytes
    before = line[: len(line) - len(tail)]
    alone = tail.rstrip("\r") == found["value"] and before.endswith(b" ")
    return before[:-1] if alone else b""


def number(text: str) -> float:
    """A value: Go's and Python's spellings of floats, NaN and infinities. Raises BadLineError."""
    try:
        value = float(text)
    except ValueError:
        raise BadLineError from None
    if "_" in text:  # Python's own spelling of long numbers
        raise BadLineError
    return value


def _labels(text: str) -> Labels:
    labels = tuple(_EACH.findall(text))
    if len(dict(labels)) < len(labels):
        raise BadLineError  # one name twice
    if any(len(name) > MAX_NAME for name, _ in labels):
        raise BadLineError
    if "\\" in text:
        return tuple((name, _ESCAPE.sub(_unescaped, value)) for name, value in labels)
    return labels


def _unescaped(found: re.Match[str]) -> str:
    return _ESCAPES[found[0]]


def type_of(line: bytes) -> tuple[str, str] | None:
    """Family and type of a `# TYPE` line; None for any other comment. Raises BadLineError for a type there is not."""
    if not _IS_TYPE.match(line):
        return None
    found = _TYPE.fullmatch(line.decode("utf-8", "replace"))
    if found is None or found[2] not in TYPES or len(found[1]) > MAX_NAME:
        raise BadLineError
    return found[1], found[2]
