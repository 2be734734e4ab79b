"""The reading side of a folder: what is pending, handing it out in order, moving the cursor, deleting what is done.

All state belongs to the event loop's thread; the calls that wait for the device run in one thread of their own.
"""

import asyncio
import contextlib
import secrets
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import structlog

from ingest.contract.push import Push
from ingest.runtime.clock import Clock
from ingest.spool.accounts import Accounts
from ingest.spool.base import PUSH_OVERHEAD_BYTES, PUSHES_PER_TAKE, Spooled
from ingest.spool.folder import Folder, LogFile, Unsaved, save_in_quarantine
from ingest.spool.options import BacklogLimits
from ingest.spool.reading import Place, read_piece
from ingest.spool.recovery import Recovered

_log = structlog.get_logger(__name__)

T = TypeVar("T")


def _weight(push: Push) -> int:
    """What a push takes in memory."""
    return PUSH_OVERHEAD_BYTES + len(push.body)


class DiskBacklog:
    """The pushes of one folder that are not settled, for one reader (`ingest.spool.base.Backlog`).

    Without a writer (an adopted folder) it is read only: `take` ends with an empty list, and `close` removes the folder
    once everything in it is settled.

    Attributes:
        name: of the folder.
        accounts: of this process; whoever settles adds what became of the reports in the same step.
    """

    def __init__(
        self, folder: Folder, recovered: Recovered, *, accounts: Accounts, clock: Clock, limits: BacklogLimits
    ) -> None:
        self.name = folder.name
        self._folder = folder
        self.accounts = accounts
        self._clock = clock
        self._limits = limits
        self._cursor = recovered.cursor
        self._files = recovered.files
        self._settled = recovered.cursor.position
        self._durable = -1  # what this process has moved the cursor to; what it only read may not be on the device
        self._in_flight: deque[tuple[Spooled, LogFile]] = deque()
        self._ready: deque[tuple[Spooled, LogFile]] = deque()
        self._ready_bytes = 0
        self._pushes = sum(file.pushes for file in self._files)
        self._reports = sum(file.reports for file in self._files)
        self._bytes = sum(file.body_bytes for file in self._files)
        self._oldest_hint = recovered.oldest_ms
        self._place = Place(self._files[0]) if self._pushes else None
        self._doomed = deque(recovered.leftovers)
        self._news = asyncio.Event()
        self._closed = False
        self._keeper = ThreadPoolExecutor(1, thread_name_prefix="spool-keeper")
        self._moving = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self.accounts.attach(self)
        self._count_damage(recovered.damaged)
        self._tidy_later(self._limits.settle_delay_s)

    @property
    def pending_reports(self) -> int:
        """Reports that are durable here and not settled."""
        return self._reports

    @property
    def pending_pushes(self) -> int:
        """Those pushes."""
        return self._pushes

    @property
    def pending_bytes(self) -> int:
        """Bytes of the bodies of those."""
        return self._bytes

    @property
    def oldest_ms(self) -> int | None:
        """When the oldest push that is not settled was received, epoch milliseconds; None if there is none.

        While everything known in memory is settled and the next push is still to be read from a file, it is the time
        of the push before that one.
        """
        if not self._pushes:
            return None
        for known in (self._in_flight, self._ready):
            if known:
                return known[0][0].push.received_ms
        return self._oldest_hint

    @property
    def file_bytes(self) -> int:
        """What the log files of this folder take on the device, preallocated room included."""
        return sum(file.length for file in self._files)

    @property
    def writable(self) -> bool:
        """Whether pushes can still be added here."""
        return False

    async def take(self, max_bytes: int) -> list[Spooled]:
        """See `ingest.spool.base.Backlog.take`."""
        while not self._ready:
            if self._closed:
                return []
            if self._place is not None:
                await self._read_on(self._place)
            elif not self.writable:
                return []
            else:
                self._news.clear()
                await self._news.wait()
        taken: list[Spooled] = []
        size = 0
        while self._ready and not self._closed and size < max_bytes and len(taken) < PUSHES_PER_TAKE:
            item = self._ready.popleft()
            self._in_flight.append(item)
            taken.append(item[0])
            size += len(item[0].push.body)
            self._ready_bytes -= _weight(item[0].push)
        return taken

    def settle(self, position: int) -> None:
        """See `ingest.spool.base.Backlog.settle`."""
        if position <= self._settled:
            return
        for known in (self._in_flight, self._ready):
            while known and known[0][0].position <= position:
                spooled, file = known.popleft()
                self._settled = spooled.position
                self._oldest_hint = spooled.push.received_ms
                if known is self._ready:
                    self._ready_bytes -= _weight(spooled.push)
                file.settled = spooled.position
                self._forget(file, 1, spooled.push.reports, len(spooled.push.body))
        self._tidy_later(self._limits.settle_delay_s)

    def rewind(self) -> None:
        """See `ingest.spool.base.Backlog.rewind`."""
        self._ready_bytes += sum(_weight(spooled.push) for spooled, _ in self._in_flight)
        self._ready.extendleft(reversed(self._in_flight))
        self._in_flight.clear()
        self._news.set()

    async def quarantine(self, value: bytes, note: str) -> None:
        """See `ingest.spool.base.Backlog.quarantine`."""
        name = f"{self._clock.wall_ms():013d}-{self.name}-{secrets.token_hex(4)}"
        await self._in_keeper(lambda: save_in_quarantine(self._folder.fs, self._folder.root, name, value, note))

    async def tidy(self) -> None:
        """Move the cursor to what is settled and delete the files before it, now.

        Raises:
            OSError: not all of it could be done; calling it again goes on.
        """
        async with self._moving:
            settled = self._settled
            # The cursor says that all before it is dealt with: damaged bytes are in quarantine before it passes them.
            failure = await self._save_damage()
            settled = self._passable(settled)
            if settled != self._durable:
                await self._in_keeper(lambda: self._cursor.move(settled))
                self._durable = settled
            while self._files and self._is_done(self._files[0]):
                self._doomed.append(self._files.popleft())
            if self._doomed:
                try:
                    await self._in_keeper(self._delete_doomed)
                finally:
                    self._after_delete()
            if failure is not None:
                raise failure

    async def close(self) -> None:
        """Stop handing out, make what is settled durable, and let the folder go. Calling it twice is harmless."""
        if self._closed:
            return
        self._closed = True
        self._news.set()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        try:
            if self._task is not None:
                await self._task
            await self.tidy()
        except OSError as error:
            _log.warning("spool cursor not moved at close, repeats will follow", folder=self.name, error=str(error))
        finally:
            self.accounts.detach(self)
            try:
                await self._in_keeper(self._let_go)
            finally:
                self._keeper.shutdown()

    def _let_go(self) -> None:
        self._cursor.close()
        if not self.writable and not self._files and not self._doomed:
            try:
                self._folder.remove()
            except OSError as error:
                _log.warning("drained spool folder not removed", folder=self.name, error=str(error))
        self._folder.lock.release()

    def _admit(self, spooled: Spooled, file: LogFile, start: int) -> None:
        """A push became durable in `file` at offset `start`."""
        size = len(spooled.push.body)
        file.pushes += 1
        file.reports += spooled.push.reports
        file.body_bytes += size
        self._pushes += 1
        self._reports += spooled.push.reports
        self._bytes += size
        if self._place is not None:
            return
        if self._ready and self._ready_bytes + _weight(spooled.push) > self._limits.cache_bytes:
            self._place = Place(file, start, spooled.position - 1)
            return
        self._ready.append((spooled, file))
        self._ready_bytes += _weight(spooled.push)
        self._news.set()

    def _forget(self, file: LogFile, pushes: int, reports: int, body_bytes: int) -> None:
        file.pushes -= pushes
        file.reports -= reports
        file.body_bytes -= body_bytes
        self._pushes -= pushes
        self._reports -= reports
        self._bytes -= body_bytes

    def _count_damage(self, places: int) -> None:
        """Damaged places of which nobody knows how many reports they held count as one each."""
        self.accounts.recovered += places
        self.accounts.quarantined += places

    async def _read_on(self, place: Place) -> None:
        """Bring the next piece of the files into memory."""
        file, end = place.file, place.file.end
        piece = await self._in_keeper(lambda: read_piece(self._folder, file, place, end, self._limits.read_bytes))
        for spooled in piece.items:
            if spooled.position > self._settled:
                self._ready.append((spooled, file))
                self._ready_bytes += _weight(spooled.push)
        for damage in piece.damaged:
            if damage not in file.known:
                file.unsaved.append(Unsaved(damage, counts=False))
                file.damaged = True
                self._tidy_later(self._limits.settle_delay_s)
        place.offset, place.after = piece.offset, piece.after
        if place.offset < file.end:
            return
        at = self._files.index(file)
        if file.damaged:
            self._write_off(file)
        if at + 1 < len(self._files):
            following = self._files[at + 1]
            self._place = Place(following)
        else:
            self._place = None  # caught up: from here on the memory goes on

    def _write_off(self, file: LogFile) -> None:
        """Pushes that were counted in a file and did not come out of it are in quarantine with its damaged bytes."""
        held = [spooled.push for known in (self._in_flight, self._ready) for spooled, of in known if of is file]
        pushes, reports = file.pushes - len(held), file.reports - sum(push.reports for push in held)
        if pushes:
            self._forget(file, pushes, reports, file.body_bytes - sum(len(push.body) for push in held))
            self._tidy_later(self._limits.settle_delay_s)
            self.accounts.quarantined += reports
            _log.error("spooled pushes lost to damage", folder=self.name, file=file.path.name, pushes=pushes)

    async def _save_damage(self) -> OSError | None:
        """Copy what is damaged to quarantine, as far as it can be; says why not all of it could be."""
        for file in list(self._files):
            while file.unsaved:
                unsaved = file.unsaved[0]
                try:
                    news = await self._in_keeper(
                        partial(self._folder.save_damage, file, unsaved.place, torn=unsaved.torn)
                    )
                except OSError as error:
                    return error
                del file.unsaved[0]
                self._count_damage(int(news and unsaved.counts))
        return None

    def _passable(self, position: int) -> int:
        """How far the cursor may move towards a position: not past damage that is not in quarantine yet."""
        for file in self._files:
            if file.unsaved:
                return min(position, max(file.first - 1, self._cursor.position))
        return position

    def _is_done(self, file: LogFile) -> bool:
        place = self._place
        idle = place is None or place.file is not file
        return file.sealed and not file.pushes and not file.unsaved and file.settled <= self._durable and idle

    def _delete_doomed(self) -> None:
        """Remove the log files that hold nothing any more."""
        fs = self._folder.fs
        removed = False
        while self._doomed:
            with contextlib.suppress(FileNotFoundError):  # somebody else has removed it
                fs.unlink(self._doomed[0].path)
            self._doomed.popleft()
            removed = True
        if removed:
            fs.sync_dir(self._folder.path)

    def _after_delete(self) -> None:
        """For a writer that waits for room."""

    def _tidy_later(self, delay_s: float) -> None:
        if self._timer is None and not self._closed:
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._start_tidy)

    def _start_tidy(self) -> None:
        self._timer = None
        if self._task is not None and not self._task.done():
            self._tidy_later(self._limits.settle_delay_s)
            return
        self._task = asyncio.create_task(self._tidy_or_retry(), name=f"spool-tidy-{self.name}")

    async def _tidy_or_retry(self) -> None:
        try:
            await self.tidy()
        except OSError as error:
            _log.warning("spool cursor or deletion failed, trying again", folder=self.name, error=str(error))
            self._tidy_later(self._limits.retry_s)

    async def _in_keeper(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._keeper, call)
