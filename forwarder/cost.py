"""The cost guard: what polling `/health` costs, whether it may be polled now, and what to tell the operator.

`GET /health` makes a real, billed call to every deployment, every time, unless the proxy runs its health checks in the
background (LITELLM.md section 3, measured on five releases). Pure: an `Account` in, an `Account` out; the poller
stores it with the batch, and **before** the call too, so that an agent that crashes in a loop cannot spend twice.
"""

import re
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

import msgspec

from forwarder.codec import Codec
from forwarder.normalize.reading import Deployment, Reading

CALLS_IF_FAILING: Final = 3  # the SDK's retries on 429, 5xx and time-outs, measured
# Failures that are not retried: one call each, measured for 401 and 404.
ANSWERED_ONCE: Final = frozenset(
    {
        "authentication",
        "permission_denied",
        "missing_credentials",
        "not_found",
        "bad_request",
        "content_policy",
        "context_window",
    }
)
# Nobody generates a completion this fast over a network; a proxy that reads its own results does (6 to 25 ms).
FAST: Final = 0.1  # seconds
FAST_PER_DEPLOYMENT: Final = 0.001  # seconds more for each deployment that is written into the reply
# Models that answer without generating, and so may be this fast when really called: they prove nothing.
NOT_GENERATING: Final = re.compile(r"embed|rerank|moderation|whisper|tts|speech|transcri|image|dall-e", re.IGNORECASE)
STREAK: Final = 3  # replies in a row before speed is believed, and slow ones before it is no longer
DAY: Final = 86400.0
FAR_OFF: Final = timedelta(days=2)


class Account(msgspec.Struct, frozen=True, array_like=True):
    """What `/health` of one target has cost so far; stored in the spool. Append fields only.

    opened: ns UTC, when the agent first saw the target; day: the UTC day that `spent` counts, as YYYY-MM-DD;
    spent: upstream calls that day; total: calls since `opened`; per_poll: what the last poll cost, None if unknown;
    deployments: how many the proxy has, None if unknown; last: ns UTC of the last poll's start;
    background: the proxy checks by itself; certain: it said so (speed alone is not certain);
    fast, slow: replies of that kind in a row; told: the day on which the operator was told that the budget is spent;
    booked: what the poll in flight, or the last one that was cut off, was taken to cost;
    before, before_spent: the day from which the clock jumped far ahead, and what was spent on it, should it jump back;
    reported, reported_at: the total that the last stored point of litellm.probe.billed_calls said, and when (ns UTC).
    """

    opened: int
    day: str = ""
    spent: int = 0
    total: int = 0
    per_poll: int | None = None
    deployments: int | None = None
    last: int = 0
    background: bool = False
    certain: bool = False
    fast: int = 0
    slow: int = 0
    told: str = ""
    reported: int = 0
    reported_at: int = 0
    booked: int = 0
    before: str = ""
    before_spent: int = 0


_NEVER_LEFT: Final[dict[str, Any]] = {"before": "", "before_spent": 0}
_codec: Final = Codec(Account, "a cost account")
encode: Final = _codec.encode
decode: Final = _codec.decode  # raises CodecError


class Budget(msgspec.Struct, frozen=True):
    """The configuration's side. `per_day` None: unlimited. `background`: auto, or the operator knows: on, off."""

    interval: float  # seconds between billed polls
    cheap_interval: float  # seconds between polls that cost nothing
    per_day: int | None
    background: str = "auto"


def free(account: Account, budget: Budget) -> bool:
    """True when a poll of /health is not billed."""
    return budget.background == "on" or (budget.background == "auto" and account.background)


def due_in(account: Account, budget: Budget, now: int) -> float:
    """Seconds until /health may be polled again by the clock (the budget is another matter). Survives restarts."""
    interval = budget.cheap_interval if free(account, budget) else budget.interval
    # Ticks come a little early or late; a poll must not slip a whole tick for that.
    slack = min(budget.cheap_interval / 2, interval / 10)
    return max(0.0, interval - slack - (now - account.last) / 1e9)


def today(account: Account, now: int) -> Account:
    """The account with `spent` counting the UTC day of `now`.

    A clock that goes back neither gives the budget again nor lets a poll come early: the day stays until it is over,
    and the interval begins anew. Only a day that is far off was never right, and is corrected, with what was spent on
    it, and before it where the clock jumps back to the day from which it came.
    """
    if now < account.last:
        account = msgspec.structs.replace(account, last=now)
    today = datetime.fromtimestamp(now // 1_000_000_000, UTC).date()
    day = date.fromisoformat(account.day) if account.day else None
    if day is None or day < today:
        far = day is not None and today - day > FAR_OFF
        # Of several jumps ahead the first is the one that began on a right day.
        spent = account.before_spent + account.spent if account.before else account.spent
        kept = {"before": account.before or account.day, "before_spent": spent} if far else _NEVER_LEFT
        return msgspec.structs.replace(account, day=today.isoformat(), spent=0, **kept)
    if day - today > FAR_OFF:
        again = account.before and today <= date.fromisoformat(account.before)
        spent = account.spent + (account.before_spent if again else 0)
        return msgspec.structs.replace(account, day=today.isoformat(), spent=spent, **_NEVER_LEFT)
    return account


def expected(account: Account) -> int:
    """What the next poll is taken to cost: as the last, or one call a deployment if that is more; at least one."""
    return max(1, account.per_poll or 0, account.deployments or 0)


def remaining(account: Account, budget: Budget) -> int | None:
    return None if budget.per_day is None else max(0, budget.per_day - account.spent)


def affordable(account: Account, budget: Budget) -> bool:
    """True when the budget covers one more poll."""
    left = remaining(account, budget)
    return free(account, budget) or left is None or expected(account) <= left


def charge(account: Account, budget: Budget, now: int) -> Account:
    """Before a poll: book what it is expected to cost."""
    cost = 0 if free(account, budget) else expected(account)
    spent, total = account.spent + cost, account.total + cost
    return msgspec.structs.replace(account, spent=spent, total=total, booked=cost, last=now)


def correct(account: Account, budget: Budget, reading: Reading, elapsed: float) -> Account:
    """After a poll: replace what was booked by what the reply shows, and learn whether the proxy checks by itself.

    A proxy that refused us (401), or that was never reached, called nobody. One that did not answer in time, or whose
    reply could not be read, called everybody as far as we know: the booking stands.
    """
    booked = account.booked
    account = learn(account, reading, elapsed)
    if free(account, budget):
        actual = 0
    elif reading.deployments is not None:
        actual = sum(calls(deployment) for deployment in reading.deployments)
        account = msgspec.structs.replace(account, per_poll=actual, deployments=len(reading.deployments))
    elif reading.error in NOT_CALLED or reading.absent or reading.background:
        actual = 0
    else:
        actual = booked
    spent, total = max(0, account.spent + actual - booked), account.total + actual - booked
    return msgspec.structs.replace(account, spent=spent, total=total, booked=0)


# Failures from before a deployment can have been called. A 429 or 408 may come from after.
NOT_CALLED: Final = frozenset({"dns", "refused", "proxy", "redirect", "auth", "not_found"})


def calls(deployment: Deployment) -> int:
    """Estimate of the upstream calls that one health check of it makes, rather too high. (1.106.2 was seen
    to call each of 200 deployments twice in the first poll after its start, and once in every later one.)
    """
    return 1 if deployment.up or deployment.error_type in ANSWERED_ONCE else CALLS_IF_FAILING


def learn(account: Account, reading: Reading, elapsed: float) -> Account:
    """Does the proxy check in the background? An empty object says so for certain; otherwise
    a few replies in a row that list a healthy generating model faster than one could answer.
    """
    if reading.background:
        return msgspec.structs.replace(account, background=True, certain=True, slow=0)
    if not any(d.up and not NOT_GENERATING.search(d.model) for d in reading.deployments or ()):
        return account
    if elapsed < FAST + FAST_PER_DEPLOYMENT * len(reading.deployments or ()):
        fast = account.fast + 1
        return msgspec.structs.replace(account, fast=fast, slow=0, background=account.background or fast >= STREAK)
    slow = account.slow + 1
    # Certain knowledge outlives a slow reply or two (a busy proxy), but not a restart without background checks.
    keep = account.background and account.certain and slow < STREAK
    return msgspec.structs.replace(account, fast=0, slow=slow, background=keep, certain=keep)


def arithmetic(account: Account, budget: Budget) -> str:
    """The warning at start, in one sentence or three."""
    polls = max(1, int(DAY // budget.interval))
    text = f"every poll of /health makes a real, billed call to every deployment: {polls:,} polls a day"
    if account.deployments is None:
        text += " x the number of deployments, which is not known yet"
    else:
        text += (
            f" x {account.deployments:,} deployments = {polls * account.deployments:,} calls a day, up to "
            f"{polls * account.deployments * CALLS_IF_FAILING:,} while they fail"
        )
    text += f"; a failing deployment costs up to {CALLS_IF_FAILING} calls"
    if budget.per_day is None:
        return text + "; there is no budget"
    text += f"; the budget is {budget.per_day:,} calls a day"
    if account.deployments:
        affords = budget.per_day // max(1, expected(account))
        if affords < polls:
            text += f", enough for {affords:,} of these polls: /health will stop before the day ends"
    return text
