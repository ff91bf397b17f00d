"""Lines of a Prometheus page against prometheus_client's own parsers, and each place where we differ on purpose."""

import contextlib
import math
from collections.abc import Iterable

import pytest
from exposition_pages import VERSIONS, recorded
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from forwarder.exposition.syntax import MAX_LINE, BadLineError, Sample, sample, type_of

Flat = tuple[str, tuple[tuple[str, str], ...], float | None]


def ours(body: bytes) -> list[Flat]:
    found = []
    for line in body.split(b"\n"):
        if line.strip() and not line.startswith(b"#"):
            one = sample(line)
            found.append(flat(one.name, dict(one.labels), one.value))
    return sorted(found, key=repr)


def flat(name: str, labels: dict[str, str], value: float) -> Flat:
    return name, tuple(sorted(labels.items())), None if math.isnan(value) else value


def theirs(families: Iterable[object]) -> list[Flat]:
    samples = [one for family in families for one in family.samples]  # type: ignore[attr-defined]
    return sorted((flat(one.name, one.labels, one.value) for one in samples), key=repr)


# Any text, with what is special in it more often: quotes, escapes, and what str.splitlines would split at.
TEXT = st.text(st.one_of(st.sampled_from('"\\\n,{}= #\u2028\u0085\x0b\r'), st.characters(codec="utf-8")), max_size=12)
LABELS = st.lists(TEXT, min_size=2, max_size=2)
NUMBER = st.floats(width=64)
POSITIVE = st.floats(min_value=0, max_value=1e300)


@st.composite
def registries(draw: st.DrawFn) -> CollectorRegistry:
    registry = CollectorRegistry()
    counter = Counter("litellm_requests", draw(TEXT), ["a", "b"], registry=registry)
    gauge = Gauge("litellm_state", "", ["a", "b"], registry=registry)
    histogram = Histogram("litellm_latency", "", ["a", "b"], registry=registry, buckets=(0.1, 1, 10))
    summary = Summary("litellm_size", "", ["a", "b"], registry=registry)
    for labels in draw(st.lists(LABELS, max_size=4)):
        counter.labels(*labels).inc(draw(POSITIVE))
        gauge.labels(*labels).set(draw(NUMBER))
        histogram.labels(*labels).observe(draw(POSITIVE))
        summary.labels(*labels).observe(draw(POSITIVE))
    return registry


@settings(deadline=None)
@given(registry=registries())
def test_text_reads_as_prometheus_client_reads_it(registry: CollectorRegistry) -> None:
    """Names, labels with their escapes, values."""
    body = generate_latest(registry)
    assert ours(body) == theirs(parse_text(body.decode()))


@settings(deadline=None)
@given(registry=registries())
def test_openmetrics_reads_as_prometheus_client_reads_it(registry: CollectorRegistry) -> None:
    """The same families in the other format."""
    body = openmetrics.generate_latest(registry)  # type: ignore[no-untyped-call]
    assert ours(body) == theirs(parse_openmetrics(body.decode()))  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("version", VERSIONS)
def test_recorded_pages_read_as_prometheus_client_reads_them(version: str) -> None:
    """Every sample of three releases."""
    body = recorded(version)
    assert ours(body) == theirs(parse_text(body.decode()))


@settings(deadline=None)
@given(line=st.binary(max_size=200))
def test_any_line_is_a_sample_or_bad(line: bytes) -> None:
    """Nothing else comes out, whatever goes in."""
    with contextlib.suppress(BadLineError):
        assert isinstance(sample(line), Sample)


@settings(deadline=None)
@given(text=st.text('ab_{}="\\ ,0.#', max_size=60))
def test_lines_that_look_like_samples_are_read_as_prometheus_client_reads_them(text: str) -> None:
    """What it takes we take, with the same result, unless it is one of the differences below."""
    try:
        expected = theirs(parse_text(text))
    except Exception:  # noqa: BLE001 - it raises many kinds
        return
    if not expected or text.lstrip().startswith("{"):
        return
    try:
        found = [(one.name, one.labels, one.value) for one in [sample(text.encode())]]
    except BadLineError:
        return  # we are stricter: `a{b="c"d="e"} 1`, `a{b"c"} 1`, `a 1_0`
    assert sorted((flat(name, dict(labels), value) for name, labels, value in found), key=repr) == expected


# --- what a line may be ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "name", "labels", "value"),
    [
        (b"a 1", "a", (), 1.0),
        (b'a{b="c"} 1', "a", (("b", "c"),), 1.0),
        (b'a{b="c",} 1', "a", (("b", "c"),), 1.0),
        (b"a{} 1", "a", (), 1.0),
        (b'  a { b = "c" , d = "e" }  1  ', "a", (("b", "c"), ("d", "e")), 1.0),
        (b'a{b="c"}1', "a", (("b", "c"),), 1.0),
        (rb'a{b="\\ \" \n \x"} 1', "a", (("b", '\\ " \n \\x'),), 1.0),
        ('a{b="\u2028\u0085\x0b"} 1'.encode(), "a", (("b", "\u2028\u0085\x0b"),), 1.0),
        (b'a{b="}"} 1', "a", (("b", "}"),), 1.0),
        (b"a:b_C9 +Inf", "a:b_C9", (), math.inf),
        (b"a -Inf 1395066363000", "a", (), -math.inf),
        (b"a 1.5e-3 1395066363.5", "a", (), 0.0015),
        (b'a_bucket{le="1.0"} 3 # {trace_id="x # }"} 0.5 1395066363.5', "a_bucket", (("le", "1.0"),), 3.0),
        (b"a 1\r", "a", (), 1.0),
    ],
)
def test_a_sample(line: bytes, name: str, labels: tuple[tuple[str, str], ...], value: float) -> None:
    """With labels, escapes, timestamps, exemplars, white space."""
    found = sample(line)
    assert (found.name, found.labels, found.value) == (name, labels, value)


@pytest.mark.parametrize(
    "line",
    [
        b"a",
        b"a ",
        b"1a 1",
        b"a one",
        b"a 1_000",
        b"a 1 soon",
        b"a 1 2 3",
        b'a{b="c} 1',
        b'a{b="c"d="e"} 1',
        b'a{b="c",,} 1',
        b'a{b="c",b="d"} 1',
        b"a{b=c} 1",
        b'{"a.b"} 1',
        b'a{b="\xff"} 1',
        b'a{b="' + b"c" * MAX_LINE + b'"} 1',
        b"a{" + b'b="c"' * 10_000 + b" 1",
    ],
)
def test_a_bad_line(line: bytes) -> None:
    """Cut off, damaged, too long; and found so at once."""
    with pytest.raises(BadLineError):
        sample(line)


@pytest.mark.parametrize(
    ("line", "key"),
    [
        (b'a{b="c d"} 1', b'a{b="c d"}'),
        (b"a  1", b"a "),
        (b"a 1\r", b"a"),
        (b"a 1 5", b""),
        (b"a 1 ", b""),
        (b"a\t1", b""),
        (b'a{b="c d"}\t1', b""),
        (b'a 1 # {b="c"} 2', b""),
        ('a{b="é"} 1'.encode(), 'a{b="é"}'.encode()),
    ],
)
def test_the_key_of_a_line(line: bytes, key: bytes) -> None:
    """Only where everything before the last space can be nothing but the series; else `a 1 5` would be taken for the
    series `a 1` with the value 5.
    """
    assert sample(line).key == key


def test_types() -> None:
    """Of the comments only they count."""
    assert type_of(b"# TYPE litellm_x counter") == ("litellm_x", "counter")
    assert type_of(b"#  TYPE\tlitellm_x\thistogram ") == ("litellm_x", "histogram")
    assert type_of(b"# HELP litellm_x TYPE of things") is None
    assert type_of(b"# EOF") is None
    with pytest.raises(BadLineError):
        type_of(b"# TYPE litellm_x something")
