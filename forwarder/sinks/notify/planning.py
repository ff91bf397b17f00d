"""When something is to be told, and what it is.

Everything that may be told at a time goes into one message: whatever is new has waited for `group`, so that what fails
together is told together. Nothing is told of a target under maintenance before that ends, nor anything while the cap
per hour is reached; what gathers meanwhile comes in one message at the end.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from msgspec.structs import replace

from forwarder.sinks.notify.memory import Memory, News, Outage
from forwarder.sinks.notify.rules import SECOND, Rules

HOUR: Final = 3600 * SECOND
STALE: Final = HOUR  # what is over for longer before it could be told waits for the next message


@dataclass(frozen=True, slots=True)
class Plan:
    """The content of one message. By key of the memory: `new` began, `over` ended, `lasting` are reminded of,
    `flapping` was recognised, `steady` has stopped; `flips` of what flaps. `unlisted` found no room in the memory.
    `held_since`: since when the cap kept the message back (ns UTC, 0: it did not).
    `capped_until`: this message reaches the cap, which holds the next ones back until then (0: it does not).
    """

    now: int
    new: dict[str, Outage]
    over: dict[str, Outage]
    lasting: dict[str, Outage]
    flapping: dict[str, Outage]
    steady: dict[str, Outage]
    news: tuple[News, ...]
    unlisted: int
    flips: dict[str, tuple[int, ...]]
    held_since: int = 0
    capped_until: int = 0

    @property
    def anything(self) -> bool:
        return bool(self.new or self.over or self.lasting or self.flapping or self.steady or self.news)


def wait(memory: Memory, rules: Rules, now: int) -> float | None:
    """Seconds until a message is due, 0 or less: now; None while there is nothing to wait for."""
    due = min((time for time, _ in _triggers(memory, rules, _quiet(memory, rules, now), now)), default=None)
    if due is None:
        return None
    return (max(due, _free(memory, rules, now)) - now) / SECOND


def plan(memory: Memory, rules: Rules, now: int, *, last: bool = False) -> Plan | None:
    """What to tell now; None: nothing. `last`: do not wait for what else may happen (the group)."""
    quiet = _quiet(memory, rules, now)
    triggers = list(_triggers(memory, rules, quiet, now))
    due = min((time for time, _ in triggers), default=None)
    free = _free(memory, rules, now)
    if due is None or free > now:
        return None
    if due > now and not (last and any(grouped for _, grouped in triggers)):
        return None
    audible = {key: one for key, one in memory.outages.items() if one.target not in quiet}
    steady = {key: one for key, one in audible.items() if one.flapping and _steady_at(memory, rules, key, one) <= now}
    plain = {key: one for key, one in audible.items() if not one.flapping}
    told = Plan(
        now,
        new={key: one for key, one in plain.items() if not one.told and not one.ended},
        over={key: one for key, one in plain.items() if one.ended},
        lasting={key: one for key, one in plain.items() if _reminder_soon(one, rules, now)},
        flapping={key: one for key, one in audible.items() if one.flapping and not one.named and key not in steady},
        steady=steady,
        news=tuple(one for one in memory.news if one.target not in quiet),
        unlisted=memory.unlisted,
        flips={key: memory.flips.get(key, ()) for key, one in audible.items() if one.flapping},
        held_since=due if due < free else 0,
        capped_until=_capped_until(memory, rules, now),
    )
    return told if told.anything else None


def told(memory: Memory, plan: Plan, rules: Rules, thread: str) -> Memory:
    """The memory after `plan` was told, in the message that is known as `thread`."""
    outages = dict(memory.outages)
    for key, one in {**plan.new, **plan.lasting, **plan.flapping}.items():
        first = {"told": plan.now, "thread": thread} if not one.told else {}
        outages[key] = replace(one, **first, reminded=plan.now, named=plan.now if key in plan.flapping else one.named)
    for key, one in plan.steady.items():
        if not one.ended:
            first = {"told": plan.now, "thread": thread} if not one.told else {}
            outages[key] = replace(one, **first, reminded=plan.now, flapping=0, named=0)
    for key in [*plan.over, *(key for key, one in plan.steady.items() if one.ended)]:
        del outages[key]
    # What stopped flapping begins to count anew.
    flips = {key: times for key, times in memory.flips.items() if key not in plan.steady}
    news = tuple(one for one in memory.news if one not in plan.news)
    sent = (*memory.sent, plan.now)[-rules.max_per_hour :]
    return Memory(outages, news, flips, sent)


def _triggers(memory: Memory, rules: Rules, quiet: Mapping[str, int], now: int) -> Iterator[tuple[int, bool]]:
    """When each thing is to be told (ns UTC), and whether that is after a moment for others to join it."""
    group = int(rules.group * SECOND)
    for key, one in memory.outages.items():
        for time, grouped in _times(memory, rules, key, one, now):
            yield max(time + group if grouped else time, quiet.get(one.target, 0)), grouped
    for news in memory.news:
        if news.severity != "info" or now - news.seen < STALE:
            yield max(news.seen + group, quiet.get(news.target, 0)), True


def _times(memory: Memory, rules: Rules, key: str, one: Outage, now: int) -> Iterator[tuple[int, bool]]:
    if one.flapping:
        if not one.named:
            yield one.flapping, True
        yield _steady_at(memory, rules, key, one), False
    elif one.ended:
        if one.told or now - one.ended_seen < STALE:
            yield one.ended_seen, True
    elif not one.told:
        yield one.seen, True
    elif (at := _reminder_at(one, rules)) is not None:
        yield at, False


def _steady_at(memory: Memory, rules: Rules, key: str, one: Outage) -> int:
    return memory.flips.get(key, (one.flapping,))[-1] + int(rules.flapping_within * SECOND)


def _reminder_at(one: Outage, rules: Rules) -> int | None:
    if rules.remind is None or not one.told or one.ended or one.flapping:
        return None
    return max(one.told, one.reminded) + int(rules.remind * SECOND)


def _reminder_soon(one: Outage, rules: Rules, now: int) -> bool:
    """Also shortly before its time, so that what failed about together is reminded of together."""
    at = _reminder_at(one, rules)
    return at is not None and at - now <= (rules.remind or 0.0) * SECOND / 10


def _free(memory: Memory, rules: Rules, now: int) -> int:
    """From when on the cap lets another message through; 0: it does."""
    sent = memory.sent[-rules.max_per_hour :]
    if len(sent) < rules.max_per_hour or sent[0] > now:  # a clock may have been set back
        return 0
    return sent[0] + HOUR


def _capped_until(memory: Memory, rules: Rules, now: int) -> int:
    """Until when there is no further message, should one go now; 0: the cap is not reached by it."""
    after = [one for one in (*memory.sent, now) if now - one < HOUR]
    return after[-rules.max_per_hour] + HOUR if len(after) >= rules.max_per_hour else 0


def _quiet(memory: Memory, rules: Rules, now: int) -> dict[str, int]:
    """The targets under maintenance, and until when."""
    targets = {one.target for one in memory.outages.values()} | {one.target for one in memory.news}
    return {target: end for target in targets if (end := rules.quiet_until(target, now)) is not None}
