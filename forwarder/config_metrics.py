"""The table that says how a target's metrics page is read."""

import re
from typing import Annotated, Final

from pydantic import Field, PlainValidator, WithJsonSchema

from forwarder.config_tables import Table
from forwarder.config_values import Duration, Size, problem, text_schema

_PATTERN: Final = r"^[a-zA-Z0-9_:*?\[\]!-]{1,200}$"
_LABEL: Final = r"^[a-zA-Z_][a-zA-Z0-9_]{0,99}$"
_VALUE: Final = r"^[^\u0000-\u001f]{0,200}$"
# What Prometheus' matchers and regular expressions begin or end with: as a pattern it would never fit anything.
_NO_PATTERN: Final = re.compile(r"(=~|!~|!=|~|\^|\.\*|\.\+).*|.*\$")


def _pattern(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(_PATTERN, value):
        raise problem(
            "is not a pattern for names of metrics", 'letters, digits, _ and *, as in "litellm_deployment_*"'
        )
    return value


def _label(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(_LABEL, value):
        raise problem("is not the name of a label", 'letters, digits and _, as in "api_key_alias"')
    return value


def _matcher(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not value:
        raise problem("is not a table of labels and patterns for their values", 'as in { model = "test-*" }')
    for label, pattern in value.items():
        _label(label)
        if label == "le":
            raise problem("cannot choose among the buckets of a histogram", "buckets = false leaves them out")
        if not isinstance(pattern, str):
            raise problem("must be text", 'in quotes, as in { status_code = "429" }', key=label)
        if _NO_PATTERN.fullmatch(pattern):
            raise problem(
                "is a regular expression or an operator of Prometheus, not a pattern",
                'the value with * for anything, as in "test-*"; exclude_series is for what must not fit',
                key=label,
            )
        if not re.fullmatch(_VALUE, pattern):
            raise problem("is not a pattern for values of a label", "200 characters, none of control", key=label)
    return value


Pattern = Annotated[str, PlainValidator(_pattern), text_schema(_PATTERN, "pattern for names of metrics")]
Label = Annotated[str, PlainValidator(_label), text_schema(_LABEL, "name of a label")]

Matcher = Annotated[
    dict[str, str],
    PlainValidator(_matcher),
    WithJsonSchema(
        {
            "type": "object",
            "propertyNames": {"pattern": _LABEL},
            "additionalProperties": {"type": "string", "pattern": _VALUE},
            "minProperties": 1,
            "title": "table of labels and patterns for their values",
        }
    ),
]


class Metrics(Table):
    """How the target's Prometheus page, `/metrics/`, is read. A proxy without one is asked every five minutes."""

    enabled: bool = Field(default=True, description="Whether the page is read at all.")
    interval: Annotated[float, Duration("1s", "1d")] = Field(
        default=15.0, description="Time between two readings of the page."
    )
    timeout: Annotated[float, Duration("1ms", "5m")] = Field(default=10.0, description="Time for the complete page.")
    max_body: Annotated[int, Size("1KiB", "1GiB")] = Field(
        default=64 * 2**20, description="Largest page that is read, before and after decompression."
    )
    include: tuple[Pattern, ...] = Field(
        default=("litellm_*",), strict=False, description="Families that go on; `*` stands for anything."
    )
    exclude: tuple[Pattern, ...] = Field(
        default=(), strict=False, description="Families that do not, although `include` has them."
    )
    include_series: tuple[Matcher, ...] = Field(
        default=(),
        strict=False,
        description="Series that go on, by their labels as the page has them, also those that are dropped: "
        '`[{ model = "gpt-*", team = "prod" }, { model = "" }]` are those with both and those without `model`. '
        "`*` stands for anything, `__name__` for the family. Empty: all.",
    )
    exclude_series: tuple[Matcher, ...] = Field(
        default=(), strict=False, description="Series that do not, although `include_series` has them; written alike."
    )
    drop_labels: tuple[Label, ...] = Field(
        default=(),
        strict=False,
        description="Labels to drop, beside those that identify people and keys (see metrics.md). Series that "
        "coincide then become one.",
    )
    keep_labels: tuple[Label, ...] = Field(
        default=(), strict=False, description="Labels to keep of those that are dropped by default."
    )
    health_probes: bool = Field(
        default=False,
        description="Whether series of the proxy's own health probes go on.",
    )
    buckets: bool = Field(
        default=True,
        description="Whether histograms go on whole. Without, they are two sums each, for their average: for backends "
        "that bill each bucket.",
    )
    max_series: int = Field(
        default=20_000,
        ge=1,
        le=1_000_000,
        description="Most series that go on, as Prometheus counts them (each bucket is one). Past it, those that were "
        "there first go on; what is dropped is counted and reported.",
    )
