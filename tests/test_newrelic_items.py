"""What events become in New Relic, and that nothing of it breaks one of its limits."""

import json

import pytest
from backends.newrelic import KEY, TAKEN
from hypothesis import given
from hypothesis import strategies as st

from forwarder.events import Attributes, Change, Delta, Histogram, Metric
from forwarder.sinks.newrelic_items import (
    MAX_VALUE,
    RESERVED,
    Item,
    change_item,
    fitting,
    metric_items,
    shared,
    text,
    without,
)

NOW = 1_750_000_000_123_456_789
MS = 1_750_000_000_123
SECOND = 10**9
TARGET: Attributes = {"litellm.target": "eu"}


def items(metric: Metric, *, buckets: bool = True, oldest: int = 0) -> list[Item]:
    return metric_items(metric, TARGET, oldest=oldest, buckets=buckets)


def total(delta: Delta | None, time: int = NOW) -> Metric:
    return Metric("requests", "sum", "{request}", time, 500.0, {"code": 200}, 0, delta=delta)


def latency(grown: Histogram | None) -> Metric:
    whole = Histogram((0.5, 1.0), (10, 20, 30), 90.0, 60)
    delta = None if grown is None else Delta(NOW - 15 * SECOND, None, grown)
    return Metric("latency", "histogram", "s", NOW, None, {"model": "m"}, 0, whole, delta)


# --- kinds --------------------------------------------------------------------------------------------------------


def test_a_gauge() -> None:
    """Its value, at its time."""
    assert items(Metric("litellm.up", "gauge", "1", NOW, 1.0, {"a": "b"})) == [
        {"name": "litellm.up", "value": 1.0, "timestamp": MS, "attributes": {"litellm.target": "eu", "a": "b"}}
    ]


def test_a_sum_is_a_count_of_what_it_grew_by() -> None:
    """Not the total, which New Relic would add up again; from the reading before to this one."""
    assert items(total(Delta(NOW - 15 * SECOND, 3.0))) == [
        {
            "name": "requests",
            "type": "count",
            "value": 3.0,
            "timestamp": MS - 15_000,
            "interval.ms": 15_000,
            "attributes": {"litellm.target": "eu", "code": 200},
        }
    ]


@pytest.mark.parametrize("value", [0.0, 5])
def test_counts_of_nothing_and_whole_numbers(value: float) -> None:
    """Nothing is a count too: without it a rate of zero would look like missing data."""
    (item,) = items(total(Delta(NOW - SECOND, value)))
    assert item["value"] == value


@pytest.mark.parametrize("delta", [None, Delta(NOW - SECOND), Delta(NOW - SECOND, -1.0)])
def test_a_sum_that_did_not_grow_yields_nothing(delta: Delta | None) -> None:
    """A first reading has nothing to compare with; New Relic takes no negative counts."""
    assert items(total(delta)) == []


@pytest.mark.parametrize("since", [NOW, NOW + SECOND, NOW - 1])
def test_an_interval_is_never_empty(since: int) -> None:
    """A clock that was set back between two readings does not cost the count; New Relic wants a positive interval."""
    (item,) = items(total(Delta(since, 3.0)))
    assert (item["interval.ms"], item["timestamp"]) == (1, MS - 1)


def test_an_interval_that_began_too_long_ago_is_shortened() -> None:
    """New Relic goes by the start, and would drop what the agent counted after two days of being switched off."""
    (item,) = items(total(Delta(NOW - 72 * 3600 * SECOND, 3.0)), oldest=NOW - 3600 * SECOND)
    assert (item["value"], item["interval.ms"], item["timestamp"]) == (3.0, 3_600_000, MS - 3_600_000)


def test_a_histogram_is_a_summary_and_buckets() -> None:
    """`average` by the one, `bucketPercentile` by the others, which count up to `le` and end with all."""
    summary, *buckets = items(latency(Histogram((0.5, 1.0), (1, 0, 2), 7.5, 3)))
    assert summary == {
        "name": "latency",
        "type": "summary",
        "value": {"count": 3, "sum": 7.5, "min": None, "max": None},
        "timestamp": MS - 15_000,
        "interval.ms": 15_000,
        "attributes": {"litellm.target": "eu", "model": "m"},
    }
    assert [(item["name"], item["type"], item["attributes"]["le"], item["value"]) for item in buckets] == [
        ("latency_bucket", "count", "0.5", 1),
        ("latency_bucket", "count", "1.0", 1),
        ("latency_bucket", "count", "+Inf", 3),
    ]
    assert all(item["attributes"]["model"] == "m" and item["interval.ms"] == 15_000 for item in buckets)


def test_a_histogram_without_its_buckets() -> None:
    """The summary is all that is billed then."""
    assert [item["type"] for item in items(latency(Histogram((), (3,), 7.5, 3)), buckets=False)] == ["summary"]


@pytest.mark.parametrize("grown", [None, Histogram((0.5,), (0, 0), 0.0, 0), Histogram((0.5,), (-1, 3), 0.0, 2)])
def test_a_histogram_that_did_not_grow_yields_nothing(grown: Histogram | None) -> None:
    """Nothing was observed: no average, no percentile, and nothing to pay for."""
    assert items(latency(grown)) == []


def test_a_label_le_does_not_hide_that_of_the_bucket() -> None:
    """It has another name then."""
    metric = latency(Histogram((), (3,), 7.5, 3))
    metric = Metric("latency", "histogram", "s", NOW, None, {"le": "mine"}, 0, metric.histogram, metric.delta)
    summary, bucket = items(metric)
    assert summary["attributes"]["le"] == "mine"
    assert (bucket["attributes"]["le"], bucket["attributes"]["le_"]) == ("+Inf", "mine")


def test_a_change() -> None:
    """One type for all of them, told apart by `name`. What is no text of the change's does not look like one."""
    change = Change("litellm.proxy.down", NOW, "error", "eu is down", "", {"error.type": "dns", "text": "mine"})
    assert change_item(change, TARGET) == {
        "eventType": "LiteLLMChange",
        "timestamp": MS,
        "name": "litellm.proxy.down",
        "severity": "error",
        "title": "eu is down",
        "litellm.target": "eu",
        "error.type": "dns",
        "text_": "mine",
    }


def test_a_change_at_the_epoch_is_not_one_of_now() -> None:
    """The SDK takes 0 for a time that was not given."""
    assert change_item(Change("x", 0, "info", "t"), {})["timestamp"] == 1


# --- names and values ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("litellm.target", "litellm.target"),
        ("k8s.io/name-x", "k8s.io_name_x"),
        ("timestamp", "timestamp_"),
        ("timestamp_", "timestamp__"),
        ("interval.ms", "interval.ms_"),
        ("accountID", "accountID_"),
        ("entity.guid", "entity.guid_"),
        ("name", "name"),
        ("", "_"),
        ("é\ud800\n", "___"),
        ("x" * 300, "x" * 253),
    ],
)
def test_names_of_attributes(name: str, found: str) -> None:
    """What New Relic has no room for, or means something else by, is renamed and not lost."""
    assert fitting({name: 1}, most=100) == {found: 1}


def test_names_that_become_the_same_stay_apart() -> None:
    """In the order in which they come."""
    assert fitting({"a-b": 1, "a_b": 2, "a/b": 3, "m": 4}, most=100, taken=["m"]) == {
        "a_b": 1,
        "a_b_": 2,
        "a_b__": 3,
        "m_": 4,
    }


def test_what_is_over_the_limit_is_left_out_from_the_end() -> None:
    """The resource comes first, so the target is always told."""
    found = items(Metric("m", "gauge", "1", NOW, 1.0, {f"a{number}": number for number in range(200)}))
    assert list(found[0]["attributes"]) == ["litellm.target", *(f"a{number}" for number in range(99))]


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("é", "é"),
        ("\ud83d\ude00", "\U0001f600"),
        ("\udfff!", "\ufffd!"),
        ("x" * 5000, "x" * MAX_VALUE),
        ("é" * 5000, "é" * (MAX_VALUE // 2)),
        (2**63, str(2**63)),
        (-(2**63) - 1, str(-(2**63) - 1)),
    ],
)
def test_values(value: str | int, found: str) -> None:
    """What is no UTF-8 is mended, what is too long cut between characters; what is no number of Java's is text."""
    assert fitting({"a": value}, most=1) == {"a": found}


NAMES = st.text(max_size=30) | st.sampled_from(sorted(RESERVED | TAKEN)) | st.just("x" * 400)
ATTRIBUTES = st.dictionaries(NAMES, st.text(max_size=30) | st.integers(), max_size=20)


@given(ATTRIBUTES, st.sets(st.text(max_size=5), max_size=3))
def test_no_attribute_breaks_a_limit_and_none_is_lost(attributes: Attributes, taken: set[str]) -> None:
    """Whatever an attribute is called, it arrives, and drops nothing."""
    found = fitting(attributes, most=15, taken=taken)
    assert len(found) == min(len(attributes), 15)
    for name, value in found.items():
        assert KEY.fullmatch(name)
        assert name not in TAKEN | taken
        assert len(str(value).encode()) <= MAX_VALUE
        assert isinstance(value, str) or -(2**63) <= value < 2**63


@given(st.text(max_size=60), st.integers(0, 30))
def test_a_cut_text_is_the_beginning_of_it(value: str, most: int) -> None:
    """And as long as it can be, to a character."""
    found = text(value, most)
    whole = text(value, 10_000)
    assert whole.startswith(found)
    assert len(found.encode()) <= most
    assert found == whole or len(whole[: len(found) + 1].encode()) > most


# --- what is shared -----------------------------------------------------------------------------------------------


@given(st.lists(st.dictionaries(st.sampled_from("abcd"), st.sampled_from(["1", 1, "x"])), min_size=1, max_size=4))
def test_sharing_changes_nothing(given_attributes: list[Attributes]) -> None:
    """What goes to the common block stands in every item, and comes back to it."""
    given_items = [{"name": "m", "attributes": one} for one in given_attributes]
    before = json.dumps(given_items)
    common = shared(given_items)
    assert [common | without(item, common)["attributes"] for item in given_items] == given_attributes
    assert json.dumps(given_items) == before
