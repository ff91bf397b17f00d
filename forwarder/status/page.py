"""The page for people: a `View` as HTML. Jinja escapes everything that is put into it; style and script stand inside
and are allowed by their hashes, so that nothing else can run.
"""

import base64
import hashlib
from collections.abc import Iterator, Sequence
from datetime import datetime
from importlib.resources import files
from itertools import groupby
from typing import Final, NamedTuple

import jinja2

from forwarder.status.view import SERVICE, STATES, Endpoint, Slice, State, View, ago

WIDTH: Final = 6  # of a slice, in the bar's own units
HEIGHT: Final = 40
LEAST: Final = 10  # height of what was unhealthy, however little it was
DEGRADED: Final = 16
UNKNOWN: Final = 4


class Piece(NamedTuple):
    """A part of the bar: neighbours that look the same are one. `top` is drawn above `base`, as high as its share."""

    x: int
    width: int
    base: State
    top: State | None
    height: int  # of `top`, or of an unknown one
    title: str


class Page:
    """Renders views. `policy` is the Content-Security-Policy that goes with `whole`."""

    def __init__(self) -> None:
        folder = files("forwarder.status") / "page"
        names = ("page.html", "main.html", "page.css", "page.js")
        text = {name: (folder / name).read_text(encoding="utf-8") for name in names}
        environment = jinja2.Environment(
            loader=jinja2.DictLoader({name: text[name] for name in ("page.html", "main.html")}),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters.update(number=_number, percent=_percent, instant=_instant, clock=_clock, calls=_calls)
        environment.globals.update(
            style=text["page.css"],
            script=text["page.js"],
            pieces=pieces,
            troubles=troubles,
            box=f"0 0 {96 * WIDTH} {HEIGHT}",
            grid=_grid(),
        )
        self._whole = environment.get_template("page.html")
        self._main = environment.get_template("main.html")
        self.policy: Final = "; ".join(
            (
                "default-src 'none'",
                f"script-src {_hash(text['page.js'])}",
                f"style-src {_hash(text['page.css'])}",
                "img-src data:",
                "connect-src 'self'",
                "base-uri 'none'",
                "form-action 'none'",
                "frame-ancestors 'none'",
            )
        )

    def whole(self, view: View) -> str:
        """The page."""
        return self._whole.render(self._about(view))

    def main(self, view: View) -> str:
        """Only what changes, for the page's script."""
        return self._main.render(self._about(view))

    @staticmethod
    def _about(view: View) -> dict[str, object]:
        def since(time: datetime | None) -> str:
            return "" if time is None else ago((view.time - time).total_seconds())

        def until(time: datetime) -> str:
            return ago((time - view.time).total_seconds())

        counts = {state: sum(target.state == state for target in view.targets) for state in STATES}
        return {"view": view, "title": _title(view), "since": since, "until": until, "ago": ago, "counts": counts}


def _title(view: View) -> str:
    """The worst first, because a tab shows only its beginning."""
    return f"{view.summary[0][:1].upper() + view.summary[0][1:] if view.summary else 'All is well'} · {SERVICE}"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _grid() -> str:
    """The gaps between the slices, as a path."""
    return "".join(f"M{x} 0v{HEIGHT}" for x in range(0, 96 * WIDTH + 1, WIDTH))


class Trouble(NamedTuple):
    error: str | None
    detail: str
    endpoints: list[str]
    time: datetime | None  # when it was last so
    next: datetime | None  # not asked again before then


def troubles(endpoints: Sequence[Endpoint]) -> list[Trouble]:
    """What cannot be read, once for each reason: most reasons are shared."""
    found: dict[tuple[str | None, str, datetime | None], list[Endpoint]] = {}
    for each in endpoints:
        if each.state == "failed":
            found.setdefault((each.error, each.detail, each.next), []).append(each)
    return [
        Trouble(error, detail, [e.name for e in those], max((e.time for e in those if e.time), default=None), next_)
        for (error, detail, next_), those in found.items()
    ]


# --- the bar of the last 24 hours ---------------------------------------------------------------------------------


def pieces(slices: Sequence[Slice], seconds: int) -> Iterator[Piece]:
    """What the bar is drawn of. Slices of nothing but health, or of nothing at all, are joined with their like."""
    for (plain, _), group in groupby(enumerate(slices), lambda each: _alike(*each)):
        run = list(group)
        first, last = run[0], run[-1]
        x, width = first[0] * WIDTH, len(run) * WIDTH
        end = last[1].start.timestamp() + seconds
        when = f"{first[1].start:%H:%M} to {datetime.fromtimestamp(end, first[1].start.tzinfo):%H:%M} UTC"
        if plain is not None:
            height = UNKNOWN if plain == "unknown" else HEIGHT
            word = "not seen" if plain == "unknown" else "healthy"
            yield Piece(x, width, plain, None, height, f"{when}: {word}")
        else:
            yield _troubled(first[1], x, when)


def _alike(index: int, each: Slice) -> tuple[State | None, int]:
    return (each.state, -1) if each.state in ("healthy", "unknown") else (None, index)


def _troubled(each: Slice, x: int, when: str) -> Piece:
    said = []
    if each.unhealthy:
        said.append(f"{each.unhealthy} of {each.healthy + each.unhealthy} readings unhealthy")
    if each.failing:
        said.append(f"up to {each.failing:,} deployments failing")
    base: State = "degraded" if each.failing else "healthy"
    share = each.unhealthy / max(1, each.healthy + each.unhealthy)
    height = max(LEAST, round(share * HEIGHT)) if each.unhealthy else DEGRADED
    top: State = "unhealthy" if each.unhealthy else "degraded"
    return Piece(x, WIDTH, base if each.unhealthy else "healthy", top, height, f"{when}: {', '.join(said)}")


# --- words --------------------------------------------------------------------------------------------------------


def _number(value: int) -> str:
    return f"{value:,}"


def _calls(value: int) -> str:
    return f"{value:,} call" + ("" if value == 1 else "s")


def _percent(value: float) -> str:
    """Cut, not rounded: 99.99 % is not 100 %."""
    return "100 %" if value >= 1 else f"{int(value * 1000) / 10:g} %"


def _instant(time: datetime) -> str:
    return time.isoformat(timespec="seconds").replace("+00:00", "Z")


def _clock(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S} UTC"
