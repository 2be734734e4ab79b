"""Coming to hold folders: who takes which, and what is done with those that nobody holds."""

import os
import socket
from pathlib import Path

import structlog

from ingest.runtime.clock import Clock
from ingest.runtime.files import FileSystem
from ingest.spool.base import SpoolFormatError
from ingest.spool.folder import (
    Folder,
    check_device,
    folders,
    hidden_folders,
    holder_note,
    lock_folder,
    make_folder,
    make_folders,
)
from ingest.spool.recovery import Recovered, recover

_log = structlog.get_logger(__name__)

_NEW_FOLDER_TRIES = 5


def _note(clock: Clock) -> bytes:
    return holder_note(clock.wall_ms(), os.getpid(), socket.gethostname())


def take_folder(root: Path, fs: FileSystem, clock: Clock, *, allow_volatile: bool) -> tuple[Folder, Recovered]:
    """The first folder under `root` that nobody holds, or a new one, and what it holds.

    Raises:
        VolatileSpoolError: the file system does not keep the promise and is not allowed to.
        SpoolFormatError: a newer version wrote the folder.
        OSError: the root cannot be made or read.
    """
    make_folders(fs, root)
    if not allow_volatile:
        check_device(fs, root)
    for path in folders(fs, root):
        if folder := lock_folder(fs, path, _note(clock)):
            return _recover(folder)
    return _recover(_make(root, fs, clock))


def _make(root: Path, fs: FileSystem, clock: Clock) -> Folder:
    for _ in range(_NEW_FOLDER_TRIES):
        try:
            return make_folder(fs, root, clock.wall_ms(), _note(clock))
        except (FileNotFoundError, BlockingIOError):  # swept up by another process before it was locked
            continue
    raise BlockingIOError(f"no spool folder can be made under {root}")


def _recover(folder: Folder) -> tuple[Folder, Recovered]:
    try:
        return folder, recover(folder)
    except BaseException:
        folder.lock.release()
        raise


def take_free_folders(root: Path, fs: FileSystem, clock: Clock) -> list[tuple[Folder, Recovered]]:
    """Every folder under `root` that nobody holds, oldest first; one that cannot be read is logged and left alone."""
    adopted = []
    for path in hidden_folders(fs, root):
        # Made by a process that ended before it could use it.
        if folder := lock_folder(fs, path, _note(clock)):
            folder.remove()
    for path in folders(fs, root):
        if folder := lock_folder(fs, path, _note(clock)):
            try:
                adopted.append(_recover(folder))
            except (OSError, SpoolFormatError) as error:
                _log.error("spool folder cannot be adopted", folder=path.name, error=str(error))
    return adopted
