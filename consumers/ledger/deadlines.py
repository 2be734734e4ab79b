"""Who still waits past its deadline: a walk behind the journal, with no index of its own.

`seen_at` never falls from one first sight to the next, so the first sights of waiting messages stand in the journal in
the order of their deadlines. The walk checks what it reads, a changelog record at a time, and asks the index for each
whether it waits still, in the same life.

Where the changelog's head was cut, a message may be left whose first sight is gone: so every entry that waited when it
was written is asked about, not the first alone. It was seen before all first sights behind it, so the walk may halt at
any that is not due and passes nobody. What it costs such a message is that its result comes late: when the first sights
in front of the entry are due.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from consumers.entry import DIGEST_BYTES, Cursor, Due
from consumers.ledger.changelog import SEEN_AT_SHIFT, WAITING, Rows, rows_of
from consumers.ledger.generation import Stored
from consumers.ledger.index import Index
from consumers.ledger.journal import Journal
from consumers.ledger.places import waits_in

CANDIDATES_MAX = 8192
RECORDS_MAX = 2048
BYTES_MAX = 32 * 1024 * 1024
"""About the most that one look examines, so that it takes some milliseconds."""


class _Candidates(NamedTuple):
    """Entries that waited, seen up to some time: rows, where each stands in the changelog, and its records."""

    rows: Rows
    offsets: npt.NDArray[np.int64]
    indexes: npt.NDArray[np.int64]
    records: list[Stored]


class Deadlines:
    """The deadlines of one partition. It remembers where in the journal it stopped, nothing else."""

    def __init__(self, journal: Journal, index: Index) -> None:
        """Look at this journal and index."""
        self._journal = journal
        self._index = index
        self._stopped: tuple[int, int, int] | None = None  # changelog offset, generation, byte of the frame
        self._held: tuple[Stored, Rows] | None = None  # the record that was read last: the next look begins there

    def reset(self) -> None:
        """Forget the place: the journal is another one."""
        self._stopped = self._held = None

    def prepare(self, cursor: Cursor) -> None:
        """Find the place of a cursor now, at start: the first time it may be long."""
        self._find(cursor)

    def due(self, cursor: Cursor, seen_until_ms: int, limit: int) -> Due:
        """As `consumers.engine.protocols.Ledger.due`."""
        if limit < 1:
            raise ValueError("a look at the deadlines must be allowed to find something")
        candidates, after, more = self._walk(cursor, seen_until_ms)
        messages, first_left = self._still_waiting(candidates, limit)
        if first_left is not None:
            after, more = Cursor(*first_left), True
            self._stop_at(next(one for one in candidates.records if one.offset == after.offset))
        return Due(messages, max(after, cursor), more)

    def _walk(self, cursor: Cursor, seen_until_ms: int) -> tuple[_Candidates, Cursor, bool]:
        """What waited from the cursor on, the first place that was not examined, and whether the bound ended it."""
        rows: list[Rows] = []
        offsets: list[npt.NDArray[np.int64]] = []
        indexes: list[npt.NDArray[np.int64]] = []
        records: list[Stored] = []
        found = size = 0
        place = self._find(cursor)
        after, more = Cursor(self._journal.next_offset), False
        for walked, stored in enumerate(self._journal.records(*place)):
            if walked >= RECORDS_MAX or found >= CANDIDATES_MAX or size >= BYTES_MAX:
                after, more = Cursor(stored.offset), True
                self._stop_at(stored)
                break
            size += stored.head.length
            all_rows = self._rows_of(stored)
            at = _waiting_in(all_rows, cursor.index if stored.offset == cursor.offset else 0)
            times = (all_rows["meta"][at] >> np.uint64(SEEN_AT_SHIFT)).astype(np.int64)
            later = np.flatnonzero(times > seen_until_ms)
            kept = at[: later[0]] if later.size else at
            records.append(stored)
            rows.append(all_rows[kept])
            offsets.append(np.full(len(kept), stored.offset))
            indexes.append(kept)
            found += len(kept)
            if later.size:
                after = Cursor(stored.offset, int(at[later[0]]))
                self._stop_at(stored)
                break
        else:
            self._stopped = (self._journal.next_offset, *self._journal.end())
        none = np.zeros(0, np.int64)
        return (
            _Candidates(
                np.concatenate([rows_of(b""), *rows]),
                np.concatenate([none, *offsets]),
                np.concatenate([none, *indexes]),
                records,
            ),
            after,
            more,
        )

    def _still_waiting(
        self, candidates: _Candidates, limit: int
    ) -> tuple[list[tuple[bytes, bytes]], tuple[int, int] | None]:
        """Those that wait in the same life, at most `limit`, and the changelog place of the first one left over."""
        first = candidates.rows
        high, low = np.ascontiguousarray(first["high"]), np.ascontiguousarray(first["low"])
        places = self._index.find(high, low)
        waits = np.flatnonzero(waits_in(places))
        latest, payloads = self._journal.read(places[waits], high[waits], low[waits])
        same_life = (latest["meta"] >> np.uint64(SEEN_AT_SHIFT)) == (first["meta"][waits] >> np.uint64(SEEN_AT_SHIFT))
        messages: dict[bytes, bytes] = {}
        for index in np.flatnonzero(same_life).tolist():
            candidate = int(waits[index])
            digest = first[candidate].tobytes()[:DIGEST_BYTES]
            if len(messages) == limit and digest not in messages:
                return list(messages.items()), (int(candidates.offsets[candidate]), int(candidates.indexes[candidate]))
            messages.setdefault(digest, payloads[index])
        return list(messages.items()), None

    def _find(self, cursor: Cursor) -> tuple[int, int]:
        """The frame of the first record at or after a cursor: generation and byte."""
        if self._stopped is not None and self._stopped[0] == cursor.offset:
            return self._stopped[1:]
        for generation in self._journal.generations:
            if generation.last_offset >= cursor.offset and (stored := generation.first_from(cursor.offset)):
                return stored.frame
        return self._journal.end()

    def _rows_of(self, stored: Stored) -> Rows:
        """The rows of a record, read and checked once for all looks that end at it."""
        if self._held is None or self._held[0] != stored:
            self._held = stored, rows_of(self._journal.rows_of(stored))
        return self._held[1]

    def _stop_at(self, stored: Stored) -> None:
        self._stopped = (stored.offset, *stored.frame)


def _waiting_in(rows: Rows, begin: int) -> npt.NDArray[np.int64]:
    """Indexes, from `begin` on, of rows that wait."""
    return np.flatnonzero(rows["meta"][begin:] & np.uint64(WAITING)) + begin
