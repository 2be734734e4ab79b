"""The cursor of a spool when its disk fails, and the outlook for its room."""

import errno
import math
import os
from pathlib import Path

import pytest

from ingest.spool.accounts import Accounts
from ingest.spool.cursor import Cursor
from ingest.spool.disk import open_spool
from tests.fakes.files import FaultyFileSystem
from tests.spooling import OPTIONS, ROOT, Opener, StillClock, a_push


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
