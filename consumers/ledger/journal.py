"""The changelog on local disk: generations of committed cycles, appended to, read at places, dropped from the front."""

import contextlib
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from consumers.entry import Cursor, LedgerDamagedError, Position
from consumers.ledger.changelog import ROW, ROW_BYTES, WAITING, Rows, are_whole, read_header, row_bytes
from consumers.ledger.generation import RECORD_TAG, Generation, Stored
from consumers.ledger.places import Places, Words, least_of, numbers_of, starts_of, waits_in
from ingest.runtime.files import FileSystem
from ingest.runtime.logfile import HEADER_BYTES as FRAME_BYTES
from ingest.runtime.logfile import LogWriter, encode_header

PREALLOCATE_BYTES = 4 * 1024 * 1024
APPEND_MAX_BYTES = 8 * 1024 * 1024
"""About how much one write takes when many cycles are restored."""


class Cycle(NamedTuple):
    """A whole cycle on its way into the journal: (changelog offset, value) of its records, and its position."""

    records: Sequence[tuple[int, bytes]]
    position: Position


class Journal:
    """The journal of one partition. One thread at a time.

    Attributes:
        generations: oldest first; the last takes what is appended unless it is sealed.
    """

    def __init__(
        self, fs: FileSystem, folder: Path, *, generation_ms: int, preallocate_bytes: int = PREALLOCATE_BYTES
    ) -> None:
        """An empty journal; `recover` finds what stands in the folder.

        Args:
            fs: where.
            folder: of the partition, held by the caller. Its files are mapped by their path as well.
            generation_ms: how long a generation lasts, by the partition clock.
            preallocate_bytes: room that is reserved at once.
        """
        self._fs = fs
        self._folder = folder
        self._generation_ms = generation_ms
        self._preallocate_bytes = preallocate_bytes
        self._writer: LogWriter | None = None
        self._last_number = 0
        self.generations: list[Generation] = []

    @property
    def position(self) -> Position | None:
        """Of the last whole cycle, None if there is none."""
        return self.generations[-1].position if self.generations else None

    @property
    def next_offset(self) -> int:
        """Changelog offset after the last record, 0 if there is none."""
        return self.generations[-1].last_offset + 1 if self.generations else 0

    @property
    def floor(self) -> int:
        """The least number that a place of a row still here can have."""
        return least_of(self.generations[0].number if self.generations else self._last_number + 1)

    def recover(self) -> None:
        """Take in what stands in the folder.

        Raises:
            LedgerDamagedError: it is no whole stretch of a changelog; `discard` makes it an empty one.
            LedgerFormatError: a record is of a newer format.
            OSError: the device would not give the bytes.
        """
        generations: list[Generation] = []
        empty: list[Generation] = []
        for generation in self._found():
            generation.recover(self._fs)
            if generation.position is None:
                empty.append(generation)
                continue
            if generations:
                _check_succession(generations[-1], generation)
            generations.append(generation)
        for generation in empty:
            if generations and generation.number < generations[0].number:
                raise LedgerDamagedError(f"nothing is left in {generation.path.name}, which others follow on")
            self._fs.unlink(generation.path)  # made, and no cycle came to stand in it
        self.generations = generations

    def batches(self, cycles: Sequence[Cycle]) -> Iterator[list[Cycle]]:
        """Cut cycles into lists that `append` can take: of one generation each, bounded in size."""
        batch: list[Cycle] = []
        size, started_ms = 0, self._open_since_ms()
        for cycle in cycles:
            clock_ms = cycle.position.clock_ms
            turns = started_ms is not None and clock_ms >= started_ms + self._generation_ms
            if batch and (turns or size >= APPEND_MAX_BYTES):
                yield batch
                batch, size = [], 0
            if turns or started_ms is None:
                started_ms = clock_ms
            batch.append(cycle)
            size += sum(len(value) for _, value in cycle.records)
        if batch:
            yield batch

    def append(self, batch: Sequence[Cycle]) -> tuple[int, list[int]]:
        """Write one list of `batches` behind the last cycle. Not synced.

        Returns:
            The number of the generation, and the byte offset there of each record's value, in order.

        Raises:
            OSError: nothing of it was taken; the next try goes on from the same place.
            LedgerDamagedError: a generation could not be synced, so that what stands in it is not certain; or it was
                removed.
        """
        generation, writer = self._writable(batch[0].position.clock_ms)
        parts, ends, at = [], [], generation.end
        starts = []
        for cycle in batch:
            for offset, value in cycle.records:
                parts += [encode_header(offset, RECORD_TAG, value, salt=generation.salt), value]
                starts.append(at + FRAME_BYTES)
                at += FRAME_BYTES + len(value)
            ends.append(at)
        try:
            writer.append(*parts)
        except OSError:
            self._let_go(cut_to=generation.end)
            if generation.position is None:
                with contextlib.suppress(OSError):  # `recover` removes it otherwise
                    self._fs.unlink(generation.path)
            raise
        if generation.position is None:
            self.generations.append(generation)
            self._last_number = generation.number
        for cycle, end in zip(batch, ends, strict=True):
            generation.note(cycle.records[0][0], cycle.records[-1][0], cycle.position, end)
        return generation.number, starts

    def read(self, places: Places, high: Words, low: Words) -> tuple[Rows, list[bytes]]:
        """Rows and payloads at places, in the order asked for.

        Args:
            places: none 0.
            high: first halves of the digests that must stand there, waiting or not as the places say.
            low: second halves.

        Raises:
            LedgerDamagedError: something else stands there than what was written for this digest.
        """
        numbers, starts = numbers_of(places), starts_of(places)
        if len(places) and numbers.min() == numbers.max():
            rows, payloads = self._read(self.generation(int(numbers[0])), starts)
        else:
            rows, payloads = self._read_scattered(numbers, starts)
        waiting = (rows["meta"] & np.uint64(WAITING)) != 0
        if ((rows["high"] != high) | (rows["low"] != low) | (waiting != waits_in(places))).any():
            raise LedgerDamagedError("the index points at another entry")
        return rows, payloads

    def rows_of(self, stored: Stored) -> bytes:
        """The rows of a changelog record, as bytes; the whole record is checked.

        Raises:
            LedgerDamagedError: it is not what was written.
        """
        value = self.generation(stored.number).value_of(stored)
        return row_bytes(value, read_header(value).entries)

    def records(self, number: int, start: int) -> Iterator[Stored]:
        """All records from a frame on: the one that begins at byte `start` of generation `number`.

        Raises:
            LedgerDamagedError: no frame stands where one must.
        """
        for generation in self.generations:
            if generation.number >= number:
                yield from generation.records(start if generation.number == number else 0)

    def end(self) -> tuple[int, int]:
        """Where the next record will stand, unless it begins a generation: number and byte."""
        return (self.generations[-1].number, self.generations[-1].end) if self.generations else (0, 0)

    def generation(self, number: int) -> Generation:
        """A generation by its number.

        Raises:
            LedgerDamagedError: it is not here.
        """
        index = number - self.generations[0].number if self.generations else -1
        if not 0 <= index < len(self.generations):
            raise LedgerDamagedError(f"generation {number} of the journal is not here")
        return self.generations[index]

    def forget(self, before_ms: int, cursor: Cursor) -> bool:
        """Unlink generations whose clock ended before a time and which the deadline cursor has passed, never the last.

        Returns:
            Whether one went.
        """
        went = False
        while len(self.generations) > 1:
            oldest = self.generations[0]
            position = oldest.position
            if position is None or position.clock_ms >= before_ms or cursor.offset <= oldest.last_offset:
                break
            with contextlib.suppress(FileNotFoundError):  # somebody else has removed it
                self._fs.unlink(oldest.path)
            del self.generations[0]
            went = True
        if went:
            # Names must go in order, or what is left after a power cut would not be contiguous.
            self._fs.sync_dir(self._folder)
        return went

    def flush(self) -> None:
        """Return once everything appended is on the device.

        Raises:
            LedgerDamagedError: the device did not take it, so that what stands there is not certain.
        """
        if self._writer is not None:
            self._sync(self._writer)

    def discard(self) -> None:
        """Remove all files, the newest first, so that a crash on the way leaves a whole stretch."""
        self._let_go()
        for generation in reversed(self._found()):
            self._last_number = max(self._last_number, generation.number)
            self._fs.unlink(generation.path)
            self._fs.sync_dir(self._folder)  # or a power cut may take the oldest name and leave newer ones
        self.generations = []

    def close(self) -> None:
        """Let go of all files without a sync. Calling it twice is harmless."""
        self._let_go()
        for generation in self.generations:
            generation.forget_view()

    def _read_scattered(
        self, numbers: npt.NDArray[np.int64], starts: npt.NDArray[np.int64]
    ) -> tuple[Rows, list[bytes]]:
        rows = np.empty(len(numbers), ROW)
        payloads = [b""] * len(numbers)
        for number in np.unique(numbers).tolist():
            here = np.flatnonzero(numbers == number)
            rows[here], found = self._read(self.generation(number), starts[here])
            for index, payload in zip(here.tolist(), found, strict=True):
                payloads[index] = payload
        return rows, payloads

    def _read(self, generation: Generation, starts: npt.NDArray[np.int64]) -> tuple[Rows, list[bytes]]:
        """Rows that begin at these bytes of a generation, and their payloads."""
        if int(starts.max()) + ROW_BYTES > generation.end:
            raise LedgerDamagedError(f"the index points behind the end of {generation.path.name}")
        rows = generation.rows(starts)
        begins = starts + rows["start"]
        ends = begins + rows["length"]
        if int(ends.max()) > generation.end:
            raise LedgerDamagedError(f"a payload lies behind the end of {generation.path.name}")
        payloads = generation.payloads(begins, ends)
        if not are_whole(rows, payloads):
            raise LedgerDamagedError(f"an entry in {generation.path.name} is not what was written")
        return rows, payloads

    def _found(self) -> list[Generation]:
        found = (Generation.parse(self._folder / name) for name in self._fs.listdir(self._folder))
        return sorted((one for one in found if one is not None), key=lambda one: one.number)

    def _open_since_ms(self) -> int | None:
        """Clock at which the generation began that takes appends, None if the next append begins one."""
        if not self.generations or self.generations[-1].sealed:
            return None
        return self.generations[-1].started_ms

    def _writable(self, clock_ms: int) -> tuple[Generation, LogWriter]:
        """The generation that a cycle of this clock goes to."""
        since_ms = self._open_since_ms()
        if since_ms is not None and clock_ms >= since_ms + self._generation_ms:
            self._seal()
            since_ms = None
        if since_ms is None:
            return self._create()
        generation = self.generations[-1]
        if self._writer is None:
            self._writer = self._writer_of(generation, resume_at=generation.end)
        return generation, self._writer

    def _create(self) -> tuple[Generation, LogWriter]:
        number = (self.generations[-1].number if self.generations else self._last_number) + 1
        generation = Generation.named(self._folder, number, secrets.randbits(32))
        self._writer = self._writer_of(generation, resume_at=None)
        return generation, self._writer

    def _writer_of(self, generation: Generation, resume_at: int | None) -> LogWriter:
        try:
            return LogWriter(self._fs, generation.path, self._preallocate_bytes, resume_at=resume_at)
        except FileNotFoundError as error:
            raise LedgerDamagedError(f"{generation.path.name} or its folder was removed") from error

    def _seal(self) -> None:
        generation = self.generations[-1]
        writer = self._writer or self._writer_of(generation, resume_at=generation.end)
        self._writer = writer
        try:
            writer.append(generation.footer())
        except OSError:
            self._let_go(cut_to=generation.end)
            raise
        self._sync(writer)
        self._writer = None
        writer.seal()
        generation.sealed = True

    def _sync(self, writer: LogWriter) -> None:
        try:
            writer.sync()
        except OSError as error:
            self._let_go()
            raise LedgerDamagedError(f"{writer.path.name} could not be synced") from error

    def _let_go(self, cut_to: int | None = None) -> None:
        """Close the writer; what a failed append left is cut off, at the latest by the writer that goes on."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with contextlib.suppress(OSError):
                if cut_to is not None:
                    writer.truncate(cut_to)
            writer.close()


def _check_succession(before: Generation, after: Generation) -> None:
    if not before.sealed:
        raise LedgerDamagedError(f"{before.path.name} is not the last and was not sealed")
    if after.number != before.number + 1:
        raise LedgerDamagedError(f"a generation is missing between {before.path.name} and {after.path.name}")
    if after.first_offset <= before.last_offset:
        raise LedgerDamagedError(f"{after.path.name} does not follow on {before.path.name}")
