"""When there is maintenance, when something is due, and that whatever happens the sink comes to rest."""

from collections.abc import Sequence
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from notify_support import (
    START,
    People,
    batch,
    database,
    down,
    healthy,
    lost,
    point,
    ready,
    release,
    removed,
    unhealthy,
    unready,
    up,
)

from forwarder.events import Change
from forwarder.sinks.base import Delivered, Retry
from forwarder.sinks.notify import folding, memory, planning
from forwarder.sinks.notify.courier import Failed
from forwarder.sinks.notify.memory import Memory
from forwarder.sinks.notify.rules import SECOND, Rules, Window
from forwarder.sinks.notify.sink import NotifySink, Style
from forwarder.sinks.notify.texts import compose

BERLIN = ZoneInfo("Europe/Berlin")


def ns(*when: int) -> int:
    return int(datetime(*when, tzinfo=UTC).timestamp()) * SECOND  # type: ignore[arg-type, misc] # year, month, …


def at(window: Window, *when: int) -> str | None:
    """When the window that holds this time (UTC) ends."""
    end = window.until("eu", ns(*when))
    return None if end is None else datetime.fromtimestamp(end / SECOND, UTC).strftime("%d %H:%M")


def test_a_window_goes_by_its_zone() -> None:
    """From its start on, to its end and not a moment longer."""
    window = Window("0 2 * * sun", 7200, BERLIN)
    assert at(window, 2026, 3, 15, 0, 59) is None
    assert at(window, 2026, 3, 15, 1, 0) == "15 03:00"
    assert at(window, 2026, 3, 15, 2, 59) == "15 03:00"
    assert at(window, 2026, 3, 15, 3, 0) is None
    assert at(window, 2026, 3, 16, 1, 0) is None, "a Monday"
    assert at(window, 2026, 7, 5, 0, 30) == "05 02:00", "summer time"


def test_a_window_where_the_clock_changes() -> None:
    """The hour that is left out does not take the window with it; the one that is there twice has it once."""
    window = Window("30 2 * * *", 3600, BERLIN)
    assert at(window, 2026, 3, 29, 1, 30) == "29 02:00", "2:30 is left out; it begins when the clock says 3:00"
    assert at(window, 2026, 10, 25, 0, 45) == "25 01:30"
    assert at(window, 2026, 10, 25, 1, 45) is None


def test_windows_that_overlap_last_until_the_last_ends() -> None:
    window = Window("0 * * * *", 5400, BERLIN)
    assert at(window, 2026, 3, 15, 1, 20) == "15 02:30"
    rules = Rules(maintenance=[Window("0 1 * * *", 3600, UTC), Window("30 1 * * *", 3600, UTC, ("e*",))])
    assert rules.quiet_until("eu", ns(2026, 3, 15, 1, 45)) == ns(2026, 3, 15, 2, 30)
    assert rules.quiet_until("us", ns(2026, 3, 15, 1, 45)) == ns(2026, 3, 15, 2, 0)


def test_a_long_window_is_found() -> None:
    assert at(Window("0 0 29 2 *", 7 * 86400, UTC), 2028, 3, 5, 12) == "07 00:00"
    assert at(Window("0 0 29 2 *", 7 * 86400, UTC), 2027, 3, 5, 12) is None


MAKERS = [down, up, unready, ready, database, unhealthy, healthy, removed, release, lost]
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(MAKERS),
        st.integers(1, 3),
        st.sampled_from(["eu", "us", ""]),
        st.sampled_from([0, 1, 10, 29, 30, 31, 600, 3600, 7200]),
        st.booleans(),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(
    CHANGES,
    st.sampled_from([0.0, 30.0]),
    st.sampled_from([None, 600.0]),
    st.sampled_from([1, 3, 20]),
    st.sampled_from([(), (Window("*/30 * * * *", 600, UTC, ("e*",)),)]),
)
def test_whatever_happens_it_comes_to_rest(
    steps: list[tuple[object, int, str, int, bool]],
    group: float,
    remind: float | None,
    cap: int,
    windows: Sequence[Window],
) -> None:
    """After a call nothing is due at once (a pump would go in circles); the cap holds in every hour; what is stored
    can be read again; a failed attempt takes in all that it was given.
    """
    rules = Rules("info", group=group, remind=remind, max_per_hour=cap, maintenance=windows)
    clock = [START]
    people = People()
    sink = NotifySink("a", people, rules, Style(UTC), clock=lambda: clock[0])
    sent: list[int] = []
    for make, number, target, seconds, failing in steps:
        clock[0] += seconds * SECOND
        people.failing = Failed("away") if failing else None
        change = make(number) if make in (unhealthy, healthy, removed) else make()  # type: ignore[operator]
        assert isinstance(change, Change)
        event = Change(change.name, clock[0], change.severity, change.title, change.text, change.attributes)
        outcome = sink.send([batch(point(clock[0]), event, target=target, time=clock[0])], timeout=1)
        sent += [clock[0]] * len(people.take())
        assert isinstance(outcome, Delivered | Retry)
        if isinstance(outcome, Retry):
            assert outcome.delivered == 2
            continue
        assert sink.due is None or sink.due > 0
        again = NotifySink("a", people, rules, Style(UTC), clock=lambda: clock[0])
        again.recall(sink.memo)
        assert again.memo == sink.memo
        assert again.due == sink.due
        sink.tick(timeout=1, last=failing)
        sent += [clock[0]] * len(people.take())
        assert sink.due is None or sink.due > 0
    for index, time in enumerate(sent):
        assert sum(time <= other < time + 3600 * SECOND for other in sent[index:]) <= cap


def test_a_clock_that_is_set_back_holds_nothing_up() -> None:
    """Changes of the future are told like those of now, and the cap of the future does not hold."""
    rules = Rules(group=30, max_per_hour=1)
    later = START + 7200 * SECOND
    told = Memory(sent=(later,))
    found = folding.fold(told, [batch(down(later))], rules, START)
    assert planning.wait(found, rules, START) == 30
    assert planning.plan(found, rules, START + 30 * SECOND) is not None


def test_memory_of_another_release_is_no_memory(caplog: pytest.LogCaptureFixture) -> None:
    """It is said once, and the sink begins anew."""
    sink = NotifySink("a", People(), Rules(), Style(UTC), clock=lambda: START)
    sink.recall(b"\xffwhat is this")
    assert sink.memo == b""
    assert sink.due is None
    assert "what was told before is not known any more" in caplog.text


def test_old_events_are_taken_in_before_anything_is_said() -> None:
    """What follows them may have made them past; what still holds is said when nothing is waiting any more."""
    clock = [START + 7200 * SECOND]
    people = People()
    sink = NotifySink("a", people, Rules(group=0), Style(UTC), clock=lambda: clock[0])
    assert sink.send([batch(down(START), unhealthy(1, START), time=START)], timeout=1) == Delivered()
    later = START + 60 * SECOND
    assert sink.send([batch(up(later), time=later)], timeout=1) == Delivered()
    assert people.attempts == 0
    assert sink.due is not None
    assert sink.due <= 0
    assert sink.tick(timeout=1, last=False) == Delivered()
    (message,) = people.take()
    assert message.subject == "[LiteLLM] eu: gpt-1 unhealthy"
    assert "was down for 1 minute" in message.text


def test_the_memory_is_bounded() -> None:
    """However long the names and however many the changes; what finds no room is counted and told."""
    rules = Rules("info", group=0)
    many = [unhealthy(n) for n in range(folding.MAX_OUTAGES + 10)] + [release() for _ in range(folding.MAX_NEWS + 5)]
    found = folding.fold(Memory(), [batch(*many)], rules, START)
    assert len(found.outages) == folding.MAX_OUTAGES
    assert found.unlisted == 15
    assert len(memory.encode(found)) < 2_000_000
    told = planning.plan(found, rules, START)
    assert told is not None
    said = compose(told, sink="a", zone=UTC)
    assert "15 more changes of that time found no room here" in said.text
    assert len(said.text) < 30_000
    assert len(planning.told(found, told, rules, "id").news) == 0
