"""Lines that do not go on, remembered by eight bytes each: a page may have millions, with which it says nothing."""

from array import array
from typing import Final

_FIRST: Final = 1 << 16  # slots
_MOST: Final = 1 << 22  # 32 MiB; a page of 64 MiB that has more lines than fit reads the rest anew each time


class Passed:
    """A set of lines by their hashes, of 64 bits and other ones in each process: nobody can make two that agree."""

    __slots__ = ("_mask", "_table", "count")

    def __init__(self) -> None:
        self.count = 0
        self._mask = -1
        self._table = array("q")

    def __contains__(self, line: bytes) -> bool:
        return self.count > 0 and self._table[self._slot(hash(line) or 1)] != 0

    def add(self, line: bytes) -> bool:
        """False where there is no room."""
        if 3 * (self.count + 1) > 2 * len(self._table) and not self._grow():
            return False
        found = hash(line) or 1
        slot = self._slot(found)
        self.count += self._table[slot] == 0
        self._table[slot] = found
        return True

    def _slot(self, found: int) -> int:
        """Where it stands, else the empty place where it would."""
        table, mask = self._table, self._mask
        slot = found & mask
        while table[slot] not in (found, 0):
            slot = (slot + 1) & mask
        return slot

    def _grow(self) -> bool:
        size = max(_FIRST, 2 * len(self._table))
        if size > _MOST:
            return False
        before, self._table, self._mask = self._table, array("q", (0,)) * size, size - 1
        for found in before:
            if found:
                self._table[self._slot(found)] = found
        return True
