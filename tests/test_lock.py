"""One agent per state folder, also when somebody tidies the folder up."""

import shutil
from pathlib import Path

import pytest

from forwarder.errors import StateFolderBusy
from forwarder.spool.lock import StateLock


def test_a_lock_whose_file_was_removed_is_taken_again(tmp_path: Path) -> None:
    """`rm -rf` of the folder of a running agent does not let a second one in."""
    lock = StateLock(tmp_path / "state")
    lock.acquire()
    shutil.rmtree(tmp_path / "state")
    lock.keep()
    with pytest.raises(StateFolderBusy):
        StateLock(tmp_path / "state").acquire()
    lock.release()


def test_a_lock_that_another_has_taken_meanwhile_is_not(tmp_path: Path) -> None:
    """Then the first must stop."""
    lock, other = StateLock(tmp_path / "state"), StateLock(tmp_path / "state")
    lock.acquire()
    shutil.rmtree(tmp_path / "state")
    other.acquire()
    with pytest.raises(StateFolderBusy):
        lock.keep()
    other.release()


def test_keeping_what_is_held_changes_nothing(tmp_path: Path) -> None:
    """Nor does keeping what was never taken."""
    StateLock(tmp_path).keep()
    lock = StateLock(tmp_path)
    lock.acquire()
    lock.keep()
    with pytest.raises(StateFolderBusy):
        StateLock(tmp_path).acquire()
    lock.release()
