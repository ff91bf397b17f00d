"""The console's lines, and what a standard output can be. The promises of every sink are in test_sink_contract.py."""

import contextlib
import json
import os
import resource
import select
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from forwarder.events import Batch, Change, Delta, Event, Histogram, Metric, Resource
from forwarder.sinks.base import Blocked, Delivered, Outcome, Retry
from forwarder.sinks.console import PIPE_BUF, ConsoleSink, line, rfc3339

TIME = 1_795_417_930_123_456_789
STAMP = "2026-11-23T07:12:10.123456789Z"


def batch(*events: Event) -> Batch:
    return Batch(Resource({"litellm.target": "eu"}), TIME, events)


def gauge(value: float, **attributes: str | int) -> Metric:
    return Metric("litellm.up", "gauge", "1", TIME, value, dict(attributes))


def record(event: Event) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(line(event, batch(event)))
    return read


# --- the format ---------------------------------------------------------------------------------------------------


def test_a_gauge_is_the_documented_line() -> None:
    """Other programs are written against this line: fields, order and notation are API."""
    event = gauge(1.0, model="gpt-4o", code=200)
    assert line(event, batch(event)) == (
        f'{{"name":"litellm.up","kind":"gauge","value":1.0,"unit":"1","time":"{STAMP}",'
        '"attributes":{"model":"gpt-4o","code":200},"resource":{"litellm.target":"eu"}}\n'
    )


def test_a_sum_tells_its_start_and_what_it_grew_by() -> None:
    """A reader that wants deltas need not keep the previous reading."""
    event = Metric("requests", "sum", "{request}", TIME, 12.0, {}, TIME - 10**9, delta=Delta(TIME - 10**6, 3.0))
    assert record(event) == {
        "name": "requests",
        "kind": "sum",
        "value": 12.0,
        "unit": "{request}",
        "start_time": "2026-11-23T07:12:09.123456789Z",
        "delta": {"since": "2026-11-23T07:12:10.122456789Z", "value": 3.0},
        "time": STAMP,
        "attributes": {},
        "resource": {"litellm.target": "eu"},
    }


def test_a_histogram_has_buckets_instead_of_a_value() -> None:
    """Unknown is absence: there is no `value` that could be taken for one."""
    shape, grown = Histogram((0.5, 1.0), (1, 2, 3), 7.5, 6), Histogram((0.5, 1.0), (0, 1, 0), 0.75, 1)
    event = Metric("latency", "histogram", "s", TIME, None, {}, TIME, shape, Delta(TIME, None, grown))
    read = record(event)
    assert "value" not in read
    assert read["histogram"] == {"bounds": [0.5, 1.0], "counts": [1, 2, 3], "sum": 7.5, "count": 6}
    assert read["delta"] == {
        "since": STAMP,
        "histogram": {"bounds": [0.5, 1.0], "counts": [0, 1, 0], "sum": 0.75, "count": 1},
    }


def test_a_change_has_words_instead_of_a_value() -> None:
    """A change is told apart from a metric by its kind."""
    event = Change("litellm.proxy.down", TIME, "error", "eu is down", "It does not answer.", {"code": 503})
    assert record(event) == {
        "name": "litellm.proxy.down",
        "kind": "change",
        "severity": "error",
        "title": "eu is down",
        "text": "It does not answer.",
        "time": STAMP,
        "attributes": {"code": 503},
        "resource": {"litellm.target": "eu"},
    }


@pytest.mark.parametrize(
    ("time_ns", "text"),
    [
        (0, "1970-01-01T00:00:00.000000000Z"),
        (1, "1970-01-01T00:00:00.000000001Z"),
        (-1, "1969-12-31T23:59:59.999999999Z"),
        (TIME, STAMP),
        (1_709_164_799_999_999_999, "2024-02-28T23:59:59.999999999Z"),
        (2**63 - 1, "2262-04-11T23:47:16.854775807Z"),
    ],
)
def test_times_are_rfc_3339_to_the_nanosecond(time_ns: int, text: str) -> None:
    """A float of seconds would lose the last digits."""
    assert rfc3339(time_ns) == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_read_back_the_same(value: float) -> None:
    """Bit for bit, including -0.0, subnormal numbers and whole numbers beyond 2**53."""
    assert repr(record(gauge(value))["value"]) == repr(value)


@given(st.text(st.characters(exclude_categories=())))
@example("".join(map(chr, range(0x100))) + "\u2028\u2029\ufeff\ud800")
def test_a_line_is_printable_ascii(text: str) -> None:
    """Whatever a text holds (surrogates, C0, DEL, C1, U+2028), a terminal and a line reader see one plain line."""
    event = Change(text, TIME, "info", text, text, {text: text})
    written = line(event, Batch(Resource({text: text}), TIME, (event,)))
    assert written.endswith("}\n")
    assert set(written[:-1]) <= set(map(chr, range(32, 127)))


# --- what a standard output can be --------------------------------------------------------------------------------


def sent(values: Sequence[int], length: int = 0) -> list[Batch]:
    return [batch(*(gauge(float(value), text="x" * length) for value in values))]


def values(data: bytes) -> list[object]:
    return [json.loads(text)["value"] for text in data.decode().splitlines()]


def answer_of(sink: ConsoleSink, batches: list[Batch], *, timeout: float, reader: int) -> list[Outcome]:
    """The outcome, if there is one within seconds. Closes `reader`, which frees a send that hangs."""
    answers: list[Outcome] = []
    sending = threading.Thread(target=lambda: answers.append(sink.send(batches, timeout=timeout)))
    sending.start()
    sending.join(timeout + 5)
    found = list(answers)
    os.close(reader)
    sending.join()
    return found


def reads(fd: int) -> tuple[bytearray, threading.Thread]:
    """What a thread reads, until the other end is closed."""
    got = bytearray()

    def read() -> None:
        while data := os.read(fd, 1 << 16):
            got.extend(data)

    thread = threading.Thread(target=read)
    thread.start()
    return got, thread


def test_a_file_is_appended_to_where_the_others_write(tmp_path: Path) -> None:
    """`> file 2>&1` shares one offset: neither we nor our log may overwrite the other."""
    path = tmp_path / "out"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    other = os.dup(fd)
    sink = ConsoleSink("c", fd)
    assert sink.send(sent(range(2)), timeout=5) == Delivered()
    os.write(other, b'{"value":"log"}\n')
    assert sink.send(sent(range(2, 4)), timeout=5) == Delivered()
    os.close(fd)
    os.close(other)
    assert values(path.read_bytes()) == [0.0, 1.0, "log", 2.0, 3.0]


def test_a_socket_is_written_like_a_pipe() -> None:
    """Under systemd, standard output is a socket of the journal. It cannot be opened again, and need not be."""
    reader, writer = socket.socketpair()
    with reader, writer:
        sink = ConsoleSink("c", writer.fileno())
        assert sink.send(sent(range(3)), timeout=5) == Delivered()
        assert values(reader.recv(1 << 16)) == [0.0, 1.0, 2.0]
        start = time.monotonic()
        assert isinstance(sink.send(sent(range(3000), 500), timeout=0.2), Retry)
        assert time.monotonic() - start < 1.2


def test_a_full_disk_is_a_retry() -> None:
    """The reason is the system's own words."""
    fd = os.open("/dev/full", os.O_WRONLY)
    outcome = ConsoleSink("c", fd).send(sent(range(1)), timeout=5)
    os.close(fd)
    assert outcome == Retry("standard output cannot be written: No space left on device")


def test_what_fits_on_a_disk_that_fills_is_written_once(tmp_path: Path) -> None:
    """The lines before the one that does not fit are in the file: they do not go again with it."""
    path, lines = tmp_path / "out", len(line(sent([0])[0].events[0], sent([0])[0]))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with path.open("ab", buffering=0) as file:
        sink = ConsoleSink("c", file.fileno())
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 * lines + 10, before[1]))
        try:
            outcome = sink.send(sent(range(4)), timeout=5)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert outcome == Retry("standard output cannot be written: File too large", delivered=2)
        assert sink.send(sent(range(2, 4)), timeout=5) == Delivered()
    first, second, cut, *rest = path.read_bytes().splitlines(keepends=True)
    assert values(b"".join([first, second, *rest])) == [0.0, 1.0, 2.0, 3.0]
    assert len(cut) == 10 + 1


def test_a_closed_standard_output_is_a_retry() -> None:
    """`>&-` starts the agent without one: nothing is delivered, nothing crashes."""
    fd = os.open("/dev/null", os.O_WRONLY)
    os.close(fd)
    outcome = ConsoleSink("c", fd).send(sent(range(1)), timeout=5)
    assert outcome == Retry("standard output cannot be written: Bad file descriptor")


@pytest.mark.parametrize("kind", [os.pipe, os.openpty])
def test_the_shared_descriptor_is_left_as_it_is(kind: Any) -> None:
    """To make standard output non-blocking would do it to the shell and to our log as well. Nothing else is left open
    either, and after `close` the process still has its standard output.
    """
    reader, writer = kind()
    sink = ConsoleSink("c", writer)
    sink.send(sent(range(1)), timeout=5)
    before = len(list(Path("/proc/self/fd").iterdir()))
    sink.send(sent(range(1)), timeout=5)
    sink.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    (answer,) = answer_of(sink, sent(range(1000), 500), timeout=0.1, reader=reader)
    assert isinstance(answer, Retry)
    assert os.get_blocking(writer)
    os.close(writer)


def test_lines_of_others_stay_whole() -> None:
    """`2>&1 | reader`: the log and the events share a pipe, and neither cuts the other's lines."""
    reader, writer = os.pipe()
    got, reading = reads(reader)

    def log() -> None:
        for _ in range(2000):
            os.write(writer, b'{"value":"log"}\n')

    logging = threading.Thread(target=log)
    logging.start()
    sink = ConsoleSink("c", writer)
    outcomes = [sink.send(sent(range(1000), 700), timeout=20) for _ in range(3)]
    logging.join()
    os.close(writer)
    reading.join()
    os.close(reader)
    assert outcomes == [Delivered()] * 3
    found = values(bytes(got))
    assert found.count("log") == 2000
    assert [value for value in found if value != "log"] == [float(value) for value in range(1000)] * 3


def test_a_pipe_that_fills_between_poll_and_write_does_not_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """poll() says that there is room; by the time of the write another writer has taken it, and nobody reads."""
    reader, writer = os.pipe()
    other = os.open(f"/proc/self/fd/{writer}", os.O_WRONLY | os.O_NONBLOCK)
    real = select.poll

    class Overtaken:
        def __init__(self) -> None:
            self._poller = real()
            self.register = self._poller.register

        def poll(self, milliseconds: float) -> object:
            found = self._poller.poll(milliseconds)
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(other, bytes(PIPE_BUF))
            return found

    monkeypatch.setattr(select, "poll", Overtaken)
    answers = answer_of(ConsoleSink("c", writer), sent(range(1)), timeout=0.2, reader=reader)
    os.close(other)
    os.close(writer)
    assert answers == [Retry("standard output takes no more: its reader is too slow")]


def test_a_line_longer_than_a_pipe_takes_is_ended_before_it_is_repeated() -> None:
    """A reader sees a broken line, then the whole one: never half a line glued to the next."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    sink = ConsoleSink("c", writer)
    batches = [batch(gauge(1.0, text="x" * 200_000), gauge(2.0))]
    assert isinstance(sink.send(batches, timeout=0.1), Retry)
    first = os.read(reader, 1 << 20)
    assert b"\n" not in first
    os.set_blocking(reader, True)
    rest, reading = reads(reader)
    assert sink.send(batches, timeout=20) == Delivered()
    os.close(writer)
    reading.join()
    os.close(reader)
    assert rest.startswith(b"\n")
    assert values(bytes(rest[1:])) == [1.0, 2.0]


def test_a_slow_reader_gets_every_line_once() -> None:
    """What an attempt did write is said, so that the next goes on behind it: progress, and no duplicates."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)  # an attempt that the machine held up until its timeout has written nothing
    sink = ConsoleSink("c", writer)
    left, got = list(range(2000)), bytearray()
    outcome: Outcome = Retry("not tried")
    for _ in range(500):
        outcome = sink.send(sent(left, 100), timeout=0.05)
        with contextlib.suppress(BlockingIOError):
            got += os.read(reader, 16_384)  # slower than one attempt's worth
        if isinstance(outcome, Delivered):
            break
        assert isinstance(outcome, Retry)
        left = left[outcome.delivered :]
    assert isinstance(outcome, Delivered)
    os.close(writer)
    while part := os.read(reader, 1 << 16):
        got += part
    os.close(reader)
    whole = [line for line in bytes(got).split(b"\n") if line.endswith(b"}") and line.startswith(b"{")]
    assert values(b"\n".join(whole) + b"\n") == [float(value) for value in range(2000)]


def test_half_a_line_of_an_earlier_run_is_ended_first(tmp_path: Path) -> None:
    """`>> file`, after the disk was full: the first line of this run is whole."""
    path = tmp_path / "out"
    path.write_bytes(b'{"value":1.0}\n{"val')
    with path.open("ab") as file:
        assert ConsoleSink("c", file.fileno()).send(sent(range(2)), timeout=5) == Delivered()
    lines = path.read_bytes().split(b"\n")
    assert lines[1] == b'{"val'
    assert values(b"\n".join(lines[2:])) == [0.0, 1.0]


def test_without_standard_output_nothing_is_claimed() -> None:
    """The process was started with it closed."""
    assert isinstance(ConsoleSink("c", None).send(sent(range(2)), timeout=1), Blocked)
