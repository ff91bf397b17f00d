"""The storm in short, and the judge: evidence that was tampered with does not pass."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from backends import otlp
from torture.judge import Evidence, event_of, judge, witnessed

from forwarder.events import Batch, Change, Delta, Event, Histogram, Metric, Resource
from forwarder.sinks.console import line

TESTS = Path(__file__).parent
NOW = 1_795_000_000_000_000_000


def test_a_short_storm_loses_nothing(tmp_path: Path) -> None:
    """Every event that was put arrived in all three backends, or is accounted for. `make torture` is the long form."""
    command = (sys.executable, "-m", "torture.storm", "--seconds", "12", "--seed", "7", "--targets", "2", "--steady")
    result = subprocess.run(
        [*command, "--keep", str(tmp_path)], cwd=TESTS, capture_output=True, text=True, check=False, timeout=300
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "every event is accounted for" in result.stdout
    assert "arrived 0" not in result.stdout


def put(number: int) -> Batch:
    return Batch(Resource({"litellm.target": "t"}), NOW + number, (Metric("m", "gauge", "1", NOW + number, 1.0),))


PUT = [put(number) for number in range(5)]
ACCOUNT = {"adds_up": True, "accepted": 5, "delivered": 5, "rejected": 0, "expired": 0, "dropped": 0, "pending": 0}
HONEST = Evidence("otlp", otlp.expect, otlp.expect(PUT), ACCOUNT, repeats=0, ordered=True)


def test_honest_evidence_passes() -> None:
    """Else the judge would be of no use either."""
    assert judge(PUT, HONEST).findings == []


@pytest.mark.parametrize(
    ("tamper", "found"),
    [
        (lambda e: replace(e, received=e.received[:-1]), "1 events did not arrive, and 0 are accounted for"),
        (lambda e: replace(e, received=[*e.received, e.received[0]]), "1 facts arrived again"),
        (lambda e: replace(e, received=[*e.received, *otlp.expect([put(9)])]), "1 facts arrived that nobody put"),
        (lambda e: replace(e, received=e.received[::-1]), "4 facts arrived behind later ones"),
        (lambda e: replace(e, account={**ACCOUNT, "accepted": 6}), "6 events were accepted, and 5 are witnessed"),
        (lambda e: replace(e, account={**ACCOUNT, "adds_up": False}), "the ledger does not add up"),
    ],
)
def test_tampered_evidence_is_found(tamper: Callable[[Evidence], Evidence], found: str) -> None:
    """Each way of losing, inventing, repeating or shuffling events, and of a false ledger."""
    (finding,) = judge(PUT, tamper(HONEST)).findings
    assert found in finding


def test_what_is_accounted_for_may_be_missing() -> None:
    """Events that a backend refused for good, or that are still pending, are not lost."""
    account = {**ACCOUNT, "delivered": 3, "rejected": 1, "pending": 1}
    assert judge(PUT, replace(HONEST, received=HONEST.received[:3], account=account)).findings == []


EVENTS: list[Event] = [
    Metric("g", "gauge", "1", NOW + 7, 0.1, {"a": "b", "n": 3}),
    Metric("s", "sum", "{call}", NOW, 5.0, {}, NOW - 10**9, None, Delta(NOW - 5, 2.0)),
    Metric("h", "histogram", "s", NOW, None, {}, NOW - 1, Histogram((1.0,), (1, 2), 3.5, 3),
           Delta(NOW - 9, None, Histogram((1.0,), (0, 1), 2.5, 1))),
    Change("c", NOW, "error", "title", "text", {"x": "y"}),
]  # fmt: skip


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.name)
def test_the_witness_is_exact(event: Event) -> None:
    """An event can be read back from its line on the console, to the last bit; said twice, it is one."""
    import json

    batch = Batch(Resource({"litellm.target": "t"}), event.time, (event,))
    record: dict[str, Any] = json.loads(line(event, batch))
    assert event_of(record) == event
    assert witnessed([record, record]) == [batch]
