"""Digest to place: the latest entries in a table, older ones in sealed runs, sealed and merged beside the work."""

import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path

import numpy as np
import numpy.typing as npt
import structlog

from consumers.entry import LedgerDamagedError
from consumers.ledger.bloom import Keys, keys_of
from consumers.ledger.journal import WAITING_BIT, Places, Words
from consumers.ledger.runs import (
    Covered,
    Run,
    Span,
    choose,
    combine,
    in_memory,
    is_unfinished,
    merge,
    open_run,
    parse_name,
    run_name,
    unfinished_name,
    write_run,
)
from consumers.ledger.table import Columns, Table
from ingest.runtime.files import FileSystem

SEAL_ENTRIES = 262_144
FROZEN_MAX = 2
"""Most tables that wait to be sealed; then the work waits for the sealing."""

_COUNT_STEP = 1 << 20

_log = structlog.get_logger(__name__)


class _Frozen:
    """A table that takes nothing more and waits to become a run."""

    def __init__(self, table: Table, covered: Covered, seal: int) -> None:
        self.table = table
        self.covered = covered
        self.span = Span(seal, seal)

    @property
    def columns(self) -> Columns:
        return self.table.columns()

    def find(self, keys: Keys) -> Places:
        return self.table.find(keys.high, keys.low)


class Index:
    """Places by digest for one partition.

    One thread asks and updates; at most one job at a time seals and merges in `worker`. The job replaces whole levels
    in one step and does nothing more to the folder once the index was closed or discarded.

    Attributes:
        waiting: how many digests wait, by their latest entry.
    """

    def __init__(self, fs: FileSystem, folder: Path, worker: Executor, *, seal_entries: int = SEAL_ENTRIES) -> None:
        """An empty index; `recover` finds the runs in the folder.

        Args:
            fs: where. The files are mapped by their path as well.
            folder: of the partition, held by the caller.
            worker: where sealing and merging run.
            seal_entries: how many digests make a run.
        """
        self._fs = fs
        self._folder = folder
        self._worker = worker
        self._seal_entries = seal_entries
        self._lock = threading.Lock()  # over _older, _epoch and the names of runs
        self._older: tuple[_Frozen | Run, ...] = ()  # newest first; replaced, never changed
        self._epoch = 0
        self._job: Future[None] | None = None  # of this epoch; seen by the one thread only
        self._table = Table()
        self._seals = 0
        self._covered = Covered(0, 0, 0)
        self._floor = 0
        self.waiting = 0

    @property
    def levels(self) -> int:
        """How many places a digest that is nowhere is looked for at."""
        return 1 + len(self._older)

    def recover(self, holds: Callable[[Covered], bool], floor: int) -> Covered:
        """Take the runs in the folder that the journal still bears out; the others are removed.

        Args:
            holds: whether the journal reaches as far as a run says.
            floor: the least place that is not forgotten.

        Returns:
            How far the index goes: what follows in the journal must be given to `update`, then `count_waiting` called.
        """
        spans = [span for name in self._fs.listdir(self._folder) if (span := self._span_of(name)) is not None]
        chain: list[Run] = []
        for span in sorted(spans, key=lambda one: (one.first, -one.last)):
            if chain and span.last <= chain[-1].span.last:  # was merged already
                continue
            run = self._usable(span, chain, holds)
            if run is None:
                break
            chain.append(run)
        kept = {run.span for run in chain}
        for span in spans:
            if span not in kept:
                self._fs.unlink(self._folder / run_name(span))
        self._older = tuple(reversed(chain))
        self._floor = floor
        if chain:
            self._seals, self._covered = chain[-1].span.last, chain[-1].covered
        return self._covered

    def find(self, high: Words, low: Words) -> Places:
        """The latest place of each digest, 0 for what is unknown or forgotten."""
        places = self._table.find(high, low)
        self._find_older(high, low, places, np.flatnonzero(places == 0))
        places[places < self._floor] = 0
        return places

    def update(self, high: Words, low: Words, places: Places, first_seen: npt.NDArray[np.bool_], to: Covered) -> None:
        """Give digests their places, greater than all before, in order; of a repeated one the last counts.

        Args:
            high: of the digests.
            low: of the digests.
            places: of their rows.
            first_seen: where a life begins: whatever was known of that digest does not wait.
            to: how far in the journal this goes.

        Raises:
            Exception: what sealing failed with while it was waited for; some digests may have no place yet.
        """
        if len(self._table) and len(self._table) + len(high) > self._seal_entries:
            self._freeze()
        indexes = self._table.claim(high, low)
        touched, first = np.unique(indexes, return_index=True)
        before = self._table.places(touched)
        unsure = np.flatnonzero((before == 0) & ~first_seen[first])
        self._find_older(high[first], low[first], before, unsure)
        before[before < self._floor] = 0
        self._table.place(indexes, places)
        self.waiting += _waiting_in(self._table.places(touched)) - _waiting_in(before)
        self._covered = to

    def count_waiting(self) -> None:
        """Count `waiting` anew, from all levels."""
        count = 0
        newer: list[_Frozen | Run] = []
        for level in (_Frozen(self._table, self._covered, 0), *self._older):
            for part in _slices(level.columns):
                waits = ((part.places & np.uint64(WAITING_BIT)) != 0) & (part.places >= self._floor)
                keys = keys_of(part.high[waits], part.low[waits])
                for other in newer:
                    keys = keys.at(other.find(keys) == 0)
                count += len(keys.high)
            newer.append(level)
        self.waiting = count

    def forget(self, floor: int) -> None:
        """Places below `floor` are unknown from now on; runs that hold no other are removed."""
        with self._lock:
            self._floor = floor
            gone = [one for one in self._older if isinstance(one, Run) and one.greatest < floor]
            self._older = tuple(one for one in self._older if one not in gone)
            self._unlink(gone)

    def discard(self) -> None:
        """Forget everything and remove the runs. A job that waits or runs ends without a trace.

        Raises:
            OSError: a run is still there; all is forgotten nevertheless.
        """
        self.close()
        self._table = Table()
        self._seals, self._covered, self._floor, self.waiting = 0, Covered(0, 0, 0), 0, 0
        with self._lock:
            for name in self._fs.listdir(self._folder):
                if parse_name(name) is not None or is_unfinished(name):
                    self._fs.unlink(self._folder / name)

    def close(self) -> None:
        """Let go of the files; a job that runs is not waited for, it ends without a trace. Twice is harmless."""
        with self._lock:
            self._epoch += 1
            self._older = ()
        self._job = None

    def check(self) -> None:
        """Raise what sealing or merging failed with, once. Nothing is lost by it: the next job does it again."""
        if self._job is not None and self._job.done():
            self._end(self._job)

    def settle(self) -> None:
        """Wait until nothing is left to be sealed or merged; raises as `check`."""
        while self._job is not None:
            self._end(self._job)
            if self._frozen():  # it came when the job had looked for the last time
                self._start()

    def _span_of(self, name: str) -> Span | None:
        if is_unfinished(name):
            self._fs.unlink(self._folder / name)
        return parse_name(name)

    def _usable(self, span: Span, chain: Sequence[Run], holds: Callable[[Covered], bool]) -> Run | None:
        """The run if it can follow on the chain, else None: then it and all newer ones are made again."""
        if chain and span.first != chain[-1].span.last + 1:
            return None
        try:
            run = open_run(self._folder / run_name(span))
        except LedgerDamagedError as error:
            _log.warning(
                "a run of the ledger cannot be used and is made again", folder=str(self._folder), why=str(error)
            )
            return None
        return run if run.span == span and holds(run.covered) else None

    def _find_older(self, high: Words, low: Words, places: Places, left: npt.NDArray[np.int64]) -> None:
        """Fill in what the older levels know of the digests at `left`."""
        older = self._older
        if not left.size or not older:
            return
        left = left[np.argsort(high[left])]  # ascending searches share the pages they touch
        keys = keys_of(high[left], low[left])
        for level in older:
            found = level.find(keys)
            missing = found == 0
            if missing.all():
                continue
            places[left] = found
            left, keys = left[missing], keys.at(missing)

    def _freeze(self) -> None:
        """Begin a new table and have the full one made a run."""
        self.check()
        while len(self._frozen()) >= FROZEN_MAX:
            self._start()
            self.settle()
        self._seals += 1
        with self._lock:
            self._older = (_Frozen(self._table, self._covered, self._seals), *self._older)
        self._table = Table(self._seal_entries)
        self._start()

    def _frozen(self) -> list[_Frozen]:
        return [one for one in self._older if isinstance(one, _Frozen)]

    def _start(self) -> None:
        """Have a job at work."""
        if self._job is None:
            self._job = self._worker.submit(self._work, self._epoch)

    def _end(self, job: Future[None]) -> None:
        """Wait for a job and forget it, whatever it raises: a failure is told once, and another job may begin."""
        try:
            job.result()
        finally:
            self._job = None

    def _work(self, epoch: int) -> None:
        """Seal what is frozen, the oldest first, then merge; the job."""
        while True:
            with self._lock:
                if epoch != self._epoch:
                    return
                frozen = self._frozen()
                runs = [one for one in self._older if isinstance(one, Run)]
            if frozen:
                self._seal(frozen[-1], epoch)
                continue
            chosen = choose(runs, self._seal_entries)
            if not chosen or not self._merge(chosen, epoch):
                return

    def _seal(self, frozen: _Frozen, epoch: int) -> None:
        columns = combine([frozen.columns], 0)
        run = self._written(iter([columns]), frozen.span, frozen.covered, len(columns.high))
        if run is None or not self._publish([frozen], run, epoch):
            self._publish([frozen], in_memory(frozen.span, frozen.covered, columns), epoch)

    def _merge(self, chosen: Sequence[Run], epoch: int) -> bool:
        """Make one run of several, newest first; False if the disk does not take it."""
        span = Span(chosen[-1].span.first, chosen[0].span.last)
        parts = self._while_current(merge(chosen, self._floor), epoch)
        run = self._written(parts, span, chosen[0].covered, sum(map(len, chosen)))
        return run is not None and self._publish(chosen, run, epoch)

    def _while_current(self, parts: Iterator[Columns], epoch: int) -> Iterator[Columns]:
        """Stop a long merge soon after the index was closed."""
        for part in parts:
            if epoch != self._epoch:
                return
            yield part

    def _written(self, parts: Iterator[Columns], span: Span, covered: Covered, capacity: int) -> Run | None:
        path = self._folder / unfinished_name(secrets.token_hex(8))
        try:
            write_run(self._fs, path, parts, span=span, covered=covered, capacity=capacity)
            return open_run(path)
        except (OSError, LedgerDamagedError) as error:
            _log.warning("a run of the ledger could not be written", folder=str(self._folder), why=str(error))
            return None

    def _publish(self, replaced: Sequence[_Frozen | Run], run: Run, epoch: int) -> bool:
        """Put a run in the place of the levels it was made of; False if the disk does not take its name."""
        with self._lock:
            left = [one for one in self._older if one in replaced]
            if epoch != self._epoch or not left:
                self._unlink([run])
                return True
            if run.path is not None:
                target = self._folder / run_name(run.span)
                try:
                    self._fs.rename(run.path, target)
                except OSError as error:
                    _log.warning("a run of the ledger could not be named", folder=str(self._folder), why=str(error))
                    self._unlink([run])
                    return False
                run.path = target
            at = self._older.index(left[0])
            rest = [one for one in self._older if one not in replaced]
            self._older = (*rest[:at], run, *rest[at:])
            self._unlink([one for one in left if isinstance(one, Run)])
            return True

    def _unlink(self, runs: Sequence[Run]) -> None:
        """Remove files that nobody reads any more. One that stays is harmless: `recover` sorts it out."""
        for run in runs:
            if run.path is None:
                continue
            try:
                self._fs.unlink(run.path)
            except FileNotFoundError:  # whoever holds the folder now has cleaned up
                continue
            except OSError as error:
                _log.warning("a run of the ledger could not be removed", path=str(run.path), why=str(error))


def _waiting_in(places: Places) -> int:
    return int(np.count_nonzero(places & np.uint64(WAITING_BIT)))


def _slices(columns: Columns) -> Iterator[Columns]:
    for begin in range(0, len(columns.high), _COUNT_STEP):
        yield Columns(*(column[begin : begin + _COUNT_STEP] for column in columns))
