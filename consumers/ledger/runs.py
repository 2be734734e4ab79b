"""Sealed runs: digests in order with their places behind a Bloom filter, and how several become one."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import numpy as np
import numpy.typing as npt

from consumers.entry import LedgerDamagedError
from consumers.ledger import bloom
from consumers.ledger.bloom import Keys
from consumers.ledger.places import Places, Words
from consumers.ledger.table import Columns

RUNS_MAX = 12

MERGE_RUNS = 4
"""Runs of like size that are merged into one: each digest is written about once for each fourfold growth."""

MERGE_STEP = 1 << 18
"""About how many digests a merge holds in memory at once."""


class Covered(NamedTuple):
    """A point in the journal that the index had come to: generation, its salt, and the byte after it."""

    number: int
    salt: int
    end: int


NOTHING = Covered(0, 0, 0)
"""Before the first generation."""


class Span(NamedTuple):
    """Which seals a run holds, first and last. Seals are counted from 1."""

    first: int
    last: int


class Reach(NamedTuple):
    """What a run is made of: its seals, and the journal from one point, at which the run before ends, to another."""

    span: Span
    after: Covered
    covered: Covered


class Run:
    """One run, mapped from its file or, where the disk has no room for it, in memory.

    Attributes:
        greatest: of its places, 0 if it has none.
    """

    def __init__(
        self,
        reach: Reach,
        columns: Columns,
        words: Words,
        *,
        path: Path | None = None,
        checks: tuple[int, ...] = (),
        greatest: int | None = None,
    ) -> None:
        """A run over columns that ascend by digest.

        Args:
            reach: what it is made of.
            columns: no digest twice.
            words: the filter.
            path: the file, None in memory.
            checks: CRC32C of each column and of the filter as they were written, nothing in memory.
            greatest: of the places, if it is known.
        """
        self.reach = reach
        self.columns = columns
        self.path = path
        self.checks = checks
        self.greatest = int(columns.places.max(initial=0)) if greatest is None else greatest
        self._words = words

    def __len__(self) -> int:
        """Number of digests."""
        return len(self.columns.high)

    def filter_check(self) -> int:
        """CRC32C of the filter as it is."""
        value = 0
        for begin in range(0, len(self._words), MERGE_STEP):
            value = google_crc32c.extend(value, self._words[begin : begin + MERGE_STEP].tobytes())
        return value

    def find(self, keys: Keys) -> Places:
        """The place of each digest, 0 where it is not in this run."""
        found = np.zeros(len(keys.high), np.uint64)
        left = np.flatnonzero(bloom.probe(self._words, keys))
        columns, count = self.columns, len(self)
        at = np.searchsorted(columns.high, keys.high[left])
        while left.size:
            inside = at < count
            left, at = left[inside], at[inside]
            near = columns.high[at] == keys.high[left]
            same = near & (columns.low[at] == keys.low[left])
            found[left[same]] = columns.places[at[same]]
            going = near & ~same  # digests that share their first half stand side by side
            left, at = left[going], at[going] + 1
        return found


def in_memory(reach: Reach, columns: Columns) -> Run:
    """A run of digests in any order, none twice."""
    merged = combine([columns], 0)
    words = np.zeros(bloom.words_for(len(merged.high)), np.uint64)
    bloom.add(words, merged.high, merged.low)
    return Run(reach, merged, words)


def combine(parts: Sequence[Columns], floor: int) -> Columns:
    """Digests of several columns in order, each once with its greatest place, those below `floor` left out."""
    high = np.concatenate([part.high for part in parts])
    low = np.concatenate([part.low for part in parts])
    places = np.concatenate([part.places for part in parts])
    order = np.argsort(high)
    near = high[order][1:] == high[order][:-1]
    if (near & (low[order][1:] != low[order][:-1])).any():
        order = np.lexsort((low, high))
    high, low, places = high[order], low[order], places[order]
    if not len(high):
        return Columns(high, low, places)
    starts = np.flatnonzero(np.concatenate(([True], (high[1:] != high[:-1]) | (low[1:] != low[:-1]))))
    places = np.maximum.reduceat(places, starts)
    alive = places >= floor
    return Columns(high[starts][alive], low[starts][alive], places[alive])


def choose(runs: Sequence[Run], seal_entries: int) -> Sequence[Run]:
    """Which adjacent runs to merge next, given newest first; none if there is no need."""

    def size_class(run: Run) -> int:
        return max(0, round(math.log(max(1, len(run)) / seal_entries, MERGE_RUNS)))

    windows = [runs[at : at + MERGE_RUNS] for at in range(len(runs) - MERGE_RUNS + 1)]
    for window in windows:
        if len({size_class(run) for run in window}) == 1:
            return window
    if len(runs) > RUNS_MAX:
        return min(windows, key=lambda window: sum(map(len, window)))
    return []


def merged_reach(runs: Sequence[Run]) -> Reach:
    """What the merge of adjacent runs is made of, given newest first."""
    newest, oldest = runs[0].reach, runs[-1].reach
    return Reach(Span(oldest.span.first, newest.span.last), oldest.after, newest.covered)


def merge(runs: Sequence[Run], floor: int, step: int = MERGE_STEP) -> Iterator[Columns]:
    """The digests of several runs as one, in parts of about `step`: cut by ranges of the digest, even as they are.

    Raises:
        LedgerDamagedError: after the last part: a file did not give what was written, and no part can be trusted.
    """
    total = sum(map(len, runs))
    cuts = max(1, -(-total // step))
    readers = [_Reader(run) for run in runs]
    for cut in range(1, cuts + 1):
        border = np.uint64((cut << 64) // cuts) if cut < cuts else None
        yield combine([reader.read_to(border) for reader in readers], floor)
    for reader in readers:
        reader.check()


class _Reader:
    """Reads a run from end to end, once, and knows afterwards whether it was what had been written."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._at = 0
        self._sums = [0] * len(Columns._fields)

    def read_to(self, border: np.uint64 | None) -> Columns:
        """The next digests whose first half is below a border, or all that are left; copies."""
        columns = self._run.columns
        end = len(self._run) if border is None else int(np.searchsorted(columns.high, border))
        begin, self._at = self._at, max(self._at, end)
        return Columns(*(self._read(number, column[begin:end]) for number, column in enumerate(columns)))

    def check(self) -> None:
        """Raise if something else was read than what had been written."""
        if self._run.path is not None and (*self._sums, self._run.filter_check()) != self._run.checks:
            raise LedgerDamagedError(f"{self._run.path.name} is not what was written any more")

    def _read(self, number: int, column: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        data = column.tobytes()
        self._sums[number] = google_crc32c.extend(self._sums[number], data)
        return np.frombuffer(data, np.uint64)
