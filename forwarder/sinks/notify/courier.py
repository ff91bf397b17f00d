"""What the ways of delivery have in common."""

from dataclasses import dataclass
from typing import Protocol

from forwarder.sinks.notify.texts import Message


@dataclass(frozen=True, slots=True)
class Sent:
    """Taken by the server. `note`: what went wrong all the same, as a clause; empty if nothing did."""

    note: str = ""


@dataclass(frozen=True, slots=True)
class Failed:
    """Not known to be taken. `reason` is one clause of our own (no text of the server, no address); `hint`: the fix.
    `wrong`: it will not pass by itself; somebody must mend the address, the password, the server.
    """

    reason: str
    hint: str = ""
    wrong: bool = False


class Courier(Protocol):
    def deliver(self, message: Message, *, timeout: float) -> Sent | Failed:
        """Make one attempt, within `timeout` seconds."""
        ...
