"""One suite for the real ledger and the fake: what the engine is promised (`consumers.engine.protocols`)."""

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path

import pytest

from consumers.engine.protocols import Ledger, LedgerStore
from consumers.entry import Cursor, Entry, LedgerDamagedError, LedgerFormatError, Position
from consumers.ledger.changelog import RECORD_MAX_BYTES
from consumers.ledger.partition import Sizes
from consumers.ledger.store import Identity, Store
from ingest.runtime.files import RealFileSystem
from tests.fakes.ledgers import MemoryStore

HOUR_MS = 3_600_000


def digest(name: str) -> bytes:
    """The digest of a message."""
    return blake2b(name.encode(), digest_size=16).digest()


def an_entry(name: str, payload: bytes = b"", *, seen: int = 0, first: bool = True, waiting: bool = True) -> Entry:
    """The entry of a message that was first seen now and waits."""
    return Entry(digest(name), seen, first, waiting, payload or name.encode())


class Changelog:
    """A changelog partition: numbers cycles and offsets, leaves an offset to each transaction's marker."""

    def __init__(self) -> None:
        self.records: list[tuple[int, bytes]] = []
        self.end = 0
        self.cycle = 0

    def commit(
        self, ledger: Ledger, *entries: Entry, clock_ms: int = 0, cursor: Cursor | None = None
    ) -> list[tuple[int, bytes]]:
        """One cycle with these entries, as it stands in the changelog after its commit."""
        self.cycle += 1
        position = Position(self.cycle, self.cycle * 100, clock_ms, cursor or Cursor())
        values = ledger.encode(entries, position)
        committed = list(enumerate(values, self.end))
        self.end += len(values) + 1
        self.records += committed
        return committed


@pytest.fixture(params=["memory", "disk"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LedgerStore]:
    """A store without state."""
    if request.param == "memory":
        yield MemoryStore()
        return
    real = Store(
        tmp_path / "state",
        RealFileSystem(),
        Identity(group="g", topic="t", partitions=3),
        Sizes(generation_ms=HOUR_MS, preallocate_bytes=65_536, seal_entries=8),
    )
    yield real
    real.close()


@pytest.fixture
def ledger(store: LedgerStore) -> Iterator[Ledger]:
    """The ledger of a partition, empty."""
    opened = store.open(0)
    yield opened
    opened.close()


@pytest.fixture
def log() -> Changelog:
    """An empty changelog."""
    return Changelog()


def payloads(ledger: Ledger, *names: str) -> list[bytes | None]:
    """What the ledger knows of messages."""
    return ledger.lookup([digest(name) for name in names])


def due_names(found: Sequence[tuple[bytes, bytes]]) -> list[str]:
    """Payloads of due messages as text."""
    return [payload.decode() for _, payload in found]


def test_new_ledger_knows_nothing_and_reads_the_changelog_from_its_beginning(ledger: Ledger) -> None:
    """An empty ledger has no position, no message, nobody waiting."""
    assert ledger.position is None
    assert ledger.next_changelog_offset() == 0
    assert payloads(ledger, "a", "b") == [None, None]
    assert ledger.lookup([]) == []
    assert ledger.waiting() == 0
    assert ledger.due(Cursor(), HOUR_MS, 10) == ([], Cursor(), False)


def test_applied_cycle_is_found_in_the_order_asked_for(ledger: Ledger, log: Changelog) -> None:
    """Payloads come in the order of the digests, repeated ones too, the empty payload is not absence."""
    empty = Entry(digest("c"), 0, first_seen=True, waiting=False, payload=b"")

    count = ledger.apply(log.commit(ledger, an_entry("a"), an_entry("b"), empty))

    assert count == 3
    assert payloads(ledger, "c", "x", "b", "a", "b") == [b"", None, b"b", b"a", b"b"]
    assert ledger.position == Position(1, 100, 0, Cursor())
    assert ledger.next_changelog_offset() == 1


def test_encoding_changes_nothing(ledger: Ledger, log: Changelog) -> None:
    """What is encoded is unknown until it comes back committed."""
    log.commit(ledger, an_entry("a"))

    assert payloads(ledger, "a") == [None]
    assert ledger.position is None


def test_later_entry_replaces_the_earlier(ledger: Ledger, log: Changelog) -> None:
    """The last applied entry of a message counts, within one call and over several."""
    first = log.commit(ledger, an_entry("a", b"1"), an_entry("b", b"1"))
    second = log.commit(ledger, an_entry("a", b"2", first=False))
    ledger.apply(first + second)
    ledger.apply(log.commit(ledger, an_entry("b", b"3", first=False, waiting=False)))

    assert payloads(ledger, "a", "b") == [b"2", b"3"]
    assert ledger.waiting() == 1


def test_cycle_without_entries_moves_the_position(ledger: Ledger, log: Changelog) -> None:
    """An idle partition's empty cycle counts."""
    ledger.apply(log.commit(ledger, clock_ms=7, cursor=Cursor(5, 2)))

    assert ledger.position == Position(1, 100, 7, Cursor(5, 2))
    assert ledger.next_changelog_offset() == 1


def test_records_are_bounded_and_one_larger_entry_stands_alone(ledger: Ledger, log: Changelog) -> None:
    """A large cycle is cut into records of at most 512 KiB; only a single entry may be larger."""
    large = an_entry("large", bytes(RECORD_MAX_BYTES))
    entries = [*(an_entry(f"s{n}", bytes(50_000)) for n in range(30)), large, an_entry("after")]

    records = log.commit(ledger, *entries)
    ledger.apply(records)

    sizes = [len(value) for _, value in records]
    assert max(sizes) > RECORD_MAX_BYTES >= sorted(sizes)[-2]
    assert ledger.lookup([entry.digest for entry in entries]) == [entry.payload for entry in entries]


def test_cycle_is_visible_only_as_a_whole(ledger: Ledger, log: Changelog) -> None:
    """A restore may cut a cycle; until its last record came nothing of it shows."""
    entries = [an_entry(f"m{n}", bytes(200_000)) for n in range(8)]
    records = log.commit(ledger, *entries)
    assert len(records) > 2

    for number, record in enumerate(records[:-1], 1):
        ledger.apply([record])
        assert ledger.position is None
        assert payloads(ledger, "m0") == [None]
        assert ledger.next_changelog_offset() == number
    ledger.apply(records[-1:])

    assert payloads(ledger, "m0") == [bytes(200_000)]
    assert ledger.position == Position(1, 100, 0, Cursor())


def test_closed_ledger_opens_as_it_was(store: LedgerStore, log: Changelog) -> None:
    """Closing and opening keeps entries, position and the count of the waiting."""
    before = store.open(1)
    for n in range(30):
        before.apply(log.commit(before, an_entry(f"m{n}", seen=n), clock_ms=n))
    before.apply(log.commit(before, an_entry("m3", b"done", seen=3, first=False, waiting=False), clock_ms=30))
    before.close()
    before.close()

    after = store.open(1)

    assert after.lookup([digest(f"m{n}") for n in (0, 3, 29)]) == [b"m0", b"done", b"m29"]
    assert after.position == Position(31, 3100, 30, Cursor())
    assert after.next_changelog_offset() == log.end - 1
    assert after.waiting() == 29
    after.close()


def test_half_a_cycle_does_not_outlive_the_ledger(store: LedgerStore, log: Changelog) -> None:
    """After a restart the changelog is read on from the end of the last whole cycle."""
    before = store.open(1)
    before.apply(log.commit(before, an_entry("a")))
    records = log.commit(before, *(an_entry(f"m{n}", bytes(200_000)) for n in range(8)))
    before.apply(records[:1])
    before.close()

    after = store.open(1)

    assert after.next_changelog_offset() == 1
    after.apply(records)
    assert payloads(after, "a", "m7") == [b"a", bytes(200_000)]
    after.close()


def test_partitions_are_apart(store: LedgerStore, log: Changelog) -> None:
    """What one partition remembers is no other one's."""
    one, other = store.open(1), store.open(2)

    one.apply(log.commit(one, an_entry("a")))

    assert payloads(other, "a") == [None]
    one.close()
    other.close()


def test_discarded_ledger_is_restored_from_the_changelog(ledger: Ledger, log: Changelog) -> None:
    """Discard empties; replaying the changelog brings all of it back."""
    for n in range(20):
        ledger.apply(log.commit(ledger, an_entry(f"m{n}"), an_entry("same", str(n).encode(), first=n == 0)))
    ledger.discard()
    assert ledger.position is None
    assert ledger.next_changelog_offset() == 0
    assert payloads(ledger, "m1") == [None]
    assert ledger.waiting() == 0

    ledger.apply(log.records)

    assert payloads(ledger, "m1", "m19", "same") == [b"m1", b"m19", b"19"]
    assert ledger.waiting() == 21
    assert ledger.position == Position(20, 2000, 0, Cursor())


def test_record_that_does_not_follow_is_refused(ledger: Ledger, log: Changelog) -> None:
    """A repeated offset, a missing cycle, a missing part and rubbish change nothing."""
    first, second, third = (log.commit(ledger, an_entry(name)) for name in "abc")
    parted = log.commit(ledger, *(an_entry(f"m{n}", bytes(200_000)) for n in range(8)))
    ledger.apply(first)

    for wrong in (first, third, [(9, b"rubbish")]):
        with pytest.raises(LedgerDamagedError):
            ledger.apply(wrong)
    ledger.apply(second + third)
    with pytest.raises(LedgerDamagedError):
        ledger.apply(parted[1:])
    with pytest.raises(LedgerDamagedError):
        ledger.apply([parted[0], *parted[2:]])

    assert payloads(ledger, "a", "b", "c", "m0") == [b"a", b"b", b"c", None]
    assert ledger.next_changelog_offset() == third[-1][0] + 1


def test_restore_may_begin_inside_a_cycle(ledger: Ledger, log: Changelog) -> None:
    """Retention may have cut the head of the changelog anywhere; what is left is taken."""
    records = log.commit(ledger, *(an_entry(f"m{n}", bytes(200_000)) for n in range(8)))

    ledger.apply(records[1:])

    assert ledger.position == Position(1, 100, 0, Cursor())
    assert payloads(ledger, "m0", "m7") == [None, bytes(200_000)]


def test_newer_record_is_refused_by_name(ledger: Ledger, log: Changelog) -> None:
    """A record of a newer format stops us before anything of it is applied."""
    [(offset, value)] = log.commit(ledger, an_entry("a"))

    with pytest.raises(LedgerFormatError, match="newer"):
        ledger.apply([(offset, value[:4] + (99).to_bytes(2, "little") + value[6:])])

    assert ledger.position is None


def test_due_are_those_that_wait_in_the_order_of_their_first_sight(ledger: Ledger, log: Changelog) -> None:
    """Messages seen up to the given time and still waiting are due, with their latest payload; answered ones not."""
    ledger.apply(log.commit(ledger, an_entry("a", seen=10), an_entry("b", seen=10)))
    ledger.apply(log.commit(ledger, an_entry("c", seen=20), an_entry("a", b"a2", seen=10, first=False)))
    ledger.apply(log.commit(ledger, an_entry("b", seen=10, first=False, waiting=False), an_entry("d", seen=30)))

    due = ledger.due(Cursor(), 20, 10)

    assert due_names(due.messages) == ["a2", "c"]
    assert due.more is False
    assert ledger.due(due.cursor, 20, 10) == ([], due.cursor, False)
    assert due_names(ledger.due(due.cursor, 30, 10).messages) == ["d"]


def test_nothing_is_due_before_its_time(ledger: Ledger, log: Changelog) -> None:
    """The cursor waits in front of the first message that is not due yet."""
    ledger.apply(log.commit(ledger, an_entry("a", seen=10)))

    assert ledger.due(Cursor(), 9, 10) == ([], Cursor(0, 0), False)
    assert ledger.due(Cursor(), -5, 10) == ([], Cursor(0, 0), False)
    assert due_names(ledger.due(Cursor(), 10, 10).messages) == ["a"]


def test_look_at_the_deadlines_is_bounded_and_goes_on_where_it_stopped(ledger: Ledger, log: Changelog) -> None:
    """At most `limit` come at once; `more` says so, and the cursor names the first one left."""
    ledger.apply(log.commit(ledger, *(an_entry(f"m{n}", seen=1) for n in range(5))))
    ledger.apply(log.commit(ledger, *(an_entry(f"m{n}", seen=2) for n in range(5, 8))))
    cursor, names, looks = Cursor(), [], 0

    more = True
    while more:
        due = ledger.due(cursor, 2, 3)
        assert len(due.messages) <= 3
        names += due_names(due.messages)
        cursor, more, looks = due.cursor, due.more, looks + 1

    assert names == [f"m{n}" for n in range(8)]
    assert looks == 3
    assert cursor >= Cursor(log.end - 1)


def test_later_life_is_not_due_at_the_place_of_an_earlier(ledger: Ledger, log: Changelog) -> None:
    """A message that came to life again waits from its new first sight on."""
    ledger.apply(log.commit(ledger, an_entry("a", seen=10)))
    ledger.apply(log.commit(ledger, an_entry("a", seen=10, first=False, waiting=False)))
    ledger.apply(log.commit(ledger, an_entry("a", b"again", seen=50)))

    due = ledger.due(Cursor(), 10, 10)

    assert due.messages == []
    assert due_names(ledger.due(due.cursor, 50, 10).messages) == ["again"]
    assert ledger.waiting() == 1


def test_message_whose_first_sight_was_cut_off_is_due_all_the_same(ledger: Ledger, log: Changelog) -> None:
    """What waits is answered also where the changelog begins behind its first sight: not before its time, and once."""
    log.end, log.cycle = 40, 7
    ledger.apply(log.commit(ledger, an_entry("old", seen=10, first=False), an_entry("x", seen=30, first=False)))
    ledger.apply(log.commit(ledger, an_entry("new", seen=40), an_entry("x", b"x2", seen=30, first=False)))

    assert ledger.due(Cursor(), 9, 10) == ([], Cursor(40, 0), False)
    due = ledger.due(Cursor(), 29, 10)
    assert (due_names(due.messages), due.cursor) == (["old"], Cursor(40, 1))
    assert due_names(ledger.due(due.cursor, 40, 10).messages) == ["x2", "new"]
    assert due_names(ledger.due(due.cursor, 40, 1).messages) == ["x2"]
    ledger.apply(log.commit(ledger, an_entry("x", seen=30, first=False, waiting=False)))
    assert due_names(ledger.due(due.cursor, 40, 10).messages) == ["new"]


def test_message_that_was_answered_at_once_is_never_due(ledger: Ledger, log: Changelog) -> None:
    """A first sight that does not wait has no deadline."""
    ledger.apply(log.commit(ledger, an_entry("a", seen=10, waiting=False)))

    assert ledger.due(Cursor(), 10, 10).messages == []
    assert ledger.waiting() == 0


def test_cursor_holds_over_restart_and_restore(store: LedgerStore, log: Changelog) -> None:
    """A cursor names a place of the changelog: it means the same to a reopened and to a restored ledger."""
    before = store.open(1)
    for n in range(10):
        before.apply(log.commit(before, an_entry(f"m{n}", seen=n)))
    cursor = before.due(Cursor(), 4, 10).cursor
    before.close()

    reopened = store.open(1)
    assert due_names(reopened.due(cursor, 6, 10).messages) == ["m5", "m6"]
    reopened.discard()
    reopened.apply(log.records)
    assert due_names(reopened.due(cursor, 6, 10).messages) == ["m5", "m6"]
    reopened.close()


def test_cursor_before_and_behind_what_is_there_is_taken(ledger: Ledger, log: Changelog) -> None:
    """A cursor into what the changelog lost looks from what is left; one ahead of us stays where it is."""
    log.end = 40
    ledger.apply(log.commit(ledger, an_entry("a", seen=1)))

    assert due_names(ledger.due(Cursor(3, 7), 1, 10).messages) == ["a"]
    assert ledger.due(Cursor(99, 1), 1, 10) == ([], Cursor(99, 1), False)


def test_forgetting_keeps_what_may_still_be_asked_for(ledger: Ledger, log: Changelog) -> None:
    """Only what is older than asked and passed by the deadlines may go; what was written again later stays."""
    ledger.apply(log.commit(ledger, an_entry("old", waiting=False), an_entry("rewritten", waiting=False)))
    ledger.apply(log.commit(ledger, an_entry("rewritten", b"2", first=False, waiting=False), clock_ms=2 * HOUR_MS))
    ledger.forget(HOUR_MS)
    assert payloads(ledger, "old", "rewritten") == [b"old", b"2"]  # the cursor has not passed it

    ledger.apply(log.commit(ledger, clock_ms=2 * HOUR_MS, cursor=Cursor(log.end)))
    ledger.forget(0)
    assert payloads(ledger, "old", "rewritten") == [b"old", b"2"]  # it is too young
    ledger.forget(HOUR_MS)

    assert payloads(ledger, "old", "rewritten") == [None, b"2"]
    assert ledger.position == Position(3, 300, 2 * HOUR_MS, Cursor(4))


def test_flush_is_harmless(ledger: Ledger, log: Changelog) -> None:
    """Flushing changes nothing that can be asked for."""
    ledger.flush()
    ledger.apply(log.commit(ledger, an_entry("a")))
    ledger.flush()

    assert payloads(ledger, "a") == [b"a"]
