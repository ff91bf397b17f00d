"""`check` and `inspect`: a proxy as it is now."""

import asyncio
import json
import math
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import click

from forwarder import config as settings
from forwarder import inspection
from forwarder.build import build_clients
from forwarder.cli.common import KEY_ENV, PROGRAM, config_option, json_option, say, targets
from forwarder.config import Config
from forwarder.errors import Exit, OutputError
from forwarder.inspection import View
from forwarder.normalize.reading import Endpoint


@click.command()
@click.argument("url", required=False)
@config_option
@click.option("--timeout", type=click.FloatRange(0.1, 300), default=5.0, show_default=True, help="Seconds, in all.")
@click.option("--quiet", "-q", is_flag=True, help="Say nothing; the exit code tells.")
def check(url: str | None, config_path: Path | None, timeout: float, *, quiet: bool) -> int:
    """Is the proxy healthy? One line and an exit code: 0 yes, 1 no (or not known), 2 unreachable.

    Reads liveliness and readiness only: needs no key and never costs money, fit for a Docker HEALTHCHECK. Without URL,
    checks every target of the configuration.
    """
    config = targets(url, config_path)
    views = asyncio.run(_look(config, inspection.ESSENTIAL, _finite(timeout)))
    if not quiet:
        _say_all(f"{view.status}: {view.label}: {view.why}" for view in views)
    return max(_exit_code(view) for view in views)


@click.command()
@click.argument("url", required=False)
@config_option
@click.option("--target", "-t", "name", help="Only this target of the configuration.")
@click.option("--key-env", help=f"With URL: variable that holds the key.  [default: {KEY_ENV}]")
@click.option("--yes/--no", "-y/-n", "consent", default=None, help="Whether to call /health though it may be billed.")
@click.option("--timeout", type=click.FloatRange(0.1, 300), default=10.0, show_default=True, help="Seconds.")
@json_option
def inspect(  # noqa: PLR0913 - one argument per option
    url: str | None,
    config_path: Path | None,
    name: str | None,
    key_env: str | None,
    timeout: float,
    *,
    consent: bool | None,
    as_json: bool,
) -> int:
    """Show a proxy in detail: status, release, dependencies, and each deployment with its class of failure.

    Asks before GET /health, which makes one real, billed call to every deployment unless the proxy checks in the
    background; --yes and --no answer beforehand. These calls are not in the agent's budget. Exit codes are those of
    `check`.
    """
    config, timeout = _chosen(url, config_path, name, key_env), _finite(timeout)
    views = [_inspect(config.model_copy(update={"targets": (target,)}), consent, timeout) for target in config.targets]
    if as_json:
        _say_all([json.dumps([inspection.as_json(view) for view in views], indent=2)])
    else:
        _say_all(["\n\n".join(inspection.as_text(view) for view in views)])
    if url is not None and config.targets[0].api_key is None and any(view.wants_key for view in views):
        click.echo(
            f"with a key more is shown: set {key_env or KEY_ENV}, or name another variable by --key-env", err=True
        )
    return max(_exit_code(view) for view in views)


def _finite(timeout: float) -> float:
    if math.isnan(timeout):  # which click takes to be in every range
        raise click.UsageError("--timeout must be a number")
    return timeout


def _chosen(url: str | None, config_path: Path | None, name: str | None, key_env: str | None) -> Config:
    if url is not None and name is not None:
        raise click.UsageError("give a URL or --target, not both")
    if key_env is not None and not os.environ.get(key_env):
        raise click.UsageError(f"--key-env: environment variable {key_env} is not set")
    config = targets(url, config_path, key_env or KEY_ENV)
    if name is None:
        return config
    chosen = tuple(target for target in config.targets if target.name == name)
    if not chosen:
        known = ", ".join(target.name for target in config.targets)
        raise click.UsageError(f"no target {name!r} in the configuration; there are: {known}")
    return config.model_copy(update={"targets": chosen})


def _inspect(config: Config, consent: bool | None, timeout: float) -> View:
    """One target: everything that is free, then /health if that is free too or somebody agreed to pay."""
    (target,) = config.targets
    (view,) = asyncio.run(_look(config, inspection.CHEAP, timeout))
    if not _may_ask(view, consent, keyed=target.api_key is not None):
        return view
    (more,) = asyncio.run(_look(config, ("health",), target.health.timeout))
    return View(view.target, view.url, {**view.said, **more.said})


def _may_ask(view: View, consent: bool | None, *, keyed: bool) -> bool:
    if consent is not None or view.background or view.status == "unreachable":
        return consent is not False and view.status != "unreachable"
    if not sys.stdin.isatty() or not sys.stderr.isatty():
        return False
    click.echo(inspection.billed_warning(view, keyed) + ".", err=True)
    return click.confirm(f"Call it on {view.label}?", err=True)


async def _look(config: Config, endpoints: tuple[Endpoint, ...], timeout: float) -> list[View]:
    clients = build_clients(config)
    try:
        return await asyncio.gather(
            *(
                inspection.look(
                    client,
                    None if target.name == settings.UNNAMED else target.name,
                    target.url,
                    endpoints,
                    timeout=timeout,
                    keyed=target.api_key is not None,
                )
                for client, target in zip(clients, config.targets, strict=True)
            )
        )
    finally:
        for client in clients:
            await client.close()


def _say_all(texts: Iterable[str]) -> None:
    """The exit code tells how the proxy is, and must do so also where nothing can be written (a full disk)."""
    try:
        for text in texts:
            say(text, coloured=True)
    except OutputError as error:
        click.echo(f"{PROGRAM}: {error}", err=True)


def _exit_code(view: View) -> Exit:
    return {"healthy": Exit.OK, "unreachable": Exit.UNREACHABLE}.get(view.status, Exit.UNHEALTHY)
