"""A disk that can be filled: a small file system under the agent's state folder, or, where nothing may be mounted, a
limit on the size of the agent's files, which is all that a full disk is to it.
"""

import contextlib
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

SIZE: Final = "64m"
LINES: Final = 700  # bytes
INSIDE: Final = "TORTURE_INSIDE"
# A namespace of its own: what is mounted in there nobody else sees, and it goes with the last process in it. With a
# user namespace it needs no root.
NAMESPACES: Final = (("unshare", "--mount"), ("unshare", "--user", "--map-root-user", "--mount"))


def enter_namespace(module: str, arguments: Sequence[str]) -> None:
    """Begin this program again where it may mount. Returns where that cannot be, or where it has been done."""
    if INSIDE in os.environ:
        return
    for namespace in NAMESPACES:
        with tempfile.TemporaryDirectory() as folder, contextlib.suppress(OSError):
            trial = subprocess.run([*namespace, *_mount(Path(folder))], check=False, capture_output=True)
            if trial.returncode == 0:
                os.environ[INSIDE] = "1"
                os.execvp(namespace[0], [*namespace, sys.executable, "-m", module, *arguments])  # noqa: S606 - ourselves


def _mount(folder: Path) -> list[str]:
    return ["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=0700", "torture", str(folder)]


def remove(folder: Path) -> None:
    """With what is mounted on `state` in it."""
    if INSIDE in os.environ:
        unmount = ["umount", "--lazy", str(folder / "state")]
        subprocess.run(unmount, check=True, capture_output=True)
    shutil.rmtree(folder)


class Disk:
    """Below `folder`, the agent's state folder. `mounted`: it is a file system of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ballast = folder / "ballast"
        folder.mkdir(mode=0o700, exist_ok=True)
        self.mounted = INSIDE in os.environ
        if self.mounted:
            subprocess.run(_mount(folder), check=True)

    @property
    def kind(self) -> str:
        return (
            f"a file system of {SIZE}" if self.mounted else "RLIMIT_FSIZE on the agent (nothing may be mounted here)"
        )

    def fill(self, pid: int, output: Path) -> None:
        """Nothing more can be written: on the whole disk or, where there is none of its own, by this process."""
        if not self.mounted:
            self.limit(pid, output)
            return
        with self._ballast.open("ab", buffering=0) as file:
            for size in (1 << 20, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(size))

    def limit(self, pid: int, output: Path) -> None:
        """No file of this process may be longer than its output is now, and a line or two more."""
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (output.stat().st_size + LINES, resource.RLIM_INFINITY))

    def free(self, pid: int | None) -> None:
        self._ballast.unlink(missing_ok=True)
        if pid is not None:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
