"""What the tests of the spool share: a still clock, an opener, plans of failure, looks at the disk."""

import asyncio
import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path

from ingest.contract.push import Push, Route
from ingest.runtime.logfile import Frame, scan
from ingest.spool.accounts import Accounts
from ingest.spool.backlog import DiskBacklog
from ingest.spool.disk import DiskSpool, adopt_free, open_spool
from ingest.spool.options import BacklogLimits, SpoolOptions
from tests.fakes.files import FaultyFileSystem, ModelFileSystem, PowerCutError

ROOT = Path("/spool")


LIMITS = BacklogLimits(settle_delay_s=3600, retry_s=3600)


OPTIONS = SpoolOptions(file_bytes=2000, retry_s=0.001, backlog=LIMITS)


class StillClock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def wall_ms(self) -> int:
        """Milliseconds since the epoch."""
        return int(self.seconds * 1000)

    def monotonic(self) -> float:
        """Seconds."""
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        """Pass the time at once."""
        self.seconds += seconds


class Opener:
    """Opens spools and closes them at the end of the test."""

    def __init__(self, fs: FaultyFileSystem) -> None:
        self.fs = fs
        self.opened: list[DiskBacklog] = []

    async def spool(self, options: SpoolOptions = OPTIONS) -> DiskSpool:
        """One that this process holds, with accounts of its own."""
        spool = await open_spool(ROOT, options, fs=self.fs, clock=StillClock(), accounts=Accounts())
        self.opened.append(spool)
        return spool

    async def adopt(self, accounts: Accounts) -> list[DiskBacklog]:
        """What nobody holds."""
        adopted = await adopt_free(ROOT, fs=self.fs, clock=StillClock(), accounts=accounts, limits=LIMITS)
        self.opened += adopted
        return adopted

    async def killed(self) -> None:
        """End every process without a word: what was written stays, locks and open files are gone."""
        model = self.fs.inner
        assert isinstance(model, ModelFileSystem)
        self.fs.plan = dead
        for backlog in self.opened:
            with contextlib.suppress(PowerCutError):
                await backlog.close()
        self.opened.clear()
        self.fs.plan = None
        model.kill()


def dead(_call: str, _path: Path) -> None:
    """A plan by which nothing happens any more."""
    raise PowerCutError


def a_push(body: bytes = b"{}", reports: int = 1) -> Push:
    """A push of a batch."""
    return Push(1_800_000_000_123, Route.BATCH, reports, body)


def failing(number: int, *calls: str) -> Callable[[str, Path], None]:
    """A plan by which these calls on log files fail."""

    def plan(call: str, path: Path) -> None:
        if call in calls and path.suffix == ".log":
            raise OSError(number, os.strerror(number))

    return plan


def hanging(gate: asyncio.Event) -> Callable[[str, Path], None]:
    """A plan by which syncs of log files hang until the gate is open."""
    loop = asyncio.get_running_loop()

    def plan(call: str, path: Path) -> None:
        if call == "sync" and path.suffix == ".log":
            asyncio.run_coroutine_threadsafe(gate.wait(), loop).result()

    return plan


async def until(holds: Callable[[], bool]) -> None:
    """Wait for what the writer's thread finds out by itself."""
    while not holds():  # noqa: ASYNC110 - nothing announces it: a probe only looks
        await asyncio.sleep(0.001)


async def bodies(backlog: DiskBacklog) -> list[bytes]:
    """Everything that is pending."""
    found: list[bytes] = []
    while backlog.pending_reports > len(found):
        found += [push.body for _, push in await backlog.take(100)]
    return found


async def bodies_and_positions(backlog: DiskBacklog, pushes: int) -> dict[bytes, int]:
    """Where so many pushes stand that are handed out next."""
    found: dict[bytes, int] = {}
    while len(found) < pushes:
        found |= {push.body: position for position, push in await backlog.take(100)}
    return found


def logs(fs: FaultyFileSystem, spool: DiskBacklog) -> list[Path]:
    """The log files of a folder."""
    folder = ROOT / spool.name
    return [folder / name for name in fs.inner.listdir(folder) if name.endswith(".log")]


async def rot(fs: FaultyFileSystem, path: Path, at: int) -> None:
    """Flip a bit of a file on the device."""
    file = fs.inner.open(path, write=True)
    byte = file.pread(1, at)[0] ^ 1
    file.pwrite([bytes([byte])], at)
    file.sync()


def starts(fs: FaultyFileSystem, path: Path) -> dict[bytes, int]:
    """Where each body's frame begins."""
    file = fs.inner.open(path)
    salt = int(path.name.split("-")[1][:8], 16)
    items = scan(file.pread(file.size(), 0), salt=salt)
    return {item.body: item.start for item in items if isinstance(item, Frame)}


def refusing_quarantine(call: str, path: Path) -> None:
    """A plan by which quarantine takes nothing."""
    if "quarantine" in path.parts and call in {"mkdir", "create"}:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def in_quarantine(fs: FaultyFileSystem) -> bytes:
    """All that stands there."""
    folder = ROOT / "quarantine"
    names = fs.inner.listdir(folder) if fs.inner.is_dir(folder) else []
    return b"".join(fs.inner.open(folder / name).pread(10_000, 0) for name in names if name.endswith(".body"))


WIDE = [bytes([65 + number]) * 5000 for number in range(8)]
"""Bodies of which a block hits two at most."""


async def three_folders(opener: Opener) -> list[str]:
    """Folders that processes left which have ended, each with a push that is its number."""
    spools = [await opener.spool() for _ in range(3)]
    for number, spool in enumerate(sorted(spools, key=lambda spool: spool.name)):
        await spool.append(a_push(b"%d" % number))
    for spool in spools:
        await spool.close()
    return sorted(spool.name for spool in spools)


FOREIGN = ["lost+found", ".ssh", "docs", "1800000000000", "1800000000000-0000000g", ".1800000000000-00000000.bak"]
