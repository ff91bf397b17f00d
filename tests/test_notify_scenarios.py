"""What people are told, and when: the notify sink behind a real pump and a real spool, in a time that jumps."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from notify_support import (
    AWAY,
    HOUR,
    MINUTE,
    START,
    WRONG,
    Stage,
    batch,
    database,
    down,
    healthy,
    lost,
    mixed,
    point,
    ready,
    release,
    removed,
    staged,
    told,
    unhealthy,
    unready,
    up,
)
from spool_stores import SECOND, account

from forwarder.sinks.notify.rules import Window

NIGHT = Window("0 2 * * *", 2 * HOUR, ZoneInfo("Europe/Berlin"))


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with staged(tmp_path) as made:
        yield made


# --- an outage and its end ----------------------------------------------------------------------------------------


async def test_an_outage_is_told_after_the_group_and_its_end_names_its_length(stage: Stage) -> None:
    """One message when it begins, one when it ends; nothing in between."""
    await stage.happens(down())
    await stage.passes(15)
    assert stage.people.take() == []
    await stage.passes(15)
    (first,) = stage.people.take()
    assert first.subject == "[LiteLLM] eu: proxy down"
    assert "eu: the proxy is down" in first.text
    assert "Since: 2026-03-10 13:00:00 CET (30 seconds ago)" in first.text
    assert "refused: nothing listens there" in first.text
    assert "https://status.example.com/" in first.text
    await stage.passes(12 * MINUTE - 30)
    await stage.happens(up())
    await stage.passes(MINUTE)
    (second,) = stage.people.take()
    assert second.subject == "[LiteLLM] eu: proxy up again"
    assert "eu: the proxy is up again after 12 minutes" in second.text
    assert "from 2026-03-10 13:00:00 CET to 2026-03-10 13:12:00 CET" in second.text
    assert second.follows == [first.id]
    await stage.passes(2 * HOUR, 300)
    assert stage.people.take() == []


async def test_a_storm_is_one_message(stage: Stage) -> None:
    """Two hundred deployments that fail together, and come back together, are two messages."""
    for number in range(0, 200, 20):
        await stage.happens(*(unhealthy(n, error="rate_limit", status=429) for n in range(number, number + 20)))
        stage.clock.tick(1)
    await stage.passes(MINUTE)
    (first,) = stage.people.take()
    assert first.subject == "[LiteLLM] eu: deployments unhealthy"
    assert "eu: 200 deployments are unhealthy" in first.text
    assert "rate_limit: the upstream limits the rate or the quota is used up (429); HTTP status 429" in first.text
    assert "and 180 more" in first.text
    assert len(first.text) < 5000
    await stage.passes(10 * MINUTE)
    await stage.happens(*(healthy(n) for n in range(200)))
    await stage.passes(MINUTE)
    (second,) = stage.people.take()
    assert "eu: 200 deployments are healthy again" in second.text


async def test_what_fails_in_different_ways_is_told_apart(stage: Stage) -> None:
    """By class of failure, and with everything else that happened, in one message."""
    await stage.happens(unhealthy(1, error="timeout"), unhealthy(2, error="authentication"), unhealthy(3), database())
    await stage.happens(release(), lost(), target="eu")
    await stage.passes(MINUTE)
    (message,) = stage.people.take()
    assert message.severity == "error"
    assert "eu: 2 deployments are unhealthy" in message.text
    assert "eu: deployment gpt-2 (openai/gpt-2) [d002-0123456789] is unhealthy" in message.text
    assert "authentication: the upstream refused the credentials (401)" in message.text
    assert "Keys, teams, budgets" in message.text
    assert "12 events of datadog." in message.text
    assert "1.2" not in message.text, "a change below the severity"


async def test_a_deployment_that_is_removed_ends_its_outage(stage: Stage) -> None:
    await stage.happens(unhealthy(1))
    await stage.passes(MINUTE)
    stage.people.take()
    await stage.happens(removed(1), removed(2))
    await stage.passes(MINUTE)
    (message,) = stage.people.take()
    assert "deployment gpt-1 (openai/gpt-1) [d001-0123456789] was removed after 1 minute" in message.text
    assert "gpt-2" not in message.text


async def test_every_pair_of_changes_is_an_outage_and_its_end(stage: Stage) -> None:
    """Whatever the catalog can say is wrong, and is right again."""
    await stage.happens(down(), unready(), database(), mixed(), unhealthy())
    await stage.passes(10 * MINUTE)
    (first,) = stage.people.take()
    assert first.text.count("Since: ") == 5
    await stage.happens(up(), ready(), database(back=True), mixed(back=True), healthy())
    await stage.passes(MINUTE)
    (second,) = stage.people.take()
    assert second.text.count(" after 10 minutes") == 5
    assert second.good


async def test_only_what_is_wanted_is_told(stage: Stage) -> None:
    """By severity, kind and target; the end of what was not told is not told either."""
    await stage.kill()
    stage.begin(severity="error", changes=("litellm.proxy.*",), targets=("prod-*",))
    await stage.happens(unhealthy(), database(), down(), target="prod-1")
    await stage.happens(down(), target="test-1")
    await stage.passes(MINUTE)
    (message,) = stage.people.take()
    assert message.subject == "[LiteLLM] prod-1: proxy down"
    assert "test-1" not in message.text
    assert "unhealthy" not in message.text
    await stage.happens(healthy(), database(back=True), target="prod-1")
    await stage.happens(up(), target="test-1")
    await stage.passes(MINUTE)
    assert stage.people.take() == []
    await stage.happens(up(), target="prod-1")
    await stage.passes(MINUTE)
    assert stage.people.subjects() == ["prod-1: proxy up again"]


async def test_points_are_taken_without_a_word(stage: Stage) -> None:
    """However many there are: nothing is sent, and none is left pending."""
    await stage.passes(10 * MINUTE)
    assert stage.people.attempts == 0
    assert (await account(stage.spool, "mail")).pending == 0


# --- reminders ----------------------------------------------------------------------------------------------------


async def test_reminders_are_off_by_default_and_come_as_asked(stage: Stage) -> None:
    """Together for what failed about together, until it is over."""
    await stage.happens(down())
    await stage.passes(9 * HOUR, 600)
    assert len(stage.people.take()) == 1
    await stage.kill()
    stage.begin(remind=4 * HOUR)
    await stage.passes(MINUTE)
    (reminder,) = stage.people.take()
    assert reminder.subject == "[LiteLLM] eu: proxy still down"
    assert "eu: the proxy is still down" in reminder.text
    assert "(9 hours ago)" in reminder.text
    await stage.passes(3 * HOUR, 600)
    assert stage.people.take() == []
    await stage.passes(HOUR, 600)
    assert stage.people.subjects() == ["eu: proxy still down"]
    await stage.happens(up())
    await stage.passes(10 * HOUR, 600)
    assert stage.people.subjects() == ["eu: proxy up again"]


async def test_a_target_that_is_not_watched_any_more_is_forgotten(stage: Stage) -> None:
    """Nobody is reminded for ever of a target that was taken out of the configuration."""
    await stage.kill()
    stage.begin(remind=4 * HOUR)
    await stage.happens(down(), target="old")
    await stage.passes(24 * HOUR, 600)
    assert len(stage.people.take()) == 6
    await stage.passes(48 * HOUR, 600)
    assert len(stage.people.take()) <= 1


# --- flapping -----------------------------------------------------------------------------------------------------


async def test_flapping_is_named_once_and_its_end_too(stage: Stage) -> None:
    """Not a message for each flip."""
    for _ in range(20):
        await stage.happens(unhealthy(1))
        await stage.passes(MINUTE)
        await stage.happens(healthy(1))
        await stage.passes(MINUTE)
    subjects = stage.people.subjects()
    assert subjects == [
        "eu: gpt-1 unhealthy",
        "eu: gpt-1 healthy again",
        "eu: gpt-1 unhealthy",
        "eu: gpt-1 healthy again",
        "eu: gpt-1 unhealthy",
        "eu: gpt-1 flapping",
    ]
    await stage.passes(28 * MINUTE)
    assert stage.people.take() == []
    await stage.passes(3 * MINUTE)
    (steady,) = stage.people.take()
    assert steady.subject == "[LiteLLM] eu: gpt-1 no longer flapping"
    assert "is no longer flapping: it is healthy again" in steady.text
    await stage.happens(unhealthy(1))
    await stage.passes(MINUTE)
    assert stage.people.subjects() == ["eu: gpt-1 unhealthy"]


async def test_what_stops_flapping_may_stay_down(stage: Stage) -> None:
    """That is said, and its end as well."""
    for _ in range(5):
        await stage.happens(unhealthy(1))
        stage.clock.tick(5)
        await stage.happens(healthy(1))
        stage.clock.tick(5)
    await stage.happens(unhealthy(1))
    await stage.passes(MINUTE)
    (message,) = stage.people.take()
    assert "Changed: 11 times since 2026-03-10 13:00:00 CET" in message.text
    assert "Now: unhealthy" in message.text
    await stage.passes(30 * MINUTE)
    (message,) = stage.people.take()
    assert "is no longer flapping: it is unhealthy" in message.text
    await stage.happens(healthy(1))
    await stage.passes(MINUTE)
    assert stage.people.subjects() == ["eu: gpt-1 healthy again"]


async def test_a_blip_within_the_group_is_no_flip_of_messages(stage: Stage) -> None:
    """Down, up and down again before anything was told: one outage, since its beginning."""
    await stage.happens(down())
    stage.clock.tick(5)
    await stage.happens(up())
    stage.clock.tick(5)
    await stage.happens(down())
    await stage.passes(MINUTE)
    (message,) = stage.people.take()
    assert "Since: 2026-03-10 13:00:00 CET" in message.text


# --- the cap ------------------------------------------------------------------------------------------------------


async def test_never_more_than_the_cap_and_then_a_summary(stage: Stage) -> None:
    """The message that reaches the cap says so; the next sums up what was held back."""
    await stage.kill()
    stage.begin(max_per_hour=3)
    for number in range(30):
        await stage.happens(unhealthy(number))
        await stage.passes(MINUTE)
    messages = stage.people.take()
    assert len(messages) == 3
    assert "limit per hour is reached" not in told(messages[:2])
    assert "limit per hour is reached: the next comes at 2026-03-10 14:00:30 CET" in messages[2].text
    await stage.passes(31 * MINUTE)
    (summary,) = stage.people.take()
    assert "27 deployments are unhealthy" in summary.text
    assert "Messages were held back from 2026-03-10 13:03:30 CET on" in summary.text


# --- maintenance --------------------------------------------------------------------------------------------------


async def test_maintenance_is_quiet_and_what_holds_at_its_end_is_told_then(stage: Stage) -> None:
    """In one message; what came and went within it is not told at all."""
    await stage.kill()
    stage.clock.now = START + int(13 * HOUR * SECOND)  # 02:00 in Berlin
    stage.begin(maintenance=[NIGHT])
    await stage.happens(down(), unhealthy(1), unhealthy(2))
    await stage.passes(HOUR)
    await stage.happens(up(), healthy(1))
    await stage.passes(30 * MINUTE)
    await stage.happens(database())
    await stage.passes(29 * MINUTE)
    assert stage.people.attempts == 0
    await stage.passes(2 * MINUTE)
    (message,) = stage.people.take()
    assert "gpt-2" in message.text
    assert "database is down" in message.text
    assert "gpt-1" not in message.text
    assert "the proxy" not in message.text.replace("this proxy", "")


async def test_an_outage_that_ends_in_maintenance_is_told_over_at_its_end(stage: Stage) -> None:
    """And so is one that began just before and could not be told."""
    await stage.kill()
    stage.clock.now = START + int(13 * HOUR * SECOND) - int(2 * MINUTE * SECOND)
    stage.begin(maintenance=[NIGHT])
    await stage.happens(down())
    await stage.passes(110)
    await stage.happens(unhealthy(1))
    assert stage.people.subjects() == ["eu: proxy down"]
    await stage.passes(20 * MINUTE)
    await stage.happens(up(), healthy(1))
    await stage.passes(HOUR)
    assert stage.people.take() == []
    await stage.passes(41 * MINUTE)
    (message,) = stage.people.take()
    assert "eu: the proxy is up again after 21 minutes" in message.text
    assert "was unhealthy for 20 minutes" in message.text


async def test_maintenance_of_one_target_leaves_the_others(stage: Stage) -> None:
    await stage.kill()
    stage.clock.now = START + int(13 * HOUR * SECOND)
    stage.begin(maintenance=[Window(NIGHT.start, NIGHT.duration, NIGHT.zone, ("eu-*",))])
    await stage.happens(down(), target="eu-1")
    await stage.happens(down(), target="us-1")
    await stage.passes(MINUTE)
    assert stage.people.subjects() == ["us-1: proxy down"]
    await stage.passes(2 * HOUR)
    assert stage.people.subjects() == ["eu-1: proxy down"]


# --- failures and restarts ----------------------------------------------------------------------------------------


async def test_a_mail_server_that_was_away_gets_one_message_of_what_still_matters(stage: Stage) -> None:
    """What began and ended meanwhile is in it as past; nothing is told twice."""
    await stage.happens(down())
    await stage.passes(MINUTE)
    stage.people.take()
    stage.people.failing = AWAY
    first = len(stage.clock.pauses)

    def mend() -> None:
        stage.people.failing = None

    stage.clock.at(first + 80, mend)  # pauses of a minute at most: more than an hour
    begun = stage.clock.now
    await stage.spool.put(batch(unhealthy(1, begun), unhealthy(2, begun), time=begun))
    later = begun + int(10 * MINUTE * SECOND)
    await stage.spool.put(batch(healthy(1, later), up(later), time=later))
    await stage.settled()
    await stage.passes(MINUTE)
    (message,) = stage.people.take()
    assert len(stage.clock.pauses) >= first + 80
    assert "is up again after 11 minutes" in message.text
    assert "deployment gpt-2 (openai/gpt-2) [d002-0123456789] is unhealthy" in message.text
    assert "deployment gpt-1 (openai/gpt-1) [d001-0123456789] was unhealthy for 10 minutes" in message.text
    assert (await account(stage.spool, "mail")).pending == 0
    await stage.passes(HOUR)
    assert stage.people.take() == []


async def test_what_is_long_over_waits_for_the_next_message(stage: Stage) -> None:
    """A short outage that could not be told in time is not worth a message of its own any more."""
    stage.people.failing = AWAY
    now = stage.clock.now
    await stage.kill()
    await stage.spool.put(batch(down(now), time=now))
    await stage.spool.put(batch(up(now + SECOND), time=now + SECOND))
    stage.clock.tick(2 * HOUR)
    stage.people.failing = None
    stage.begin()
    await stage.passes(10 * MINUTE)
    assert stage.people.take() == []
    await stage.happens(unhealthy(1))
    await stage.passes(MINUTE)
    (message,) = stage.people.take()
    assert "was down for 1 second" in message.text
    assert "gpt-1" in message.text


async def test_a_wrong_password_blocks_and_loses_nothing(stage: Stage) -> None:
    """The pump raises the alarm and tries slowly; the events are in the memory meanwhile."""
    stage.people.failing = WRONG
    states: list[str] = []

    def look() -> None:
        assert stage.pump is not None
        states.append(f"{stage.pump.status.state}: {stage.pump.status.reason}")
        stage.people.failing = None

    stage.clock.at(3, look)
    await stage.spool.put(batch(down(START - int(MINUTE * SECOND)), time=START))
    await stage.settled()
    assert states == [f"blocked: {WRONG.reason}"]
    assert stage.people.subjects() == ["eu: proxy down"]


async def test_a_restart_repeats_nothing_and_forgets_nothing(stage: Stage) -> None:
    """Neither what was told, nor what waited, nor when messages went."""
    await stage.happens(down())
    await stage.passes(MINUTE)
    assert stage.people.subjects() == ["eu: proxy down"]
    await stage.happens(unhealthy(1))
    await stage.kill()
    stage.begin()
    await stage.passes(MINUTE)
    assert stage.people.subjects() == ["eu: gpt-1 unhealthy"]
    await stage.kill()
    stage.begin()
    await stage.happens(up(), healthy(1))
    await stage.passes(MINUTE)
    (message,) = stage.people.take()
    assert len(message.follows) == 2
    assert "the proxy is up again after 2 minutes" in message.text


async def test_a_crash_between_sending_and_writing_down_repeats_one_message(stage: Stage) -> None:
    """That one, with the same id, so that a repeat can be recognised."""
    await stage.happens(down())
    stage.clock.tick(MINUTE)
    stage.spool.fail(settles=100)

    def crash() -> None:
        assert stage.running is not None
        stage.running.cancel()

    stage.clock.at(len(stage.clock.pauses) + 2, crash)
    await stage.spool.put(batch(point(stage.clock.now), time=stage.clock.now))
    assert stage.running is not None
    with pytest.raises(asyncio.CancelledError):
        await stage.running
    (before,) = stage.people.take()
    stage.spool.fail()
    stage.begin()
    await stage.passes(MINUTE)
    (after,) = stage.people.take()
    assert after.id == before.id
    await stage.passes(HOUR)
    assert stage.people.take() == []


async def test_a_stop_tells_what_has_not_waited_long_enough(stage: Stage) -> None:
    """Nobody is left to tell it later. What the next start finds was told."""
    await stage.happens(down())
    assert stage.people.take() == []
    assert await stage.stop()
    assert stage.people.subjects() == ["eu: proxy down"]
    stage.begin()
    await stage.passes(HOUR)
    assert stage.people.take() == []


async def test_a_stop_does_not_break_maintenance(stage: Stage) -> None:
    await stage.kill()
    stage.clock.now = START + int(13 * HOUR * SECOND)
    stage.begin(maintenance=[NIGHT])
    await stage.happens(down())
    assert await stage.stop()
    assert stage.people.attempts == 0
    stage.begin()
    await stage.passes(3 * HOUR, 60)
    assert stage.people.subjects() == ["eu: proxy down"]


async def test_a_sink_that_was_away_tells_what_still_holds(stage: Stage) -> None:
    """It reads all that waited before it speaks, however much that is."""
    await stage.kill()
    for minute in range(40):
        now = START + int(minute * MINUTE * SECOND)
        change = down(now) if minute % 2 == 0 else up(now)
        await stage.spool.put(batch(change, *(lost(now) for _ in range(minute == 0)), time=now))
    stage.clock.tick(3 * HOUR)
    stage.begin(flapping=100)
    await stage.passes(MINUTE)
    (message,) = stage.people.take()
    assert "12 events of datadog." in message.text
    assert "PROBLEMS" not in message.text
