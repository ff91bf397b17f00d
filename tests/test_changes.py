"""Which changes are told, and that each is told once: rule by rule, with a restart between any two readings."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forwarder import catalog
from forwarder.errors import CodecError
from forwarder.events import Change
from forwarder.normalize import Deployment, Reading, verdict
from forwarder.normalize.changes import ChangeState, decode, encode, observe

DOWN, UP = Reading(alive=False, error="refused"), Reading(alive=True)
UNKNOWN = Reading(error="auth")


class Watch:
    """One target, watched. Between any two readings the agent restarts: the state goes through its codec."""

    def __init__(self, *, failures: int = 3, successes: int = 2) -> None:
        self.state = ChangeState()
        self.limits = {"failure_threshold": failures, "success_threshold": successes}
        self.time = 0

    def see(self, reading: Reading, *, source: str | None = "health") -> list[Change]:
        self.time += 1
        stored = encode(self.state)
        restarted = decode(stored)
        self.state, told = observe(restarted, reading, self.time, target="eu", source=source, **self.limits)
        assert encode(restarted) == stored, "observe modified its input"
        assert all(change.time == self.time for change in told)
        return told

    def names(self, *readings: Reading, source: str | None = "health") -> list[str]:
        """The names of all changes that the readings make, without the common start."""
        return [change.name.removeprefix("litellm.") for r in readings for change in self.see(r, source=source)]


def _deployment(id_: str, *, up: bool = True, error: str | None = None, status: int | None = None) -> Deployment:
    return Deployment(id_, f"openai/{id_}", "openai", up, error if up is False else None, status)


def _listing(*up: str, down: tuple[str, ...] = (), error: str = "timeout") -> Reading:
    sick = tuple(_deployment(id_, up=False, error=error) for id_ in down)
    return Reading(deployments=(*(_deployment(id_) for id_ in up), *sick))


# --- the proxy -----------------------------------------------------------------------------------------------------


def test_a_good_first_observation_is_silent() -> None:
    """A start of the agent is not an event of the proxy."""
    assert Watch().names(UP, UP, UP) == []


def test_a_bad_first_observation_is_told_after_the_threshold() -> None:
    """An agent started during an outage tells of it; a proxy that was merely starting as well is not reported."""
    assert Watch().names(DOWN, DOWN) == []
    assert Watch().names(DOWN, DOWN, DOWN) == ["proxy.down"]
    assert Watch().names(DOWN, DOWN, UP, UP, UP) == []


def test_down_and_up_are_told_once_each() -> None:
    """failure_threshold in a row for down, success_threshold in a row for up, and then no repetition."""
    watch = Watch()
    assert watch.names(UP, DOWN, DOWN) == []
    assert watch.names(DOWN) == ["proxy.down"]
    assert watch.names(DOWN, DOWN, DOWN, DOWN, UP) == []
    assert watch.names(UP) == ["proxy.up"]
    assert watch.names(UP, UP) == []


def test_flapping_below_the_threshold_is_silent() -> None:
    """One good reading ends a streak of bad ones, and the other way round."""
    watch = Watch()
    assert watch.names(UP, *[DOWN, DOWN, UP] * 10) == []
    assert watch.names(DOWN, DOWN, DOWN) == ["proxy.down"]
    assert watch.names(*[UP, DOWN] * 10) == []


def test_unknown_neither_counts_nor_resets() -> None:
    """What was not seen is no evidence, in either direction."""
    watch = Watch()
    assert watch.names(UP, DOWN, UNKNOWN, DOWN, UNKNOWN, UNKNOWN) == []
    assert watch.names(DOWN) == ["proxy.down"]
    assert watch.names(UNKNOWN, UP, UNKNOWN) == []
    assert watch.names(UP) == ["proxy.up"]


def test_a_proxy_that_is_down_says_why() -> None:
    """The change carries the class of failure and words for people."""
    (change,) = Watch(failures=1).see(DOWN)
    assert (change.severity, change.attributes) == ("error", {"error.type": "refused"})
    assert change.title == "eu: the proxy is down (refused)"
    assert "nothing listens" in change.text
    (draining,) = Watch(failures=1).see(Reading(alive=False))
    assert draining.attributes == {}


def test_readiness() -> None:
    """Not ready is a warning, ready again an information; both say from what to what."""
    watch = Watch()
    ready, busy = Reading(ready=True), Reading(ready=False)
    assert watch.names(ready, busy, busy) == []
    (lost,) = watch.see(busy)
    assert (lost.name, lost.severity) == ("litellm.readiness.changed", "warning")
    assert lost.attributes == {"previous": "ready", "current": "not_ready"}
    assert watch.names(ready) == []
    (back,) = watch.see(ready)
    assert (back.severity, back.attributes) == ("info", {"previous": "not_ready", "current": "ready"})


def test_dependencies_are_followed_one_by_one() -> None:
    """A database that is down says nothing of Redis; a dependency that is no longer mentioned is unknown."""
    watch = Watch()
    both, lost = Reading(dependencies={"database": True, "redis": True}), Reading(dependencies={"database": False})
    assert watch.names(both, lost, UNKNOWN, lost) == []
    (down,) = watch.see(lost)
    assert (down.name, down.attributes) == ("litellm.dependency.down", {"dependency": "database"})
    assert watch.names(both, both) == ["dependency.up"]


def test_versions() -> None:
    """A release is told once it stays: two workers that answer in turn during a rolling update tell nothing."""
    watch = Watch()
    old, new = Reading(version="1.80.17"), Reading(version="1.106.2")
    assert watch.names(old, *[new, old] * 5) == []
    assert watch.names(new, UNKNOWN) == []
    (changed,) = watch.see(new)
    assert changed.attributes == {"previous": "1.80.17", "current": "1.106.2"}
    assert watch.names(new, old, new) == []


def test_another_candidate_starts_its_own_streak() -> None:
    """Three releases in turn are not two sightings of one."""
    watch = Watch(successes=2)
    versions = [Reading(version=version) for version in ("1", "2", "3", "2", "3")]
    assert watch.names(*versions) == []


# --- deployments ---------------------------------------------------------------------------------------------------


def test_the_first_listing_is_the_baseline() -> None:
    """Nobody was added before anyone looked; who is down from the start is told after the threshold."""
    watch = Watch()
    first = _listing("a", "b", down=("c",))
    assert watch.names(first, first) == []
    assert watch.names(first) == ["deployment.unhealthy"]
    assert watch.names(first, first, first) == []


def test_a_deployment_fails_and_recovers() -> None:
    """Each side is told once, with model, id, provider and class of error."""
    watch = Watch()
    sick = Reading(deployments=(_deployment("a", up=False, error="authentication", status=401),))
    assert watch.names(_listing("a"), sick, sick) == []
    (failed,) = watch.see(sick)
    assert failed.name == "litellm.deployment.unhealthy"
    assert failed.attributes == {
        "model": "openai/a",
        "deployment.id": "a",
        "provider": "openai",
        "error.type": "authentication",
        "http.response.status_code": 401,
    }
    assert failed.title == "eu: openai/a [a] is unhealthy (authentication)"
    assert "refused the credentials" in failed.text
    assert watch.names(_listing("a")) == []
    assert watch.names(_listing("a")) == ["deployment.healthy"]


def test_another_error_is_no_change() -> None:
    """It stays unhealthy: the class is in the metrics."""
    watch = Watch()
    watch.names(*[_listing(down=("a",), error="timeout")] * 3)
    assert watch.names(*[_listing(down=("a",), error="rate_limit")] * 5) == []


def test_added_is_told_at_first_sight() -> None:
    """Adding is done by somebody, on purpose: no need to see it twice. One that never works is told as well."""
    watch = Watch()
    assert watch.names(_listing("a"), _listing("a", "b")) == ["deployment.added"]
    assert watch.names(_listing("a", "b", down=("c",))) == ["deployment.added"]
    assert watch.names(*[_listing("a", "b", down=("c",))] * 2) == ["deployment.unhealthy"]


def test_removed_is_told_after_the_threshold() -> None:
    """One listing without it may be a worker that has not reloaded yet; coming back before is not coming anew."""
    watch = Watch()
    both, one = _listing("a", "b"), _listing("a")
    assert watch.names(both, one, one, both, one, one) == []
    (removed,) = watch.see(one)
    assert (removed.name, removed.attributes["deployment.id"]) == ("litellm.deployment.removed", "b")
    assert removed.attributes["model"] == "openai/b"
    assert watch.names(one, one) == []
    assert watch.names(both) == ["deployment.added"]


def test_an_absence_does_not_reset_what_was_known() -> None:
    """An unhealthy deployment that is missing from one listing is not told as unhealthy a second time."""
    watch = Watch()
    sick = _listing("a", down=("b",))
    assert watch.names(sick, sick, sick) == ["deployment.unhealthy"]
    assert watch.names(_listing("a"), sick, sick, sick, sick) == []


def test_no_listing_removes_nobody() -> None:
    """A failed poll, or `{}` before the first background cycle, is not an empty listing; an empty listing is."""
    watch = Watch()
    watch.names(_listing("a"))
    assert watch.names(*[UNKNOWN, Reading(background=True)] * 5) == []
    assert watch.names(*[Reading(deployments=())] * 3) == ["deployment.removed"]


def test_another_source_is_a_new_baseline() -> None:
    """/health and /health/models name deployments differently: nobody came or went when the poller switches."""
    watch = Watch()
    assert watch.names(_listing("a", "b"), source="health") == []
    assert watch.names(*[_listing("x", "b")] * 5, source="models") == []
    assert watch.names(_listing("x", "b", "z"), source="models") == ["deployment.added"]


def test_who_has_the_same_id_at_another_source_is_known() -> None:
    """Switching sources repeats no alarm and loses no streak where the id says who it is."""
    watch = Watch()
    assert watch.names(*[_listing("a", down=("b",))] * 3) == ["deployment.unhealthy"]
    assert watch.names(*[_listing("a", down=("b",))] * 3, source="models") == []
    assert watch.names(*[_listing("a", "b")] * 2, source="models") == ["deployment.healthy"]


def test_deployments_of_no_source_are_left_alone() -> None:
    """An endpoint that is not the poller's source says nothing about who is there."""
    watch = Watch()
    watch.names(_listing("a"))
    assert watch.names(*[_listing("b")] * 5, source=None) == []
    assert watch.names(_listing("a", "b")) == ["deployment.added"]


# --- state ---------------------------------------------------------------------------------------------------------


def test_state_is_the_same_object_when_nothing_changed() -> None:
    """So the poller need not write it with each batch."""
    state = ChangeState()
    arguments: dict[str, Any] = {"target": "eu", "source": "health", "failure_threshold": 3, "success_threshold": 2}
    state, _ = observe(state, _listing("a"), 1, **arguments)
    again, told = observe(state, _listing("a"), 2, **arguments)
    assert again is state
    assert told == []


def test_older_state_is_read_with_defaults() -> None:
    """Fields may be appended in a later release: a state that ends early is one of an older release."""
    assert decode(b"\x01\x91\x92\xc3\x00").alive.told is True


@pytest.mark.parametrize(
    "data", [b"", b"\x00", b"\x02\x90", b"\x01", b"\x01\xff", b"\x01\x91\xa1x", b"\x01\x81\xa1a\x01"]
)
def test_damaged_state_is_a_codec_error(data: bytes) -> None:
    """Whatever the disk gives back, the caller gets one kind of error and can start anew."""
    with pytest.raises(CodecError):
        decode(data)


IDS = st.sampled_from(["a", "b", "c"])
READINGS = st.builds(
    lambda alive, ready, dependencies, version, deployments: Reading(
        alive=alive,
        ready=ready,
        dependencies=dependencies,
        version=version,
        deployments=deployments and tuple(_deployment(id_, up=up) for id_, up in deployments.items()),
    ),
    st.none() | st.booleans(),
    st.none() | st.booleans(),
    st.dictionaries(st.sampled_from(["database", "redis"]), st.booleans()),
    st.none() | st.sampled_from(["1", "2"]),
    st.none() | st.dictionaries(IDS, st.booleans(), min_size=1),
)
ALLOWED = {change.name: set(change.attributes) for change in catalog.CHANGES}


@settings(deadline=None)
@given(readings=st.lists(READINGS, max_size=40), failures=st.integers(1, 4), successes=st.integers(1, 4))
def test_changes_alternate(readings: list[Reading], failures: int, successes: int) -> None:
    """Whatever the readings: up follows only on down, healthy on unhealthy, added only on removed; nothing is told
    twice in a row, nor before it was seen often enough.
    """
    watch = Watch(failures=failures, successes=successes)
    last: dict[tuple[str, str], str] = {}
    seen: list[Reading] = []
    for reading in readings:
        seen.append(reading)
        for change in watch.see(reading):
            assert change.attributes.keys() <= ALLOWED[change.name]
            kind, _, event = change.name.removeprefix("litellm.").partition(".")
            event = str(change.attributes.get("current", event))
            family = "presence" if event in {"added", "removed"} else kind
            who = str(change.attributes.get("deployment.id", change.attributes.get("dependency", "")))
            if event == "removed":
                last.pop(("deployment", who), None)
            first_time = {"down", "unhealthy", "not_ready", "added", "removed"}
            assert last.get((family, who)) != event
            assert (family, who) in last or event in first_time or kind == "version"
            last[family, who] = event
            if change.name in {"litellm.proxy.down", "litellm.proxy.up"}:
                need = failures if event == "down" else successes
                verdicts = [r.alive for r in seen if r.alive is not None][-need:]
                assert verdicts == [event == "up"] * need


@settings(deadline=None)
@given(readings=st.lists(READINGS, max_size=30))
def test_told_and_seen_agree_in_the_end(readings: list[Reading]) -> None:
    """However wild it was: after enough equal readings, what was told last is what is true."""
    watch = Watch()
    watch.names(*readings)
    watch.names(*[Reading(alive=False, ready=True, version="9", deployments=(_deployment("a", up=False),))] * 3)
    assert (watch.state.alive.told, watch.state.ready.told, watch.state.version.told) == (False, True, "9")
    assert watch.state.deployments.keys() == {"a"}
    assert watch.state.deployments["a"].track.told is False


@pytest.mark.parametrize(
    ("alive", "ready", "complaints", "expected"),
    [
        (True, True, [], True),
        (True, True, [None, False], True),
        (True, True, [None, True], False),
        (False, None, [], False),
        (False, True, [False], False),
        (True, False, [], False),
        (None, False, [], False),
        (None, None, [True], False),
        (None, True, [False], None),
        (True, None, [False], None),
        (None, None, [], None),
    ],
)
def test_verdict(alive: bool | None, ready: bool | None, complaints: list[bool | None], expected: bool | None) -> None:
    """litellm.health is 1 only on all the evidence, 0 on any against it, and not sent while it is not known."""
    assert verdict(alive, ready, complaints) is expected
