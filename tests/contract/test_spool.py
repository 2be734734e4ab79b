"""What every spool and backlog promises, on a real disk and on the model of one."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from ingest.contract.push import Push, Route
from ingest.runtime.clock import SystemClock
from ingest.runtime.files import FileSystem, RealFileSystem
from ingest.spool.accounts import Accounts
from ingest.spool.backlog import DiskBacklog
from ingest.spool.base import Backlog, Spool, SpoolBrokenError, Spooled
from ingest.spool.disk import DiskSpool, adopt_free, open_spool
from ingest.spool.options import BacklogLimits, SpoolOptions
from tests.fakes.files import ModelFileSystem

# Small enough that a few pushes take several files, reads and more than the memory.
LIMITS = BacklogLimits(cache_bytes=7 * 1100, read_bytes=5 * 1100, settle_delay_s=0.001, retry_s=0.001)
OPTIONS = SpoolOptions(file_bytes=1000, backlog=LIMITS, allow_volatile=True)

FilledBacklog = Callable[[list[Push]], Awaitable[Backlog]]


def a_push(number: int) -> Push:
    """Two reports, received at `number`."""
    return Push(number, Route.BATCH if number % 2 else Route.SINGLE, 2, b"%d" % number + b"." * 100)


PUSHES = [a_push(number) for number in range(1, 31)]


@pytest.fixture(params=["real", "model"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[FileSystem, Path]:
    """A file system and an empty place on it."""
    if request.param == "real":
        return RealFileSystem(), tmp_path / "spool"
    return ModelFileSystem(), Path("/spool")


@pytest.fixture
async def spool(disk: tuple[FileSystem, Path]) -> AsyncIterator[DiskSpool]:
    """An empty spool."""
    fs, root = disk
    spool = await open_spool(root, OPTIONS, fs=fs, clock=SystemClock(), accounts=Accounts())
    yield spool
    await spool.close()


@pytest.fixture(params=["live", "reopened", "adopted"])
async def filled(request: pytest.FixtureRequest, disk: tuple[FileSystem, Path]) -> AsyncIterator[FilledBacklog]:
    """A backlog that holds some pushes: of the process that took them, of the next one, or of another."""
    fs, root = disk
    opened: list[DiskBacklog] = []

    async def start() -> DiskSpool:
        spool = await open_spool(root, OPTIONS, fs=fs, clock=SystemClock(), accounts=Accounts())
        opened.append(spool)
        return spool

    async def fill(pushes: list[Push]) -> Backlog:
        spool = await start()
        for push in pushes:
            await spool.append(push)
        if request.param == "live":
            return spool
        await spool.close()
        if request.param == "reopened":
            return await start()
        opened.extend(await adopt_free(root, fs=fs, clock=SystemClock(), accounts=Accounts(), limits=LIMITS))
        return opened[-1]

    yield fill
    for backlog in opened:
        await backlog.close()


async def take_all(backlog: Backlog, pushes: int) -> list[Spooled]:
    """Everything, piece by piece."""
    taken: list[Spooled] = []
    while len(taken) < pushes:
        some = await backlog.take(400)
        assert some
        taken += some
    return taken


async def test_pushes_come_out_in_order_each_once(filled: FilledBacklog) -> None:
    """What was appended is handed out, untouched, with rising positions."""
    taken = await take_all(await filled(PUSHES), len(PUSHES))

    assert [push for _, push in taken] == PUSHES
    assert [position for position, _ in taken] == sorted({position for position, _ in taken})


async def test_a_piece_is_bounded_but_never_empty(filled: FilledBacklog) -> None:
    """At least one push, and none after the limit is reached."""
    backlog = await filled(PUSHES)

    assert [push for _, push in await backlog.take(1)] == PUSHES[:1]
    assert len(await backlog.take(150)) == 2


async def test_the_figures_follow_what_is_settled(filled: FilledBacklog) -> None:
    """Reports, bytes and the oldest time count what is durable and not settled."""
    backlog = await filled(PUSHES)
    assert backlog.pending_reports == 2 * len(PUSHES)
    assert backlog.pending_bytes == sum(len(push.body) for push in PUSHES)
    assert backlog.oldest_ms == 1
    taken = await take_all(backlog, len(PUSHES))

    backlog.settle(taken[9].position)
    assert backlog.pending_reports == 2 * (len(PUSHES) - 10)
    assert backlog.oldest_ms == 11
    backlog.settle(taken[3].position)
    assert backlog.pending_reports == 2 * (len(PUSHES) - 10)
    backlog.settle(taken[-1].position)
    assert (backlog.pending_reports, backlog.pending_bytes) == (0, 0)
    assert backlog.oldest_ms is None


async def test_a_rewind_repeats_what_is_not_settled(filled: FilledBacklog) -> None:
    """From the first unsettled push on, everything comes again in the same order."""
    backlog = await filled(PUSHES)
    taken = await take_all(backlog, 20)
    backlog.settle(taken[4].position)

    backlog.rewind()

    assert [push for _, push in await take_all(backlog, len(PUSHES) - 5)] == PUSHES[5:]


async def test_settling_after_a_rewind_skips_what_was_settled(filled: FilledBacklog) -> None:
    """A confirmation that arrives late still counts."""
    backlog = await filled(PUSHES)
    taken = await take_all(backlog, 10)
    backlog.rewind()

    backlog.settle(taken[4].position)

    assert [push for _, push in await take_all(backlog, len(PUSHES) - 5)] == PUSHES[5:]


async def test_take_waits_for_the_next_push(spool: DiskSpool) -> None:
    """With everything handed out, the next append wakes the reader."""
    waiting = asyncio.create_task(spool.take(1))
    await spool.append(PUSHES[0])

    assert [push for _, push in await waiting] == PUSHES[:1]


async def test_a_close_ends_the_wait(spool: DiskSpool) -> None:
    """A closed backlog hands out nothing and says so."""
    waiting = asyncio.create_task(spool.take(1))
    await spool.close()

    assert await waiting == []
    assert await spool.take(1) == []


async def test_a_closed_spool_refuses(spool: DiskSpool) -> None:
    """Nothing is answered as kept after the end."""
    await spool.close()
    await spool.close()

    with pytest.raises(SpoolBrokenError):
        await spool.append(PUSHES[0])
    assert not spool.has_room()


async def test_close_keeps_what_waits(disk: tuple[FileSystem, Path]) -> None:
    """Appends that were begun before the close are answered and kept."""
    fs, root = disk
    spool = await open_spool(root, OPTIONS, fs=fs, clock=SystemClock(), accounts=Accounts())
    appends = [asyncio.ensure_future(spool.append(push)) for push in PUSHES]
    await asyncio.sleep(0)
    await spool.close()
    await asyncio.gather(*appends)

    again = await open_spool(root, OPTIONS, fs=fs, clock=SystemClock(), accounts=Accounts())
    assert [push for _, push in await take_all(again, len(PUSHES))] == PUSHES
    await again.close()


async def test_a_read_only_backlog_ends(disk: tuple[FileSystem, Path]) -> None:
    """An adopted folder ends with an empty piece, and is gone once it is settled and closed."""
    fs, root = disk
    spool: Spool = await open_spool(root, OPTIONS, fs=fs, clock=SystemClock(), accounts=Accounts())
    await spool.append(PUSHES[0])
    assert isinstance(spool, DiskSpool)
    await spool.close()
    accounts = Accounts()
    (backlog,) = await adopt_free(root, fs=fs, clock=SystemClock(), accounts=accounts, limits=LIMITS)

    ((position, _),) = await backlog.take(1)
    assert await backlog.take(1) == []
    backlog.settle(position)
    accounts.published += 2
    assert accounts.unaccounted() == 0
    await backlog.close()

    assert [name for name in fs.listdir(root) if not name.startswith(".")] == []
    assert accounts.unaccounted() == 0


async def test_settled_pushes_are_not_recovered(disk: tuple[FileSystem, Path]) -> None:
    """After a clean close the next process goes on where this one stopped, and the files before are gone."""
    fs, root = disk
    spool = await open_spool(root, OPTIONS, fs=fs, clock=SystemClock(), accounts=Accounts())
    for push in PUSHES:
        await spool.append(push)
    taken = await take_all(spool, len(PUSHES))
    spool.settle(taken[-2].position)
    await spool.close()
    logs = [name for name in fs.listdir(root / spool.name) if name.endswith(".log")]

    again = await open_spool(root, OPTIONS, fs=fs, clock=SystemClock(), accounts=Accounts())
    assert len(logs) == 1
    assert again.name == spool.name
    assert [push for _, push in await again.take(1000)] == PUSHES[-1:]
    await again.close()


async def test_quarantine_keeps_the_bytes(disk: tuple[FileSystem, Path], filled: FilledBacklog) -> None:
    """What can go nowhere else stands in a file of its own with a note beside it."""
    fs, root = disk
    backlog = await filled(PUSHES[:1])

    await backlog.quarantine(b"\x00value", "refused twice")

    body, note = fs.listdir(root / "quarantine")
    assert body.endswith(".body")
    for name, content in ((body, b"\x00value"), (note, b"refused twice\n")):
        file = fs.open(root / "quarantine" / name)
        assert file.pread(100, 0) == content
        file.close()
