"""What receivers of the contract suite share."""

from typing import Literal, NamedTuple

from forwarder.events import Attributes

# hang: takes (or answers) nothing. slow: keeps on taking or answering, too slowly for any timeout. refuse: answers no.
# close: is gone, or goes before it has answered. garbage: answers what no backend of its kind would.
Fault = Literal["hang", "slow", "refuse", "close", "garbage"]


class Fact(NamedTuple):
    """What a receiver understood of one event, in its backend's own terms. `time` is ns UTC."""

    name: str
    value: object
    attributes: Attributes
    time: int
