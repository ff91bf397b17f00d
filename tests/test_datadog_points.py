"""What events become at Datadog: names, tags, deltas, histograms, service checks. The two ways in are tested apart."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from forwarder import catalog
from forwarder.events import Attributes, Change, Delta, Event, Histogram, Metric
from forwarder.sinks.datadog.points import Check, Form, Item, Note, Point, items, quantile
from forwarder.sinks.datadog.tags import metric_name, tags, unified

NOW = 1_750_000_000  # seconds
TIME = NOW * 10**9 + 123_456_789


def made(event: Event, resource: Attributes | None = None, form: Form | None = None, *, now: int = NOW) -> list[Item]:
    form = form or Form()
    return list(items(event, form.common(resource or {}), form, now=now, latest=now))


def points(event: Event, form: Form | None = None) -> dict[str, Point]:
    return {each.name: each for each in made(event, form=form) if isinstance(each, Point)}


# --- names and tags -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "tag"),
    [
        ("model", "openai/gpt-4o", "model:openai/gpt-4o"),
        ("model", "OpenAI/GPT 4o (EU)", "model:openai/gpt_4o__eu_"),
        ("model", "模型/é", "model:模型/é"),
        ("model", "a:b:", "model:a:b"),
        ("model", "a,b|c\nd#e@f", "model:a_b_c_d_e_f"),
        ("model", "\ud800", "model:_"),
        ("a:b c", "v", "a_b_c:v"),
        ("9lives", "v", "x9lives:v"),
        ("", "v", "x:v"),
        ("http.response.status_code", 429, "http.response.status_code:429"),
    ],
)
def test_tags_are_what_the_backend_would_make_of_them(key: str, value: str | int, tag: str) -> None:
    """Done by us, so that the same facts arrive by every way, and text forges nothing."""
    assert tags({key: value}) == (tag,)


@pytest.mark.parametrize("value", ["", ":", ":::"])
def test_an_attribute_without_a_value_is_no_tag(value: str) -> None:
    """Unknown is absence; a tag must not end in a colon."""
    assert tags({"model": value, "provider": "openai"}) == ("provider:openai",)


@given(st.dictionaries(st.text(max_size=250), st.text(max_size=300), max_size=4))
def test_any_tag_keeps_the_rules(attributes: Attributes) -> None:
    """200 characters, a letter first, no capital, nothing but letters, digits and `_-:./`, no colon at the end."""
    found = tags(attributes)
    assert list(found) == sorted(set(found))
    for tag in found:
        assert len(tag) <= 200
        assert tag[0].isalpha()
        assert tag == tag.lower()
        assert re.fullmatch(r"[\w:./-]+[^:]", tag)


def test_ids_of_deployments_stay_apart() -> None:
    """Two deployments whose ids differ only in what cleaning takes away would be one series, and one would hide the
    other. An id that needs no cleaning stays as it is.
    """
    same = ["my id", "my_id", "My_Id", "my_id:", "x" * 300, "x" * 301]
    assert len({tags({"deployment.id": each}) for each in same}) == len(same)
    assert tags({"deployment.id": "my_id"}) == ("deployment.id:my_id",)
    assert tags({"deployment.id": "my id"}) == ("deployment.id:my_id-f72cbc9b",)


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        ("litellm.up", "litellm.up"),
        ("litellm_requests_total", "litellm_requests_total"),
        ("Job:Rate-5m é", "Job_Rate_5m__"),
        ("_private", "x_private"),
        ("y" * 300, "y" * 200),
    ],
)
def test_metric_names_are_ascii(name: str, cleaned: str) -> None:
    """Unlike tags they keep their case and know no other script."""
    assert metric_name(name) == cleaned


def test_a_suffix_is_never_cut_off() -> None:
    """Else a long histogram's `.sum` would be its `.count`."""
    assert metric_name("y" * 300, ".bucket") == "y" * 193 + ".bucket"


def test_unified_tags_are_datadogs_own_and_stand_there_once() -> None:
    """env, service and version of the resource, else what DD_* says; never both."""
    form = Form(defaults={"env": "dd", "service": "dd", "version": "dd"})
    resource: Attributes = {"deployment.environment.name": "Prod", "service.name": "llm"}
    (point,) = made(catalog.READY.at(TIME, 0.5), resource, form)
    assert point.tags == ("env:prod", "service:llm", "version:dd")
    assert unified({"service.version": "1", "team": "a"}) == {"version": "1", "team": "a"}


def test_what_an_event_says_of_itself_comes_first() -> None:
    """litellm.info has the proxy's `version`; that of the service that sends it would be another fact."""
    (point,) = made(catalog.INFO.at(TIME, 1.0, {"version": "1.80.0"}), {"service.version": "7"})
    assert point.tags == ("version:1.80.0",)


# --- metrics ------------------------------------------------------------------------------------------------------


def test_a_sum_is_what_it_grew_by() -> None:
    """A count over the time since the reading before."""
    event = Metric("requests", "sum", "1", TIME, 1000.0, {}, TIME, delta=Delta(TIME - 15 * 10**9, 3.0))
    assert made(event) == [Point("requests", "count", 3.0, (), NOW, 15)]


def test_a_first_reading_yields_nothing() -> None:
    """What it grew by is unknown, and unknown is absence."""
    shape = Histogram((1.0,), (1, 2), 3.0, 3)
    assert made(Metric("requests", "sum", "1", TIME, 1000.0)) == []
    assert made(Metric("latency", "histogram", "s", TIME, histogram=shape)) == []


def latency(grown: Histogram) -> Metric:
    return Metric(
        "latency", "histogram", "s", TIME, None, {"model": "m"}, TIME, grown, Delta(TIME - 10**10, None, grown)
    )


def test_a_histogram_is_counts_and_estimates() -> None:
    """What was counted as counts, what is estimated as gauges."""
    found = points(latency(Histogram((1.0, 2.0, 4.0), (2, 6, 2, 0), 17.0, 10)))
    assert {name: (each.kind, each.value) for name, each in found.items()} == {
        "latency.count": ("count", 10.0),
        "latency.sum": ("count", 17.0),
        "latency.avg": ("gauge", 1.7),
        "latency.p50": ("gauge", 1.5),
        "latency.p95": ("gauge", 3.5),
        "latency.p99": ("gauge", pytest.approx(3.9)),
    }
    assert {each.tags for each in found.values()} == {("model:m",)}
    assert {each.interval for each in found.values() if each.kind == "count"} == {10}


def test_of_nothing_there_is_no_average() -> None:
    """An idle histogram counted 0, which is known; how long nothing took is not."""
    assert points(latency(Histogram((1.0,), (0, 0), 0.0, 0))).keys() == {"latency.count", "latency.sum"}


def test_buckets_are_sent_if_wanted() -> None:
    """Each for itself, those that grew: their sum is the count, and no idle combination of tags is billed."""
    event = latency(Histogram((0.5, 1e20), (2, 0, 3), 17.0, 5))
    found = [each for each in made(event, form=Form(buckets=True)) if isinstance(each, Point)]
    assert [(each.value, each.tags) for each in found if each.name == "latency.bucket"] == [
        (2.0, ("model:m", "upper_bound:0.5")),
        (3.0, ("model:m", "upper_bound:inf")),
    ]
    assert "latency.bucket" not in points(event)


@pytest.mark.parametrize(
    ("q", "bounds", "counts", "value"),
    [
        (0.5, (1.0, 2.0), (10, 0, 0), 0.5),  # from 0 in the first bucket
        (0.5, (-1.0, 2.0), (10, 0, 0), -1.0),  # unless its bound is not positive
        (0.5, (0.0, 2.0), (10, 0, 0), 0.0),
        (0.5, (1.0, 2.0), (0, 10, 0), 1.5),
        (0.5, (1.0, 2.0, 3.0), (1, 0, 1, 0), 1.0),  # the first bucket that reaches the rank
        (0.95, (1.0, 2.0), (0, 0, 10), 2.0),  # the open bucket has no upper end
        (0.5, (), (3,), None),
        (0.5, (1.0,), (0, 0), None),
    ],
)
def test_quantiles_are_those_of_prometheus(
    q: float, bounds: tuple[float, ...], counts: tuple[int, ...], value: float | None
) -> None:
    """As histogram_quantile: who compares the two sees the same number."""
    assert quantile(q, Histogram(bounds, counts, 0.0, sum(counts))) == value


@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=6, unique=True).map(sorted),
    st.lists(st.integers(0, 2**63 - 1), min_size=7, max_size=7),
    st.floats(allow_nan=False, allow_infinity=False),
)
@example([-1.7e308, 1.7e308], [0, 10, 0, 0, 0, 0, 0], 1.0)  # as far apart as no float can say
def test_any_histogram_yields_finite_values(bounds: list[float], counts: list[int], total: float) -> None:
    """JSON has no infinity, and one bad value makes an intake refuse the whole request."""
    grown = Histogram(tuple(bounds), tuple(counts[: len(bounds) + 1]), total, sum(counts[: len(bounds) + 1]))
    for each in made(latency(grown), form=Form(buckets=True)):
        assert isinstance(each, Point)
        assert abs(each.value) < float("inf")


# --- times --------------------------------------------------------------------------------------------------------


def test_no_time_lies_in_the_future() -> None:
    """A clock that was set back makes such times, and Datadog drops them without a word."""
    (late,) = made(catalog.HEALTH.at(TIME + 60 * 10**9, 1.0))
    assert late.time == NOW
    (early,) = made(catalog.HEALTH.at(0, 1.0))
    assert early.time == 1  # 0 means "no timestamp" to the client


# --- service checks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "name", "status"),
    [
        (catalog.UP.at(TIME, 1), "litellm.can_connect", 0),
        (catalog.UP.at(TIME, 0), "litellm.can_connect", 2),
        (catalog.READY.at(TIME, 1), "litellm.ready", 0),
        (catalog.READY.at(TIME, 0), "litellm.ready", 2),
    ],
)
def test_verdicts_are_service_checks_too(event: Metric, name: str, status: int) -> None:
    """With the gauge's tags and time, and words only where Datadog shows them."""
    point, check = made(event, {"litellm.target": "eu"})
    assert isinstance(point, Point)
    assert isinstance(check, Check)
    assert (check.name, check.status, check.tags, check.time) == (name, status, ("litellm.target:eu",), NOW)
    assert bool(check.message) == (status != 0)


def test_an_old_verdict_is_no_service_check() -> None:
    """Datadog takes them ten minutes back; replayed after an outage they would be the state of long ago."""
    assert len(made(catalog.UP.at(TIME, 0), now=NOW + 540)) == 2
    assert len(made(catalog.UP.at(TIME, 0), now=NOW + 541)) == 1


# --- changes ------------------------------------------------------------------------------------------------------

DOWN = catalog.PROXY_DOWN.at(TIME, "eu is down", "It does not answer.\nSince now.", {"error.type": "timeout"})


def test_a_change_is_an_event() -> None:
    """With the change's name as a tag, to search by, and as the key that puts its repetitions together."""
    assert made(DOWN, {"litellm.target": "EU"}) == [
        Note(
            "eu is down",
            "It does not answer.\nSince now.",
            "error",
            "change:litellm.proxy.down:eu",
            ("change:litellm.proxy.down", "error.type:timeout", "litellm.target:eu"),
            NOW,
        )
    ]


def test_changes_can_be_left_out() -> None:
    """Where what speaks the API takes none."""
    assert made(DOWN, form=Form(changes=False)) == []


def test_a_change_always_has_words() -> None:
    """Datadog refuses an event without a title or a text, and cuts what is too long."""
    (bare,) = made(Change("litellm.proxy.up", TIME, "info", "\x00", ""))
    assert isinstance(bare, Note)
    assert (bare.title, bare.text) == ("litellm.proxy.up", "litellm.proxy.up")
    (long,) = made(Change("litellm.proxy.up", TIME, "info", "t\n" * 200, "x" * 5000))
    assert isinstance(long, Note)
    assert (len(long.title), len(long.text)) == (100, 1000)
    assert long.title.startswith("t t t")
