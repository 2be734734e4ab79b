# ruff: noqa: D102 - the methods are described by the protocols of ingest.runtime.files
"""The model disk with a copy of its files in a real folder, for code that also maps files by their path."""

import random
import shutil
from collections.abc import Sequence
from pathlib import Path

from ingest.runtime.files import File, Lock, RealFileSystem
from tests.fakes.files import ModelFileSystem


class MappedFile:
    """An open file of the model, and the same one in the real folder."""

    def __init__(self, model: File, real: File) -> None:
        self._model = model
        self._real = real

    def pread(self, size: int, offset: int) -> bytes:
        return self._model.pread(size, offset)

    def pwrite(self, parts: Sequence[bytes], offset: int) -> None:
        self._model.pwrite(parts, offset)
        self._real.pwrite(parts, offset)

    def allocate(self, size: int) -> None:
        self._model.allocate(size)
        self._real.truncate(max(size, self._real.size()))

    def truncate(self, size: int) -> None:
        self._model.truncate(size)
        self._real.truncate(size)

    def sync(self) -> None:
        self._model.sync()

    def size(self) -> int:
        return self._model.size()

    def close(self) -> None:
        self._real.close()


class MappedFileSystem:
    """A `ModelFileSystem` whose files under `root` can be mapped. What stands above `root` is on the device."""

    def __init__(self, root: Path) -> None:
        """An empty disk.

        Args:
            root: an empty real folder, absolute.
        """
        self._root = root
        self._model = ModelFileSystem()
        self._real = RealFileSystem()
        self._open: list[File] = []
        for folder in [*reversed(root.parents[:-1]), root]:
            self._model.mkdir(folder)
            self._model.sync_dir(folder.parent)

    def kill(self) -> None:
        """End every process: locks and open files are gone, what was written stays."""
        self._model.kill()
        self._close_all()

    def power_cut(self, chance: random.Random) -> None:
        """Forget what was not synced, as `chance` has it; every open file is dead."""
        self._model.power_cut(chance)
        self._close_all()
        for path in self._root.iterdir():
            shutil.rmtree(path)
        self._write_out(self._root)

    def sync_all(self) -> None:
        """What a device has some time after the last change."""
        for folder in self._folders(self._root):
            self._model.sync_dir(folder)
            for name in self._model.listdir(folder):
                if not self._model.is_dir(folder / name):
                    self._model.open(folder / name).sync()

    def create(self, path: Path) -> File:
        return self._opened(self._model.create(path), self._real.create(path))

    def open(self, path: Path, *, write: bool = False) -> File:
        return self._opened(self._model.open(path, write=write), self._real.open(path, write=write))

    def mkdir(self, path: Path) -> None:
        self._model.mkdir(path)
        self._real.mkdir(path)

    def listdir(self, path: Path) -> list[str]:
        return self._model.listdir(path)

    def is_dir(self, path: Path) -> bool:
        return self._model.is_dir(path)

    def size_of(self, path: Path) -> int:
        return self._model.size_of(path)

    def rename(self, source: Path, target: Path) -> None:
        self._model.rename(source, target)
        self._real.rename(source, target)

    def unlink(self, path: Path) -> None:
        self._model.unlink(path)
        self._real.unlink(path)

    def rmdir(self, path: Path) -> None:
        self._model.rmdir(path)
        self._real.rmdir(path)

    def sync_dir(self, path: Path) -> None:
        self._model.sync_dir(path)

    def lock(self, path: Path, note: bytes = b"") -> Lock | None:
        path.touch()
        return self._model.lock(path, note)

    def free_bytes(self, path: Path) -> int:
        return self._model.free_bytes(path)

    def kind(self, path: Path) -> str:
        return self._model.kind(path)

    def _opened(self, model: File, real: File) -> File:
        self._open.append(real)
        return MappedFile(model, real)

    def _close_all(self) -> None:
        for file in self._open:
            file.close()
        self._open.clear()

    def _folders(self, folder: Path) -> list[Path]:
        inside = [folder / name for name in self._model.listdir(folder) if self._model.is_dir(folder / name)]
        return [folder, *(one for path in inside for one in self._folders(path))]

    def _write_out(self, root: Path) -> None:
        for folder in self._folders(root):
            folder.mkdir(exist_ok=True)
            for name in self._model.listdir(folder):
                if not self._model.is_dir(folder / name):
                    (folder / name).write_bytes(self._model.open(folder / name).pread(1 << 30, 0))
