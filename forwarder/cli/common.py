"""What the commands share: options, the configuration, the spool."""

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine, Sized
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from forwarder import config as settings
from forwarder import logs
from forwarder.agent import build_spool
from forwarder.config import Config
from forwarder.spool.base import Spool

T = TypeVar("T")

PROGRAM: Final = "litellm-forwarder"

config_option = click.option(
    "--config",
    "-c",
    "config_path",
    type=click.Path(path_type=Path),
    help="Configuration file. Default: ./config.toml, then /etc/litellm-forwarder/config.toml.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="For programs.")


def start(config_path: Path | None) -> Config:
    """The configuration, with logging as it says."""
    config = load(config_path)
    logs.configure(config.agent.log_level, sys.stderr)
    return config


def load(config_path: Path | None, *, secrets: bool = True) -> Config:
    return settings.load(settings.find(config_path, os.environ, Path.cwd()), os.environ, secrets=secrets)


def targets(url: str | None, config_path: Path | None, key_env: str = "LITELLM_API_KEY") -> Config:
    """The configuration of what to look at: one URL, or the configured targets."""
    logs.configure("error", sys.stderr)
    if url is None:
        return load(config_path)
    if config_path is not None:
        raise click.UsageError("give a URL or --config, not both")
    return settings.for_url(url, key_env, os.environ)


def with_spool(config_path: Path | None, act: Callable[[Spool], Coroutine[Any, Any, T]]) -> T:
    """Run something on the configured spool, beside a running agent if there is one."""
    config = load(config_path, secrets=False)
    logs.configure(config.agent.log_level, sys.stderr)

    async def run() -> T:
        opened = build_spool(config, owner=False)
        await opened.open()
        try:
            return await act(opened)
        finally:
            await opened.close()

    return asyncio.run(run())


def many(things: Sized, name: str) -> str:
    return f"{len(things)} {name}" + ("" if len(things) == 1 else "s")


def colour() -> bool | None:
    """None leaves it to click, which looks for a terminal; https://no-color.org switches it off."""
    return False if os.environ.get("NO_COLOR") else None
