"""Folders of ledgers: locks, identity, damage, and the files of a partition."""

import errno
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from consumers.entry import Cursor, Entry, LedgerDamagedError, LedgerFormatError, Position
from consumers.ledger import deadlines, generation
from consumers.ledger.index import SEAL_ENTRIES, Index
from consumers.ledger.partition import PartitionLedger, Sizes
from consumers.ledger.store import SPREAD, Identity, Store, encode_manifest
from ingest.runtime.errors import UsageError
from ingest.runtime.files import RealFileSystem
from ingest.runtime.logfile import Head, decode_header
from tests.fakes.files import FaultyFileSystem

GENERATION_MS = 1000
IDENTITY = Identity(group="g/1", topic="sms.status-reports", partitions=3, cluster="c1")


class Steps:
    """A clock that passes by sleeping, and something to do meanwhile."""

    def __init__(self) -> None:
        self.now = 0.0
        self.meanwhile: Callable[[], None] | None = None

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
        if self.meanwhile is not None and self.now > 1:
            self.meanwhile()
            self.meanwhile = None


@pytest.fixture
def steps() -> Steps:
    """A clock of the test."""
    return Steps()


MakeStore = Callable[..., Store]


@pytest.fixture
def make(tmp_path: Path, steps: Steps) -> Iterator[MakeStore]:
    """Stores over one folder, as of several processes."""
    with ThreadPoolExecutor(1) as worker:

        def a_store(
            identity: Identity = IDENTITY,
            fs: FaultyFileSystem | None = None,
            seal_entries: int = SEAL_ENTRIES,
            preallocate_bytes: int = 4096,
        ) -> Store:
            return Store(
                tmp_path / "var" / "state",
                fs or RealFileSystem(),
                identity,
                Sizes(generation_ms=GENERATION_MS, preallocate_bytes=preallocate_bytes, seal_entries=seal_entries),
                worker=worker,
                monotonic=lambda: steps.now,
                sleep=steps.sleep,
            )

        yield a_store


def write(ledger: PartitionLedger, cycle: int, *, clock_ms: int = 0, cursor: Cursor | None = None) -> tuple[int, bytes]:
    """Apply a cycle with one entry."""
    entry = Entry(cycle.to_bytes(16, "big"), clock_ms, first_seen=True, waiting=True, payload=b"%d" % cycle)
    [value] = ledger.encode([entry], Position(cycle, cycle, clock_ms, cursor or Cursor()))
    ledger.apply([(cycle * 2, value)])
    return cycle * 2, value


def known(ledger: PartitionLedger, *cycles: int) -> list[bytes | None]:
    """What the ledger knows of entries."""
    return ledger.lookup([cycle.to_bytes(16, "big") for cycle in cycles])


def folder_of(root: Path, partition: int = 1) -> Path:
    """The common folder of a partition."""
    return root / "var" / "state" / "g%2F1" / "sms.status-reports" / str(partition)


def journals(root: Path) -> list[Path]:
    """The journal files of the partition, oldest first."""
    return sorted(folder_of(root).glob("journal-*.log"))


def test_folders_are_for_the_owner_only(make: MakeStore, tmp_path: Path) -> None:
    """State tells who sent messages to whom: nobody else may read it."""
    ledger = make().open(1)
    write(ledger, 1)
    ledger.close()

    made = [tmp_path / "var", *(tmp_path / "var").rglob("*")]
    assert {stat.S_IMODE(path.stat().st_mode) for path in made if path.is_dir()} == {0o700}
    assert {stat.S_IMODE(path.stat().st_mode) for path in made if path.is_file()} == {0o600}
    assert folder_of(tmp_path) in made


@pytest.mark.parametrize("name", [".", "..", "a/b", "%2E", "é"])
def test_any_group_id_has_a_folder_of_its_own(name: str, make: MakeStore, tmp_path: Path) -> None:
    """A group id is no path."""
    make(Identity(group=name, topic="t", partitions=1)).open(0).close()

    [folder] = (tmp_path / "var" / "state").iterdir()
    assert [path.name for path in folder.iterdir()] == ["t"]


def test_held_folder_is_waited_for(make: MakeStore, steps: Steps) -> None:
    """A predecessor that closes within the wait hands its state over."""
    before = make().open(1)
    write(before, 1)
    steps.meanwhile = before.close

    after = make().open(1)

    assert known(after, 1) == [b"1"]
    after.close()


def test_held_folder_stays_untouched_and_another_is_used(make: MakeStore, tmp_path: Path, steps: Steps) -> None:
    """A folder that stays held costs a restore, not a wait for ever; it is removed once nobody holds it."""
    holder = make().open(1)
    write(holder, 1)
    with capture_logs() as logs:
        other = make().open(1)

    assert steps.now < 6
    assert other.next_changelog_offset() == 0
    write(other, 1)
    write(other, 2)
    assert known(holder, 1, 2) == [b"1", None]
    assert [log["log_level"] for log in logs] == ["warning"]
    own = [path for path in folder_of(tmp_path).parent.iterdir() if path.name.startswith("1.")]
    assert len(own) == 1
    make().open(2).close()
    holder.close()
    make().open(1).close()
    assert own[0].exists()  # still held
    other.close()
    make().open(1).close()
    assert not own[0].exists()


def test_newer_state_is_refused_by_name(make: MakeStore, tmp_path: Path) -> None:
    """A state of a newer release stops the start with a line that says what to do, and keeps the folder free."""
    make().open(1).close()
    manifest = folder_of(tmp_path) / "manifest.json"
    manifest.write_bytes(encode_manifest({"format": 2, "partitions": 3, "cluster": "c1", "more": "than we know"}))

    for _ in range(2):
        with pytest.raises(LedgerFormatError, match=r"format 2.*newer release"):
            make().open(1)


def test_other_number_of_partitions_is_refused_with_the_way_out(make: MakeStore) -> None:
    """A message's memory would be in another partition than its reports."""
    make().open(1).close()

    with pytest.raises(UsageError, match=r"3 partitions.*has 6 now.*DLR_GROUP_ID"):
        make(Identity(group="g/1", topic="sms.status-reports", partitions=6)).open(1)


@pytest.mark.parametrize("manifest", ["other cluster", "rubbish", "missing", "flipped"])
def test_state_of_another_cluster_is_discarded(manifest: str, make: MakeStore, tmp_path: Path) -> None:
    """What is not a copy of this changelog is worth nothing."""
    ledger = make().open(1)
    write(ledger, 1)
    ledger.close()
    path = folder_of(tmp_path) / "manifest.json"
    identity = IDENTITY
    if manifest == "other cluster":
        identity = Identity(group="g/1", topic="sms.status-reports", partitions=3, cluster="c2")
    elif manifest == "rubbish":
        path.write_text("{")
    elif manifest == "flipped":
        path.write_bytes(path.read_bytes().replace(b'"format": 1', b'"format": 3'))
    else:
        path.unlink()

    with capture_logs():
        after = make(identity).open(1)

    assert known(after, 1) == [None]
    assert json.loads(path.read_text())["cluster"] == identity.cluster
    after.close()


def test_any_changed_byte_of_a_manifest_costs_a_restore_at_most(make: MakeStore, tmp_path: Path) -> None:
    """It never passes for a newer format, another number of partitions or another cluster, which stop the start."""
    make().open(1).close()
    path = folder_of(tmp_path) / "manifest.json"
    written = path.read_bytes()

    for at, byte in enumerate(written):
        path.write_bytes(written[:at] + bytes([byte ^ 1 << at % 8]) + written[at + 1 :])
        with capture_logs():
            make().open(1).close()
        assert json.loads(path.read_bytes()) == json.loads(written)


@pytest.mark.parametrize("file", ["journal", "manifest"])
def test_bytes_that_the_device_has_lost_are_damage(file: str, make: MakeStore, tmp_path: Path) -> None:
    """A bad sector is restored from the changelog elsewhere; it does not stop the partition for ever."""
    ledger = make().open(1)
    changelog = [write(ledger, cycle, clock_ms=cycle * 400) for cycle in range(1, 10)]
    ledger.close()
    fs = FaultyFileSystem(RealFileSystem())
    path = journals(tmp_path)[0] if file == "journal" else folder_of(tmp_path) / "manifest.json"
    fs.unreadable.add((path, path.stat().st_size - 1))

    with capture_logs() as logs:
        after = make(fs=fs).open(1)

    assert after.position is None
    assert any("restored from the changelog" in log["event"] for log in logs)
    after.apply(changelog)
    assert known(after, 1, 9) == [b"1", b"9"]
    after.close()


def test_disk_that_does_not_serve_is_no_damage(make: MakeStore) -> None:
    """What may pass is told and keeps the state."""
    ledger = make().open(1)
    write(ledger, 1)
    ledger.close()
    fs = FaultyFileSystem(RealFileSystem())

    def refuse(name: str, path: Path) -> None:
        if name == "open" and path.name.startswith("journal"):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))

    fs.plan = refuse
    with pytest.raises(OSError, match="Too many open files"):
        make(fs=fs).open(1)

    after = make().open(1)
    assert known(after, 1) == [b"1"]
    after.close()


@pytest.mark.parametrize("call", ["listdir", "unlink", "rename"])
def test_open_that_fails_leaves_nobody_at_work(
    call: str, make: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ledger that was not opened changes nothing in the folder afterwards, and gives it up."""
    ledger = make().open(1)
    write(ledger, 1)
    ledger.close()
    (folder_of(tmp_path) / "manifest.json").write_text("{")
    closed: list[Index] = []
    close = Index.close

    def closing(index: Index) -> None:
        closed.append(index)
        close(index)

    monkeypatch.setattr(Index, "close", closing)
    fs = FaultyFileSystem(RealFileSystem())
    opened: list[Path] = []

    def refuse(name: str, path: Path) -> None:
        if name == "open" and path.name.startswith("journal"):
            opened.append(path)
        if name == call and opened:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    fs.plan = refuse
    with capture_logs(), pytest.raises(OSError, match=os.strerror(errno.EIO)):
        make(fs=fs).open(1)

    assert len(closed) == 1
    with capture_logs():
        make().open(1).close()


def test_abandoned_folder_in_which_a_job_still_writes_is_left_for_the_next_time(
    make: MakeStore, tmp_path: Path
) -> None:
    """A run that begins while its folder is removed keeps nobody from opening."""
    make().open(1).close()
    own = folder_of(tmp_path).with_name("1.abc")
    own.mkdir()
    fs = FaultyFileSystem(RealFileSystem())

    def meanwhile(call: str, path: Path) -> None:
        if call == "rmdir":
            (path / "run-abc.tmp").touch()

    fs.plan = meanwhile
    make(fs=fs).open(1).close()

    make().open(1).close()
    assert not own.exists()


def test_cluster_that_becomes_known_is_noted(make: MakeStore, tmp_path: Path) -> None:
    """State that was made before the cluster id was known is kept, and the id with it."""
    ledger = make(Identity(group="g/1", topic="sms.status-reports", partitions=3)).open(1)
    write(ledger, 1)
    ledger.close()

    after = make().open(1)

    assert known(after, 1) == [b"1"]
    assert json.loads((folder_of(tmp_path) / "manifest.json").read_text())["cluster"] == "c1"
    after.close()


def test_generations_are_files_and_only_the_last_is_read_at_start(make: MakeStore, tmp_path: Path) -> None:
    """A generation ends in a footer; a start reads the others' footers only."""
    ledger = make().open(1)
    for cycle in range(1, 10):
        write(ledger, cycle, clock_ms=cycle * 400)
    ledger.close()
    assert len(journals(tmp_path)) == 3
    fs = FaultyFileSystem(RealFileSystem())

    after = make(fs=fs).open(1)

    assert known(after, *range(1, 10)) == [b"%d" % cycle for cycle in range(1, 10)]
    reads = [path for call, path in fs.calls if call == "pread"]
    assert [reads.count(path) for path in journals(tmp_path)][:2] == [1, 1]
    after.close()


def test_partitions_begin_their_generations_at_different_times(make: MakeStore, tmp_path: Path) -> None:
    """What began together does not wait for the device together, and lasts nearly as long as it was told to."""
    store = make(Identity(group="g/1", topic="sms.status-reports", partitions=50))
    turned = {}
    for partition in (0, 25, 49):
        ledger = store.open(partition)
        for cycle, clock_ms in enumerate([0, *range(GENERATION_MS - GENERATION_MS // SPREAD - 1, GENERATION_MS + 1)]):
            write(ledger, cycle + 1, clock_ms=clock_ms)
            if partition not in turned and len(list(folder_of(tmp_path, partition).glob("journal-*"))) == 2:
                turned[partition] = clock_ms
        ledger.close()

    assert turned == {0: GENERATION_MS, 25: 993, 49: 985}


@pytest.mark.parametrize("damage", ["cut", "footer", "missing", "foreign", "middle"])
def test_damage_before_the_end_discards_everything(damage: str, make: MakeStore, tmp_path: Path) -> None:
    """State with a hole is none: it is thrown away, said so, and the changelog restores it."""
    ledger = make().open(1)
    changelog = [write(ledger, cycle, clock_ms=cycle * 400) for cycle in range(1, 10)]
    ledger.close()
    first, second, last = journals(tmp_path)
    if damage == "cut":
        first.write_bytes(first.read_bytes()[:-200])
    elif damage == "footer":
        first.write_bytes(first.read_bytes()[:-10] + b"\xff" + first.read_bytes()[-9:])
    elif damage == "missing":
        second.unlink()
    elif damage == "foreign":
        second.write_bytes(first.read_bytes())
    else:
        last.write_bytes(last.read_bytes()[:60] + b"\xff" + last.read_bytes()[61:])

    with capture_logs() as logs:
        after = make().open(1)

    assert after.position is None
    assert after.next_changelog_offset() == 0
    assert journals(tmp_path) == []
    assert any("restored from the changelog" in log["event"] for log in logs)
    after.apply(changelog)
    assert known(after, 1, 9) == [b"1", b"9"]
    after.close()


def test_forgotten_generation_is_unlinked(make: MakeStore, tmp_path: Path) -> None:
    """Expiry is the removal of a file."""
    ledger = make().open(1)
    for cycle in range(1, 10):
        write(ledger, cycle, clock_ms=cycle * 400)
    [value] = ledger.encode([], Position(10, 10, 4000, Cursor(20)))
    ledger.apply([(20, value)])

    ledger.forget(1201)

    assert known(ledger, 1, 3, 4, 9) == [None, None, b"4", b"9"]
    assert len(journals(tmp_path)) == 3
    ledger.close()


def test_runs_outlive_the_generation_that_ended_in_idle_cycles(make: MakeStore, tmp_path: Path) -> None:
    """An empty cycle that begins a generation does not make a run of the one before it count for both."""
    ledger = make(seal_entries=1).open(1)
    write(ledger, 1, clock_ms=1000)
    [idle] = ledger.encode([], Position(2, 2, 2000, Cursor(3)))
    ledger.apply([(4, idle)])
    for cycle in range(3, 6):
        write(ledger, cycle, clock_ms=cycle + 2100, cursor=Cursor(3))
    ledger.settle()
    ledger.forget(1500)
    runs = sorted(folder_of(tmp_path).glob("run-*"))
    assert len(runs) == 2
    ledger.close()

    with capture_logs() as logs:
        ledger = make(seal_entries=1).open(1)

    assert logs == []
    assert sorted(folder_of(tmp_path).glob("run-*")) == runs
    assert known(ledger, 1, 3, 5) == [None, b"3", b"5"]
    ledger.close()


@pytest.mark.parametrize("call", ["sync_dir", "unlink"])
def test_forgetting_that_fails_half_way_leaves_nothing_to_stumble_over(call: str, make: MakeStore) -> None:
    """What is gone is unknown, what is left is known, and the next try goes on."""
    fs = FaultyFileSystem(RealFileSystem())
    ledger = make(fs=fs).open(1)
    for cycle in range(1, 10):
        write(ledger, cycle, clock_ms=cycle * 1000, cursor=Cursor(cycle * 2))
    calls: list[Path] = []

    def refuse(name: str, path: Path) -> None:
        if name == call:
            calls.append(path)
            if call == "sync_dir" or len(calls) > 1:
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    fs.plan = refuse
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        ledger.forget(3500)
    fs.plan = None

    assert known(ledger, 1, 9) == [None, b"9"]
    ledger.forget(3500)
    assert known(ledger, 1, 3, 4, 9) == [None, None, b"4", b"9"]
    ledger.close()


@pytest.mark.parametrize("call", ["pwrite", "allocate", "create"])
def test_failed_append_leaves_the_cycle_before(call: str, make: MakeStore) -> None:
    """A disk that does not take a cycle is told; once it does, the same records go in and nothing is missing."""
    fs = FaultyFileSystem(RealFileSystem())
    ledger = make(fs=fs).open(1)
    write(ledger, 1)

    def refuse(name: str, path: Path) -> None:
        if name == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    large = Entry(b"L" * 16, 5000, first_seen=True, waiting=True, payload=bytes(10_000))
    [value] = ledger.encode([large], Position(2, 2, 5000, Cursor()))
    fs.plan = refuse
    with pytest.raises(OSError, match="No space"):
        ledger.apply([(7, value)])
    assert ledger.next_changelog_offset() == 3
    assert known(ledger, 1) == [b"1"]
    fs.plan = None

    ledger.apply([(7, value)])
    ledger.close()

    after = make().open(1)
    assert after.lookup([b"L" * 16]) == [bytes(10_000)]
    assert after.next_changelog_offset() == 8
    after.close()


def test_failed_sync_is_damage(make: MakeStore) -> None:
    """After a failed fdatasync nobody knows what stands in the file."""
    fs = FaultyFileSystem(RealFileSystem())
    ledger = make(fs=fs).open(1)
    write(ledger, 1)

    def refuse(name: str, path: Path) -> None:
        if name == "sync":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    fs.plan = refuse
    with pytest.raises(LedgerDamagedError):
        ledger.flush()
    fs.plan = None
    ledger.discard()

    write(ledger, 1)
    assert known(ledger, 1) == [b"1"]
    ledger.close()


def test_index_behind_the_journal_is_damage(make: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cycle that stands in the journal alone is never taken for known: everything is refused until it is restored."""
    ledger = make().open(1)
    applied = [write(ledger, 1)]
    with monkeypatch.context() as patch:
        patch.setattr(Index, "update", _fail)
        with pytest.raises(LedgerDamagedError):
            write(ledger, 2)

    for ask in (lambda: known(ledger, 1), lambda: ledger.due(Cursor(), 0, 1), lambda: write(ledger, 3)):
        with pytest.raises(LedgerDamagedError):
            ask()
    ledger.discard()
    assert ledger.next_changelog_offset() == 0
    ledger.apply(applied)
    write(ledger, 2)
    assert known(ledger, 1, 2) == [b"1", b"2"]
    ledger.close()


@pytest.mark.parametrize("wrong", [1, 2], ids=["another time", "another row"])
def test_index_that_points_at_another_entry_is_damage(
    wrong: int, make: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands at a place must be what the index says: of this message, and waiting or not."""
    ledger = make().open(1)
    write(ledger, 1)
    find = Index.find
    monkeypatch.setattr(Index, "find", lambda *args: find(*args) ^ np.uint64(wrong))

    with pytest.raises(LedgerDamagedError):
        known(ledger, 1)
    ledger.close()


@pytest.mark.parametrize("bound", ["RECORDS_MAX", "BYTES_MAX", "CANDIDATES_MAX"])
def test_look_at_the_deadlines_is_bounded_in_what_it_reads(
    bound: str, make: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look ends at each of its bounds and says so; looks that go on from there find everyone once, in order."""
    monkeypatch.setattr(deadlines, bound, 1)
    ledger = make().open(1)
    for cycle in range(1, 7):
        write(ledger, cycle, clock_ms=cycle * 400)
    cursor, found, looks, more = Cursor(), [], 0, True

    while more:
        due = ledger.due(cursor, 10_000, 100)
        found += [payload for _, payload in due.messages]
        cursor, more, looks = due.cursor, due.more, looks + 1

    assert found == [b"%d" % cycle for cycle in range(1, 7)]
    assert looks == 6
    ledger.close()


def test_room_that_was_given_back_is_not_taken_for_lost(make: MakeStore) -> None:
    """A generation that was mapped with its room, and then sealed without, is walked over and read as before."""
    ledger = make(preallocate_bytes=1 << 20).open(1)
    write(ledger, 1)
    assert known(ledger, 1) == [b"1"]

    write(ledger, 2, clock_ms=2 * GENERATION_MS)

    assert [payload for _, payload in ledger.due(Cursor(), 0, 10).messages] == [b"1"]
    assert known(ledger, 1, 2) == [b"1", b"2"]
    ledger.close()


@pytest.mark.parametrize("found", ["appended", "open", "sealed"])
def test_look_at_the_deadlines_begins_near_its_cursor(
    found: str, make: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No look walks over a whole generation, the first after a start and one after a doubt neither."""
    monkeypatch.setattr(generation, "MARK_BYTES", 1000)
    ledger = make().open(1)
    for cycle in range(1, 201):
        write(ledger, cycle, clock_ms=cycle, cursor=Cursor(max(0, cycle * 2 - 10)))
    if found == "sealed":
        write(ledger, 201, clock_ms=2 * GENERATION_MS, cursor=Cursor(392))
    if found != "appended":
        ledger.close()
        ledger = make().open(1)
    heads: list[bytes] = []

    def decoded(head: bytes, *, salt: int) -> Head | None:
        heads.append(head)
        return decode_header(head, salt=salt)

    monkeypatch.setattr(generation, "decode_header", decoded)

    for offset in (390, 388, 200, 390):
        heads.clear()
        due = ledger.due(Cursor(offset), offset // 2, 1)
        assert due.messages == [((offset // 2).to_bytes(16, "big"), b"%d" % (offset // 2))]
        assert len(heads) < 20

    ledger.close()


def test_what_failed_beside_the_work_is_said_before_the_journal_is_written(
    make: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed sealing is a doubt and no damage: the cycle is read again from the changelog, nothing is restored."""
    ledger = make().open(1)
    write(ledger, 1)
    with monkeypatch.context() as patch:
        patch.setattr(Index, "check", _fail)
        with pytest.raises(OSError, match="sealing"):
            write(ledger, 2)

    assert ledger.next_changelog_offset() == 3
    assert known(ledger, 1, 2) == [b"1", None]
    write(ledger, 2)
    assert known(ledger, 1, 2) == [b"1", b"2"]
    ledger.close()


def test_half_discarded_ledger_is_not_asked(make: MakeStore) -> None:
    """A discard that the disk refused in the middle leaves no journal that seems to be known."""
    fs = FaultyFileSystem(RealFileSystem())
    ledger = make(fs=fs).open(1)
    write(ledger, 1)

    def refuse(call: str, path: Path) -> None:
        if call == "unlink":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    fs.plan = refuse
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        ledger.discard()

    with pytest.raises(LedgerDamagedError):
        known(ledger, 1)
    fs.plan = None
    ledger.discard()
    assert known(ledger, 1) == [None]
    ledger.close()


def _fail(*_: object) -> None:
    raise OSError(errno.EIO, "sealing failed")


def test_removed_folder_is_damage_and_a_new_start_makes_it_anew(make: MakeStore, tmp_path: Path) -> None:
    """State that somebody removed under our feet is restored from the changelog."""
    ledger = make().open(1)
    for cycle in range(1, 10):
        write(ledger, cycle, clock_ms=cycle * 400)
    ledger.close()
    ledger = make().open(1)
    ledger._journal.close()
    for path in journals(tmp_path):
        path.unlink()

    with pytest.raises(LedgerDamagedError, match="removed"):
        known(ledger, 1)
    ledger.close()

    after = make().open(1)
    assert after.next_changelog_offset() == 0
    after.close()


def test_folder_that_is_removed_under_an_open_ledger_is_damage(make: MakeStore, tmp_path: Path) -> None:
    """A cycle that has no place to go to says so: to try it again in the same place would never end."""
    ledger = make().open(1)
    write(ledger, 1)
    shutil.rmtree(folder_of(tmp_path))

    with pytest.raises(LedgerDamagedError, match="removed"):
        write(ledger, 2, clock_ms=2 * GENERATION_MS)
    with pytest.raises(FileNotFoundError):
        ledger.discard()
    ledger.close()

    after = make().open(1)
    write(after, 1)
    assert known(after, 1) == [b"1"]
    after.close()


def test_closed_ledger_takes_nothing(make: MakeStore) -> None:
    """The folder may be somebody else's by now."""
    ledger = make().open(1)
    ledger.close()

    with pytest.raises(ValueError, match="closed"):
        write(ledger, 1)
