"""The filesystem as an argument: what durable code asks of it, and the real one.

Everything that promises to survive a crash takes a `FileSystem`, so that tests can put one in its place which fails at
any call, or which forgets at a crash whatever was not synced.

What counts as durable:

- data of a file: after `File.sync` of that file returned;
- a name (created, renamed, removed): after `FileSystem.sync_dir` of the folder that holds it returned.

Errors are `OSError` as the kernel reports them. After a failed `File.sync` the kernel may have dropped the pages and a
second sync may claim success: the file must not be synced again.
"""

import contextlib
import errno
import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

_PARTS_MAX = 1024
"""Most buffers of one pwritev (IOV_MAX of Linux)."""

_FILE_MODE = 0o600
_DIR_MODE = 0o700


class Readable(Protocol):
    """One open file that is read at explicit offsets. Offsets and sizes are bytes."""

    def pread(self, size: int, offset: int) -> bytes:
        """Up to `size` bytes from `offset`; fewer only at the end of the file."""
        ...

    def size(self) -> int:
        """Length of the file."""
        ...


class File(Readable, Protocol):
    """One open file, read and written."""

    def pwrite(self, parts: Sequence[bytes], offset: int) -> None:
        """Write all parts one after the other from `offset`, or raise: then any part of them may stand there."""
        ...

    def allocate(self, size: int) -> None:
        """Reserve room for `size` bytes and make the file at least so long; the new bytes read as zeros."""
        ...

    def truncate(self, size: int) -> None:
        """Make the file exactly `size` bytes long."""
        ...

    def sync(self) -> None:
        """Return once the data, and a length needed to read it, are on the device."""
        ...

    def close(self) -> None:
        """Let go of the file; says nothing about durability. Calling it twice is harmless."""
        ...


class Lock(Protocol):
    """An exclusive lock that ends with the process at the latest."""

    def release(self) -> None:
        """Give the lock up. Calling it twice is harmless."""
        ...


class FileSystem(Protocol):
    """The calls that durable code makes. Paths are absolute or relative to the working directory."""

    def create(self, path: Path) -> File:
        """A new empty file, readable and writable by the owner only.

        Raises:
            FileExistsError: the name is taken.
        """
        ...

    def open(self, path: Path, *, write: bool = False) -> File:
        """An existing file, to be read, or read and written.

        Raises:
            FileNotFoundError: there is none.
        """
        ...

    def mkdir(self, path: Path) -> None:
        """One folder for the owner only; its parent must exist.

        Raises:
            FileExistsError: the name is taken.
        """
        ...

    def listdir(self, path: Path) -> list[str]:
        """Names in a folder, sorted."""
        ...

    def is_dir(self, path: Path) -> bool:
        """Whether a folder stands there."""
        ...

    def size_of(self, path: Path) -> int:
        """Length of the file at `path` without opening it."""
        ...

    def rename(self, source: Path, target: Path) -> None:
        """Give a file or folder another name in one step, in place of a file that has it."""
        ...

    def unlink(self, path: Path) -> None:
        """Remove the name of a file."""
        ...

    def rmdir(self, path: Path) -> None:
        """Remove an empty folder."""
        ...

    def sync_dir(self, path: Path) -> None:
        """Return once the names in this folder are on the device."""
        ...

    def lock(self, path: Path, note: bytes = b"") -> Lock | None:
        """Lock the file at `path`, made if missing, or None if somebody has it. Never inherited by a child process.

        Args:
            path: the lock file; its folder must exist.
            note: who holds it, written into the file for whoever finds it locked.
        """
        ...

    def free_bytes(self, path: Path) -> int:
        """Room that is left to us on the device under `path`."""
        ...

    def kind(self, path: Path) -> str:
        """Type of the file system under `path` as the kernel names it (`ext4`, `tmpfs`, `nfs4`), "" if unknown."""
        ...


class RealFile:
    """A file descriptor, never inherited by a child process."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def pread(self, size: int, offset: int) -> bytes:  # noqa: D102 - see File
        data = os.pread(self._descriptor, size, offset)
        while len(data) < size:  # a signal or the 2 GiB limit of one call cuts a read short
            more = os.pread(self._descriptor, size - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def pwrite(self, parts: Sequence[bytes], offset: int) -> None:  # noqa: D102 - see File
        for first in range(0, len(parts), _PARTS_MAX):
            some = parts[first : first + _PARTS_MAX]
            wanted = sum(map(len, some))
            written = os.pwritev(self._descriptor, some, offset)
            if written < wanted:
                self._write_rest(b"".join(some)[written:], offset + written)
            offset += wanted

    def allocate(self, size: int) -> None:  # noqa: D102 - see File
        os.posix_fallocate(self._descriptor, 0, size)

    def truncate(self, size: int) -> None:  # noqa: D102 - see File
        os.ftruncate(self._descriptor, size)

    def sync(self) -> None:  # noqa: D102 - see File
        os.fdatasync(self._descriptor)

    def size(self) -> int:  # noqa: D102 - see File
        return os.fstat(self._descriptor).st_size

    def close(self) -> None:  # noqa: D102 - see File
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)

    def _write_rest(self, data: bytes, offset: int) -> None:
        while data:
            written = os.pwrite(self._descriptor, data, offset)
            if not written:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            data = data[written:]
            offset += written


class RealLock:
    """flock(2) on a descriptor that no child inherits: the kernel drops it with the process, kill -9 included."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def release(self) -> None:  # noqa: D102 - see Lock
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)


class RealFileSystem:
    """The file system of this machine (Linux)."""

    def create(self, path: Path) -> File:  # noqa: D102 - see FileSystem
        return RealFile(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE))

    def open(self, path: Path, *, write: bool = False) -> File:  # noqa: D102 - see FileSystem
        return RealFile(os.open(path, (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC))

    def mkdir(self, path: Path) -> None:  # noqa: D102 - see FileSystem
        path.mkdir(mode=_DIR_MODE)

    def listdir(self, path: Path) -> list[str]:  # noqa: D102 - see FileSystem
        return sorted(os.listdir(path))  # noqa: PTH208 - names, not paths

    def is_dir(self, path: Path) -> bool:  # noqa: D102 - see FileSystem
        return path.is_dir()

    def size_of(self, path: Path) -> int:  # noqa: D102 - see FileSystem
        return path.stat().st_size

    def rename(self, source: Path, target: Path) -> None:  # noqa: D102 - see FileSystem
        source.replace(target)

    def unlink(self, path: Path) -> None:  # noqa: D102 - see FileSystem
        path.unlink()

    def rmdir(self, path: Path) -> None:  # noqa: D102 - see FileSystem
        path.rmdir()

    def sync_dir(self, path: Path) -> None:  # noqa: D102 - see FileSystem
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def lock(self, path: Path, note: bytes = b"") -> Lock | None:  # noqa: D102 - see FileSystem
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE)
        try:
            held = _flock(descriptor, path)
        except BaseException:
            os.close(descriptor)
            raise
        if not held:
            os.close(descriptor)
            return None
        with contextlib.suppress(OSError):  # the note helps people; on a full disk the lock holds without it
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, note, 0)
        return RealLock(descriptor)

    def free_bytes(self, path: Path) -> int:  # noqa: D102 - see FileSystem
        state = os.statvfs(path)
        return state.f_bavail * state.f_frsize

    def kind(self, path: Path) -> str:  # noqa: D102 - see FileSystem
        return kind_from_mounts(path.resolve(), Path("/proc/self/mountinfo").read_text(encoding="utf-8"))


def _flock(descriptor: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever held it may have removed the file before letting go: that lock would keep nobody out.
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False


def kind_from_mounts(path: Path, mounts: str) -> str:
    """Type of the file system that holds an absolute path, "" if no mount point is above it.

    Args:
        path: absolute, links resolved.
        mounts: text of `/proc/self/mountinfo` (proc(5)): fields, the mount point is the fifth, after ` - ` the type.
    """
    best, kind = -1, ""
    for line in mounts.splitlines():
        fields, _, rest = line.partition(" - ")
        point = Path(fields.split()[4].encode().decode("unicode_escape"))
        # Of two mounts on one point the later hides the earlier.
        if len(point.parts) >= best and path.is_relative_to(point):
            best, kind = len(point.parts), rest.split()[0]
    return kind
