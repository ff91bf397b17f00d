"""deploy/systemd: what the unit says, what systemd says about it, and that the agent lives in it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from deployment import DEPLOY, SERVICE, unit

from forwarder import config
from forwarder.config_sinks import SINK_TYPES
from forwarder.errors import Exit

ANALYZE = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(ANALYZE is None, reason="NOT CHECKED: no systemd-analyze; install systemd")
# Settings that came after 252, the oldest release with which the unit was tried; older ones ignore them, as
# older-systemd.conf says.
NEWER = ("notify-reload", "RestartSteps", "RestartMaxDelaySec", "ImportCredential")


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([ANALYZE or "", *arguments], check=False, capture_output=True, text=True)


@needs_systemd
@pytest.mark.parametrize("drop_in", [None, "older-systemd.conf", "datadog-socket.conf"])
def test_systemd_understands_the_unit(tmp_path: Path, drop_in: str | None) -> None:
    """No setting is misspelt or misplaced. The program is not installed here, so another one stands in for it."""
    path = tmp_path / SERVICE.name
    program = unit(SERVICE)["ExecStart"][0].split()[0]
    path.write_text(SERVICE.read_text().replace(program, sys.executable))
    if drop_in:
        folder = tmp_path / f"{SERVICE.name}.d"
        folder.mkdir()
        shutil.copy(DEPLOY / "systemd" / drop_in, folder)
    found = analyze("verify", "--man=no", "--recursive-errors=no", str(path))
    complaints = [line for line in found.stderr.splitlines() if tmp_path.name in line or SERVICE.name in line]
    assert [line for line in complaints if not any(word in line for word in NEWER)] == []
    assert found.returncode == 0 or complaints


@needs_systemd
def test_the_sandbox_is_tight() -> None:
    """By the score of systemd itself, 0 (nothing exposed) to 10: what is left is the network."""
    found = analyze("security", "--offline=true", "--no-pager", "--threshold=20", str(SERVICE))
    (score,) = re.findall(r"Overall exposure level for \S+: ([\d.]+)", found.stdout)
    assert float(score) < 2.0
    assert found.returncode == 0


def test_the_unit_fits_the_program() -> None:
    """Times, folders and exit codes in the unit are those of the code."""
    settings = unit(SERVICE)
    drain = config.Agent.model_fields["drain_timeout"].default
    assert seconds(settings["TimeoutStopSec"][0]) > drain + longest_attempt()
    assert settings["StateDirectory"] == settings["ConfigurationDirectory"] == [Path(config.FOLDER).name]
    assert settings["RestartPreventExitStatus"] == [f"{Exit.USAGE.value} {Exit.CONFIG.value}"]
    assert settings["Type"] == ["notify-reload"]


def longest_attempt() -> float:
    """The longest default of a delivery attempt, which a drain may be in when its time is up."""
    return max(float(model.model_fields["timeout"].default) for model in SINK_TYPES.values())


def seconds(text: str) -> float:
    number, unit_ = re.fullmatch(r"(\d+)(s|min)", text).groups()  # type: ignore[union-attr]
    return int(number) * {"s": 1, "min": 60}[unit_]
