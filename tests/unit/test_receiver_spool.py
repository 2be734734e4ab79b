"""A worker's spool whose disk does not open."""

import asyncio
import errno
import os
from pathlib import Path

import pytest

from ingest.commands.worker_spool import LateSpool
from ingest.contract.push import Push, Route
from ingest.runtime.clock import SystemClock
from ingest.runtime.errors import UsageError
from ingest.runtime.files import RealFileSystem
from ingest.spool.accounts import Accounts
from ingest.spool.base import SpoolBrokenError, VolatileSpoolError
from ingest.spool.disk import DiskSpool, SpoolOptions, open_spool
from tests.fakes.forward import PromptClock

PUSH = Push(1_795_000_000_123, Route.BATCH, 1, b"{}")


class Disk:
    """Opens a spool on disk after it has raised these errors, one at each try."""

    def __init__(self, folder: Path, *troubles: Exception) -> None:
        self.folder = folder
        self.troubles = list(troubles)
        self.spool = LateSpool(self.open, folder=folder, clock=PromptClock())

    async def open(self) -> DiskSpool:
        """Open it, or raise."""
        if self.troubles:
            raise self.troubles.pop(0)
        options = SpoolOptions(allow_volatile=True, max_bytes=1 << 22)
        return await open_spool(self.folder, options, fs=RealFileSystem(), clock=SystemClock(), accounts=Accounts())


def trouble(number: int) -> OSError:
    """What a system call raises."""
    return OSError(number, os.strerror(number))


@pytest.mark.parametrize(
    "number",
    [
        errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EAGAIN, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM,
        errno.ENODEV, errno.ENXIO, errno.ENOTCONN, errno.ESTALE, errno.ETIMEDOUT, errno.EUCLEAN,
    ],
)  # fmt: skip
async def test_a_disk_that_may_come_back_is_waited_for(tmp_path: Path, number: int) -> None:
    """Until then pushes are refused, so that they can go to Kafka; then they are kept."""
    disk = Disk(tmp_path, trouble(number), trouble(number))
    opening = asyncio.create_task(disk.spool.open())
    await disk.spool.tried.wait()
    with pytest.raises(SpoolBrokenError):
        await disk.spool.append(PUSH)
    assert not disk.spool.has_room()

    opened = await opening

    await disk.spool.append(PUSH)
    assert disk.spool.has_room()
    await opened.close()


@pytest.mark.parametrize(
    "error",
    [
        *map(trouble, (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)),
        VolatileSpoolError("tmpfs forgets"),
    ],
)
async def test_what_only_an_operator_can_mend_ends_the_start(tmp_path: Path, error: Exception) -> None:
    """Status 2 and one clear line, instead of a receiver that never keeps anything."""
    disk = Disk(tmp_path, error)

    with pytest.raises(UsageError, match=r"cannot be used: |tmpfs forgets; DLR_SPOOL_ALLOW_VOLATILE"):
        await disk.spool.open()


async def test_a_worker_that_began_is_never_ended_by_its_disk(tmp_path: Path) -> None:
    """Whatever the later tries meet: Kafka may take the pushes meanwhile."""
    disk = Disk(tmp_path, trouble(errno.EROFS), trouble(errno.EACCES), VolatileSpoolError("tmpfs forgets"))

    await (await disk.spool.open()).close()

    assert disk.troubles == []
