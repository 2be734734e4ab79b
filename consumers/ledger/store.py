"""Folders of ledgers: who holds which, whose state is in them, and what becomes of those that nobody holds."""

import contextlib
import errno
import json
import secrets
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import google_crc32c
import structlog

from consumers.entry import LedgerDamagedError, LedgerFormatError
from consumers.ledger.partition import PartitionLedger, Sizes
from consumers.ledger.reading import lost_is_damage
from ingest.runtime.errors import UsageError
from ingest.runtime.files import FileSystem, Lock

FORMAT = 1
LOCK_WAIT_S = 5.0
"""How long a folder that somebody else holds is waited for: about what a process that lost a partition needs."""

SPREAD = 64
"""Generations of the last partition are shorter by one in so many; as few are alive as if they were not."""

_LOCK_POLL_S = 0.05
_LOCK = "lock"
_MANIFEST = "manifest.json"
_UNFINISHED_MANIFEST = "manifest.json.tmp"

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Whose state it is.

    Attributes:
        group: consumer group of the assembler.
        topic: reports topic.
        partitions: how many it has.
        cluster: id of the Kafka cluster, "" if unknown.
    """

    group: str
    topic: str
    partitions: int
    cluster: str = ""


class Store:
    """Implements `consumers.engine.protocols.LedgerStore` under one folder, for one process."""

    def __init__(
        self,
        root: Path,
        fs: FileSystem,
        identity: Identity,
        sizes: Sizes,
        *,
        lock_wait_s: float = LOCK_WAIT_S,
        worker: Executor | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Nothing is made or locked before `open`.

        Args:
            root: the state folder; a partition has `<group>/<topic>/<partition>` under it.
            fs: where. Files are mapped by their path as well.
            identity: whose state it is.
            sizes: of the files.
            lock_wait_s: most that a held folder is waited for.
            worker: where runs are sealed and merged, one thread of its own if None.
            monotonic: clock of the wait, seconds.
            sleep: how to wait.
        """
        self._fs = fs
        self._folder = root / _name_of(identity.group) / _name_of(identity.topic)
        self._identity = identity
        self._sizes = sizes
        self._lock_wait_s = lock_wait_s
        self._worker = worker or ThreadPoolExecutor(1, "ledger-runs")
        self._monotonic = monotonic
        self._sleep = sleep

    def open(self, partition: int) -> PartitionLedger:  # noqa: D102 - see LedgerStore
        self._make(self._folder)
        self._remove_unheld(partition)
        folder, lock = self._hold(partition)
        try:
            usable = self._check(folder, partition)
            ledger = PartitionLedger(self._fs, folder, self._worker, self._sizes_of(partition), lock.release)
        except BaseException:
            lock.release()
            raise
        try:
            if not usable:
                ledger.discard()
                self._write_manifest(folder, partition)
        except BaseException:
            ledger.close()
            raise
        return ledger

    def close(self) -> None:
        """End the thread that seals and merges; the ledgers are closed by whoever opened them."""
        self._worker.shutdown(wait=True, cancel_futures=True)

    def _sizes_of(self, partition: int) -> Sizes:
        """Of one partition: the higher its number, the shorter its generations, by a little.

        To begin a generation waits for the device, and partitions that began together would do so in the same second.
        """
        whole_ms = self._sizes.generation_ms
        return replace(
            self._sizes, generation_ms=whole_ms - whole_ms * partition // (SPREAD * self._identity.partitions)
        )

    def _hold(self, partition: int) -> tuple[Path, Lock]:
        """A folder for a partition and its lock: the common one, or one of our own if that stays held."""
        folder = self._folder / str(partition)
        until = self._monotonic() + self._lock_wait_s
        while True:
            self._make(folder)
            lock = self._fs.lock(folder / _LOCK)
            if lock is not None:
                return folder, lock
            if self._monotonic() >= until:
                break
            self._sleep(_LOCK_POLL_S)
        own = self._folder / f"{partition}.{secrets.token_hex(6)}"
        _log.warning(
            "the folder of a partition is held by another process, its state is restored elsewhere", own=str(own)
        )
        while True:
            self._make(own)
            # Whoever cleans up may have taken the folder for an abandoned one, between the two steps.
            with contextlib.suppress(FileNotFoundError):
                lock = self._fs.lock(own / _LOCK)
                if lock is not None:
                    return own, lock

    def _remove_unheld(self, partition: int) -> None:
        """Remove folders of their own that processes left behind."""
        for name in self._fs.listdir(self._folder):
            folder = self._folder / name
            if not name.startswith(f"{partition}.") or not self._fs.is_dir(folder):
                continue
            with contextlib.suppress(FileNotFoundError):  # another process removes the same one
                lock = self._fs.lock(folder / _LOCK)
                if lock is not None:
                    self._remove(folder, lock)

    def _remove(self, folder: Path, lock: Lock) -> None:
        try:
            for name in self._fs.listdir(folder):
                if name != _LOCK:
                    with contextlib.suppress(FileNotFoundError):  # an unfinished run, removed by the job that wrote it
                        self._fs.unlink(folder / name)
            self._fs.unlink(folder / _LOCK)
            self._fs.rmdir(folder)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:  # such a job has begun another one: the next open removes it
                raise
        finally:
            lock.release()

    def _check(self, folder: Path, partition: int) -> bool:
        """Whether the state in a folder is of this identity; False if it is to be discarded, or there is none.

        Raises:
            LedgerFormatError: it is of a newer format.
            UsageError: it was made for another number of partitions.
        """
        if _MANIFEST not in self._fs.listdir(folder):
            return False
        try:
            told = _decode_manifest(self._read_manifest(folder))
        except LedgerDamagedError as error:
            _log.warning(
                "a manifest cannot be used, the state is restored from the changelog",
                folder=str(folder),
                why=str(error),
            )
            return False
        version, partitions, cluster = told["format"], told["partitions"], told["cluster"]
        if version > FORMAT:
            raise LedgerFormatError(
                f"the state in {folder} has format {version}, this release reads up to {FORMAT}: "
                "go back to the newer release, or remove the folder to have it restored from the changelog"
            )
        if partitions != self._identity.partitions:
            raise UsageError(
                f"the state in {folder} was made for {partitions} partitions of {self._identity.topic}, which has "
                f"{self._identity.partitions} now: a message's memory would be in another partition than its reports; "
                "begin anew with another DLR_GROUP_ID, or give the topic its former number of partitions"
            )
        if cluster and self._identity.cluster and cluster != self._identity.cluster:
            _log.warning("the state is of another Kafka cluster and is discarded", folder=str(folder), cluster=cluster)
            return False
        if not cluster and self._identity.cluster:
            self._write_manifest(folder, partition)
        return True

    def _read_manifest(self, folder: Path) -> bytes:
        with lost_is_damage(_MANIFEST):
            file = self._fs.open(folder / _MANIFEST)
            try:
                return file.pread(file.size(), 0)
            finally:
                file.close()

    def _write_manifest(self, folder: Path, partition: int) -> None:
        text = encode_manifest({"format": FORMAT, **asdict(self._identity), "partition": partition})
        unfinished = folder / _UNFINISHED_MANIFEST
        if _UNFINISHED_MANIFEST in self._fs.listdir(folder):
            self._fs.unlink(unfinished)
        file = self._fs.create(unfinished)
        try:
            file.pwrite([text], 0)
            file.sync()
        finally:
            file.close()
        self._fs.rename(unfinished, folder / _MANIFEST)
        self._fs.sync_dir(folder)

    def _make(self, folder: Path) -> None:
        """Make a folder and those above it, for the owner only."""
        if self._fs.is_dir(folder):
            return
        if folder.parent != folder:
            self._make(folder.parent)
        with contextlib.suppress(FileExistsError):  # another process was faster
            self._fs.mkdir(folder)


def encode_manifest(told: dict[str, Any]) -> bytes:
    """A manifest, with the CRC32C of the rest as its last member: a flipped bit must not pass for a newer format."""
    return json.dumps(told | {"crc32c": _checksum(told)}, indent=1).encode()


def _decode_manifest(text: bytes) -> dict[str, Any]:
    """What a manifest says: at least `format`, `partitions` and `cluster`.

    Raises:
        LedgerDamagedError: it is not as it was written.
    """
    try:
        told: dict[str, Any] = json.loads(text)
        checksum = told.pop("crc32c")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise LedgerDamagedError(f"{_MANIFEST} is none") from error
    if checksum != _checksum(told) or not {"format", "partitions", "cluster"} <= told.keys():
        raise LedgerDamagedError(f"{_MANIFEST} is not what was written")
    return told


def _checksum(told: dict[str, Any]) -> int:
    value: int = google_crc32c.value(json.dumps(told, sort_keys=True).encode())
    return value


def _name_of(text: str) -> str:
    """A text as the name of a folder; different texts have different names."""
    name = quote(text, safe="")
    return name.replace(".", "%2E") if name.strip(".") == "" else name
