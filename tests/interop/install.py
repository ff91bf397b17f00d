"""Make what `make interop` tests against: LiteLLM releases in environments of their own, real metrics
servers, and a real mail server.

Everything comes from the registries that this machine is configured for, and is kept for the next time. What cannot be
had is said, and its tests are skipped by name.
"""

import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Final

from interop.litellm_lab import RELEASES, environment_of, installed
from interop.places import servers

HERE: Final = Path(__file__).parent


def main() -> int:
    missing = [release for release in RELEASES if not installed(release) and not install(release)]
    bash = shutil.which("bash") or "/bin/bash"
    metrics = subprocess.run([bash, str(HERE / "servers.sh"), str(servers())], check=False)
    mail = subprocess.run([bash, str(HERE / "mailserver.sh"), str(servers() / "mail")], check=False)
    for release in missing:
        say(f"NOT INSTALLED: LiteLLM {release}; its tests will be skipped")
    if metrics.returncode:
        say("NOT INSTALLED: Prometheus and VictoriaMetrics; their tests will be skipped")
    if mail.returncode:
        say("NOT INSTALLED: Exim; the tests against a real mail server will be skipped")
    return 0


def install(release: str) -> bool:
    folder = environment_of(release)
    say(f"installing LiteLLM {release} (0.6 to 0.8 GB, about a minute) in {folder}")
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    # The lock is complete.
    lock = HERE / "locks" / f"requirements-{release}.lock"
    command = [str(folder / "bin" / "pip"), "--quiet", "install", "--no-deps", "-r", str(lock)]
    if subprocess.run(command, check=False).returncode:
        return False
    (folder / ".complete").touch()
    return True


def say(text: str) -> None:
    sys.stderr.write(f"interop: {text}\n")


if __name__ == "__main__":
    sys.exit(main())
