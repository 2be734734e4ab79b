"""Damage anywhere in a ledger's folder: the answers are right, or there are none until it is restored."""

import functools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers.entry import LedgerDamagedError
from ingest.runtime.files import RealFile, RealFileSystem
from tests.remembering import History, history_of, live, must_be, must_heal, opened

CYCLES = 48
FS = RealFileSystem()


@functools.cache
def the_history() -> History:
    """Long enough for several generations, some forgotten, and runs, some merged."""
    return history_of(CYCLES)


@pytest.fixture(scope="module", autouse=True)
def _no_device() -> Iterator[None]:
    """Files are read where they were written: to wait for the device would show nothing here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RealFile, "sync", lambda _: None)
        patch.setattr(RealFileSystem, "sync_dir", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def template() -> Iterator[Path]:
    """A folder with that history in it, and files of every kind."""
    root = Path(tempfile.mkdtemp())
    with opened(root, FS) as ledger:
        live(ledger, the_history())
        must_be(ledger, the_history())
    assert len(list(root.glob("**/journal-*.log"))) >= 3
    assert len(list(root.glob("**/run-*.idx"))) >= 3
    assert not list(root.glob("**/journal-00000001-*.log"))
    yield root
    shutil.rmtree(root)


@pytest.fixture(scope="module")
def copy(template: Path) -> Iterator[Path]:
    """A place for copies of it."""
    yield (root := template.with_suffix(".copy"))
    shutil.rmtree(root)


def copied(template: Path, copy: Path) -> list[Path]:
    """The files of a fresh copy, in order."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(template, copy)
    return sorted(path for path in copy.rglob("*") if path.is_file())


def place(files: list[Path], share: float) -> tuple[Path, int]:
    """A byte of all the bytes of some files."""
    at = int(share * sum(path.stat().st_size for path in files))
    for path in files:
        if at < path.stat().st_size:
            return path, at
        at -= path.stat().st_size
    raise AssertionError(share)


def flip(path: Path, at: int, mask: int) -> None:
    """Change bits of one byte, where it stands."""
    with path.open("r+b") as file:
        file.seek(at)
        [byte] = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ mask]))


SHARES = st.floats(0, 1, exclude_max=True)
MASKS = st.one_of(st.integers(0, 7).map(lambda bit: 1 << bit), st.integers(1, 255))


@settings(max_examples=150, deadline=None)
@given(share=SHARES, mask=MASKS)
def test_changed_byte_never_gives_a_wrong_answer(template: Path, copy: Path, share: float, mask: int) -> None:
    """Any byte of any file: every lookup, deadline, count and position is right, now or after a restore."""
    flip(*place(copied(template, copy), share), mask)

    must_heal(copy, FS, the_history())


@settings(max_examples=80, deadline=None)
@given(which=st.integers(0, 99), share=SHARES)
def test_cut_file_never_gives_a_wrong_answer(template: Path, copy: Path, which: int, share: float) -> None:
    """Any file cut anywhere, to nothing too."""
    files = copied(template, copy)
    path = files[which % len(files)]
    with path.open("r+b") as file:
        file.truncate(int(share * path.stat().st_size))

    must_heal(copy, FS, the_history())


@settings(max_examples=60, deadline=None)
@given(share=SHARES, data=st.one_of(st.binary(min_size=1, max_size=600), st.just(bytes(512)), st.just(b"\xff" * 512)))
def test_stray_write_never_gives_a_wrong_answer(template: Path, copy: Path, share: float, data: bytes) -> None:
    """Any bytes over any stretch of a file, behind its end too."""
    path, at = place(copied(template, copy), share)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)

    must_heal(copy, FS, the_history())


@settings(max_examples=60, deadline=None)
@given(source=SHARES, target=SHARES, sectors=st.integers(1, 4))
def test_misplaced_write_never_gives_a_wrong_answer(
    template: Path, copy: Path, source: float, target: float, sectors: int
) -> None:
    """Sectors of one file over those of another, or of another place in it."""
    files = copied(template, copy)
    (there, begin), (here, at) = place(files, source), place(files, target)
    data = there.read_bytes()[begin & ~511 :][: 512 * sectors]
    with here.open("r+b") as file:
        file.seek(at & ~511)
        file.write(data)

    must_heal(copy, FS, the_history())


@settings(max_examples=60, deadline=None)
@given(which=st.integers(0, 99))
def test_missing_file_never_gives_a_wrong_answer(template: Path, copy: Path, which: int) -> None:
    """Any file but the oldest generations, whose removal is how memory ends."""
    files = copied(template, copy)
    files.remove(min(path for path in files if path.name.startswith("journal-")))
    files[which % len(files)].unlink()

    must_heal(copy, FS, the_history())


@settings(max_examples=80, deadline=None)
@given(share=SHARES, mask=MASKS)
def test_byte_that_changes_under_an_open_ledger_is_noticed(template: Path, copy: Path, share: float, mask: int) -> None:
    """Entries and deadlines are checked whenever they are read, not only at start."""
    path, at = place([one for one in copied(template, copy) if one.name.startswith("journal-")], share)
    with opened(copy, FS) as ledger:
        flip(path, at, mask)

        try:
            must_be(ledger, the_history())
        except LedgerDamagedError:
            ledger.discard()
            ledger.apply(the_history().changelog)
            must_be(ledger, the_history())
