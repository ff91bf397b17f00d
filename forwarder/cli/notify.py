"""`notify test`: does a message reach people?"""

import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click

from forwarder import logs
from forwarder.cli.common import config_option, load, say
from forwarder.config_notify import NotifySink
from forwarder.errors import Exit
from forwarder.sinks.notify.courier import Failed
from forwarder.sinks.notify.texts import PREFIX, Item, Message, Section

HELP: Final = "no sink of type notify in the configuration; docs/notifications.md says how to write one"


@click.group()
def notify() -> None:
    """Tell people about changes: sinks of type `notify`."""


@notify.command()
@click.argument("sink", required=False)
@config_option
def test(sink: str | None, config_path: Path | None) -> int:
    """Send a sample message to the address of each notify sink, or of SINK alone.

    One line for each: a tick when its server took the message, else what failed and the likely fix. Works beside a
    running agent, and counts in no limit. Exit code 1 if any of them failed.
    """
    # Here, because SMTP and TLS take a while to load, which other commands need not wait for.
    from forwarder.sinks.notify.build import courier

    config = load(config_path)
    logs.configure("error", sys.stderr)
    tables = {name: table for name, table in config.sinks.items() if isinstance(table, NotifySink)}
    if not tables:
        raise click.UsageError(HELP)
    if sink is not None and sink not in tables:
        raise click.UsageError(f"no notify sink {sink!r} in the configuration; there are: {', '.join(tables)}")
    failed = False
    for name, table in tables.items():
        if sink in (None, name):
            outcome = courier(table).deliver(sample(name, time.time_ns()), timeout=table.timeout)
            if isinstance(outcome, Failed):
                failed = True
                say(f"{_mark('✗', 'failed')} {name}: {outcome.reason}" + (f"; {outcome.hint}" if outcome.hint else ""))
            else:
                say(f"{_mark('✓', 'ok')} {name}: " + (outcome.note or "taken; look whether it arrived"))
    return Exit.UNHEALTHY if failed else Exit.OK


def sample(sink: str, now: int) -> Message:
    """`now` is ns UTC."""
    sent = datetime.fromtimestamp(now // 10**9, UTC).strftime("%Y-%m-%d %H:%M:%S %Z")
    item = Item(
        "This is a test of litellm-forwarder. Nothing has happened.",
        [("Sink", sink), ("Sent", sent), ("If you read this", "changes of your LiteLLM proxies will reach you here")],
    )
    return Message(
        f"{PREFIX} test message", "info", good=True, sections=[Section("Test", [item])], notes=[], id=f"test-{now}"
    )


def _mark(sign: str, word: str) -> str:
    """The sign, where standard output can show it."""
    encoding = (getattr(sys.stdout, "encoding", None) or "").lower()
    return sign if encoding.startswith("utf") else word
