"""docs/promises.md: a promise whose check was renamed or removed is noticed."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROWS = [
    line.strip("| ").split(" | ")
    for line in (ROOT / "docs/promises.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith("| promise")
]


def test_there_are_promises() -> None:
    """Else the next test would pass on nothing."""
    assert len(ROWS) > 30


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:40])
def test_every_promise_names_a_check_that_exists(row: list[str]) -> None:
    """A verb of make, a script, or tests by file and name; of `-k`, a word in the name of a test of that file."""
    _, command = row
    program, *arguments = shlex.split(command.strip("`"))
    if program != "make":
        (script,) = arguments
        assert program == ".venv/bin/python"
        assert (ROOT / script).is_file()
        return
    verb, *rest = arguments
    assert re.search(rf"^{verb}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert bool(rest) == (verb == "test")
    words = rest[0].removeprefix("ARGS=").split() if rest else []
    words, wanted = (words[:-2], words[-1]) if "-k" in words else (words, "")
    for word in words:
        name, _, test = word.partition("::")
        # Or the class that hypothesis makes of a state machine.
        tests = re.findall(r"^(?:async )?def (test_\w+)|= \w+\.(TestCase)$", (ROOT / name).read_text(), re.MULTILINE)
        tests = ["".join(each) for each in tests]
        assert test in tests if test else any(wanted in each for each in tests)
