"""A page as a whole: what goes on, under which attributes, within which bounds, and how it is told."""

import math
from collections.abc import Callable

import pytest
from exposition_pages import HISTOGRAM, VERSIONS, Reader, deltas, histogram, page, recorded, values
from hypothesis import given, settings
from hypothesis import strategies as st

from forwarder.catalog import PERSONAL_LABELS
from forwarder.events import Batch, Resource, decode, encode
from forwarder.exposition.page import Page, _New
from forwarder.exposition.selection import PROBE, Selection, clean


@pytest.mark.parametrize("version", VERSIONS)
def test_a_second_reading_says_what_the_first_said(version: str) -> None:
    """It goes another, faster way."""
    reader = Reader()
    body = recorded(version)
    first, second = reader.read(body), reader.read(body)
    assert [(p.name, p.attributes, p.value, p.histogram) for p in first] == [
        (p.name, p.attributes, p.value, p.histogram) for p in second
    ]
    assert (reader.page.bad_lines, reader.page.malformed, reader.page.capped) == (0, 0, 0)
    assert set(deltas(second)) <= {0.0}


@pytest.mark.parametrize("version", VERSIONS)
def test_nothing_of_a_recorded_page_identifies_anybody(version: str) -> None:
    """Nor has it probes, series of the process, `_created`, or a secret."""
    points = Reader().read(recorded(version))
    assert points
    for point in points:
        assert point.name.startswith("litellm_")
        assert not point.name.endswith("_created")
        assert not point.attributes.keys() & {*PERSONAL_LABELS, "le"}
        assert not {"None", "", PROBE} & set(point.attributes.values())
        assert "LEAKTEST" not in str(point)


def test_labels_can_be_asked_for() -> None:
    """And are cleaned all the same: real ones hold passwords and signatures."""
    dropped = sorted({*PERSONAL_LABELS} - {"api_base", "hashed_api_key"})
    for version in VERSIONS[1:]:
        points = Reader(drop_labels=dropped).read(recorded(version))
        assert any("api_base" in point.attributes for point in points)
        assert "LEAKTEST" not in str(points)


@pytest.mark.parametrize(
    ("value", "cleaned"),
    [
        ("http://user:pass@host:1/v1?sig=x#y", "http://host:1/v1"),
        ("https://user:p@ss/w?rd@host/v1", "https://host/v1"),
        ("see postgres://u:p@db/x and redis://:p@r", "see postgres://db/x and redis://r"),
        ("sk-1234567890abcdef", "sk-***"),
        ("team_sk-1234567890abcdef", "team_sk-***"),
        ("x" * 2000 + " ://", "x" * 200),
        ("Bearer abc.def-ghi", "Bearer ***"),
        ("Bearer:abcdef", "Bearer:***"),
        ("Basic dXNlcjpwYXNzd29yZA==", "Basic ***"),
        ("basic plan", "basic plan"),
        ("sk_live_abcdef", "sk_***"),
        ("AIzaSyA1234567890abcdef", "AIza***"),
        ("h.test/v1?key=abc&model=m", "h.test/v1?key=***&model=m"),
        ("u:pw@h.test", "***@h.test"),
        ("//u:pw@h", "//***@h"),
        ("a\nb\u2028c", "a_b_c"),
        ("x" * 500, "x" * 200),
        ("openai/gpt-4o", "openai/gpt-4o"),
        (" ", None),
    ],
)
def test_values_are_cleaned(value: str, cleaned: str | None) -> None:
    """Users ask for models of any name, and put anything into it."""
    assert clean(value) == cleaned


def test_include_and_exclude() -> None:
    """By family, with or without `_total`; `_created` never goes on by itself."""
    body = page({"": 1}, created={"": 5}, more=HISTOGRAM + histogram({"+Inf": 1}, 1) + "python_info 1\n")
    assert [p.name for p in Reader().read(body)] == ["litellm_requests_total", "litellm_latency"]
    assert [p.name for p in Reader(include=["python_*"]).read(body)] == ["python_info"]
    assert [p.name for p in Reader(exclude=["litellm_requests"]).read(body)] == ["litellm_latency"]
    assert [p.name for p in Reader(exclude=["litellm_lat*"]).read(body)] == ["litellm_requests_total"]


SERIES = page({'{model="gpt-4",team="qa"}': 1, '{model="test-1",team="qa"}': 2, '{model="test-2"}': 4, "": 8})


@pytest.mark.parametrize(
    ("include", "exclude", "total"),
    [
        ([], [], 15.0),
        ([], [{"model": "test-*"}], 9.0),
        ([], [{"model": "test-*", "team": "qa"}], 13.0),
        ([], [{"model": "gpt-*"}, {"team": "q?"}], 12.0),
        ([], [{"team": ""}], 3.0),
        ([{"model": "test-*"}], [], 6.0),
        ([{"model": "gpt-*"}, {"model": ""}], [], 9.0),
        ([{"model": "test-*"}], [{"team": "qa"}], 4.0),
        ([], [{"model": "Test-*"}, {"model": "test"}, {"nothing": "*x"}], 15.0),
        ([], [{"__name__": "litellm_requests*", "model": "test-[12]"}], 9.0),
        ([], [{"__name__": "litellm_latency", "model": "*"}], 15.0),
    ],
)
def test_series_are_chosen_by_the_values_of_their_labels(
    include: list[dict[str, str]], exclude: list[dict[str, str]], total: float
) -> None:
    """Any of the tables, all of its labels; also by labels that do not go on. The second reading says the same."""
    reader = Reader(include_series=include, exclude_series=exclude, drop_labels=["model", "team"])
    assert [values(reader.read(SERIES)) for _ in range(2)] == [[total]] * 2


def test_a_histogram_is_chosen_whole() -> None:
    """By its labels without `le`; with buckets and without."""
    body = HISTOGRAM + histogram({"1": 1, "+Inf": 2}, 3, 'model="a"') + histogram({"1": 1, "+Inf": 1}, 1, 'model="b"')
    for buckets in (True, False):
        points = Reader(exclude_series=[{"model": "a"}], buckets=buckets).read(body.encode())
        assert {point.attributes["model"] for point in points} == {"b"}


def test_a_series_is_chosen_once() -> None:
    """When it is seen first, whether it goes on or not: the readings after it do not look at labels again."""
    reader = Reader(exclude_series=[{"model": "test-*"}])
    reader.read(SERIES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Selection, "attributes", None)  # cannot be called
        assert sum(filter(None, values(reader.read(SERIES)))) == 9.0


def test_other_series_are_other_rules() -> None:
    """What was left out before may be old: it comes without a delta."""
    first = Reader(exclude_series=[{"model": "test-*"}])
    first.read(SERIES)
    assert deltas(first.restarted(exclude_series=[{"model": "test-*"}]).read(SERIES)) == [0.0, 0.0]
    assert deltas(first.restarted().read(SERIES)) == [0.0, 0.0, None, None]  # those that were there before come first


def test_probes_of_the_proxy_can_be_asked_for() -> None:
    """They are most of some pages."""
    body = page({f'{{api_key_alias="{PROBE}"}}': 5, "{}": 2})
    assert values(Reader().read(body)) == [2.0]
    assert values(Reader(exclude_series=()).read(body)) == [7.0]


def test_gauges_that_coincide() -> None:
    """The greatest, or the least of what remains: a state of 2 is an outage, and a budget of 0 is spent."""
    body = b"""# TYPE litellm_state gauge
litellm_state{user="a"} 0
litellm_state{user="b"} 2
# TYPE litellm_remaining_budget gauge
litellm_remaining_budget{user="a"} 5
litellm_remaining_budget{user="b"} 0
litellm_remaining_budget{user="c"} NaN
# TYPE litellm_other gauge
litellm_other +Inf
"""
    found = {p.name: p.value for p in Reader().read(body)}
    assert found == {"litellm_state": 2.0, "litellm_remaining_budget": 0.0}


def test_summaries_and_untyped() -> None:
    """Count and sum are sums, quantiles and all that has no type are gauges."""
    body = b"""# TYPE litellm_size summary
litellm_size{quantile="0.5"} 3
litellm_size_sum 10
litellm_size_count 4
litellm_size_created 1700000000
litellm_untyped 7
"""
    points = Reader().read(body)
    assert [(p.name, p.kind, p.value, p.attributes) for p in points] == [
        ("litellm_size", "gauge", 3.0, {"quantile": "0.5"}),
        ("litellm_size_sum", "sum", 10.0, {}),
        ("litellm_size_count", "sum", 4.0, {}),
        ("litellm_untyped", "gauge", 7.0, {}),
    ]


def test_openmetrics_yields_the_same_points() -> None:
    """Families without `_total`, samples with, and a `_created` beside them."""
    body = b"""# TYPE litellm_requests counter
litellm_requests_total{a="b"} 5 # {trace_id="x"} 1
litellm_requests_created{a="b"} 1700000000.5
# EOF
"""
    (point,) = Reader().read(body)
    assert (point.name, point.value, point.start_time) == ("litellm_requests_total", 5.0, 1_700_000_000_500_000_000)


def test_a_bad_line_costs_that_line() -> None:
    """And is counted, at every reading."""
    reader = Reader()
    body = page({"": 5}, more='litellm_x{a="b 1\n\xff\nlitellm_y{le="1"}\n')
    for _ in range(2):
        assert values(reader.read(body)) == [5.0]
        assert reader.page.bad_lines == 3


def test_a_name_without_end_is_a_bad_line() -> None:
    """Of a metric or a label: values are cut, names would go on whole, to every sink and into the spool."""
    reader = Reader()
    long = "x" * 200
    body = f'litellm_a 1\nlitellm_{long} 1\nlitellm_b{{{long}="1"}} 1\nlitellm_c{{x{long}="1"}} 1\n'
    assert [p.name for p in reader.read(body.encode())] == ["litellm_a", "litellm_b"]
    assert reader.page.bad_lines == 2


def test_lines_end_at_a_line_feed_alone() -> None:
    """U+2028, U+0085 and a vertical tab are part of the label."""
    body = page({'{model="a\u2028b\u0085c\x0bd"}': 5})
    (point,) = Reader().read(body)
    assert point.attributes == {"model": "a_b_c_d"}


def test_timestamps_are_left_out_and_do_not_make_series() -> None:
    """`a 1 5` is not the series `a 1`."""
    reader = Reader()
    for value in (5, 7):
        reader.read(f"# TYPE litellm_a counter\nlitellm_a {value} 1700000000000\n".encode())
    points = reader.read(b"# TYPE litellm_a counter\nlitellm_a 7 1700000000000\n")
    assert (values(points), deltas(points), len(points)) == ([7.0], [0.0], 1)
    points = reader.read(b"litellm_a 8\nlitellm_a 7 9\n")
    assert values(points) == [7.0]


@pytest.mark.parametrize(
    "text",
    [
        'litellm_latency_bucket{le="1.0"} 1\nlitellm_latency_sum 1\n',  # no +Inf
        'litellm_latency_bucket{le="+Inf"} 1\n',  # no sum
        "litellm_latency_sum 1\n",  # no buckets
        "litellm_latency 1\n",
    ],
)
def test_what_is_no_histogram_is_counted(text: str) -> None:
    """And left out."""
    reader = Reader()
    assert reader.read((HISTOGRAM + text).encode()) == []
    assert reader.page.malformed == 1


def test_buckets_that_fall_are_left_out() -> None:
    """More below 1 than below 10 cannot be."""
    assert Reader().read((HISTOGRAM + histogram({"1.0": 5, "10.0": 3, "+Inf": 7}, 1)).encode()) == []


def test_another_release_with_other_types_and_buckets() -> None:
    """The page is read anew; its counters count from the new process's start."""
    reader = Reader()
    reader.read(page({}, began=1000, more=HISTOGRAM + histogram({"1.0": 1, "+Inf": 1}, 1)))
    again = reader.now / 1e9 + 1
    points = reader.read(page({}, began=again, more=HISTOGRAM + histogram({"2.0": 3, "+Inf": 4}, 9)))
    assert points[0].histogram is not None
    assert points[0].histogram.bounds == (2.0,)
    assert points[0].delta is not None
    assert points[0].delta.histogram is not None
    assert points[0].delta.histogram.count == 4
    assert values(reader.read(b"# TYPE litellm_latency counter\nlitellm_latency 5\n")) == [5.0]


# --- bounds ----------------------------------------------------------------------------------------------------------


def test_the_cap_keeps_what_was_there_and_counts_the_rest() -> None:
    """A histogram goes on whole or not at all; buckets, sum and count are series."""
    reader = Reader(max_series=7)
    first = page({'{a="1"}': 1}, more=HISTOGRAM + histogram({"1.0": 1, "+Inf": 1}, 1))
    assert len(reader.read(first)) == 2
    assert reader.page.kept == 5
    later = page({f'{{a="{n}"}}': n for n in range(9, 0, -1)}, more=HISTOGRAM + histogram({"1.0": 2, "+Inf": 2}, 1))
    for _ in range(2):
        points = reader.read(later)
        assert sorted(p.attributes.get("a", "") for p in points) == ["", "1", "8", "9"]
        assert (reader.page.kept, reader.page.capped) == (7, 6)


def test_what_is_remembered_is_bounded() -> None:
    """A page with other series at every reading, as users make them who ask for models that do not exist."""
    reader = Reader(max_series=50)
    for number in range(300):
        reader.read(page({f'{{model="{number}-{n}"}}': 1 for n in range(100)}))
    assert len(reader.page._places) < 3000
    assert len(reader.page.members) <= 50
    assert len(reader.page.values) < 3000


HOSTILE: dict[str, Callable[[int], str | bytes]] = {  # by what is other at every reading: a page of that number
    "comments": lambda n: f"# HELP a {n}" + "x" * 100_000 + "\nlitellm_a 1\n",
    "long series": lambda n: f'litellm_a{{model="{n}' + "x" * 60_000 + '"} 1\n',
    "families": lambda n: "".join(f"# TYPE litellm_{n}_{m} counter\n" for m in range(400)),
    "creations": lambda n: page({}, created={f'{{a="{n}-{m}"}}': 1 for m in range(400)}),
    "people": lambda n: page({f'{{user="{n}-{m}"}}': 1 for m in range(100)}),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_no_page_makes_the_agent_remember_without_end(what: str) -> None:
    """Nor does one of few points: comments, types, `_created` and series that coincide are bounded too."""
    reader = Reader(max_series=50)
    for number in range(60):
        made = HOSTILE[what](number)
        reader.read(made if isinstance(made, bytes) else made.encode())
    found = reader.page
    assert sum(map(len, found._places)) + sum(map(len, found._comments)) < 500_000
    assert len(found._types) + len(found._created) + len(found.values) < 8000
    assert len(found.members) <= 500


def unwanted(count: int) -> bytes:
    return b"".join(b'python_gc{number="%d"} 1\n' % number for number in range(count))


def test_an_enormous_page_with_few_wanted_lines_takes_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not go on is remembered as it is up to a bound, and past that by eight bytes a line; no line of it is
    read twice, and a page of other such lines takes their place.
    """
    monkeypatch.setattr("forwarder.exposition.page._HELD", 100_000)
    reader = Reader()
    body = unwanted(50_000) + b"# HELP " + b"x" * 3000 + b"\nlitellm_a 1\n"
    reader.read(body)
    assert sum(map(len, reader.page._places)) < 100_000
    assert reader.page._passed.count > 45_000
    assert len(reader.page._passed._table) <= 4 * 50_000
    with monkeypatch.context() as patch:
        patch.setattr("forwarder.exposition.page.sample", None)  # cannot be called
        patch.setattr("forwarder.exposition.page.type_of", None)
        assert [p.value for p in reader.read(body.replace(b"} 1\n", b"} 2\n").replace(b"_a 1", b"_a 3"))] == [3.0]
    assert [p.value for p in reader.read(b"litellm_a 4\n" * 9)] == [4.0]
    assert reader.page._passed.count == 0


def test_lines_that_are_passed_over_are_still_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A known line without a number is a bad one, however it is remembered."""
    body = b'python_gc{a="1"} 1\n'
    for held in (10_000, -1):
        monkeypatch.setattr("forwarder.exposition.page._HELD", held)
        reader = Reader()
        for made in (body, body.replace(b" 1\n", b" one\n"), body.replace(b" 1\n", b" 1_0\n"), body[:-3] + b"\n"):
            reader.read(made)
            assert reader.page.bad_lines == (made != body)


def test_there_is_an_end_to_what_is_remembered_of_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past it lines are read anew each time; the page says the same."""
    monkeypatch.setattr("forwarder.exposition.page._HELD", -1)
    monkeypatch.setattr("forwarder.exposition.passed._FIRST", 1 << 6)
    monkeypatch.setattr("forwarder.exposition.passed._MOST", 1 << 8)
    reader = Reader()
    for _ in range(2):
        assert [p.value for p in reader.read(unwanted(1000) + b"litellm_a 1\n")] == [1.0]
        assert len(reader.page._passed._table) == 1 << 8


@pytest.mark.parametrize("end", ["", " 1700000000"])
def test_lines_over_the_cap_are_counted_once_each(end: str) -> None:
    """On every page anew, also those that cannot be remembered, and when most of the lines before are gone."""
    reader = Reader(max_series=2)
    for start in (0, 0, 5000, 5000, 5000):
        lines = (f'litellm_requests_total{{model="{n}"}} 1{end}\n' for n in range(start, start + 2000))
        reader.read(("# TYPE litellm_requests_total counter\n" + "".join(lines)).encode())
        assert reader.page.capped in ((1998,) if start == 0 else (2000, 3998))
    assert reader.page.capped == (1998 + 2000 if not end else 2000)


def test_a_million_series_are_not_kept_until_the_end_of_their_page() -> None:
    """Those that cannot go on are counted at once. Those that were there first go on, wherever the page has them."""
    lines = "".join(f'litellm_requests_total{{model="{n}"}} 1\n' for n in range(20_000))
    body = ("# TYPE litellm_requests_total counter\n" + lines).encode()
    reader = Reader(max_series=100)
    admitted: list[bytes] = []
    with pytest.MonkeyPatch.context() as patch:
        admit = Page._admit

        def noting(page_: Page, identifier: bytes, series: _New) -> None:
            admitted.append(identifier)
            admit(page_, identifier, series)

        patch.setattr(Page, "_admit", noting)
        points = reader.read(body)
    assert len(points) == len(admitted) == 100
    assert reader.page.capped == 19_900
    others = "".join(f'litellm_requests_total{{model="new-{n}"}} 1\n' for n in range(500))
    again = reader.restarted(max_series=100).read(b"# TYPE litellm_requests_total counter\n" + others.encode() + body)
    assert sorted(str(p.attributes["model"]) for p in again) == sorted(map(str, range(100)))


def test_a_name_of_a_type_without_end_is_a_bad_line() -> None:
    """It would be remembered whole, a page full of them."""
    reader = Reader()
    reader.read(b"# TYPE litellm_" + b"a" * 60_000 + b" counter\nlitellm_b 1\n")
    assert (reader.page.bad_lines, len(reader.page._types)) == (1, 0)


def test_a_page_goes_on_after_it_was_forgotten() -> None:
    """The reading after that is the first: no deltas, no gap in the values."""
    reader = Reader()
    for number in range(10):
        reader.read(page({"": number}, more=str(HOSTILE["families"](number))))
        assert values(reader.read(page({"": number}))) == [float(number)]


def test_long_values_are_cleaned_in_no_time() -> None:
    """And are not kept for the next page: each page could have others."""
    before = clean.cache_info().currsize
    for number in range(100):
        Reader().read(page({f'{{model="{number}{"x" * 60_000} ://"}}': 1}))
    assert clean.cache_info().currsize == before


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 5)), max_size=60))
def test_totals_are_what_was_counted(steps: list[tuple[str, int]]) -> None:
    """Whatever grows and appears when: the deltas add up to what the page counts."""
    reader = Reader()
    counters = dict.fromkeys("abc", 10)
    reader.read(page({f'{{user="{user}"}}': count for user, count in counters.items()}))
    total = 0.0
    for user, growth in steps:
        counters[user] = counters.get(user, 0) + growth
        points = reader.read(page({f'{{user="{user}"}}': count for user, count in counters.items()}))
        assert values(points) == [float(sum(counters.values()))]
        total += deltas(points)[0] or 0.0
    assert total == sum(counters.values()) - 30


# --- any page --------------------------------------------------------------------------------------------------------

TYPES = (
    b"# TYPE process_start_time_seconds gauge\n# TYPE litellm_c counter\n# TYPE litellm_c_created gauge\n"
    b"# TYPE litellm_h histogram\n# TYPE litellm_s summary\n# TYPE litellm_i info\n"
)
NAMES = st.sampled_from(
    [
        "litellm_c", "litellm_c_total", "litellm_c_created", "litellm_g", "litellm_h", "litellm_h_bucket",
        "litellm_h_sum", "litellm_h_count", "litellm_s_sum", "litellm_s", "litellm_i", "python_gc", "a-b",
        "process_start_time_seconds",
    ]
)  # fmt: skip
LABELS = st.sampled_from(
    [
        "", '{le="1"}', '{le="+Inf"}', '{le="NaN"}', '{le="-Inf"}', '{user="a"}', '{user="b"}',
        '{model="x"}', '{model="x",user="c"}',
        '{model="\\n\\\\"}', '{model="\u2028\x1b"}', '{model="}"}', "{}", '{model="test-1"}', '{a="', '{a="b",a="c"}',
    ]
)  # fmt: skip
NUMBERS = st.sampled_from(
    [
        "0", "1", "2", "-1", "1e3", "1e308", "-1e308", "1e999", "NaN", "+Inf", "-Inf", "1_0", "0x1p3", "1e-320", "x",
        "",
        "9" * 400, "1795000000", "1795000016", "1e305", "9.3e18", "0.5",
    ]
)  # fmt: skip
LINES = st.one_of(
    st.builds(
        "{}{}{}{}{}".format,
        NAMES,
        LABELS,
        st.sampled_from([" ", "  ", "\t", " \t", ""]),
        NUMBERS,
        st.sampled_from(["", "", "", " 1700000000", "\r", ' # {a="b"} 1', " "]),
    ),
    st.text(max_size=30),
).map(lambda line: line.encode("utf-8", "surrogatepass"))
PAGES = st.lists(LINES | st.binary(max_size=20), max_size=25).map(lambda lines: TYPES + b"\n".join(lines) + b"\n")


def whole(reader: Page) -> dict[bytes, str]:
    """The numbers of every series that the page had whole."""
    numbers = {key: reader.values[each.at : each.at + each.size] for key, each in reader.members.items()}
    return {key: repr(list(each)) for key, each in numbers.items() if not all(map(math.isnan, each))}


def judged(reader: Page) -> tuple[int, ...]:
    return reader.bad_lines, reader.malformed, reader.capped, reader.kept


@settings(deadline=None, max_examples=300)
@given(PAGES, st.sampled_from([-1, 300, 1 << 20]), st.sampled_from([3, 1000]))
def test_any_page_says_the_same_when_it_is_read_again(body: bytes, held: int, most: int) -> None:
    """Known lines go another way; whichever, and however they are remembered."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("forwarder.exposition.page._HELD", held)
        found = Page(Selection(exclude_series=({"model": "test-*"},)), max_series=most)
        found.read(body)
        first = whole(found), judged(found)
        found.read(body)
        assert (whole(found), judged(found)) == first


@settings(deadline=None, max_examples=300)
@given(PAGES, PAGES, st.sampled_from([-1, 1 << 20]))
def test_any_page_says_the_same_after_any_other(before: bytes, body: bytes, held: int) -> None:
    """What is remembered of one page changes nothing of what another says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("forwarder.exposition.page._HELD", held)
        rules = Selection(exclude_series=({"model": "test-*"},))
        seasoned, fresh = Page(rules, max_series=1000, buckets=False), Page(rules, max_series=1000, buckets=False)
        seasoned.read(before)
        for page_ in (seasoned, fresh):
            page_.read(body)
        assert whole(seasoned) == whole(fresh)
        assert judged(seasoned)[:3] == judged(fresh)[:3]


@settings(deadline=None, max_examples=300)
@given(st.lists(PAGES, min_size=1, max_size=4), st.sampled_from([2, 1000]))
def test_any_pages_are_points_that_can_be_stored(pages: list[bytes], most: int) -> None:
    """Finite, in time, no more of them than the cap; with the deltas between them, and after a restart."""
    reader = Reader(max_series=most)
    for body in pages:
        points = reader.read(body)
        batch = Batch(Resource(), reader.now, tuple(points))
        assert decode(encode(batch)) == batch
        assert len(points) <= most
        for point in points:
            assert 0 <= (point.start_time or 0) <= point.time
            delta = point.delta
            numbers = [point.value, delta.value if delta else None]
            numbers += [each.sum for each in (point.histogram, delta.histogram if delta else None) if each]
            assert all(math.isfinite(number) for number in numbers if number is not None)
    reader.restarted(max_series=most).read(pages[-1])
