"""One agent per state folder, and nobody else's folder or files: who could put a link where the agent writes would
choose the file that it overwrites.
"""

import fcntl
import logging
import os
import stat
from pathlib import Path

from forwarder.errors import StateFolderBusy, StateFolderError

log = logging.getLogger(__name__)


class StateLock:
    """An advisory lock on `<state_dir>/lock`, held until `release` or the end of the process, however it ends.

    The file stays: removing it would let a third process lock a new file while a second still waits for the old one.
    """

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "lock"
        self._file: int | None = None

    def acquire(self) -> None:
        """Take the lock without waiting. Raises StateFolderBusy (names the holder's pid) or StateFolderError."""
        if self._file is not None:
            return
        folder = self._path.parent
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            refuse_folder(folder)
            refuse_file(self._path)
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise StateFolderError(unusable(folder, error)) from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(file, 0)
            os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
        except BlockingIOError:
            holder = os.pread(file, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(file)
            raise StateFolderBusy(
                f"another litellm-forwarder (pid {holder}) uses the state folder {folder}; "
                "stop it, or give this one a state_dir of its own in [agent]"
            ) from None
        except OSError as error:
            os.close(file)
            raise StateFolderError(unusable(folder, error)) from None
        self._file = file

    def keep(self) -> None:
        """Take the lock again if its file was removed or replaced, with the folder perhaps: a second agent would find
        it free. Raises as `acquire` does.
        """
        if self._file is None:
            return
        try:
            if self._path.stat().st_ino == os.fstat(self._file).st_ino:
                return
        except OSError:
            pass  # it is gone
        self.release()
        self.acquire()

    def release(self) -> None:
        """Give the lock back; safe twice."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def refuse_folder(folder: Path) -> None:
    """Raise StateFolderError for a folder, or a link to one, that another user made. Raises OSError too. A link of
    one's own or root's is followed: systemd makes one for `DynamicUser`.
    """
    for found in (folder.lstat(), folder.stat()):
        if not _trusted(found):
            raise StateFolderError(
                f"the state folder {folder} belongs to another user (uid {found.st_uid}), who could make the agent "
                "write elsewhere; give it to this user (chown), or set state_dir in [agent] to another one"
            )
    if open_to_all(folder):
        log.warning(
            "every user may write the state folder: others can remove or replace what is in it",
            extra={"fields": {"folder": folder, "fix": f"chmod o-w {folder}"}},
        )


def open_to_all(folder: Path) -> bool:
    """Whether every user may write it. A volume of a container often is so, and seen by it alone."""
    return bool(folder.stat().st_mode & stat.S_IWOTH) and not folder.is_mount()


def refuse_file(path: Path, *, owner: bool = True) -> None:
    """Raise StateFolderError for a link in a file's place, and for another user's file unless `owner` is False."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISLNK(found.st_mode):
        raise StateFolderError(f"{path} is a link, which the agent does not follow; remove it, or move the file here")
    if owner and not _trusted(found):
        raise StateFolderError(
            f"{path} belongs to another user (uid {found.st_uid}); remove it, or give it to this one"
        )


def _trusted(found: os.stat_result) -> bool:
    return found.st_uid in (0, os.geteuid())


def unusable(folder: Path, error: OSError) -> str:
    """The message of a StateFolderError: what, where and how to fix it."""
    name = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else folder
    if name.parent == folder:  # the folder is right, and a file in it is not
        return f"cannot use {name}: {error.strerror or error}. Give it to this user (chown), or move it away"
    reason = (
        "it is not a folder" if isinstance(error, FileExistsError | NotADirectoryError) else error.strerror or error
    )
    return (
        f"cannot use the state folder {folder}: {reason}. "
        "Make it a folder that this user may write, or set state_dir in [agent] to another one"
    )
