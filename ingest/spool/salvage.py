"""Reading around what a device does not give back any more."""

import errno
import time

from ingest.runtime.files import File

BLOCK_BYTES = 4096
"""What is given up together: a device loses a sector, the kernel reads pages."""

FILLER = b"\xee"
"""Stands for each byte that cannot be read: never part of a frame, never taken for room."""

TRIES = 3
RETRY_PAUSE_S = 1.0
"""How often a block is asked for before it is given up, and the pause between: a path that fails over takes moments."""

_UNREADABLE = {errno.EIO, errno.EBADMSG, errno.EUCLEAN, errno.EILSEQ, errno.ENODATA, errno.EREMOTEIO}


class SalvagedFile:
    """A file to be read (`ingest.runtime.files.Readable`) whose unreadable blocks read as `FILLER`.

    Waits between its tries, so it is not for the event loop's thread.

    Attributes:
        lost_bytes: how much could not be read so far.
    """

    def __init__(self, file: File) -> None:
        self._file = file
        self._lost: set[int] = set()
        self.lost_bytes = 0

    def size(self) -> int:
        """Length of the file."""
        return self._file.size()

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def pread(self, size: int, offset: int) -> bytes:
        """As `File.pread`.

        Raises:
            OSError: something else than an unreadable place.
        """
        if not self._lost:
            try:
                return self._file.pread(size, offset)
            except OSError as error:
                if error.errno not in _UNREADABLE:
                    raise
        return self._by_blocks(size, offset)

    def _by_blocks(self, size: int, offset: int) -> bytes:
        end = min(offset + size, self._file.size())
        first = offset - offset % BLOCK_BYTES
        found: dict[int, bytes] = {}
        missing = [at for at in range(first, end, BLOCK_BYTES) if at not in self._lost]
        for tried in range(1, TRIES + 1):
            for at in missing:
                if (block := self._block(at)) is not None:
                    found[at] = block
            missing = [at for at in missing if at not in found]
            if not missing:
                break
            if tried < TRIES:
                time.sleep(RETRY_PAUSE_S)
        self._lost.update(missing)
        self.lost_bytes += sum(min(BLOCK_BYTES, self._file.size() - at) for at in missing)
        whole = b"".join(found.get(at, FILLER * BLOCK_BYTES) for at in range(first, end, BLOCK_BYTES))
        return whole[offset - first : end - first]

    def _block(self, at: int) -> bytes | None:
        try:
            return self._file.pread(BLOCK_BYTES, at)
        except OSError as error:
            if error.errno not in _UNREADABLE:
                raise
            return None
