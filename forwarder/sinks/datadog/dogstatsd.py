"""Datadog by the agent beside us: DogStatsD over a Unix socket (datagram or stream) or UDP, by the `datadog` client.

Nothing is acknowledged there. What can be known is known: whether there is an agent to connect to, and whether the
kernel took each packet, because the client is used one packet at a time, without its threads, buffers and aggregation.
What an agent that dies had not read yet is lost; over UDP so is what no agent listens for, except that a refusal is
noticed where it comes back in time.

Protocol: Datadog, DogStatsD datagram format; what is said of the client was seen in datadog 0.56.0.
"""

import errno
import ipaddress
import os
import select
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from forwarder.events import Batch
from forwarder.sinks.base import Delivered, Limits, Outcome, Rejected, Retry
from forwarder.sinks.datadog.points import SOURCE, Check, Form, Item, Note, Point, items

if TYPE_CHECKING:
    from datadog.dogstatsd.base import DogStatsd

PACKET: Final = {"udp": 1432, "unix": 8192}  # bytes; what Datadog recommends for each
MAX_LINE: Final = 8192  # bytes; an agent cuts off what is beyond (its dogstatsd_buffer_size)
NO_FLUSH: Final = 1 << 20  # bytes; more than any packet of ours, so that only we say when one is sent
# Bytes of a line at most besides names, tags and texts: value, lengths, types, separators, timestamp. And what the
# client adds to it about the container.
AROUND: Final = 80
ORIGIN: Final = 300
# An ICMP refusal of a UDP packet takes a round trip. From this machine itself it is there when the send returns.
REFUSAL: Final = 0.1  # seconds

_NO_AGENT: Final = {
    errno.ENOENT: "no Datadog agent: there is no socket at the address",
    errno.ECONNREFUSED: "no Datadog agent: nothing listens at the address",
    errno.EACCES: "the socket of the Datadog agent may not be written to: give the agent's user the right",
    errno.EPROTOTYPE: "the socket of the Datadog agent is of the other kind: unixgram:// and unixstream:// differ",
    errno.EAGAIN: "the Datadog agent takes no more connections",
}
_GONE: Final = "the Datadog agent went away, or takes no more"
_SLOW: Final = "the Datadog agent takes no more: it is too slow"
_REFUSED: Final = "no Datadog agent: the address refuses packets"


@dataclass
class Packet:
    """`events`: so many of those given, from the first on, are wholly handed over once this one is. `stamped`: with
    timestamps; the client sends lines with and without apart, and tells of one failure only.
    """

    stamped: bool
    lines: list[Item] = field(default_factory=list)
    size: int = 0
    events: int = 0


class DogStatsdSink:
    """`address`: unix:///path (either kind), unixgram:///path, unixstream:///path or udp://host:port. `timestamps`:
    whether gauges and counts carry theirs, which agents from 7.40 on understand. `origin`: let the agent add the tags
    of the container we run in. `max_age`: seconds after which Datadog takes no metric any more. `clock`: ns UTC.
    """

    def __init__(  # noqa: PLR0913 - settings, told by name
        self,
        name: str,
        address: str,
        form: Form,
        *,
        max_age: float,
        timestamps: bool = True,
        origin: bool = False,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self.name: Final = name
        self.limits: Final = Limits(max_events=2000, max_age=max_age, confirms=False)
        self._address = address
        self._udp = address.startswith("udp://")
        self._packet = PACKET["udp" if self._udp else "unix"]
        self._form = form
        self._timestamps = timestamps
        self._origin = origin
        self._clock = clock
        self._client: DogStatsd | None = None

    def __repr__(self) -> str:
        return f"DogStatsdSink({self.name!r})"

    def send(self, batches: Sequence[Batch], *, timeout: float) -> Outcome:
        deadline = time.monotonic() + timeout
        packets, too_long = self._packets(batches)
        if too_long == 0:
            return Rejected("longer than a Datadog agent takes", events=1)
        if not packets:
            return Delivered(events=too_long)
        client = self._client = self._client or _client(self._address, origin=self._origin)
        done = 0
        for packet in packets:
            remaining = deadline - time.monotonic()
            if failed := self._send(client, packet, remaining):
                # A refusal over UDP comes late and may be about any of them.
                return Retry(failed, delivered=0 if self._udp else done)
            done = packet.events
        if self._udp and _refused(client, deadline - time.monotonic()):
            client.close_socket()
            return Retry(_REFUSED)
        return Delivered(events=too_long)

    def close(self) -> None:
        if self._client is not None:
            self._client.close_socket()

    # --- packets --------------------------------------------------------------------------------------------------

    def _packets(self, batches: Sequence[Batch]) -> tuple[list[Packet], int | None]:
        """All of it, or all before the first event that no agent can take, and which one that is."""
        packets: list[Packet] = []
        count = 0
        for lines in self._lines(batches):
            sizes = [_size(line) + (ORIGIN if self._origin else 0) for line in lines]
            if max(sizes, default=0) > MAX_LINE:
                _finish(packets, count)
                return packets, count
            # An event is in one packet where it can be: what is sent again after a failure is then whole events.
            fits = packets and packets[-1].size + sum(sizes) <= self._packet
            for line, size in zip(lines, sizes, strict=True):
                stamped = self._timestamps or not isinstance(line, Point)
                last = packets[-1] if packets else None
                if not last or not fits or last.size + size > self._packet or last.stamped != stamped:
                    _finish(packets, count)
                    packets.append(Packet(stamped))
                    fits = True
                packets[-1].lines.append(line)
                packets[-1].size += size
            count += 1
        _finish(packets, count)
        return packets, None

    def _lines(self, batches: Sequence[Batch]) -> Iterator[list[Item]]:
        """Of each event."""
        now = self._clock() // 10**9
        for batch in batches:
            common = self._form.common(batch.resource.attributes)
            for event in batch.events:
                yield list(items(event, common, self._form, now=now, latest=now))

    def _send(self, client: "DogStatsd", packet: Packet, remaining: float) -> str:
        """Why it was not taken; empty when it was."""
        if remaining <= 0:
            return _SLOW
        # On a stream the client makes two sends of a packet, each within this time.
        client.set_socket_timeout(remaining / 2)
        try:
            client.get_socket()  # connects if it must, and says why it cannot, which a send would only log
        except OSError as error:
            return why(error)
        for line in packet.lines:
            _write(client, line, stamped=packet.stamped)
        if client.flush():
            return ""
        # The client closes the socket if the peer is gone, and after any failure on a stream.
        return _SLOW if client.socket else _REFUSED if self._udp else _GONE


def _finish(packets: Sequence[Packet], count: int) -> None:
    if packets:
        packets[-1].events = count


def _size(line: Item) -> int:
    """Bytes of the line, rather more than less."""
    tags = sum(len(tag.encode()) + 1 for tag in line.tags)
    match line:
        case Point():
            return AROUND + len(line.name) + tags
        case Check():
            return AROUND + len(line.name) + len(line.message) + tags
        case Note():
            escaped = line.text.count("\n")
            return (
                AROUND + len(line.title.encode()) + len(line.text.encode()) + escaped + len(line.key.encode()) + tags
            )


# --- the client ---------------------------------------------------------------------------------------------------


def _client(address: str, *, origin: bool) -> "DogStatsd":
    # The package makes a client of its own when it is loaded, which raises where this is no number.
    os.environ.pop("DD_TELEMETRY_PORT", None)
    from datadog.dogstatsd.base import DogStatsd

    url = urlsplit(address)
    unix = url.scheme != "udp"
    client = DogStatsd(
        # Given, so that no DD_DOGSTATSD_URL, DD_AGENT_HOST or DD_DOGSTATSD_PORT is read; the configuration did.
        host=None if unix else url.hostname,
        port=None if unix else url.port,
        socket_path=address if unix else None,
        max_buffer_len=NO_FLUSH,  # a flush between lines would go unnoticed if it failed
        disable_buffering=False,
        flush_interval=0,  # no thread
        disable_aggregation=True,  # it merges points of different times
        disable_telemetry=True,  # eleven series of its own
        telemetry_socket_path="unused",  # so that no DD_TELEMETRY_HOST is resolved and no DD_TELEMETRY_PORT read
        origin_detection_enabled=origin,
        track_instance=False,  # nobody forks
    )
    # It adds DATADOG_TAGS, DD_ENV, DD_SERVICE and DD_VERSION whatever it is told; what of these counts is in our tags.
    client.constant_tags = [tag for tag in client.constant_tags if origin and tag.startswith("dd.internal.entity_id:")]
    if not origin:
        client._external_data = None  # noqa: SLF001 - DD_EXTERNAL_ENV, which nothing public switches off
    return client


def _write(client: "DogStatsd", line: Item, *, stamped: bool) -> None:
    """Into the client's buffer."""
    tags = list(line.tags)
    match line:
        case Point(kind="gauge") if stamped:
            client.gauge_with_timestamp(line.name, line.value, line.time, tags)
        case Point(kind="gauge"):
            client.gauge(line.name, line.value, tags)
        case Point() if stamped:
            client.count_with_timestamp(line.name, line.value, line.time, tags)
        case Point():
            client.count(line.name, line.value, tags)
        case Check():
            client.service_check(line.name, line.status, tags, line.time, message=line.message)
        case Note():
            client.event(
                line.title,
                line.text,
                alert_type=line.alert,
                aggregation_key=line.key,
                source_type_name=SOURCE,
                date_happened=line.time,
                tags=tags,
            )


def why(error: OSError) -> str:
    """Why there is no connection, in one clause without the address."""
    if isinstance(error, socket.gaierror):
        return "the host name of the Datadog agent does not resolve"
    if reason := _NO_AGENT.get(error.errno or 0):
        return reason
    return f"the Datadog agent cannot be reached: {(error.strerror or '').lower() or type(error).__name__}"


def _refused(client: "DogStatsd", remaining: float) -> bool:
    """Whether the address refuses the UDP packets sent; waits a moment for the refusal if it is not this machine."""
    sent = client.get_socket()
    here = ipaddress.ip_address(sent.getpeername()[0]).is_loopback
    waiting = select.poll()
    waiting.register(sent, 0)  # errors are always told
    return bool(waiting.poll(0 if here else max(0.0, min(REFUSAL, remaining)) * 1000))
