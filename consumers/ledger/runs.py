"""Sealed runs: digests in order with their places, in a file that is mapped, behind a Bloom filter.

```text
header 128: magic 4 | version u16 | zero u16 | digests u64 | room for digests u64 | filter words u64
            | first seal u64 | last seal u64 | covered generation u64 | its salt u64 | covered byte u64
            | greatest place u64 | zeros | CRC32C u32
filter words u64 | high halves u64, ascending | low halves u64 | places u64
```

A run is written under another name, synced and renamed: it is there in whole or not at all. It can always be made again
from the journal.
"""

import math
import mmap
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import numpy as np

from consumers.entry import LedgerDamagedError
from consumers.ledger import bloom
from consumers.ledger.bloom import Keys
from consumers.ledger.journal import Places, Words
from consumers.ledger.table import Columns
from ingest.runtime.files import FileSystem

RUNS_MAX = 12

MERGE_RUNS = 4
"""Runs of like size that are merged into one: each digest is written about once for each fourfold growth."""

MERGE_STEP = 1 << 18
"""About how many digests a merge holds in memory at once."""

_VERSION = 1
_MAGIC = b"DLRr"
_HEADER = struct.Struct("<4sHHQQQQQQQQQ")
_CHECKSUM = struct.Struct("<I")
_HEADER_BYTES = 128
_WORD_BYTES = 8
_PREFIX, _SUFFIX, _UNFINISHED = "run-", ".idx", ".tmp"


class Covered(NamedTuple):
    """How far in the journal the index was when it was sealed: generation, its salt, and the byte after it."""

    number: int
    salt: int
    end: int


class Span(NamedTuple):
    """Which seals a run holds, first and last. Seals are counted from 1."""

    first: int
    last: int


class Run:
    """One run, mapped from its file or, where the disk has no room for it, in memory."""

    def __init__(self, span: Span, covered: Covered, columns: Columns, words: Words, path: Path | None = None) -> None:
        """A run over columns that ascend by digest.

        Args:
            span: of seals.
            covered: by the last of them.
            columns: no digest twice.
            words: the filter.
            path: the file, None in memory.
        """
        self.span = span
        self.covered = covered
        self.columns = columns
        self.path = path
        self.greatest = int(columns.places.max()) if path is None and len(columns.places) else 0
        self._words = words

    def __len__(self) -> int:
        """Number of digests."""
        return len(self.columns.high)

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


def run_name(span: Span) -> str:
    """Name of the file."""
    return f"{_PREFIX}{span.first:010d}-{span.last:010d}{_SUFFIX}"


def parse_name(name: str) -> Span | None:
    """The span of a run's file, None for other files."""
    if not name.startswith(_PREFIX) or not name.endswith(_SUFFIX):
        return None
    first, _, last = name[len(_PREFIX) : -len(_SUFFIX)].partition("-")
    return Span(int(first), int(last))


def unfinished_name(unique: str) -> str:
    """Name of a file that is to become a run."""
    return f"{_PREFIX}{unique}{_UNFINISHED}"


def is_unfinished(name: str) -> bool:
    """Whether a file is a run that was not finished."""
    return name.startswith(_PREFIX) and name.endswith(_UNFINISHED)


def in_memory(span: Span, covered: Covered, columns: Columns) -> Run:
    """A run of digests in any order, none twice."""
    merged = combine([columns], 0)
    words = np.zeros(bloom.words_for(len(merged.high)), np.uint64)
    bloom.add(words, merged.high, merged.low)
    return Run(span, covered, merged, words)


def write_run(
    fs: FileSystem, path: Path, parts: Iterator[Columns], *, span: Span, covered: Covered, capacity: int
) -> None:
    """Write a run under an unfinished name and sync it; it counts once it is renamed to `run_name`.

    Args:
        fs: where.
        path: from `unfinished_name`.
        parts: digests, ascending over all parts, none twice.
        span: of seals.
        covered: by the last of them.
        capacity: at least how many digests there are.

    Raises:
        OSError: nothing is left behind.
    """
    file = fs.create(path)
    try:
        words = np.zeros(bloom.words_for(capacity), np.uint64)
        begin = _HEADER_BYTES + words.nbytes
        count, greatest = 0, 0
        for part in parts:
            for column, values in enumerate(part):
                file.pwrite([values.tobytes()], begin + (column * capacity + count) * _WORD_BYTES)
            bloom.add(words, part.high, part.low)
            count += len(part.high)
            greatest = max(greatest, int(part.places.max(initial=0)))
        header = _HEADER.pack(
            _MAGIC,
            _VERSION,
            0,
            count,
            capacity,
            len(words),
            span.first,
            span.last,
            covered.number,
            covered.salt,
            covered.end,
            greatest,
        ).ljust(_HEADER_BYTES - _CHECKSUM.size, b"\0")
        file.allocate(begin + 3 * capacity * _WORD_BYTES)
        file.pwrite([header, _CHECKSUM.pack(google_crc32c.value(header)), words.tobytes()], 0)
        file.sync()
    except BaseException:
        file.close()
        fs.unlink(path)
        raise
    file.close()


def open_run(path: Path) -> Run:
    """Map a run from its file.

    Raises:
        LedgerDamagedError: it is none, or of another version.
        OSError: the device would not give it.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        data = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ) if size >= _HEADER_BYTES else b""
    finally:
        os.close(descriptor)
    header = data[: _HEADER_BYTES - _CHECKSUM.size]
    if size < _HEADER_BYTES or not header.startswith(_MAGIC):
        raise LedgerDamagedError(f"{path.name} is no run")
    if _CHECKSUM.unpack_from(data, len(header))[0] != google_crc32c.value(header):
        raise LedgerDamagedError(f"{path.name} has a damaged header")
    _, version, _, count, capacity, words, first, last, number, salt, end, greatest = _HEADER.unpack_from(header)
    begin = _HEADER_BYTES + words * _WORD_BYTES
    if version != _VERSION or size < begin + 3 * capacity * _WORD_BYTES:
        raise LedgerDamagedError(f"{path.name} is of version {version}, or cut short")
    columns = Columns(*(np.frombuffer(data, np.uint64, count, begin + n * capacity * _WORD_BYTES) for n in range(3)))
    filter_words = np.frombuffer(data, np.uint64, words, _HEADER_BYTES)
    run = Run(Span(first, last), Covered(number, salt, end), columns, filter_words, path)
    run.greatest = greatest
    return run


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


def merge(runs: Sequence[Run], floor: int, step: int = MERGE_STEP) -> Iterator[Columns]:
    """The digests of several runs as one, in parts of about `step`: cut by ranges of the digest, even as they are."""
    total = sum(map(len, runs))
    cuts = max(1, -(-total // step))
    begins = [0] * len(runs)
    for cut in range(1, cuts + 1):
        border = np.uint64((cut << 64) // cuts) if cut < cuts else None
        ends = [len(run) if border is None else int(np.searchsorted(run.columns.high, border)) for run in runs]
        yield combine(
            [
                Columns(*(column[begin:end] for column in run.columns))
                for run, begin, end in zip(runs, begins, ends, strict=True)
            ],
            floor,
        )
        begins = ends
