"""Every exception the project raises on purpose, and the exit codes they become.

    ForwarderError
    ├── ConfigError            the configuration cannot be used; carries every problem found
    ├── StateFolderError       the state folder cannot be used at all (start only)
    │   └── StateFolderBusy    another agent uses it
    ├── OutputError            standard output cannot be written
    ├── SpoolUnavailable       the spool cannot take or settle data now (full or read-only disk)
    └── CodecError             stored bytes are not a batch this version can read

Outcomes of deliveries are values (`forwarder.sinks.base`), not exceptions: an exception out of a sink is a bug.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final


class Exit(IntEnum):
    """Exit codes, which are API. `check` uses 0, 1 and 2 as Docker's HEALTHCHECK and the user's scripts expect;
    the others are those of sysexits.h.
    """

    OK = 0
    UNHEALTHY = 1
    UNREACHABLE = 2
    USAGE = 64
    BUG = 70
    STATE = 73
    OUTPUT = 74
    BUSY = 75
    CONFIG = 78
    INTERRUPTED = 130


EXIT_MEANINGS: Final = {
    Exit.OK: "all is well",
    Exit.UNHEALTHY: "`check`, `inspect`: a proxy is unhealthy, or its state is not known; `status`: something is the "
    "matter; `alive`: the agent is not; `doctor`: a check failed; `poll --once`: events are left in the "
    "spool; `spool`: the ledger does not add up, or an id is no dead letter; `notify test`: a message was not taken",
    Exit.UNREACHABLE: "`check`, `inspect`: a proxy cannot be reached; `status`: no agent answers",
    Exit.USAGE: "the command line is wrong",
    Exit.BUG: "a bug in litellm-forwarder",
    Exit.STATE: "the state folder or the spool cannot be used",
    Exit.OUTPUT: "standard output cannot be written",
    Exit.BUSY: "another agent uses the state folder",
    Exit.CONFIG: "the configuration is wrong; every problem is listed",
    Exit.INTERRUPTED: "interrupted (Ctrl-C) before or beside the agent's own work",
}


class ForwarderError(Exception):
    """Base of all. `str()` is one message for an operator: what, where and how to fix it. Never holds a secret."""

    exit_code: Exit = Exit.BUG


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a configuration.

    `path` is dotted, as in `targets[0].health.interval`; `hint` is the likely fix, or empty.
    """

    path: str
    reason: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" + (f" ({self.hint})" if self.hint else "")


class ConfigError(ForwarderError):
    exit_code = Exit.CONFIG

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        self.source = source
        self.problems = tuple(problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        lines = [f"{source}: {count}", *(f"  {problem}" for problem in self.problems)]
        super().__init__("\n".join(lines))


class StateFolderError(ForwarderError):
    exit_code = Exit.STATE


class StateFolderBusy(StateFolderError):  # noqa: N818 - a state, named as operators see it
    exit_code = Exit.BUSY


class OutputError(ForwarderError):
    exit_code = Exit.OUTPUT


class SpoolUnavailable(ForwarderError):  # noqa: N818 - a state that passes, not a mistake
    """The disk is full, read-only or failing. Nothing of the call took effect; the same call may be made again."""

    exit_code = Exit.STATE


class CodecError(ForwarderError):
    """Bytes that are not a batch: damaged, or written by a newer release."""
