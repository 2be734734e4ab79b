"""The folders of a spool: their names, who holds them, what they may take together, and the quarantine beside them."""

import contextlib
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import orjson
import structlog

from ingest.runtime.files import FileSystem, Lock
from ingest.runtime.logfile import Damage
from ingest.spool.base import SpoolFormatError, SpoolFullError, VolatileSpoolError
from ingest.spool.cursor import is_cursor
from ingest.spool.salvage import FILLER, SalvagedFile

_log = structlog.get_logger(__name__)

QUARANTINE = "quarantine"
TORN = "-torn"
"""Ends the names of those files in quarantine that count as nothing."""

LOCK_NAME = "lock"

_NAME = re.compile(r"\d{13}-[0-9a-f]{8}")
_LOG_NAME = re.compile(r"(\d{20})-([0-9a-f]{8})\.v(\d+)\.log")
_FORMAT = 1

_BUDGET_LOCK = ".budget.lock"
_BUDGET_WAIT_S = 2.0
_BUDGET_POLL_S = 0.005

_VOLATILE = {"tmpfs", "ramfs", "devtmpfs"}
_NETWORK = {
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "lustre", "gpfs", "glusterfs", "beegfs", "afs", "ncpfs"),
    *("fuse.sshfs", "fuse.glusterfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.rclone", "fuse.ceph", "virtiofs"),
}


class Unsaved(NamedTuple):
    """A place in a log file that is still to be copied to quarantine.

    Attributes:
        place: where.
        counts: it counts as one report once it is there; else the pushes lost in it are counted by themselves.
        torn: most likely it is the end of an append that a crash cut short.
    """

    place: Damage
    counts: bool
    torn: bool = False


@dataclass(slots=True, eq=False)
class LogFile:
    """One log file of a folder, as far as it is known to be durable.

    Attributes:
        path: of the file.
        salt: of its checksums.
        first: every sequence in it is at least this.
        start: offset of the first push in it that was not settled when the folder was opened.
        end: offset after its last good frame.
        length: bytes it takes of the budget.
        pushes: pushes in it that are not settled, with `reports` in them and `body_bytes` of bodies.
        settled: highest position in it that was settled since the folder was opened.
        sealed: nothing is appended any more.
        known: places that are no frames and were dealt with when the folder was opened.
        unsaved: damaged places whose bytes are not yet in quarantine; the cursor waits for them.
        damaged: some of its pushes were counted as pending and do not come out of it.
    """

    path: Path
    salt: int
    first: int
    start: int = 0
    end: int = 0
    length: int = 0
    pushes: int = 0
    reports: int = 0
    body_bytes: int = 0
    settled: int = 0
    sealed: bool = False
    known: list[Damage] = field(default_factory=list)
    unsaved: list[Unsaved] = field(default_factory=list)
    damaged: bool = False


def log_name(first: int, salt: int) -> str:
    """Name of the log file whose first sequence is `first`. Names sort as the sequences do."""
    return f"{first:020d}-{salt:08x}.v{_FORMAT}.log"


def parse_log_name(path: Path) -> LogFile | None:
    """The log file of that name, None if it is none.

    Raises:
        SpoolFormatError: a newer version wrote it.
    """
    if (known := _LOG_NAME.fullmatch(path.name)) is None:
        return None
    if int(known[3]) > _FORMAT:
        raise SpoolFormatError(f"the spool file {path} was written by a newer version")
    return LogFile(path, salt=int(known[2], 16), first=int(known[1]))


@dataclass(frozen=True, slots=True)
class Folder:
    """One folder and the right to use it.

    Attributes:
        fs: where it is.
        root: the spool's root folder.
        path: of this folder, `root / name`.
        lock: kept as long as the folder is used.
    """

    fs: FileSystem
    root: Path
    path: Path
    lock: Lock

    @property
    def name(self) -> str:
        """Unique among the folders ever made under this root."""
        return self.path.name

    def save_damage(self, file: LogFile, damage: Damage, *, torn: bool = False) -> bool:
        """Copy damaged or torn bytes of a log file into quarantine, once.

        Returns:
            Whether it was news: after a restart the same place is found again.

        Raises:
            OSError: not saved.
        """
        name = f"{self.name}-{file.path.stem}-{damage.start}-{damage.end}{TORN if torn else ''}"
        if f"{name}.body" in _names(self.fs, self.root / QUARANTINE):
            return False
        value, note = self._read_damage(file, damage, "torn, nobody was promised them" if torn else "damaged")
        save_in_quarantine(self.fs, self.root, name, value, note)
        return True

    def _read_damage(self, file: LogFile, damage: Damage, what: str) -> tuple[bytes, str]:
        place = f"bytes {damage.start} to {damage.end} of a log file"
        try:
            opened = SalvagedFile(self.fs.open(file.path))
        except FileNotFoundError:
            return b"", f"{place} that somebody removed"
        try:
            value = opened.pread(damage.end - damage.start, damage.start)
        finally:
            opened.close()
        lost = f"; {opened.lost_bytes} bytes in and around them cannot be read and stand as {FILLER[0]:#x}"
        return value, f"{place}, {what}{lost if opened.lost_bytes else ''}"

    def remove(self) -> None:
        """Remove a folder of which nothing is needed any more, then let it go.

        Only a lock and cursors are removed with it. A folder that holds anything else stays as it is: what we did not
        write, or did not read, is not ours to delete.
        """
        try:
            names = self.fs.listdir(self.path)
            if foreign := [name for name in names if name != LOCK_NAME and not is_cursor(name)]:
                _log.warning("spool folder not removed, it holds other files", folder=self.name, files=foreign[:5])
                return
            # The lock goes last: whoever sees the folder until then sees it held.
            for name in sorted(names, key=LOCK_NAME.__eq__):
                self.fs.unlink(self.path / name)
            self.fs.rmdir(self.path)
            self.fs.sync_dir(self.root)
        finally:
            self.lock.release()


def kept_in_quarantine(fs: FileSystem, root: Path) -> list[Path]:
    """Files in quarantine with reports that are nowhere else, without torn tails, which were never answered."""
    folder = root / QUARANTINE
    bodies = [Path(name) for name in _names(fs, folder) if name.endswith(".body") and not name.startswith(".")]
    return [folder / body for body in sorted(bodies) if not body.stem.endswith(TORN)]


def save_in_quarantine(fs: FileSystem, root: Path, name: str, value: bytes, note: str) -> None:
    """Two durable files, `<name>.note` and `<name>.body`; the body's name appears when both are complete.

    Raises:
        OSError: not kept.
    """
    folder = root / QUARANTINE
    make_folders(fs, folder)
    partial = folder / f".{name}.partial"
    for path, data in ((folder / f"{name}.note", note.encode() + b"\n"), (folder / f"{name}.body", value)):
        with contextlib.suppress(FileNotFoundError):
            fs.unlink(partial)
        file = fs.create(partial)
        try:
            file.pwrite([data], 0)
            file.sync()
        finally:
            file.close()
        fs.rename(partial, path)
    fs.sync_dir(folder)


def make_folders(fs: FileSystem, path: Path) -> None:
    """Make a folder and those above it, durably; one that exists stays as it is."""
    if fs.is_dir(path):
        return
    if path.parent != path:
        make_folders(fs, path.parent)
    with contextlib.suppress(FileExistsError):
        fs.mkdir(path)
    fs.sync_dir(path.parent)


def check_device(fs: FileSystem, root: Path) -> None:
    """Refuse a file system that does not keep what was synced, or keeps it behind a network.

    Raises:
        VolatileSpoolError: it is one of those.
    """
    kind = fs.kind(root)
    if kind in _VOLATILE:
        raise VolatileSpoolError(f"the spool folder {root} is on {kind}, which forgets everything at a reboot")
    if kind in _NETWORK:
        raise VolatileSpoolError(f"the spool folder {root} is on a network file system ({kind})")


def folders(fs: FileSystem, root: Path) -> list[Path]:
    """The spool folders under a root, oldest first, whoever holds them. Other folders there are nobody's business."""
    return [root / name for name in _names(fs, root) if _NAME.fullmatch(name) and fs.is_dir(root / name)]


def hidden_folders(fs: FileSystem, root: Path) -> list[Path]:
    """Folders that were being made, or were left so by a crash."""
    hidden = [name for name in _names(fs, root) if name.startswith(".") and _NAME.fullmatch(name[1:])]
    return [root / name for name in hidden if fs.is_dir(root / name)]


def log_bytes(fs: FileSystem, folder: Path) -> int:
    """What the log files of a folder take, preallocated room included."""
    total = 0
    for name in _names(fs, folder):
        if _LOG_NAME.fullmatch(name):
            with contextlib.suppress(FileNotFoundError):  # its owner has just removed it
                total += fs.size_of(folder / name)
    return total


def lock_folder(fs: FileSystem, path: Path, note: bytes) -> Folder | None:
    """Take an existing folder, None if somebody holds it or it is gone."""
    try:
        lock = fs.lock(path / LOCK_NAME, note)
    except FileNotFoundError:
        return None
    return Folder(fs, path.parent, path, lock) if lock else None


def make_folder(fs: FileSystem, root: Path, now_ms: int, note: bytes) -> Folder:
    """Make a folder under a name that was never used before, and take it.

    Raises:
        OSError: no room for it, or the device fails.
    """
    name = f"{now_ms:013d}-{secrets.token_hex(4)}"
    # Under a hidden name until it is locked: a folder nobody holds is anybody's.
    hidden = root / f".{name}"
    fs.mkdir(hidden)
    try:
        lock = fs.lock(hidden / LOCK_NAME, note)
    except OSError:
        with contextlib.suppress(OSError):
            fs.rmdir(hidden)
        raise
    if lock is None:
        raise BlockingIOError(f"{hidden} was taken while it was made")
    try:
        fs.rename(hidden, root / name)
        fs.sync_dir(root)
    except BaseException:
        lock.release()
        raise
    return Folder(fs, root, root / name, lock)


def holder_note(now_ms: int, pid: int, host: str) -> bytes:
    """What stands in a lock file, for people."""
    return orjson.dumps({"host": host, "pid": pid, "since_ms": now_ms})


class Budget:
    """How much the log files of all folders under one root may take together.

    Counted is the length of every log file and every file in quarantine, preallocated room included. A file is made
    under a lock that all processes share, after measuring: so they stay within the limit together. A process that is
    stopped while it holds the lock is waited for two seconds, then the limit may be passed by one file.
    """

    def __init__(self, fs: FileSystem, root: Path, max_bytes: int) -> None:
        self._fs = fs
        self._root = root
        self.max_bytes = max_bytes

    def used_bytes(self) -> int:
        """What is taken now."""
        total = sum(log_bytes(self._fs, folder) for folder in folders(self._fs, self._root))
        quarantine = self._root / QUARANTINE
        for name in _names(self._fs, quarantine):
            with contextlib.suppress(FileNotFoundError):  # a person has just removed it
                total += self._fs.size_of(quarantine / name)
        return total

    @contextlib.contextmanager
    def claim(self, wanted: int, least: int) -> Iterator[int]:
        """Room for one file that is made inside the `with`: `wanted` bytes, or fewer but at least `least`.

        Raises:
            SpoolFullError: not even `least` is left.
        """
        lock = self._lock()
        try:
            granted = min(wanted, self.max_bytes - self.used_bytes())
            if granted < least:
                raise SpoolFullError(f"the spool folder holds its {self.max_bytes} bytes")
            yield granted
        finally:
            if lock is not None:
                lock.release()

    def _lock(self) -> Lock | None:
        give_up = time.monotonic() + _BUDGET_WAIT_S
        while (lock := self._fs.lock(self._root / _BUDGET_LOCK)) is None and time.monotonic() < give_up:
            time.sleep(_BUDGET_POLL_S)
        return lock


def _names(fs: FileSystem, folder: Path) -> list[str]:
    try:
        return fs.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
