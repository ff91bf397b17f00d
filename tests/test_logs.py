"""Log lines: one each, whatever is in them."""

import io
import logging
from collections.abc import Iterator

import pytest

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


def test_libraries_are_quiet() -> None:
    """At INFO, httpx logs whole URLs."""
    stream = io.StringIO()
    logs.configure("debug", stream)
    logging.getLogger("httpx").info("HTTP Request: GET https://user:pw@host")
    logging.getLogger("forwarder.x").debug("ours")
    assert "ours" in stream.getvalue()
    assert "HTTP" not in stream.getvalue()
