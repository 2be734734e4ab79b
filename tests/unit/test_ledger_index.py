"""Places by digest: the table, the filter, runs and how they are sealed, merged and recovered."""

import threading
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from consumers.entry import LedgerDamagedError
from consumers.ledger import bloom
from consumers.ledger.bloom import keys_of
from consumers.ledger.columns import Columns, order_of
from consumers.ledger.index import Index
from consumers.ledger.levels import FROZEN_MAX
from consumers.ledger.places import Words
from consumers.ledger.runfile import open_run, unfinished_name, write_run
from consumers.ledger.runs import NOTHING, RUNS_MAX, Covered, Reach, Run, Span, choose, combine, in_memory, merge
from consumers.ledger.table import Table
from ingest.runtime.files import RealFileSystem
from tests.fakes.files import FaultyFileSystem

SEAL = 100
A_REACH = Reach(Span(1, 1), NOTHING, Covered(1, 1, 1))


def digests(count: int, seed: int = 1) -> tuple[Words, Words]:
    """Different digests, evenly distributed; of one seed the same ones first."""
    drawn = np.random.default_rng(seed).integers(0, 2**64, (count, 2), np.uint64)
    return drawn[:, 0].copy(), drawn[:, 1].copy()


def columns(count: int, seed: int = 1, place: int = 2) -> Columns:
    """Digests with places that rise from `place` in steps of 2."""
    return Columns(*digests(count, seed), np.arange(count, dtype=np.uint64) * 2 + place)


def fill(
    index: Index,
    count: int,
    seed: int = 1,
    *,
    first_place: int = 2,
    step: int = 30,
    to: int = 1,
    restoring: bool = False,
) -> Columns:
    """Give digests to an index bit by bit: as cycles, which ask before each, or as a restore, which does not."""
    given = columns(count, seed, first_place)
    for begin in range(0, count, step):
        part = Columns(*(one[begin : begin + step] for one in given))
        if not restoring:
            index.find(part.high, part.low)
        index.update(*part, np.ones(len(part.high), bool), Covered(1, 1, to))
    return given


@pytest.fixture
def worker() -> Iterator[Executor]:
    """One thread beside the work."""
    with ThreadPoolExecutor(1) as executor:
        yield executor


@pytest.fixture
def index(tmp_path: Path, worker: Executor) -> Iterator[Index]:
    """An empty index that seals early."""
    made = Index(RealFileSystem(), tmp_path, worker, seal_entries=SEAL)
    yield made
    made.close()


def test_filter_passes_every_key_that_is_in_and_few_others() -> None:
    """No false negative; at most 4 of 100 absent keys pass at the chosen size."""
    high, low = digests(50_000)
    order = np.argsort(high)
    words = np.zeros(bloom.words_for(50_000), np.uint64)

    bloom.add(words, high[order], low[order])

    assert bloom.probe(words, keys_of(high, low)).all()
    assert bloom.probe(words, keys_of(*digests(50_000, seed=2))).mean() < 0.04


def test_table_keeps_the_last_place_of_a_repeated_digest() -> None:
    """A digest that repeats within one call has one index, and its last place."""
    table = Table(4)
    high, low = np.array([1, 2, 1, 1, 3], np.uint64), np.array([7, 7, 7, 8, 7], np.uint64)

    indexes = table.claim(high, low)
    table.place(indexes, np.array([2, 4, 6, 8, 10], np.uint64))

    assert len(table) == 4
    assert indexes[0] == indexes[2]
    assert table.find(high, low).tolist() == [6, 4, 6, 8, 10]
    assert table.find(np.array([9], np.uint64), np.array([7], np.uint64)).tolist() == [0]


def test_table_grows_and_survives_digests_that_want_one_slot() -> None:
    """Thousands of digests with the same low half are all found."""
    table = Table(2)
    high, low = np.arange(3000, dtype=np.uint64), np.full(3000, 5, np.uint64)
    for begin in range(0, 3000, 500):
        part = slice(begin, begin + 500)
        table.place(table.claim(high[part], low[part]), high[part] * 2 + 2)

    assert (table.find(high, low) == high * 2 + 2).all()
    assert not table.find(high + 3000, low).any()


def test_combining_keeps_the_greatest_place_and_drops_what_is_forgotten() -> None:
    """Digests that share a half are told apart, in whatever order they stand."""
    older = Columns(*(np.array(one, np.uint64) for one in ([5, 5, 1, 9], [1, 2, 1, 9], [10, 20, 30, 40])))
    newer = Columns(*(np.array(one, np.uint64) for one in ([5, 5, 5], [2, 1, 3], [110, 120, 130])))

    merged = combine([newer, older], 35)

    assert list(zip(*(column.tolist() for column in merged), strict=True)) == [
        (5, 1, 120),
        (5, 2, 110),
        (5, 3, 130),
        (9, 9, 40),
    ]


def test_run_finds_digests_that_share_their_first_half() -> None:
    """A search goes on among equal first halves, at the end of the run too."""
    given = Columns(*(np.array(one, np.uint64) for one in ([5, 5, 5, 2**64 - 1], [1, 2, 3, 4], [10, 20, 30, 40])))
    run = in_memory(A_REACH, given)

    found = run.find(keys_of(np.array([5, 5, 2**64 - 1, 5], np.uint64), np.array([3, 1, 4, 9], np.uint64)))

    assert found.tolist() == [30, 10, 40, 0]


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_merge_in_parts_is_the_merge_of_all(step: int) -> None:
    """However it is cut, a merge is ascending and complete, without forgotten places."""
    older, newer = columns(50, 1), columns(70, 2, place=1000)
    runs = [in_memory(A_REACH, one) for one in (older, newer)]

    parts = list(merge(runs[::-1], 50, step))

    whole = combine([older, newer], 50)
    for number in range(3):
        assert np.concatenate([part[number] for part in parts]).tolist() == whole[number].tolist()


@pytest.mark.parametrize("restoring", [False, True], ids=["running", "restoring"])
def test_everything_is_found_in_whatever_level_it_is(index: Index, *, restoring: bool) -> None:
    """Sealing and merging beside the work never hide or change a place."""
    given = fill(index, 4000, restoring=restoring)
    again = fill(index, 1000, first_place=100_000, restoring=restoring)

    found = index.find(given.high, given.low)
    index.settle()

    assert found[1000:].tolist() == given.places[1000:].tolist()
    assert found[:1000].tolist() == again.places.tolist()
    assert (index.find(given.high, given.low) == found).all()
    assert not index.find(*digests(1000, seed=9)).any()
    assert index.levels <= RUNS_MAX + 1


def test_waiting_is_counted_once_for_each_digest(index: Index) -> None:
    """The count follows the latest entry, in the table and in runs, and counting anew gives the same."""
    high, low = digests(1000)
    fresh, again = np.ones(1000, bool), np.zeros(500, bool)
    index.update(high, low, np.arange(1000, dtype=np.uint64) * 2 + 1001, fresh, Covered(1, 1, 1))
    fill(index, 500, seed=5)
    index.settle()

    index.update(high[:500], low[:500], np.arange(500, dtype=np.uint64) * 2 + 100_000, again, Covered(1, 1, 2))

    assert index.waiting == 500
    index.count_waiting()
    assert index.waiting == 500


@pytest.mark.parametrize("seal", [30, SEAL, 10_000])
@pytest.mark.parametrize("asked", [1, 3, 1000])
def test_restoring_comes_to_what_cycles_come_to(seal: int, asked: int, tmp_path: Path, worker: Executor) -> None:
    """However rarely it is asked, and wherever it is sealed, an index knows the same places and counts who waits."""
    random = np.random.default_rng(5)
    high, low = digests(400)
    index = Index(RealFileSystem(), tmp_path, worker, seal_entries=seal)
    latest: dict[int, int] = {}
    place = 2

    for step in range(60):
        some = random.integers(0, 400, 40)
        first_seen = np.array([one not in latest and one not in some[:at] for at, one in enumerate(some.tolist())])
        places = np.arange(place, place + 80, 2, dtype=np.uint64) | random.integers(0, 2, 40, np.uint64)
        place += 80
        latest.update(zip(some.tolist(), places.tolist(), strict=True))
        index.update(high[some], low[some], places, first_seen, Covered(1, 1, step + 1))
        if step % asked == asked - 1:
            assert index.waiting == sum(one & 1 for one in latest.values())

    assert index.waiting == sum(one & 1 for one in latest.values())
    index.settle()
    assert index.find(high, low).tolist() == [latest.get(one, 0) for one in range(400)]
    index.count_waiting()
    assert index.waiting == sum(one & 1 for one in latest.values())
    index.close()


def test_sealing_in_order_counts_nobody_anew_that_was_in_the_table(index: Index) -> None:
    """What nothing was said of in a restore waits as before, though its place is forgotten."""
    none = np.zeros(10, bool)
    index.update(*digests(10), np.arange(11, 31, 2, dtype=np.uint64), ~none, Covered(1, 1, 1))
    assert index.waiting == 10
    index.forget(1000)

    for number in range(3):
        fill(index, SEAL - 20, seed=2 + number, first_place=1000 * number + 1000, step=SEAL - 20, restoring=True)

    assert index.levels > 1
    assert index.waiting == 10


def test_order_tells_digests_apart_that_share_all_upper_bits() -> None:
    """Sorting upper bits with the index decides nothing that they do not tell apart."""
    random = np.random.default_rng(3)
    for base, spread in ((0, 4), (2**64 - 4, 4), (0, 2**64), (7, 1)):
        high = np.uint64(base) + random.integers(0, spread, 500, np.uint64)
        low = random.integers(0, 3, 500, np.uint64)

        order = order_of(high, low)

        assert order.tolist() == sorted(range(500), key=lambda at: (int(high[at]), int(low[at])))
    assert order_of(high[:0], low[:0]).tolist() == []
    assert order_of(high[:1], low[:1]).tolist() == [0]


def test_runs_are_taken_over_and_the_rest_is_replayed(index: Index, tmp_path: Path, worker: Executor) -> None:
    """A new start finds the sealed part in the folder and says from where the journal must be read."""
    given = fill(index, 4000, to=77)
    index.settle()
    index.close()

    again = Index(RealFileSystem(), tmp_path, worker, seal_entries=SEAL)
    covered = again.recover(lambda _: True, 0)

    assert covered == (1, 1, 77)
    found = again.find(given.high, given.low)
    assert found[:3900].tolist() == given.places[:3900].tolist()
    assert not found[3990:].any()
    again.close()


@pytest.mark.parametrize("damage", ["cut", "header", "removed", "refused"])
def test_run_that_cannot_be_used_takes_the_newer_ones_with_it(
    damage: str, index: Index, tmp_path: Path, worker: Executor
) -> None:
    """What follows a hole is made again from the journal; files that are not used are removed."""
    for seed in range(6):
        fill(index, 100, seed, first_place=2 + 1000 * seed, step=100, to=seed + 1)
        index.settle()
    index.close()
    names = sorted(tmp_path.glob("run-*.idx"))
    assert len(names) > 1
    spoilt = names[1]
    if damage == "cut":
        spoilt.write_bytes(spoilt.read_bytes()[:-1000])
    elif damage == "header":
        spoilt.write_bytes(spoilt.read_bytes()[:50] + b"\xff" + spoilt.read_bytes()[51:])
    elif damage == "removed":
        spoilt.unlink()
    (tmp_path / "run-abc.tmp").write_bytes(b"half")

    again = Index(RealFileSystem(), tmp_path, worker, seal_entries=SEAL)
    with capture_logs():
        covered = again.recover(lambda run: damage != "refused" or run.end < 5, 0)

    assert covered.end == 4
    assert sorted(tmp_path.iterdir()) == names[:1]
    assert again.find(*digests(100, 0)).all()
    assert not again.find(*digests(100, 4)).any()
    again.close()


def test_any_changed_byte_of_a_run_and_any_cut_is_noticed(tmp_path: Path) -> None:
    """Header, filter, digests and places: a run is what was written, or none."""
    path = tmp_path / unfinished_name("1")
    write_run(RealFileSystem(), path, iter([combine([columns(12)], 0)]), A_REACH, 12)
    data = path.read_bytes()
    assert len(open_run(path)) == 12

    for at in range(len(data)):
        for changed in (data[:at], data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :]):
            path.write_bytes(changed)
            with pytest.raises(LedgerDamagedError):
                open_run(path)


def test_oldest_run_that_is_missing_takes_the_newer_ones_with_it(
    index: Index, tmp_path: Path, worker: Executor
) -> None:
    """Nothing but forgetting explains that the first run goes on from somewhere: without it all is made again."""
    for number in range(3):
        fill(index, SEAL, number, first_place=2 + 1000 * number, step=SEAL, to=number + 1)
    index.settle()
    index.close()
    min(tmp_path.glob("run-*.idx")).unlink()

    again = Index(RealFileSystem(), tmp_path, worker, seal_entries=SEAL)
    with capture_logs() as logs:
        covered = again.recover(lambda _: True, 0)

    assert covered == NOTHING
    assert not list(tmp_path.iterdir())
    assert [log["why"] for log in logs] == ["a run is missing before run-0000000002-0000000002.idx"]
    again.close()


@pytest.mark.parametrize("at", [-5, 130], ids=["place", "filter"])
@pytest.mark.parametrize("refused", ["unlink", "nothing"])
def test_run_that_changes_under_an_open_index_is_noticed_by_its_merge(
    at: int, refused: str, tmp_path: Path, worker: Executor
) -> None:
    """A merge reads all of a run: what it does not vouch for any more is said, though the disk takes nothing more."""
    fs = FaultyFileSystem(RealFileSystem())
    index = Index(fs, tmp_path, worker, seal_entries=SEAL)
    fill(index, 3 * SEAL, step=SEAL)
    index.settle()
    path = min(tmp_path.glob("run-*.idx"))
    data = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(at % len(data))
        file.write(bytes([data[at] ^ 4]))

    def refuse(call: str, path: Path) -> None:
        if call == refused:
            raise OSError(30, "Read-only file system", str(path))

    fs.plan = refuse
    fill(index, 2 * SEAL, seed=2, first_place=10_000, step=SEAL)
    with pytest.raises(LedgerDamagedError, match="any more"):
        index.settle()

    assert "any more" in str(index.damage)
    fs.plan = None
    index.discard()
    assert index.damage is None
    assert not list(tmp_path.iterdir())
    index.close()


def test_forgotten_places_are_unknown_and_their_runs_are_removed(index: Index, tmp_path: Path) -> None:
    """Forgetting costs no rewriting: a run with nothing younger is unlinked, the others hide what is too old."""
    old, young = fill(index, 300, 1, step=100), fill(index, 300, 2, first_place=10_000, step=100)
    index.settle()

    index.forget(10_000)

    assert not index.find(old.high, old.low).any()
    assert index.find(young.high, young.low).tolist() == young.places.tolist()
    index.forget(1 << 60)
    assert not list(tmp_path.glob("run-*"))


@pytest.mark.parametrize("restoring", [False, True], ids=["running", "restoring"])
def test_full_disk_leaves_runs_in_memory(tmp_path: Path, worker: Executor, *, restoring: bool) -> None:
    """A run that cannot be written is used all the same, and a start without it reads the journal."""
    fs = FaultyFileSystem(RealFileSystem())
    index = Index(fs, tmp_path, worker, seal_entries=SEAL)

    def refuse(call: str, path: Path) -> None:
        if call == "allocate":
            raise OSError(28, "No space left on device", str(path))

    fs.plan = refuse
    with capture_logs() as logs:
        given = fill(index, 1000, restoring=restoring)
        index.settle()

    assert (index.find(given.high, given.low) == given.places).all()
    assert not list(tmp_path.iterdir())
    assert {log["event"] for log in logs} == {"a run of the ledger could not be written"}
    index.close()


class Held(Executor):
    """Runs jobs when told to."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Future[Any], Any, Any]] = []

    def submit(self, call, /, *args, **kwargs):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN002, ANN003, ANN201, ARG002, D102
        done: Future[Any] = Future()
        self.jobs.append((done, call, args))
        return done

    def go(self) -> None:
        """Run what was submitted first."""
        done, call, args = self.jobs.pop(0)
        done.set_result(call(*args))


@pytest.mark.parametrize("end", ["close", "discard"])
def test_job_that_ends_too_late_leaves_no_trace(end: str, tmp_path: Path) -> None:
    """Sealing that comes back after the folder was given up changes nothing in it."""
    held = Held()
    index = Index(RealFileSystem(), tmp_path, held, seal_entries=SEAL)
    given = fill(index, 250, step=100)
    assert (index.find(given.high, given.low) == given.places).all()

    index.close() if end == "close" else index.discard()
    held.go()

    assert not list(tmp_path.iterdir())
    assert not index.find(given.high[:100], given.low[:100]).any()


@pytest.mark.parametrize("refused", ["create", "pwrite", "vanished"])
def test_job_of_a_closed_index_says_nothing(refused: str, tmp_path: Path) -> None:
    """What it meets in a folder that was given up is nobody's trouble."""
    held, fs = Held(), FaultyFileSystem(RealFileSystem())
    index = Index(fs, tmp_path, held, seal_entries=SEAL)
    fill(index, 250, step=100)

    def meet(call: str, path: Path) -> None:
        index.close()
        if call == refused:
            raise OSError(2, "No such file or directory", str(path))
        if refused == "vanished" and call == "sync":
            path.unlink()

    fs.plan = meet
    with capture_logs() as logs:
        held.go()

    assert logs == []


def test_unfinished_run_that_vanishes_is_as_good_as_removed(tmp_path: Path, worker: Executor) -> None:
    """The job of an index that was closed here may remove it between our look and our hand."""
    fs = FaultyFileSystem(RealFileSystem())
    fs.plan = lambda call, path: path.unlink() if call == "unlink" else None
    index = Index(fs, tmp_path, worker, seal_entries=SEAL)

    for begin in (lambda: index.recover(lambda _: True, 0), index.discard):
        (tmp_path / unfinished_name("1")).touch()
        begin()
        assert not list(tmp_path.iterdir())
    index.close()


def test_work_waits_when_sealing_falls_behind(tmp_path: Path) -> None:
    """Tables that wait to be sealed are bounded: the next one waits for the job."""
    held = Held()
    index = Index(RealFileSystem(), tmp_path, held, seal_entries=SEAL)
    fill(index, (FROZEN_MAX + 1) * SEAL, step=SEAL)
    helper = threading.Timer(0.05, held.go)
    helper.start()

    fill(index, SEAL, seed=2, first_place=10_000, step=SEAL)

    helper.join()
    assert index.levels <= 2 + FROZEN_MAX
    index.close()


def test_discard_while_the_job_still_waits_lets_the_next_one_seal(tmp_path: Path, worker: Executor) -> None:
    """Behind another partition's merge, a discard leaves nothing that the tables after it would wait for in vain."""
    gate = threading.Event()
    worker.submit(gate.wait)
    index = Index(RealFileSystem(), tmp_path, worker, seal_entries=SEAL)
    fill(index, 2 * SEAL, step=SEAL)
    index.discard()
    given = columns((FROZEN_MAX + 2) * SEAL)
    filling = threading.Thread(target=fill, args=(index, len(given.high)), kwargs={"step": SEAL}, daemon=True)

    filling.start()
    gate.set()
    filling.join(10)

    assert not filling.is_alive()
    assert (index.find(given.high, given.low) == given.places).all()
    index.settle()
    assert list(tmp_path.glob("run-*.idx"))
    index.close()


@pytest.mark.parametrize("call", ["rename", "unlink"])
def test_run_that_cannot_be_named_or_removed_hides_nothing(call: str, tmp_path: Path, worker: Executor) -> None:
    """A disk that refuses names costs memory and room, never an entry; a start over what it left finds the same."""
    fs = FaultyFileSystem(RealFileSystem())
    index = Index(fs, tmp_path, worker, seal_entries=SEAL)

    def refuse(called: str, path: Path) -> None:
        if called == call and path.name.startswith("run-"):
            raise OSError(5, "Input/output error", str(path))

    fs.plan = refuse
    with capture_logs():
        given = fill(index, 4000)
        index.settle()

    assert (index.find(given.high, given.low) == given.places).all()
    index.close()
    again = Index(RealFileSystem(), tmp_path, worker, seal_entries=SEAL)
    again.recover(lambda _: True, 0)
    found = again.find(given.high, given.low)
    assert ((found == given.places) | (found == 0)).all()
    again.close()


def test_failed_job_is_told_once_before_anything_changes(tmp_path: Path, worker: Executor) -> None:
    """What went wrong beside the work is raised by the next look, and the job after it seals what was left."""
    index = Index(RealFileSystem(), tmp_path, worker, seal_entries=SEAL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("consumers.ledger.levels.combine", _fail)
        given = fill(index, SEAL + 30)
        with pytest.raises(MemoryError):
            index.settle()

    index.check()
    more = fill(index, 3 * SEAL, seed=2, first_place=10_000)
    index.settle()

    assert index.levels <= 1 + RUNS_MAX
    assert (index.find(given.high, given.low) == given.places).all()
    assert (index.find(more.high, more.low) == more.places).all()
    assert list(tmp_path.glob("run-*.idx"))
    index.close()


def _fail(*_: object) -> None:
    raise MemoryError


def test_runs_are_chosen_by_like_size_and_bounded_in_number() -> None:
    """Four of a size become one; beyond the bound the smallest neighbours do."""

    def run(count: int) -> Run:
        none = np.zeros(0, np.uint64)
        made = in_memory(A_REACH, Columns(none, none, none))
        made.columns = Columns(*(np.zeros(count, np.uint64) for _ in range(3)))
        return made

    like = [run(100), run(90), run(400), run(110), run(100), run(100), run(100)]
    growing = [run(SEAL * 2**n) for n in range(RUNS_MAX + 1)]

    assert list(choose(like, SEAL)) == like[3:7]
    assert list(choose(like[:6], SEAL)) == []
    assert list(choose(growing, SEAL)) == growing[:4]
    assert list(choose(like, SEAL, patient=True)) == []
    assert list(choose([*like[:3], *like[3:] * 3], SEAL, patient=True)) == like[3:] * 3
    assert list(choose(growing, SEAL, patient=True)) == growing[:4]
