"""The spool of a worker, whose disk may be away, full or slow when the worker starts."""

import asyncio
import errno
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import structlog

from ingest.contract.push import Push
from ingest.runtime.backoff import Backoff
from ingest.runtime.clock import Clock
from ingest.runtime.errors import UsageError
from ingest.spool.base import SpoolBrokenError, SpoolFormatError, VolatileSpoolError
from ingest.spool.disk import DiskSpool

log = structlog.get_logger(__name__)

REOPEN_FIRST_S: Final = 0.5
REOPEN_MOST_S: Final = 10.0
"""Bounds of the pause before the spool is opened again."""

_LASTING: Final = {errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}
"""What only an operator can mend. All else is the device's: full, read-only, gone, or out of reach for a while."""


class LateSpool:
    """Broken until its disk lets it be opened, then the disk's (`ingest.spool.base.Spool`).

    Args:
        open_disk: opens the spool on disk.
        folder: where, for people.
        clock: paces the tries.

    Attributes:
        disk: what was opened, None before.
        opened: set when there is one.
        tried: set once a try is over, or takes too long; from then on no try ends the worker.
    """

    def __init__(self, open_disk: Callable[[], Awaitable[DiskSpool]], *, folder: Path, clock: Clock) -> None:
        self._open_disk = open_disk
        self._folder = folder
        self._clock = clock
        self.disk: DiskSpool | None = None
        self.opened = asyncio.Event()
        self.tried = asyncio.Event()

    async def append(self, push: Push) -> None:
        """See `ingest.spool.base.Spool`."""
        if self.disk is None:
            raise SpoolBrokenError("the spool is not open")
        await self.disk.append(push)

    def has_room(self) -> bool:
        """See `ingest.spool.base.Spool`."""
        return self.disk is not None and self.disk.has_room()

    async def open(self) -> DiskSpool:
        """Return the spool once it is open, however long its disk takes.

        Raises:
            UsageError: before anything was `tried`, the disk refused with what no waiting helps against.
        """
        backoff = Backoff(REOPEN_FIRST_S, REOPEN_MOST_S)
        while True:
            try:
                self.disk = await self._open_disk()
            except (OSError, SpoolFormatError, VolatileSpoolError) as error:
                if not (self.tried.is_set() or _may_pass(error)):
                    raise UsageError(self._sentence(error)) from None
                log.warning("the spool cannot be opened now", because=self._sentence(error))
                self.tried.set()
                await self._clock.sleep(backoff.next())
            else:
                self.tried.set()
                self.opened.set()
                return self.disk

    async def writer_ended(self) -> None:
        """See `DiskSpool.writer_ended`; waits for the spool to be open first."""
        await self.opened.wait()
        if self.disk is not None:
            await self.disk.writer_ended()

    def _sentence(self, error: Exception) -> str:
        if isinstance(error, VolatileSpoolError):
            return f"{error}; DLR_SPOOL_ALLOW_VOLATILE=true takes it all the same"
        if isinstance(error, OSError):
            return f"the spool folder {self._folder} cannot be used: {error.strerror}"
        return str(error)


def _may_pass(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno not in _LASTING
