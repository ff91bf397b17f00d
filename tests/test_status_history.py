"""What a target's history keeps of what goes into the spool, and what it takes for now."""

import pytest

from forwarder import catalog
from forwarder.errors import CodecError
from forwarder.events import Batch, Event, Resource
from forwarder.status.history import CHANGES, SLICE, SLICES, History, decode

MINUTE = 60_000_000_000
NOW = 1_795_000_000_000_000_000 // SLICE * SLICE + 7 * MINUTE
US = Resource({"litellm.target": "us"})


def history(*, seconds: float = 60.0) -> History:
    return History(lambda _endpoint: seconds)


def reading(endpoint: str, time: int, *events: Event, success: bool = True) -> Batch:
    return Batch(US, time, (catalog.PROBE_SUCCESS.at(time, success, {"endpoint": endpoint}), *events))


def alive(time: int, health: float | None = 1.0) -> Batch:
    return reading("liveliness", time, *([] if health is None else [catalog.HEALTH.at(time, health)]))


def listing(time: int, *ups: bool) -> Batch:
    members = [
        catalog.DEPLOYMENT_UP.at(time, up, {"deployment.id": f"d{n}", "model": "m"}) for n, up in enumerate(ups)
    ]
    counts = catalog.HEALTHY_MODELS.at(time, sum(ups)), catalog.UNHEALTHY_MODELS.at(time, len(ups) - sum(ups))
    return reading("health", time, catalog.HEALTH.at(time, 1), *members, *counts)


def feed(into: History, *batches: Batch, stored: bool = True) -> None:
    for batch in batches:
        into.see(batch, stored=stored)


def test_nothing_seen_is_unknown() -> None:
    """Every slice too: absence is never taken for health."""
    nothing = history()
    assert nothing.health(NOW) is None
    assert {each.state for _, each in nothing.slices(NOW)} == {"unknown"}
    assert len(nothing.slices(NOW)) == SLICES
    assert nothing.seen is None


def test_slices_count_readings_and_keep_the_worst() -> None:
    """One bad reading among good ones shows; a slice in which deployments failed is degraded."""
    seen = history(seconds=3600)
    feed(seen, alive(NOW - SLICE), alive(NOW - SLICE + 1, 0), alive(NOW - SLICE + 2), listing(NOW, True, False))
    before, now = (each for _, each in seen.slices(NOW)[-2:])
    assert (before.healthy, before.unhealthy, before.state) == (2, 1, "unhealthy")
    assert (now.healthy, now.failing, now.state) == (1, 1, "degraded")
    assert seen.slices(NOW)[-1][0] == NOW // SLICE * SLICE


def test_a_reading_that_says_nothing_of_health_is_unknown() -> None:
    """As where the key is refused: neither good nor bad, though an earlier reading said 1."""
    seen = history()
    feed(seen, alive(NOW), alive(NOW + 1, None))
    assert seen.health(NOW + 2) is None
    assert seen.state == "unknown"
    assert seen.slices(NOW)[-1][1].healthy == 1


def test_what_was_said_long_ago_is_not_taken_for_now() -> None:
    """Health and deployments alike; the clock may also have been set back."""
    seen = history(seconds=60)
    feed(seen, listing(NOW, True, False))
    assert (seen.health(NOW + 60 * 10**9), seen.failing(NOW + 60 * 10**9)) == (1, 1)
    for later in (NOW + 61 * 10**9, NOW - 61 * 10**9):
        assert seen.health(later) is None
        assert seen.failing(later) is None
        assert not seen.current(later)


def test_a_listing_read_in_vain_is_no_longer_current() -> None:
    """/health timed out after it had listed: what the deployments do now is not known, what was listed is kept."""
    seen = history()
    feed(seen, listing(NOW, True, False), reading("health", NOW + 1, success=False))
    assert not seen.current(NOW + 2)
    assert seen.failing(NOW + 2) is None
    assert seen.listing is not None
    assert len(seen.listing.values(catalog.DEPLOYMENT_UP)) == 2


def test_a_listing_of_a_proxy_that_is_dead_is_not_current() -> None:
    """However fresh it is; it is current again when the proxy lives."""
    seen = history()
    feed(seen, listing(NOW, True), reading("liveliness", NOW + 1, catalog.UP.at(NOW + 1, 0), success=False))
    assert not seen.current(NOW + 2)
    feed(seen, reading("liveliness", NOW + 3, catalog.UP.at(NOW + 3, 1)))
    assert seen.current(NOW + 4)


def test_the_state_and_since_when() -> None:
    """It changes when the state does, not with each reading."""
    seen = history()
    feed(seen, alive(NOW), alive(NOW + 5))
    assert (seen.state, seen.since) == ("healthy", NOW)
    feed(seen, listing(NOW + 9, False))
    assert (seen.state, seen.since) == ("degraded", NOW + 9)
    down = catalog.DEPENDENCY_UP.at(NOW + 10, 0, {"dependency": "database"})
    feed(seen, reading("readiness", NOW + 10, down, catalog.HEALTH.at(NOW + 10, 1)), listing(NOW + 10, True))
    assert (seen.state, seen.since) == ("degraded", NOW + 9)
    assert seen.dependencies(NOW + 10) == {"database": False}
    feed(seen, alive(NOW + 11, 0))
    assert (seen.state, seen.since) == ("unhealthy", NOW + 11)
    seen.look(NOW + MINUTE + 12)
    assert (seen.state, seen.since) == ("unknown", NOW + MINUTE + 12)


def test_since_when_a_deployment_is_so() -> None:
    """Kept while it stays so; a removed one is forgotten."""
    seen = history()
    feed(seen, listing(NOW, True, True), listing(NOW + 1, True, False), listing(NOW + 2, True, False))
    assert seen.deployments == {"d0": (True, NOW), "d1": (False, NOW + 1)}
    feed(seen, listing(NOW + 3, True))
    assert seen.deployments == {"d0": (True, NOW)}


def test_changes_are_few_and_told_once() -> None:
    """One that could not be stored is found again by the poller, and only then told."""
    seen = history()
    told = [Batch(US, NOW + n, (catalog.PROXY_UP.at(NOW + n, f"up {n}"),)) for n in range(CHANGES + 5)]
    feed(seen, told[0], stored=False)
    assert not seen.changes
    feed(seen, *told)
    assert len(seen.changes) == CHANGES
    assert seen.changes[-1].title == f"up {CHANGES + 4}"
    assert seen.urgent


def test_it_survives_a_restart_and_the_gap_is_unknown() -> None:
    """Slices, changes and since when; what is newest is read anew."""
    seen = history()
    feed(seen, listing(NOW, True, False), Batch(US, NOW, (catalog.PROXY_UP.at(NOW, "up"),)))
    later = NOW + 3 * SLICE
    again = History(lambda _: 60.0, decode(seen.encode()))
    assert [each.state for _, each in again.slices(later)[-4:]] == ["degraded", "unknown", "unknown", "unknown"]
    assert again.changes == seen.changes
    assert again.deployments == seen.deployments
    assert (again.state, again.since) == (seen.state, seen.since)
    assert again.health(later) is None
    assert not again.current(later)


def test_it_stays_small() -> None:
    """Days of readings leave 96 slices, also after a clock that ran ahead."""
    seen = history()
    feed(seen, alive(NOW + 500 * SLICE))
    for number in range(3 * SLICES):
        feed(seen, alive(NOW + number * SLICE))
    now = NOW + 3 * SLICES * SLICE
    feed(seen, alive(now))
    assert {each.state for _, each in seen.slices(now)} == {"healthy"}
    assert len(seen.encode()) < 2_000


def test_other_families_are_left_alone() -> None:
    """Of a page with thousands of the proxy's own points, only the agent's gauges are kept."""
    seen = history()
    own = catalog.PROBE_SUCCESS.at(NOW, 1, {"endpoint": "metrics"})
    foreign = type(own)("litellm_requests_metric_total", "sum", "1", NOW, 1.0)
    feed(seen, Batch(US, NOW, (own, foreign, foreign)))
    assert seen.latest["metrics"].metrics == (own,)


@pytest.mark.parametrize("data", [b"", b"\x01\xc1", b"\x02\x90", b"\x01\x95\x01\x02\x03\x04\x05"])
def test_what_is_not_a_history_is_refused(data: bytes) -> None:
    """So that it starts anew, with a line in the log."""
    with pytest.raises(CodecError):
        decode(data)
