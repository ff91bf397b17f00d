"""The cost guard: what it books, what it allows, what it believes about background checks."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwarder import cost
from forwarder.cost import Account, Budget
from forwarder.normalize.reading import Deployment, Reading

SECOND = 1_000_000_000
NOON = 1_763_899_200 * SECOND  # 2025-11-23T12:00:00Z
BUDGET = Budget(interval=300.0, cheap_interval=15.0, per_day=100)


def deployment(number: int, error: str | None = None, model: str = "openai/gpt-4o") -> Deployment:
    return Deployment(id=str(number), model=model, provider=None, up=error is None, error_type=error)


def listing(*errors: str | None, model: str = "openai/gpt-4o") -> Reading:
    return Reading(deployments=tuple(deployment(n, e, model) for n, e in enumerate(errors)))


@pytest.mark.parametrize(
    ("error", "calls"),
    [(None, 1), ("authentication", 1), ("not_found", 1), ("rate_limit", 3), ("timeout", 3), ("other", 3)],
)
def test_a_failing_deployment_costs_up_to_three_calls(error: str | None, calls: int) -> None:
    """401 and 404 are answered once; 429, 5xx and time-outs are retried by the proxy's SDK (measured)."""
    assert cost.calls(deployment(0, error)) == calls


def test_a_poll_is_booked_before_it_is_made_and_corrected_after() -> None:
    """An agent killed in the middle of a poll has already booked it."""
    account = cost.today(Account(opened=1, deployments=5), NOON)
    booked = cost.charge(account, BUDGET, NOON)
    assert (booked.spent, booked.total, booked.last) == (5, 5, NOON)
    corrected = cost.correct(booked, BUDGET, listing(None, None, "rate_limit", "authentication"), elapsed=4.0)
    assert (corrected.spent, corrected.total, corrected.per_poll, corrected.deployments) == (6, 6, 6, 4)


def test_what_is_given_back_is_what_was_booked() -> None:
    """Whatever else is learnt while the poll is in flight."""
    booked = cost.charge(Account(opened=1), BUDGET, NOON)
    assert booked.spent == 1
    meanwhile = msgspec.structs.replace(booked, deployments=17)
    assert cost.correct(meanwhile, BUDGET, listing(None, None), elapsed=2.0).spent == 2
    assert cost.correct(meanwhile, BUDGET, Reading(error="timeout"), elapsed=90.0).spent == 1


@pytest.mark.parametrize("error", ["auth", "refused", "dns", "redirect"])
def test_a_proxy_that_refused_us_called_nobody(error: str) -> None:
    """What is booked is given back when the reply shows that no deployment was called."""
    booked = cost.charge(Account(opened=1, deployments=5), BUDGET, NOON)
    assert cost.correct(booked, BUDGET, Reading(error=error), elapsed=0.01).spent == 0


@pytest.mark.parametrize(
    "error", ["timeout", "connection", "tls", "rate_limited", "http_4xx", "http_5xx", "malformed", "too_large"]
)
def test_a_poll_without_a_readable_answer_stays_booked(error: str) -> None:
    """The deployments were called all the same."""
    booked = cost.charge(Account(opened=1, deployments=5), BUDGET, NOON)
    assert cost.correct(booked, BUDGET, Reading(error=error), elapsed=90.0).spent == 5


def test_the_budget_stops_before_it_is_exceeded() -> None:
    """A poll that might cost more than what is left is not made."""
    account = Account(opened=1, per_poll=30, spent=60)
    assert cost.affordable(account, BUDGET)
    assert not cost.affordable(msgspec.structs.replace(account, spent=71), BUDGET)
    assert cost.affordable(msgspec.structs.replace(account, spent=71), Budget(300, 15, None))


def test_a_new_utc_day_starts_a_new_budget() -> None:
    """`spent` is of a day, `total` for ever."""
    account = cost.today(Account(opened=1, spent=0), NOON)
    account = msgspec.structs.replace(account, spent=100, total=100)
    assert cost.today(account, NOON + 11 * 3600 * SECOND).spent == 100
    tomorrow = cost.today(account, NOON + 12 * 3600 * SECOND)
    assert (tomorrow.spent, tomorrow.total) == (0, 100)


def test_a_zero_budget_allows_only_what_is_free() -> None:
    """`max_billed_calls_per_day = 0` never pays."""
    never = Budget(300, 15, 0)
    assert not cost.affordable(Account(opened=1), never)
    assert cost.affordable(Account(opened=1, background=True), never)


def test_an_empty_object_proves_background_checks() -> None:
    """Only a proxy that checks in the background answers `{}` (before its first cycle); the booking is given back."""
    booked = cost.charge(Account(opened=1, deployments=5), BUDGET, NOON)
    after = cost.correct(booked, BUDGET, Reading(background=True), elapsed=0.02)
    assert after.background
    assert after.certain
    assert after.spent == 0
    assert cost.due_in(after, BUDGET, NOON + 15 * SECOND) == 0
    assert 250 < cost.due_in(booked, BUDGET, NOON + 15 * SECOND) < 285


def test_speed_is_believed_after_a_streak_only() -> None:
    """One fast reply may be luck."""
    account = Account(opened=1)
    for _ in range(cost.STREAK - 1):
        account = cost.learn(account, listing(None), elapsed=0.02)
        assert not account.background
    assert cost.learn(account, listing(None), elapsed=0.02).background


def test_speed_proves_nothing_without_a_healthy_generating_model() -> None:
    """A refused key comes back fast, and an embedding may."""
    account = Account(opened=1)
    for _ in range(10):
        account = cost.learn(account, listing("authentication"), elapsed=0.02)
        account = cost.learn(account, listing(None, model="openai/text-embedding-3-small"), elapsed=0.02)
    assert not account.background


def test_a_slow_reply_takes_back_what_speed_suggested() -> None:
    """And it is charged for."""
    account = Account(opened=1, background=True, fast=9)
    after = cost.correct(account, BUDGET, listing(None, None), elapsed=3.0)
    assert not after.background
    assert after.spent == 2


def test_certain_knowledge_survives_one_slow_reply_but_not_a_streak() -> None:
    """A busy proxy is slow now and then; one restarted without background checks always is."""
    account = Account(opened=1, background=True, certain=True)
    for _ in range(cost.STREAK - 1):
        account = cost.learn(account, listing(None), elapsed=3.0)
        assert account.background
    assert not cost.learn(account, listing(None), elapsed=3.0).background


def test_the_operator_knows_better() -> None:
    """`background = "off"` bills what looks free, `"on"` polls freely what looks billed."""
    free_looking = Account(opened=1, background=True, certain=True)
    assert not cost.free(free_looking, Budget(300, 15, 100, background="off"))
    assert cost.free(Account(opened=1), Budget(300, 15, 100, background="on"))


def test_a_clock_set_back_neither_silences_health_nor_hurries_it() -> None:
    """The interval begins anew: the last poll cannot have been in the future, nor was there none."""
    back = NOON - 3600 * SECOND
    account = cost.today(Account(opened=1, last=NOON, day="2025-11-23"), back)
    assert 200 < cost.due_in(account, BUDGET, back) < 300
    assert cost.due_in(account, BUDGET, back + 300 * SECOND) == 0


def test_a_day_that_comes_again_has_no_new_budget() -> None:
    """A clock that swings over midnight cannot be paid for twice."""
    day = 86_400 * SECOND
    account = msgspec.structs.replace(cost.today(Account(opened=1), NOON + day), spent=100)
    for now in (NOON, NOON + day, NOON, NOON + day):
        account = cost.today(account, now)
        assert account.spent == 100
    assert cost.today(account, NOON + 2 * day).spent == 0


def test_a_day_far_off_is_corrected_with_what_was_spent() -> None:
    """A clock that was years ahead must not stop /health until then."""
    account = Account(opened=1, day="2031-01-01", spent=50)
    assert (cost.today(account, NOON).day, cost.today(account, NOON).spent) == ("2025-11-23", 50)
    assert cost.today(cost.today(account, NOON), NOON + 86_400 * SECOND).spent == 0


def test_a_clock_that_jumps_far_ahead_and_back_gives_no_second_budget() -> None:
    """However often it does, and whatever is spent meanwhile; a day that is really new gives one."""
    far = 30 * 86_400 * SECOND
    account = msgspec.structs.replace(cost.today(Account(opened=1), NOON), spent=100)
    for number in range(1, 5):
        account = cost.today(account, NOON + number * far)
        assert account.spent == 0
        account = cost.today(msgspec.structs.replace(account, spent=7), NOON)
        assert (account.day, account.spent) == ("2025-11-23", 100 + 7 * number)
    for number in range(1, 5):
        account = cost.today(account, NOON + number * far)
    assert cost.today(account, NOON).spent == 128
    assert cost.today(cost.today(account, NOON), NOON + 86_400 * SECOND).spent == 0


def test_an_agent_that_was_off_for_days_has_a_new_budget() -> None:
    """And keeps to it when the clock is then set back by hours."""
    account = msgspec.structs.replace(cost.today(Account(opened=1), NOON), spent=100)
    later = NOON + 5 * 86_400 * SECOND
    account = cost.today(account, later)
    assert account.spent == 0
    assert cost.today(msgspec.structs.replace(account, spent=5), later - 86_400 * SECOND).spent == 5


def test_an_empty_listing_makes_the_next_poll_no_cheaper_than_one_call() -> None:
    """Nor does a last poll that was cheap outweigh what model_info counts."""
    assert cost.expected(Account(opened=1, per_poll=0)) == 1
    assert cost.expected(Account(opened=1, per_poll=2, deployments=300)) == 300


def test_the_arithmetic_names_the_numbers() -> None:
    """Polls a day, deployments, product, threefold, budget, and that it will not last."""
    text = cost.arithmetic(Account(opened=1, deployments=17), Budget(300, 15, 1000))
    for part in (
        "288 polls a day",
        "17 deployments",
        "4,896 calls",
        "14,688",
        "up to 3 calls",
        "1,000",
        "58 of these",
    ):
        assert part in text
    assert "not known yet" in cost.arithmetic(Account(opened=1), BUDGET)


errors = st.none() | st.sampled_from(["auth", "timeout", "refused", "malformed"])
readings = st.one_of(
    st.builds(Reading, error=errors, background=st.none() | st.just(True)),
    st.lists(st.none() | st.sampled_from(["timeout", "authentication"]), max_size=8).map(lambda e: listing(*e)),
)


@given(st.lists(st.tuples(readings, st.floats(0, 100), st.integers(0, 90_000)), max_size=40))
def test_the_total_never_shrinks_from_one_report_to_the_next(polls: list[tuple[Reading, float, int]]) -> None:
    """litellm.probe.billed_calls is a monotonic sum; a day's budget is never overspent by what was known before."""
    account, now, reported = Account(opened=NOON), NOON, 0
    for reading, elapsed, pause in polls:
        now += pause * SECOND
        account = cost.today(account, now)
        if not cost.affordable(account, BUDGET):
            continue
        before = account.spent
        booked = cost.charge(account, BUDGET, now)
        assert booked.spent <= 100 or cost.free(account, BUDGET)
        account = cost.correct(booked, BUDGET, reading, elapsed)
        assert account.total >= reported
        assert account.spent >= before
        reported = account.total
