import copy
import json
import logging
import os
import pickle
import traceback
import tracemalloc
from pathlib import Path

import pytest

from forwarder.secrets import MAX_FILE_BYTES, Secret, SecretProblem, exposed, from_env, from_file

CANARY = "sk-CANARY-1f9c"


@pytest.mark.parametrize(
    "show",
    [
        repr,
        str,
        "{}".format,
        "{:>40}".format,
        lambda secret: f"{secret!s} {secret!r} {secret}",
        lambda secret: "%s" % secret,  # noqa: UP031 - the way logging does it
        lambda secret: repr({"key": [secret]}),
        lambda secret: json.dumps({"key": secret}, default=str),
    ],
)
def test_no_way_of_printing_shows_the_value(show: object) -> None:
    """A secret that lands in a message by mistake prints as stars."""
    assert callable(show)
    text = show(Secret(CANARY))
    assert CANARY not in text
    assert "***" in text


def test_a_log_record_does_not_show_the_value(caplog: pytest.LogCaptureFixture) -> None:
    """Logging a secret by mistake leaks nothing."""
    logging.getLogger("canary").error("key %s", Secret(CANARY), extra={"key": Secret(CANARY)})
    assert CANARY not in caplog.text
    assert CANARY not in repr(caplog.records[0].__dict__)


def test_a_traceback_of_a_bug_does_not_show_the_value() -> None:
    """An exception that was given a secret prints as stars, too."""
    assert CANARY not in "".join(traceback.format_exception(RuntimeError(Secret(CANARY))))


def test_it_is_not_pickled_and_so_not_copied() -> None:
    """No cache, queue or child process gets it by accident."""
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(Secret(CANARY))
    with pytest.raises(TypeError, match="not pickled"):
        copy.deepcopy(Secret(CANARY))


def test_it_has_no_dictionary_to_dump() -> None:
    """Tools that print an object's attributes find none."""
    assert not hasattr(Secret(CANARY), "__dict__")


def test_equal_values_are_equal_secrets() -> None:
    """A reload tells a changed key from an unchanged one."""
    assert Secret("a") == Secret("a")
    assert hash(Secret("a")) == hash(Secret("a"))
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"


def test_reveal_is_the_way_to_the_value() -> None:
    """What was read is what is sent."""
    assert from_env("KEY", {"KEY": CANARY}).reveal() == CANARY


def test_a_missing_variable_is_named() -> None:
    """The operator learns which variable to set."""
    with pytest.raises(SecretProblem) as caught:
        from_env("LITELLM_API_KEY", {})
    assert caught.value.reason == "environment variable LITELLM_API_KEY is not set"
    assert caught.value.hint


@pytest.mark.parametrize("value", ["", " ", "\n"])
def test_an_empty_variable_is_not_a_secret(value: str) -> None:
    """A key that is set to nothing is a mistake, not a key."""
    with pytest.raises(SecretProblem, match="is empty"):
        from_env("KEY", {"KEY": value})


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_file_may_end_in_a_newline(tmp_path: Path, end: str) -> None:
    """Editors and `echo` end files with a newline that is not part of the key."""
    path = tmp_path / "key"
    path.write_bytes((CANARY + end).encode())
    assert from_file(path).reveal() == CANARY


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (f"{CANARY}\nX-Evil: 1".encode(), "no HTTP header can carry"),
        (f"{CANARY}\0".encode(), "no HTTP header can carry"),
        (f"{CANARY}\u00e9".encode(), "no HTTP header can carry"),
        (CANARY.encode("utf-16"), "is not UTF-8"),
        (CANARY.encode() * MAX_FILE_BYTES, "is larger than"),
    ],
)
def test_a_file_without_a_usable_key_is_a_problem_that_shows_nothing_of_it(
    tmp_path: Path, data: bytes, reason: str
) -> None:
    """A damaged or wrong file is refused at start, and its content stays out of the message."""
    path = tmp_path / "key"
    path.write_bytes(data)
    with pytest.raises(SecretProblem, match=reason) as caught:
        from_file(path)
    assert "CANARY" not in "".join(traceback.format_exception(caught.value))


def test_a_missing_file_and_a_folder_are_problems(tmp_path: Path) -> None:
    """Both are told apart from an empty key."""
    with pytest.raises(SecretProblem, match="does not exist"):
        from_file(tmp_path / "none")
    with pytest.raises(SecretProblem, match="cannot be read"):
        from_file(tmp_path)


@pytest.mark.parametrize(
    "kind", ["pipe", "folder", "/dev/zero", "/dev/tty", "/proc/self/environ", "loop", "/proc/self/mem"]
)
def test_what_is_no_file_is_no_secret(tmp_path: Path, kind: str) -> None:
    """A pipe is not waited for, a device not read without end, and nothing of either is shown."""
    path = Path(kind) if kind.startswith("/") else tmp_path / kind
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "loop":
            path.symlink_to(path)
    why = {"pipe": "a pipe or a device", "folder": "Is a directory", "/dev/zero": "a pipe or a device"}
    expected = why.get(kind, r"cannot be read|no HTTP header can carry|is empty")
    with pytest.raises(SecretProblem, match=expected) as caught:
        from_file(path)
    assert "PATH=" not in caught.value.reason


def test_no_more_of_a_file_is_read_than_a_secret_may_have(tmp_path: Path) -> None:
    """A file of 64 GB costs no memory."""
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.truncate(64 << 30)
    tracemalloc.start()
    try:
        with pytest.raises(SecretProblem, match="is larger than"):
            from_file(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_file_that_every_user_may_read_is_exposed(reachable: Path) -> None:
    """Where it lies in a container's mount of secrets, only the container sees it, whatever its mode."""
    path = reachable / "key"
    assert not exposed(path)
    path.write_text("x")
    for mode, is_exposed in ((0o600, False), (0o640, False), (0o644, True), (0o604, True), (0o444, True)):
        path.chmod(mode)
        assert exposed(path) == is_exposed
    reachable.chmod(0o700)  # who cannot enter the folder cannot read what is in it
    assert not exposed(path)
    reachable.chmod(0o755)
    assert exposed(path)
    volume = reachable / "volume"  # as Kubernetes lays it out
    (volume / "..2026").mkdir(parents=True)
    (volume / "..2026" / "key").write_text("x")
    (volume / "..data").symlink_to("..2026")
    (volume / "key").symlink_to("..data/key")
    assert not exposed(volume / "key")
    (volume / "..2026" / "sub").mkdir()
    (volume / "..2026" / "sub" / "key").write_text("x")
    (volume / "sub").symlink_to("..data/sub")
    assert not exposed(volume / "sub" / "key")
