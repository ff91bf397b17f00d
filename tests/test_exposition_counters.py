"""Deltas, resets and restarts: what grew between two readings, never more and never less."""

import math
from collections.abc import Mapping

import msgspec
import pytest
from exposition_pages import HISTOGRAM, NOW, SECOND, Reader, deltas, histogram, page, values

from forwarder.errors import CodecError
from forwarder.events import Delta
from forwarder.exposition import state
from forwarder.exposition.counters import CALM, LONGEST_GAP

BEGAN = NOW / SECOND - 1000  # seconds: when the proxy's process started
ALICE, BOB = '{user="alice"}', '{user="bob"}'


def test_the_first_reading_has_no_delta_and_the_next_has() -> None:
    """What was counted before we came is no growth."""
    reader = Reader()
    assert deltas(reader.read(page({"": 100}, began=BEGAN))) == [None]
    points = reader.read(page({"": 103}, began=BEGAN))
    assert points[0].delta == Delta(NOW + 15 * SECOND, 3.0)
    assert (points[0].value, points[0].kind, points[0].time) == (103.0, "sum", NOW + 30 * SECOND)


def test_the_start_time_is_that_of_the_series_else_of_the_process_else_of_the_first_reading() -> None:
    """And it stays: a backend takes another start for a reset."""
    made = BEGAN + 100
    for body, start in (
        (page({"": 1}, began=BEGAN, created={"": made}), int(made * SECOND)),
        (page({"": 1}, began=BEGAN), int(BEGAN * SECOND)),
        (page({"": 1}), NOW + 15 * SECOND),
    ):
        reader = Reader()
        assert [reader.read(body)[0].start_time for _ in range(3)] == [start] * 3


def test_a_series_that_appears_counts_from_zero() -> None:
    """It was not there at the last reading, in the same process."""
    reader = Reader()
    reader.read(page({'{model="a"}': 5}))
    points = reader.read(page({'{model="a"}': 5, '{model="b"}': 2}))
    assert deltas(points) == [0.0, 2.0]
    assert points[1].start_time == NOW + 15 * SECOND  # the reading before


def test_a_restarted_proxy_counts_from_its_new_start() -> None:
    """Also where its counter has already passed the old value, and where a series is gone."""
    reader = Reader()
    reader.read(page({'{model="a"}': 5, '{model="b"}': 7}, began=BEGAN))
    again = (reader.now + 5 * SECOND) / SECOND
    points = reader.read(page({'{model="a"}': 9}, began=again))
    assert (deltas(points), values(points)) == ([9.0], [9.0])
    assert points[0].start_time == int(again * SECOND)
    assert deltas(reader.read(page({'{model="a"}': 9, '{model="b"}': 1}, began=again))) == [0.0, 1.0]


def test_a_series_that_was_made_anew_counts_from_there() -> None:
    """`_created` moved, although the value did not fall."""
    reader = Reader()
    reader.read(page({"": 5}, began=BEGAN, created={"": BEGAN}))
    made = (reader.now + SECOND) / SECOND
    points = reader.read(page({"": 8}, began=BEGAN, created={"": made}))
    assert (deltas(points), points[0].start_time) == ([8.0], int(made * SECOND))


def test_a_fall_that_nothing_explains_claims_no_growth() -> None:
    """A restart in multiprocess mode, which says no start, or another worker: nobody knows."""
    reader = Reader()
    reader.read(page({"": 1000}))
    points = reader.read(page({"": 900}))
    assert (deltas(points), values(points)) == ([None], [900.0])
    assert points[0].start_time == NOW + 15 * SECOND
    assert deltas(reader.read(page({"": 901}))) == [1.0]


FELL = {"1": 5, "2": 3, "+Inf": 9}  # more were below 1 than below 2
WELL = {"1": 3, "2": 5, "+Inf": 9}


@pytest.mark.parametrize(
    ("bad", "total"),
    [(FELL, 9.0), ({**WELL, "1": -1}, 9.0), ({**WELL, "2": math.inf}, 9.0), (WELL, math.nan)],
    ids=["fallen", "negative", "infinite", "no sum"],
)
def test_a_histogram_that_there_cannot_be_is_left_out_and_counted(bad: dict[str, float], total: float) -> None:
    """Each time, from the first on; what it grew by meanwhile is not lost."""
    reader = Reader()
    for _ in range(2):
        assert reader.read((HISTOGRAM + histogram(bad, total)).encode()) == []
        assert reader.counters.malformed == 1
    (point,) = reader.read((HISTOGRAM + histogram(WELL, 9)).encode())
    assert (point.delta, reader.counters.malformed) == (None, 0)  # it was there before: not all that it counted is new
    assert reader.read((HISTOGRAM + histogram(bad, total)).encode()) == []
    assert reader.counters.malformed == 1
    (point,) = reader.read((HISTOGRAM + histogram({"1": 4, "2": 6, "+Inf": 10}, 10)).encode())
    assert reader.counters.malformed == 0
    assert point.delta
    assert point.delta.histogram
    assert point.delta.histogram.counts == (1, 0, 0)


def test_growth_that_no_histogram_has_is_counted() -> None:
    """Two more below 1, one more in all: the histogram goes on, without a delta."""
    reader = Reader()
    reader.read((HISTOGRAM + histogram({"1": 0, "+Inf": 5}, 9)).encode())
    (point,) = reader.read((HISTOGRAM + histogram({"1": 2, "+Inf": 6}, 9)).encode())
    assert (point.delta, reader.counters.malformed) == (None, 1)


def test_a_counter_below_nothing_is_counted() -> None:
    """One that is not on the page is not."""
    reader = Reader()
    reader.read(page({"": 1, '{a="b"}': -1}))
    assert reader.counters.malformed == 1
    reader.read(page({"": 1}))
    assert reader.counters.malformed == 0


def test_what_never_was_a_number_spoils_no_total() -> None:
    """Neither when it is gone after a restart of the agent, nor when it is forgotten."""
    bad = {ALICE: 5, BOB: math.nan, '{user="carol"}': -1}
    reader = Reader(max_series=1)
    reader.read(page(bad))
    later = reader.restarted(max_series=1)
    assert values(later.read(page({ALICE: 6}))) == [6.0]
    reader.read(page(bad | {'{a="b"}': 1}))  # over the cap, so what is gone makes room
    assert values(reader.read(page({ALICE: 7}))) == [7.0]


def test_no_spike_after_a_long_gap() -> None:
    """A delta over hours would be one where its interval is not looked at."""
    reader = Reader()
    reader.read(page({"": 5}))
    assert deltas(reader.read(page({"": 5000}), seconds=LONGEST_GAP / SECOND + 1)) == [None]
    assert deltas(reader.read(page({"": 5001}))) == [1.0]


def test_a_clock_that_was_set_back_makes_no_delta() -> None:
    """It would end before it began."""
    reader = Reader()
    reader.read(page({"": 5}))
    assert deltas(reader.read(page({"": 7}), seconds=-60)) == [None]
    assert deltas(reader.read(page({"": 8}))) == [1.0]


def test_what_could_not_be_stored_is_counted_by_the_next_reading() -> None:
    """A full disk loses the points, not the growth."""
    reader = Reader()
    reader.read(page({"": 5}))
    assert deltas(reader.read(page({"": 7}), stored=False)) == [2.0]
    assert deltas(reader.read(page({"": 8}))) == [3.0]


# --- series that coincide ------------------------------------------------------------------------------------------


def test_series_that_coincide_add_up() -> None:
    """Without the label that told them apart."""
    reader = Reader()
    points = reader.read(page({ALICE: 5, BOB: 7}))
    assert (values(points), points[0].attributes) == ([12.0], {})
    assert deltas(reader.read(page({ALICE: 6, BOB: 9}))) == [3.0]


def test_of_series_that_coincide_one_may_begin_anew() -> None:
    """The total neither falls nor jumps, and the delta is what is known to have grown."""
    reader = Reader()
    reader.read(page({ALICE: 500, BOB: 7}))
    points = reader.read(page({ALICE: 1, BOB: 9}))
    assert (deltas(points), values(points)) == ([2.0], [510.0])
    assert values(reader.read(page({ALICE: 2, BOB: 9}))) == [511.0]


def test_of_series_that_coincide_one_may_vanish_and_come_back() -> None:
    """Its share stays in the total, and is not counted twice."""
    reader = Reader()
    reader.read(page({ALICE: 500, BOB: 7}))
    points = reader.read(page({BOB: 8}))
    assert (deltas(points), values(points)) == ([1.0], [508.0])
    points = reader.read(page({ALICE: 501, BOB: 8}))
    assert (deltas(points), values(points)) == ([1.0], [509.0])


def test_a_share_survives_being_forgotten() -> None:
    """Series that are long gone make room for others."""
    reader = Reader(max_series=2)
    reader.read(page({ALICE: 500, BOB: 7, '{model="x"}': 1, '{model="y"}': 3}))
    for _ in range(29):
        reader.read(page({BOB: 7, '{model="y"}': 4}))
    points = reader.read(page({BOB: 7, '{model="y"}': 4}))
    assert values(points) == [507.0, 4.0]
    assert reader.page.capped == 0
    # What the cap had left out was there before: its appearance is no growth.
    assert deltas(reader.read(page({BOB: 8, '{model="y"}': 5}))) == [1.0, 1.0]


def test_what_the_cap_left_out_is_no_growth_when_there_is_room_for_it() -> None:
    """It was there before; only its `_created` could say otherwise."""
    reader = Reader(max_series=1)
    reader.read(page({'{model="x"}': 1, '{model="y"}': 100}))
    found = []
    for _ in range(30):
        found += reader.read(page({'{model="y"}': 101}))
    assert [point.attributes for point in found[:1]] == [{"model": "y"}]
    assert deltas(found)[:2] == [None, 0.0]


def test_a_restart_of_the_proxy_begins_the_total_anew() -> None:
    """With what others had left in it."""
    reader = Reader()
    reader.read(page({ALICE: 500, BOB: 7}, began=BEGAN))
    reader.read(page({BOB: 8}, began=BEGAN))
    points = reader.read(page({BOB: 2}, began=(reader.now + SECOND) / SECOND))
    assert (deltas(points), values(points)) == ([2.0], [2.0])


# --- histograms ----------------------------------------------------------------------------------------------------


def test_a_histogram_with_its_delta() -> None:
    """Buckets of the page are cumulative; ours are not."""
    reader = Reader()
    first = HISTOGRAM + histogram({"0.1": 1, "1.0": 3, "+Inf": 4}, 5.5)
    second = HISTOGRAM + histogram({"0.1": 2, "1.0": 4, "+Inf": 7}, 50.5)
    reader.read(first.encode())
    (point,) = reader.read(second.encode())
    assert (point.name, point.kind, point.value) == ("litellm_latency", "histogram", None)
    assert point.histogram is not None
    assert point.histogram.bounds == (0.1, 1.0)
    assert (point.histogram.counts, point.histogram.sum, point.histogram.count) == ((2, 2, 3), 50.5, 7)
    assert point.delta is not None
    assert point.delta.histogram is not None
    grown = point.delta.histogram
    assert (grown.counts, grown.sum, grown.count) == ((1, 0, 2), 45.0, 3)


def test_histograms_that_coincide_add_up_bucket_by_bucket() -> None:
    """As sums do."""
    reader = Reader()
    one, two = histogram({"1.0": 3, "+Inf": 4}, 5.5, 'user="a"'), histogram({"1.0": 1, "+Inf": 1}, 0.5, 'user="b"')
    (point,) = reader.read((HISTOGRAM + one + two).encode())
    assert point.histogram is not None
    assert (point.histogram.counts, point.histogram.sum, point.histogram.count) == ((4, 1), 6.0, 5)


def test_a_histogram_without_buckets_is_two_sums() -> None:
    """For backends that bill each bucket."""
    reader = Reader(buckets=False)
    points = reader.read((HISTOGRAM + histogram({"1.0": 3, "+Inf": 4}, 5.5)).encode())
    assert [(p.name, p.kind, p.value) for p in points] == [
        ("litellm_latency_count", "sum", 4.0),
        ("litellm_latency_sum", "sum", 5.5),
    ]


# --- several processes ---------------------------------------------------------------------------------------------


def test_workers_with_counters_of_their_own_make_no_nonsense_and_are_recognised() -> None:
    """Behind one address, each with its own registry: never a delta from one to the other, in either direction."""
    reader = Reader()
    one, two = (page({"": 1000}, began=BEGAN), page({"": 5}, began=BEGAN + 0.5))
    turned, points = [], []
    for body in (one, two, one, two, two, one, two, one):
        points = reader.read(body)
        assert all(delta in (None, 0.0) for delta in deltas(points))
        turned.append(reader.counters.turned)
    assert turned.count(True) == 1
    assert reader.counters.mixed
    assert values(points) == []
    assert reader.counters.withheld == 1


def test_workers_that_do_not_tell_their_start_are_recognised_by_their_falls() -> None:
    """A counter that falls again and again is several."""
    reader = Reader()
    for value in (1000, 5, 1001, 6, 1002, 7):
        reader.read(page({"": value}))
    assert reader.counters.mixed


def test_a_proxy_that_crashes_again_and_again_is_one() -> None:
    """Each start is later than the reading before it."""
    reader = Reader()
    for _ in range(12):
        assert deltas(reader.read(page({"": 3}, began=(reader.now + SECOND) / SECOND))) in ([None], [3.0])
    assert not reader.counters.mixed


def test_one_process_again() -> None:
    """Once it has answered for a while; what it counted meanwhile is no spike."""
    reader = Reader()
    one, two = (page({"": 1000}, began=BEGAN), page({"": 5}, began=BEGAN + 0.5))
    for body in (one, two) * 4:
        reader.read(body)
    for count in range(CALM + 1):
        reader.read(page({"": 1000 + count}, began=BEGAN))
    points = reader.read(page({"": 1002 + CALM}, began=BEGAN))
    assert not reader.counters.mixed
    assert deltas(points) == [2.0]


# --- restarts of the agent -----------------------------------------------------------------------------------------


def test_a_restart_of_the_agent_loses_no_growth() -> None:
    """The baseline is stored with the batch it belongs to, so a crash loses none either."""
    reader = Reader()
    body = page({ALICE: 5, BOB: 7}, more=HISTOGRAM + histogram({"1.0": 3, "+Inf": 4}, 5.5))
    start = [point.start_time for point in reader.read(body)]
    later = page({ALICE: 6, BOB: 9}, more=HISTOGRAM + histogram({"1.0": 3, "+Inf": 5}, 9.5))
    points = reader.restarted().read(later)
    assert deltas(points) == [3.0]
    assert points[1].delta is not None
    assert points[1].delta.histogram is not None
    assert points[1].delta.histogram.counts == (0, 1)
    assert [point.start_time for point in points] == start


def test_a_share_survives_a_restart_of_the_agent() -> None:
    """Of a series that was gone before, and of one that goes meanwhile."""
    reader = Reader()
    reader.read(page({ALICE: 500, BOB: 7, '{user="carol"}': 3}))
    reader.read(page({ALICE: 500, BOB: 7}))
    points = reader.restarted().read(page({BOB: 8}))
    assert (deltas(points), values(points)) == ([1.0], [511.0])


def test_new_rules_make_no_growth_of_what_they_let_through() -> None:
    """What was left out before was there all the same."""
    reader = Reader(exclude=["litellm_latency"])
    body = page({"": 5}, more=HISTOGRAM + histogram({"1.0": 3, "+Inf": 4}, 5.5))
    reader.read(body)
    points = reader.restarted().read(body)
    assert [point.delta is None for point in points] == [False, True]


def test_a_restart_of_the_agent_keeps_the_same_series_under_the_cap() -> None:
    """In whatever order the page has them now; gauges too."""
    gauge = "# TYPE litellm_state gauge\nlitellm_state 2\n"
    reader = Reader(max_series=3)
    reader.read(page({'{model="x"}': 1, '{model="y"}': 1}, more=gauge))
    later = page({'{model="a"}': 1, '{model="b"}': 1, '{model="y"}': 2, '{model="x"}': 1}, more=gauge)
    points = reader.restarted(max_series=3).read(later)
    assert [(point.name, point.attributes) for point in points if point.kind == "gauge"] == [("litellm_state", {})]
    assert sorted((str(point.attributes["model"]), point.delta) for point in points if point.kind == "sum") == [
        ("x", Delta(NOW + 15 * SECOND, 0.0)),
        ("y", Delta(NOW + 15 * SECOND, 1.0)),
    ]


def test_what_no_run_has_left_is_refused() -> None:
    """A damaged state starts anew, with a line in the log."""
    reader = Reader()
    reader.read(page({"": 5}))
    reader.state = reader.state[:-5]
    with pytest.raises(CodecError, match="damaged"):
        reader.restarted()


@pytest.mark.parametrize("field", ["series", "sizes", "numbers", "created", "outputs", "starts", "shapes"])
def test_a_state_whose_parts_do_not_agree_is_refused(field: str) -> None:
    """It would be read past its end, or give one series the numbers of another."""
    reader = Reader()
    reader.read(page({'{model="a"}': 5, '{model="b"}': 5}))
    stored = state.decode(reader.state)
    for wrong in (getattr(stored, field)[:-1], b"", getattr(stored, field) * 2):
        reader.state = state._codec.encode(msgspec.structs.replace(stored, **{field: wrong}))
        with pytest.raises(CodecError, match="damaged"):
            reader.restarted()


HUGE: dict[str, bytes] = {
    "a process": page({"": 1}, began=1e305),
    "a series": page({"": 1}, created={"": 1e305}),
}


@pytest.mark.parametrize("what", HUGE)
def test_a_start_in_the_far_future_is_no_start(what: str) -> None:
    """1e305 seconds are no number of nanoseconds; what has begun has begun by now."""
    reader = Reader()
    for _ in range(2):
        (point,) = reader.read(HUGE[what])
        assert point.value == 1.0
        assert 0 < (point.start_time or 0) <= point.time


def test_counts_that_nothing_can_hold_are_malformed() -> None:
    """A bucket of 2^63 and more, and a total that is no number any more."""
    reader = Reader()
    assert reader.read((HISTOGRAM + histogram({"1.0": 1e19, "+Inf": 2e19}, 1)).encode()) == []
    assert reader.counters.malformed == 1
    assert reader.read(page({'{user="a"}': 1e308, '{user="b"}': 1e308})) == []
    assert reader.counters.malformed >= 1
    reader = Reader()
    reader.read((HISTOGRAM + histogram({"1.0": 1, "+Inf": 2}, -1e308)).encode())
    (point,) = reader.read((HISTOGRAM + histogram({"1.0": 1, "+Inf": 2}, 1e308)).encode())
    assert point.delta is None


def test_a_count_that_nothing_can_hold_spoils_no_total() -> None:
    """Of series that coincide, the others go on; where only their sum is too large, none does."""
    reader = Reader()
    small, large = histogram({"1.0": 1, "+Inf": 2}, 1, 'user="a"'), histogram({"1.0": 1, "+Inf": 2e19}, 1, 'user="b"')
    (point,) = reader.read((HISTOGRAM + small + large).encode())
    assert point.histogram is not None
    assert (point.histogram.count, reader.counters.malformed) == (2, 1)
    both = "".join(histogram({"1.0": 1, "+Inf": 9e18}, 1, f'user="{user}"') for user in "ab")
    assert Reader().read((HISTOGRAM + both).encode()) == []


@pytest.mark.parametrize("bound", ["-Inf", "NaN", "x"])
def test_a_bucket_that_nothing_can_be_in_is_a_bad_line(bound: str) -> None:
    """Its bound is no number that can go on."""
    reader = Reader()
    (point,) = reader.read((HISTOGRAM + histogram({bound: 0, "1.0": 1, "+Inf": 1}, 1)).encode())
    assert point.histogram is not None
    assert (point.histogram.bounds, reader.page.bad_lines) == ((1.0,), 1)


def test_a_histogram_of_thousands_of_buckets_is_malformed() -> None:
    """Each line of it costs the more, the more there are."""
    reader = Reader()
    buckets = {str(n): 1.0 for n in range(1001)} | {"+Inf": 1.0}
    assert reader.read((HISTOGRAM + histogram(buckets, 1)).encode()) == []
    assert reader.page.malformed == 1


# --- histograms whose buckets change ---------------------------------------------------------------------------------

OLD: dict[str, float] = {"0.1": 1, "1.0": 3, "+Inf": 4}
CHANGES: dict[str, dict[str, float]] = {
    "one is gone": {"1.0": 3, "+Inf": 5},
    "others": {"0.5": 1, "2.0": 3, "+Inf": 5},
    "one more": {"0.1": 1, "0.5": 2, "1.0": 3, "+Inf": 5},
}


def buckets(counts: Mapping[str, float], labels: str = "", began: float | None = BEGAN) -> bytes:
    return page({}, began=began, more=HISTOGRAM + histogram(counts, 5.5, labels))


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("agent_restarts", [False, True])
def test_a_histogram_with_other_buckets_comes_back(change: str, agent_restarts: bool) -> None:
    """The proxy began anew, as another release: with the second reading at the latest it is there, counts since the
    new start, and no growth is claimed that was not seen.
    """
    reader = Reader()
    reader.read(buckets(OLD))
    reader.read(buckets(OLD))
    began = reader.now / SECOND + 1
    reader.read(buckets(CHANGES[change], began=began))
    if agent_restarts:
        reader = reader.restarted()
    (point,) = reader.read(buckets(CHANGES[change], began=began))
    assert point.histogram is not None
    assert (point.histogram.count, point.start_time) == (5, int(began * SECOND))
    grown = {**CHANGES[change], "+Inf": 7}
    (point,) = reader.read(buckets(grown, began=began))
    assert point.delta is not None
    assert point.delta.histogram is not None
    assert point.delta.histogram.count == 2


def test_without_a_start_of_the_process_a_missing_bucket_is_believed_the_second_time() -> None:
    """A page that was cut by damage once is not another release: what the histogram grew by meanwhile is not lost."""
    reader = Reader()
    reader.read(buckets(OLD, began=None))
    assert reader.read(buckets({"1.0": 4, "+Inf": 5}, began=None)) == []
    (point,) = reader.read(buckets({"0.1": 1, "1.0": 5, "+Inf": 6}, began=None))
    assert point.delta is not None
    assert point.delta.histogram is not None
    assert point.delta.histogram.count == 2
    assert reader.read(buckets({"1.0": 5, "+Inf": 7}, began=None)) == []
    (point,) = reader.read(buckets({"1.0": 5, "+Inf": 8}, began=None))
    assert point.histogram is not None
    assert (point.histogram.count, point.delta) == (8, None)
    (point,) = reader.read(buckets({"1.0": 5, "+Inf": 9}, began=None))
    assert point.delta is not None
    assert point.delta.histogram is not None
    assert point.delta.histogram.count == 1


def test_other_series_go_on_while_one_has_other_buckets() -> None:
    """Their growth is as ever."""
    reader = Reader()
    later = reader.now / SECOND + 31
    for count, more in ((1, OLD), (2, OLD)):
        reader.read(page({"": count}, began=BEGAN, more=HISTOGRAM + histogram(more, 5.5)))
    new = HISTOGRAM + histogram({"1.0": 3, "+Inf": 5}, 5.5)
    assert deltas(reader.read(page({"": 1}, began=later, more=new))) == [1.0]
    assert deltas(reader.read(page({"": 4}, began=later, more=new))) == [3.0]


def test_a_series_that_coincides_with_an_old_one_of_other_buckets_comes_through() -> None:
    """Who asks is dropped, so that both are one histogram; the old one is not on the page any more."""
    reader = Reader()
    for _ in range(2):
        reader.read(buckets(OLD, 'user="a"'))
    began = reader.now / SECOND + 1
    reader.read(buckets({"1.0": 3, "+Inf": 5}, 'user="b"', began))
    (point,) = reader.read(buckets({"1.0": 3, "+Inf": 5}, 'user="b"', began))
    assert point.histogram is not None
    assert point.histogram.count == 5


@pytest.mark.parametrize("agent_restarts", [False, True])
@pytest.mark.parametrize("starts", [False, True], ids=["no start", "another start"])
@pytest.mark.parametrize("after", [*CHANGES.values()], ids=[*CHANGES])
@pytest.mark.parametrize("label", ["", 'user="a"'], ids=["same series", "another series"])
def test_other_buckets_claim_no_growth_that_is_not_known(
    label: str, after: dict[str, float], starts: bool, agent_restarts: bool
) -> None:
    """Whether the page says that its process began or not, and should the agent restart after the first such page."""
    reader = Reader()
    for _ in range(2):
        reader.read(buckets(OLD, label, BEGAN if starts else None))
    again = reader.now / SECOND + 1 if starts else None
    label = label.replace("a", "b")
    reader.read(buckets(after, label, again))
    if agent_restarts:
        reader = reader.restarted()
    (point,) = reader.read(buckets({**after, "+Inf": 6}, label, again))
    assert point.histogram is not None
    assert point.histogram.count == 6
    assert point.delta is None or (point.delta.histogram is not None and point.delta.histogram.count == 1)
    assert again is None or point.start_time == int(again * SECOND)
    (point,) = reader.read(buckets({**after, "+Inf": 7}, label, again))
    assert point.delta is not None
    assert point.delta.histogram is not None
    assert point.delta.histogram.count == 1


@pytest.mark.parametrize("label", ["", 'user="a"'], ids=["same series", "another series"])
@pytest.mark.parametrize("after", [*CHANGES.values()], ids=[*CHANGES])
def test_other_buckets_than_the_last_run_saw_are_no_growth(label: str, after: dict[str, float]) -> None:
    """Nothing says that the process is another: of the same series nothing is known, another is new."""
    reader = Reader()
    for _ in range(2):
        reader.read(buckets(OLD, label, None))
    reader = reader.restarted()
    (point,) = reader.read(buckets(after, label.replace("a", "b"), None))
    assert point.histogram is not None
    assert point.histogram.count == 5
    assert label or point.delta is None
    assert point.start_time == reader.now - 15 * SECOND  # not that of the other buckets
    (point,) = reader.read(buckets({**after, "+Inf": 7}, label.replace("a", "b"), None))
    assert point.delta is not None
    assert point.delta.histogram is not None
    assert point.delta.histogram.count == 2


def test_a_bucket_that_is_gone_and_back_makes_no_growth() -> None:
    """Each change begins the histogram anew; what it grows by with the same buckets is told once."""
    reader = Reader()
    reader.read(buckets(OLD, began=None))
    told: list[int | None] = []
    for count, gone in ((5, True), (6, True), (7, True), (8, False), (9, False), (10, False)):
        counts = {"0.1": 1, "1.0": 3, "+Inf": count}
        if gone:
            del counts["0.1"]
        for point in reader.read(buckets(counts, began=None)):
            assert point.histogram is not None
            assert point.histogram.count == count
            told.append(point.delta.histogram.count if point.delta and point.delta.histogram else None)
    assert told == [None, 1, None, 1, 1]


def test_a_state_of_an_older_release_goes_on() -> None:
    """It does not tell which buckets there were: as many are taken for the same."""
    reader = Reader()
    for _ in range(2):
        reader.read(buckets(OLD))
    fields = msgspec.msgpack.decode(reader.state[1:])[:-1]
    reader.state = reader.state[:1] + msgspec.msgpack.encode(fields)
    (point,) = reader.restarted().read(buckets({**OLD, "+Inf": 6}))
    assert point.delta is not None
    assert point.delta.histogram is not None
    assert point.delta.histogram.count == 2
    (point,) = reader.restarted().read(buckets(CHANGES["one is gone"]))
    assert point.delta is None


@pytest.mark.parametrize("began", [None, BEGAN])
@pytest.mark.parametrize("agent_restarts", [False, True])
def test_a_bucket_that_damage_took_once_costs_no_growth(began: float | None, agent_restarts: bool) -> None:
    """Nor does it make a reset of it, or of the series that it coincides with."""
    reader = Reader()

    def read(count: int, *, cut: bool = False) -> bytes:
        second = {"0.1": 1.0, "1.0": 3.0, "+Inf": count}
        if cut:
            del second["1.0"]
        more = HISTOGRAM + histogram(OLD, 5.5, 'user="a"') + histogram(second, 5.5, 'user="b"')
        return page({}, began=began, more=more)

    reader.read(read(4))
    (point,) = reader.read(read(5))
    start = point.start_time
    reader.read(read(6, cut=True))
    if agent_restarts:
        reader = reader.restarted()
    (point,) = reader.read(read(7))
    assert point.histogram is not None
    assert point.delta is not None
    assert point.delta.histogram is not None
    assert (point.histogram.count, point.delta.histogram.count, point.start_time) == (11, 2, start)


def test_series_with_a_sum_below_nothing_are_on_the_page() -> None:
    """Two that never have the same buckets: the first goes on, each time."""
    reader = Reader()
    more = HISTOGRAM + histogram(OLD, -1.5, 'user="a"') + histogram({"7": 1, "+Inf": 2}, -1.5, 'user="b"')
    for _ in range(3):
        (point,) = reader.read(page({}, began=BEGAN, more=more))
        assert reader.page.outdated == {}
        assert (point.delta is None) == (reader.now == NOW + 15 * SECOND)


@pytest.mark.parametrize("agent_restarts", [False, True])
def test_a_series_that_comes_late_after_a_restart_of_the_proxy_has_its_start(agent_restarts: bool) -> None:
    """The first page of the new process does not have it yet."""
    reader = Reader()
    reader.read(page({"": 5}, began=BEGAN))
    began = reader.now / SECOND + 1
    reader.read(page({}, began=began))
    if agent_restarts:
        reader = reader.restarted()
    (point,) = reader.read(page({"": 1}, began=began))
    assert (point.value, point.start_time) == (1.0, int(began * SECOND))
    assert deltas([point]) == [1.0]


def test_of_a_thousand_series_with_other_buckets_each_comes_back() -> None:
    """And who is on the page no more does not stand in their way."""
    reader = Reader()

    def read(counts: Mapping[str, float], users: range, began: float) -> bytes:
        return page({}, began=began, more=HISTOGRAM + "".join(histogram(counts, 1, f'user="{n}"') for n in users))

    for _ in range(2):
        reader.read(read(OLD, range(1000), BEGAN))
    began = reader.now / SECOND + 1
    reader.read(read(CHANGES["one is gone"], range(900, 1900), began))
    (point,) = reader.read(read(CHANGES["one is gone"], range(900, 1900), began))
    assert point.histogram is not None
    assert point.histogram.count == 5000
    assert reader.counters.malformed == reader.page.malformed == 0
