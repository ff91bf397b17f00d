"""Taking changes into the memory: which begin an outage, which end one, which are news.

- A change that begins what is known already is no news. One that ends what is not known is news like any other.
- Down again before its end was told: the outage goes on, nobody is told of the pause.
- Began and ended within one maintenance: forgotten; nor do changes within one count as flapping.
- Flapping, once recognised, is kept as one outage whose ups and downs are not told, until it has been steady.
"""

from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

from msgspec.structs import replace

from forwarder import catalog
from forwarder.events import Attributes, Batch, Change
from forwarder.sinks.notify.memory import MAX_NAME, Memory, News, Outage, clean
from forwarder.sinks.notify.rules import SECOND, Rules

MAX_NEWS: Final = 200
MAX_FLIPS: Final = 100
MAX_TITLE: Final = 300  # characters
MAX_TEXT: Final = 500  # characters
MAX_KEY: Final = 300  # characters
MAX_OUTAGES: Final = 5000  # more than that fail together, and their end is not told one by one


KEPT: Final = ("model", "model.name", "deployment.id", "dependency", "error.type", "http.response.status_code")


class Meaning(NamedTuple):
    """What a change says of a thing: `subject` is the thing within its target, `up` how it is now."""

    subject: str
    up: bool
    removed: bool = False


def meaning(change: Change) -> Meaning | None:
    """None: it begins and ends nothing."""
    match change.name:
        case catalog.PROXY_DOWN.name | catalog.PROXY_UP.name:
            return Meaning("proxy", change.name == catalog.PROXY_UP.name)
        case catalog.READINESS_CHANGED.name:
            return Meaning("readiness", change.attributes.get("current") == "ready")
        case catalog.METRICS_MIXED.name | catalog.METRICS_UNMIXED.name:
            return Meaning("metrics", change.name == catalog.METRICS_UNMIXED.name)
        case catalog.DEPENDENCY_DOWN.name | catalog.DEPENDENCY_UP_CHANGE.name:
            up = change.name == catalog.DEPENDENCY_UP_CHANGE.name
            return Meaning(f"dependency/{change.attributes.get('dependency', '')}", up)
        case catalog.DEPLOYMENT_UNHEALTHY.name | catalog.DEPLOYMENT_HEALTHY.name | catalog.DEPLOYMENT_REMOVED.name:
            removed = change.name == catalog.DEPLOYMENT_REMOVED.name
            up = change.name != catalog.DEPLOYMENT_UNHEALTHY.name
            return Meaning(f"deployment/{change.attributes.get('deployment.id', '')}", up, removed)
        case _:
            return None


def fold(memory: Memory, batches: Sequence[Batch], rules: Rules, now: int) -> Memory:
    """The memory after these. `now` is ns UTC. Returns `memory` itself when nothing in them concerns it."""
    work: _Work | None = None
    for batch in batches:
        target = str(batch.resource.attributes.get("litellm.target", ""))
        for event in batch.events:
            if isinstance(event, Change):
                work = work or _Work(memory, rules, now)
                work.take(event, target)
    return memory if work is None else work.result()


def forget(memory: Memory, targets: Collection[str]) -> Memory:
    """The memory without the outages of these, which are not watched any more. `memory` itself if it has none."""
    outages = {key: one for key, one in memory.outages.items() if one.target not in targets}
    return memory if len(outages) == len(memory.outages) else replace(memory, outages=outages)


class _Work:
    """One fold under way: copies of the memory's parts, which may be changed."""

    def __init__(self, memory: Memory, rules: Rules, now: int) -> None:
        self.memory = memory
        self.rules = rules
        self.now = now
        self.outages = dict(memory.outages)
        self.flips = dict(memory.flips)
        self.news = list(memory.news)
        self.unlisted = memory.unlisted

    def result(self) -> Memory:
        oldest = self.now - int(self.rules.flapping_within * SECOND)
        flips = {key: times for key, times in self.flips.items() if times[-1] > oldest}
        return replace(self.memory, outages=self.outages, flips=flips, news=tuple(self.news), unlisted=self.unlisted)

    def take(self, change: Change, target: str) -> None:
        said = meaning(change)
        # No target can hold a slash in its name, so that the first ends it.
        key = clean(f"{target}/{said.subject}", MAX_KEY) if said is not None else ""
        known = self.outages.get(key)
        if said is None or (known is None and said.up):
            self.hear(change, target)
        elif known is None:
            self.begin(key, change, target)
        elif not said.up and known.ended:
            self.renew(key, known, change)
        elif said.up and not known.ended:
            self.end(key, known, change, removed=said.removed)

    def hear(self, change: Change, target: str) -> None:
        if not self.rules.wants(change, target):
            return
        if len(self.news) >= MAX_NEWS:
            self.unlisted += 1
            return
        title, text = clean(change.title, MAX_TITLE), clean(change.text, MAX_TEXT)
        name, target = clean(change.name, MAX_NAME), clean(target, MAX_NAME)
        self.news.append(News(name, target, change.severity, change.time, self.seen(change), title, text))

    def begin(self, key: str, change: Change, target: str) -> None:
        if not self.rules.wants(change, target):
            return
        if len(self.outages) >= MAX_OUTAGES:
            self.unlisted += 1
            return
        target = clean(target, MAX_NAME)
        begun = Outage(change.name, target, change.severity, change.time, self.seen(change), _kept(change))
        self.outages[key] = replace(begun, flapping=self.flip(key, begun, change.time))

    def renew(self, key: str, known: Outage, change: Change) -> None:
        flapping = self.flip(key, known, change.time)
        # Of what flaps, the last time it went down is what it is down since, should it stay so.
        since = change.time if flapping else known.since
        self.outages[key] = replace(
            known, since=since, ended=0, ended_seen=0, removed=False, flapping=flapping, attributes=_kept(change)
        )

    def end(self, key: str, known: Outage, change: Change, *, removed: bool) -> None:
        quiet = self.rules.quiet_until(known.target, known.since)
        if quiet is not None and change.time <= quiet and not known.told and not known.flapping:
            del self.outages[key]
            return
        flapping = self.flip(key, known, change.time)
        self.outages[key] = replace(
            known, ended=change.time, ended_seen=self.seen(change), removed=removed, flapping=flapping
        )

    def flip(self, key: str, outage: Outage, time: int) -> int:
        """Note that it changed; since when it is known to flap, 0 if it does not."""
        if self.rules.quiet_until(outage.target, time) is not None:
            return outage.flapping
        oldest = time - int(self.rules.flapping_within * SECOND)
        times = (*(one for one in self.flips.get(key, ()) if one > oldest), time)[-MAX_FLIPS:]
        self.flips[key] = times
        return outage.flapping or (min(time, self.now) if len(times) >= self.rules.flapping else 0)

    def seen(self, change: Change) -> int:
        return min(change.time, self.now)  # a clock may have been set back


def _kept(change: Change) -> Attributes:
    """What of its attributes is told, in lengths that keep the memory small."""
    found = {key: change.attributes[key] for key in KEPT if key in change.attributes}
    return {key: clean(value, MAX_NAME) if isinstance(value, str) else value for key, value in found.items()}
