"""What the tests of the ledger's files share: a history with everything in it, and what must be known after it."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

from structlog.testing import capture_logs

from consumers.entry import Cursor, Entry, LedgerDamagedError, Position
from consumers.ledger.changelog import encode_cycle
from consumers.ledger.partition import PartitionLedger, Sizes
from consumers.ledger.store import Identity, Store
from ingest.runtime.files import FileSystem
from tests.fakes.ledgers import MemoryLedger

CYCLE_MS, TIMEOUT_MS, LATE_MS = 100, 500, 1500
FRESH = 3
CURSORS_BACK, CURSORS_APART = 7, 3
"""Deadlines are looked for from the last position, and some before it."""

IDENTITY = Identity(group="g", topic="t", partitions=1, cluster="c")
SIZES = Sizes(generation_ms=700, preallocate_bytes=600, seal_entries=9)


class Here(Executor):
    """Runs a job at once, so that every call to the disk follows from a step."""

    def submit(self, call, /, *args, **kwargs):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN002, ANN003, ANN201, D102
        done: Future[object] = Future()
        done.set_result(call(*args, **kwargs))
        return done


@dataclass(slots=True)
class History:
    """Cycles as the engine commits them: new messages, answers, second reports, timeouts.

    Attributes:
        records: of each cycle, in order; the first cycle is 1.
        positions: of each cycle.
        latest: entry of each message after the last cycle, and the clock of the cycle that wrote it.
        whole: a ledger in memory with all of it.
    """

    records: list[list[tuple[int, bytes]]] = field(default_factory=list)
    positions: list[Position] = field(default_factory=list)
    latest: dict[bytes, tuple[Entry, int]] = field(default_factory=dict)
    whole: MemoryLedger = field(default_factory=MemoryLedger)

    @property
    def clock_ms(self) -> int:
        """Of the last cycle."""
        return len(self.records) * CYCLE_MS

    @property
    def changelog(self) -> list[tuple[int, bytes]]:
        """All records."""
        return [record for cycle in self.records for record in cycle]

    @property
    def forgotten_ms(self) -> int:
        """What was written before may be gone after the last cycle."""
        return self.clock_ms - LATE_MS

    def add(self) -> None:
        """One cycle more."""
        cycle = len(self.records) + 1
        clock_ms = cycle * CYCLE_MS
        payload = b"%d" % cycle * (1, 3, 40)[cycle % 3]
        entries = {
            digest(cycle, n): Entry(digest(cycle, n), clock_ms, first_seen=True, waiting=n > 0, payload=payload)
            for n in range(FRESH)
        }
        for earlier, waiting in (
            (digest(cycle - 2, 1), False),
            (digest(cycle - 3, 2), True),
            (digest(cycle - 9, 0), False),
        ):
            if earlier in self.latest:
                entry = self.latest[earlier][0]
                entries[earlier] = entry._replace(
                    first_seen=False, waiting=entry.waiting and waiting, payload=b"" if cycle % 4 else payload
                )
        cursor = self.positions[-1].cursor if self.positions else Cursor()
        due = self.whole.due(cursor, clock_ms - TIMEOUT_MS, 100)
        for one, _ in due.messages:
            entries[one] = entries.get(one, self.latest[one][0])._replace(first_seen=False, waiting=False)
        position = Position(cycle, cycle * 10, clock_ms, due.cursor)
        values = encode_cycle(list(entries.values()), position)
        records = list(enumerate(values, self.whole.next_changelog_offset() + 1))
        self.whole.apply(records)
        self.records.append(records)
        self.positions.append(position)
        self.latest |= {one: (entry, clock_ms) for one, entry in entries.items()}


def digest(cycle: int, number: int) -> bytes:
    """The digest of a message."""
    return blake2b(f"{cycle}/{number}".encode(), digest_size=16).digest()


def history_of(cycles: int) -> History:
    """A history; always the same."""
    history = History()
    for _ in range(cycles):
        history.add()
    return history


def a_store(root: Path, fs: FileSystem) -> Store:
    """A store of the one partition."""
    return Store(root, fs, IDENTITY, SIZES, worker=Here(), lock_wait_s=0)


def live(ledger: PartitionLedger, history: History) -> None:
    """Apply what is missing, cycle by cycle as the engine does, forgetting and flushing meanwhile."""
    begin = ledger.position.cycle if ledger.position else 0
    for cycle, records in enumerate(history.records[begin:], begin + 1):
        ledger.apply(records)
        ledger.forget(cycle * CYCLE_MS - LATE_MS)
        if cycle % 5 == 0:
            ledger.flush()


def read_on(ledger: PartitionLedger, history: History) -> None:
    """Read the changelog from where the ledger ends."""
    begin = ledger.next_changelog_offset()
    ledger.apply([record for record in history.changelog if record[0] >= begin])


def must_be(ledger: PartitionLedger, history: History) -> None:
    """The ledger answers everything as the history has it; what may be forgotten is as it was, or unknown."""
    whole = history.whole
    assert ledger.position == whole.position
    assert ledger.next_changelog_offset() == whole.next_changelog_offset()
    assert ledger.waiting() == whole.waiting()
    digests = [*history.latest, digest(0, 0), b"\0" * 16, b"\xff" * 16]
    for one, payload in zip(digests, ledger.lookup(digests), strict=True):
        entry, written_ms = history.latest.get(one, (None, 0))
        if entry is None or payload is not None or written_ms >= history.forgotten_ms:
            assert payload == (entry.payload if entry else None)
    for position in history.positions[-CURSORS_BACK::CURSORS_APART]:
        for until_ms in (position.clock_ms - TIMEOUT_MS, history.clock_ms):
            assert ledger.due(position.cursor, until_ms, 100) == whole.due(position.cursor, until_ms, 100)


@contextlib.contextmanager
def opened(root: Path, fs: FileSystem) -> Iterator[PartitionLedger]:
    """The ledger as it is found; what it has to say is not heard."""
    with capture_logs():
        store = a_store(root, fs)
        ledger = store.open(0)
        try:
            yield ledger
        finally:
            ledger.close()


def must_heal(root: Path, fs: FileSystem, history: History) -> None:
    """Whatever stands there: a whole cycle or nothing, then right answers, or damage said until it is restored."""
    with opened(root, fs) as ledger:
        assert ledger.position is None or ledger.position in history.positions
        try:
            _must_go_on(ledger, history)
        except LedgerDamagedError:
            ledger.discard()
            assert ledger.position is None
            _must_go_on(ledger, history)


def _must_go_on(ledger: PartitionLedger, history: History) -> None:
    read_on(ledger, history)
    must_be(ledger, history)
    ledger.forget(history.forgotten_ms)
    must_be(ledger, history)
