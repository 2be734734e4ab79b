"""Append-only log files: framing, torn tails, resynchronisation. The spool and the journal both rest on it.

A frame, little endian:

```text
magic 4 | body length u32 | sequence u64 | tag 16 | body CRC32C u32 | header CRC32C u32 | body
```

- The sequence rises from frame to frame within a file, gaps allowed. The tag is the caller's, opaque here.
- Both checksums start from a salt, so that bytes inside a body which look like a frame are none unless their writer
  knew the salt, and remains of another file in recycled blocks are none either.
- Files may be preallocated: zeros after the last frame are room, not damage.
- After a bad frame the reader looks for the next good one with a higher sequence. Bad before good is `corrupt`; if
  nothing good follows, the rest is `torn`: an append that a crash cut short.
"""

import contextlib
import errno
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import google_crc32c

from ingest.runtime.files import FileSystem, Readable

MAGIC = b"\xd1LF\x01"
TAG_BYTES = 16
BODY_MAX_BYTES = 2**32 - 1

_HEADER = struct.Struct("<4sIQ16sI")
_CHECKSUM = struct.Struct("<I")
HEADER_BYTES = _HEADER.size + _CHECKSUM.size

_SEARCH_BYTES = 64 * 1024
CHUNK_BYTES = 1024 * 1024
"""How much of a file is read at once, unless one frame is larger."""


class Frame(NamedTuple):
    """One record. `start` and `end` are its byte offsets in the file, header included."""

    sequence: int
    tag: bytes
    body: bytes
    start: int
    end: int


class Head(NamedTuple):
    """What stands before a body: its sequence, tag, length in bytes and CRC32C."""

    sequence: int
    tag: bytes
    length: int
    checksum: int

    def vouches_for(self, body: bytes, *, salt: int = 0) -> bool:
        """Whether these bytes are the body that was written."""
        return len(body) == self.length and google_crc32c.extend(salt, body) == self.checksum


class Damage(NamedTuple):
    """Bytes from `start` to `end` that are no frame: `corrupt` with good frames after them, or a `torn` tail."""

    start: int
    end: int
    kind: Literal["corrupt", "torn"]


def encode_header(sequence: int, tag: bytes, body: bytes, *, salt: int = 0) -> bytes:
    """The 40 bytes that stand before `body` in the file.

    Args:
        sequence: higher than that of the frame before, below 2**64.
        tag: exactly 16 bytes.
        body: at most `BODY_MAX_BYTES`.
        salt: where the checksums start, 32 bits; the reader must know it.
    """
    if len(tag) != TAG_BYTES:
        raise ValueError(f"a tag has {TAG_BYTES} bytes, not {len(tag)}")
    header = _HEADER.pack(MAGIC, len(body), sequence, tag, google_crc32c.extend(salt, body))
    return header + _CHECKSUM.pack(google_crc32c.extend(salt, header))


def decode_header(head: bytes, *, salt: int = 0) -> Head | None:
    """The inverse of `encode_header`; None for bytes that are none, or too few, or of another salt."""
    if len(head) < HEADER_BYTES or not head.startswith(MAGIC):
        return None
    plain = head[: _HEADER.size]
    if google_crc32c.extend(salt, plain) != _CHECKSUM.unpack_from(head, _HEADER.size)[0]:
        return None
    _, length, sequence, tag, checksum = _HEADER.unpack(plain)
    return Head(sequence, tag, length, checksum)


def encode_frame(sequence: int, tag: bytes, body: bytes, *, salt: int = 0) -> bytes:
    """A whole frame; see `encode_header`."""
    return encode_header(sequence, tag, body, salt=salt) + body


def scan(buffer: bytes, start: int = 0, *, salt: int = 0, after: int = -1) -> Iterator[Frame | Damage]:
    """Read every frame of a buffer from offset `start`, in order, and say what is between them.

    Args:
        buffer: the bytes of a file from its beginning.
        start: where the first frame begins.
        salt: as it was written with.
        after: sequence that the first frame must be above.
    """

    def read(size: int, at: int) -> bytes:
        return buffer[at : at + size]

    return _scan(_Window(read, len(buffer), max(len(buffer), 1)), start, salt=salt, after=after)


def scan_file(
    file: Readable,
    start: int = 0,
    end: int | None = None,
    *,
    salt: int = 0,
    after: int = -1,
    chunk_bytes: int = CHUNK_BYTES,
) -> Iterator[Frame | Damage]:
    """As `scan`, over a file, with at most one chunk (or one larger frame) in memory.

    Args:
        file: open to be read.
        start: where the first frame begins.
        end: where the readable part ends; by default the length of the file.
        salt: as it was written with.
        after: sequence that the first frame must be above.
        chunk_bytes: how much is read at once.

    Raises:
        OSError: the device would not give the bytes.
    """
    return _scan(_Window(file.pread, file.size() if end is None else end, chunk_bytes), start, salt=salt, after=after)


def read_frames(
    file: Readable,
    start: int,
    max_bytes: int,
    end: int | None = None,
    *,
    salt: int = 0,
    after: int = -1,
    overhead_bytes: int = 0,
) -> tuple[list[Frame | Damage], int]:
    """One bounded piece of a file, at least one item of it if there is any.

    Args:
        file: open to be read.
        start: where the piece begins.
        max_bytes: the piece ends with the item that reaches this.
        end: as for `scan_file`.
        salt: as it was written with.
        after: sequence that the first frame must be above.
        overhead_bytes: what each item counts besides its bytes.

    Returns:
        The items, and the offset and where to go on; that is `start` again if nothing is there (yet).
    """
    found: list[Frame | Damage] = []
    for item in scan_file(file, start, end, salt=salt, after=after, chunk_bytes=min(CHUNK_BYTES, max(max_bytes, 1))):
        found.append(item)
        if item.end - start + len(found) * overhead_bytes >= max_bytes:
            break
    return found, found[-1].end if found else start


class LogWriter:
    """Appends to one log file. Not thread safe: one thread owns it.

    After a failed `append` or `sync` it takes nothing more but `truncate`, `seal` and `close`: the kernel may have
    dropped what a failed sync was to write, and a later sync of the same file could claim otherwise.

    Attributes:
        path: of the file.
        end: offset after the last appended byte.
        synced: offset up to which a sync has returned.
        allocated: length that was reserved.
    """

    def __init__(self, fs: FileSystem, path: Path, preallocate_bytes: int = 0, *, resume_at: int | None = None) -> None:
        """Create the file and make its name and room durable, or go on in one that exists.

        Args:
            fs: where.
            path: of the file; its folder must exist.
            preallocate_bytes: room that is reserved at once, and again whenever it is used up: overwriting reserved
                room spares every sync the file's length.
            resume_at: None to create; else the offset after the last good frame, everything behind is cut off.

        Raises:
            OSError: nothing is left behind that a second try under another name would trip over.
        """
        self.path = path
        self._step = preallocate_bytes
        self._failed = False
        self.end = self.synced = self.allocated = 0
        self._file = fs.create(path) if resume_at is None else fs.open(path, write=True)
        try:
            if resume_at is not None:
                self._file.truncate(resume_at)
                self.end = self.synced = self.allocated = resume_at
            if preallocate_bytes:
                self._allocate(self.end + preallocate_bytes)
            self._file.sync()
            if resume_at is None:
                fs.sync_dir(path.parent)
        except BaseException:
            self._file.close()
            if resume_at is None:
                _unlink_quietly(fs, path)
            raise

    @property
    def failed(self) -> bool:
        """Whether a write or sync failed, so that nothing more is appended here."""
        return self._failed

    def append(self, *parts: bytes) -> int:
        """Write the parts one after the other at the end; durable after `sync`.

        Returns:
            The offset at which the first part begins.

        Raises:
            OSError: some of it may stand in the file; `truncate` to where it began, or leave the file.
        """
        self._refuse_if_failed()
        start, size = self.end, sum(map(len, parts))
        try:
            if self._step and start + size > self.allocated:
                self._allocate(start + size + self._step)
            self._file.pwrite(parts, start)
        except OSError:
            self._failed = True
            raise
        self.end = start + size
        return start

    def sync(self) -> None:
        """Return once everything appended is on the device.

        Raises:
            OSError: what stands after `synced` may be lost, whatever a read shows.
        """
        self._refuse_if_failed()
        try:
            self._file.sync()
        except OSError:
            self._failed = True
            raise
        self.synced = self.end

    def truncate(self, size: int) -> None:
        """Cut everything from offset `size` on. A writer that failed stays so."""
        self._file.truncate(size)
        self.end = self.allocated = size
        self.synced = min(self.synced, size)

    def seal(self) -> None:
        """Give the room after the last synced byte back and close; nothing is appended to this file any more."""
        try:
            self._file.truncate(self.synced)
        finally:
            self._file.close()

    def close(self) -> None:
        """Close without a change. Calling it twice is harmless."""
        self._file.close()

    def _allocate(self, size: int) -> None:
        self._file.allocate(size)
        self.allocated = size

    def _refuse_if_failed(self) -> None:
        if self._failed:
            raise OSError(errno.EIO, "a write to this log file failed before", str(self.path))


class _Window:
    """A file seen through one buffer that moves along."""

    def __init__(self, read: Callable[[int, int], bytes], end: int, chunk_bytes: int) -> None:
        self._read = read  # (size, offset), as File.pread
        self._chunk_bytes = chunk_bytes
        self._start = 0
        self._data = b""
        self.end = end

    def get(self, at: int, size: int) -> bytes:
        """The bytes from `at`; fewer than `size` only at the end."""
        size = min(size, self.end - at)
        skip = at - self._start
        if skip < 0 or skip + size > len(self._data):
            self._data = self._read(min(max(size, self._chunk_bytes), self.end - at), at)
            self._start, skip = at, 0
        return self._data[skip : skip + size]


def _scan(window: _Window, start: int, *, salt: int, after: int) -> Iterator[Frame | Damage]:
    at = start
    while at < window.end:
        frame, search_from = _frame_at(window, at, salt, after)
        if frame is None:
            frame = _resynchronise(window, search_from, salt, after)
            if frame is None:
                filled = _end_of_data(window, at)
                if filled > at:
                    yield Damage(at, filled, "torn")
                return
            yield Damage(at, frame.start, "corrupt")
        yield frame
        at, after = frame.end, frame.sequence


def _frame_at(window: _Window, at: int, salt: int, after: int) -> tuple[Frame | None, int]:
    """The good frame at an offset, and where to look on if there is none."""
    head = decode_header(window.get(at, HEADER_BYTES), salt=salt)
    body_start = at + HEADER_BYTES
    if head is None or head.sequence <= after or body_start + head.length > window.end:
        return None, at + 1
    end = body_start + head.length
    body = window.get(body_start, head.length)
    if not head.vouches_for(body, salt=salt):
        # The length is vouched for by the header: what looks like a frame inside the body is none.
        return None, end
    return Frame(head.sequence, head.tag, body, at, end), end


def _resynchronise(window: _Window, start: int, salt: int, after: int) -> Frame | None:
    """The first good frame at or after an offset."""
    at = start
    while at < window.end:
        piece = window.get(at, _SEARCH_BYTES)
        found = piece.find(MAGIC)
        while found >= 0:
            frame, _ = _frame_at(window, at + found, salt, after)
            if frame is not None:
                return frame
            found = piece.find(MAGIC, found + 1)
        if len(piece) < len(MAGIC):
            return None
        at += len(piece) - len(MAGIC) + 1  # a magic may stand across the border
    return None


def _end_of_data(window: _Window, start: int) -> int:
    """Offset after the last byte that is not zero, `start` if all are."""
    at = filled = start
    while piece := window.get(at, _SEARCH_BYTES):
        kept = len(piece.rstrip(b"\0"))
        if kept:
            filled = at + kept
        at += len(piece)
    return filled


def _unlink_quietly(fs: FileSystem, path: Path) -> None:
    with contextlib.suppress(OSError):  # an empty file that stays is harmless: no frame, and the error before is told
        fs.unlink(path)
