"""Results as JSON lines, one file per partition of the results topic: a log for other programs to follow.

Every result is a line, lower revisions too; whoever reads takes the last of each message. A batch is one append under a
lock of its file, synced before `write` returns. What a crash or a full disk left of a line is cut before the next one.
"""

import asyncio
import errno
import fcntl
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

import msgspec

from consumers.rows import Arrival, AwayError, StoredRow, WriteCount
from consumers.sinks.base import gives_way
from ingest.contract.result import Result, decode_result, encode_result
from ingest.runtime.errors import UsageError

_SCAN_BYTES = 65_536
_NOT_NOW = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ENOLCK})


class JsonlSink:
    """The folder of the files `<topic>-<partition>.jsonl`."""

    kind = "jsonl"

    def __init__(self, folder: Path, topic: str) -> None:
        """Describe it; nothing happens before `open`.

        Args:
            folder: made if missing.
            topic: the results topic, for the names of the files.
        """
        self._folder = folder
        self._topic = topic

    async def open(self) -> None:
        """Make the folder and cut what a crash left of a last line.

        Raises:
            UsageError: the folder cannot be written.
            AwayError: the disk does not serve just now.
        """
        await asyncio.to_thread(self._open)

    async def write(self, batch: Sequence[Arrival]) -> WriteCount:
        """Append every result; on return the lines are on the disk. Lines of a batch written twice are there twice.

        Raises:
            AwayError: the disk is full or does not serve just now. Files that took their lines keep them.
        """
        await asyncio.to_thread(self._write, batch)
        return WriteCount(len(batch), 0)

    async def stored(self) -> AsyncIterator[StoredRow]:
        """What stands last for every message, by the same guard as in a database, in no order."""
        for result in await asyncio.to_thread(self._last_results):
            said = msgspec.to_builtins(result)
            names = ("outcome", "final", "total", "received", "missing", "segments")
            yield StoredRow(result.sms_msg_id, result.revision, {name: said[name] for name in names})

    async def close(self) -> None:
        """Nothing is held between two batches."""

    def _open(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if not os.access(self._folder, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            for path in self._files():
                with _appending(path) as file:
                    _cut_torn_line(file)
        except OSError as error:
            if error.errno in _NOT_NOW:
                raise AwayError(_said(error)) from error
            raise UsageError(f"DLR_JSONL_DIR {self._folder}: {_said(error)}") from error

    def _write(self, batch: Sequence[Arrival]) -> None:
        try:
            for partition, arrivals in groupby(sorted(batch, key=_partition), key=_partition):
                lines = b"".join(encode_result(arrival.result) + b"\n" for arrival in arrivals)
                self._append(self._folder / f"{self._topic}-{partition}.jsonl", lines)
        except OSError as error:
            raise AwayError(_said(error)) from error

    def _append(self, path: Path, lines: bytes) -> None:
        is_new = not path.exists()
        with _appending(path) as file:
            end = _cut_torn_line(file)
            try:
                _write_all(file, lines)
                os.fdatasync(file)
            except OSError:
                # After a failed sync nobody knows what of it is on the disk: the lines come again as a whole.
                os.ftruncate(file, end)
                raise
        if is_new:
            _sync_folder(self._folder)

    def _files(self) -> list[Path]:
        prefix = f"{self._topic}-"
        return [path for path in self._folder.glob("*.jsonl") if _is_partition(path.stem, prefix)]

    def _last_results(self) -> list[Result]:
        last: dict[str, Result] = {}
        for path in self._files():
            with path.open("rb") as file:
                for line in file:
                    if line.endswith(b"\n"):
                        result = decode_result(line)
                        kept = last.get(result.sms_msg_id)
                        if kept is None or gives_way(kept, result):
                            last[result.sms_msg_id] = result
        return list(last.values())


def _partition(arrival: Arrival) -> int:
    return arrival.partition


def _is_partition(stem: str, prefix: str) -> bool:
    return stem.startswith(prefix) and stem[len(prefix) :].isdigit()


def _said(error: OSError) -> str:
    return error.strerror or type(error).__name__


@contextmanager
def _appending(path: Path) -> Iterator[int]:
    """The file, locked against other writers: a partition changes hands while its last owner still writes."""
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file
    finally:
        os.close(file)


def _cut_torn_line(file: int) -> int:
    """End the file behind its last whole line, and return where that is."""
    size = end = os.fstat(file).st_size
    while end > 0:
        start = max(0, end - _SCAN_BYTES)
        newline = os.pread(file, end - start, start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end != size:
        os.ftruncate(file, end)
    return end


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
