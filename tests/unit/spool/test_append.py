"""Appending to a spool in trouble: full, failing, hanging."""

import asyncio
import errno
from pathlib import Path

import pytest

from ingest.contract.push import Push, Route
from ingest.contract.report import Reason
from ingest.runtime.logfile import Frame
from ingest.spool.accounts import Accounts
from ingest.spool.base import PUSHES_PER_TAKE, SpoolBrokenError, SpoolFormatError, SpoolFullError
from ingest.spool.disk import open_spool
from ingest.spool.folder import Budget
from ingest.spool.options import BacklogLimits, SpoolOptions
from ingest.spool.record import decode_push, encode_tag
from tests.fakes.files import FaultyFileSystem, ModelFileSystem
from tests.spooling import (
    LIMITS,
    ROOT,
    Opener,
    StillClock,
    a_push,
    bodies,
    failing,
    hanging,
    logs,
    until,
)

REASONS = (
    Reason.NOT_JSON,
    Reason.NOT_A_FORM,
    Reason.NOT_AN_OBJECT,
    Reason.TOO_MANY_REPORTS,
    Reason.MISSING_ID,
    Reason.BAD_ID,
    Reason.MISSING_STATUS,
    Reason.BAD_STATUS,
    Reason.BAD_SEQUENCE,
    Reason.BAD_FIELD,
)
"""Why a receiver refuses a body."""


def test_a_push_is_framed_whole() -> None:
    """Times beyond 32 bits, routes, counts and why it was refused survive the tag."""
    refused = [Push(1, Route.BATCH, 1, b"x", reason) for reason in REASONS]
    for push in (Push(2**48 - 1, Route.SINGLE, 2**32 - 1, b"x"), Push(0, Route.BATCH, 0, b""), *refused):
        frame = Frame(1, encode_tag(push, synced=77), push.body, 0, 0)

        assert decode_push(frame) == push


def test_an_unknown_kind_is_not_guessed() -> None:
    """A record that only a newer version can read is an error, not a push."""
    tag = bytearray(encode_tag(a_push(), synced=0))
    tag[10] = 9

    with pytest.raises(SpoolFormatError, match="kind 9"):
        decode_push(Frame(1, bytes(tag), b"", 0, 0))


def test_the_bytes_of_a_verdict_are_for_good() -> None:
    """They stand on disks: 0 is a push that was taken, each reason has a number of its own."""
    tags = [encode_tag(Push(1, Route.BATCH, 2, b"", reason), synced=3) for reason in (None, *REASONS)]

    assert tags == [b"\x01\0\0\0\0\0\x02\0\0\0\x01" + bytes([verdict]) + b"\x03\0\0\0" for verdict in range(11)]


def test_an_unknown_verdict_is_not_guessed() -> None:
    """A reason that only a newer version knows is an error, not a push that was taken."""
    tag = bytearray(encode_tag(a_push(), synced=0))
    tag[11] = 99

    with pytest.raises(SpoolFormatError, match="verdict 99"):
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
    """ENOSPC is no end: has_room falls, and rises again by itself; so does the time until it is full."""
    spool = await opener.spool()
    assert spool.has_room()
    fs.plan = failing(errno.ENOSPC, "allocate", "pwrite")
    with pytest.raises(SpoolFullError):
        await spool.append(a_push())
    await until(lambda: not spool.has_room())
    assert spool.seconds_until_full == 0
    with pytest.raises(SpoolFullError):
        await spool.append(a_push())

    fs.plan = None
    await until(spool.has_room)
    assert spool.seconds_until_full > 0
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
