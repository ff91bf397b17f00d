"""One agent per state folder, also when somebody tidies the folder up."""

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from forwarder.errors import StateFolderBusy, StateFolderError
from forwarder.instance import Instance
from forwarder.spool.lock import StateLock
from forwarder.spool.sqlite import SqliteSpool


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


# --- links and other users ---------------------------------------------------------------------------------------

PRECIOUS = "what an attacker would like to be overwritten"
STRANGER = 12345  # the id of another user


def opened(folder: Path) -> None:
    """What an agent opens in its state folder, in its order."""
    lock = StateLock(folder)
    lock.acquire()
    try:
        Instance(folder).open("host")
        spool = SqliteSpool(folder / "spool.db")
        asyncio.run(_open_and_close(spool))
    finally:
        lock.release()


async def _open_and_close(spool: SqliteSpool) -> None:
    await spool.open()
    await spool.close()


@pytest.mark.parametrize(
    "name", ["lock", "instance.new", "spool.db", "spool.db-wal", "spool.db-shm", "spool.db-journal"]
)
@pytest.mark.parametrize("there", [True, False])
def test_no_link_in_the_state_folder_is_followed(tmp_path: Path, name: str, *, there: bool) -> None:
    """It could lead to any file that this user may write: that would be overwritten, or made."""
    target = tmp_path / "precious"
    if there:
        target.write_text(PRECIOUS)
    folder = tmp_path / "state"
    folder.mkdir()
    (folder / name).symlink_to(target)
    with pytest.raises(StateFolderError, match=r"link"):
        opened(folder)
    assert (target.read_text() if there else target.exists()) == (PRECIOUS if there else False)


def test_a_pipe_for_the_instance_is_not_waited_for(tmp_path: Path) -> None:
    """It is no name, and nobody will write one into it."""
    os.mkfifo(tmp_path / "instance")
    with pytest.raises(StateFolderError, match="not a file"):
        Instance(tmp_path).open("host")


def given_away(path: Path) -> Path:
    os.chown(path, STRANGER, STRANGER, follow_symlinks=False)
    return path


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_another_users_folder_is_no_state_folder(tmp_path: Path) -> None:
    """Nor is a link that another user made, nor one to another user's folder: they could change what it leads to."""
    mine = tmp_path / "mine"
    mine.mkdir()
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    given_away(theirs)
    planted, to_theirs = tmp_path / "planted", tmp_path / "to-theirs"
    planted.symlink_to(mine)
    given_away(planted)
    to_theirs.symlink_to(theirs)
    for folder in (theirs, planted, to_theirs):
        with pytest.raises(StateFolderError, match="belongs to another user"):
            opened(folder)
    assert list(mine.iterdir()) == list(theirs.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("name", ["lock", "spool.db", "spool.db-wal"])
def test_another_users_file_is_none_of_ours(tmp_path: Path, name: str) -> None:
    """It may hold events that nobody saw."""
    (tmp_path / name).touch()
    given_away(tmp_path / name)
    with pytest.raises(StateFolderError, match="belongs to another user"):
        opened(tmp_path)


def test_a_link_of_ones_own_to_the_state_folder_is_followed(tmp_path: Path) -> None:
    """As systemd makes one for DynamicUser; others move the folder to a larger disk."""
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "state").symlink_to(tmp_path / "real")
    opened(tmp_path / "state")
    assert (tmp_path / "real" / "spool.db").exists()


@pytest.mark.parametrize(("mode", "told"), [(0o700, False), (0o755, False), (0o777, True), (0o1777, True)])
def test_a_state_folder_that_every_user_may_write_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int, *, told: bool
) -> None:
    """Others could replace what is in it. It works all the same."""
    folder = tmp_path / "state"
    folder.mkdir()
    folder.chmod(mode)
    opened(folder)
    assert ("every user may write the state folder" in caplog.text) == told


def test_a_state_folder_is_made_for_its_user_alone(tmp_path: Path) -> None:
    """And so is the spool in it."""
    before = os.umask(0)
    try:
        opened(tmp_path / "state")
    finally:
        os.umask(before)
    assert (tmp_path / "state").stat().st_mode & 0o077 == 0
    assert (tmp_path / "state" / "spool.db").stat().st_mode & 0o077 == 0


def test_a_file_that_is_in_the_way_is_named(tmp_path: Path) -> None:
    """The folder is right; it is the file in it that root made, say, by running a command once."""
    (tmp_path / "lock").mkdir()
    with pytest.raises(StateFolderError, match=r"cannot use \S+/lock: Is a directory. Give it to this user \(chown\)"):
        StateLock(tmp_path).acquire()


def test_a_state_folder_that_is_a_file_is_called_so(tmp_path: Path) -> None:
    """Also where it stands in the way of a folder below it."""
    (tmp_path / "state").write_text("")
    for folder in (tmp_path / "state", tmp_path / "state" / "below"):
        with pytest.raises(StateFolderError, match="it is not a folder"):
            StateLock(folder).acquire()
