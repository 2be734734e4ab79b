"""The cursor of a folder: up to which position everything is settled.

Two slots of one block each, written in turn with a rising counter and a checksum, and synced: a torn write leaves the
other slot. The file is filled with zeros when it is made and never grows, so that a full disk cannot stop the cursor
whose progress frees it. After a failed sync the file is left for a new one; of several files the highest counter wins.
"""

import contextlib
import errno
import re
import struct
from pathlib import Path

import google_crc32c

from ingest.runtime.files import File, FileSystem
from ingest.spool.salvage import SalvagedFile

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""What a full device, or quota, answers."""

_SLOT = struct.Struct("<4sQQ")  # magic, counter, position
_CHECKSUM = struct.Struct("<I")
_MAGIC = b"DCUR"
_SLOT_BYTES = 4096
_NAME = re.compile(r"cursor-(\d{6})\.v1")


class Cursor:
    """Reads and moves the cursor of one folder. One thread at a time.

    Attributes:
        position: the highest settled position that was read or made durable; 0 at the beginning.
    """

    def __init__(self, fs: FileSystem, folder: Path) -> None:
        """Read what is there; a folder without a cursor begins at 0.

        Raises:
            OSError: the folder cannot be read.
        """
        self._fs = fs
        self._folder = folder
        self._counter = 0
        self._file: File | None = None
        self._path: Path | None = None  # the file to overwrite, None after it failed
        self._generation = 0
        self.position = 0
        for name in fs.listdir(folder):
            if known := _NAME.fullmatch(name):
                self._generation = max(self._generation, int(known[1]))
                counter, position = _newest(fs, folder / name)
                if counter > self._counter:
                    self._counter, self.position, self._path = counter, position, folder / name

    def move(self, position: int) -> None:
        """Make a position durable.

        Raises:
            OSError: it is not (known to be) durable; call again later. Another file will be used, unless there was only
                no room: a new file would need more of it.
        """
        if self._file is None:
            # The file of an earlier process is overwritten in place: a full disk has no room for another.
            self._file = self._fs.open(self._path, write=True) if self._path else self._new_file()
        self._counter += 1
        try:
            self._file.pwrite([_encode(self._counter, position)], self._counter % 2 * _SLOT_BYTES)
            self._file.sync()
        except OSError as error:
            if error.errno in NO_ROOM:
                self._counter -= 1  # the same slot again: the other one holds what counts
            else:
                self._path = None
            self.close()
            raise
        self.position = position

    def close(self) -> None:
        """Let go of the file; a later `move` begins a new one."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _new_file(self) -> File:
        """A new cursor file that holds the present position; then the older ones go."""
        self._generation += 1
        path = self._folder / f"cursor-{self._generation:06d}.v1"
        file = self._fs.create(path)
        try:
            self._counter += 1
            slots = [bytes(_SLOT_BYTES), bytes(_SLOT_BYTES)]
            slots[self._counter % 2] = _encode(self._counter, self.position).ljust(_SLOT_BYTES, b"\0")
            file.pwrite(slots, 0)
            file.sync()
            self._fs.sync_dir(self._folder)
        except BaseException:
            file.close()
            with contextlib.suppress(OSError):
                self._fs.unlink(path)
            raise
        for name in self._fs.listdir(self._folder):
            if _NAME.fullmatch(name) and name != path.name:
                with contextlib.suppress(OSError):  # it counts less than the new one; the next may remove it
                    self._fs.unlink(self._folder / name)
        self._path = path
        return file


def is_cursor(name: str) -> bool:
    """Whether a file of this name is a cursor."""
    return _NAME.fullmatch(name) is not None


def _encode(counter: int, position: int) -> bytes:
    plain = _SLOT.pack(_MAGIC, counter, position)
    return plain + _CHECKSUM.pack(google_crc32c.value(plain))


def _newest(fs: FileSystem, path: Path) -> tuple[int, int]:
    """Counter and position of the better slot, zeros if neither is good."""
    file = SalvagedFile(fs.open(path))  # a slot that cannot be read is as good as a torn one
    try:
        slots = [file.pread(_SLOT.size + _CHECKSUM.size, at) for at in (0, _SLOT_BYTES)]
    finally:
        file.close()
    return max(map(_decode, slots))


def _decode(slot: bytes) -> tuple[int, int]:
    plain, checksum = slot[: _SLOT.size], slot[_SLOT.size :]
    if len(checksum) < _CHECKSUM.size or google_crc32c.value(plain) != _CHECKSUM.unpack(checksum)[0]:
        return 0, 0
    magic, counter, position = _SLOT.unpack(plain)
    return (counter, position) if magic == _MAGIC else (0, 0)
