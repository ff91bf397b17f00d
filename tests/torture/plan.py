"""What happens in a storm, and when: drawn wholly from the seed, before anything begins. Pure.

How long an agent takes to start, and what anything answers, changes nothing of it: the same arguments make the same
plan, on any machine. What the agent does in it is as repeatable as its machine.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

# Of a receiver. "hang", "drip", "reset", "page": nothing is stored. "stored …": the request is stored, and its answer
# never ends, or breaks off: whoever sent it cannot know, and must send it again. "cut": reset while the request is
# being sent. "gone": nobody listens; it comes back on the same port.
Mode = Literal[
    "hang",
    "drip",
    "reset",
    "page",
    "cut",
    "gone",
    "stored hang",
    "stored drip",
    "stored reset",
    "partial",
    "warning",
    "slow",
]
SICK: Final[tuple[Mode, ...]] = (
    "hang", "drip", "reset", "page", "cut", "gone", "stored hang", "stored drip", "stored reset",
)  # fmt: skip
# Every status that OTLP/HTTP, Datadog's API or New Relic's are documented to answer, a redirect, and one each of the
# client's and the server's faults that nobody mentions.
STATUSES: Final = (302, 400, 401, 403, 404, 405, 408, 409, 410, 411, 413, 422, 429, 500, 501, 502, 503, 504)
# Of OTLP alone: 200, of which a part is refused; and 200 with a warning.
OTLP: Final[tuple[Mode, ...]] = ("partial", "warning")

RECEIVERS: Final = ("otlp", "newrelic", "datadog")
STEPS: Final = (-7200, -60, 0, 60, 3600, 7200)  # seconds that the clock is off
CONFIGURATIONS: Final = 3  # that reloads go around

Death = Literal["kill", "stop"]
# When it dies, besides at any time: when the console has just printed something, or a receiver has stored a request
# and not answered yet. Between these and their settlement there is a moment that a kill at any time rarely meets.
Moment = Literal["any", "printed", "stored"]


@dataclass(frozen=True, slots=True)
class Act:
    """`at`: seconds after the agent has started."""

    at: float
    what: Literal["receiver", "heal", "proxy", "deployment", "disk", "reload", "clock"]
    number: int = 0
    how: Mode | int | str = ""

    def __str__(self) -> str:
        return f"{self.at:7.2f}  {self.what} {self.number} {self.how}".rstrip()


@dataclass(frozen=True, slots=True)
class Life:
    """Of one process, and how it ends after `lasts` seconds; `receiver`: whose moment it is."""

    lasts: float
    death: Death
    moment: Moment
    receiver: int
    acts: tuple[Act, ...]


def plan(seed: int, *, seconds: float, targets: int) -> list[Life]:
    dice = random.Random(seed)  # noqa: S311 - a storm is no secret
    deck = _modes(dice)
    lives = []
    left = seconds
    while left > 0:
        lasts = min(left, dice.uniform(2.0, min(25.0, max(3.0, seconds / 4))))
        death: Death = "kill" if dice.random() < 0.7 else "stop"
        moment: Moment = dice.choice(("any", "printed", "stored"))
        lives.append(Life(lasts, death, moment, dice.randrange(3), tuple(_acts(dice, deck, lasts, targets))))
        left -= lasts
    return lives


def _modes(dice: random.Random) -> Iterator[tuple[int, Mode | int]]:
    """Each mode of each receiver once before any comes again."""
    while True:
        deck: list[tuple[int, Mode | int]] = [(n, mode) for n in range(3) for mode in (*SICK, *STATUSES)]
        deck += [(0, mode) for mode in OTLP]
        dice.shuffle(deck)
        yield from deck


def _acts(dice: random.Random, deck: Iterator[tuple[int, Mode | int]], lasts: float, targets: int) -> Iterator[Act]:
    at, full = 0.0, False
    while (at := at + dice.uniform(0.1, 0.9)) < lasts:
        what = dice.choices(
            ("receiver", "heal", "proxy", "deployment", "disk", "reload", "clock"), weights=(30, 30, 10, 5, 8, 10, 3)
        )[0]
        # Drawn whether they are used or not, so that no act shifts those behind it.
        receiver, target = dice.randrange(3), dice.randrange(targets)
        step, configuration = dice.choice(STEPS), dice.randrange(CONFIGURATIONS)
        filled, near = dice.random() < 0.7, dice.random() < 0.5
        match what:
            case "receiver":
                receiver, mode = next(deck)
                yield Act(at, "receiver", receiver, mode)
            case "heal":
                yield Act(at, "heal", receiver, "" if near else "slow")
            case "disk":
                full = not full
                yield Act(at, "disk", how=("full" if filled else "limit") if full else "free")
            case "clock":
                yield Act(at, "clock", step)
            case "reload":
                yield Act(at, "reload", configuration)
            case "proxy":
                yield Act(at, "proxy", target)
            case _:
                yield Act(at, "deployment", target)


def written(lives: list[Life]) -> str:
    """For people, and to compare."""
    lines = []
    for number, life in enumerate(lives):
        when = life.moment if life.moment != "stored" else f"{RECEIVERS[life.receiver]} has stored"
        lines.append(f"life {number}: {life.lasts:.2f} s, then {life.death} ({when})")
        lines += [f"  {act}" for act in life.acts]
    return "\n".join(lines) + "\n"
