"""The command line; thin. Exit codes are those of `errors.Exit`, documented in `--help` and docs/operations.md."""

import asyncio
import json
import os
import sys
from collections.abc import Callable, Coroutine, Sized
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import click
from click.shell_completion import get_completion_class

from forwarder import catalog, cost, inspection, logs
from forwarder import config as settings
from forwarder.agent import Agent, build_clients, build_spool, run_until_signalled
from forwarder.config import Config
from forwarder.errors import Exit, ForwarderError
from forwarder.inspection import View
from forwarder.normalize.reading import Endpoint
from forwarder.sinks.console import line, rfc3339
from forwarder.spool.base import Account, DeadLetter, Spool

T = TypeVar("T")

PROGRAM: Final = "litellm-forwarder"
EXIT_CODES: Final = {
    Exit.OK: "all is well",
    Exit.UNHEALTHY: "check, inspect: a proxy is unhealthy, or its state is unknown; "
    "poll: events are left in the spool; spool ledger: it does not add up",
    Exit.UNREACHABLE: "check, inspect: a proxy cannot be reached",
    Exit.USAGE: "the command line is wrong",
    Exit.BUG: "a bug in litellm-forwarder",
    Exit.STATE: "the state folder or the spool cannot be used",
    Exit.BUSY: "another agent uses the state folder",
    Exit.CONFIG: "the configuration is wrong",
}
EPILOG: Final = "Exit codes: " + "; ".join(f"{code.value} {meaning}" for code, meaning in EXIT_CODES.items()) + "."

config_option = click.option(
    "--config",
    "-c",
    "config_path",
    type=click.Path(path_type=Path),
    help="Configuration file. Default: ./config.toml, then /etc/litellm-forwarder/config.toml.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="For programs.")


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(version(PROGRAM), prog_name=PROGRAM)
def cli() -> None:
    """Watch LiteLLM proxies from outside and deliver what is seen, durably, to monitoring backends."""


def main() -> NoReturn:
    """Run the command line. No traceback for anything that is not a bug of ours."""
    try:
        code = cli.main(prog_name=PROGRAM, standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Abort:
        code = 130
    except click.ClickException as error:
        error.show()
        code = Exit.USAGE
    except ForwarderError as error:
        click.echo(f"{PROGRAM}: {error}", err=True)
        code = error.exit_code
    except BrokenPipeError:
        # `catalog | head`: whoever read us has seen enough. Keep the interpreter from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = Exit.OK
    except KeyboardInterrupt:
        code = 130
    sys.exit(int(code or 0))


# --- the agent ----------------------------------------------------------------------------------------------------


@cli.command()
@config_option
def run(config_path: Path | None) -> None:
    """Poll and deliver until stopped: the main job.

    SIGTERM or Ctrl-C drains and stops; a second one stops at once. What is not delivered stays in the spool.
    """
    config = _start(config_path)
    asyncio.run(run_until_signalled(config))


@cli.command()
@click.option("--once", is_flag=True, help="One round (required: `run` is for more).")
@config_option
def poll(config_path: Path | None, *, once: bool) -> int:
    """Make one round of polls through the configured sinks, then exit. For cron.

    /health is only polled when its interval has passed since the last time and its budget allows: a cron job that runs
    every minute does not pay every minute.
    """
    if not once:
        raise click.UsageError("poll needs --once; `litellm-forwarder run` polls for ever")
    delivered = asyncio.run(Agent(_start(config_path)).once())
    return Exit.OK if delivered else Exit.UNHEALTHY


# --- looking at proxies -------------------------------------------------------------------------------------------


@cli.command()
@click.argument("url", required=False)
@config_option
@click.option("--timeout", type=click.FloatRange(0.1, 300), default=5.0, show_default=True, help="Seconds, in all.")
@click.option("--quiet", "-q", is_flag=True, help="Say nothing; the exit code tells.")
def check(url: str | None, config_path: Path | None, timeout: float, *, quiet: bool) -> int:
    """Is the proxy healthy? One line and an exit code: 0 yes, 1 no (or not known), 2 unreachable.

    Reads liveliness and readiness only: needs no key and never costs money, fit for a Docker HEALTHCHECK. Without URL,
    checks every target of the configuration.
    """
    config = _targets(url, config_path)
    views = asyncio.run(_look(config, inspection.ESSENTIAL, timeout))
    if not quiet:
        for view in views:
            click.echo(f"{view.status}: {view.url}: {view.why}")
    return max(_exit_code(view) for view in views)


@cli.command()
@click.argument("url", required=False)
@config_option
@click.option("--target", "-t", "name", help="Only this target of the configuration.")
@click.option("--key-env", default="LITELLM_API_KEY", show_default=True, help="With URL: variable that holds the key.")
@click.option("--yes/--no", "-y/-n", "consent", default=None, help="Whether to call /health though it may be billed.")
@click.option("--timeout", type=click.FloatRange(0.1, 300), default=10.0, show_default=True, help="Seconds.")
@json_option
def inspect(  # noqa: PLR0913 - one argument per option
    url: str | None,
    config_path: Path | None,
    name: str | None,
    key_env: str,
    timeout: float,
    *,
    consent: bool | None,
    as_json: bool,
) -> int:
    """Show a proxy in detail: status, release, dependencies, and each deployment with its class of failure.

    Asks before GET /health, which makes one real, billed call to every deployment unless the proxy checks in the
    background; --yes and --no answer beforehand. Exit codes are those of `check`.
    """
    config = _targets(url, config_path, key_env)
    if name is not None:
        chosen = tuple(target for target in config.targets if target.name == name)
        if not chosen:
            known = ", ".join(target.name for target in config.targets)
            raise click.UsageError(f"no target {name!r} in the configuration; there are: {known}")
        config = config.model_copy(update={"targets": chosen})

    def may_ask(view: View, *, keyed: bool) -> bool:
        if consent is not None or view.background or view.status == "unreachable":
            return consent is not False and view.status != "unreachable"
        if not sys.stdin.isatty() or not sys.stderr.isatty():
            return False
        click.echo(inspection.billed_warning(view, keyed) + ".", err=True)
        return click.confirm(f"Call it on {view.url}?", err=True)

    views = []
    for target in config.targets:
        one = config.model_copy(update={"targets": (target,)})
        view = asyncio.run(_look(one, inspection.CHEAP, timeout))[0]
        if may_ask(view, keyed=target.api_key is not None):
            more = asyncio.run(_look(one, ("health",), target.health.timeout))[0]
            view = View(view.url, {**view.said, **more.said})
        views.append(view)
    if as_json:
        click.echo(json.dumps([inspection.as_json(view) for view in views], indent=2))
    else:
        click.echo("\n\n".join(inspection.as_text(view) for view in views), color=_colour())
    return max(_exit_code(view) for view in views)


async def _look(config: Config, endpoints: tuple[Endpoint, ...], timeout: float) -> list[View]:
    clients = build_clients(config)
    try:
        return await asyncio.gather(
            *(
                inspection.look(client, target.url, endpoints, timeout=timeout, keyed=target.api_key is not None)
                for client, target in zip(clients, config.targets, strict=True)
            )
        )
    finally:
        for client in clients:
            await client.close()


def _exit_code(view: View) -> Exit:
    return {"healthy": Exit.OK, "unreachable": Exit.UNREACHABLE}.get(view.status, Exit.UNHEALTHY)


# --- the configuration and the catalog ----------------------------------------------------------------------------


@cli.command()
@config_option
@click.option("--schema", is_flag=True, help="Print the JSON Schema of the configuration, for editors, and exit.")
def validate(config_path: Path | None, *, schema: bool) -> None:
    """Check the configuration without starting: every problem at once, exit code 78 if there is one."""
    if schema:
        click.echo(json.dumps(settings.json_schema(), indent=2))
        return
    path = settings.find(config_path, os.environ, Path.cwd())
    config = settings.load(path, os.environ)
    build_clients(config)
    click.echo(f"{path}: valid; {_many(config.targets, 'target')}, {_many(config.sinks, 'sink')}")
    for target in config.targets:
        health = target.health
        if health.enabled and health.background != "on":
            budget = cost.Budget(health.interval, target.interval, health.max_billed_calls_per_day, health.background)
            click.echo(f"note: target {target.name}: {cost.arithmetic(cost.Account(opened=0), budget)}")


@cli.command("catalog")
@json_option
def catalog_(*, as_json: bool) -> None:
    """List every metric and change that the agent can emit."""
    if as_json:
        metrics = [
            {"name": m.name, "kind": m.kind, "unit": m.unit, "attributes": m.attributes, "description": m.description}
            for m in catalog.METRICS
        ]
        changes = [
            {"name": c.name, "severity": c.severity, "attributes": c.attributes, "description": c.description}
            for c in catalog.CHANGES
        ]
        click.echo(json.dumps({"metrics": metrics, "changes": changes}, indent=2))
        return
    for metric in catalog.METRICS:
        _entry(metric.name, f"{metric.kind}, {metric.unit}", metric.attributes, metric.description)
    for change in catalog.CHANGES:
        _entry(change.name, f"change, {change.severity}", change.attributes, change.description)


def _entry(name: str, kind: str, attributes: tuple[str, ...], description: str) -> None:
    having = " {" + ", ".join(attributes) + "}" if attributes else ""
    click.echo(f"{click.style(name, bold=True)}{having}  ({kind})\n    {description}", color=_colour())


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the shell's completion script: source it, or put it where your shell looks.

    bash: litellm-forwarder completion bash > ~/.local/share/bash-completion/completions/litellm-forwarder
    """
    found = get_completion_class(shell)
    assert found is not None  # noqa: S101 - the choices are click's own
    click.echo(found(cli, {}, PROGRAM, "_LITELLM_FORWARDER_COMPLETE").source())


# --- the spool ----------------------------------------------------------------------------------------------------


@cli.group()
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

    accounts = _with_spool(config_path, read)
    columns = ("accepted", "delivered", "pending", "rejected", "expired", "dropped")
    if as_json:
        rows = [
            {"sink": a.sink, "attached": a.attached}
            | {column: getattr(a, column) for column in columns}
            | {"dead_letters": a.dead_letters, "oldest_pending": a.oldest_pending, "adds_up": a.adds_up}
            for a in accounts
        ]
        click.echo(json.dumps(rows, indent=2))
    else:
        click.echo(f"{'sink':<20}" + "".join(f"{column:>12}" for column in columns) + "  adds up")
        for a in accounts:
            name = a.sink if a.attached else f"{a.sink} (removed)"
            numbers = "".join(f"{getattr(a, column):>12,}" for column in columns)
            click.echo(f"{name:<20}{numbers}  {'yes' if a.adds_up else 'NO'}")
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
        click.echo(json.dumps([_letter(letter) for letter in letters], indent=2))
        return
    if not letters:
        click.echo("no dead letters")
    for letter in letters:
        event = letter.batch.events[0]
        click.echo(f"{letter.id:>8}  {rfc3339(letter.time)[:19]}Z  {letter.sink}  {event.name}  {letter.reason}")


@spool.command()
@click.argument("id", type=int)
@config_option
def show(config_path: Path | None, id: int) -> None:  # noqa: A002 - the name in the help text
    """Show one dead letter whole, as JSON."""

    async def read(spool: Spool) -> list[DeadLetter]:
        return await spool.dead_letters(None, limit=1, after=id - 1)

    letters = [letter for letter in _with_spool(config_path, read) if letter.id == id]
    if not letters:
        raise click.UsageError(f"no dead letter {id}; `{PROGRAM} spool list` lists them")
    click.echo(json.dumps(_letter(letters[0]), indent=2))


@spool.command()
@click.argument("ids", type=int, nargs=-1)
@config_option
@click.option("--sink", required=True, help="The sink whose dead letters are meant.")
@click.option("--all", "everything", is_flag=True, help="All of the sink's dead letters.")
def replay(config_path: Path | None, ids: tuple[int, ...], sink: str, *, everything: bool) -> None:
    """Put dead letters back into their sink's queue, to be sent again."""
    _chosen(ids, everything=everything)

    async def act(spool: Spool) -> int:
        return await spool.replay(sink, None if everything else ids)

    click.echo(f"{_with_spool(config_path, act)} put back")


@spool.command()
@click.argument("ids", type=int, nargs=-1)
@config_option
@click.option("--sink", required=True, help="The sink whose dead letters are meant.")
@click.option("--all", "everything", is_flag=True, help="All of the sink's dead letters.")
def purge(config_path: Path | None, ids: tuple[int, ...], sink: str, *, everything: bool) -> None:
    """Forget dead letters for good. They stay counted as rejected."""
    _chosen(ids, everything=everything)

    async def act(spool: Spool) -> int:
        return await spool.purge(sink, None if everything else ids)

    click.echo(f"{_with_spool(config_path, act)} forgotten")


def _chosen(ids: tuple[int, ...], *, everything: bool) -> None:
    if bool(ids) == everything:
        raise click.UsageError("name the dead letters by their ids, or say --all")


def _letters(config_path: Path | None, sink: str | None, limit: int) -> list[DeadLetter]:
    async def read(spool: Spool) -> list[DeadLetter]:
        return await spool.dead_letters(sink, limit=limit)

    return _with_spool(config_path, read)


def _letter(letter: DeadLetter) -> dict[str, Any]:
    event = json.loads(line(letter.batch.events[0], letter.batch))
    buried = rfc3339(letter.time)
    return {"id": letter.id, "sink": letter.sink, "buried": buried, "reason": letter.reason, "event": event}


# --- common -------------------------------------------------------------------------------------------------------


def _start(config_path: Path | None) -> Config:
    """The configuration, with logging as it says."""
    config = _load(config_path)
    logs.configure(config.agent.log_level, sys.stderr)
    return config


def _load(config_path: Path | None, *, secrets: bool = True) -> Config:
    return settings.load(settings.find(config_path, os.environ, Path.cwd()), os.environ, secrets=secrets)


def _targets(url: str | None, config_path: Path | None, key_env: str = "LITELLM_API_KEY") -> Config:
    """The configuration of what to look at: one URL, or the configured targets."""
    logs.configure("error", sys.stderr)
    if url is None:
        return _load(config_path)
    if config_path is not None:
        raise click.UsageError("give a URL or --config, not both")
    return settings.for_url(url, key_env, os.environ)


def _with_spool(config_path: Path | None, act: Callable[[Spool], Coroutine[Any, Any, T]]) -> T:
    """Run something on the configured spool, beside a running agent if there is one."""
    config = _load(config_path, secrets=False)
    logs.configure(config.agent.log_level, sys.stderr)

    async def run() -> T:
        opened = build_spool(config, owner=False)
        await opened.open()
        try:
            return await act(opened)
        finally:
            await opened.close()

    return asyncio.run(run())


def _many(things: Sized, name: str) -> str:
    return f"{len(things)} {name}" + ("" if len(things) == 1 else "s")


def _colour() -> bool | None:
    """None leaves it to click, which looks for a terminal; https://no-color.org switches it off."""
    return False if os.environ.get("NO_COLOR") else None
