"""The spool in trouble: full, failing, damaged, contested."""

import asyncio
import contextlib
import errno
import math
import os
from collections.abc import AsyncIterator, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from ingest.contract.push import Push, Route
from ingest.runtime.files import RealFileSystem
from ingest.runtime.logfile import Frame, encode_frame, scan
from ingest.spool import salvage
from ingest.spool.accounts import Accounts
from ingest.spool.backlog import DiskBacklog
from ingest.spool.base import PUSHES_PER_TAKE, SpoolBrokenError, SpoolFormatError, SpoolFullError, VolatileSpoolError
from ingest.spool.cursor import Cursor
from ingest.spool.disk import DiskSpool, adopt_each, adopt_free, open_spool
from ingest.spool.folder import Budget, check_device, folders, make_folders
from ingest.spool.options import BacklogLimits, SpoolOptions
from ingest.spool.record import decode_push, encode_tag
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


@pytest.fixture(autouse=True)
def logs_of_the_spool() -> Iterator[list[MutableMapping[str, Any]]]:
    """What it logs, not printed."""
    with capture_logs() as logs:
        yield logs


@pytest.fixture
def fs() -> FaultyFileSystem:
    """An empty disk in memory that fails on request."""
    return FaultyFileSystem(ModelFileSystem())


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


@pytest.fixture
async def opener(fs: FaultyFileSystem) -> AsyncIterator[Opener]:
    """Spools on `fs`."""
    opener = Opener(fs)
    yield opener
    fs.plan = None
    for backlog in opener.opened:
        await backlog.close()


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


def test_a_push_is_framed_whole() -> None:
    """Times beyond 32 bits, routes and counts survive the tag."""
    for push in (Push(2**48 - 1, Route.SINGLE, 2**32 - 1, b"x"), Push(0, Route.BATCH, 0, b"")):
        frame = Frame(1, encode_tag(push, synced=77), push.body, 0, 0)

        assert decode_push(frame) == push


def test_an_unknown_kind_is_not_guessed() -> None:
    """A record that only a newer version can read is an error, not a push."""
    tag = bytearray(encode_tag(a_push(), synced=0))
    tag[10] = 9

    with pytest.raises(SpoolFormatError, match="kind 9"):
        decode_push(Frame(1, bytes(tag), b"", 0, 0))


@pytest.mark.parametrize("call", ["pwrite", "sync"])
async def test_a_failing_device_refuses_and_recovers(fs: FaultyFileSystem, opener: Opener, call: str) -> None:
    """The pushes it hit are told; the next go into a new file; the failed file is cut and never synced again."""
    spool = await opener.spool()
    await spool.append(a_push(b"before"))
    (failed,) = logs(fs, spool)
    fs.plan = failing(errno.EIO, call)
    with pytest.raises(SpoolBrokenError):
        await spool.append(a_push(b"hit"))
    fs.plan = None
    after = len(fs.calls)
    await spool.append(a_push(b"after"))

    assert await bodies(spool) == [b"before", b"after"]
    assert ("sync", failed) not in fs.calls[after:]
    assert failed.name < logs(fs, spool)[1].name
    await opener.killed()
    assert await bodies(await opener.spool()) == [b"before", b"after"]


async def test_what_was_refused_does_not_come_back(fs: FaultyFileSystem, opener: Opener) -> None:
    """Even where the failed file could not be cut: the next file's note says where it ends."""
    spool = await opener.spool()
    await spool.append(a_push(b"before"))
    fs.plan = failing(errno.EIO, "sync", "truncate")
    with pytest.raises(SpoolBrokenError):
        await spool.append(a_push(b"refused"))
    fs.plan = None
    await spool.append(a_push(b"after"))
    await opener.killed()

    assert await bodies(await opener.spool()) == [b"before", b"after"]


async def test_a_full_device_refuses_until_room_comes_back(fs: FaultyFileSystem, opener: Opener) -> None:
    """ENOSPC is no end: has_room falls, and rises again by itself."""
    spool = await opener.spool()
    assert spool.has_room()
    fs.plan = failing(errno.ENOSPC, "allocate", "pwrite")
    with pytest.raises(SpoolFullError):
        await spool.append(a_push())
    await until(lambda: not spool.has_room())
    with pytest.raises(SpoolFullError):
        await spool.append(a_push())

    fs.plan = None
    await until(spool.has_room)
    await spool.append(a_push(b"kept"))
    assert await bodies(spool) == [b"kept"]


async def test_a_small_rest_of_a_device_is_used(opener: Opener) -> None:
    """Where a whole log file has no room a smaller one is made."""
    model = opener.fs.inner
    assert isinstance(model, ModelFileSystem)
    model.capacity = 10_000
    spool = await opener.spool(SpoolOptions(file_bytes=1 << 20, backlog=LIMITS))

    await spool.append(a_push(b"x" * 500))


async def test_all_folders_share_one_limit(fs: FaultyFileSystem, opener: Opener) -> None:
    """Two processes together never hold more than the limit, and both use it up."""
    options = SpoolOptions(max_bytes=10_000, file_bytes=1000, retry_s=0.001, backlog=LIMITS)
    spools = [await opener.spool(options), await opener.spool(options)]
    assert spools[0].name != spools[1].name
    budget = Budget(fs, ROOT, 0)
    kept = 0
    full = 0
    while full < 2:
        full = 0
        for spool in spools:
            try:
                await spool.append(a_push(b"x" * 300))
                kept += 1
            except SpoolFullError:
                full += 1
        assert budget.used_bytes() <= 10_000

    assert kept >= 20


async def test_settling_makes_room(opener: Opener) -> None:
    """A spool that is full takes pushes again once what it holds is settled, in its only file too."""
    spool = await opener.spool(SpoolOptions(max_bytes=1000, file_bytes=1000, retry_s=0.001, backlog=LIMITS))
    await spool.append(a_push(b"x" * 800))
    with pytest.raises(SpoolFullError):
        await spool.append(a_push(b"x" * 800))
    ((position, _),) = await spool.take(1)

    spool.settle(position)
    while True:
        await spool.tidy()
        try:
            await spool.append(a_push(b"y" * 800))
            break
        except SpoolFullError:
            await asyncio.sleep(0.001)

    assert [push.body for _, push in await spool.take(1)] == [b"y" * 800]


async def test_the_queue_before_the_disk_is_bounded(fs: FaultyFileSystem, opener: Opener) -> None:
    """While the device hangs, pushes beyond the limit are refused at once."""
    spool = await opener.spool(SpoolOptions(waiting_max_bytes=3000, backlog=LIMITS))
    gate = asyncio.Event()
    fs.plan = hanging(gate)
    waiting = [asyncio.create_task(spool.append(a_push(b"x" * 450))) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(SpoolFullError, match="wait"):
        await spool.append(a_push(b"x" * 450))

    gate.set()
    await asyncio.gather(*waiting)
    assert spool.waiting_bytes == 0
    assert spool.has_room()


async def test_small_pushes_in_memory_are_bounded_too(opener: Opener) -> None:
    """Neither the cache nor a read from the files takes pushes without body for nothing."""
    limits = BacklogLimits(cache_bytes=10_240, read_bytes=10_240, settle_delay_s=3600, retry_s=3600)
    spool = await opener.spool(SpoolOptions(file_bytes=1 << 20, backlog=limits))
    await asyncio.gather(*(spool.append(a_push(b"")) for _ in range(100)))

    pieces: list[int] = []
    while sum(pieces) < 100:
        pieces.append(len(await spool.take(1 << 20)))

    assert max(pieces) <= 10


async def test_a_take_of_small_pushes_is_bounded_too(opener: Opener) -> None:
    """However many bytes are asked for, a take has a most number."""
    spool = await opener.spool(SpoolOptions(file_bytes=1 << 20, backlog=LIMITS))
    await asyncio.gather(*(spool.append(a_push(b"")) for _ in range(PUSHES_PER_TAKE + 10)))

    assert len(await spool.take(1 << 30)) == PUSHES_PER_TAKE
    assert len(await spool.take(1 << 30)) == 10


async def test_a_disk_that_hangs_keeps_nobody_waiting(fs: FaultyFileSystem) -> None:
    """Who waits is told within the limit and who comes later at once, until it answers; what it kept then counts."""
    clock = StillClock()
    options = SpoolOptions(answer_max_s=0.01, backlog=LIMITS)
    spool = await open_spool(ROOT, options, fs=fs, clock=clock, accounts=Accounts())
    gate = asyncio.Event()
    fs.plan = hanging(gate)

    with pytest.raises(SpoolBrokenError, match="in time"):
        await spool.append(a_push(b"slow"))
    assert spool.has_room()
    clock.seconds += 1
    assert not spool.has_room()
    with pytest.raises(SpoolBrokenError, match="does not answer"):
        await spool.append(a_push(b"refused"))
    assert spool.accounts.unaccounted() == 0

    gate.set()
    await until(spool.has_room)
    await spool.append(a_push(b"later"))
    assert await bodies(spool) == [b"slow", b"later"]
    assert (spool.accounts.received, spool.accounts.unaccounted()) == (2, 0)
    await spool.close()


async def test_a_writer_that_ends_is_noticed(fs: FaultyFileSystem, opener: Opener) -> None:
    """A defect in the writer's thread ends `writer_ended`, the push that waits is refused, and what was kept stays."""
    spool = await opener.spool()
    ended = asyncio.create_task(spool.writer_ended())
    await spool.append(a_push(b"kept"))

    def defect(_call: str, _path: Path) -> None:
        raise MemoryError

    fs.plan = defect
    with pytest.raises(SpoolBrokenError):
        await spool.append(a_push(b"hit"))
    fs.plan = None
    with pytest.raises(SpoolBrokenError, match="writer ended"):
        await ended
    assert not spool.has_room()
    await spool.close()

    assert (await bodies(await opener.spool()))[0] == b"kept"


async def test_a_writer_that_is_closed_ends_well(opener: Opener) -> None:
    """`writer_ended` waits as long as the spool is open, and returns once it is closed."""
    spool = await opener.spool()
    ended = asyncio.create_task(spool.writer_ended())
    await spool.append(a_push())
    assert not ended.done()

    await spool.close()
    await ended


async def test_an_append_whose_waiter_left_is_kept_and_counted(opener: Opener) -> None:
    """A connection that breaks while its push is synced does not unbalance the accounts."""
    spool = await opener.spool()
    append = asyncio.create_task(spool.append(a_push(b"left", reports=3)))
    await asyncio.sleep(0)
    append.cancel()
    await spool.append(a_push(b"stayed"))

    assert [push.body for _, push in await spool.take(100)] == [b"left", b"stayed"]
    assert spool.accounts.received == 4
    assert spool.accounts.unaccounted() == 0


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


@pytest.mark.parametrize("victim", [b"one", b"two", b"last of its file"])
async def test_rotten_bytes_go_to_quarantine(fs: FaultyFileSystem, opener: Opener, victim: bytes) -> None:
    """One damaged push costs that push, never silently: its bytes are kept, it is counted, the others are read."""
    everything = [b"one", b"two", b"last of its file".ljust(1600, b"."), b"in the next file".ljust(1600, b".")]
    spool = await opener.spool()
    for body in everything:
        await spool.append(a_push(body))
    first, _ = logs(fs, spool)
    hit = next(body for body in everything if body.startswith(victim))
    await opener.killed()
    await rot(fs, first, starts(fs, first)[hit] + 41)

    again = await opener.spool()

    assert await bodies(again) == [body for body in everything if body != hit]
    assert again.accounts.quarantined == 1
    assert again.accounts.unaccounted() == 0
    kept, _note = fs.inner.listdir(ROOT / "quarantine")
    assert hit[5:] in fs.inner.open(ROOT / "quarantine" / kept).pread(5000, 0)
    await opener.killed()
    once_more = await opener.spool()
    assert once_more.accounts.quarantined == 0
    assert len(fs.inner.listdir(ROOT / "quarantine")) == 2


async def test_bytes_that_rot_while_they_wait_are_accounted_for(fs: FaultyFileSystem, opener: Opener) -> None:
    """A push that was counted and cannot be read back any more moves from pending to quarantined."""
    limits = BacklogLimits(cache_bytes=1, settle_delay_s=3600, retry_s=3600)
    spool = await opener.spool(SpoolOptions(file_bytes=2000, backlog=limits))
    for body in (b"first", b"second", b"third"):
        await spool.append(a_push(body, reports=5))
    (path,) = logs(fs, spool)
    await rot(fs, path, starts(fs, path)[b"second"] + 41)

    taken = await spool.take(1) + await spool.take(100)

    assert [push.body for _, push in taken] == [b"first", b"third"]
    assert spool.pending_reports == 10
    assert spool.accounts.quarantined == 5
    assert spool.accounts.unaccounted() == 0
    spool.settle(taken[-1].position)
    spool.accounts.published += 10
    await spool.close()
    assert fs.inner.listdir(ROOT / "quarantine")
    assert logs(fs, spool) == []


def refusing_quarantine(call: str, path: Path) -> None:
    """A plan by which quarantine takes nothing."""
    if "quarantine" in path.parts and call in {"mkdir", "create"}:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def in_quarantine(fs: FaultyFileSystem) -> bytes:
    """All that stands there."""
    folder = ROOT / "quarantine"
    names = fs.inner.listdir(folder) if fs.inner.is_dir(folder) else []
    return b"".join(fs.inner.open(folder / name).pread(10_000, 0) for name in names if name.endswith(".body"))


async def test_the_cursor_does_not_pass_damage_before_its_bytes_are_kept(fs: FaultyFileSystem, opener: Opener) -> None:
    """A push that was counted as quarantined is in quarantine before the process may forget where it stood."""
    limits = BacklogLimits(cache_bytes=1, settle_delay_s=3600, retry_s=3600)
    spool = await opener.spool(SpoolOptions(file_bytes=2000, backlog=limits))
    for body in (b"first", b"second", b"third", b"fourth"):
        await spool.append(a_push(body))
    (path,) = logs(fs, spool)
    await rot(fs, path, starts(fs, path)[b"second"] + 41)
    taken = await bodies_and_positions(spool, 3)
    spool.settle(taken[b"third"])

    fs.plan = refusing_quarantine
    with pytest.raises(OSError, match="No space"):
        await spool.tidy()
    fs.plan = None
    assert Cursor(fs, ROOT / spool.name).position < taken[b"first"]
    await spool.tidy()
    await opener.killed()

    assert b"cond" in in_quarantine(fs)
    again = await opener.spool()
    assert await bodies(again) == [b"fourth"]
    assert again.accounts.unaccounted() == 0


async def test_damage_that_could_not_be_kept_at_the_start_is_kept_later(fs: FaultyFileSystem, opener: Opener) -> None:
    """While quarantine takes nothing the cursor waits before the damage; what was settled is repeated, nothing lost."""
    spool = await opener.spool()
    for body in (b"first", b"second", b"third"):
        await spool.append(a_push(body))
    (path,) = logs(fs, spool)
    await opener.killed()
    await rot(fs, path, starts(fs, path)[b"first"] + 41)

    fs.plan = refusing_quarantine
    again = await opener.spool()
    taken = await bodies_and_positions(again, 2)
    again.settle(taken[b"third"])
    again.accounts.published += 2
    with pytest.raises(OSError, match="No space"):
        await again.tidy()
    assert (again.accounts.quarantined, again.accounts.unaccounted()) == (0, 0)
    await opener.killed()
    third = await opener.spool()

    assert await bodies(third) == [b"second", b"third"]
    assert b"rst" in in_quarantine(fs)
    assert (third.accounts.quarantined, third.accounts.unaccounted()) == (1, 0)


WIDE = [bytes([65 + number]) * 5000 for number in range(8)]
"""Bodies of which a block hits two at most."""


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that cannot be read is asked for again at once."""
    monkeypatch.setattr(salvage, "RETRY_PAUSE_S", 0)


@pytest.mark.usefixtures("no_pause")
@pytest.mark.parametrize("victim", [0, 3, 7])
async def test_a_sector_lost_before_the_start_costs_its_pushes_only(
    fs: FaultyFileSystem, opener: Opener, victim: int
) -> None:
    """The folder is opened, what can be read is published and the rest of the damage kept, wherever it is."""
    spool = await opener.spool(SpoolOptions(file_bytes=1 << 20, backlog=LIMITS))
    for body in [*WIDE, b"end"]:
        await spool.append(a_push(body))
    (path,) = logs(fs, spool)
    await spool.close()
    at = starts(fs, path)[WIDE[victim]] + 1500
    fs.unreadable.add((path, at))

    again = await opener.spool()
    found = await bodies(again)

    hit = [body for body in WIDE if body not in found]
    assert again.name == spool.name
    assert WIDE[victim] in hit
    assert len(hit) <= 2
    assert found == [body for body in [*WIDE, b"end"] if body not in hit]
    assert in_quarantine(fs).count(salvage.FILLER) == salvage.BLOCK_BYTES
    assert (again.accounts.quarantined, again.accounts.unaccounted()) == (1, 0)


@pytest.mark.usefixtures("no_pause")
async def test_a_sector_lost_while_its_pushes_wait_stops_nothing(fs: FaultyFileSystem, opener: Opener) -> None:
    """The reader goes on behind it; the pushes in it move from pending to quarantined."""
    limits = BacklogLimits(cache_bytes=1, settle_delay_s=3600, retry_s=3600)
    spool = await opener.spool(SpoolOptions(file_bytes=1 << 20, backlog=limits))
    for body in WIDE:
        await spool.append(a_push(body))
    (path,) = logs(fs, spool)
    fs.unreadable.add((path, starts(fs, path)[WIDE[3]] + 1500))

    found = await bodies(spool)
    await spool.tidy()

    assert found[-1] == WIDE[-1]
    assert spool.accounts.quarantined == len(WIDE) - len(found) > 0
    assert spool.accounts.unaccounted() == 0
    assert in_quarantine(fs).count(salvage.FILLER) == salvage.BLOCK_BYTES


@pytest.mark.usefixtures("no_pause")
async def test_a_read_that_fails_once_loses_nothing(fs: FaultyFileSystem, opener: Opener) -> None:
    """What the device gives back at the second try was never damaged."""
    spool = await opener.spool()
    await spool.append(a_push(b"once"))
    (path,) = logs(fs, spool)
    await opener.killed()
    failures = iter([1, 1])

    def plan(call: str, of: Path) -> None:
        if call == "pread" and of == path and next(failures, None):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    fs.plan = plan
    again = await opener.spool()

    assert await bodies(again) == [b"once"]
    assert in_quarantine(fs) == b""


@pytest.mark.usefixtures("no_pause")
async def test_an_unreadable_cursor_brings_repeats_not_an_end(fs: FaultyFileSystem, opener: Opener) -> None:
    """With the cursor gone everything that is still there is handed out again."""
    spool = await opener.spool()
    for body in (b"one", b"two"):
        await spool.append(a_push(body))
    spool.settle((await bodies_and_positions(spool, 2))[b"one"])
    await spool.close()
    (name,) = [name for name in fs.inner.listdir(ROOT / spool.name) if name.startswith("cursor")]
    fs.unreadable |= {(ROOT / spool.name / name, at) for at in (0, 4096)}

    assert await bodies(await opener.spool()) == [b"one", b"two"]


async def test_a_log_file_that_vanished_blocks_nothing(fs: FaultyFileSystem, opener: Opener) -> None:
    """A file that somebody removed is written off loudly if it held anything, and the others are deleted after it."""
    limits = BacklogLimits(cache_bytes=1, settle_delay_s=3600, retry_s=3600)
    spool = await opener.spool(SpoolOptions(file_bytes=6000, backlog=limits))
    for body in WIDE[:4]:
        await spool.append(a_push(body, reports=3))
    taken = await bodies_and_positions(spool, 1)
    settled, unread, *_ = logs(fs, spool)
    spool.settle(taken[WIDE[0]])
    fs.inner.unlink(settled)
    fs.inner.unlink(unread)

    taken = await bodies_and_positions(spool, 2)
    assert list(taken) == WIDE[2:4]
    assert (spool.accounts.quarantined, spool.pending_reports) == (3, 6)
    spool.settle(taken[WIDE[3]])
    spool.accounts.published += 9
    assert spool.accounts.unaccounted() == 0
    await spool.close()

    assert logs(fs, spool) == []
    assert any(name.endswith(".note") for name in fs.inner.listdir(ROOT / "quarantine"))


async def test_a_torn_tail_counts_as_nothing_and_is_kept(
    fs: FaultyFileSystem, opener: Opener, logs_of_the_spool: list[MutableMapping[str, Any]]
) -> None:
    """What a crash cut off, or what rotted in the last group of all, nobody can tell: it is copied, once, uncounted."""
    spool = await opener.spool()
    await spool.append(a_push(b"whole"))
    await spool.append(a_push(b"torn"))
    (path,) = logs(fs, spool)
    await opener.killed()
    await rot(fs, path, starts(fs, path)[b"torn"] + 41)

    for later in ([], [b"later"]):
        again = await opener.spool()
        assert await bodies(again) == [b"whole", *later]
        assert (again.accounts.quarantined, again.accounts.unaccounted()) == (0, 0)
        await again.append(a_push(b"later"))
        await opener.killed()
    assert in_quarantine(fs).endswith(b"tnrn")
    assert [log["log_level"] for log in logs_of_the_spool if log["event"].startswith("spool file torn")] == ["warning"]


async def test_a_torn_tail_that_cannot_be_copied_yet_is_not_deleted(fs: FaultyFileSystem, opener: Opener) -> None:
    """Its file waits until quarantine takes the bytes, settled or not."""
    spool = await opener.spool()
    await spool.append(a_push(b"torn"))
    (path,) = logs(fs, spool)
    await opener.killed()
    await rot(fs, path, starts(fs, path)[b"torn"] + 41)
    fs.plan = refusing_quarantine
    again = await opener.spool()
    with pytest.raises(OSError, match="No space"):
        await again.tidy()
    fs.plan = None
    assert path in logs(fs, again)

    await again.tidy()

    assert path not in logs(fs, again)
    assert in_quarantine(fs).endswith(b"tnrn")


@pytest.mark.parametrize("victim", [b"one", b"last"])
async def test_a_clean_close_vouches_for_every_group(fs: FaultyFileSystem, opener: Opener, victim: bytes) -> None:
    """After it rotten bytes are damage and counted, those of the last group too."""
    spool = await opener.spool()
    for body in (b"one", b"last"):
        await spool.append(a_push(body))
    (path,) = logs(fs, spool)
    await spool.close()
    await rot(fs, path, starts(fs, path)[victim] + 41)

    again = await opener.spool()

    assert await bodies(again) == [body for body in (b"one", b"last") if body != victim]
    assert (again.accounts.quarantined, again.accounts.unaccounted()) == (1, 0)


async def test_a_newer_format_is_not_touched(fs: FaultyFileSystem, opener: Opener) -> None:
    """A folder of a later version is left as it is; opening and adopting pass it by."""
    spool = await opener.spool()
    await spool.close()
    fs.inner.create(ROOT / spool.name / "00000000000000000009-00000000.v2.log")
    before = fs.inner.listdir(ROOT / spool.name)

    assert (await opener.spool()).name != spool.name
    assert await opener.adopt(Accounts()) == []
    assert fs.inner.listdir(ROOT / spool.name) == before


async def test_a_folder_that_is_held_is_left_alone(opener: Opener) -> None:
    """Two processes never share a folder, and what one adopts the other does not."""
    first = await opener.spool()
    second = await opener.spool()

    assert first.name != second.name
    assert await opener.adopt(Accounts()) == []


async def three_folders(opener: Opener) -> list[str]:
    """Folders that processes left which have ended, each with a push that is its number."""
    spools = [await opener.spool() for _ in range(3)]
    for number, spool in enumerate(sorted(spools, key=lambda spool: spool.name)):
        await spool.append(a_push(b"%d" % number))
    for spool in spools:
        await spool.close()
    return sorted(spool.name for spool in spools)


@pytest.mark.parametrize("call", ["lock", "open", "listdir"])
async def test_one_bad_folder_hides_no_other(fs: FaultyFileSystem, opener: Opener, call: str) -> None:
    """Whichever call a folder fails at, the others are adopted, a fresh one is opened, and no lock stays behind."""
    names = await three_folders(opener)

    def plan(called: str, path: Path) -> None:
        if called == call and names[1] in path.parts:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    fs.plan = plan
    adopted = await opener.adopt(Accounts())
    assert [backlog.name for backlog in adopted] == [names[0], names[2]]
    assert (await opener.spool()).name not in names
    fs.plan = None

    assert [backlog.name for backlog in await opener.adopt(Accounts())] == [names[1]]


async def test_a_record_of_a_newer_version_hides_no_other_folder(fs: FaultyFileSystem, opener: Opener) -> None:
    """A kind of record that this version does not know makes its folder wait, not the others."""
    names = await three_folders(opener)
    (path,) = [ROOT / names[1] / name for name in fs.inner.listdir(ROOT / names[1]) if name.endswith(".log")]
    tag = bytearray(encode_tag(a_push(), synced=0))
    tag[10] = 9
    salt = int(path.name.split("-")[1][:8], 16)
    file = fs.inner.open(path, write=True)
    file.pwrite([encode_frame(99, bytes(tag), b"", salt=salt)], file.size())

    assert [backlog.name for backlog in await opener.adopt(Accounts())] == [names[0], names[2]]
    assert (await opener.spool()).name not in names


async def test_no_lock_stays_behind_when_adopting_is_given_up(fs: FaultyFileSystem, opener: Opener) -> None:
    """Whatever ends it, cancelling included, every folder is free again for the next who asks."""
    names = await three_folders(opener)

    def defect(_call: str, path: Path) -> None:
        if names[2] in path.parts:
            raise RuntimeError(path)

    fs.plan = defect
    with pytest.raises(RuntimeError):
        await opener.adopt(Accounts())
    fs.plan = None
    adopting = asyncio.create_task(opener.adopt(Accounts()))
    await asyncio.sleep(0)
    adopting.cancel()
    await asyncio.wait({adopting})

    model = fs.inner
    assert isinstance(model, ModelFileSystem)
    await until(lambda: not model.locks)
    assert len(await opener.adopt(Accounts())) == 3


async def test_a_folder_that_nobody_waits_for_any_more_is_let_go(fs: FaultyFileSystem, opener: Opener) -> None:
    """Even if its reading could not be stopped: once it is over, the lock is free."""
    spool = await opener.spool()
    await spool.append(a_push(b"kept"))
    await opener.killed()
    model = fs.inner
    assert isinstance(model, ModelFileSystem)
    gate = asyncio.Event()
    fs.plan = hanging(gate)
    before = len(fs.calls)
    adopting = asyncio.create_task(opener.adopt(Accounts()))
    await until(lambda: any(call == "sync" for call, _ in fs.calls[before:]))

    adopting.cancel()
    await asyncio.wait({adopting})
    assert adopting.cancelled()
    assert model.locks
    gate.set()

    await until(lambda: not model.locks)
    assert await bodies((await opener.adopt(Accounts()))[0]) == [b"kept"]


async def test_folders_are_adopted_one_at_a_time(opener: Opener) -> None:
    """The next folder is locked and read only when it is asked for, oldest first, each once."""
    names = await three_folders(opener)
    model = opener.fs.inner
    assert isinstance(model, ModelFileSystem)
    accounts = Accounts()
    seen = []

    async for backlog in adopt_each(ROOT, fs=opener.fs, clock=StillClock(), accounts=accounts, limits=LIMITS):
        seen.append(backlog.name)
        assert (len(model.locks), accounts.pending) == (1, 1)
        await backlog.close()

    assert seen == names


async def test_a_large_folder_does_not_delay_the_opening(fs: FaultyFileSystem, opener: Opener) -> None:
    """A process begins in a fresh folder if the left one would take long to read; that one is adopted, whole."""
    options = SpoolOptions(file_bytes=2000, reuse_max_bytes=3000, backlog=LIMITS)
    spool = await opener.spool(options)
    everything = [b"%d" % number * 900 for number in range(5)]
    for body in everything:
        await spool.append(a_push(body))
    await spool.close()
    before = len(fs.calls)

    again = await opener.spool(options)

    assert again.name != spool.name
    assert not [call for call, path in fs.calls[before:] if call == "pread" and spool.name in path.parts]
    (backlog,) = await opener.adopt(Accounts())
    assert await bodies(backlog) == everything


async def test_reading_a_large_folder_does_not_hold_up_the_loop(opener: Opener) -> None:
    """While a folder is read the event loop goes on."""
    spool = await opener.spool(SpoolOptions(file_bytes=10_000_000, backlog=LIMITS))
    await asyncio.gather(*(spool.append(a_push(b"")) for _ in range(20_000)))
    await spool.close()
    turns = 0
    adopting = asyncio.create_task(opener.adopt(Accounts()))
    while not adopting.done():
        await asyncio.sleep(0.001)
        turns += 1

    assert turns > 20
    assert (await adopting)[0].pending_reports == 20_000


async def test_an_adopted_folder_counts_while_it_is_held(opener: Opener) -> None:
    """Its reports are recovered by whoever holds it; given back unsettled they are the next one's."""
    spool = await opener.spool()
    await spool.append(a_push(reports=7))
    await spool.close()
    accounts = Accounts()
    (backlog,) = await opener.adopt(accounts)
    assert (accounts.recovered, accounts.pending, accounts.unaccounted()) == (7, 7, 0)

    await backlog.close()

    assert (accounts.recovered, accounts.pending, accounts.unaccounted()) == (0, 0, 0)
    assert len(await opener.adopt(accounts)) == 1


async def test_folders_left_half_made_are_swept(fs: FaultyFileSystem, opener: Opener) -> None:
    """A process that died while it made its folder leaves nothing for long; empty folders go, too."""
    spool = await opener.spool()
    await spool.close()
    fs.inner.mkdir(ROOT / ".1800000000000-00000000")

    await opener.adopt(Accounts())

    assert [name for name in fs.inner.listdir(ROOT) if fs.inner.is_dir(ROOT / name)] == []


FOREIGN = ["lost+found", ".ssh", "docs", "1800000000000", "1800000000000-0000000g", ".1800000000000-00000000.bak"]


async def test_folders_of_others_are_left_alone(fs: FaultyFileSystem, opener: Opener) -> None:
    """Whatever else stands under the root is neither opened, nor counted, nor swept: only our own names are ours."""
    make_folders(fs.inner, ROOT)
    for name in FOREIGN:
        fs.inner.mkdir(ROOT / name)
        fs.inner.create(ROOT / name / "00000000000000000001-00000000.v1.log").pwrite([b"x" * 100], 0)

    spool = await opener.spool()
    await opener.adopt(Accounts())

    assert spool.name not in FOREIGN
    assert all(fs.inner.listdir(ROOT / name) == ["00000000000000000001-00000000.v1.log"] for name in FOREIGN)
    assert Budget(fs, ROOT, 0).used_bytes() == sum(fs.inner.size_of(path) for path in logs(fs, spool))


@pytest.mark.parametrize("name", ["1800000000000-00000000", ".1800000000000-00000000"])
async def test_files_of_others_are_not_deleted(fs: FaultyFileSystem, opener: Opener, name: str) -> None:
    """A folder with our name that holds a file which is not ours stays, and so do all the files in it."""
    make_folders(fs.inner, ROOT)
    fs.inner.mkdir(ROOT / name)
    fs.inner.create(ROOT / name / "notes.txt")

    assert await opener.adopt(Accounts()) == []
    assert "notes.txt" in fs.inner.listdir(ROOT / name)


@pytest.mark.parametrize("kind", ["tmpfs", "nfs4", "cifs", "fuse.sshfs"])
def test_a_disk_that_does_not_keep_is_refused(kind: str) -> None:
    """What forgets at a reboot, and what lies behind a network, cannot hold the only copy."""

    class Disk(ModelFileSystem):
        def kind(self, path: Path) -> str:
            del path
            return kind

    with pytest.raises(VolatileSpoolError, match=kind):
        check_device(Disk(), ROOT)


async def test_the_shared_memory_of_this_machine_is_refused() -> None:
    """The real thing: /dev/shm is a tmpfs; by setting it is taken all the same."""
    root = Path("/dev/shm") / f"dlrflow-test-{os.getpid()}"  # noqa: S108 - to be refused
    fs = RealFileSystem()
    try:
        with pytest.raises(VolatileSpoolError, match="tmpfs"):
            await open_spool(root, SpoolOptions(), fs=fs, clock=StillClock(), accounts=Accounts())
        options = SpoolOptions(allow_volatile=True, max_bytes=100_000)
        spool = await open_spool(root, options, fs=fs, clock=StillClock(), accounts=Accounts())
        await spool.close()
        (backlog,) = folders(fs, root)
        assert (root.stat().st_mode & 0o777, backlog.stat().st_mode & 0o777) == (0o700, 0o700)
    finally:
        await adopt_free(root, fs=fs, clock=StillClock(), accounts=Accounts())
        for path in root.iterdir():
            path.unlink()
        root.rmdir()


async def test_the_time_until_full_follows_the_growth(opener: Opener) -> None:
    """Infinite while the backlog does not grow, else the room left by the rate of the last minute."""
    clock = StillClock()
    spool = await open_spool(ROOT, OPTIONS, fs=opener.fs, clock=clock, accounts=Accounts())
    opener.opened.append(spool)
    assert spool.seconds_until_full == math.inf
    await spool.append(a_push(b"x" * 1000))
    clock.seconds += 10
    await spool._sample()

    left = OPTIONS.max_bytes
    assert spool.seconds_until_full == pytest.approx(min(left, 1 << 30) / 100, rel=0.01)


async def test_a_cursor_that_fails_is_moved_later(fs: FaultyFileSystem, opener: Opener) -> None:
    """A failed sync of the cursor deletes nothing and goes on in a new cursor file."""
    spool = await opener.spool()
    await spool.append(a_push(b"one"))
    ((position, _),) = await spool.take(1)
    spool.settle(position)
    await spool.tidy()
    await spool.append(a_push(b"two"))
    ((position, _),) = await spool.take(1)
    spool.settle(position)

    def fail(call: str, path: Path) -> None:
        if call == "sync" and "cursor" in path.name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    fs.plan = fail
    with pytest.raises(OSError, match="Input/output"):
        await spool.tidy()
    fs.plan = None
    await spool.tidy()
    await opener.killed()

    assert [name for name in fs.inner.listdir(ROOT / spool.name) if "cursor" in name] == ["cursor-000002.v1"]
    assert (await opener.spool()).pending_reports == 0


@pytest.mark.parametrize("call", ["pwrite", "sync", "sync_dir"])
def test_a_cursor_that_cannot_be_made_leaves_nothing_behind(fs: FaultyFileSystem, call: str) -> None:
    """However often it is tried."""
    fs.mkdir(ROOT)
    cursor = Cursor(fs, ROOT)

    def plan(called: str, _path: Path) -> None:
        if called == call:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    fs.plan = plan
    for _ in range(3):
        with pytest.raises(OSError, match="Input/output"):
            cursor.move(5)
    fs.plan = None
    assert fs.inner.listdir(ROOT) == []

    cursor.move(5)
    assert len(fs.inner.listdir(ROOT)) == 1


@pytest.mark.parametrize("call", ["pwrite", "sync"])
def test_a_full_disk_does_not_cost_the_cursor_its_file(fs: FaultyFileSystem, call: str) -> None:
    """Whatever the disk says meanwhile, the file that needs no more room is used, and its good slot stays."""
    fs.mkdir(ROOT)
    cursor = Cursor(fs, ROOT)
    cursor.move(5)
    before = fs.inner.listdir(ROOT)

    def full(called: str, _path: Path) -> None:
        if called in {call, "create"}:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for position in (6, 7, 8):
        fs.plan = full
        with pytest.raises(OSError, match="No space"):
            cursor.move(position)
        assert Cursor(fs.inner, ROOT).position in {5, position}
    fs.plan = lambda called, path: full(called, path) if called == "create" else None
    cursor.move(9)

    assert fs.inner.listdir(ROOT) == before
    assert Cursor(fs.inner, ROOT).position == 9


def test_a_torn_slot_leaves_the_other(fs: FaultyFileSystem) -> None:
    """Whichever slot is damaged, the cursor is the better of the rest; with both gone it begins anew."""
    fs.mkdir(ROOT)
    cursor = Cursor(fs, ROOT)
    cursor.move(5)
    cursor.move(6)
    (name,) = fs.inner.listdir(ROOT)
    content = fs.inner.open(ROOT / name).pread(8192, 0)
    positions = set()
    for slot in (0, 4096):
        file = fs.inner.open(ROOT / name, write=True)
        file.pwrite([content], 0)
        file.pwrite([b"\xff"], slot + 9)
        positions.add(Cursor(fs, ROOT).position)
    file.pwrite([bytes(8192)], 0)

    assert positions == {5, 6}
    assert Cursor(fs, ROOT).position == 0
