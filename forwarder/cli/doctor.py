"""`doctor`: everything that must work, with a tick or the fix."""

import asyncio
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Final

import click

from forwarder import config as settings
from forwarder import logs
from forwarder.cli.common import config_option, json_option, many, say
from forwarder.doctor import Finding, Verdict, examine
from forwarder.errors import ConfigError, Exit

MARKS: Final[dict[Verdict, str]] = {"good": "✓", "warning": "!", "bad": "✗", "note": "·"}
PLAIN: Final[dict[Verdict, str]] = {"good": "ok", "warning": "warning", "bad": "FAILED", "note": "note"}
COLOURS: Final[dict[Verdict, str]] = {"good": "green", "warning": "yellow", "bad": "red", "note": "bright_black"}


@click.command()
@config_option
@click.option("--billed", is_flag=True, help="Also read /health where that makes real, billed calls to deployments.")
@json_option
def doctor(config_path: Path | None, *, billed: bool, as_json: bool) -> int:
    """Check everything the agent needs, and say how to mend what does not work.

    Checks the configuration, files and folders, reads every target, and sends one event that is marked as a test to
    every sink. Works beside a running agent. Exit code 0: nothing failed; 1: something did.
    """
    logs.configure("error", sys.stderr)
    findings = asyncio.run(_examine(config_path, billed=billed, as_json=as_json))
    bad, warnings = (sum(each.verdict == verdict for each in findings) for verdict in ("bad", "warning"))
    if as_json:
        say(json.dumps({"ok": not bad, "findings": [asdict(each) for each in findings]}, indent=2))
    else:
        failed = (
            click.style(f"{bad} failed", fg="red", bold=True) if bad else click.style("nothing failed", fg="green")
        )
        say(f"\n{failed}" + (f", {many(range(warnings), 'warning')}" if warnings else ""), coloured=True)
    return Exit.UNHEALTHY if bad else Exit.OK


async def _examine(config_path: Path | None, *, billed: bool, as_json: bool) -> list[Finding]:
    """Every finding, shown as it comes: a target may take a while."""
    findings = []

    def found(each: Finding) -> None:
        findings.append(each)
        if not as_json:
            say(_text(each), coloured=True)

    try:
        loaded = settings.read(settings.find(config_path, os.environ, Path.cwd()), os.environ)
        async for each in examine(loaded, billed=billed):
            found(each)
    except ConfigError as error:
        for problem in error.problems:
            found(Finding("configuration", "bad", f"{problem.path}: {problem.reason}", problem.hint))
    return findings


def _text(each: Finding) -> str:
    marks, arrow = (MARKS, "→") if _can_show("✓✗·→") else (PLAIN, "=>")
    width = max(len(mark) for mark in marks.values())
    mark = click.style(marks[each.verdict].ljust(width), fg=COLOURS[each.verdict], bold=True)
    fix = click.style(f"\n{' ' * width} {arrow} {each.fix}", dim=True) if each.fix else ""
    return f"{mark} {click.style(each.about, bold=True)}: {each.text}{fix}"


def _can_show(text: str) -> bool:
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
