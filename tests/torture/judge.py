"""What became of every event, from the evidence alone: pure, so that the judge itself can be tested.

The console is the witness: it is a sink like any other, its reader never fails, and what it printed, in its order, is
every event that was put. Each request that a receiver stored must be a run of consecutive events, whole and in the
right order; with that, event by event:

    it arrived      in a request that was stored, and was not refused there
    it is buried    a dead letter holds it, with a reason
    it is pending   the spool holds it
    it is nothing   to this sink, which makes nothing of it
    it is missing   and must be counted as expired or dropped, and have been old enough for that

It may have arrived twice only where the first time was in a request that its sender could not know of: the answer was
broken off, or the agent was killed, and it was the last before that.
"""

import itertools
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from backends.facts import Fact

from forwarder.events import Batch, Metric, encode

Expect = Callable[[Sequence[Batch]], list[Fact]]
Key = tuple[str, str, int]  # of a fact: name, attributes, time
SHOWN: Final = 3
SECOND: Final = 10**9  # ns
SLACK: Final = 5 * SECOND  # between the reading of a clock and what was made of it
LONGEST_GAP: Final = 600 * SECOND  # over which a counter's growth is told
LARGEST: Final = 5000  # events of one send of the console


@dataclass(frozen=True)
class Stored:
    """One request. `sure`: whoever sent it knows that it was stored. `life`: of which of the agent's processes it is.
    `refused`: so many of its facts, from the first on, the receiver said that it does not take. `clocks`: what the
    sender's clock may have shown (ns).
    """

    facts: Sequence[Fact]
    life: int = 0
    sure: bool = True
    refused: int = 0
    clocks: Sequence[int] = ()


@dataclass(frozen=True)
class Evidence:
    """Of one sink. `account` as `spool ledger --json` shows it; `letters` are its dead letters with their reasons, and
    `pending` what the spool holds for it. `cut`: the lives that ended in the middle of things. `newest`: the latest
    time (ns) that the agent's clock has shown; `max_age` in ns, past which an event may be given up. `ahead`: no time
    may be so many ns ahead of the sender's clock, or it is set back to that.
    """

    sink: str
    expect: Expect
    stored: Sequence[Stored]
    account: Mapping[str, Any]
    letters: Sequence[tuple[Batch, str]] = ()
    pending: Sequence[Batch] = ()
    cut: frozenset[int] = frozenset()
    newest: int = 0
    max_age: int | None = None
    ahead: int | None = None


@dataclass
class Verdict:
    """`findings` is empty where everything is as promised; `counts` is for people."""

    sink: str
    findings: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def find(self, wrong: object, what: str) -> None:
        if wrong:
            self.findings.append(f"{self.sink}: {what}")


def judge(witnessed: Sequence[Batch], evidence: Evidence) -> Verdict:
    """`witnessed`: every event once, each in a batch of its own, in the order in which they were put."""
    verdict = Verdict(evidence.sink)
    fates = _Fates(witnessed, evidence, verdict)
    account = evidence.account
    verdict.find(not account["adds_up"], f"the ledger does not add up: {dict(account)}")
    accepted = account["accepted"]
    verdict.find(accepted != len(witnessed), f"{accepted} events were accepted, and {len(witnessed)} are witnessed")
    fates.follow()
    fates.bury()
    fates.wait()
    fates.count()
    return verdict


class _Fates:
    """What became of each event, by its number in the order of putting."""

    def __init__(self, witnessed: Sequence[Batch], evidence: Evidence, verdict: Verdict) -> None:
        self.witnessed, self.evidence, self.verdict = witnessed, evidence, verdict
        self.facts = [evidence.expect([batch]) for batch in witnessed]
        self.before = [0]  # facts of all events before this one
        self.places: dict[Key, list[int]] = {}
        self.series: dict[tuple[str, str], list[int]] = {}
        for number, facts in enumerate(self.facts):
            self.before.append(self.before[-1] + len(facts))
            for fact in facts:
                self.places.setdefault(_key(fact), []).append(number)
                self.series.setdefault(_key(fact)[:2], []).append(number)
        self.arrived: dict[int, list[int]] = {}  # event → the requests that it was in
        self.refused: dict[int, list[int]] = {}  # the same, where the receiver did not take it
        self.letters: set[int] = set()
        self.reasons: Counter[str] = Counter()
        self.pending: set[int] = set()
        last = {each.life: number for number, each in enumerate(evidence.stored) if each.facts}
        self.killed = {number for life, number in last.items() if life in evidence.cut}
        self.unsure = {number for number, each in enumerate(evidence.stored) if not each.sure}

    # --- where requests stand in the order of putting ---------------------------------------------------------------

    def follow(self) -> None:
        """Each request to its run of events."""
        foreign: list[Fact] = []
        again: list[int] = []
        late: list[int] = []
        repeated: set[int] = set()
        run, top, newest = (0, 0), 0, -1
        for number, request in enumerate(self.evidence.stored):
            if not request.facts:
                continue
            found = self._run(request, run, repeatable=newest in self.killed | self.unsure)
            if found is None:
                foreign += request.facts
                continue
            run, newest = found, number
            for event in range(*run):
                if not self.facts[event]:
                    continue
                earlier = self.arrived.get(event, []) + self.refused.get(event, [])
                if any(each not in self.killed | self.unsure for each in earlier):
                    again.append(event)
                repeated.update(earlier)
                if not earlier and event < top:
                    late.append(event)
            self._note(number, request, run)
            top = max(top, run[1])
        find = self.verdict.find
        find(foreign, f"{len(foreign)} facts arrived that nobody put, or not as they were put: {foreign[:SHOWN]}")
        find(again, f"{len(again)} events arrived again that nobody had reason to send again: {self._shown(again)}")
        find(late, f"{len(late)} events arrived behind later ones: {self._shown(late)}")
        self.verdict.counts |= {
            "put": len(self.witnessed),
            "requests": len(self.evidence.stored),
            "sent again after a kill": len(repeated & self.killed),
            "sent again after no answer": len(repeated & self.unsure - self.killed),
        }

    def _note(self, number: int, request: Stored, run: tuple[int, int]) -> None:
        """Which of its events it takes and which it refuses."""
        refused = Counter(map(_key, request.facts[: request.refused]))
        for event in range(*run):
            if self.facts[event]:
                key = _key(self.facts[event][0])
                if refused[key]:
                    refused[key] -= 1
                    self.refused.setdefault(event, []).append(number)
                else:
                    self.arrived.setdefault(event, []).append(number)

    def _run(self, request: Stored, before: tuple[int, int], *, repeatable: bool) -> tuple[int, int] | None:
        """The events that it is made of: those behind the request before, or the same again, or further on where some
        were given up; anywhere else is told as what it is.
        """
        usual = (before[1], before[0]) if repeatable else (before[1],)
        for start in itertools.chain(usual, self._starts(request, before[1])):
            end = self._end(request, start)
            if end is not None:
                return start, end
        return None

    def _starts(self, request: Stored, cursor: int) -> Iterator[int]:
        """Where it may begin, those that come next first."""
        places = [self.places.get(_key(fact)) for fact in request.facts]
        first = places[0]
        if first is None:  # its time is not the event's
            first = self.series.get(_key(request.facts[0])[:2], [])
        elif all(places) and self.evidence.ahead is None:
            first = [*first, min(each[0] for each in places if each)]
        yield from sorted(each for each in first if each >= cursor)
        yield from sorted((each for each in first if each < cursor), reverse=True)

    def _end(self, request: Stored, start: int) -> int | None:
        while start < len(self.facts) and not self.facts[start]:
            start += 1
        if start >= len(self.facts):
            return None
        goal = self.before[start] + len(request.facts)
        end = bisect_left(self.before, goal)
        if end >= len(self.before) or self.before[end] != goal:
            return None
        plain = (fact for number in range(start, end) for fact in self.facts[number])
        if self._same(plain, request):
            return end
        # A backend may want them regrouped within a request.
        regrouped = self.evidence.ahead is None and self.evidence.expect(self.witnessed[start:end])
        return end if regrouped and self._same(iter(regrouped), request) else None

    def _same(self, expected: Iterator[Fact], request: Stored) -> bool:
        ahead = self.evidence.ahead
        if ahead is None:
            return all(fact == found for fact, found in zip(expected, request.facts, strict=True))
        latest = max(fact.time for fact in request.facts)
        if all(latest > clock + ahead + SECOND for clock in request.clocks):
            return False
        back = any(abs(latest - clock - ahead) <= SLACK for clock in request.clocks)
        return all(
            fact == found or (back and found.time == latest < fact.time and fact._replace(time=latest) == found)
            for fact, found in zip(expected, request.facts, strict=True)
        )

    # --- where the others are ---------------------------------------------------------------------------------------

    def bury(self) -> None:
        numbers = self._numbers(batch for batch, _ in self.evidence.letters)
        self.letters = {number for number in numbers if number is not None}
        find = self.verdict.find
        find(None in numbers, "a dead letter holds an event that nobody put")
        find(len(self.letters) < len(numbers), "an event is buried twice")
        find(not all(reason for _, reason in self.evidence.letters), "an event is buried without a reason")
        both = sorted(number for number in self.letters if self._certain(number))
        find(both, f"{len(both)} events are buried that the backend acknowledged: {self._shown(both)}")
        self.reasons = Counter(f"buried, because {reason}" for _, reason in self.evidence.letters)

    def wait(self) -> None:
        numbers = self._numbers(self.evidence.pending)
        self.pending = {number for number in numbers if number is not None}
        find = self.verdict.find
        account = self.evidence.account["pending"]
        find(account != len(numbers), f"{account} events are counted as pending, and the spool holds {len(numbers)}")
        find(None in numbers, "an event is pending that nobody put")
        both = sorted(number for number in self.pending if self._certain(number))
        find(both, f"{len(both)} events are pending that the backend acknowledged: {self._shown(both)}")

    def _numbers(self, batches: Iterable[Batch]) -> list[int | None]:
        known = {_identity(batch): number for number, batch in enumerate(self.witnessed)}
        single = (Batch(each.resource, event.time, (event,)) for each in batches for event in each.events)
        return [known.get(_identity(batch)) for batch in single]

    def _certain(self, number: int) -> bool:
        """Whether it arrived in a request that nobody has reason to send again."""
        return any(each not in self.killed | self.unsure for each in self.arrived.get(number, ()))

    def count(self) -> None:
        """The rest against the ledger."""
        account, evidence, find = self.evidence.account, self.evidence, self.verdict.find
        everything = range(len(self.witnessed))
        silent = {number for number in everything if not self.facts[number]}
        refused = self.refused.keys() - self.arrived.keys() - self.letters - self.pending
        known = self.arrived.keys() | silent | refused | self.letters | self.pending
        missing = [number for number in everything if number not in known]
        given_up = account["expired"] + account["dropped"]
        find(
            len(missing) > given_up,
            f"{len(missing)} events did not arrive, and {given_up} are counted as expired or dropped: "
            f"{self._shown(missing)}",
        )
        doubtful = [number for number in self.arrived if not self._certain(number)]
        # What a bound drops while it is being sent is counted as dropped, also where it arrives.
        most = len(missing) + len(silent) + len(doubtful) + account["dropped"]
        find(given_up > most, f"{given_up} events are counted as expired or dropped, and {most} at most can be")
        young = [
            number
            for number in missing
            if evidence.max_age is None or evidence.newest - self.witnessed[number].time + SLACK < evidence.max_age
        ]
        find(
            len(young) > account["dropped"],
            f"{len(young)} events are missing that were never too old, and {account['dropped']} had to make way: "
            f"{self._shown(young)}",
        )
        by_answer = account["rejected"] - len(self.letters)
        said = sum(len(each) for each in self.refused.values())
        find(
            not len(refused) <= by_answer <= said,
            f"{by_answer} events are counted as rejected without a dead letter, where the receiver said so of "
            f"{len(refused)} that did not arrive otherwise, and of {said} in all",
        )
        certain = sum(self._certain(number) for number in self.arrived)
        delivered = account["delivered"]
        find(
            not certain - account["dropped"] <= delivered <= len(self.arrived) + len(silent),
            f"{delivered} events are counted as delivered, and {certain} to {len(self.arrived) + len(silent)} were",
        )
        self.verdict.counts |= {
            "arrived": len(self.arrived),
            "nothing to it": len(silent),
            "missing": len(missing),
        } | {column: account[column] for column in ("delivered", "rejected", "expired", "dropped", "pending")}

    def _shown(self, numbers: Sequence[int]) -> str:
        batches = [self.witnessed[number] for number in numbers[:SHOWN]]
        return ", ".join(f"{batch.events[0].name} at {batch.time}" for batch in batches)


def _key(fact: Fact) -> Key:
    return fact.name, repr(sorted(fact.attributes.items())), fact.time


def _identity(batch: Batch) -> bytes:
    return encode(batch)


# --- the console, and what was put ---------------------------------------------------------------------------------


def printed(lives: Sequence[Sequence[Batch]], cut: frozenset[int]) -> tuple[list[Batch], Verdict]:
    """Every event once, in order, from what each life printed. A life may begin with what the last send of the one
    before had printed, if that was cut off; nothing else is printed again.
    """
    verdict = Verdict("console")
    found: list[Batch] = []
    seen: dict[bytes, int] = {}
    before: int | None = None  # the last life that printed anything
    again, repeated, sends = 0, 0, 0
    for life, batches in enumerate(lives):
        identities = [_identity(batch) for batch in batches]
        start = seen.get(identities[0]) if identities else None
        length = 0
        if start is not None:
            length = min(len(found) - start, len(identities))
            if list(seen)[start : start + length] != identities[:length]:
                length = 0
        if length:
            sends, repeated = sends + 1, repeated + length
            verdict.find(
                before not in cut, f"life {life} prints {length} events again, and the one before had ended in order"
            )
            whole = len(found) - start if start is not None else 0
            verdict.find(length < whole and life not in cut, f"life {life} prints {length} of {whole} events again")
            verdict.find(length > LARGEST, f"life {life} prints {length} events again, which is more than one send")
        for identity, batch in zip(identities[length:], batches[length:], strict=True):
            if identity in seen:
                again += 1
            else:
                seen[identity] = len(found)
                found.append(batch)
        before = life if batches else before
    verdict.find(again, f"{again} events are printed again in the middle of others")
    verdict.counts = {
        "put": len(found),
        "sent again after a kill": sends,
        "events in those": repeated,
        "kills": len(cut),
    }
    return found, verdict


def grown(witnessed: Sequence[Batch], names: str) -> Verdict:
    """Whether each counter of a proxy, of which families begin with `names`, grows by what its points say: each goes
    on where the one before ended, in time and in number, also over a restart of ours; a proxy's own never happens.
    Only where the clock was set back, or far ahead, nothing is known.
    """
    verdict = Verdict("counters")
    last: dict[bytes, Metric] = {}
    wrong: list[str] = []
    deltas = silent = anew = 0
    for batch in witnessed:
        (event,) = batch.events
        if not isinstance(event, Metric) or event.kind == "gauge" or not event.name.startswith(names):
            continue
        series = encode(Batch(batch.resource, 0, (Metric(event.name, event.kind, "", 0, None, event.attributes),)))
        before = last.get(series)
        last[series] = event
        if before is None:
            continue
        anew += before.start_time != event.start_time
        if event.delta is None:
            silent += 0 < event.time - before.time <= LONGEST_GAP
            continue
        deltas += 1
        if event.delta.since != before.time or _total(event) - _total(before) != _growth(event):
            wrong.append(f"{event.name} at {event.time}")
    verdict.find(wrong, f"{len(wrong)} points do not go on where the one before ended: {', '.join(wrong[:SHOWN])}")
    verdict.find(anew, f"{anew} points begin anew, where no proxy did")
    verdict.find(silent, f"{silent} points do not say by how much they have grown")
    verdict.counts = {"points with a delta": deltas}
    return verdict


def _total(metric: Metric) -> float:
    return metric.histogram.count if metric.histogram else metric.value or 0.0


def _growth(metric: Metric) -> float:
    assert metric.delta is not None
    return metric.delta.histogram.count if metric.delta.histogram else metric.delta.value or 0.0
