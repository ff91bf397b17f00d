"""What is told, in words: a subject, plain text, and the same as HTML.

Subjects are few and stable (no numbers, no times), so that they sort and can be filtered; what differs stands in the
text. Names of models come from proxies: each is one line, of bounded length, and escaped.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from html import escape
from typing import Final, NamedTuple

from forwarder import catalog
from forwarder.events import Severity
from forwarder.sinks.notify.memory import MAX_NAME, News, Outage, clean
from forwarder.sinks.notify.planning import Plan
from forwarder.sinks.notify.rules import SECOND

MAX_NAMES: Final = 20  # listed by name in one place; the others are counted
MAX_ITEMS: Final = 40  # in one section
PREFIX: Final = "[LiteLLM]"

DEPENDS: Final = {
    catalog.PROXY_DOWN.name: "Everything that calls models through this proxy.",
    catalog.READINESS_CHANGED.name: "A load balancer that asks for readiness sends no requests to this proxy.",
    catalog.METRICS_MIXED.name: "Sums and histograms of that page, which are withheld meanwhile.",
    "database": "Keys, teams, budgets and spend of this proxy. Keys that are not cached may be refused.",
    "redis": "What instances of this proxy share: rate limits, the cache, the state of routing.",
    "router": "The choice of a deployment for each request.",
}


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that happened: a line, and facts under it (label, text)."""

    head: str
    facts: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True)
class Section:
    title: str
    items: Sequence[Item]


@dataclass(frozen=True, slots=True)
class Message:
    """`severity`: the worst it tells of; `good`: it tells of nothing but ends. `id`: the same for the same content, so
    that a repeat can be recognised; `follows`: the ids of the messages that told first what this one is about.
    """

    subject: str
    severity: Severity
    good: bool
    sections: Sequence[Section]
    notes: Sequence[str]
    link: str = ""
    id: str = ""
    follows: Sequence[str] = ()

    @property
    def text(self) -> str:
        lines: list[str] = []
        for section in self.sections:
            lines += [section.title.upper(), ""]
            for item in section.items:
                lines.append(item.head)
                lines += [f"  {label}: {text}" for label, text in item.facts]
                lines.append("")
        lines += [line for note in self.notes for line in (note, "")]
        if self.link:
            lines += [f"Status page: {self.link}", ""]
        return "\n".join(lines)

    @property
    def html(self) -> str:
        parts = ['<!DOCTYPE html><html><head><meta charset="utf-8"></head><body style="font-family: sans-serif">']
        for section in self.sections:
            parts.append(f"<h3>{escape(section.title)}</h3>")
            for item in section.items:
                parts.append(f"<p><strong>{escape(item.head)}</strong>")
                parts += [f"<br>{escape(label)}: {escape(text)}" for label, text in item.facts]
                parts.append("</p>")
        parts += [f"<p><em>{escape(note)}</em></p>" for note in self.notes]
        if self.link:
            parts.append(f'<p><a href="{escape(self.link)}">Status page</a></p>')
        return "\n".join([*parts, "</body></html>", ""])


def compose(plan: Plan, *, sink: str, zone: tzinfo, link: str = "") -> Message:
    """The message that tells `plan`. `zone`: of the times in it. `link`: of the status page, if there is one."""
    say = _Words(plan, zone)
    new, lasting, over = (list(part.values()) for part in (plan.new, plan.lasting, plan.over))
    steady = list(plan.steady.values())
    parts = [
        ("Problems", say.down(new, "is")),
        ("Flapping", [say.flapping(key, one) for key, one in plan.flapping.items()]),
        ("Still going on", say.down(lasting, "is still")),
        ("No longer flapping", [say.steady(one) for one in steady]),
        ("Over", say.over(over)),
        ("Also", [say.news(one) for one in plan.news]),
    ]
    bad = [*new, *lasting, *plan.flapping.values(), *(one for one in steady if not one.ended)]
    return Message(
        f"{PREFIX} {_subject(plan)}",
        max([*(one.severity for one in bad), *(one.severity for one in plan.news)], key=_RANK.index, default="info"),
        good=not bad and all(one.severity == "info" for one in plan.news),
        sections=[Section(title, _bounded(items)) for title, items in parts if items],
        notes=say.notes(),
        link=link,
        id=_digest(sink, plan),
        follows=sorted({one.thread for one in [*bad, *over, *steady] if one.thread}),
    )


_RANK: Final[list[Severity]] = ["info", "warning", "error"]


class _State(NamedTuple):
    """How to say that something is not well, and that it is again."""

    down: str
    up: str


_STATES: Final = {
    catalog.PROXY_DOWN.name: _State("down", "up again"),
    catalog.READINESS_CHANGED.name: _State("not ready", "ready again"),
    catalog.DEPENDENCY_DOWN.name: _State("down", "back"),
    catalog.DEPLOYMENT_UNHEALTHY.name: _State("unhealthy", "healthy again"),
    catalog.METRICS_MIXED.name: _State("mixed from several processes", "from one process again"),
}


def _state(one: Outage) -> _State:
    return _STATES.get(one.change, _State("not well", "well again"))


def _attribute(one: Outage, key: str) -> str:
    return clean(str(one.attributes.get(key, "")), MAX_NAME)


def _thing(one: Outage, *, short: bool = False) -> str:
    """What is not well, within its target."""
    match one.change:
        case catalog.DEPLOYMENT_UNHEALTHY.name:
            name = _attribute(one, "model.name") or _attribute(one, "model") or "a deployment"
            return name if short else f"deployment {_deployment(one)}"
        case catalog.DEPENDENCY_DOWN.name:
            return _attribute(one, "dependency") or "a dependency"
        case catalog.METRICS_MIXED.name:
            return "metrics page" if short else "the metrics page"
        case _:
            return "proxy" if short else "the proxy"


def _deployment(one: Outage) -> str:
    """As in the titles of changes: name, model and the beginning of the id."""
    name, model, id_ = (_attribute(one, key) for key in ("model.name", "model", "deployment.id"))
    short = id_ if len(id_) <= 20 else f"{id_[:12]}…"
    return f"{f'{name} ({model})' if name and model else name or model} [{short}]"


def _where(target: str) -> str:
    return f"{clean(target, MAX_NAME)}: " if target else ""


# --- the subject ---------------------------------------------------------------------------------------------------


def _subject(plan: Plan) -> str:
    """What matters most; everything else is in the text."""
    for outages, say in (
        (plan.new, lambda one: _state(one).down),
        (plan.flapping, lambda _: "flapping"),
        (plan.lasting, lambda one: f"still {_state(one).down}"),
        (plan.steady, lambda _: "no longer flapping"),
        (plan.over, lambda one: _state(one).up),
    ):
        if outages:
            targets = sorted({clean(one.target, MAX_NAME) for one in outages.values()})
            where = ", ".join(targets) if len(targets) <= 3 else "several targets"
            what = _phrases(list(outages.values()), say)
            return f"{where}: {what}" if where else what
    titles = sorted({clean(one.title, MAX_NAME) or one.change or "news" for one in plan.news})
    return titles[0] if len(titles) == 1 else f"{titles[0]}, and more"


def _phrases(outages: Sequence[Outage], say: Callable[[Outage], str]) -> str:
    phrases: dict[str, None] = {}
    deployments = {_thing(one, short=True) for one in outages if one.change == catalog.DEPLOYMENT_UNHEALTHY.name}
    for one in outages:
        several = one.change == catalog.DEPLOYMENT_UNHEALTHY.name and len(deployments) > 1
        phrases[f"{'deployments' if several else _thing(one, short=True)} {say(one)}"] = None
    return ", ".join(phrases) if len(phrases) <= 3 else "several things " + say(outages[0])


# --- the text ------------------------------------------------------------------------------------------------------


class _Words:
    """How the parts of one message are said: its plan, and the zone of its times."""

    def __init__(self, plan: Plan, zone: tzinfo) -> None:
        self._plan = plan
        self._zone = zone

    def down(self, outages: Sequence[Outage], verb: str) -> list[Item]:
        return [self._down(group, verb) for group in _grouped(outages, lambda one: _attribute(one, "error.type"))]

    def _down(self, group: Sequence[Outage], verb: str) -> Item:
        first = group[0]
        since = min(one.since for one in group)
        facts = [("Since", f"{self.time(since)} ({length(self._plan.now - since)} ago)")]
        if why := _why(group):
            facts.append(("Why", why))
        if len(group) > 1:
            facts.append(("Deployments", _list(_deployment(one) for one in group)))
        if depends := _depends(group):
            facts.append(("What depends on it" if len(group) == 1 else "What depends on them", depends))
        if len(group) == 1:
            return Item(f"{_where(first.target)}{_thing(first)} {verb} {_state(first).down}", facts)
        verbs = verb.replace("is", "are", 1)
        return Item(f"{_where(first.target)}{len(group)} deployments {verbs} {_state(first).down}", facts)

    def over(self, outages: Sequence[Outage]) -> list[Item]:
        known = [one for one in outages if one.told]
        missed = [one for one in outages if not one.told]
        items = [self._over(group) for group in _grouped(known, lambda one: str(one.removed))]
        return items + [self._missed(group) for group in _grouped(missed, lambda one: str(one.removed))]

    def _over(self, group: Sequence[Outage]) -> Item:
        first = group[0]
        where, lasted = _where(first.target), self._span(group)
        if len(group) > 1:
            end = "were removed" if first.removed else f"are {_state(first).up}"
            names = ("Deployments", _list(_deployment(one) for one in group))
            return Item(f"{where}{len(group)} deployments {end}", [lasted, names])
        end = "was removed" if first.removed else f"is {_state(first).up}"
        return Item(f"{where}{_thing(first)} {end} after {length(first.ended - first.since)}", [lasted])

    def _missed(self, group: Sequence[Outage]) -> Item:
        """What began and ended before it could be told."""
        first = group[0]
        where, lasted = _where(first.target), self._span(group)
        why = [("Why", why)] if (why := _why(group)) else []
        if len(group) > 1:
            end = "were then removed" if first.removed else f"are {_state(first).up}"
            names = ("Deployments", _list(_deployment(one) for one in group))
            head = f"{where}{len(group)} deployments were {_state(first).down} for a while and {end}"
            return Item(head, [lasted, *why, names])
        end = "was then removed" if first.removed else f"is {_state(first).up}"
        head = f"{where}{_thing(first)} was {_state(first).down} for {length(first.ended - first.since)} and {end}"
        return Item(head, [lasted, *why])

    def _span(self, group: Sequence[Outage]) -> tuple[str, str]:
        start, end = min(one.since for one in group), max(one.ended for one in group)
        label = _state(group[0]).down
        return f"Was {label}", f"from {self.time(start)} to {self.time(end)} ({length(end - start)})"

    def flapping(self, key: str, one: Outage) -> Item:
        flips = self._plan.flips.get(key, ())
        facts = [("Now", f"{_state(one).up if one.ended else _state(one).down}")]
        if len(flips) > 1:
            often = f"{len(flips)} times since {self.time(flips[0])} ({length(self._plan.now - flips[0])} ago)"
            facts.insert(0, ("Changed", often))
        if not one.ended and (why := _why([one])):
            facts.append(("Why", why))
        if depends := _depends([one]):
            facts.append(("What depends on it", depends))
        facts.append(("From now on", "single changes are not told, until it has been steady for a while"))
        return Item(f"{_where(one.target)}{_thing(one)} is flapping", facts)

    def steady(self, one: Outage) -> Item:
        if one.ended:
            now, since = "removed" if one.removed else _state(one).up, one.ended
        else:
            now, since = _state(one).down, one.since
        facts = [("Since", f"{self.time(since)} ({length(self._plan.now - since)} ago)")]
        if not one.ended and (why := _why([one])):
            facts.append(("Why", why))
        return Item(f"{_where(one.target)}{_thing(one)} is no longer flapping: it is {now}", facts)

    def news(self, one: News) -> Item:
        facts = [("When", self.time(one.time))]
        if one.text:
            facts.append(("What", one.text))
        return Item(one.title or one.change or "news", facts)

    def notes(self) -> list[str]:
        notes = []
        if self._plan.held_since:
            since = self.time(self._plan.held_since)
            notes.append(
                f"Messages were held back from {since} on, because their limit per hour was reached. "
                "This one sums up what happened meanwhile."
            )
        if self._plan.unlisted:
            more = many(self._plan.unlisted, "more change")
            notes.append(f"{more} of that time found no room here; the metrics have {_them(self._plan.unlisted)}.")
        if self._plan.capped_until:
            until = self.time(self._plan.capped_until)
            notes.append(
                f"With this message their limit per hour is reached: the next comes at {until} at the earliest, "
                "and sums up what happens until then."
            )
        return notes

    def time(self, time: int) -> str:
        """To the second, with the zone: `2026-11-24 14:00:05 CET`."""
        try:
            moment = datetime.fromtimestamp(time // SECOND, UTC).astimezone(self._zone)
        except (OverflowError, ValueError, OSError):  # no clock says that; events may
            return "a time that cannot be"
        return moment.strftime("%Y-%m-%d %H:%M:%S %Z")


def _grouped(outages: Iterable[Outage], detail: Callable[[Outage], str]) -> list[list[Outage]]:
    """Deployments of one target that share the detail together, everything else by itself."""
    groups: dict[tuple[str, ...], list[Outage]] = {}
    for number, one in enumerate(outages):
        together = one.change == catalog.DEPLOYMENT_UNHEALTHY.name
        key = (one.target, one.change, detail(one) if together else str(number))
        groups.setdefault(key, []).append(one)
    return list(groups.values())


def _why(group: Sequence[Outage]) -> str:
    error = _attribute(group[0], "error.type")
    meanings = catalog.PROBE_ERRORS if group[0].change == catalog.PROXY_DOWN.name else catalog.DEPLOYMENT_ERRORS
    if not error:
        return ""
    said = f"{error}: {meanings[error]}" if error in meanings else error
    statuses = sorted({_attribute(one, "http.response.status_code") for one in group} - {""})
    return f"{said}; HTTP status {', '.join(statuses[:5])}" if statuses else said


def _depends(group: Sequence[Outage]) -> str:
    first = group[0]
    match first.change:
        case catalog.DEPLOYMENT_UNHEALTHY.name:
            names = sorted({_attribute(one, "model.name") or _attribute(one, "model") for one in group} - {""})
            return f"requests for {_list(names)}, unless other deployments take them" if names else ""
        case catalog.DEPENDENCY_DOWN.name:
            return DEPENDS.get(_attribute(first, "dependency"), "")
        case name:
            return DEPENDS.get(name, "")


def _list(names: Iterable[str]) -> str:
    named = list(names)
    said = ", ".join(named[:MAX_NAMES])
    return said if len(named) <= MAX_NAMES else f"{said}, and {len(named) - MAX_NAMES} more"


def _bounded(items: Sequence[Item]) -> list[Item]:
    if len(items) <= MAX_ITEMS:
        return list(items)
    return [*items[:MAX_ITEMS], Item(f"and {len(items) - MAX_ITEMS} more of this kind")]


def _them(count: int) -> str:
    return "it" if count == 1 else "them"


# --- words and numbers ---------------------------------------------------------------------------------------------


def many(count: int, name: str) -> str:
    return f"{count} {name}" + ("" if count == 1 else "s")


def length(nanoseconds: int) -> str:
    """For people: `12 minutes`, `1 hour 5 minutes`, `2 days 3 hours`."""
    seconds = max(0, round(nanoseconds / SECOND))
    units = [("day", seconds // 86400), ("hour", seconds // 3600 % 24), ("minute", seconds // 60 % 60)]
    said = [many(count, unit) for unit, count in units if count]
    if not said or (len(said) == 1 and seconds < 600 and seconds % 60):
        said.append(many(seconds % 60, "second"))
    return " ".join(said[:2])


def _digest(sink: str, plan: Plan) -> str:
    parts = [sink]
    for kind, outages in (("new", plan.new), ("over", plan.over), ("lasting", plan.lasting)):
        parts += [f"{kind} {key} {one.since} {one.ended} {one.reminded}" for key, one in sorted(outages.items())]
    for kind, outages in (("flapping", plan.flapping), ("steady", plan.steady)):
        parts += [f"{kind} {key} {one.flapping}" for key, one in sorted(outages.items())]
    parts += [f"news {one.change} {one.target} {one.time}" for one in plan.news]
    return hashlib.sha256("\n".join(parts).encode("utf-8", "replace")).hexdigest()[:32]
