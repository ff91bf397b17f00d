"""From one reading of a page to the next: points with their deltas, computed once.

What a counter grew by is found for each series of the page by itself, and only where it is known:

    it was there before and did not fall         the difference
    it fell, or its `_created` moved             everything it counted, if the page says that it began after the
                                                 last reading; else nothing is known, and nothing claimed
    the process began after the last reading     everything it counted
    it is new in the same process                everything it counted; nothing where it may have been there before
                                                 (the cap on series left it out, it was forgotten, the rules are new)
    another process, which was there before      nothing: it stood beside the one that answered last

A page that is answered by several processes in turn has no counters, only noise. That is recognised (`mixed`), and
sums and histograms are withheld until one process has answered for a while.
"""

import math
from array import array
from collections import deque
from collections.abc import Mapping, Sequence
from enum import Enum
from operator import add, lt, sub
from typing import Final, NamedTuple

from forwarder.events import Delta, Histogram, Metric
from forwarder.exposition.page import Page
from forwarder.exposition.series import NAN, Member, Output

SECOND: Final = 1_000_000_000  # ns
# A delta over a longer gap would be a spike wherever its interval is not looked at.
LONGEST_GAP: Final = 600 * SECOND
FORGET_AFTER: Final = 300 * SECOND  # as Prometheus, which looks back for five minutes
LOOKED_BACK: Final = 10  # readings
STRANGE: Final = 3  # of them: then several processes answer
MOST: Final = 2.0**63  # that a bucket may count
CALM: Final = 20  # readings in a row from one process: then one does again

# In the place of a first number: the series was there and what it said could not be (`_sound`). NaN: it was not there.
UNSOUND: Final = -1.0

ANY_SHAPE: Final = -1  # of an output of the last run that does not tell which buckets it had

Numbers = Sequence[float]


class Since(Enum):
    """What is known of the time between the last reading and this one."""

    NOTHING = "the first reading"
    SAME = "the same process, as far as the page says"
    RESTARTED = "a process that began after the last reading"
    ANOTHER = "a process that was there already"


class Remembered(NamedTuple):
    """Of a series of the last run, or of one that is to be seen anew: its numbers, its `_created`, and the output it
    went into.
    """

    numbers: Numbers
    created: float
    output: bytes


class Began(NamedTuple):
    """Of an output of the last run, or of one that is to be seen anew. `shape`: as of an Output, or ANY_SHAPE."""

    start: int
    base: Numbers
    shape: int


class _Tally(NamedTuple):
    """Of an output: `growth` is None where nothing is known; `began`: it counts anew, from 0."""

    total: Numbers
    growth: Numbers | None
    base: Numbers
    began: bool


class Counters:
    """What the last reading of a page left. `observe`, then `commit` when its points are stored."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.now = 0  # ns, of the reading that is observed
        self.time = 0  # ns, of the last reading; 0: none
        self.process = NAN  # its process_start_time_seconds
        self.last = array("d")  # its numbers, by the places of the page
        self.mixed = False
        self.history: deque[bool] = deque(maxlen=LOOKED_BACK)  # which readings contradicted the one before
        self.calm = 0
        self.trusted = False  # what was not there is new
        self.capped = False  # the last page had more series than go on
        self.remembered: dict[bytes, Remembered] = {}  # by series
        self.began: dict[bytes, Began] = {}  # by output
        self.withheld = 0  # of the last page, as Prometheus counts series
        self.malformed = 0  # of the last page: there, but no counter or histogram, or grown in no way that one can
        self.turned: bool | None = None  # what `mixed` becomes with this reading, if it changes
        self.processes: deque[float] = deque(maxlen=16)  # that answered
        # To be taken over by `commit`: the numbers, and starts and bases of outputs.
        self.next = self.last
        self.starts: list[tuple[Output, int, Numbers]] = []
        self._generation = page.generation
        self._partial: dict[bytes, Output] = {}  # of which this reading has a histogram without all of its buckets
        self.strange = False  # this reading contradicts the last

    # --- a reading ------------------------------------------------------------------------------------------------

    def observe(self, time: int) -> list[Metric]:
        """The points of the page that was read last; `time` is that of the reading in ns."""
        page, self.now = self.page, time
        if self._generation != page.generation:
            self._generation, self.last, self.trusted = page.generation, array("d"), False
        self._recall()
        since = self._since()
        self.strange = self._returned(since)
        self._partial = {}
        self.starts = []
        self.next = array("d", page.values)
        withhold = self.mixed or since is Since.ANOTHER
        self.withheld = self.malformed = 0
        points = []
        for output in page.outputs.values():
            if output.kind == "gauge":
                point = self._gauge(output)
            else:
                point = self._counter(output, since)
                if withhold:
                    self.starts.append((output, 0, ()))
                    self.withheld += output.cost
                    point = None
            if point is not None:
                points.append(point)
        self._judge()
        return points

    def commit(self) -> None:
        """The points are stored: the next reading counts from this one."""
        for output, start, base in self.starts:
            output.start, output.base = start, base
        self.last, self.time = self.next, self.now
        process = self.page.process_start
        if process == process:  # noqa: PLR0124 - not NaN
            if process not in self.processes:
                self.processes.append(process)
            self.process = process
        self.capped = self.page.capped > 0
        self.trusted = not self.capped
        self.calm = 0 if self.strange else self.calm + 1
        self.history.append(self.strange)
        if self.turned is not None:
            self.mixed = self.turned
            self.history.clear()
        self._forget()
        self._see_anew({**self._partial, **self.page.outdated})

    def _judge(self) -> None:
        recent = [*self.history, self.strange][-LOOKED_BACK:]
        self.turned = None
        if self.mixed and not self.strange and self.calm + 1 >= CALM:
            self.turned = False
        elif not self.mixed and sum(recent) >= STRANGE:
            self.turned = True

    def _forget(self) -> None:
        """Series that have been gone for long, once there are many of them or others wait for their room."""
        page = self.page
        gone = [member for member in page.members.values() if self.now - member.seen > FORGET_AFTER]
        if not gone or not (page.capped or len(gone) > 100 + len(page.members) // 10):
            return
        for member in gone:
            numbers = self.last[member.at : member.at + member.size]
            if len(member.output.members) > 1 and member.output.kind != "gauge" and numbers[0] >= 0:
                member.output.base = _sum(member.output.base, numbers)
        self.last = page.drop(gone, self.last)
        self.trusted = False

    def _see_anew(self, outputs: Mapping[bytes, Output]) -> None:
        """Histograms that seem to have other buckets now: the next page tells which. What is known of them is kept as
        after a restart of the agent, for it may have been damage to one page.
        """
        members = []
        for output in outputs.values():
            if output.digest not in self.page.outputs:  # forgotten
                continue
            members += output.members
            self.began[output.digest] = Began(output.start, output.base, output.shape)
            for member in output.members:
                numbers = self.last[member.at : member.at + member.size]
                created = self.last[member.created] if member.created else NAN
                self.remembered[member.digest] = Remembered(numbers, created, output.digest)
        if members:
            self.page.first = frozenset(self.remembered)
            self.last = self.page.drop(members, self.last)
            self.trusted = False

    def _recall(self) -> None:
        """Give what is remembered to the series that carry on. Those with other buckets than they had begin anew."""
        page = self.page
        self.last.extend([NAN] * (len(page.values) - len(self.last)))
        for key, (numbers, created, into) in self.remembered.items():
            member = page.members.get(key)
            start, base, shape = self.began.get(into, Began(0, (), 0))
            output = page.outputs.get(into) if member is None else member.output
            same = output is None or shape in (output.shape, ANY_SHAPE) or output.kind == "gauge"
            if member is None:  # gone meanwhile; the total of those it coincided with does not fall
                if same and numbers[0] >= 0:  # neither NaN nor UNSOUND
                    self.began[into] = Began(start, _sum(base, numbers), shape)
            elif same and len(numbers) == member.size:
                self.last[member.at : member.at + member.size] = array("d", numbers)
                if member.created:
                    self.last[member.created] = created
            else:
                self.last[member.at] = UNSOUND
                self.began.pop(into, None)
        for output in page.outputs.values():
            if (began := self.began.get(output.digest)) and began.shape in (output.shape, ANY_SHAPE):
                output.start, output.base = began.start, began.base
        self.remembered, self.began = {}, {}

    def _since(self) -> Since:
        if not self.time:
            return Since.NOTHING
        process = self.page.process_start
        # Where one of them is not known, NaN, all three comparisons are false.
        if process > self.process and process * SECOND > self.time:
            return Since.RESTARTED
        if process > self.process or process < self.process:
            return Since.ANOTHER
        return Since.SAME

    def _returned(self, since: Since) -> bool:
        """Whether a process answers that answered before another did, or began before it: no restart does that."""
        process = self.page.process_start
        return since is Since.ANOTHER and (process < self.process or process in self.processes)

    # --- points ---------------------------------------------------------------------------------------------------

    def _gauge(self, output: Output) -> Metric | None:
        """Of gauges that coincide the one that is worth knowing: the least of what remains, else the greatest."""
        found = []
        for member in output.members:
            value = self.page.values[member.at]
            if math.isfinite(value):
                found.append(value)
                member.seen = self.now
        if not found:
            return None
        value = min(found) if "remaining" in output.name else max(found)
        return Metric(output.name, "gauge", "", self.now, value, output.attributes)

    def _counter(self, output: Output, since: Since) -> Metric | None:
        tally = self._tally(output, since)
        if tally is None:
            if since is not Since.SAME:  # should it come back, it is that of another process
                self.starts.append((output, 0, ()))
            return None
        start = output.start
        if not start or tally.began or since is Since.RESTARTED:
            start = self._start(output, since)
        if start != output.start or tally.base != output.base:
            self.starts.append((output, start, tally.base))
        return self._point(output, tally, start)

    def _tally(self, output: Output, since: Since) -> _Tally | None:
        """What the members of an output come to; None when the page has none of them."""
        values, last = self.page.values, self.last
        base: Numbers = () if since is Since.RESTARTED else output.base
        total, growth, began, present = base, None, False, False
        for member in output.members:
            end = member.at + member.size
            numbers, before = values[member.at : end], last[member.at : end]
            known = since is Since.SAME and before[0] >= 0  # NaN: it was not there
            if not ((known and numbers == before) or _sound(numbers, output)):
                self._carry(member, since)
                if not all(map(math.isnan, numbers)):  # it is on the page
                    self.malformed += 1
                    if output.kind == "histogram" and numbers[-2] >= 0 and any(map(math.isnan, numbers[:-2])):
                        self._partial[output.digest] = output
                    if not known:
                        self.next[member.at] = UNSOUND
                total = _sum(total, before) if known else total
                continue
            present, member.seen = True, self.now
            grown, anew = self._growth(member, numbers, before if known else None, since)
            growth = growth if grown is None else _sum(growth, grown)
            if anew and len(output.members) > 1:  # the total goes on
                base, total = _sum(base, before), _sum(total, before)
            elif anew:
                base, total, began = (), (), True
            total = _sum(total, numbers)
        return _Tally(total, growth, base, began) if present else None

    def _growth(
        self, member: Member, numbers: Numbers, before: Numbers | None, since: Since
    ) -> tuple[Numbers | None, bool]:
        """What a series grew by, where that is known, and whether it began anew."""
        if since is not Since.SAME:
            return (numbers if since is Since.RESTARTED else None), False
        created = self.page.values[member.created] if member.created else NAN
        began_since = created * SECOND > self.time
        if before is None:
            new = self.trusted and self.last[member.at] != UNSOUND
            return (numbers if new or began_since else None), False
        known = self.last[member.created] if member.created else NAN
        if created > known or created < known:  # neither where one of them is NaN
            self.strange |= created < known
            return (numbers if began_since else None), True
        if numbers == before:
            return (0.0,) * member.size, False
        if any(map(lt, numbers[:-1] or numbers, before)):  # a histogram's sum may fall; its buckets may not
            self.strange = True
            return None, True
        return tuple(map(sub, numbers, before)), False

    def _carry(self, member: Member, since: Since) -> None:
        """A series that is not on the page: should it come back in the same process, it goes on from where it was."""
        keep = since is Since.SAME
        for place in (*range(member.at, member.at + member.size), member.created):
            self.next[place] = self.last[place] if keep else NAN

    def _start(self, output: Output, since: Since) -> int:
        """Since when the output counts, in ns: its oldest `_created`, else the start of the process, else since the
        reading before it was first seen.
        """
        values = self.page.values
        found = [values[member.created] for member in output.members if member.created]
        seconds = min((value for value in found if math.isfinite(value)), default=self.page.process_start)
        unknown = self.now if since is Since.NOTHING else self.time
        # Compared before it becomes an integer: 1e305 s are no number of ns.
        start = int(min(seconds, self.now / SECOND) * SECOND) if math.isfinite(seconds) and seconds > 0 else unknown
        return min(start, self.now)

    def _point(self, output: Output, tally: _Tally, start: int) -> Metric | None:
        growth = tally.growth if 0 < self.now - self.time <= LONGEST_GAP else None
        if growth is not None and not math.isfinite(sum(growth)):
            growth = None
        if output.kind == "sum":
            if not math.isfinite(tally.total[0]):
                self.malformed += 1
                return None
            delta = None if growth is None else Delta(self.time, max(0.0, growth[0]))
            return Metric(output.name, "sum", "", self.now, tally.total[0], output.attributes, start, None, delta)
        if output.numbers == tally.total:
            histogram = output.histogram
        else:
            output.numbers, output.histogram = tally.total, _histogram(output, tally.total)
            histogram = output.histogram
        if histogram is None:
            self.malformed += 1
            return None
        delta = None
        if growth is not None:
            grown = _histogram(output, growth) if any(growth) else output.still
            self.malformed += grown is None
            delta = None if grown is None else Delta(self.time, None, grown)
        return Metric(output.name, "histogram", "", self.now, None, output.attributes, start, histogram, delta)


def _sum(left: Numbers | None, right: Numbers) -> Numbers:
    return tuple(map(add, left, right)) if left else right


def _sound(numbers: Numbers, output: Output) -> bool:
    """Finite, not negative, and a histogram's buckets cumulative and no more than can be stored."""
    if not math.isfinite(sum(numbers)):
        return False
    if output.kind == "sum":
        return numbers[0] >= 0
    return numbers[0] >= 0 and numbers[-2] < MOST and not any(map(lt, numbers[1:-1], numbers))


def _histogram(output: Output, numbers: Numbers) -> Histogram | None:
    """From cumulative buckets and a sum. None when a bucket would be negative, or a number too large."""
    if not (math.isfinite(numbers[-1]) and numbers[-2] < MOST):
        return None
    counts = tuple(map(int, map(sub, numbers, (0.0, *numbers[:-2]))))
    return None if min(counts) < 0 else Histogram(output.bounds, counts, numbers[-1], int(numbers[-2]))
