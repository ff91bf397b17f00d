"""From the configuration to the sink and its parts."""

from collections.abc import Sequence
from zoneinfo import ZoneInfo

from forwarder import catalog
from forwarder.config_notify import NotifySink as Table
from forwarder.config_notify import mailbox
from forwarder.errors import ConfigError, Problem
from forwarder.sinks.notify.courier import Courier
from forwarder.sinks.notify.mail import Mail
from forwarder.sinks.notify.rules import Rules, Window, matches
from forwarder.sinks.notify.service import Service
from forwarder.sinks.notify.sink import NotifySink, Style
from forwarder.transport import HttpProblem, tls_context


def notify_sink(name: str, table: Table) -> NotifySink:
    """Raises ConfigError for what only the catalog can tell. Reads the authorities' file."""
    if problems := _unknown(name, table.changes):
        raise ConfigError("configuration", problems)
    try:
        by = courier(table)
    except HttpProblem as error:
        raise ConfigError("configuration", [Problem(f"sinks.{name}", error.reason, error.hint)]) from None
    return NotifySink(name, by, rules(table), Style(ZoneInfo(table.time_zone), table.public_url or ""))


def courier(table: Table) -> Courier:
    if table.url is None:
        raise ValueError("a sink is not built from a configuration that was read without secrets")
    if (box := mailbox(table.url)) is not None:
        return Mail(box, tls_context(table.ca_file, None, None))
    return Service(table.url, proxy=table.proxy, ca_file=table.ca_file)


def rules(table: Table) -> Rules:
    zone = ZoneInfo(table.time_zone)
    return Rules(
        severity=table.severity,
        changes=table.changes,
        targets=table.targets,
        group=table.group,
        remind=table.remind or None,
        max_per_hour=table.max_per_hour,
        flapping=table.flapping_changes,
        flapping_within=table.flapping_within,
        maintenance=[Window(one.start, one.duration, zone, one.targets) for one in table.maintenance],
    )


def _unknown(name: str, patterns: Sequence[str]) -> list[Problem]:
    """Patterns that no change can have: a misspelt one would keep silent for ever."""
    known = [change.name for change in catalog.CHANGES]
    return [
        Problem(f"sinks.{name}.changes[{index}]", "is the name of no change", "docs/metrics.md lists them")
        for index, pattern in enumerate(patterns)
        if not any(matches([pattern], change) for change in known)
    ]
