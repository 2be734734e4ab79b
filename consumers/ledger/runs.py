"""Sealed runs: digests in order with their places behind a Bloom filter, and how several become one."""

import itertools
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
from consumers.ledger.columns import Columns, ascending, firsts, joined, search
from consumers.ledger.places import Places, Words

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
        return search(self.columns, keys.high, keys.low, np.flatnonzero(bloom.probe(self._words, keys)))


def in_memory(reach: Reach, columns: Columns) -> Run:
    """A run of digests in any order, none twice."""
    merged = combine([columns], 0)
    words = np.zeros(bloom.words_for(len(merged.high)), np.uint64)
    bloom.add(words, merged.high, merged.low)
    return Run(reach, merged, words)


def combine(parts: Sequence[Columns], floor: int) -> Columns:
    """Digests of several columns in order, each once with its greatest place, those below `floor` left out."""
    columns = ascending(joined(parts))
    high, low, places = columns
    starts = firsts(high, low)
    if len(starts) < len(high):
        high, low, places = high[starts], low[starts], np.maximum.reduceat(places, starts)
    if floor:
        alive = places >= floor
        high, low, places = high[alive], low[alive], places[alive]
    return Columns(high, low, places)


def choose(runs: Sequence[Run], seal_entries: int, *, patient: bool = False) -> Sequence[Run]:
    """Which adjacent runs to merge next, given newest first; none if there is no need.

    Args:
        runs: all of them.
        seal_entries: digests of the smallest ones.
        patient: merge nothing before there are too many, and then as many as can be: more are coming fast, and nobody
            looks anything up.
    """

    def size_class(run: Run) -> int:
        return max(0, round(math.log(max(1, len(run)) / seal_entries, MERGE_RUNS)))

    if patient and len(runs) <= RUNS_MAX:
        return []
    alike = [list(some) for _, some in itertools.groupby(runs, size_class)]
    if patient and len(longest := max(alike, key=len)) >= MERGE_RUNS:
        return longest
    for some in alike:
        if len(some) >= MERGE_RUNS:
            return some[:MERGE_RUNS]
    if len(runs) > RUNS_MAX:
        windows = [runs[at : at + MERGE_RUNS] for at in range(len(runs) - MERGE_RUNS + 1)]
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
