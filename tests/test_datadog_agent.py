"""The whole program with a Datadog agent beside it: what it saw arrives there, also after an absence."""

import json
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from backends.datadog import DogStatsd, Kind
from backends.litellm import FakeLiteLLM
from program import agent, call, write_config

from forwarder.sinks.console import rfc3339

SINK = """
[sinks.datadog]
type = "datadog"
address = "{address}"
"""


def seen(events: list[dict[str, Any]]) -> Counter[tuple[str, float, str]]:
    """The gauges that the console was told: name, value and time, to the second."""
    gauges = [event for event in events if event["kind"] == "gauge"]
    return Counter((event["name"], event["value"], event["time"].partition(".")[0]) for event in gauges)


@pytest.mark.parametrize("kind", ["unixgram", "unixstream"])
async def test_nothing_is_lost_while_no_agent_is_there(kind: Kind, tmp_path: Path) -> None:
    """The program starts first and keeps what it sees; when the Datadog agent comes, everything arrives there once, at
    the times of its readings; the console never waited.
    """
    receiver = DogStatsd(kind)
    try:
        receiver.misbehave("close")
        async with FakeLiteLLM("1.80.17") as proxy:
            write_config(tmp_path, [proxy.url], 'interval = "1s"')
            path = tmp_path / "config.toml"
            path.write_text(path.read_text() + SINK.format(address=receiver.address))
            async with agent(tmp_path) as running:
                await running.until(lambda: "no Datadog agent" in running.err())
                await running.until(lambda: running.names().count("litellm.up") >= 2)
                receiver.misbehave(None)
                await running.until(lambda: "delivers again" in running.err())
                running.signal(signal.SIGTERM)
                assert await running.ended() == 0, running.err()
        facts = receiver.take()
    finally:
        receiver.close()
    assert receiver.broken == 0
    arrived = Counter(
        (fact.name, value, rfc3339(fact.time).partition(".")[0])
        for fact in facts
        if isinstance(fact.value, list)
        for kind_, value in [fact.value[:2]]
        if kind_ == "g"
    )
    events = running.events()
    assert arrived == seen(events)
    names = Counter(fact.name for fact in facts)
    assert names["check litellm.can_connect"] == running.names().count("litellm.up")
    assert names["event"] == sum(event["kind"] == "change" for event in events)
    assert {"litellm.target:t0" in str(fact.attributes["tags"]) for fact in facts} == {True}
    accounts = json.loads((await call("spool", "ledger", "--json", cwd=tmp_path)).out)
    assert {(account["sink"], account["pending"], account["adds_up"]) for account in accounts} == {
        ("console", 0, True),
        ("datadog", 0, True),
    }
