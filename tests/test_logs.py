"""Log lines: one each, whatever is in them."""

import io
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forwarder import logs


@pytest.fixture(autouse=True)
def _loggers_as_they_were() -> Iterator[None]:
    """`configure` is for a process of its own; here other tests follow."""
    root, names = logging.getLogger(), ("forwarder", "apscheduler")
    before = root.handlers[:], root.level, [logging.getLogger(name).level for name in names]
    yield
    root.handlers[:], level, levels = before
    root.setLevel(level)
    for name, each in zip(names, levels, strict=True):
        logging.getLogger(name).setLevel(each)


def test_values_cannot_break_out_of_their_line() -> None:
    """Neither a line break nor a quote nor a terminal's control sequence in a value forges anything."""
    stream = io.StringIO()
    logs.configure("info", stream)
    logging.getLogger("forwarder.test").warning(
        "hello", extra=logs.fields(target="a\nb", reason='say "x" \x1b[31m\u2028', count=3, nothing=None)
    )
    (line,) = stream.getvalue().splitlines()
    assert line.endswith(r'WARNING hello target="a\nb" reason="say \"x\" \u001b[31m\u2028" count=3')


def test_a_message_with_a_line_break_stays_one_line() -> None:
    """Messages are ours, but some hold a name."""
    stream = io.StringIO()
    logs.configure("info", stream)
    logging.getLogger("forwarder.test").info("a\r\nb")
    assert len(stream.getvalue().splitlines()) == 1


ANY = st.text(
    st.characters() | st.sampled_from('\n\r\x0b\x0c\x1b\x85\u2028\u2029\u202e\u2066\ud800"\\ =<>'), max_size=30
)


@settings(deadline=None, max_examples=300)
@given(message=ANY, value=ANY, form=st.sampled_from(["text", "json"]), journal=st.booleans())
def test_any_text_in_any_field_stays_in_its_line(
    message: str, value: str, form: logs.Format, *, journal: bool
) -> None:
    """One record is one line of what can be printed, and JSON says what was said. Messages hold names."""
    record = logging.LogRecord("forwarder.x", logging.INFO, "", 0, "%s", (message,), None)
    record.fields = {"target": value, "reason": value, "error": ValueError(value)}
    line = logs.LineFormatter(form, journal=journal).format(record)
    assert len(line.splitlines()) == 1
    assert line.isprintable()
    line.encode()
    if form == "json":
        found = json.loads(line.removeprefix("<6>"))
        assert (found["message"], found["target"], found["error"]) == (message, value, value)


def test_libraries_are_quiet() -> None:
    """At INFO, httpx logs whole URLs."""
    stream = io.StringIO()
    logs.configure("debug", stream)
    logging.getLogger("httpx").info("HTTP Request: GET https://user:pw@host")
    logging.getLogger("forwarder.x").debug("ours")
    assert "ours" in stream.getvalue()
    assert "HTTP" not in stream.getvalue()


def test_json_is_one_object_a_line() -> None:
    """For programs: time, level, message and the fields, which cannot take the place of those; a traceback too."""
    stream = io.StringIO()
    logs.configure("info", stream, "json")
    log = logging.getLogger("forwarder.test")
    log.warning("a\nb", extra=logs.fields(sink="x", count=3, message="forged", reason=Path("/p")))
    key = "sk-" + "CANARY"
    try:
        int(key)  # whose error quotes it
    except ValueError:
        log.exception("bug")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert first.keys() == {"time", "level", "message", "sink", "count", "reason"}
    assert (first["level"], first["message"], first["count"], first["reason"]) == ("warning", "a\nb", 3, "/p")
    assert first["time"].endswith("Z")
    assert "test_logs.py" in second["traceback"]
    assert key not in stream.getvalue()


def test_a_traceback_shows_places_and_types_and_not_what_was_said() -> None:
    """The HTTP library quotes the header it refuses, key and all."""
    key = "sk-" + "CANARY"
    stream = io.StringIO()
    logs.configure("info", stream)
    try:
        try:
            int(key)
        except ValueError as error:
            raise KeyError(key) from error
    except KeyError:
        logging.getLogger("forwarder.test").exception("bug in polling")
    text = stream.getvalue()
    assert text.index("builtins.ValueError") < text.index("which led to:") < text.index("builtins.KeyError")
    assert "test_logs.py" in text
    assert key not in text


def test_a_librarys_line_is_one_line_and_says_whose() -> None:
    """Line breaks escaped, and of an exception its class alone."""
    stream = io.StringIO()
    logs.configure("info", stream)
    try:
        int("sk-CANARY")
    except ValueError:
        logging.getLogger("lib.net").exception("it\nfailed")
    (line,) = stream.getvalue().splitlines()
    assert line.endswith(r"ERROR it\nfailed logger=lib.net error=ValueError")


def test_the_status_servers_library_does_not_tell_of_each_request() -> None:
    """Anybody who reaches its address could fill the log."""
    stream = io.StringIO()
    logs.configure("debug", stream)
    logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
    assert not stream.getvalue()
    logging.getLogger("uvicorn.error").error("Exception in ASGI application")
    assert "Exception in ASGI" in stream.getvalue()


def test_under_journald_lines_have_a_priority_and_no_time(tmp_path: Path) -> None:
    """Each line of a traceback too. Only where standard error is what the variable says: it is inherited."""
    with (tmp_path / "err").open("w+") as stream:
        found = os.fstat(stream.fileno())
        logs.configure("debug", stream, environ={"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"})
        log = logging.getLogger("forwarder.test")
        log.info("hello", extra=logs.fields(target="eu"))
        log.debug("low")
        try:
            int("")
        except ValueError:
            log.exception("bug")
        stream.seek(0)
        lines = stream.read().splitlines()
        assert lines[0] == "<6>INFO hello target=eu"
        assert lines[1] == "<7>DEBUG low"
        assert len(lines) > 5
        assert all(line.startswith("<3>") for line in lines[2:])
        logs.configure("info", stream, environ={"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino + 1}"})
        log.info("hello")
        stream.seek(0)
        assert stream.read().splitlines()[-1].endswith("Z INFO hello")


def test_what_goes_on_is_told_again_once_an_hour() -> None:
    """Not on time and not never, also when the clock is set back."""
    hour = 3600 * 10**9
    reminder = logs.Reminder(0)
    assert [reminder.due(now) for now in (1, hour - 1, hour, hour + 1, 2 * hour)] == [False, False, True, False, True]
    assert reminder.due(hour)
    assert not reminder.due(hour + 1)
