"""A target's page: every line of it to a place in an array of numbers.

Most of a page is the same series with new numbers. So what a line says up to its value is looked up as bytes, and the
value goes where it went the last time: no label is read twice. What is not known yet takes the slow way, once.
Measured on 50,000 lines: docs/benchmarks.md.
"""

import math
from array import array
from collections.abc import Collection, Iterable
from typing import Final

from forwarder.events import Attributes, Kind
from forwarder.exposition.passed import Passed
from forwarder.exposition.selection import Selection
from forwarder.exposition.series import NAN, Member, Output, Part, creation, digest, identity, resolve
from forwarder.exposition.syntax import BadLineError, Labels, Sample, number, sample, type_of

_CHUNK: Final = (
    256 * 1024
)  # bytes that are split into lines at a time: a list of all of them would take the page again
_NOWHERE: Final = 0  # the place of what does not go on
_PROCESS: Final = 1  # the place of process_start_time_seconds
# Of a line that is remembered. Nobody's series is longer, and a page of longer ones would be kept many times over.
_LONGEST: Final = 4096  # bytes
# Of lines that do not go on and are remembered as they are, which is fastest; of more there are hashes.
_HELD: Final = 16 * 2**20  # bytes
_ENTRY: Final = 100  # bytes that a line in a dictionary takes beside its own
_BUCKETS: Final = 1000  # of a histogram
_COINCIDING: Final = 10  # series of the page for each that may go on, however many of them become one
PROCESS_START: Final = "process_start_time_seconds"


_Line = tuple[bytes, float]  # a line up to its value (empty: not to be remembered), and the value


class _New:
    """A series seen for the first time, until its page is at its end. `output`: the digest of what it belongs to.
    `total`: a histogram's sum, else the value.
    """

    __slots__ = ("attributes", "buckets", "created", "kind", "name", "output", "total")

    def __init__(self, part: Part, attributes: Attributes, output: bytes, created: bytes) -> None:
        self.name = part.name
        self.kind: Kind = part.kind
        self.attributes = attributes
        self.output = output
        self.created = created
        self.buckets: dict[float, _Line] = {}
        self.total: _Line | None = None


class _MalformedError(Exception):
    """A series that cannot go on: no histogram, or other buckets than what it coincides with."""


class _NoRoomError(Exception):
    """The cap on series is reached."""


class Page:
    """`max_series` bounds what goes on, and ten times that what it is made of; what is over either is counted in
    `capped` (lines). Lines that do not go on are remembered within bounds too. For one thread at a time.
    """

    def __init__(self, selection: Selection, *, max_series: int, buckets: bool = True) -> None:
        self._selection = selection
        self._max_series = max_series
        self._buckets = buckets
        self.outputs: dict[bytes, Output] = {}
        self.members: dict[bytes, Member] = {}
        self.values = array("d")
        self.bad_lines = 0  # of the last page
        self.malformed = 0  # histograms of the last page that cannot be one, and of a kind there is no point for
        self.lines = 0  # of the last page
        self.capped = 0  # lines of the last page that are over the cap
        self.kept = 0  # series as Prometheus counts them
        self.first: frozenset[bytes] = frozenset()  # the series that the next page has room for before any other
        self.generation = 0  # places of one generation mean nothing in the next
        self.forget()

    @property
    def fingerprint(self) -> str:
        """The same where the same series are let through."""
        return f"{self._selection.fingerprint} {self._buckets}"

    @property
    def process_start(self) -> float:
        """Seconds since the epoch; NaN where the page does not say."""
        return self.values[_PROCESS]

    def forget(self) -> None:
        """Everything: the next page is the first."""
        self.outputs.clear()
        self.members.clear()
        self.values = array("d", (NAN, NAN))
        self._types: dict[str, str] = {}
        self._created: dict[bytes, int] = {}
        self._changed = False
        self.kept = 0
        # By digest: what the last page has nothing of any more, but others that coincide with it, of other buckets.
        self.outdated: dict[bytes, Output] = {}
        self.generation += 1
        self._forget_lines()

    def _forget_lines(self) -> None:
        self._places: dict[bytes, int] = {}
        self._comments: set[bytes] = set()
        self._passed = Passed()
        self._held = 0  # bytes that lines take which do not go on, as far as they are remembered as they are
        self._known_capped = 0  # of the lines that are remembered, those that are over the cap

    # --- reading --------------------------------------------------------------------------------------------------

    def read(self, body: bytes) -> None:
        """Take up a page: `values` holds its numbers, NaN where it has none."""
        if max(len(self._types), len(self._created) - len(self.members)) > 2 * self.lines + 1000:
            self.forget()  # families, or times of creation, that come with each page and are not seen again
        self._read(body)
        if self._changed:  # another release: families of another type, histograms with other buckets
            self.forget()
            self._read(body)
        if len(self._places) + len(self._comments) + self._passed.count > 2 * self.lines + 1000:
            self._forget_lines()  # most of them are gone

    def _read(self, body: bytes) -> None:
        values = self.values = array("d", (NAN,)) * len(self.values)
        self.bad_lines = self.malformed = self.lines = 0
        self.outdated = {}
        self.capped = self._known_capped
        self._asking: set[bytes] = set()  # outputs that there are not yet
        new: dict[bytes, _New] = {}
        places, start, length = self._places, 0, len(body)
        while start < length:
            end = body.rfind(b"\n", start, start + _CHUNK) + 1 or body.find(b"\n", start) + 1 or length
            lines = body[start:end].split(b"\n")
            self.lines += len(lines) - 1
            for line in lines:
                key, _, text = line.rpartition(b" ")
                try:
                    # To float, 1_0 is a number.
                    values[places[key]] = float(text.replace(b"_", b"?"))
                except (KeyError, ValueError):
                    if not self._is_passed(line, key, text):
                        self._read_slowly(line, new)
            start = end
        for identifier in sorted(new, key=lambda identifier: identifier not in self.first):  # else in the page's order
            self._admit(identifier, new[identifier])
        self.first = frozenset()

    def _is_passed(self, line: bytes, key: bytes, text: bytes) -> bool:
        if line[:1] == b"#":
            return line in self._comments or line in self._passed
        return key in self._passed and _is_number(text)

    def _read_slowly(self, line: bytes, new: dict[bytes, _New]) -> None:
        try:
            if line.lstrip().startswith(b"#"):
                self._comment(line)
                self._pass_over(line, comment=True)
            elif line.strip():
                self._sample(sample(line), new)
        except BadLineError:
            self.bad_lines += 1

    def _comment(self, line: bytes) -> None:
        if (found := type_of(line)) is None:
            return
        family, kind = found
        if self._types.setdefault(family, kind) != kind:
            self._types[family] = kind
            self._changed = True

    def _sample(self, found: Sample, new: dict[bytes, _New]) -> None:
        if found.name == PROCESS_START and not found.labels:
            self._put(found.key, _PROCESS, found.value)
        part = resolve(found.name, self._types, buckets=self._buckets)
        if part.role == "unsupported":
            self.malformed += 1
            return
        if part.role == "unwanted" or not self._selection.family(part.family):
            if found.name != PROCESS_START:
                self._pass_over(found.key)
        elif part.role == "created":
            place = self._created.setdefault(creation(part.family, found.labels), len(self.values))
            if place == len(self.values):
                self.values.append(NAN)
            self._put(found.key, place, found.value)
        else:
            self._series(part, found, new)

    def _put(self, key: bytes, place: int, value: float) -> None:
        self.values[place] = value
        if 0 < len(key) <= _LONGEST:
            self._places[key] = place

    def _pass_over(self, key: bytes, *, comment: bool = False) -> bool:
        """Remember that a line does not go on; whether that could be done."""
        if not 0 < len(key) <= _LONGEST:
            return False
        if self._held > _HELD:
            return self._passed.add(key)
        self._held += len(key) + _ENTRY
        if comment:
            self._comments.add(key)
        else:
            self._places[key] = _NOWHERE
        return True

    def _cap(self, keys: Iterable[bytes]) -> None:
        """Lines that are over the cap. Those that are remembered count on the next page without being read."""
        for key in keys:
            self.capped += 1
            self._known_capped += self._pass_over(key)

    def _series(self, part: Part, found: Sample, new: dict[bytes, _New]) -> None:
        labels, bound = found.labels, None
        if part.kind == "histogram":
            labels = tuple(label for label in labels if label[0] != "le")
            bound = _bound(found.labels) if part.role == "bucket" else None
        identifier = identity(part.name, labels)
        if member := self.members.get(identifier):
            self._place(member, found.key, bound, found.value)
            return
        if (series := new.get(identifier)) is None:
            if (attributes := self._selection.attributes(part.family, labels)) is None:
                self._pass_over(found.key)
                return
            output = digest(part.name, [(name, str(value)) for name, value in attributes.items()])
            if not self._may_fit(identifier, output, len(new)):
                self._cap((found.key,))
                return
            series = new[identifier] = _New(part, attributes, output, creation(part.family, labels))
        if bound is None:
            series.total = (found.key, found.value)
        else:
            series.buckets[bound] = (found.key, found.value)

    def _may_fit(self, identifier: bytes, output: bytes, new: int) -> bool:
        """Whether a series has a chance of being admitted. Those that have none are not kept until the page's end."""
        if output not in self.outputs and output not in self._asking:
            if self.kept + len(self._asking) >= self._max_series and identifier not in self.first:
                return False
            self._asking.add(output)
        return len(self.members) + new < _COINCIDING * self._max_series or identifier in self.first

    def _place(self, member: Member, key: bytes, bound: float | None, value: float) -> None:
        """A line of a series that is known: it was forgotten, or carries a timestamp or an exemplar."""
        bounds = (*member.output.bounds, math.inf)
        if bound is None:
            self._put(key, member.at + member.size - 1, value)
        elif bound in bounds:
            self._put(key, member.at + bounds.index(bound), value)
        else:
            self._changed = True

    # --- admitting and forgetting ---------------------------------------------------------------------------------

    def _admit(self, identifier: bytes, series: _New) -> None:
        lines = [series.buckets[bound] for bound in sorted(series.buckets)]
        if series.total is not None:
            lines.append(series.total)
        try:
            output = self._output(series)
        except _MalformedError:
            self.malformed += 1
            return
        except _NoRoomError:
            self._cap(key for key, _ in lines)
            return
        created = self._created.get(series.created, 0)
        member = self.members[identifier] = Member(identifier, output, len(self.values), len(lines), created)
        output.members.append(member)
        self.values.extend(value for _, value in lines)
        for place, (key, value) in enumerate(lines, member.at):
            self._put(key, place, value)

    def _output(self, series: _New) -> Output:
        """What a new series belongs to. Raises _MalformedError and _NoRoomError."""
        bounds = tuple(sorted(series.buckets))
        if len(self.members) >= _COINCIDING * self._max_series:
            raise _NoRoomError
        if series.kind == "histogram":
            if series.total is None or bounds[-1:] != (math.inf,):
                raise _MalformedError
            bounds = bounds[:-1]
            if len(bounds) > _BUCKETS:
                raise _MalformedError
        output = self.outputs.get(series.output)
        if output is None:
            cost = len(bounds) + 3 if series.kind == "histogram" else 1
            if self.kept + cost > self._max_series:
                raise _NoRoomError
            output = Output(series.output, series.name, series.kind, series.attributes, bounds, cost)
            self.outputs[series.output] = output
            self.kept += cost
        elif output.bounds != bounds or output.kind != series.kind:
            if output.digest not in self.outdated and not any(map(self._has, output.members)):
                self.outdated[output.digest] = output
            raise _MalformedError
        return output

    def _has(self, member: Member) -> bool:
        return not all(map(math.isnan, self.values[member.at : member.at + member.size]))

    def drop(self, members: Collection[Member], numbers: "array[float]") -> "array[float]":
        """Forget series that are gone, which makes room for others. Every place changes: `numbers`, as long as
        `values`, come back in the new order. `values` are NaN until the next reading.
        """
        for member in members:
            del self.members[member.digest]
        for output in {member.output.digest: member.output for member in members}.values():
            output.members = [member for member in output.members if member.digest in self.members]
            if not output.members:
                del self.outputs[output.digest]
                self.kept -= output.cost
        moved = array("d", numbers[:2])
        created: dict[int, int] = {_NOWHERE: _NOWHERE}
        for member in self.members.values():
            at, member.at = member.at, len(moved)
            moved.extend(numbers[at : at + member.size])
            if member.created not in created:
                created[member.created] = len(moved)
                moved.append(numbers[member.created])
            member.created = created[member.created]
        self._created = {key: created[place] for key, place in self._created.items() if place in created}
        self.values = array("d", (NAN,)) * len(moved)
        self._forget_lines()
        return moved


def _is_number(text: bytes) -> bool:
    try:
        number(text.decode())
    except (BadLineError, UnicodeDecodeError):
        return False
    return True


def _bound(labels: Labels) -> float:
    """Raises BadLineError for a bucket without one, or with one that nothing can be below."""
    bound = number(dict(labels).get("le", ""))
    if not bound > -math.inf:
        raise BadLineError
    return bound
