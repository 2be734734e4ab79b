"""The latest entries: an open-addressing hash table in arrays, looked up and filled a cycle at a time."""

import numpy as np
import numpy.typing as npt

from consumers.ledger.columns import Columns, Indexes
from consumers.ledger.places import Places, Words

_CAPACITY_MIN = 1024
_ABSENT = -1


class Table:
    """Digests with their places, in the order in which they first came. At least half of the slots stay free.

    About 40 bytes for each digest once it has grown, no Python object among them.
    """

    def __init__(self, capacity: int = _CAPACITY_MIN) -> None:
        """An empty table.

        Args:
            capacity: digests that fit before it grows.
        """
        self._count = 0
        self._high = np.empty(capacity, np.uint64)
        self._low = np.empty(capacity, np.uint64)
        self._places = np.zeros(capacity, np.uint64)
        self._slots = _slots_for(capacity)

    def __len__(self) -> int:
        """Number of different digests."""
        return self._count

    @property
    def nbytes(self) -> int:
        """Memory that the arrays take."""
        return sum(one.nbytes for one in (self._high, self._low, self._places, self._slots))

    def find(self, high: Words, low: Words) -> Places:
        """The place of each digest, 0 where it is not here."""
        found = self._probe(high, low)[0]
        return np.where(found == _ABSENT, np.uint64(0), self._places[found])

    def claim(self, high: Words, low: Words) -> Indexes:
        """The index of each digest, a new one with place 0 for what was not known. Digests may repeat."""
        self._reserve(self._count + len(high))
        indexes, slots = self._probe(high, low)
        left = np.flatnonzero(indexes == _ABSENT)
        while left.size:
            # All that stopped at a free slot write their row into it; the last one of each slot has it, the others
            # find either their own digest there or somebody else's, and go on from it.
            at = slots[left]
            self._slots[at] = left
            won = self._slots[at] == left
            winners = left[won]
            rows = np.arange(self._count, self._count + winners.size)
            self._slots[at[won]] = rows
            self._high[rows], self._low[rows], self._places[rows] = high[winners], low[winners], 0
            self._count += winners.size
            indexes[winners] = rows
            losers = left[~won]
            indexes[losers], slots[losers] = self._probe(high[losers], low[losers], slots[losers])
            left = losers[indexes[losers] == _ABSENT]
        return indexes

    def places(self, indexes: Indexes) -> Places:
        """The places at indexes."""
        return self._places[indexes]

    def place(self, indexes: Indexes, places: Places) -> None:
        """Give the digests at indexes their places; of a repeated index the last counts."""
        self._places[indexes] = places

    def columns(self) -> Columns:
        """All that is in, in the order in which it came; views, not copies."""
        return Columns(self._high[: self._count], self._low[: self._count], self._places[: self._count])

    def _probe(self, high: Words, low: Words, slots: Indexes | None = None) -> tuple[Indexes, Indexes]:
        """The index of each digest or -1, and the slot at which the search ended."""
        mask = len(self._slots) - 1
        at = (low & np.uint64(mask)).astype(np.int64) if slots is None else slots
        found = np.full(len(high), _ABSENT, np.int64)
        ended = at.copy()
        left = np.arange(len(high))
        while left.size:
            held = self._slots[at].astype(np.int64)
            taken = held != _ABSENT
            same = taken & (self._high[held] == high[left]) & (self._low[held] == low[left])
            found[left[same]] = held[same]
            ended[left] = at
            going = taken & ~same
            left, at = left[going], (at[going] + 1) & mask
        return found, ended

    def _reserve(self, count: int) -> None:
        capacity = len(self._high)
        if count <= capacity:
            return
        while capacity < count:
            capacity *= 2
        grown = Table(capacity)
        old = self.columns()
        grown.place(grown.claim(old.high, old.low), old.places)
        self._high, self._low, self._places, self._slots = grown._high, grown._low, grown._places, grown._slots


def _slots_for(capacity: int) -> npt.NDArray[np.int32]:
    return np.full(1 << (2 * capacity - 1).bit_length(), _ABSENT, np.int32)
