"""Coming to hold folders: who takes which, and what is done with those that nobody holds."""

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

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
    log_bytes,
    make_folder,
    make_folders,
)
from ingest.spool.recovery import Recovered, recover

_log = structlog.get_logger(__name__)

Taken = tuple[Folder, Recovered]
T = TypeVar("T", Taken, Taken | None)

_NEW_FOLDER_TRIES = 5

_REST_S = 0.0002
"""How long a recovery rests between its steps, so that the event loop's thread gets its turn."""

_UNREADABLE = (OSError, SpoolFormatError, ValueError)
"""What one folder may come up with that says nothing about the others."""


class AbandonedError(Exception):
    """Nobody waits for this recovery any more."""


class Pace:
    """Lets a recovery in a thread of its own give way to the event loop, and end when nobody waits for it any more."""

    def __init__(self) -> None:
        self._abandoned = threading.Event()

    def abandon(self) -> None:
        """End the recovery at its next step."""
        self._abandoned.set()

    def step(self) -> None:
        """Give way.

        Raises:
            AbandonedError: it was abandoned.
        """
        if self._abandoned.is_set():
            raise AbandonedError
        time.sleep(_REST_S)


async def in_thread(take: Callable[[], T], pace: Pace) -> T:
    """Take a folder in a thread. If nobody waits for it any more, the thread ends soon and the folder is free again.

    Args:
        take: gives a folder with what it holds, or None.
        pace: that `take` keeps to.
    """
    taking = asyncio.ensure_future(asyncio.to_thread(take))
    try:
        return await asyncio.shield(taking)
    except asyncio.CancelledError:
        pace.abandon()
        taking.add_done_callback(_let_go)
        raise


def _let_go(taking: asyncio.Task[T]) -> None:
    if taking.exception() is None and (taken := taking.result()):
        taken[0].lock.release()


def _note(clock: Clock) -> bytes:
    return holder_note(clock.wall_ms(), os.getpid(), socket.gethostname())


def take_folder(
    root: Path, fs: FileSystem, clock: Clock, *, allow_volatile: bool, reuse_max_bytes: int, step: Callable[[], None]
) -> Taken:
    """A folder to write into: the first under `root` that nobody holds and that is read at once, or a new one.

    One with more than `reuse_max_bytes` in log files is left to whoever adopts it, and so is one that cannot be read.

    Raises:
        VolatileSpoolError: the file system does not keep the promise and is not allowed to.
        OSError: the root cannot be made or read.
    """
    make_folders(fs, root)
    if not allow_volatile:
        check_device(fs, root)
    for path in folders(fs, root):
        if taken := _take_readable(path, fs, clock, step, most_bytes=reuse_max_bytes):
            return taken
    return _recover(_make(root, fs, clock), step)


def _make(root: Path, fs: FileSystem, clock: Clock) -> Folder:
    for _ in range(_NEW_FOLDER_TRIES):
        try:
            return make_folder(fs, root, clock.wall_ms(), _note(clock))
        except (FileNotFoundError, BlockingIOError):  # swept up by another process before it was locked
            continue
    raise BlockingIOError(f"no spool folder can be made under {root}")


def _recover(folder: Folder, step: Callable[[], None]) -> Taken:
    try:
        return folder, recover(folder, step)
    except BaseException:
        folder.lock.release()
        raise


def _take_readable(
    path: Path, fs: FileSystem, clock: Clock, step: Callable[[], None], *, most_bytes: int | None = None
) -> Taken | None:
    """A folder that nobody holds and what it holds; one that cannot be read is logged and left alone."""
    try:
        if most_bytes is not None and log_bytes(fs, path) > most_bytes:
            return None
        folder = lock_folder(fs, path, _note(clock))
        return _recover(folder, step) if folder else None
    except _UNREADABLE as error:
        _log.error("spool folder cannot be read, left as it is", folder=path.name, error=str(error))
        return None


def take_free_folders(root: Path, fs: FileSystem, clock: Clock, step: Callable[[], None]) -> Iterator[Taken]:
    """Every folder under `root` that nobody holds, oldest first, each taken when it is asked for.

    One that cannot be read is logged and left alone.

    Raises:
        OSError: the root cannot be read.
    """
    for path in hidden_folders(fs, root):
        # Made by a process that ended before it could use it.
        try:
            if folder := lock_folder(fs, path, _note(clock)):
                folder.remove()
        except OSError as error:
            _log.error("half-made spool folder cannot be removed", folder=path.name, error=str(error))
    for path in folders(fs, root):
        if taken := _take_readable(path, fs, clock, step):
            yield taken
