"""`status` and `alive`: how a running agent is, asked over the address that it listens on."""

import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import click
from pydantic_core import PydanticCustomError

from forwarder.cli.common import PROGRAM, config_option, json_option, listen, load, say
from forwarder.config_values import agent_url
from forwarder.errors import ConfigError, Exit
from forwarder.status import client
from forwarder.status.client import NoAgentError
from forwarder.status.view import Deployment, Sink, Target, View, ago, encode

COLOURS: Final = {
    "healthy": "green",
    "degraded": "yellow",
    "unhealthy": "red",
    "unknown": "bright_black",
    "blocked": "red",
    "spool_unavailable": "red",
    "retrying": "yellow",
    "delivering": "green",
    "idle": "green",
}
LISTED: Final = 10  # failing deployments of one proxy
NAME: Final = 40  # characters of a name

url_option = click.option("--url", help="Where the agent answers.  [default: agent.listen of the configuration]")


@click.command()
@config_option
@url_option
@click.option("--watch", "-w", is_flag=True, help="Show it again and again, until Ctrl-C.")
@click.option("--interval", type=click.FloatRange(0.5, 3600), default=2.0, show_default=True, help="Seconds; --watch.")
@click.option("--timeout", type=click.FloatRange(0.1, 60), default=5.0, show_default=True, help="Seconds.")
@json_option
def status(  # noqa: PLR0913 - one argument per option
    config_path: Path | None, url: str | None, interval: float, timeout: float, *, watch: bool, as_json: bool
) -> int:
    """Show how the running agent, its proxies and its sinks are.

    Exit code 0: all is well; 1: something is the matter, and the first line says what; 2: no agent answers.
    """
    try:
        base, expected = _asked(config_path, url)
        if watch:
            return _watch(lambda: client.view(base, timeout, expected), interval, as_json=as_json)
        view = client.view(base, timeout, expected)
    except NoAgentError as error:
        click.echo(f"{PROGRAM}: {error}", err=True)
        return Exit.UNREACHABLE
    say(encode(view).decode() if as_json else as_text(view, _width()), coloured=True)
    return Exit.UNHEALTHY if view.summary else Exit.OK


@click.command()
@config_option
@url_option
@click.option("--timeout", type=click.FloatRange(0.1, 60), default=3.0, show_default=True, help="Seconds.")
def alive(config_path: Path | None, url: str | None, timeout: float) -> int:
    """Is the running agent alive? For a container's HEALTHCHECK.

    Asks /healthz, which speaks of the agent alone: not of proxies or sinks, nor of a configuration file that is wrong
    by now. Exit code 0: yes; 1: no, or none answers.
    """
    try:
        base, expected = _probed(config_path, url)
        problems = client.alive(base, timeout, expected)
    except NoAgentError as error:
        problems = [str(error)]
    if not problems:
        say("alive")
        return Exit.OK
    click.echo(f"{PROGRAM}: {'; '.join(_printable(each) for each in problems)}", err=True)
    return Exit.UNHEALTHY


def _probed(config_path: Path | None, url: str | None) -> tuple[str, str]:
    """A file that was broken while the agent runs is no reason to kill the agent: it could not start again with it."""
    try:
        return _asked(config_path, url)
    except ConfigError:
        return client.base_url(listen(config_path)), ""


def _asked(config_path: Path | None, url: str | None) -> tuple[str, str]:
    """Whom to ask, and the state folder that tells our agent from another; whoever answers at --url is meant."""
    if url is None:
        agent = load(config_path, secrets=False).agent
        return client.base_url(agent.listen), client.state_folder(agent)
    try:
        return agent_url(url), ""
    except PydanticCustomError as error:
        raise click.UsageError(f"--url {error.message()}") from None


# --- again and again ----------------------------------------------------------------------------------------------


def _watch(look: Callable[[], View], interval: float, *, as_json: bool) -> int:
    """Redraw in place: nothing is cleared before its successor is written, so nothing flickers."""
    if as_json:
        return _forever(lambda: say(encode(look()).decode()), interval)
    if not sys.stdout.isatty():
        raise click.UsageError("--watch needs a terminal; with --json it prints one line each time")

    def draw() -> None:
        width, height = shutil.get_terminal_size()
        try:
            text = as_text(look(), width)
        except NoAgentError as error:
            text = click.style("NO AGENT", fg="red", bold=True) + f"  {_printable(str(error))}"
        lines = text.split("\n")
        lines = lines if len(lines) < height else [*lines[: height - 2], f"… {len(lines) - height + 2} more lines"]
        say("\x1b[H" + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J", coloured=True)

    # The terminal's other screen, without a cursor: what was shown before is there again in the end.
    sys.stdout.write("\x1b[?1049h\x1b[?25l")
    try:
        return _forever(draw, interval)
    finally:
        sys.stdout.write("\x1b[?25h\x1b[?1049l")
        sys.stdout.flush()


def _forever(act: Callable[[], None], interval: float) -> int:
    """Until Ctrl-C, which is how it is meant to end."""
    try:
        while True:
            act()
            time.sleep(interval)
    except KeyboardInterrupt:
        return Exit.OK


# --- for people ---------------------------------------------------------------------------------------------------


def as_text(view: View, width: int | None = None) -> str:
    """Two tables, the worst first. Lines are cut at `width` columns; None: never."""
    word = "ALL IS WELL" if not view.summary else view.state.upper() if view.state != "healthy" else "DEGRADED"
    colour = COLOURS[view.state] if view.state != "healthy" or not view.summary else "yellow"
    head = click.style(word, fg=colour, bold=True)
    lines = [head if not view.summary else f"{head}  " + _cut("; ".join(view.summary), width, len(word) + 2)]
    about = f"litellm-forwarder {view.version}, running for {ago((view.time - view.started).total_seconds())}"
    lines.append(click.style(_cut(f"{about}, as of {view.time:%Y-%m-%d %H:%M:%S} UTC", width), dim=True))
    lines += [_cut(f"not ready: {each}", width) for each in view.not_ready]
    targets = ("PROXY", "STATE", "FOR", "UP", "FAILING", "24 H", "RELEASE", "BILLED TODAY", "WHY")
    lines += ["", *_table(targets, [_target(each, view) for each in view.targets], width)]
    for each in (list(_failing(view)), list(_pages(view))):
        lines += ["", *(_cut(line, width) for line in each)] if each else []
    sinks = ("SINK", "STATE", "BEHIND", "PENDING", "DELIVERED", "LOST", "LAST SUCCESS", "LAST ERROR")
    lines += ["", *_table(sinks, [_sink(each, view) for each in view.sinks], width)]
    return "\n".join(lines)


def _target(target: Target, view: View) -> list[str]:
    up = down = "?"
    if target.listing is not None and target.listing.current:
        up = "?" if target.listing.up is None else f"{target.listing.up:,}"
        down = "?" if target.listing.down is None else f"{target.listing.down:,}"
    cost = target.cost
    billed = "-"
    if cost is not None:
        billed = f"{cost.spent:,}" + ("" if cost.budget is None else f" of {cost.budget:,}")
        billed = f"{billed} (free)" if cost.free else f"{billed} (spent)" if cost.waiting == "budget" else billed
    ratio = "?" if target.healthy_ratio is None else f"{int(target.healthy_ratio * 1000) / 10:g} %"
    since = "-" if target.since is None else ago((view.time - target.since).total_seconds())
    return [target.name, target.state, since, up, down, ratio, target.version or "?", billed, target.reason]


def _failing(view: View) -> Iterator[str]:
    for target in view.targets:
        if target.listing is None or not target.listing.current:
            continue
        failing = [each for each in target.listing.deployments if each.state == "down"]
        yield from (f"  {target.name}: {_deployment(each, view)}" for each in failing[:LISTED])
        if len(failing) > LISTED:
            yield f"  {target.name}: and {len(failing) - LISTED:,} more that fail"


def _pages(view: View) -> Iterator[str]:
    """Of metrics pages what is wrong with them, unless it is what is wrong with the proxy."""
    for target in view.targets:
        for each in target.endpoints:
            if each.name == "metrics" and each.detail and each.detail not in target.reason:
                yield f"  {target.name} /metrics/: {each.detail}"


def _deployment(each: Deployment, view: View) -> str:
    name = f"{each.name} ({each.model})" if each.name else each.model
    why = f"{each.error_type}" + ("" if each.http_status is None else f" {each.http_status}")
    since = "" if each.since is None else f", for {ago((view.time - each.since).total_seconds())}"
    return f"{name} [{each.short_id}] fails: {why}{since}"


def _sink(sink: Sink, view: View) -> list[str]:
    behind = "?" if sink.lag_seconds is None else "-" if not sink.lag_seconds else ago(sink.lag_seconds)
    pending = delivered = lost = "?"
    if sink.ledger is not None:
        pending = f"{sink.ledger.pending:,}"
        delivered = f"{sink.ledger.delivered:,}" + ("" if sink.acknowledged else " handed over")
        lost = f"{sink.ledger.rejected + sink.ledger.expired + sink.ledger.dropped:,}"
    success = "-" if sink.last_success is None else ago((view.time - sink.last_success).total_seconds()) + " ago"
    error = "-"
    if sink.last_error_time is not None:
        error = f"{ago((view.time - sink.last_error_time).total_seconds())} ago: {sink.last_error}"
    return [sink.name, sink.state, behind, pending, delivered, lost, success, error]


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]], width: int | None) -> Iterator[str]:
    """Columns as wide as their widest cell; the second one, the state, is coloured. What of the last one does not fit
    stands whole in lines of its own.
    """
    shown = [[_printable(cell)[: None if n == len(row) - 1 else NAME] for n, cell in enumerate(row)] for row in rows]
    widths = [max(len(row[n]) for row in [list(titles), *shown]) for n in range(len(titles) - 1)]
    before = sum(widths) + 2 * len(widths)
    yield click.style(_cut("  ".join([*map(str.ljust, titles, widths), titles[-1]]), width), dim=True)
    for row in shown:
        cells = [cell.ljust(space) for cell, space in zip(row, widths, strict=False)]
        if width is not None and before >= width:  # a very narrow terminal: no colour, so that a cut is one
            yield _cut("  ".join([*cells, row[-1]]), width)
            continue
        cells[1] = click.style(cells[1], fg=COLOURS.get(row[1]))
        if width is None or before + len(row[-1]) <= width:
            yield "  ".join([*cells, row[-1]])
        else:
            yield "  ".join([*cells, "↓"])
            yield from textwrap.wrap(row[-1], width, initial_indent="    ", subsequent_indent="    ")


def _cut(text: str, width: int | None, before: int = 0) -> str:
    """As much as fits in what `before` columns leave."""
    text = _printable(text)
    room = None if width is None else max(1, width - before)
    return text if room is None or len(text) <= room else text[: room - 1] + "…"


def _printable(text: str) -> str:
    """Whoever listens at that address may not be the agent: no control sequence of theirs reaches the terminal."""
    return "".join(each if each.isprintable() else "?" for each in text)


def _width() -> int | None:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None
