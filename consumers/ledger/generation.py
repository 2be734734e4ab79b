"""One file of the journal: the cycles of one generation of the partition clock."""

import bisect
import errno
import mmap
import operator
import os
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from consumers.entry import Cursor, LedgerDamagedError, Position
from consumers.ledger.changelog import ROW, ROW_BYTES, Rows, read_header
from consumers.ledger.reading import lost_is_damage
from ingest.runtime.files import FileSystem, Readable
from ingest.runtime.logfile import HEADER_BYTES, Damage, Frame, Head, decode_header, encode_frame, scan, scan_file

MARK_BYTES = 128 * 1024
"""About how far apart the frames are that are found without a walk."""

RECORD_TAG = b"record".ljust(16, b"\0")
FOOTER_TAG = b"footer".ljust(16, b"\0")

_FOOTER = struct.Struct("<QQQQQQQII")
_FOOTER_FRAME_BYTES = HEADER_BYTES + _FOOTER.size
_ROW_AS_BYTES = np.dtype((np.void, ROW_BYTES))
_POPULATE_READ = 22  # MADV_POPULATE_READ of madvise(2), since Linux 5.14
_READ_AHEAD_BYTES = 64 * 1024
_NAME = re.compile(r"journal-(\d{8,})-([0-9a-f]{8})\.log")


class Stored(NamedTuple):
    """Where a changelog record stands in the journal: generation, byte where its value begins, head of its frame."""

    number: int
    start: int
    head: Head

    @property
    def offset(self) -> int:
        """Changelog offset."""
        return self.head.sequence

    @property
    def end(self) -> int:
        """Byte after the value."""
        return self.start + self.head.length

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
    _marks: list[tuple[int, int]] = field(default_factory=list, repr=False)  # changelog offset and byte of some frames

    @classmethod
    def named(cls, folder: Path, number: int, salt: int) -> Self:
        """A file by its number and salt."""
        return cls(folder / f"journal-{number:08d}-{salt:08x}.log", number, salt)

    @classmethod
    def parse(cls, path: Path) -> Self | None:
        """The file that a path names, None if it is none of the journal's."""
        name = _NAME.fullmatch(path.name)
        return cls(path, int(name[1]), int(name[2], 16)) if name else None

    def note(self, first_offset: int, last_offset: int, position: Position, end: int) -> None:
        """Count a whole cycle in: the offsets of its first and last record, and the byte after it."""
        if self.position is None:
            self.started_ms, self.first_offset = position.clock_ms, first_offset
        self._mark(first_offset, self.end)
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
            at.memory_from_s,
        )
        return encode_frame(self.last_offset + 1, FOOTER_TAG, body, salt=self.salt)

    def recover(self, fs: FileSystem) -> None:
        """Find out what the file holds: by its footer, else by reading and checking all of it.

        Raises:
            LedgerDamagedError: something before the end of the file is not what was written, or cannot be read.
            OSError: the device does not serve.
        """
        with lost_is_damage(self.path.name):
            file = fs.open(self.path)
            try:
                self._recover(file)
            finally:
                file.close()

    def records(self, start: int = 0) -> Iterator[Stored]:
        """The records from a frame's offset on: their heads are checked, `value_of` checks what follows.

        Raises:
            LedgerDamagedError: no frame stands where one must.
        """
        if start >= self.end:
            return
        data, after, readable = self.view(self.end), -1, start
        while start < self.end:
            body = start + HEADER_BYTES
            if body > readable:
                readable = min(start + _READ_AHEAD_BYTES, self.end)  # behind it the room may have been given back
                self._read_in([(start, readable)])
            head = decode_header(data[start:body], salt=self.salt)
            if head is None or head.sequence <= after or body + head.length > self.end:
                raise LedgerDamagedError(f"{self.path.name} has no frame where one was written")
            self._mark(head.sequence, start)
            yield Stored(self.number, body, head)
            start, after = body + head.length, head.sequence

    def first_from(self, offset: int) -> Stored | None:
        """The first record at or after a changelog offset, None if all are before it.

        Frames are walked over from the nearest one that is known. Those that were appended or walked over are known,
        one for every `MARK_BYTES`; so this is long at most once, in a file that was sealed when it was found.

        Raises:
            LedgerDamagedError: as `records`.
        """
        known = bisect.bisect_right(self._marks, offset, key=operator.itemgetter(0))
        start = self._marks[known - 1][1] if known else 0
        return next((stored for stored in self.records(start) if stored.offset >= offset), None)

    def value_of(self, stored: Stored) -> bytes:
        """A changelog record as it was applied.

        Raises:
            LedgerDamagedError: something else stands there.
        """
        data = self.view(self.end)
        self._read_in([(stored.start, stored.end)])
        value = data[stored.start : stored.end]
        if not stored.head.vouches_for(value, salt=self.salt):
            raise LedgerDamagedError(f"{self.path.name} is damaged from byte {stored.start} to {stored.end}")
        return value

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
        self._read_in(_stretches(starts, starts + ROW_BYTES))
        # One row may begin at any byte: an array of overlapping rows is gathered from in one step, without copies; as
        # plain bytes, since fields would be copied one by one.
        return np.ndarray((self.end - ROW_BYTES + 1,), _ROW_AS_BYTES, data, strides=(1,))[starts].view(ROW)

    def payloads(self, begins: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> list[bytes]:
        """The bytes between these offsets."""
        data = self.view(self.end)
        self._read_in(_stretches(begins, ends))
        return [data[begin:end] for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]

    def forget_view(self) -> None:
        """Let go of the memory; views that somebody still holds keep it alive."""
        self._map = None

    def _mark(self, offset: int, start: int) -> None:
        if not self._marks or start >= self._marks[-1][1] + MARK_BYTES:
            self._marks.append((offset, start))

    def _read_in(self, stretches: Iterable[tuple[int, int]]) -> None:
        """Have stretches of a sealed file read before they are touched.

        To touch a page that the device has lost ends the process (SIGBUS): at each start again, since nothing but the
        footer of a sealed file is read there. The file that is not sealed is read whole at the start, and spared this.
        (A read of each entry would cost as much on its own, and let every other thread go first.)

        Raises:
            LedgerDamagedError: the device does not give them.
        """
        data = self._map
        if not self.sealed or data is None:
            return
        with lost_is_damage(self.path.name):
            for begin, end in stretches:
                begin -= begin % mmap.PAGESIZE  # noqa: PLW2901
                try:
                    data.madvise(_POPULATE_READ, begin, end - begin)
                except OSError as error:
                    if error.errno != errno.EINVAL:  # a kernel that does not know it yet
                        raise

    def _recover(self, file: Readable) -> None:
        size = file.size()
        tail = file.pread(_FOOTER_FRAME_BYTES, size - _FOOTER_FRAME_BYTES) if size >= _FOOTER_FRAME_BYTES else b""
        footer = next(scan(tail, salt=self.salt), None)
        if isinstance(footer, Frame) and footer.start == 0 and footer.tag == FOOTER_TAG:
            self._trust(footer, size - _FOOTER_FRAME_BYTES)
        else:
            self._read_all(scan_file(file, salt=self.salt))

    def _trust(self, footer: Frame, end: int) -> None:
        started, first, last, cycle, next_offset, clock_ms, at, index, accepted = _FOOTER.unpack(footer.body)
        self.started_ms, self.first_offset, self.last_offset = started, first, last
        self.position = Position(cycle, next_offset, clock_ms, Cursor(at, index), accepted)
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


def _stretches(begins: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """The pages that hold the bytes between these offsets, as few stretches as they make."""
    first, after = begins // mmap.PAGESIZE, -(-ends // mmap.PAGESIZE)
    order = np.argsort(first)
    first, after = first[order], np.maximum.accumulate(after[order])
    apart = first[1:] > after[:-1]
    from_bytes = first[np.concatenate(([True], apart))] * mmap.PAGESIZE
    to_bytes = after[np.concatenate((apart, [True]))] * mmap.PAGESIZE
    return zip(from_bytes.tolist(), to_bytes.tolist(), strict=True)
