"""A file system in memory that forgets at a power cut what was not synced, and one that fails on request.

The model is as unkind as POSIX allows: of everything not synced, any part may be on the device: any subset of the
writes of a file, each torn at 512 bytes, in any order; any subset of the names of a folder. A failed sync throws away
what it should have written although reads still show it, as Linux does.
"""
# ruff: noqa: D102 - the methods are described by the protocols of ingest.runtime.files

import errno
import itertools
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ingest.runtime.files import File, FileSystem, Lock

_SECTOR = 512


class PowerCutError(Exception):
    """The machine went away in the middle of a call, or before it."""


Edit = tuple[str, int, bytes]  # what ("write", "allocate", "truncate"), offset or size, data


def _apply(content: bytearray, edit: Edit) -> None:
    what, at, data = edit
    if what == "truncate" and len(content) > at:
        del content[at:]
    end = at + len(data)
    if len(content) < end:
        content.extend(bytes(end - len(content)))
    if what == "write":
        content[at:end] = data


@dataclass(eq=False)
class _Inode:
    content: bytearray = field(default_factory=bytearray)
    device: bytearray = field(default_factory=bytearray)
    unsynced: list[Edit] = field(default_factory=list)

    def edit(self, what: str, at: int, data: bytes = b"") -> None:
        edit = (what, at, data)
        _apply(self.content, edit)
        self.unsynced.append(edit)

    def sync(self) -> None:
        for edit in self.unsynced:
            _apply(self.device, edit)
        self.unsynced.clear()

    def power_cut(self, chance: random.Random) -> None:
        for what, at, data in self.unsynced:
            if what != "write":
                if chance.random() < 0.5:
                    _apply(self.device, (what, at, data))
                continue
            first = -at % _SECTOR
            borders = [0, *range(first, len(data), _SECTOR), len(data)]
            keep = chance.choice((0.0, 0.5, 1.0))
            for low, high in itertools.pairwise(borders):
                if chance.random() < keep:
                    _apply(self.device, ("write", at + low, data[low:high]))
        self.unsynced.clear()
        self.content = bytearray(self.device)


Node = "_Inode | _Dir"
Change = dict[str, "_Inode | _Dir | None"]  # name to node, None for removed; together or not at all


@dataclass(eq=False)
class _Dir:
    names: dict[str, "_Inode | _Dir"] = field(default_factory=dict)
    device: dict[str, "_Inode | _Dir"] = field(default_factory=dict)
    unsynced: list[Change] = field(default_factory=list)

    def change(self, change: Change) -> None:
        _rename(self.names, change)
        self.unsynced.append(change)

    def sync(self) -> None:
        self.device = dict(self.names)
        self.unsynced.clear()

    def power_cut(self, chance: random.Random) -> None:
        for change in self.unsynced:
            if chance.random() < 0.5:
                _rename(self.device, change)
        self.unsynced.clear()
        self.names = dict(self.device)
        for node in self.names.values():
            node.power_cut(chance)


def _rename(names: dict[str, "_Inode | _Dir"], change: Change) -> None:
    for name, node in change.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


class ModelFile:
    """An open file of a `ModelFileSystem`."""

    def __init__(self, fs: "ModelFileSystem", inode: _Inode, path: Path, *, write: bool) -> None:
        self._fs = fs
        self._boot = fs.boot
        self._inode = inode
        self._path = path
        self._write = write

    def pread(self, size: int, offset: int) -> bytes:
        self._alive()
        return bytes(self._inode.content[offset : offset + size])

    def pwrite(self, parts: Sequence[bytes], offset: int) -> None:
        self._change("write", offset, b"".join(parts))

    def allocate(self, size: int) -> None:
        grown = size - len(self._inode.content)
        if grown > self._fs.free_bytes(self._path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._change("allocate", size)

    def truncate(self, size: int) -> None:
        self._change("truncate", size)

    def sync(self) -> None:
        self._alive()
        self._inode.sync()
        if len(self._inode.device) < len(self._inode.content):
            self._inode.device.extend(bytes(len(self._inode.content) - len(self._inode.device)))

    def lose_unsynced(self) -> None:
        """What a failed fdatasync does."""
        self._inode.unsynced.clear()

    def size(self) -> int:
        self._alive()
        return len(self._inode.content)

    def close(self) -> None:
        return

    def _change(self, what: str, at: int, data: bytes = b"") -> None:
        self._alive()
        if not self._write:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        self._inode.edit(what, at, data)

    def _alive(self) -> None:
        if self._boot != self._fs.boot:
            raise PowerCutError


class ModelLock:
    """A lock that ends with its boot or its process."""

    def __init__(self, fs: "ModelFileSystem", inode: object) -> None:
        self._fs = fs
        self._inode = inode

    def release(self) -> None:
        self._fs.locks.discard(self._inode)


class ModelFileSystem:
    """A disk of `capacity` bytes in memory."""

    def __init__(self, capacity: int = 1 << 30) -> None:
        self.capacity = capacity
        self.boot = 0
        self.locks: set[object] = set()
        self._root = _Dir()

    def power_cut(self, chance: random.Random) -> None:
        """Forget what was not synced, as `chance` has it; every open file is dead."""
        self.kill()
        self._root.power_cut(chance)

    def kill(self) -> None:
        """End every process: locks and open files are gone, what was written stays."""
        self.boot += 1
        self.locks.clear()

    def create(self, path: Path) -> File:
        parent = self._dir(path.parent)
        if path.name in parent.names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        inode = _Inode()
        parent.change({path.name: inode})
        return ModelFile(self, inode, path, write=True)

    def open(self, path: Path, *, write: bool = False) -> File:
        return ModelFile(self, self._file(path), path, write=write)

    def mkdir(self, path: Path) -> None:
        parent = self._dir(path.parent)
        if path.name in parent.names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        parent.change({path.name: _Dir()})

    def listdir(self, path: Path) -> list[str]:
        return sorted(self._dir(path).names)

    def is_dir(self, path: Path) -> bool:
        return isinstance(self._find(path), _Dir)

    def size_of(self, path: Path) -> int:
        return len(self._file(path).content)

    def rename(self, source: Path, target: Path) -> None:
        node = self._find(source)
        if node is None or source.parent != target.parent:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(source))
        self._dir(source.parent).change({source.name: None, target.name: node})

    def unlink(self, path: Path) -> None:
        self._file(path)
        self._dir(path.parent).change({path.name: None})

    def rmdir(self, path: Path) -> None:
        if self._dir(path).names:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(path))
        self._dir(path.parent).change({path.name: None})

    def sync_dir(self, path: Path) -> None:
        self._dir(path).sync()

    def lock(self, path: Path, note: bytes = b"") -> Lock | None:
        if self._find(path) is None:
            self.create(path)
        inode = self._file(path)
        if inode in self.locks:
            return None
        self.locks.add(inode)
        inode.edit("truncate", 0)
        inode.edit("write", 0, note)
        return ModelLock(self, inode)

    def free_bytes(self, path: Path) -> int:
        del path
        return max(self.capacity - _size(self._root), 0)

    def kind(self, path: Path) -> str:
        del path
        return "model"

    def _find(self, path: Path) -> "_Inode | _Dir | None":
        node: _Inode | _Dir | None = self._root
        for name in path.parts[1:]:
            node = node.names.get(name) if isinstance(node, _Dir) else None
        return node

    def _file(self, path: Path) -> _Inode:
        node = self._find(path)
        if not isinstance(node, _Inode):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return node

    def _dir(self, path: Path) -> _Dir:
        node = self._find(path)
        if not isinstance(node, _Dir):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return node


def _size(node: "_Inode | _Dir") -> int:
    return len(node.content) if isinstance(node, _Inode) else sum(map(_size, node.names.values()))


Plan = Callable[[str, Path], None]


class FaultyFile:
    """A file whose calls are announced to a plan before and after."""

    def __init__(self, inner: File, path: Path, fs: "FaultyFileSystem") -> None:
        self._inner = inner
        self._path = path
        self._fs = fs

    def pread(self, size: int, offset: int) -> bytes:
        self._fs.before("pread", self._path)
        if any(path == self._path and offset <= at < offset + size for path, at in self._fs.unreadable):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return self._inner.pread(size, offset)

    def pwrite(self, parts: Sequence[bytes], offset: int) -> None:
        try:
            self._fs.before("pwrite", self._path)
        except OSError:
            whole = b"".join(parts)  # some of it is written all the same
            self._inner.pwrite([whole[: len(whole) // 2]], offset)
            raise
        self._inner.pwrite(parts, offset)
        self._fs.after("pwrite", self._path)

    def allocate(self, size: int) -> None:
        self._fs.before("allocate", self._path)
        self._inner.allocate(size)
        self._fs.after("allocate", self._path)

    def truncate(self, size: int) -> None:
        self._fs.before("truncate", self._path)
        self._inner.truncate(size)
        self._fs.after("truncate", self._path)

    def sync(self) -> None:
        try:
            self._fs.before("sync", self._path)
        except OSError:
            if isinstance(self._inner, ModelFile):
                self._inner.lose_unsynced()
            raise
        self._inner.sync()
        self._fs.after("sync", self._path)

    def size(self) -> int:
        return self._inner.size()

    def close(self) -> None:
        self._inner.close()


class FaultyFileSystem:
    """Announces every call to `plan` before it is made, which may raise an `OSError` or a `PowerCutError` instead.

    Attributes:
        plan: called with the name of the call and the path.
        later: called in the same way after a call that changes something was made, to cut the power there.
        calls: what was called, in order.
        unreadable: files and offsets of bytes that no read gives back.
    """

    def __init__(self, inner: FileSystem) -> None:
        self.inner = inner
        self.plan: Plan | None = None
        self.later: Plan | None = None
        self.calls: list[tuple[str, Path]] = []
        self.unreadable: set[tuple[Path, int]] = set()

    def before(self, call: str, path: Path) -> None:
        self.calls.append((call, path))
        if self.plan is not None:
            self.plan(call, path)

    def after(self, call: str, path: Path) -> None:
        if self.later is not None:
            self.later(call, path)

    def create(self, path: Path) -> File:
        self.before("create", path)
        file = self.inner.create(path)
        self.after("create", path)
        return FaultyFile(file, path, self)

    def open(self, path: Path, *, write: bool = False) -> File:
        self.before("open", path)
        return FaultyFile(self.inner.open(path, write=write), path, self)

    def mkdir(self, path: Path) -> None:
        self.before("mkdir", path)
        self.inner.mkdir(path)
        self.after("mkdir", path)

    def listdir(self, path: Path) -> list[str]:
        self.before("listdir", path)
        return self.inner.listdir(path)

    def is_dir(self, path: Path) -> bool:
        return self.inner.is_dir(path)

    def size_of(self, path: Path) -> int:
        self.before("size_of", path)
        return self.inner.size_of(path)

    def rename(self, source: Path, target: Path) -> None:
        self.before("rename", source)
        self.inner.rename(source, target)
        self.after("rename", source)

    def unlink(self, path: Path) -> None:
        self.before("unlink", path)
        self.inner.unlink(path)
        self.after("unlink", path)

    def rmdir(self, path: Path) -> None:
        self.before("rmdir", path)
        self.inner.rmdir(path)
        self.after("rmdir", path)

    def sync_dir(self, path: Path) -> None:
        self.before("sync_dir", path)
        self.inner.sync_dir(path)
        self.after("sync_dir", path)

    def lock(self, path: Path, note: bytes = b"") -> Lock | None:
        self.before("lock", path)
        return self.inner.lock(path, note)

    def free_bytes(self, path: Path) -> int:
        return self.inner.free_bytes(path)

    def kind(self, path: Path) -> str:
        return self.inner.kind(path)
