"""The command line; thin. Exit codes are those of `errors.Exit`, documented in `--help` and docs/operations.md."""

import asyncio
import contextlib
import errno
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Final, NoReturn

import click

from forwarder.agent import Agent
from forwarder.cli.common import PROGRAM, ReaderGone, config_option, drop_unwritten, plug_standard_streams, start
from forwarder.cli.describe import catalog_, completion, validate
from forwarder.cli.doctor import doctor
from forwarder.cli.look import check, inspect
from forwarder.cli.notify import notify
from forwarder.cli.spool import spool
from forwarder.cli.status import alive, status
from forwarder.errors import EXIT_MEANINGS, Exit, ForwarderError
from forwarder.logs import Format, trace_of
from forwarder.process import run_until_signalled

EPILOG: Final = "Exit codes: " + "; ".join(f"{code.value} {text}" for code, text in EXIT_MEANINGS.items()) + "."


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(version(PROGRAM), prog_name=PROGRAM)
def cli() -> None:
    """Watch LiteLLM proxies from outside and deliver what is seen, durably, to monitoring backends."""


def main() -> NoReturn:
    """Run the command line. No traceback for anything that is not a bug of ours."""
    plug_standard_streams()
    try:
        code = cli.main(prog_name=PROGRAM, standalone_mode=False)
    except click.exceptions.Abort:
        code = Exit.INTERRUPTED
    except click.ClickException as error:
        with contextlib.suppress(OSError):  # as below
            error.show()
        code = Exit.USAGE
    except ForwarderError as error:
        _complain(f"{PROGRAM}: {error}")
        code = error.exit_code
    except ReaderGone:
        code = Exit.OK
    except KeyboardInterrupt:
        code = Exit.INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the last resort: say whose fault it is, and what to do
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            # Help and version, which click writes by itself; everything else goes through `say`.
            _complain(f"{PROGRAM}: standard output cannot be written: {error.strerror}")
            code = Exit.OUTPUT
        else:
            _complain(trace_of(error))
            _complain(f"{PROGRAM}: this is a bug in litellm-forwarder; please report it with these lines")
            code = Exit.BUG
    drop_unwritten()
    sys.exit(int(code or 0))


def _complain(text: str) -> None:
    """On standard error. Where that cannot be written either, the exit code is what is left to tell."""
    with contextlib.suppress(OSError):
        click.echo(text, err=True)


@cli.command()
@config_option
@click.option("--log-format", type=click.Choice(["text", "json"]), help="How to log.  [default: as configured]")
def run(config_path: Path | None, log_format: Format | None) -> None:
    """Poll and deliver until stopped: the main job.

    SIGTERM or Ctrl-C drains and stops; a second one stops at once. What is not delivered stays in the spool. SIGHUP
    reads the configuration again.
    """
    asyncio.run(run_until_signalled(start(config_path, log_format), log_format))


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
    delivered = asyncio.run(Agent(start(config_path).config, announce=False).once())
    return Exit.OK if delivered else Exit.UNHEALTHY


for command in (status, alive, doctor, check, inspect, validate, spool, notify, catalog_, completion):
    cli.add_command(command)
