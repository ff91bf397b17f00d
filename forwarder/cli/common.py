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
from forwarder.build import build_spool
from forwarder.config import Config, Loaded
from forwarder.config_values import Address
from forwarder.errors import ConfigError, OutputError
from forwarder.spool.base import Spool

T = TypeVar("T")

PROGRAM: Final = "litellm-forwarder"
KEY_ENV: Final = "LITELLM_API_KEY"  # where commands that are given a URL look for a key

config_option = click.option(
    "--config",
    "-c",
    "config_path",
    # Not checked here: the reader of the file says more.
    type=click.Path(readable=False, path_type=Path),
    help="Configuration file. Default: ./config.toml, then /etc/litellm-forwarder/config.toml.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="For programs.")


class ReaderGone(Exception):  # noqa: N818 - no error: `catalog | head` has seen enough
    """Whoever read our standard output has closed it."""


def plug_standard_streams() -> None:
    """Put /dev/null where the process was started without a standard stream. Else the next file or socket opened would
    get that number, and be written to as if it were the terminal.
    """
    for number, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # takes the lowest number that is free


def say(text: str, *, coloured: bool = False) -> None:
    """A line, or several, on standard output. Raises ReaderGone, or OutputError (a full disk, say)."""
    try:
        click.echo(text, color=None if coloured and not os.environ.get("NO_COLOR") else False)
        if sys.stdout is not None:  # None: the process was started without
            sys.stdout.flush()
    except BrokenPipeError:
        raise ReaderGone from None  # left as it is, click would exit with 1 for it
    except OSError as error:
        raise OutputError(f"standard output cannot be written: {error.strerror or type(error).__name__}") from None


def drop_unwritten() -> None:
    """Let the interpreter not try again, at exit, to write what could not be written."""
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def start(config_path: Path | None, log_format: logs.Format | None = None) -> Loaded:
    """The configuration, with logging as it says; or as the command line does."""
    loaded = settings.read(settings.find(config_path, os.environ, Path.cwd()), os.environ)
    logs.configure(loaded.config.agent.log_level, sys.stderr, log_format or loaded.config.agent.log_format)
    return loaded


def load(config_path: Path | None, *, secrets: bool = True) -> Config:
    return settings.load(settings.find(config_path, os.environ, Path.cwd()), os.environ, secrets=secrets)


def listen(config_path: Path | None) -> Address | None:
    """Where the agent of the configuration listens, also where the file is wrong by now."""
    return settings.listen_of(settings.find(config_path, os.environ, Path.cwd()))


def targets(url: str | None, config_path: Path | None, key_env: str = KEY_ENV) -> Config:
    """The configuration of what to look at: one URL, or the configured targets."""
    logs.configure("error", sys.stderr)
    if url is None:
        return load(config_path)
    if config_path is not None:
        raise click.UsageError("give a URL or --config, not both")
    try:
        return settings.for_url(url, key_env, os.environ)
    except ConfigError as error:
        raise click.UsageError("; ".join(f"{each.path} {each.reason}" for each in error.problems)) from None


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
