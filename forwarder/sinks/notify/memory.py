"""What a notify sink remembers, and how that is stored. Never modified: each step makes a new one.

Fields may be appended (older rows are read with their defaults), as in forwarder.events.
"""

from typing import Final

import msgspec

from forwarder.codec import Codec
from forwarder.events import Attributes, Severity

MAX_NAME: Final = 120  # characters


def clean(text: str, limit: int) -> str:
    """One line of what can be printed, of `limit` characters at most."""
    text = " ".join("".join(each if each.isprintable() else " " for each in text[: 4 * limit]).split())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


class Outage(msgspec.Struct, frozen=True, array_like=True):
    """Something that is, or was, not well. Times are ns UTC; 0: not (yet).

    `seen`: when the sink heard of it, which its grouping goes by; `told`: when people heard of it; `reminded`: when
    last. `ended`: it is over; `removed`: because the deployment is gone. `thread`: the message that told it first.
    `flapping`: when it was found to go up and down too often to tell each time; `named`: that was told.
    """

    change: str
    target: str
    severity: Severity
    since: int
    seen: int
    attributes: Attributes = {}
    told: int = 0
    reminded: int = 0
    ended: int = 0
    ended_seen: int = 0
    removed: bool = False
    thread: str = ""
    flapping: int = 0
    named: int = 0


class News(msgspec.Struct, frozen=True, array_like=True):
    """A change that neither begins nor ends an outage."""

    change: str
    target: str
    severity: Severity
    time: int
    seen: int
    title: str
    text: str = ""
    attributes: Attributes = {}


class Memory(msgspec.Struct, frozen=True, array_like=True):
    """`outages` and `flips` by key (see `folding`). `flips`: when each thing changed of late. `sent`: when the last
    messages went. `unlisted`: news that found no room.
    """

    outages: dict[str, Outage] = {}
    news: tuple[News, ...] = ()
    flips: dict[str, tuple[int, ...]] = {}
    sent: tuple[int, ...] = ()
    unlisted: int = 0


_codec: Final = Codec(Memory, "the memory of a notify sink")
encode: Final = _codec.encode
decode: Final = _codec.decode  # raises CodecError
