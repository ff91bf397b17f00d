"""What became of every event, from the evidence alone: pure, so that the judge itself can be tested.

The console is the witness: it is a sink like any other, its reader never fails, and what it printed is every event
that was put. For each other sink, what its receiver understood is held against what it should have, event by event,
and the rest against the ledger that the agent keeps.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from backends.facts import Fact

from forwarder.events import Batch, Change, Delta, Event, Histogram, Metric, Resource

Key = tuple[str, str, int, str]  # a fact: name, attributes, time, value
Expect = Callable[[Sequence[Batch]], list[Fact]]
SHOWN: Final = 3


@dataclass(frozen=True)
class Evidence:
    """Of one sink. `received` in the order of arrival, `account` as `spool ledger --json` shows it. `repeats`: so many
    facts may have arrived twice, because a send was cut off after it had been stored. `ordered`: the backend needs
    each series in order.
    """

    sink: str
    expect: Expect
    received: Sequence[Fact]
    account: Mapping[str, Any]
    repeats: int
    ordered: bool = False


@dataclass
class Verdict:
    """`findings` is empty where everything is as promised; `counts` is for people."""

    findings: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)


def judge(witnessed: Sequence[Batch], evidence: Evidence) -> Verdict:
    """`witnessed`: every event once, each in a batch of its own, in the order in which they were put."""
    verdict = Verdict()
    account = evidence.account
    wanted = [frozenset(map(key, evidence.expect([batch]))) for batch in witnessed]
    arrived = Counter(map(key, evidence.received))
    missing = [batch for batch, keys in zip(witnessed, wanted, strict=True) if not keys <= arrived.keys()]
    foreign = arrived.keys() - frozenset().union(*wanted)
    twice = sum(count - 1 for count in arrived.values())
    gone = account["rejected"] + account["expired"] + account["dropped"] + account["pending"]

    def find(wrong: object, what: str) -> None:
        if wrong:
            verdict.findings.append(f"{evidence.sink}: {what}")

    find(not account["adds_up"], f"the ledger does not add up: {dict(account)}")
    find(
        account["accepted"] != len(witnessed),
        f"{account['accepted']} events were accepted, and {len(witnessed)} are witnessed",
    )
    find(
        len(missing) > gone,
        f"{len(missing)} events did not arrive, and {gone} are accounted for: {_shown(missing)}",
    )
    find(foreign, f"{len(foreign)} facts arrived that nobody put: {sorted(foreign)[:SHOWN]}")
    find(twice > evidence.repeats, f"{twice} facts arrived again, and at most {evidence.repeats} may have")
    if evidence.ordered:
        late = out_of_order(wanted, map(key, evidence.received))
        find(late, f"{len(late)} facts arrived behind later ones of their series: {late[:SHOWN]}")
    verdict.counts = {"put": len(witnessed), "arrived": len(witnessed) - len(missing), "again": twice} | {
        column: account[column] for column in ("delivered", "rejected", "expired", "dropped", "pending")
    }
    return verdict


def key(fact: Fact) -> Key:
    return fact.name, repr(sorted(fact.attributes.items())), fact.time, repr(fact.value)


def out_of_order(wanted: Iterable[frozenset[Key]], arrived: Iterable[Key]) -> list[Key]:
    """Facts whose first arrival is behind that of one of their series that was put later, and is later: where a clock
    was set back, the order of putting and that of times differ, and a backend wants the latter within a request.
    """
    place = {each: number for number, keys in enumerate(wanted) for each in keys}
    newest: dict[tuple[str, str], tuple[int, int]] = {}  # place and time
    seen: set[Key] = set()
    late = []
    for each in arrived:
        if each in seen or each not in place:
            continue
        seen.add(each)
        series = each[:2]
        here, before = (place[each], each[2]), newest.get(series, (-1, -1))
        if here[0] < before[0] and here[1] < before[1]:
            late.append(each)
        newest[series] = max(here, before)
    return late


def _shown(batches: Sequence[Batch]) -> str:
    return ", ".join(f"{batch.events[0].name} at {batch.time}" for batch in batches[:SHOWN])


# --- the witness ---------------------------------------------------------------------------------------------------


def witnessed(records: Iterable[Mapping[str, Any]]) -> list[Batch]:
    """From the console's lines, of all runs, in order: every event once. A killed agent prints its last send again."""
    found: dict[str, Batch] = {}
    for record in records:
        event = event_of(record)
        batch = Batch(Resource(dict(record["resource"])), event.time, (event,))
        found.setdefault(repr(batch), batch)
    return list(found.values())


def event_of(record: Mapping[str, Any]) -> Event:
    """Back from its line to the event, exactly."""
    time = nanoseconds(record["time"])
    if record["kind"] == "change":
        return Change(
            record["name"], time, record["severity"], record["title"], record["text"], dict(record["attributes"])
        )
    delta = record.get("delta")
    return Metric(
        record["name"],
        record["kind"],
        record["unit"],
        time,
        record.get("value"),
        dict(record["attributes"]),
        nanoseconds(record["start_time"]) if "start_time" in record else None,
        _histogram(record.get("histogram")),
        Delta(nanoseconds(delta["since"]), delta.get("value"), _histogram(delta.get("histogram"))) if delta else None,
    )


def _histogram(shown: Mapping[str, Any] | None) -> Histogram | None:
    return Histogram(tuple(shown["bounds"]), tuple(shown["counts"]), shown["sum"], shown["count"]) if shown else None


def nanoseconds(text: str) -> int:
    from datetime import datetime

    seconds, fraction = text.removesuffix("Z").split(".")
    return int(datetime.fromisoformat(f"{seconds}+00:00").timestamp()) * 10**9 + int(fraction)
