"""The sink contract. tests/test_sink_contract.py holds every sink to it, over real sockets.

A sink makes **one delivery attempt per call** and says what it came to; everything else (waiting, retrying,
giving up, counting) is the pump's. What does not fit into one request of the backend (too many bytes, or another kind
of event, which goes to another address) is left for the next call: an outcome speaks of the first `events` of what was
given. What a sink promises:

- `send` returns within `timeout` seconds, plus at most a moment of its own computing;
- nothing stays buffered in the sink, the process or a library after `send` has returned;
- it never changes its input, never sleeps, never retries, never starts a thread;
- the constructor does no I/O; `close` may be called twice, and after a failed `send`;
- no secret appears in a reason, an exception or a `repr`;
- text in events (newlines, pipes, commas, control characters, lone surrogates) forges nothing;
- an answer that is not the backend's own (a login page, a redirect) is not a delivery;
- `Rejected` is returned only where the backend, having understood us, will never take these bytes.

`send` is called from one thread at a time, not always the same one.

A sink that must know tomorrow what it did today (whom it told of what) is a `Remembering` one: its memory is kept in
the spool, written in the same step as its place there, so that the two cannot disagree.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from forwarder.events import Batch


@dataclass(frozen=True, slots=True)
class Limits:
    """What one `send` takes: events, bytes (of the spool's encoding: a bound on work, not the wire's exact limit) and
    the age in seconds past which the backend refuses an event (None: it takes any age).

    `confirms`: the backend acknowledges what it takes. False: nothing does, and `Delivered` says only that the events
    were handed over, to the kernel; whoever shows numbers of such a sink says "handed over" instead of "delivered".
    """

    max_events: int = 1000
    max_bytes: int = 1_000_000
    max_age: float | None = None
    confirms: bool = True


@dataclass(frozen=True, slots=True)
class Delivered:
    """Taken. `rejected` of the events were refused for good by the backend, for `reason`.

    `events`: so many of those given, from the first on, were in the request (None: all); at least one. The rest is
    given again at once.
    """

    rejected: int = 0
    reason: str = ""
    events: int | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """Not known to be stored; the same may go again, not before `after` seconds if the backend said so.

    `delivered`: so many of the events, from the first on, are known to be stored all the same, and need not go again.
    """

    reason: str
    after: float | None = None
    delivered: int = 0


@dataclass(frozen=True, slots=True)
class Rejected:
    """These bytes will never be taken. More than one event: the pump bisects; one: it becomes a dead letter.

    `events`: so many of those given, from the first on, were in the request (None: all); at least one.
    `too_old`: the backend refuses the time of an event, not the event. One is then counted as expired and is no dead
    letter, because sending it again would come to the same, nor evidence against the sink.
    """

    reason: str
    events: int | None = None
    too_old: bool = False


@dataclass(frozen=True, slots=True)
class Blocked:
    """The data is fine, the sink is wrong (key, URL, redirect, login page): keep everything, alarm, try slowly.

    `delivered`: as in Retry.
    """

    reason: str
    delivered: int = 0


Outcome = Delivered | Retry | Rejected | Blocked


class Sink(Protocol):
    """One configured destination. `name` is the user's, stable across restarts: the spool keeps its place by it."""

    @property
    def name(self) -> str: ...

    @property
    def limits(self) -> Limits: ...

    def send(self, batches: Sequence[Batch], *, timeout: float) -> Outcome:
        """Make one attempt to deliver all events of `batches`, in order. Blocks for `timeout` seconds at most.

        An exception is a bug in the sink, not an outcome.
        """
        ...

    def close(self) -> None: ...


@runtime_checkable
class Remembering(Sink, Protocol):
    """A sink with a memory, and with things to do although no event comes.

    Before the first `send` of a process the pump calls `recall` with what `memo` was last; whatever `send` or `tick`
    come to, it stores `memo` before it calls either again. After a crash the sink gets the memory and the events as
    they were before the last call: at most that one is made twice.
    """

    @property
    def memo(self) -> bytes:
        """All that must survive. Empty: nothing."""
        ...

    @property
    def due(self) -> float | None:
        """Seconds until `tick` is wanted, 0 or less: now; None while there is nothing to wait for."""
        ...

    def recall(self, memo: bytes) -> None:
        """Never fails: bytes that cannot be read are no memory."""
        ...

    def tick(self, *, timeout: float, last: bool) -> Outcome:
        """As `send` with nothing new, because nothing is waiting and it is `due`. `last`: the agent stops, whatever
        was put off for a moment is to be done now. Delivered also if there was nothing to do.
        """
        ...
