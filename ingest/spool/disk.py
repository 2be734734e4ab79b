"""The spool on local disk: one folder per process, one writer thread, group commit.

The writer thread takes everything that waits, writes it at once, syncs once, and answers all of it; meanwhile the next
group gathers. So a group is as large as the load makes it, and an idle spool answers after a single sync.
"""

import asyncio
import contextlib
import queue
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import structlog

from ingest.contract.push import Push
from ingest.runtime.clock import Clock
from ingest.runtime.files import FileSystem
from ingest.spool.accounts import Accounts
from ingest.spool.acquire import Pace, in_thread, take_folder, take_free_folders
from ingest.spool.backlog import DiskBacklog
from ingest.spool.base import PUSH_OVERHEAD_BYTES, SpoolBrokenError, Spooled, SpoolFullError
from ingest.spool.folder import Budget, Folder
from ingest.spool.options import BacklogLimits, SpoolOptions
from ingest.spool.outlook import Outlook
from ingest.spool.recovery import Recovered
from ingest.spool.writer import GroupWriter, Outcome

__all__ = ["BacklogLimits", "DiskSpool", "SpoolOptions", "adopt_each", "adopt_free", "open_spool"]

_log = structlog.get_logger(__name__)

_SAMPLE_S = 5.0


class _Waiting:
    """A push on its way to the device, and who waits for it."""

    __slots__ = ("future", "push", "size")

    def __init__(self, push: Push, future: asyncio.Future[None], size: int) -> None:
        self.push = push
        self.future = future
        self.size = size


def _give_up(future: asyncio.Future[None]) -> None:
    """The push may still be kept; its sender sends it again, and it comes as a repeat."""
    if not future.done():
        future.set_exception(SpoolBrokenError("the disk did not answer in time"))


class _Signal:
    """Something else that the writer thread is told."""


_STOP = _Signal()
_ROOM = _Signal()


class DiskSpool(DiskBacklog):
    """One folder of the spool, both sides of it (`ingest.spool.base.Spool` and `Backlog`). Made by `open_spool`."""

    def __init__(
        self,
        folder: Folder,
        recovered: Recovered,
        options: SpoolOptions,
        *,
        accounts: Accounts,
        clock: Clock,
    ) -> None:
        super().__init__(folder, recovered, accounts=accounts, clock=clock, limits=options.backlog)
        self._options = options
        self._budget = Budget(folder.fs, folder.root, options.max_bytes)
        self._writer = GroupWriter(
            folder,
            self._budget,
            next_sequence=recovered.next_sequence,
            good_ends=recovered.good_ends,
            file_bytes=options.log_file_bytes,
            retry_s=options.retry_s,
        )
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[_Waiting | _Signal] = queue.SimpleQueue()
        self._waiting_bytes = 0
        self._no_room: Exception | None = None
        self._busy_since: float | None = None
        self._stopping = False
        self._closing = False
        self._defect: Exception | None = None
        self._stopped: asyncio.Future[None] = self._loop.create_future()
        self._first_room: asyncio.Future[None] = self._loop.create_future()
        self._outlook = Outlook(options.max_bytes)
        self._sampler: asyncio.TimerHandle | None = None
        self._sampling: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, name="spool-writer", daemon=True)

    async def start(self) -> None:
        """Start the writer thread; returns once it knows whether there is room."""
        self._thread.start()
        self._queue.put(_ROOM)
        await self._first_room
        await self._sample()

    async def append(self, push: Push) -> None:
        """See `ingest.spool.base.Spool.append`."""
        if self._stopping:
            raise SpoolBrokenError("the spool is closed")
        if self._hangs():
            raise SpoolBrokenError("the disk does not answer")
        size = PUSH_OVERHEAD_BYTES + len(push.body)
        if self._waiting_bytes and self._waiting_bytes + size > self._options.waiting_max_bytes:
            raise SpoolFullError("too many pushes wait for the disk")
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiting_bytes += size
        self._queue.put(_Waiting(push, future, size))
        patience = self._loop.call_later(self._options.answer_max_s, _give_up, future)
        try:
            await future
        finally:
            patience.cancel()

    def has_room(self) -> bool:
        """See `ingest.spool.base.Spool.has_room`."""
        takes = not self._stopping and not self._hangs()
        return takes and self._no_room is None and self._waiting_bytes < self._options.waiting_max_bytes

    async def writer_ended(self) -> None:
        """Return once the writer has ended after a `close`.

        Raises:
            SpoolBrokenError: it ended by itself, of a defect: nothing will be taken here any more, what is kept is.
        """
        await asyncio.shield(self._stopped)
        if self._defect is not None:
            raise SpoolBrokenError("the spool's writer ended") from self._defect

    @property
    def waiting_bytes(self) -> int:
        """Pushes that wait for their sync, `PUSH_OVERHEAD_BYTES` each besides the body."""
        return self._waiting_bytes

    @property
    def seconds_until_full(self) -> float:
        """How long the room lasts if the backlog goes on growing as in the last minute; infinite if it does not.

        0 while not even the smallest push has room.
        """
        if isinstance(self._no_room, SpoolFullError):
            return 0.0
        return self._outlook.seconds_until_full

    @property
    def writable(self) -> bool:
        """Whether pushes can still be added here."""
        return True

    async def close(self) -> None:
        """Take nothing more, sync what waits, make what is settled durable and let the folder go.

        What is not settled stays for whoever opens the folder next. Calling it twice is harmless.
        """
        if not self._closing:
            self._stopping = self._closing = True
            if self._sampler is not None:
                self._sampler.cancel()
            if self._sampling is not None:
                await self._sampling
            self._queue.put(_STOP)
        await asyncio.shield(self._stopped)
        self._thread.join()
        await super().close()

    def _run(self) -> None:
        """The writer thread."""
        waiting: list[_Waiting] = []
        try:
            stop = False
            while not stop:
                waiting, stop = self._gather()
                outcome = Outcome()
                self._busy_since = self._clock.monotonic()
                self._writer.commit([each.push for each in waiting], outcome)
                self._make_room(outcome, stop=stop)
                self._busy_since = None
                self._loop.call_soon_threadsafe(self._apply, waiting, outcome, stop)
        except Exception as error:  # noqa: BLE001 - a defect of ours: whoever waits must be told, whatever it was
            _log.exception("spool writer ended")
            with contextlib.suppress(RuntimeError):  # the loop has ended before: nobody waits
                self._loop.call_soon_threadsafe(self._fail_all, waiting, error)
        finally:
            self._writer.close()

    def _hangs(self) -> bool:
        since = self._busy_since
        return since is not None and self._clock.monotonic() - since > self._options.answer_max_s

    def _gather(self) -> tuple[list[_Waiting], bool]:
        """Everything that waits, at least one thing unless room is due to be asked for, and whether to stop after."""
        waiting: list[_Waiting] = []
        size = 0
        timeout_s = None if self._no_room is None else self._options.retry_s
        try:
            item = self._queue.get(timeout=timeout_s)
            while True:
                if item is _STOP:
                    return waiting, True
                if isinstance(item, _Waiting):
                    waiting.append(item)
                    size += item.size
                else:
                    self._writer.ask_again()
                if size >= self._options.group_max_bytes:
                    break
                item = self._queue.get_nowait()
        except queue.Empty:
            pass
        return waiting, False

    def _make_room(self, outcome: Outcome, *, stop: bool) -> None:
        if stop:
            self._writer.finish(outcome)
            return
        self._no_room = self._writer.make_room(outcome)
        refused = self._no_room is not None or any(isinstance(part.error, SpoolFullError) for part in outcome.parts)
        if refused and self._writer.file_kept and self._durable >= self._writer.last_kept:
            # All that the present file holds is settled: ending it lets its room be had again.
            self._writer.seal(outcome)

    def _apply(self, waiting: list[_Waiting], outcome: Outcome, stop: bool) -> None:  # noqa: FBT001 - a callback
        """Take over what the writer did, in its order, and answer."""
        self._files.extend(outcome.opened)
        at = 0
        for part in outcome.parts:
            some = waiting[at : at + part.count]
            at += part.count
            if part.file is None:
                for each in some:
                    self._refuse(each, part.error or SpoolBrokenError("not kept"))
                continue
            part.file.end = part.end
            for offset, each in enumerate(some):
                self._waiting_bytes -= each.size
                self.accounts.received += each.push.reports
                self._admit(Spooled(part.first_position + offset, each.push), part.file, part.starts[offset])
                if not each.future.done():  # its waiter may be gone; the push is kept all the same
                    each.future.set_result(None)
        for file in outcome.sealed:
            file.sealed = True
            file.length = file.end
        if outcome.sealed:
            self._tidy_later(self._limits.settle_delay_s)
        if not self._first_room.done():
            self._first_room.set_result(None)
        if stop:
            self._stopped.set_result(None)

    def _refuse(self, each: _Waiting, error: Exception) -> None:
        self._waiting_bytes -= each.size
        if not each.future.done():
            each.future.set_exception(error)

    def _fail_all(self, waiting: list[_Waiting], defect: Exception) -> None:
        self._stopping = True
        self._defect = defect
        error = SpoolBrokenError("the spool's writer ended")
        while not self._queue.empty():
            item = self._queue.get_nowait()
            if isinstance(item, _Waiting):
                waiting.append(item)
        for each in waiting:
            self._refuse(each, error)
        for future in (self._first_room, self._stopped):
            if not future.done():
                future.set_result(None)

    def _after_delete(self) -> None:
        if not self._stopping:
            self._queue.put(_ROOM)

    async def _sample(self) -> None:
        left_bytes = None
        try:
            left_bytes = await self._in_keeper(self._measure)
        except OSError as error:
            _log.warning("spool folder cannot be measured", folder=self.name, error=str(error))
        self._outlook.add(self._clock.monotonic(), self.pending_bytes, left_bytes)
        if not self._stopping:
            self._sampler = self._loop.call_later(_SAMPLE_S, self._start_sample)

    def _start_sample(self) -> None:
        self._sampling = asyncio.create_task(self._sample(), name=f"spool-sample-{self.name}")

    def _measure(self) -> int:
        left = self._options.max_bytes - self._budget.used_bytes()
        return min(left, self._folder.fs.free_bytes(self._folder.root)) + self._writer.room_bytes


async def open_spool(
    root: Path, options: SpoolOptions, *, fs: FileSystem, clock: Clock, accounts: Accounts
) -> DiskSpool:
    """Take a small folder under `root` that nobody holds, or make one, and start.

    It takes about as long as the disk needs for a few syncs: what other folders hold is left to `adopt_each`.

    Raises:
        VolatileSpoolError: the file system does not keep the promise and is not allowed to.
        OSError: the root cannot be made or read.
    """
    pace = Pace()
    volatile, most = options.allow_volatile, options.reuse_max_bytes
    taken = await in_thread(
        lambda: take_folder(root, fs, clock, allow_volatile=volatile, reuse_max_bytes=most, step=pace.step), pace
    )
    spool = DiskSpool(*taken, options, accounts=accounts, clock=clock)
    await spool.start()
    return spool


async def adopt_each(
    root: Path, *, fs: FileSystem, clock: Clock, accounts: Accounts, limits: BacklogLimits | None = None
) -> AsyncIterator[DiskBacklog]:
    """Take the folders under `root` that nobody holds one after the other, as read-only backlogs, oldest first.

    The next one is looked into when it is asked for, so whoever serves and closes each first holds one at a time. Each
    comes at most once. Folders without anything pending are removed. One that cannot be read is logged and left alone.

    Raises:
        OSError: the root cannot be read.
    """
    pace = Pace()
    folders = take_free_folders(root, fs, clock, pace.step)
    while taken := await in_thread(lambda: next(folders, None), pace):
        backlog = DiskBacklog(*taken, accounts=accounts, clock=clock, limits=limits or BacklogLimits())
        if backlog.pending_pushes:
            yield backlog
        else:
            await backlog.close()


async def adopt_free(
    root: Path, *, fs: FileSystem, clock: Clock, accounts: Accounts, limits: BacklogLimits | None = None
) -> list[DiskBacklog]:
    """All that `adopt_each` gives, held at once."""
    adopted: list[DiskBacklog] = []
    try:
        async for backlog in adopt_each(root, fs=fs, clock=clock, accounts=accounts, limits=limits):
            adopted.append(backlog)  # noqa: PERF401 - what is held must be known if the next one fails
    except BaseException:
        for backlog in adopted:
            await backlog.close()
        raise
    return adopted
