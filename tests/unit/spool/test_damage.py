"""What a spool does with damaged, torn, unreadable and vanished bytes."""

import errno
import os
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import pytest

from ingest.spool import salvage
from ingest.spool.cursor import Cursor
from ingest.spool.options import BacklogLimits, SpoolOptions
from tests.fakes.files import FaultyFileSystem
from tests.spooling import (
    LIMITS,
    ROOT,
    WIDE,
    Opener,
    a_push,
    bodies,
    bodies_and_positions,
    in_quarantine,
    logs,
    refusing_quarantine,
    rot,
    starts,
)


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
