"""The bytes of a configuration file, up to the tables that TOML makes of them."""

import tomllib
from pathlib import Path
from typing import Any, Final

from forwarder.errors import ConfigError, Problem

MAX_BYTES: Final = 2**20


def read(path: Path) -> dict[str, Any]:
    """The tables of the file. ConfigError, which repeats nothing of its text, for anything that is not TOML."""
    return _parse(path, _text(path))


def _text(path: Path) -> str:
    problem = Problem("file", "does not exist", "name one with --config")
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
        if len(data) <= MAX_BYTES:
            return data.decode("utf-8-sig")  # some editors put a mark at the beginning
        problem = Problem("file", f"is larger than {MAX_BYTES} bytes", "is it the right file?")
    except FileNotFoundError:
        pass
    except IsADirectoryError:
        problem = Problem("file", "is a folder", "name the file in it")
    except PermissionError:
        problem = Problem("file", "may not be read", "give the agent's user read access")
    except UnicodeDecodeError as error:
        problem = Problem("file", f"is not UTF-8 text (byte {error.start + 1})", "save it as UTF-8")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        problem = Problem("file", f"cannot be read: {getattr(error, 'strerror', None) or type(error).__name__}")
    raise ConfigError(str(path), [problem])


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        # Where tomllib names anything longer than a character, it is a key; those messages are replaced.
        words, _, place = str(error).rpartition(" (at ")
        hint = 'text stands in quotes: key = "value"' if words.startswith("Invalid value") else ""
        if words.startswith(("Cannot ", "Duplicate ")):
            words = "A key or a table stands twice"
        found = Problem(place.rstrip(")") or "file", f"is not TOML: {words}", hint)
    except RecursionError:
        found = Problem("file", "is nested too deeply", "is it the right file?")
    except ValueError:  # an integer of thousands of digits
        found = Problem("file", "holds a number that is too large")
    raise ConfigError(str(path), [found])
