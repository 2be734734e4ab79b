"""One file of the journal: the cycles of one generation of the partition clock."""

import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from consumers.entry import Cursor, LedgerDamagedError, Position
from consumers.ledger.changelog import ROW, ROW_BYTES, Rows, read_header
from ingest.runtime.files import FileSystem
from ingest.runtime.logfile import HEADER_BYTES, MAGIC, Damage, Frame, encode_frame, scan, scan_file

RECORD_TAG = b"record".ljust(16, b"\0")
FOOTER_TAG = b"footer".ljust(16, b"\0")

_FRAME_HEAD = struct.Struct("<4sIQ")
_FOOTER = struct.Struct("<QQQQQQQII")
_FOOTER_FRAME_BYTES = HEADER_BYTES + _FOOTER.size
_PREFIX, _SUFFIX = "journal-", ".log"


class Stored(NamedTuple):
    """Where a changelog record stands in the journal: changelog offset, generation, byte range of the value."""

    offset: int
    number: int
    start: int
    end: int

    @property
    def frame(self) -> tuple[int, int]:
        """Where the frame begins: generation and byte."""
        return self.number, self.start - HEADER_BYTES


@dataclass(slots=True)
class Generation:
    """A file of the journal and what is known of it.

    Attributes:
        path: of the file.
        number: rises by one from file to file.
        salt: of its checksums.
        end: bytes of whole cycles; what stands behind is footer, room or rubbish.
        started_ms: partition clock of its first cycle.
        first_offset: changelog offset of its first record, -1 while it has none.
        last_offset: of its last record, -1 while it has none.
        position: of its last cycle.
        sealed: whether it ends in a footer and takes nothing more.
    """

    path: Path
    number: int
    salt: int
    end: int = 0
    started_ms: int = 0
    first_offset: int = -1
    last_offset: int = -1
    position: Position | None = None
    sealed: bool = False
    _map: mmap.mmap | None = field(default=None, repr=False)

    @classmethod
    def named(cls, folder: Path, number: int, salt: int) -> Self:
        """A file by its number and salt."""
        return cls(folder / f"{_PREFIX}{number:08d}-{salt:08x}{_SUFFIX}", number, salt)

    @classmethod
    def parse(cls, path: Path) -> Self | None:
        """The file that a path names, None if it is none of the journal's."""
        if not path.name.startswith(_PREFIX) or not path.name.endswith(_SUFFIX):
            return None
        number, _, salt = path.name[len(_PREFIX) : -len(_SUFFIX)].partition("-")
        return cls(path, int(number), int(salt, 16))

    def note(self, first_offset: int, last_offset: int, position: Position, end: int) -> None:
        """Count a whole cycle in: the offsets of its first and last record, and the byte after it."""
        if self.position is None:
            self.started_ms, self.first_offset = position.clock_ms, first_offset
        self.last_offset, self.position, self.end = last_offset, position, end

    def footer(self) -> bytes:
        """The frame that closes the file."""
        at = self.position
        if at is None:
            raise LedgerDamagedError(f"{self.path.name} has no cycle to be sealed")
        body = _FOOTER.pack(
            self.started_ms,
            self.first_offset,
            self.last_offset,
            at.cycle,
            at.next_offset,
            at.clock_ms,
            at.cursor.offset,
            at.cursor.index,
            0,
        )
        return encode_frame(self.last_offset + 1, FOOTER_TAG, body, salt=self.salt)

    def recover(self, fs: FileSystem) -> None:
        """Find out what the file holds: by its footer, else by reading and checking all of it.

        Raises:
            LedgerDamagedError: something before the end of the file is not what was written.
            OSError: the device would not give the bytes.
        """
        file = fs.open(self.path)
        try:
            size = file.size()
            tail = file.pread(_FOOTER_FRAME_BYTES, size - _FOOTER_FRAME_BYTES) if size >= _FOOTER_FRAME_BYTES else b""
            footer = next(scan(tail, salt=self.salt), None)
            if isinstance(footer, Frame) and footer.start == 0 and footer.tag == FOOTER_TAG:
                self._trust(footer, size - _FOOTER_FRAME_BYTES)
            else:
                self._read_all(scan_file(file, salt=self.salt))
        finally:
            file.close()

    def records(self, start: int = 0) -> Iterator[Stored]:
        """The records from a frame's offset on, unchecked but for their frames' beginnings.

        Raises:
            LedgerDamagedError: no frame stands where one must.
        """
        if start >= self.end:
            return
        data = self.view(self.end)
        while start < self.end:
            magic, length, offset = _FRAME_HEAD.unpack_from(data, start)
            body = start + HEADER_BYTES
            start = body + length
            if magic != MAGIC or start > self.end:
                raise LedgerDamagedError(f"{self.path.name} has no frame where one was written")
            yield Stored(offset, self.number, body, start)

    def view(self, end: int) -> mmap.mmap:
        """The file in memory, at least its first `end` bytes; not a copy."""
        if self._map is None or len(self._map) < end:
            try:
                descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError as error:
                raise LedgerDamagedError(f"{self.path.name} was removed") from error
            try:
                if os.fstat(descriptor).st_size < end:
                    raise LedgerDamagedError(f"{self.path.name} is shorter than what was written")
                self._map = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
            finally:
                os.close(descriptor)
        return self._map

    def rows(self, starts: npt.NDArray[np.int64]) -> Rows:
        """The rows that begin at these byte offsets."""
        data = self.view(self.end)
        # One row may begin at any byte: an array of overlapping rows is gathered from in one step, without copies.
        return np.ndarray((self.end - ROW_BYTES + 1,), ROW, data, strides=(1,))[starts]

    def forget_view(self) -> None:
        """Let go of the memory; views that somebody still holds keep it alive."""
        self._map = None

    def _trust(self, footer: Frame, end: int) -> None:
        started, first, last, cycle, next_offset, clock_ms, at, index, _ = _FOOTER.unpack(footer.body)
        self.started_ms, self.first_offset, self.last_offset = started, first, last
        self.position = Position(cycle, next_offset, clock_ms, Cursor(at, index))
        self.end, self.sealed = end, True

    def _read_all(self, items: Iterator[Frame | Damage]) -> None:
        """Count whole cycles in, up to a torn tail, or a footer with room behind it: sealing was cut short."""
        first = -1
        for item in items:
            if isinstance(item, Damage):
                if item.kind == "corrupt":
                    raise LedgerDamagedError(f"{self.path.name} is damaged from byte {item.start} to {item.end}")
                return
            if item.tag == FOOTER_TAG:
                self.sealed = True
                return
            first = item.sequence if first < 0 else first
            position = read_header(item.body).position
            if position is not None:
                self.note(first, item.sequence, position, item.end)
                first = -1
