"""The ledger against a dictionary: whatever happens, a whole prefix of the changelog, and all of it in the end."""

import contextlib
import errno
import os
import shutil
import tempfile
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from structlog.testing import capture_logs

from consumers.entry import Cursor, Entry, LedgerDamagedError, Position
from consumers.ledger.partition import Sizes
from consumers.ledger.store import Identity, Store
from ingest.runtime.files import RealFileSystem
from tests.fakes.files import FaultyFileSystem
from tests.fakes.ledgers import MemoryLedger
from tests.remembering import TIMEOUT_MS as REMEMBERED_TIMEOUT_MS
from tests.remembering import history_of, opened

TIMEOUT_MS, LATE_MS, GENERATION_MS = 60, 40, 25
SIZES = Sizes(generation_ms=GENERATION_MS, preallocate_bytes=2048, seal_entries=6)

# Digests that share a half stand side by side in a run, or look for the same slot.
DIGESTS = [
    high + low
    for high in (b"\0" * 8, b"\1" * 8, b"\xff" * 8, b"abcdefgh")
    for low in (b"\0" * 8, b"\xff" * 8, b"ijklmnop")
]


class Here(Executor):
    """Runs a job at once, so that a failure can be told again."""

    def submit(self, call, /, *args, **kwargs):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN002, ANN003, ANN201, D102
        done: Future[object] = Future()
        done.set_result(call(*args, **kwargs))
        return done


@dataclass(frozen=True)
class Message:
    """What the model knows of a message: its last entry, and when its result was given."""

    entry: Entry
    resulted_ms: int


State = dict[bytes, Message]


class LedgerMachine(RuleBasedStateMachine):
    """Commits as the engine does, and damages what is on disk in between."""

    def __init__(self) -> None:
        super().__init__()
        self.logs = contextlib.ExitStack()
        self.logs.enter_context(capture_logs())
        self.folder = Path(tempfile.mkdtemp())
        self.fs = FaultyFileSystem(RealFileSystem())
        self.store = Store(
            self.folder, self.fs, Identity(group="g", topic="t", partitions=1), SIZES, worker=Here(), lock_wait_s=0
        )
        self.ledger = self.store.open(0)
        self.changelog: list[tuple[int, bytes]] = []
        self.states: dict[int, State] = {0: {}}  # by cycle
        self.positions: dict[int, Position | None] = {0: None}
        self.cycle = 0
        self.end = 0
        self.clock_ms = 0
        self.cursor = Cursor()
        self.timed_out: list[bytes] = []
        self.forgot_at = 0  # cycle

    def teardown(self) -> None:
        """Leave nothing behind."""
        self.ledger.close()
        self.logs.close()
        shutil.rmtree(self.folder)

    @rule(
        chosen=st.lists(st.sampled_from(DIGESTS), max_size=len(DIGESTS), unique=True),
        final=st.sets(st.sampled_from(DIGESTS)),
        size=st.sampled_from([0, 1, 40, 3000]),
        passed_ms=st.sampled_from([0, 1, 7, 30]),
        gap=st.integers(1, 3),
    )
    def commit(self, chosen: list[bytes], final: set[bytes], size: int, passed_ms: int, gap: int) -> None:
        """A cycle: reports of some messages, then what is due, applied after its commit."""
        self.clock_ms += passed_ms
        self._commit({digest: digest in final for digest in chosen}, size, gap)

    @rule()
    def forget(self) -> None:
        """What is past the late window goes, in generations."""
        self.ledger.forget(self.clock_ms - LATE_MS)
        self.forgot_at = self.cycle

    @rule()
    def reopen(self) -> None:
        """A clean end and a new start lose nothing."""
        self.ledger.close()
        self.ledger = self.store.open(0)
        self._must_be_whole(self.cycle)

    @rule(share=st.floats(0, 1), junk=st.binary(max_size=60))
    def tear(self, share: float, junk: bytes) -> None:
        """A crash leaves any part of the last file, rubbish behind it: a prefix in whole cycles is what counts."""
        self.ledger.close()
        path = self._last_file()
        if path is not None:
            with path.open("r+b") as file:
                file.truncate(int(share * path.stat().st_size))
                file.seek(0, os.SEEK_END)
                file.write(junk)
        self._recover()

    @rule(share=st.floats(0, 1), bit=st.integers(0, 7))
    def corrupt(self, share: float, bit: int) -> None:
        """A bit of the last file flips: a prefix, or nothing."""
        self.ledger.close()
        path = self._last_file()
        if path is not None:
            at = min(int(share * path.stat().st_size), path.stat().st_size - 1)
            data = bytearray(path.read_bytes())
            data[at] ^= 1 << bit
            path.write_bytes(data)
        self._recover()

    @rule(which=st.integers(0, 20), damage=st.sampled_from(["remove", "cut", "spoil"]))
    def damage_a_run(self, which: int, damage: str) -> None:
        """A run that is missing at the end of its chain, cut or spoilt is made again from the journal."""
        self.ledger.close()
        runs = sorted(self.folder.glob("**/run-*.idx"))
        if runs and damage == "remove":
            runs[-1].unlink()
        elif runs:
            run = runs[which % len(runs)]
            run.write_bytes(run.read_bytes()[:90] if damage == "cut" else b"\1" + run.read_bytes()[1:])
        self.ledger = self.store.open(0)
        self._must_be_whole(self.cycle)

    @rule(cuts=st.lists(st.integers(0, 60), max_size=6), discard=st.booleans())
    def restore(self, cuts: list[int], discard: bool) -> None:  # noqa: FBT001 - drawn
        """The changelog brings everything back, however it is cut into reads."""
        if discard:
            self.ledger.discard()
            self._must_be_whole(0)
        self._read_on(sorted(cuts))

    @precondition(lambda self: self.cycle)
    @rule(
        call=st.sampled_from(["pwrite", "allocate", "truncate", "create", "sync", "sync_dir"]),
        error=st.sampled_from([errno.ENOSPC, errno.EIO]),
        chosen=st.lists(st.sampled_from(DIGESTS), min_size=1, max_size=3, unique=True),
        passed_ms=st.sampled_from([0, 30]),
    )
    def fail(self, call: str, error: int, chosen: list[bytes], passed_ms: int) -> None:
        """A disk that refuses while a committed cycle is written: the state before it, then the changelog helps."""

        def refuse(name: str, path: Path) -> None:
            if name == call and (path.name.startswith("journal") or call == "sync_dir"):
                raise OSError(error, os.strerror(error))

        self.clock_ms += passed_ms
        before = self.cycle
        self.fs.plan = refuse
        try:
            self._commit(dict.fromkeys(chosen, False), 1, 1)
        except OSError:
            self._must_be_whole(before)
        except LedgerDamagedError:
            self.fs.plan = None
            self.ledger.discard()
        finally:
            self.fs.plan = None
        self._read_on([])

    @invariant()
    def everything_is_known(self) -> None:
        """Between the steps the ledger is the whole changelog."""
        self._must_be_whole(self.cycle)

    @invariant()
    def timeouts_come_once(self) -> None:
        """No life of a message is due twice."""
        assert len(self.timed_out) == len(set(self.timed_out))

    def _commit(self, finals: dict[bytes, bool], size: int, gap: int) -> None:
        """One cycle into the changelog, and then into the ledger."""
        state = dict(self.states[self.cycle])
        entries = {digest: self._report(state, digest, final=final, size=size) for digest, final in finals.items()}
        self._expire(state, entries)
        self.cycle += 1
        position = Position(self.cycle, self.cycle * 10, self.clock_ms, self.cursor)
        values = self.ledger.encode(list(entries.values()), position)
        records = list(enumerate(values, self.end))
        self.end += len(values) + gap
        self.changelog += records
        self.states[self.cycle], self.positions[self.cycle] = state, position
        self.ledger.apply(records)

    def _report(self, state: State, digest: bytes, *, final: bool, size: int) -> Entry:
        known = state.get(digest)
        payload = f"{self.cycle + 1}".encode().ljust(size, b"x")
        if known is None or self._is_forgotten(known):
            entry = Entry(digest, self.clock_ms, first_seen=True, waiting=not final, payload=payload)
            resulted_ms = self.clock_ms
        else:
            waits = known.entry.waiting and not final
            entry = known.entry._replace(first_seen=False, waiting=waits, payload=payload)
            resulted_ms = self.clock_ms if known.entry.waiting else known.resulted_ms
        state[digest] = Message(entry, resulted_ms)
        return entry

    def _expire(self, state: State, entries: dict[bytes, Entry]) -> None:
        """Answer all that is due, in looks of two, what this cycle changed from its own state."""
        until_ms, more = self.clock_ms - TIMEOUT_MS, True
        while more:
            due = self.ledger.due(self.cursor, until_ms, 2)
            assert due.cursor >= self.cursor
            self.cursor, more = due.cursor, due.more
            for digest, payload in due.messages:
                entry = state[digest].entry
                assert digest in entries or payload == entry.payload
                assert entry.seen_at_ms <= until_ms
                if entry.waiting:
                    self.timed_out.append(digest + entry.seen_at_ms.to_bytes(8, "big"))
                    kept = entries.get(digest, entry._replace(first_seen=False))
                    entries[digest] = kept._replace(waiting=False)
                    state[digest] = Message(entries[digest], self.clock_ms)
        assert not [one for one in state.values() if one.entry.waiting and one.entry.seen_at_ms <= until_ms]

    def _is_forgotten(self, message: Message) -> bool:
        return not message.entry.waiting and self.clock_ms > message.resulted_ms + LATE_MS

    def _must_be_whole(self, cycle: int) -> None:
        """The ledger is the changelog up to the end of this cycle."""
        state = self.states[cycle]
        assert self.ledger.position == self.positions[cycle]
        assert self.ledger.waiting() == sum(one.entry.waiting for one in state.values())
        for digest, payload in zip(DIGESTS, self.ledger.lookup(DIGESTS), strict=True):
            message = state.get(digest)
            if message is None:
                assert payload is None
            elif payload is not None or not self._is_forgotten(message):
                assert payload == message.entry.payload

    def _recover(self) -> None:
        """Open what was damaged: some prefix; then the changelog fills the rest in."""
        self.ledger = self.store.open(0)
        position = self.ledger.position
        cycle = position.cycle if position is not None else 0
        assert cycle <= self.cycle
        assert position == self.positions[cycle]
        if cycle >= self.forgot_at:  # else something may be gone that only a later cycle allowed to go
            self._must_be_whole(cycle)
        self._read_on([])

    def _read_on(self, cuts: list[int]) -> None:
        first = self.ledger.next_changelog_offset()
        left = [record for record in self.changelog if record[0] >= first]
        for begin, end in zip([0, *cuts], [*cuts, len(left)], strict=True):
            self.ledger.apply(left[begin:end])
        self._must_be_whole(self.cycle)

    def _last_file(self) -> Path | None:
        return max(self.folder.glob("**/journal-*.log"), default=None)


def test_changelog_without_its_head_leaves_nobody_waiting_for_ever(tmp_path: Path) -> None:
    """Wherever it was cut: whoever waits by what is left is due in the end, and nobody before the time."""
    history = history_of(24)
    cursor = history.positions[-1].cursor
    for cut in range(len(history.changelog)):
        kept = history.changelog[cut:]
        whole = MemoryLedger()
        whole.apply(kept)
        with opened(tmp_path / str(cut), RealFileSystem()) as ledger:
            ledger.apply(kept)

            due = ledger.due(cursor, history.clock_ms, 1000)

            assert len(due.messages) == ledger.waiting() == whole.waiting()
            for until_ms in range(history.clock_ms - 2 * REMEMBERED_TIMEOUT_MS, history.clock_ms + 1, 50):
                due = ledger.due(cursor, until_ms, 1000)
                assert due == whole.due(cursor, until_ms, 1000)
                assert all(history.latest[digest][0].seen_at_ms <= until_ms for digest, _ in due.messages)


LedgerMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestLedgerAgainstDictionary = LedgerMachine.TestCase
