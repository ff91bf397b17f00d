"""The agent's wall clock, which the storm steps: as NTP does after a boot, or a virtual machine that is resumed."""

import os
import shutil
import struct
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

SECOND: Final = 10**9  # ns
BEFORE: Final = 3 * SECOND  # so long before it arrives a request may have been made
SOURCE: Final = Path(__file__).with_name("clock.c")


class Clock:
    """Real until `install`. `environment` is for a process that is to have it; each such process sees every step."""

    def __init__(self) -> None:
        self.environment: Mapping[str, str] = {}
        self.steps = [(0, 0)]  # (since: ns of the real clock, seconds ahead of it)
        self._file: Path | None = None

    def install(self, folder: Path) -> bool:
        """False where there is no C compiler, which it takes to stand between a process and its clock."""
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            return False
        library, self._file = folder / "clock.so", folder / "clock"
        subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", library, SOURCE], check=True)
        self._file.write_bytes(bytes(8))
        self.environment = {"LD_PRELOAD": str(library.resolve()), "TORTURE_CLOCK": str(self._file.resolve())}
        return True

    @property
    def installed(self) -> bool:
        return self._file is not None

    def step(self, ahead: int) -> None:
        """From now on it is so many seconds ahead of the real one, or behind."""
        assert self._file is not None
        file = os.open(self._file, os.O_WRONLY)
        try:
            os.pwrite(file, struct.pack("=q", ahead), 0)
        finally:
            os.close(file)
        self.steps.append((time.time_ns(), ahead))

    def readings(self, arrived: int) -> tuple[int, ...]:
        """What it may have shown (ns) when something was made that arrived at `arrived` (ns, real)."""
        ends = [since for since, _ in self.steps[1:]] + [arrived]
        return tuple(
            arrived + ahead * SECOND
            for (since, ahead), end in zip(self.steps, ends, strict=True)
            if since <= arrived and end >= arrived - BEFORE
        )

    def newest(self, real: int) -> int:
        """The latest time that it has shown until now, which is `real` (ns)."""
        ends = [since for since, _ in self.steps[1:]] + [real]
        return max(end + ahead * SECOND for (_, ahead), end in zip(self.steps, ends, strict=True))
