"""What tells this agent from others. It must not change when a process or a container is made anew, nor be the same
for two agents on one host: a backend would take two for one, or one for many.
"""

import hashlib
import os
import re
import secrets
import socket
from pathlib import Path
from typing import Final

from forwarder.errors import StateFolderError
from forwarder.secrets import opened

FILE: Final = "instance"
_FORM: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


def fingerprint(state_dir: Path) -> str:
    """Tells a state folder from others on this machine without telling where it is: 16 hex digits of its real path."""
    return hashlib.sha256(os.fsencode(os.path.realpath(state_dir))).hexdigest()[:16]


class Instance:
    """The configured name, else the one that is kept in the state folder. Does no I/O until it is opened."""

    def __init__(self, state_dir: Path, configured: str | None = None) -> None:
        self._path = state_dir / FILE
        self._name = configured

    def open(self, host: str | None = None) -> None:
        """Read the name, or make one of the host's name and eight hex digits. By whoever holds the folder's lock.
        Raises StateFolderError.
        """
        if self._name is not None:
            return
        try:
            self._name = self._kept() or self._made(socket.gethostname() if host is None else host)
        except OSError as error:
            raise StateFolderError(
                f"cannot use {self._path}: {error.strerror or error}. "
                "Let this user read and write it, or set instance in [agent]"
            ) from None

    def name(self) -> str:
        """RuntimeError before `open`: a bug."""
        if self._name is None:
            raise RuntimeError("the instance is not opened")
        return self._name

    def _kept(self) -> str | None:
        try:
            with opened(self._path, links=False) as file:
                text = file.read(100).decode("ascii", "replace").strip()
        except FileNotFoundError:
            return None
        return text if _FORM.fullmatch(text) else None  # what is damaged is made anew

    def _made(self, host: str) -> str:
        name = f"{re.sub(r'[^A-Za-z0-9._-]', '-', host)[:55] or 'agent'}-{secrets.token_hex(4)}"
        new = self._path.with_suffix(".new")
        # A link in its place is not followed: it could lead to anybody's file.
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(name + "\n")
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._path)
        return name
