"""Secrets: where they come from (`{ env = … }` or `{ file = … }`, never inline) and a type that never prints.

Layer 1; knows no configuration library, so that `config` decides how problems are reported.
"""

import errno
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, Final

MAX_FILE_BYTES: Final = 64 * 1024


class SecretProblem(Exception):  # noqa: N818 - carried into a configuration Problem, never shown as an error of its own
    """Why a reference gives no secret, and the fix. Never holds any part of a value."""

    def __init__(self, reason: str, hint: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint


class Secret:
    """A value that `repr`, `str`, `format`, pickling and logging cannot show; `reveal()` is the only way to it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__

    def __format__(self, _spec: str) -> str:
        return repr(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a Secret is not pickled")


def from_env(name: str, environ: Mapping[str, str]) -> Secret:
    value = environ.get(name)
    if value is None:
        raise SecretProblem(f"environment variable {name} is not set", f"export {name}=… before starting")
    return _checked(value, f"environment variable {name}")


def from_file(path: Path, label: str = "") -> Secret:
    """Read a secret file: UTF-8 text, one trailing newline dropped, at most MAX_FILE_BYTES.

    `label` is what messages call it, where the path itself should not be shown.
    """
    label = label or f"secret file {path}"
    try:
        with opened(path) as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise SecretProblem(f"{label} does not exist", "create it, or correct the path") from None
    except PermissionError:
        raise SecretProblem(f"{label} may not be read", "give the agent's user read access") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise SecretProblem(f"{label} cannot be read: {reason}", "") from None
    if len(data) > MAX_FILE_BYTES:
        raise SecretProblem(f"{label} is larger than {MAX_FILE_BYTES} bytes", "is it the right file?")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise SecretProblem(f"{label} is not UTF-8 text", "is it the right file?") from None
    return _checked(text.rstrip("\r\n"), label)


def opened(path: Path, *, links: bool = True) -> BinaryIO:
    """A file to read. Raises OSError, also for what is no file: a pipe would be waited for, a device has no end; and
    for a link, unless `links` may be followed.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if links else os.O_NOFOLLOW))
    kind = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(kind):
        os.close(descriptor)
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a file")
    return os.fdopen(descriptor, "rb")


def exposed(path: Path) -> bool:
    """Whether every user of the machine may read the file, and reach it. What a container is given is often so and
    seen by it alone: Compose and Swarm mount secrets in /run/secrets, Kubernetes with a link `..data` beside or above.
    """
    try:
        if not path.stat().st_mode & stat.S_IROTH or any((each / "..data").is_symlink() for each in path.parents):
            return False
        folders = path.resolve().parents
        return Path("/run/secrets") not in folders and all(each.stat().st_mode & stat.S_IXOTH for each in folders)
    except (OSError, ValueError):
        return False


def _checked(value: str, source: str) -> Secret:
    if not value.strip():
        raise SecretProblem(f"{source} is empty", "a secret was expected")
    if not value.isascii() or not value.isprintable():
        raise SecretProblem(
            f"{source} holds characters that no HTTP header can carry",
            "line breaks or non-ASCII: was it pasted whole?",
        )
    return Secret(value)
