"""DogStatsD beyond the promises of every sink (test_sink_contract.py): packets, agents that come and go, and what the
environment must not change.
"""

import errno
import logging
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from backends.datadog import CLOCK, DogStatsd, Kind

from forwarder import catalog
from forwarder.events import Batch, Delta, Event, Histogram, Metric, Resource
from forwarder.sinks.base import Delivered, Outcome, Rejected, Retry
from forwarder.sinks.datadog.dogstatsd import MAX_LINE, PACKET, DogStatsdSink, why
from forwarder.sinks.datadog.points import Form

TIME = CLOCK * 10**9
UDS: list[Kind] = ["unixgram", "unixstream"]


def sink(address: str, *, timestamps: bool = True, origin: bool = False, form: Form | None = None) -> DogStatsdSink:
    return DogStatsdSink(
        "dd",
        address,
        form or Form(),
        max_age=3480,
        timestamps=timestamps,
        origin=origin,
        clock=lambda: TIME,
    )


def batch(*events: Event) -> Batch:
    return Batch(Resource({"litellm.target": "eu"}), TIME, events)


def numbered(count: int, length: int = 0) -> list[Event]:
    return [Metric("n", "gauge", "1", TIME, float(i), {"text": "x" * length}) for i in range(count)]


@pytest.fixture
def agents() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def agent(stack: ExitStack, kind: Kind) -> DogStatsd:
    started = DogStatsd(kind)
    stack.callback(started.close)
    return started


def send(to: DogStatsdSink, *events: Event, timeout: float = 5.0) -> Outcome:
    try:
        return to.send([batch(*events)], timeout=timeout)
    finally:
        to.close()


# --- lines and packets --------------------------------------------------------------------------------------------


def test_lines_are_the_documented_ones(agents: ExitStack) -> None:
    """Byte for byte: gauge and its service check, count, event."""
    receiver = agent(agents, "unixgram")
    count = Metric("requests", "sum", "1", TIME, 9.0, {}, TIME, delta=Delta(TIME - 10**9, 3.0))
    down = catalog.PROXY_DOWN.at(TIME, "eu is down", "It does not\nanswer.", {"error.type": "timeout"})
    assert send(sink(receiver.address), catalog.UP.at(TIME, 0), count, down) == Delivered()
    (packet,) = receiver.packets(1)
    end = "t:error|#change:litellm.proxy.down,error.type:timeout,litellm.target:eu"
    assert packet.decode().split("\n") == [
        f"litellm.up:0.0|g|#litellm.target:eu|T{CLOCK}",
        f"_sc|litellm.can_connect|2|d:{CLOCK}|#litellm.target:eu|m:The proxy does not answer its liveliness endpoint.",
        f"requests:3.0|c|#litellm.target:eu|T{CLOCK}",
        f"_e{{10,20}}:eu is down|It does not\\nanswer.|d:{CLOCK}|k:change:litellm.proxy.down:eu|s:litellm|{end}",
        "",
    ]


def test_old_agents_get_metrics_without_timestamps(agents: ExitStack) -> None:
    """`timestamps = false`; what is not a metric carries its time as ever. The client tells of lines with and without
    together, so they go apart.
    """
    receiver = agent(agents, "unixgram")
    assert send(sink(receiver.address, timestamps=False), catalog.UP.at(TIME, 1), *numbered(2)) == Delivered()
    lines = [packet.decode().split("\n")[:-1] for packet in receiver.packets(3)]
    assert [len(each) for each in lines] == [1, 1, 2]
    assert [("|T" in line, "|d:" in line) for each in lines for line in each] == [
        (False, False),
        (False, True),
        (False, False),
        (False, False),
    ]


@pytest.mark.parametrize("kind", ["udp", *UDS])
def test_packets_have_the_recommended_size(agents: ExitStack, kind: Kind) -> None:
    """Larger ones would be cut by the agent or on the way, much smaller ones waste both sides' time."""
    receiver = agent(agents, kind)
    assert send(sink(receiver.address), *numbered(200, 50)) == Delivered()
    most = PACKET["udp" if kind == "udp" else "unix"]
    sizes = [len(packet) for packet in receiver.packets(2)]
    assert sum(sizes) == sum(len(f"n:{i}.0|g|#litellm.target:eu,text:{'x' * 50}|T{CLOCK}\n") for i in range(200))
    assert max(sizes) <= most
    assert min(sizes[:-1]) > most / 2


def test_an_event_stays_in_one_packet(agents: ExitStack) -> None:
    """What is sent again after a failure is then whole events, and no count of theirs was taken before."""
    receiver = agent(agents, "unixgram")
    shape = Histogram((1.0,), (3, 1), 3.0, 4)
    events = [
        Metric(f"h{i}", "histogram", "s", TIME, None, {"t": "x" * 90}, TIME, shape, Delta(0, None, shape))
        for i in range(40)
    ]
    assert send(sink(receiver.address), *events) == Delivered()
    packets = receiver.packets(2)
    assert len(packets) > 2
    names = [{line.split(b".")[0] for line in packet.split(b"\n")[:-1]} for packet in packets]
    assert sum(len(each) for each in names) == 40


def test_a_line_that_no_agent_takes_whole_is_not_sent(agents: ExitStack) -> None:
    """It would be cut off there and be another fact. What stands before it goes; then it is refused, alone."""
    receiver = agent(agents, "unixgram")
    wide = Metric("wide", "gauge", "1", TIME, 1.0, {f"{i:03}a": "v" * 195 for i in range(MAX_LINE // 190)})
    to = sink(receiver.address)
    assert send(to, *numbered(2), wide, *numbered(1)) == Delivered(events=2)
    assert send(to, wide, *numbered(1)) == Rejected("longer than a Datadog agent takes", events=1)
    assert len(receiver.take(2)) == 2


def test_what_yields_no_line_is_delivered_without_an_agent() -> None:
    """A first reading of a sum, a change that is not wanted."""
    to = sink("unix:///nowhere", form=Form(changes=False))
    assert send(to, Metric("s", "sum", "1", TIME, 1.0), catalog.PROXY_UP.at(TIME, "up")) == Delivered()


# --- agents that come and go --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", UDS)
def test_unix_finds_out_which_kind_of_socket_it_is(agents: ExitStack, kind: Kind) -> None:
    """`unix://` is what Datadog's pages write for both."""
    receiver = agent(agents, kind)
    assert send(sink(receiver.address.replace(kind, "unix")), *numbered(1)) == Delivered()
    assert len(receiver.take(1)) == 1


@pytest.mark.parametrize("kind", UDS)
def test_the_other_kind_of_socket_is_told(agents: ExitStack, kind: Kind) -> None:
    """Who names one kind and has the other reads which."""
    receiver = agent(agents, kind)
    (other,) = set(UDS) - {kind}
    outcome = send(sink(receiver.address.replace(kind, other)), *numbered(1))
    assert outcome == Retry(
        "the socket of the Datadog agent is of the other kind: unixgram:// and unixstream:// differ"
    )


@pytest.mark.parametrize("kind", UDS)
def test_a_restarted_agent_is_found_again(agents: ExitStack, kind: Kind) -> None:
    """One attempt notices that the old one is gone, the next one reaches the new one; nothing is lost in between."""
    receiver = agent(agents, kind)
    to = sink(receiver.address)
    assert to.send([batch(*numbered(1))], timeout=5) == Delivered()
    assert len(receiver.take(1)) == 1
    receiver.restart()
    assert isinstance(to.send([batch(*numbered(1))], timeout=5), Retry)
    assert to.send([batch(*numbered(2))], timeout=5) == Delivered()
    assert len(receiver.take(2)) == 2
    to.close()


def test_an_agent_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    """A missing socket, or something else in its place, is no mistake of the data."""
    missing = send(sink(f"unix://{tmp_path}/dsd.socket"), *numbered(1))
    assert missing == Retry("no Datadog agent: there is no socket at the address")
    assert isinstance(send(sink(f"unix://{tmp_path}"), *numbered(1)), Retry)


def test_over_udp_a_missing_agent_is_noticed_at_once(agents: ExitStack) -> None:
    """From this machine the kernel's refusal is there when the send returns; the client alone would report every
    second packet as sent. What was sent in this call is not counted as handed over: it was refused.
    """
    receiver = agent(agents, "udp")
    receiver.misbehave("refuse")
    to = sink(receiver.address)
    for count in (1, 1, 100, 1):
        outcome = to.send([batch(*numbered(count, 100))], timeout=5)
        assert outcome == Retry("no Datadog agent: the address refuses packets")
    receiver.misbehave(None)
    assert to.send([batch(*numbered(100, 100))], timeout=5) == Delivered()
    assert len(receiver.take(100)) == 100
    to.close()


@pytest.mark.parametrize("kind", UDS)
def test_what_was_handed_over_is_not_sent_again(agents: ExitStack, kind: Kind) -> None:
    """An agent that stops reading has some packets already; the outcome says how many events those are, so that the
    rest alone goes again and no count counts twice.
    """
    receiver = agent(agents, kind)
    receiver.misbehave("hang")
    events = numbered(2000, 150)
    to = sink(receiver.address)
    outcome = to.send([batch(*events)], timeout=3)
    assert isinstance(outcome, Retry)
    assert 0 < outcome.delivered < len(events)
    receiver.misbehave(None)
    assert to.send([batch(*events[outcome.delivered :])], timeout=5) == Delivered()
    assert [fact.value for fact in receiver.take(len(events))] == [["g", float(i)] for i in range(len(events))]
    to.close()


# --- the environment ----------------------------------------------------------------------------------------------

SURROUNDINGS = {
    "DD_DOGSTATSD_URL": "udp://192.0.2.1:1",
    "DD_AGENT_HOST": "192.0.2.1",
    "DD_DOGSTATSD_PORT": "1",
    "DD_TELEMETRY_HOST": "192.0.2.1",
    "DD_TELEMETRY_PORT": "no number",
    "DATADOG_TAGS": "from:datadog_tags",
    "DD_TAGS": "from:dd_tags",
    "DD_ENV": "surprise",
    "DD_SERVICE": "surprise",
    "DD_VERSION": "surprise",
    "DD_ENTITY_ID": "surprise",
    "DD_EXTERNAL_ENV": "surprise",
    "DD_CARDINALITY": "high",
}


def test_every_reason_is_a_clause_of_ours() -> None:
    """What the resolver or the kernel says of the address is put into words of which none is the address."""
    assert why(socket.gaierror(socket.EAI_NONAME, "canary")) == "the host name of the Datadog agent does not resolve"
    assert why(OSError(errno.ENETUNREACH, "Network is unreachable")) == (
        "the Datadog agent cannot be reached: network is unreachable"
    )
    assert why(TimeoutError()) == "the Datadog agent cannot be reached: TimeoutError"


@pytest.mark.parametrize("kind", ["udp", "unixgram"])
def test_the_environment_adds_nothing(agents: ExitStack, monkeypatch: pytest.MonkeyPatch, kind: Kind) -> None:
    """What of DD_* counts is the configuration's to read; the client by itself adds tags of six variables."""
    for name, value in SURROUNDINGS.items():
        monkeypatch.setenv(name, value)
    receiver = agent(agents, kind)
    assert send(sink(receiver.address), *numbered(1)) == Delivered()
    assert receiver.packets(1) == [f"n:0.0|g|#litellm.target:eu|T{CLOCK}\n".encode()]


def test_variables_that_the_library_cannot_read_do_not_keep_it_from_loading(agents: ExitStack) -> None:
    """In a process that has not loaded it: it makes a client of its own then, by all the variables there are."""
    receiver = agent(agents, "udp")
    code = (
        "from forwarder.sinks.datadog import dogstatsd\n"
        f"dogstatsd._client({receiver.address!r}, origin=False).increment('n')"
    )
    run = subprocess.run([sys.executable, "-c", code], env=SURROUNDINGS, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")


def test_origin_lets_the_agent_know_the_container(agents: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """`origin = true`: what Kubernetes says of the container goes along, and nothing else of the environment."""
    for name, value in SURROUNDINGS.items():
        monkeypatch.setenv(name, value)
    receiver = agent(agents, "unixgram")
    assert send(sink(receiver.address, origin=True), *numbered(1)) == Delivered()
    (packet,) = receiver.packets(1)
    assert b"|#litellm.target:eu,dd.internal.entity_id:surprise" in packet
    assert b"|e:surprise|" in packet


def test_the_client_says_nothing_on_its_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No thread, no telemetry series; its loggers are quiet in the agent, which says what a sink comes to itself."""
    code = (
        "import logging, sys; from forwarder import logs; logs.configure('debug', sys.stderr);"
        "logging.getLogger('datadog.dogstatsd').error('noise')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert run.stderr == ""
    with caplog.at_level(logging.WARNING):
        assert isinstance(send(sink(f"unix://{tmp_path}/s"), *numbered(1)), Retry)
    assert caplog.records == []


def test_the_library_is_loaded_by_the_first_send_only(tmp_path: Path) -> None:
    """Neither the module nor the constructor pays for it, and no other sink does."""
    code = (
        "import sys\n"
        "from forwarder.sinks.datadog import dogstatsd, points\n"
        f"sink = dogstatsd.DogStatsdSink('dd', 'unix://{tmp_path}/s', points.Form(), max_age=60)\n"
        "assert 'datadog' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_nothing_is_claimed_to_be_confirmed() -> None:
    """Whoever shows the numbers of this sink says "handed over"."""
    assert sink("unix:///s").limits.confirms is False
