"""The older levels of an index: what was filled, and the runs that it becomes and is merged into beside the work."""

import contextlib
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
from consumers.ledger.columns import Columns, search
from consumers.ledger.places import Places, Words, least_of
from consumers.ledger.runfile import is_unfinished, open_run, parse_name, run_name, unfinished_name, write_run
from consumers.ledger.runs import (
    NOTHING,
    Covered,
    Reach,
    Run,
    Span,
    choose,
    combine,
    in_memory,
    merge,
    merged_reach,
)
from consumers.ledger.table import Table
from ingest.runtime.files import FileSystem

FROZEN_MAX = 2
"""Most levels that wait to be sealed; then the work waits for the sealing."""

_log = structlog.get_logger(__name__)


class Frozen:
    """What takes nothing more and waits to become a run."""

    def __init__(self, held: Table | Columns, reach: Reach) -> None:
        """A full table, or columns that ascend with no digest twice, and what it is made of."""
        self._held = held
        self.reach = reach

    @property
    def columns(self) -> Columns:
        """All that is in."""
        return self._held if isinstance(self._held, Columns) else self._held.columns()

    def ascending(self) -> Columns:
        """All that is in, by digest."""
        return self._held if isinstance(self._held, Columns) else combine([self._held.columns()], 0)

    def find(self, keys: Keys) -> Places:
        """The place of each digest, 0 where it is not here."""
        if isinstance(self._held, Columns):
            return search(self._held, keys.high, keys.low, np.arange(len(keys.high)))
        return self._held.find(keys.high, keys.low)


Level = Frozen | Run


class Levels:
    """What was filled, and the runs of one partition.

    One thread asks and adds; at most one job at a time seals and merges in `worker`. The job replaces whole levels in
    one step and does nothing more to the folder once the levels were closed or discarded.

    Attributes:
        floor: the least place that is not forgotten.
        damage: what a job found wrong in a file that answers were taken from, None if nothing.
    """

    def __init__(self, fs: FileSystem, folder: Path, worker: Executor, seal_entries: int) -> None:
        """No levels yet; see `Index`."""
        self._fs = fs
        self._folder = folder
        self._worker = worker
        self._seal_entries = seal_entries
        self._lock = threading.Lock()  # over _older, _epoch and the names of runs
        self._older: tuple[Level, ...] = ()  # newest first; replaced, never changed
        self._epoch = 0
        self._job: Future[None] | None = None  # of this epoch; seen by the one thread only
        self._seals = 0
        self._sealed = NOTHING  # where the newest level ends
        self._patient = False
        self.floor = 0
        self.damage: str | None = None

    def __len__(self) -> int:
        """How many there are."""
        return len(self._older)

    def __iter__(self) -> Iterator[Level]:
        """The newest first."""
        return iter(self._older)

    def recover(self, holds: Callable[[Covered], bool], floor: int) -> Covered:
        """Take the runs in the folder that the journal still bears out; see `Index.recover`."""
        spans = [span for name in self._fs.listdir(self._folder) if (span := self._span_of(name)) is not None]
        chain: list[Run] = []
        for span in sorted(spans, key=lambda one: (one.first, -one.last)):
            if chain and span.last <= chain[-1].reach.span.last:  # was merged already
                continue
            try:
                run = open_run(self._folder / run_name(span))
                _check_place(run, span, chain[-1] if chain else None, floor)
                _check_end(run, holds)
            except LedgerDamagedError as error:
                _log.warning(
                    "a run of the ledger cannot be used and is made again", folder=str(self._folder), why=str(error)
                )
                break  # what follows on it is made again, too
            chain.append(run)
        kept = {run.reach.span for run in chain}
        for span in spans:
            if span not in kept:
                self._fs.unlink(self._folder / run_name(span))
        self._older, self.floor = tuple(reversed(chain)), floor
        if chain:
            self._seals, self._sealed = chain[-1].reach.span.last, chain[-1].reach.covered
        return self._sealed

    def find(self, high: Words, low: Words, places: Places, left: npt.NDArray[np.int64]) -> None:
        """Fill in the places of the digests at `left` as far as they are known; what is forgotten may be among them."""
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

    def add(self, filled: Table | Columns, covered: Covered) -> None:
        """Take what was filled as the newest level and have it made a run.

        Columns are filled by nobody but a restore; merging then waits, so that each digest is merged less often.

        Args:
            filled: not to be changed any more; columns ascend, with no digest twice.
            covered: to where in the journal its entries go.

        Raises:
            Exception: what sealing failed with while it was waited for; it was not taken.
        """
        self.check()
        while len(self._frozen()) >= FROZEN_MAX:
            self._start()
            self.settle()
        self._patient = isinstance(filled, Columns)
        self._seals += 1
        reach = Reach(Span(self._seals, self._seals), self._sealed, covered)
        self._sealed = covered
        with self._lock:
            self._older = (Frozen(filled, reach), *self._older)
        self._start()

    def forget(self, floor: int) -> None:
        """Places below `floor` are unknown from now on; runs that hold no other are removed."""
        with self._lock:
            self.floor = floor
            gone = [one for one in self._older if isinstance(one, Run) and one.greatest < floor]
            self._older = tuple(one for one in self._older if one not in gone)
            self._unlink(gone, self._epoch)

    def discard(self) -> None:
        """Forget everything and remove the runs. A job that waits or runs ends without a trace.

        Raises:
            OSError: a run is still there; all is forgotten nevertheless.
        """
        self.close()
        self._seals, self._sealed, self.floor, self.damage = 0, NOTHING, 0, None
        with self._lock:
            for name in self._fs.listdir(self._folder):
                if parse_name(name) is not None:
                    self._fs.unlink(self._folder / name)
                elif is_unfinished(name):
                    self._remove_unfinished(name)

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
            self._remove_unfinished(name)
        return parse_name(name)

    def _remove_unfinished(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):  # the job of a ledger that was closed here removed it itself
            self._fs.unlink(self._folder / name)

    def _frozen(self) -> list[Frozen]:
        return [one for one in self._older if isinstance(one, Frozen)]

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
            chosen = choose(runs, self._seal_entries, patient=self._patient)
            if not chosen or not self._merge(chosen, epoch):
                return

    def _seal(self, frozen: Frozen, epoch: int) -> None:
        columns = frozen.ascending()
        run = self._written(iter([columns]), frozen.reach, len(columns.high), epoch)
        if run is None or not self._publish([frozen], run, epoch):
            self._publish([frozen], in_memory(frozen.reach, columns), epoch)

    def _merge(self, chosen: Sequence[Run], epoch: int) -> bool:
        """Make one run of several, newest first; False if the disk does not take it."""
        parts = self._while_current(merge(chosen, self.floor), epoch)
        try:
            run = self._written(parts, merged_reach(chosen), sum(map(len, chosen)), epoch)
        except LedgerDamagedError as error:
            with self._lock:
                if epoch == self._epoch:
                    self.damage = str(error)
            raise
        return run is not None and self._publish(chosen, run, epoch)

    def _while_current(self, parts: Iterator[Columns], epoch: int) -> Iterator[Columns]:
        """Stop a long merge soon after the index was closed."""
        for part in parts:
            if epoch != self._epoch:
                return
            yield part

    def _written(self, parts: Iterator[Columns], reach: Reach, capacity: int, epoch: int) -> Run | None:
        path = self._folder / unfinished_name(secrets.token_hex(8))
        try:
            write_run(self._fs, path, parts, reach, capacity)
        except OSError as error:
            self._warn(epoch, "a run of the ledger could not be written", error)
            return None
        try:
            return open_run(path)
        except (OSError, LedgerDamagedError) as error:
            self._warn(epoch, "a run of the ledger was not written well", error)
            self._remove(path, epoch)
            return None

    def _publish(self, replaced: Sequence[Level], run: Run, epoch: int) -> bool:
        """Put a run in the place of the levels it was made of; False if the disk does not take its name."""
        with self._lock:
            left = [one for one in self._older if one in replaced]
            if epoch != self._epoch or not left:
                self._unlink([run], epoch)
                return True
            if run.path is not None:
                target = self._folder / run_name(run.reach.span)
                try:
                    self._fs.rename(run.path, target)
                except OSError as error:
                    self._warn(epoch, "a run of the ledger could not be named", error)
                    self._unlink([run], epoch)
                    return False
                run.path = target
            at = self._older.index(left[0])
            rest = [one for one in self._older if one not in replaced]
            self._older = (*rest[:at], run, *rest[at:])
            self._unlink([one for one in left if isinstance(one, Run)], epoch)
            return True

    def _unlink(self, runs: Sequence[Run], epoch: int) -> None:
        """Remove files that nobody reads any more. One that stays is harmless: `recover` sorts it out."""
        for run in runs:
            if run.path is not None:
                self._remove(run.path, epoch)

    def _remove(self, path: Path, epoch: int) -> None:
        try:
            self._fs.unlink(path)
        except FileNotFoundError:  # whoever holds the folder now has cleaned up
            return
        except OSError as error:
            self._warn(epoch, "a run of the ledger could not be removed", error)

    def _warn(self, epoch: int, event: str, error: Exception) -> None:
        """Say what a job met, unless the levels were closed or discarded since: the folder is not ours any more."""
        if epoch == self._epoch:
            _log.warning(event, folder=str(self._folder), why=str(error))


def _check_place(run: Run, span: Span, before: Run | None, floor: int) -> None:
    """Whether a run is what its name says and nothing is missing between it and what is before it.

    Args:
        run: that was found.
        span: that its name says.
        before: the run before, if there is one.
        floor: the least place that is not forgotten.

    Raises:
        LedgerDamagedError: it is not, or something is.
    """
    reach = run.reach
    if reach.span != span:
        raise LedgerDamagedError(f"{run_name(span)} is another run")
    if before is not None:
        follows = reach.after == before.reach.covered
    else:
        follows = reach.after == NOTHING or least_of(reach.after.number + 1) <= floor
    if not follows:
        raise LedgerDamagedError(f"a run is missing before {run_name(span)}")


def _check_end(run: Run, holds: Callable[[Covered], bool]) -> None:
    if not holds(run.reach.covered):
        raise LedgerDamagedError(f"{run_name(run.reach.span)} goes further than the journal")
