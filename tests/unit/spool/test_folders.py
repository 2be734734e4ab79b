"""The folders of a spool: contested, foreign, half made, adopted."""

import asyncio
import errno
import os
from pathlib import Path

import pytest

from ingest.runtime.files import RealFileSystem
from ingest.runtime.logfile import encode_frame
from ingest.spool.accounts import Accounts
from ingest.spool.base import VolatileSpoolError
from ingest.spool.disk import adopt_each, adopt_free, open_spool
from ingest.spool.folder import Budget, check_device, folders, make_folders
from ingest.spool.options import SpoolOptions
from ingest.spool.record import encode_tag
from tests.fakes.files import FaultyFileSystem, ModelFileSystem
from tests.spooling import (
    FOREIGN,
    LIMITS,
    ROOT,
    Opener,
    StillClock,
    a_push,
    bodies,
    hanging,
    logs,
    three_folders,
    until,
)


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
