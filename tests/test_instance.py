"""What tells agents apart stays the same for one and is never the same for two."""

from pathlib import Path

import pytest

from forwarder.errors import StateFolderError
from forwarder.instance import FILE, Instance


def opened(folder: Path, host: str = "web-1") -> str:
    instance = Instance(folder)
    instance.open(host)
    return instance.name()


def test_it_stays_the_same_also_in_a_container_made_anew(tmp_path: Path) -> None:
    """A new container has another host name, and the volume of the old one."""
    first = opened(tmp_path)
    assert first.startswith("web-1-")
    assert opened(tmp_path, "web-2") == first


def test_two_agents_on_one_host_differ(tmp_path: Path) -> None:
    """Each has a state folder of its own."""
    for name in "ab":
        (tmp_path / name).mkdir()
    assert opened(tmp_path / "a") != opened(tmp_path / "b")


def test_the_configured_name_is_used_and_nothing_is_written(tmp_path: Path) -> None:
    instance = Instance(tmp_path, "mine")
    instance.open()
    assert instance.name() == "mine"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("host", ["", "h" * 300, "a host\nwith=odd,chars", "höst"])
def test_any_host_name_makes_a_plain_name(tmp_path: Path, host: str) -> None:
    """Whatever the host is called, what is kept is read again."""
    name = opened(tmp_path, host)
    assert len(name) <= 64
    assert opened(tmp_path) == name


@pytest.mark.parametrize("damage", [b"", b"\x00" * 20, b"two words", b"x" * 1000])
def test_a_damaged_file_is_made_anew(tmp_path: Path, damage: bytes) -> None:
    """A crash of the machine may leave an empty file."""
    (tmp_path / FILE).write_bytes(damage)
    name = opened(tmp_path)
    assert name.startswith("web-1-")
    assert opened(tmp_path) == name


def test_a_folder_that_cannot_be_used_is_told_with_the_fix(tmp_path: Path) -> None:
    """Not by a traceback."""
    (tmp_path / FILE).mkdir()
    with pytest.raises(StateFolderError, match=r"instance: Is a directory.*set instance in \[agent\]"):
        opened(tmp_path)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """What it leads to would be sent to every backend."""
    (tmp_path / "key").write_text("hf_CANARYabcdefghij1234")
    (tmp_path / FILE).symlink_to(tmp_path / "key")
    with pytest.raises(StateFolderError, match="instance: Too many levels of symbolic links"):
        opened(tmp_path)


def test_making_one_does_no_io_and_asking_too_early_is_a_bug(tmp_path: Path) -> None:
    """Sinks are built before the state folder is there."""
    with pytest.raises(RuntimeError):
        Instance(tmp_path / "missing").name()
