"""The ledger of one partition: changelog records in, payloads by digest out."""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import structlog

from consumers.entry import Cursor, Due, Entry, LedgerDamagedError, Position
from consumers.ledger import changelog
from consumers.ledger.changelog import Header, Rows
from consumers.ledger.deadlines import Deadlines
from consumers.ledger.generation import Stored
from consumers.ledger.index import SEAL_ENTRIES, Index
from consumers.ledger.journal import PREALLOCATE_BYTES, Cycle, Journal
from consumers.ledger.places import places_of
from consumers.ledger.runs import Covered
from ingest.runtime.files import FileSystem

REPLAY_ROWS = 65_536
"""About how many entries of the journal are put into the index in one step at start."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How the files of a ledger are cut.

    Attributes:
        generation_ms: how long a generation of the journal lasts, by the partition clock. A sixth of the longer one of
            timeout and late window keeps at most eight.
        preallocate_bytes: room that a journal file reserves at once.
        seal_entries: digests that make a sealed run.
    """

    generation_ms: int
    preallocate_bytes: int = PREALLOCATE_BYTES
    seal_entries: int = SEAL_ENTRIES


class PartitionLedger:
    """Implements `consumers.engine.protocols.Ledger` in a folder that its maker holds."""

    def __init__(
        self, fs: FileSystem, folder: Path, worker: Executor, sizes: Sizes, release: Callable[[], None]
    ) -> None:
        """Take in what stands in the folder; damage discards it.

        Args:
            fs: where. Files are mapped by their path as well.
            folder: of the partition.
            worker: where runs are sealed and merged.
            sizes: of the files.
            release: gives the folder up, called once by `close`.

        Raises:
            LedgerFormatError: the journal is of a newer format.
            OSError: the disk does not serve.
        """
        self._folder = folder
        self._release = release
        self._closed = False
        self._journal = Journal(
            fs, folder, generation_ms=sizes.generation_ms, preallocate_bytes=sizes.preallocate_bytes
        )
        self._index = Index(fs, folder, worker, seal_entries=sizes.seal_entries)
        self._deadlines = Deadlines(self._journal, self._index)
        self._unfinished: list[tuple[int, bytes]] = []
        self._unfinished_head: Header | None = None
        self._damage: str | None = None
        try:
            self._take_in()
        except BaseException:
            self._let_go()
            raise

    @property
    def position(self) -> Position | None:  # noqa: D102 - see Ledger
        return self._journal.position

    def position_of(self, value: bytes) -> Position | None:  # noqa: D102 - see Ledger
        return changelog.read_header(value).position

    def lookup(self, digests: Sequence[bytes]) -> list[bytes | None]:  # noqa: D102 - see Ledger
        if not digests:
            return []
        self._must_be_whole()
        high, low = changelog.split_digests(digests)
        places = self._index.find(high, low)
        known = np.flatnonzero(places)
        payloads: list[bytes | None] = [None] * len(digests)
        if known.size:
            _, found = self._journal.read(places[known], high[known], low[known])
            for index, payload in zip(known.tolist(), found, strict=True):
                payloads[index] = payload
        return payloads

    def encode(self, entries: Sequence[Entry], position: Position) -> list[bytes]:  # noqa: D102 - see Ledger
        return changelog.encode_cycle(entries, position)

    def apply(self, records: Sequence[tuple[int, bytes]]) -> int:  # noqa: D102 - see Ledger
        if self._closed:
            raise ValueError("the ledger was closed")
        self._must_be_whole()
        cycles, unfinished, head, count = self._cycles(records)
        self._forget_unfinished()  # if writing fails they have to be read again
        for batch in self._journal.batches(cycles):
            values = [value for cycle in batch for _, value in cycle.records]
            rows, counts, begins = _rows_of(values)
            self._index.check()  # what failed in the background is said while nothing is half done
            number, starts = self._journal.append(batch)
            # From here on the journal says that the batch was taken in: an index without it would forget messages.
            try:
                self._put(number, rows, np.repeat(np.array(starts, np.int64), counts) + begins)
            except BaseException as error:
                self._damage = f"the index did not take in what the journal holds: {type(error).__name__}: {error}"
                if isinstance(error, Exception):
                    raise LedgerDamagedError(self._damage) from error
                raise
        self._unfinished, self._unfinished_head = unfinished, head
        return count

    def next_changelog_offset(self) -> int:  # noqa: D102 - see Ledger
        return self._unfinished[-1][0] + 1 if self._unfinished else self._journal.next_offset

    def due(self, cursor: Cursor, seen_until_ms: int, limit: int) -> Due:  # noqa: D102 - see Ledger
        self._must_be_whole()
        return self._deadlines.due(cursor, seen_until_ms, limit)

    def forget(self, before_ms: int) -> None:  # noqa: D102 - see Ledger
        position = self.position
        if position is None:
            return
        try:
            went = self._journal.forget(before_ms, position.cursor)
        except BaseException:
            self._index.forget(self._journal.floor)  # some may have gone before it failed
            raise
        if went:
            self._index.forget(self._journal.floor)

    def waiting(self) -> int:  # noqa: D102 - see Ledger
        return self._index.waiting

    def flush(self) -> None:  # noqa: D102 - see Ledger
        self._journal.flush()

    def discard(self) -> None:  # noqa: D102 - see Ledger
        self._forget_unfinished()
        self._damage = "the local state was not discarded whole"
        self._index.discard()
        self._journal.discard()
        self._deadlines.reset()
        self._damage = None

    def close(self) -> None:  # noqa: D102 - see Ledger
        if not self._closed:
            self._closed = True
            self._let_go()
            self._release()

    @property
    def levels(self) -> int:
        """How many levels the index has: what a lookup of something absent goes through."""
        return self._index.levels

    def settle(self) -> None:
        """Wait until sealing and merging have nothing left to do: for measurements and tests."""
        self._index.settle()

    def _let_go(self) -> None:
        self._index.close()  # or its job would go on in a folder that is somebody else's
        self._journal.close()

    def _take_in(self) -> None:
        try:
            self._recover()
        except LedgerDamagedError as error:
            _log.warning(
                "the local state of a partition is damaged and is restored from the changelog",
                folder=str(self._folder),
                why=str(error),
            )
            self.discard()

    def _recover(self) -> None:
        self._journal.recover()
        covered = self._index.recover(self._bears_out, self._journal.floor)
        batch: list[Stored] = []
        data: list[bytes] = []
        size = 0
        for stored in self._journal.records(covered.number, covered.end):
            if batch and (stored.number != batch[-1].number or size >= REPLAY_ROWS * changelog.ROW_BYTES):
                self._replay(batch, data)
                batch, data, size = [], [], 0
            batch.append(stored)
            data.append(self._journal.rows_of(stored))
            size += len(data[-1])
        if batch:
            self._replay(batch, data)
        self._index.count_waiting()
        if self.position is not None:
            self._deadlines.prepare(self.position.cursor)

    def _replay(self, batch: Sequence[Stored], data: Sequence[bytes]) -> None:
        """Put records of one generation into the index again."""
        counts = np.array([len(one) // changelog.ROW_BYTES for one in data], np.int64)
        starts = np.repeat(np.array([stored.start for stored in batch], np.int64), counts)
        self._put(batch[-1].number, changelog.rows_of(b"".join(data)), starts + _begins(counts), batch[-1].end)

    def _bears_out(self, covered: Covered) -> bool:
        """Whether the journal reaches as far as a run says it did."""
        generations = self._journal.generations
        if not generations or covered.number > generations[-1].number:
            return False
        if covered.number < generations[0].number:
            return True
        generation = self._journal.generation(covered.number)
        return generation.salt == covered.salt and covered.end <= generation.end

    def _put(self, number: int, rows: Rows, starts: changelog.Lengths, end: int | None = None) -> None:
        """Make rows visible that stand in the journal at `starts`, `end` being the byte after the last record."""
        generation = self._journal.generation(number)
        waiting = (rows["meta"] & np.uint64(changelog.WAITING)) >> np.uint64(1)
        self._index.update(
            np.ascontiguousarray(rows["high"]),
            np.ascontiguousarray(rows["low"]),
            places_of(number, starts, waiting),
            (rows["meta"] & np.uint64(changelog.FIRST_SEEN)) != 0,
            Covered(number, generation.salt, generation.end if end is None else end),
        )

    def _cycles(
        self, records: Sequence[tuple[int, bytes]]
    ) -> tuple[list[Cycle], list[tuple[int, bytes]], Header | None, int]:
        """Check records and sort them into whole cycles, what is left over at the end with its header, and entries."""
        cycles: list[Cycle] = []
        unfinished, head = list(self._unfinished), self._unfinished_head
        position, last_offset, count = self.position, self.next_changelog_offset() - 1, 0
        for offset, value in records:
            if offset <= last_offset:
                raise LedgerDamagedError(f"changelog offset {offset} came after {last_offset}")
            header = changelog.read_header(value)
            _check_order(header, head, position)
            unfinished.append((offset, value))
            last_offset, head, count = offset, header, count + header.entries
            if header.position is not None:
                cycles.append(Cycle(unfinished, header.position))
                unfinished, head, position = [], None, header.position
        return cycles, unfinished, head, count

    def _must_be_whole(self) -> None:
        """Refuse to answer from an index that is behind the journal, or not what it was: the next step is `discard`."""
        damage = self._damage or self._index.damage
        if damage is not None:
            raise LedgerDamagedError(damage)

    def _forget_unfinished(self) -> None:
        self._unfinished, self._unfinished_head = [], None


def _check_order(header: Header, before: Header | None, position: Position | None) -> None:
    """Whether a record follows on the one before in its cycle, or on the cycle before."""
    if before is not None:
        follows = header.cycle == before.cycle and header.part == before.part + 1
    elif position is not None:
        follows = header.cycle == position.cycle + 1 and header.part == 0
    else:
        follows = True  # the head of the changelog may have been cut inside a cycle
    if not follows:
        after = f"part {before.part} of cycle {before.cycle}" if before else f"cycle {position and position.cycle}"
        raise LedgerDamagedError(f"part {header.part} of cycle {header.cycle} came after {after}")


def _rows_of(values: Sequence[bytes]) -> tuple[Rows, changelog.Lengths, changelog.Lengths]:
    """All rows of some records, how many each has, and for each row its distance from the start of its record."""
    counts = np.array([changelog.read_header(value).entries for value in values], np.int64)
    rows = changelog.rows_of(
        b"".join([changelog.row_bytes(value, entries) for value, entries in zip(values, counts.tolist(), strict=True)])
    )
    begins = _begins(counts)
    sizes = np.repeat(np.array([len(value) for value in values], np.int64), counts)
    if (begins + rows["start"] + rows["length"] > sizes).any():
        raise LedgerDamagedError("a payload lies outside its changelog record")
    return rows, counts, begins


def _begins(counts: changelog.Lengths) -> changelog.Lengths:
    """For each row of records with so many rows its distance from the start of its record."""
    before = np.repeat(np.cumsum(counts) - counts, counts)
    return changelog.HEADER_BYTES + (np.arange(len(before), dtype=np.int64) - before) * changelog.ROW_BYTES
