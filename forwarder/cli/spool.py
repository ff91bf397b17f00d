"""`spool`: the ledger and the dead letters."""

import json
from pathlib import Path
from typing import Any, Final

import click

from forwarder.cli.common import PROGRAM, config_option, json_option, load, say, with_spool
from forwarder.config_sinks import confirms
from forwarder.errors import Exit
from forwarder.logs import one_line
from forwarder.sinks.console import line, rfc3339
from forwarder.spool.base import Account, DeadLetter, Spool

LETTER_ID: Final = click.IntRange(1, 2**63 - 1)  # what SQLite counts with


@click.group()
def spool() -> None:
    """Look into the spool: the ledger, and the dead letters (events that a sink will never take).

    Works beside a running agent.
    """


sink_option = click.option("--sink", help="Only this sink.")


@spool.command()
@config_option
@json_option
def ledger(config_path: Path | None, *, as_json: bool) -> int:
    """Show, for each sink: accepted = delivered + pending + rejected + expired + dropped.

    Exit code 1 if that does not add up.
    """

    async def read(spool: Spool) -> list[Account]:
        return await spool.accounts()

    accounts = with_spool(config_path, read)
    sinks = load(config_path, secrets=False).sinks
    unconfirmed = {name for name, sink in sinks.items() if not confirms(sink)}
    columns = ("accepted", "delivered", "pending", "rejected", "expired", "dropped")
    if as_json:
        rows = [
            {"sink": a.sink, "attached": a.attached, "confirmed": a.sink not in unconfirmed}
            | {column: getattr(a, column) for column in columns}
            | {"dead_letters": a.dead_letters, "oldest_pending": a.oldest_pending, "adds_up": a.adds_up}
            for a in accounts
        ]
        say(json.dumps(rows, indent=2))
    else:
        say(f"{'sink':<20}" + "".join(f"{column:>12}" for column in columns) + "  adds up")
        for a in accounts:
            name = a.sink if a.attached else f"{a.sink} (removed)"
            numbers = "".join(f"{getattr(a, column):>12,}" for column in columns)
            note = "; delivered is handed over: its backend confirms nothing" if a.sink in unconfirmed else ""
            say(f"{name:<20}{numbers}  {'yes' if a.adds_up else 'NO'}{note}")
    return Exit.OK if all(a.adds_up for a in accounts) else Exit.UNHEALTHY


@spool.command("list")
@config_option
@sink_option
@click.option("--limit", type=click.IntRange(1, 100_000), default=100, show_default=True)
@json_option
def list_(config_path: Path | None, sink: str | None, limit: int, *, as_json: bool) -> None:
    """List dead letters, oldest first."""
    letters = _letters(config_path, sink, limit)
    if as_json:
        say(json.dumps([_letter(letter) for letter in letters], indent=2))
        return
    if not letters:
        say("no dead letters")
    for letter in letters:
        event = letter.batch.events[0]
        say(f"{letter.id:>8}  {rfc3339(letter.time)[:19]}Z  {letter.sink}  {event.name}  {one_line(letter.reason)}")


@spool.command()
@click.argument("id", type=LETTER_ID)
@config_option
def show(config_path: Path | None, id: int) -> int:  # noqa: A002 - the name in the help text
    """Show one dead letter whole, as JSON."""

    async def read(spool: Spool) -> list[DeadLetter]:
        return await spool.dead_letters(None, limit=1, after=id - 1)

    letters = [letter for letter in with_spool(config_path, read) if letter.id == id]
    if not letters:
        click.echo(f"{PROGRAM}: no dead letter {id}; `{PROGRAM} spool list` lists them", err=True)
        return Exit.UNHEALTHY
    say(json.dumps(_letter(letters[0]), indent=2))
    return Exit.OK


@spool.command()
@click.argument("ids", type=LETTER_ID, nargs=-1)
@config_option
@click.option("--sink", required=True, help="The sink whose dead letters are meant.")
@click.option("--all", "everything", is_flag=True, help="All of the sink's dead letters.")
def replay(config_path: Path | None, ids: tuple[int, ...], sink: str, *, everything: bool) -> int:
    """Put dead letters back into their sink's queue, to be sent again."""
    _chosen(ids, everything=everything)

    async def act(spool: Spool) -> int:
        await _known(spool, sink)
        return await spool.replay(sink, None if everything else ids)

    return _report(with_spool(config_path, act), "put back", sink, ids)


@spool.command()
@click.argument("ids", type=LETTER_ID, nargs=-1)
@config_option
@click.option("--sink", required=True, help="The sink whose dead letters are meant.")
@click.option("--all", "everything", is_flag=True, help="All of the sink's dead letters.")
def purge(config_path: Path | None, ids: tuple[int, ...], sink: str, *, everything: bool) -> int:
    """Forget dead letters for good. They stay counted as rejected."""
    _chosen(ids, everything=everything)

    async def act(spool: Spool) -> int:
        await _known(spool, sink)
        return await spool.purge(sink, None if everything else ids)

    return _report(with_spool(config_path, act), "forgotten", sink, ids)


def _chosen(ids: tuple[int, ...], *, everything: bool) -> None:
    if bool(ids) == everything:
        raise click.UsageError("name the dead letters by their ids, or say --all")


async def _known(spool: Spool, sink: str | None) -> None:
    known = [account.sink for account in await spool.accounts()]
    if sink is not None and sink not in known:
        raise click.UsageError(f"the spool knows no sink {sink!r}; it knows: {', '.join(known) or 'none'}")


def _report(count: int, done: str, sink: str, ids: tuple[int, ...]) -> int:
    missing = len(set(ids)) - count
    if missing > 0:
        say(f"{count} {done}; {missing} of the ids are no dead letters of {sink}")
        return Exit.UNHEALTHY
    say(f"{count} {done}")
    return Exit.OK


def _letters(config_path: Path | None, sink: str | None, limit: int) -> list[DeadLetter]:
    async def read(spool: Spool) -> list[DeadLetter]:
        await _known(spool, sink)
        return await spool.dead_letters(sink, limit=limit)

    return with_spool(config_path, read)


def _letter(letter: DeadLetter) -> dict[str, Any]:
    event = json.loads(line(letter.batch.events[0], letter.batch))
    buried = rfc3339(letter.time)
    return {"id": letter.id, "sink": letter.sink, "buried": buried, "reason": letter.reason, "event": event}
