"""Digest to place: the latest entries in a table, older ones in levels that are sealed and merged beside the work."""

from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from consumers.ledger.bloom import keys_of
from consumers.ledger.columns import Columns, firsts, joined, order_of
from consumers.ledger.levels import Frozen, Level, Levels
from consumers.ledger.places import Places, Words, waits_in
from consumers.ledger.runs import NOTHING, Covered, Reach, Span
from consumers.ledger.table import Table
from ingest.runtime.files import FileSystem

SEAL_ENTRIES = 262_144

_COUNT_STEP = 1 << 20


class _Arrived(NamedTuple):
    """Digests with their places, and where a life begins."""

    columns: Columns
    first_seen: npt.NDArray[np.bool_]


class Index:
    """Places by digest for one partition. One thread at a time.

    What arrives is put into the table when somebody asks next. While nobody does, in a restore, it never comes to the
    table: it is put in order all at once and sealed, which costs a fraction.
    """

    def __init__(self, fs: FileSystem, folder: Path, worker: Executor, *, seal_entries: int = SEAL_ENTRIES) -> None:
        """An empty index; `recover` finds the runs in the folder.

        Args:
            fs: where. The files are mapped by their path as well.
            folder: of the partition, held by the caller.
            worker: where sealing and merging run.
            seal_entries: how many digests make a run.
        """
        self._seal_entries = seal_entries
        self._older = Levels(fs, folder, worker, seal_entries)
        self._table = Table()
        self._arrived: list[_Arrived] = []  # since the table was filled last, oldest first
        self._arrived_count = 0
        self._covered = NOTHING
        self._waiting = 0

    @property
    def levels(self) -> int:
        """How many places a digest that is nowhere is looked for at."""
        return 1 + len(self._older)

    @property
    def waiting(self) -> int:
        """How many digests wait, by their latest entry."""
        self._take_in()
        return self._waiting

    @property
    def damage(self) -> str | None:
        """What was found wrong beside the work in a file that answers were taken from, None if nothing."""
        return self._older.damage

    def recover(self, holds: Callable[[Covered], bool], floor: int) -> Covered:
        """Take the runs in the folder that are whole and that the journal bears out; the others are removed.

        Args:
            holds: whether the journal reaches as far as a run says.
            floor: the least place that is not forgotten.

        Returns:
            How far the index goes: what follows in the journal must be given to `update`, then `count_waiting` called.
        """
        self._covered = self._older.recover(holds, floor)
        return self._covered

    def find(self, high: Words, low: Words) -> Places:
        """The latest place of each digest, 0 for what is unknown or forgotten."""
        self._take_in()
        places = self._table.find(high, low)
        self._older.find(high, low, places, np.flatnonzero(places == 0))
        places[places < self._older.floor] = 0
        return places

    def update(self, high: Words, low: Words, places: Places, first_seen: npt.NDArray[np.bool_], to: Covered) -> None:
        """Give digests their places, greater than all before, in order; of a repeated one the last counts.

        Args:
            high: of the digests. The arrays are kept, and not to be changed any more.
            low: of the digests.
            places: of their rows.
            first_seen: where a life begins: whatever was known of that digest does not wait.
            to: how far in the journal this goes.

        Raises:
            Exception: what sealing failed with while it was waited for; these digests have no place yet.
        """
        if not len(high):
            return  # a run must not reach into a generation without a place in it: with the last place it would go
        held = len(self._table) + self._arrived_count
        if held and held + len(high) > self._seal_entries:
            self._seal()
        self._arrived.append(_Arrived(Columns(high, low, places), first_seen))
        self._arrived_count += len(high)
        self._covered = to

    def count_waiting(self) -> None:
        """Count `waiting` anew, from all levels."""
        self._take_in()
        count = 0
        newer: list[Level] = []
        table = Frozen(self._table, Reach(Span(0, 0), self._covered, self._covered))
        for level in (table, *self._older):
            for part in _slices(level.columns):
                waits = waits_in(part.places) & (part.places >= self._older.floor)
                keys = keys_of(part.high[waits], part.low[waits])
                for other in newer:
                    keys = keys.at(other.find(keys) == 0)
                count += len(keys.high)
            newer.append(level)
        self._waiting = count

    def forget(self, floor: int) -> None:
        """Places below `floor` are unknown from now on; runs that hold no other are removed."""
        self._take_in()
        self._older.forget(floor)

    def discard(self) -> None:
        """Forget everything and remove the runs. A job that waits or runs ends without a trace.

        Raises:
            OSError: a run is still there; all is forgotten nevertheless.
        """
        self._start(Table())
        self._covered, self._waiting = NOTHING, 0
        self._older.discard()

    def close(self) -> None:
        """Let go of the files; a job that runs is not waited for, it ends without a trace. Twice is harmless."""
        self._older.close()

    def check(self) -> None:
        """Raise what sealing or merging failed with, once. Nothing is lost by it: the next job does it again."""
        self._older.check()

    def settle(self) -> None:
        """Wait until nothing is left to be sealed or merged; raises as `check`."""
        self._older.settle()

    def _start(self, table: Table) -> None:
        """Go on with a table that has all that came until now."""
        self._table, self._arrived, self._arrived_count = table, [], 0

    def _take_in(self) -> None:
        """Put what has arrived into the table. It fits, unless it came at once."""
        if not self._arrived:
            return
        high, low, places = joined([one.columns for one in self._arrived])
        first_seen = np.concatenate([one.first_seen for one in self._arrived])
        indexes = self._table.claim(high, low)
        touched, first = np.unique(indexes, return_index=True)
        before = self._table.places(touched)
        self._look_up(high[first], low[first], before, (before == 0) & ~first_seen[first])
        self._table.place(indexes, places)
        self._waiting += _waiting_in(self._table.places(touched)) - _waiting_in(before)
        self._start(self._table)

    def _seal(self) -> None:
        """Have all that is here made a run."""
        if self._arrived_count > len(self._table):
            self._seal_in_order()
        else:
            self._take_in()
            self._older.add(self._table, self._covered)
        self._start(Table(self._seal_entries))

    def _seal_in_order(self) -> None:
        """Put all that is here in order beside the table, which would cost more than it saves."""
        counted = len(self._table)
        columns = joined([self._table.columns(), *(one.columns for one in self._arrived)])
        first_seen = np.concatenate([np.zeros(counted, bool), *(one.first_seen for one in self._arrived)])
        order = order_of(columns.high, columns.low)
        high, low, places = (column.take(order) for column in columns)
        starts = firsts(high, low)
        lasts = np.append(starts[1:], len(places)) - 1
        came_first, latest = order[starts], places[lasts]
        if len(starts) < len(high):
            high, low = high[starts], low[starts]
        before = np.zeros(len(starts), np.uint64)
        in_table = np.flatnonzero(came_first < counted)
        before[in_table] = places[starts[in_table]]
        self._look_up(high, low, before, (before == 0) & ~first_seen[came_first])
        as_it_was = in_table[order[lasts[in_table]] < counted]
        before[as_it_was] = latest[as_it_was]
        waiting = self._waiting + _waiting_in(latest) - _waiting_in(before)
        self._older.add(Columns(high, low, latest), self._covered)
        self._waiting = waiting

    def _look_up(self, high: Words, low: Words, before: Places, unsure: npt.NDArray[np.bool_]) -> None:
        """Fill in the places that digests had in older levels, where that is not certain; 0 for what is forgotten."""
        self._older.find(high, low, before, np.flatnonzero(unsure))
        before[before < self._older.floor] = 0


def _waiting_in(places: Places) -> int:
    return int(np.count_nonzero(waits_in(places)))


def _slices(columns: Columns) -> Iterator[Columns]:
    for begin in range(0, len(columns.high), _COUNT_STEP):
        yield Columns(*(column[begin : begin + _COUNT_STEP] for column in columns))
