"""`check` and `inspect`: a proxy as it is now."""

import asyncio
import json
import sys
from pathlib import Path

import click

from forwarder import inspection
from forwarder.agent import build_clients
from forwarder.cli.common import colour, config_option, json_option, targets
from forwarder.config import Config
from forwarder.errors import Exit
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
    views = asyncio.run(_look(config, inspection.ESSENTIAL, timeout))
    if not quiet:
        for view in views:
            click.echo(f"{view.status}: {view.url}: {view.why}")
    return max(_exit_code(view) for view in views)


@click.command()
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
    config = targets(url, config_path, key_env)
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
        click.echo("\n\n".join(inspection.as_text(view) for view in views), color=colour())
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
