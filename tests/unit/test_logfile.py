"""Log files: what is written is read, and what is damaged is said to be."""

from pathlib import Path

import pytest

from ingest.runtime.files import RealFileSystem, kind_from_mounts
from ingest.runtime.logfile import (
    HEADER_BYTES,
    Damage,
    Frame,
    LogWriter,
    encode_frame,
    read_frames,
    scan,
    scan_file,
)
from tests.fakes.files import FaultyFileSystem, ModelFileSystem

TAG = b"0123456789abcdef"
ROOM = 4096


def frames(*bodies: bytes, first: int = 1, salt: int = 0) -> bytes:
    """A buffer with one frame per body."""
    return b"".join(encode_frame(first + at, TAG, body, salt=salt) for at, body in enumerate(bodies))


def bodies_of(items: list[Frame | Damage]) -> list[bytes]:
    """The bodies of the good frames."""
    return [item.body for item in items if isinstance(item, Frame)]


def test_frames_come_back_with_their_places() -> None:
    """Sequence, tag, body and offsets are read as they were written."""
    buffer = frames(b"one", b"")

    assert list(scan(buffer)) == [
        Frame(1, TAG, b"one", 0, HEADER_BYTES + 3),
        Frame(2, TAG, b"", HEADER_BYTES + 3, len(buffer)),
    ]


def test_zeros_at_the_end_are_room() -> None:
    """A preallocated tail is neither a frame nor damage."""
    buffer = frames(b"one") + bytes(1000)

    assert bodies_of(list(scan(buffer))) == [b"one"]
    assert len(list(scan(buffer))) == 1


@pytest.mark.parametrize("cut", [1, 5, HEADER_BYTES, HEADER_BYTES + 4])
def test_a_cut_append_is_a_torn_tail(cut: int) -> None:
    """A last frame that is not complete is torn, the ones before it are good."""
    whole = frames(b"one", b"twotwo")

    items = list(scan(whole[:-cut]))

    assert bodies_of(items) == [b"one"]
    assert [(item.start, item.kind) for item in items if isinstance(item, Damage)] == [(HEADER_BYTES + 3, "torn")]


@pytest.mark.parametrize("at", [0, 5, 20, 39, 41])
def test_a_bad_frame_before_a_good_one_is_corrupt(at: int) -> None:
    """One flipped bit costs one frame, wherever it is."""
    first, second = frames(b"one"), frames(b"two", first=2)
    broken = bytearray(first + second)
    broken[at] ^= 4

    items = list(scan(bytes(broken)))

    assert items[0] == Damage(0, len(first), "corrupt")
    assert bodies_of(items) == [b"two"]


def test_a_frame_inside_a_damaged_body_is_not_believed() -> None:
    """A sender cannot have a frame of its own making read by breaking the one around it."""
    inner = encode_frame(7, TAG, b"forged")
    broken = bytearray(encode_frame(1, TAG, b"x" + inner, salt=99) + frames(b"two", first=2, salt=99))
    broken[0] ^= 1

    assert bodies_of(list(scan(bytes(broken), salt=99))) == [b"two"]


def test_an_older_frame_is_not_read_again() -> None:
    """Remains of an earlier use of the same blocks have lower sequences."""
    buffer = frames(b"new", first=10) + frames(b"old", first=3)

    assert bodies_of(list(scan(buffer))) == [b"new"]
    assert bodies_of(list(scan(buffer, after=10))) == []


def test_a_tag_of_another_length_is_refused() -> None:
    """A header has its size by definition."""
    with pytest.raises(ValueError, match="16 bytes"):
        encode_frame(1, b"short", b"")


def test_a_file_is_read_in_bounded_pieces(tmp_path: Path) -> None:
    """Pieces of any size, one by one, give every frame once; the last piece is empty."""
    fs = RealFileSystem()
    log = LogWriter(fs, tmp_path / "log", ROOM)
    log.append(*[frames(bytes([65 + at]) * 100, first=at + 1) for at in range(9)])
    log.sync()
    file = fs.open(tmp_path / "log")
    found: list[Frame | Damage] = []
    start = 0
    while True:
        some, start = read_frames(file, start, 250)
        if not some:
            break
        assert len(some) <= 2
        found += some
    file.close()
    log.close()

    assert bodies_of(found) == [bytes([65 + at]) * 100 for at in range(9)]
    assert start == log.end


def test_chunks_smaller_than_a_frame_are_enough(tmp_path: Path) -> None:
    """A frame larger than the chunk, and damage across its border, are read all the same."""
    fs = RealFileSystem()
    whole = bytearray(frames(b"a" * 3000, b"b" * 3000, b"c" * 10))
    whole[HEADER_BYTES + 3000 + 8] ^= 1
    (tmp_path / "log").write_bytes(whole)
    file = fs.open(tmp_path / "log")
    items = list(scan_file(file, chunk_bytes=64))
    file.close()

    assert bodies_of(items) == [b"a" * 3000, b"c" * 10]
    assert [item.kind for item in items if isinstance(item, Damage)] == ["corrupt"]


def test_a_sealed_file_gives_its_room_back(tmp_path: Path) -> None:
    """Preallocated room that was not used does not outlive the writer."""
    log = LogWriter(RealFileSystem(), tmp_path / "log", ROOM)
    assert (tmp_path / "log").stat().st_size == ROOM
    log.append(frames(b"one"))
    log.sync()
    log.append(b"never synced")
    log.seal()

    assert (tmp_path / "log").read_bytes() == frames(b"one")


def test_room_is_extended_in_steps(tmp_path: Path) -> None:
    """An append beyond the reserved room reserves the next step."""
    log = LogWriter(RealFileSystem(), tmp_path / "log", 100)
    log.append(b"x" * 150)
    assert log.allocated == 250
    log.close()


def test_resuming_cuts_the_torn_tail(tmp_path: Path) -> None:
    """A reopened file goes on after its last good frame."""
    good = frames(b"one")
    (tmp_path / "log").write_bytes(good + b"torn")
    log = LogWriter(RealFileSystem(), tmp_path / "log", ROOM, resume_at=len(good))
    assert log.append(frames(b"two", first=2)) == len(good)
    log.sync()
    log.seal()

    assert bodies_of(list(scan((tmp_path / "log").read_bytes()))) == [b"one", b"two"]


def test_truncate_takes_an_append_back(tmp_path: Path) -> None:
    """What was appended in vain can be cut off before the next append."""
    log = LogWriter(RealFileSystem(), tmp_path / "log")
    log.append(frames(b"one"))
    log.sync()
    start = log.append(b"in vain")
    log.truncate(start)
    log.append(frames(b"two", first=2))
    log.sync()
    log.seal()

    assert bodies_of(list(scan((tmp_path / "log").read_bytes()))) == [b"one", b"two"]


def test_a_name_that_is_taken_is_refused(tmp_path: Path) -> None:
    """Two writers never share a new file."""
    (tmp_path / "log").touch()
    with pytest.raises(FileExistsError):
        LogWriter(RealFileSystem(), tmp_path / "log")


def append_and_sync(log: LogWriter) -> None:
    """One record, durable."""
    log.append(frames(b"two", first=2))
    log.sync()


@pytest.mark.parametrize("call", ["sync", "pwrite"])
def test_a_failed_file_is_never_synced_again(call: str) -> None:
    """After a failed write or sync the kernel may lie about the next one: the writer refuses to ask."""
    fs = FaultyFileSystem(ModelFileSystem())
    log = LogWriter(fs, Path("/log"), ROOM)
    log.append(frames(b"one"))
    log.sync()

    def fail(called: str, _path: Path) -> None:
        if called == call:
            raise OSError(5, "Input/output error")

    fs.plan = fail
    with pytest.raises(OSError, match="Input/output"):
        append_and_sync(log)
    fs.plan = None
    before = len(fs.calls)
    for use in (log.sync, lambda: log.append(b"more")):
        with pytest.raises(OSError, match="failed before"):
            use()
    log.seal()

    assert log.failed
    assert [name for name, _ in fs.calls[before:]] == ["truncate"]
    assert fs.inner.size_of(Path("/log")) == len(frames(b"one"))


def test_a_writer_that_cannot_begin_leaves_no_file() -> None:
    """A device without room is not littered with empty files."""
    fs = ModelFileSystem(capacity=100)

    with pytest.raises(OSError, match="No space"):
        LogWriter(fs, Path("/log"), ROOM)
    assert fs.listdir(Path("/")) == []


MOUNTS = r"""
22 27 0:21 / /proc rw - proc proc rw
27 1 254:0 / / rw - ext4 /dev/vda rw
28 27 0:30 / /mnt/a\040b rw shared:1 - nfs4 host:/ rw
29 27 0:31 / /mnt rw - ext4 /dev/vdb rw
30 27 0:32 / /mnt rw - tmpfs tmpfs rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/var/spool", "ext4"), ("/mnt/a b/spool", "nfs4"), ("/mnt/a", "tmpfs"), ("/mntx", "ext4"), ("relative", "")],
)
def test_the_nearest_mount_says_the_kind(path: str, kind: str) -> None:
    """The deepest mount point above a path counts, of two on one point the later."""
    assert kind_from_mounts(Path(path), MOUNTS.strip()) == kind


def test_a_lock_keeps_others_out_until_it_is_released(tmp_path: Path) -> None:
    """One holder at a time, in one process too; the note says who."""
    fs = RealFileSystem()
    lock = fs.lock(tmp_path / "lock", b"me")
    assert lock is not None
    assert fs.lock(tmp_path / "lock", b"you") is None
    assert (tmp_path / "lock").read_bytes() == b"me"
    lock.release()
    lock.release()
    again = fs.lock(tmp_path / "lock")
    assert again is not None
    again.release()


def test_files_are_for_their_owner_only(tmp_path: Path) -> None:
    """Bodies hold phone numbers: nobody else on the machine reads them."""
    fs = RealFileSystem()
    fs.mkdir(tmp_path / "folder")
    fs.create(tmp_path / "folder" / "file").close()

    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "folder" / "file").stat().st_mode & 0o777 == 0o600


def test_more_parts_than_one_call_takes_are_written(tmp_path: Path) -> None:
    """A group larger than IOV_MAX buffers stands in the file in order."""
    file = RealFileSystem().create(tmp_path / "file")
    parts = [b"%06d" % at for at in range(3000)]
    file.pwrite(parts, 0)

    assert file.pread(18000, 0) == b"".join(parts)
    file.close()
