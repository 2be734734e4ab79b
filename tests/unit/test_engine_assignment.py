"""Where a new owner reads on, and when it must not."""

import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace

import pytest

from consumers.engine.assignment import Evidence, Restored, input_offset, restore
from consumers.engine.cycle import Rules
from consumers.entry import Cursor, Entry, LedgerDamagedError, LedgerFormatError, Position
from ingest.runtime.errors import FoundError
from tests.fakes.ledgers import MemoryLedger

NEW = Evidence(
    topic="reports",
    partition=3,
    had_journal=False,
    changelog_start=0,
    next_offset=None,
    committed=None,
    input_start=10,
    input_end=90,
)
KNOWN = replace(NEW, had_journal=True, next_offset=50, committed=50)


@pytest.mark.parametrize(
    ("known", "offset"),
    [
        (NEW, 10),
        (KNOWN, 50),
        (replace(KNOWN, had_journal=False, changelog_start=7), 50),
        (replace(KNOWN, committed=None), 50),
        (replace(KNOWN, committed=20), 50),
        (replace(KNOWN, next_offset=90, committed=90), 90),
        (replace(KNOWN, next_offset=10, committed=10), 10),
    ],
    ids=["new", "known", "disk lost", "offsets expired", "offsets reset", "at the end", "at the start"],
)
def test_the_changelog_says_where_the_input_goes_on(known: Evidence, offset: int) -> None:
    """A new group begins at the first offset; the group's offset never moves a known position."""
    assert input_offset(known, accept_loss=False) == offset


@pytest.mark.parametrize(
    ("known", "accepted"),
    [
        (replace(NEW, had_journal=True), 10),
        (replace(NEW, had_journal=True, unproven=True, changelog_start=5, committed=40), 40),
        (replace(NEW, changelog_start=5), 10),
        (replace(NEW, committed=40), 40),
        (replace(KNOWN, committed=60), 60),
        (replace(KNOWN, next_offset=5, committed=5), 10),
        (replace(KNOWN, next_offset=91, committed=91), 10),
        (replace(NEW, committed=4), 10),
    ],
    ids=[
        "journal without changelog",
        "journal of which nobody knows whether it is whole",
        "changelog aged out",
        "changelog gone",
        "changelog cut short",
        "position out of retention",
        "input made anew",
        "both gone",
    ],
)
def test_lost_memory_or_input_needs_consent(known: Evidence, accepted: int) -> None:
    """It stops with status 1; --accept-loss goes on from where the group has read, as far as that is there."""
    with pytest.raises(FoundError, match=r"partition 3 of reports.*--accept-loss"):
        input_offset(known, accept_loss=False)

    assert input_offset(known, accept_loss=True) == accepted


class Log:
    """A changelog in memory: (offset, value), and where it begins and ends."""

    def __init__(self, records: list[tuple[int, bytes]], start: int = 0, end: int | None = None) -> None:
        self.records = records
        self.start = start
        self.end = (records[-1][0] + 2 if records else start) if end is None else end
        self.read_from: list[int] = []

    async def bounds(self) -> tuple[int, int]:
        """As they are."""
        return self.start, self.end

    async def read(
        self, first: int, end: int, *, records_max: int, idle_max_s: float
    ) -> AsyncGenerator[list[tuple[int, bytes]], None]:
        """Some at a time."""
        assert idle_max_s > 0
        self.read_from.append(first)
        wanted = [record for record in self.records if first <= record[0] < end]
        for start in range(0, len(wanted), records_max):
            yield wanted[start : start + records_max]


def a_changelog(cycles: int, *, tick_ms: int = 1, examined: bool = True) -> list[tuple[int, bytes]]:
    """Cycles of one entry each, a marker after every one.

    Args:
        cycles: how many.
        tick_ms: of the partition clock, from one to the next.
        examined: whether the deadline cursor keeps up.
    """
    ledger = MemoryLedger()
    return [
        (
            2 * number,
            ledger.encode(
                [Entry(b"%016d" % number, number * tick_ms, first_seen=True, waiting=True, payload=b"")],
                Position(number + 1, 10 * number, number * tick_ms, Cursor(2 * number if examined else 0)),
            )[0],
        )
        for number in range(cycles)
    ]


async def restored(
    ledger: MemoryLedger, log: Log, *, accept_loss: bool = False, late_window_ms: int = 4, now_ms: int = 0
) -> Restored:
    """What comes of a restore under rules that matter here."""
    rules = Rules(reports_topic="reports", partition=3, partitions=9, timeout_ms=1, late_window_ms=late_window_ms)
    return await restore(ledger, log, rules, now_ms=now_ms, accept_loss=accept_loss)


async def test_an_empty_ledger_reads_all_of_the_changelog() -> None:
    """From its first offset to its end."""
    ledger, log = MemoryLedger(), Log(a_changelog(200), start=0)

    assert await restored(ledger, log) == Restored(had_journal=False, changelog_start=0)
    assert log.read_from[-1] == 0
    assert ledger.waiting() == 200


async def test_a_ledger_that_is_behind_reads_the_rest() -> None:
    """From its last record on, which shows that both tell of the same past."""
    ledger, records = MemoryLedger(), a_changelog(9)
    ledger.apply(records[:4])
    log = Log(records)

    assert await restored(ledger, log) == Restored(had_journal=True, changelog_start=0)
    assert log.read_from == [6]
    assert ledger.discarded == 0
    assert ledger.position is not None
    assert ledger.position.cycle == 9


@pytest.mark.parametrize("start", [7, 8], ids=["its last record has gone", "the marker, too"])
async def test_a_journal_whose_end_has_just_expired_goes_on(start: int) -> None:
    """The next cycle follows by its number; nothing was missed."""
    ledger, records = MemoryLedger(), a_changelog(9)
    ledger.apply(records[:4])
    log = Log(records[4:], start=start)

    await restored(ledger, log)

    assert ledger.discarded == 0
    assert ledger.waiting() == 9


@pytest.mark.parametrize(("start", "end"), [(9, 19), (0, 5)], ids=["changelog aged past it", "ahead of the changelog"])
async def test_local_state_that_does_not_meet_the_changelog_is_discarded(start: int, end: int) -> None:
    """The changelog is the authority, and its journal began before it or ends behind it."""
    ledger, records = MemoryLedger(), a_changelog(10)
    ledger.apply(records[:4])
    log = Log([record for record in records if start <= record[0] < end], start=start, end=end)

    await restored(ledger, log)

    assert ledger.discarded == 1
    assert ledger.position is not None
    assert ledger.position.cycle == len(records[: -(-end // 2)])


def another_past(records: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """Other cycles at the same offsets: a topic made anew, or brokers that lost what they had confirmed."""
    return a_changelog(len(records), tick_ms=2)


def one_was_aborted(records: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """The journal's last cycle is not among those that were committed in the end."""
    return [record for record in records if record[0] != 6]


def nothing_behind(records: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """It was the last one, and aborted."""
    return records[:3]


@pytest.mark.parametrize("history", [another_past, one_was_aborted, nothing_behind])
async def test_a_journal_of_another_past_is_discarded(
    history: Callable[[list[tuple[int, bytes]]], list[tuple[int, bytes]]],
) -> None:
    """Offsets that meet prove nothing."""
    ledger, records = MemoryLedger(), a_changelog(9)
    ledger.apply(records[:4])
    told = history(records)
    kept = [record for record in told if record[0] < 6] if history is one_was_aborted else told
    log = Log(kept, end=18)

    await restored(ledger, log)

    assert ledger.discarded == 1
    assert ledger.waiting() == len(kept)


@pytest.mark.parametrize(
    ("examined", "late_window_ms", "why"),
    [(False, 1, "not examined for timeouts"), (True, 5, "later than the late window")],
    ids=["deadlines", "late window"],
)
@pytest.mark.parametrize("journal", [0, 2], ids=["no journal", "a journal that ends before it"])
async def test_a_changelog_that_begins_too_late_needs_consent(
    journal: int, late_window_ms: int, why: str, *, examined: bool
) -> None:
    """Records were deleted that are still asked for; nothing local is thrown away before the loss is accepted."""
    ledger, records = MemoryLedger(), a_changelog(9, examined=examined)
    ledger.apply(records[:journal])
    log = Log(records[4:], start=8)

    with pytest.raises(FoundError, match=f"partition 3 of reports: .*{why}.*--accept-loss"):
        await restored(ledger, log, late_window_ms=late_window_ms)

    assert ledger.discarded == 0
    assert ledger.waiting() == journal
    await restored(ledger, log, late_window_ms=late_window_ms, accept_loss=True)
    assert ledger.waiting() == 5


@pytest.mark.parametrize(
    ("memory_from_s", "now_ms", "asks"),
    [(1, 0, False), (0, 9, False), (0, 8, True)],
    ids=["memory begins there", "all of it is forgotten by now", "still needed"],
)
async def test_what_nobody_can_ask_for_any_more_may_be_missing(memory_from_s: int, now_ms: int, *, asks: bool) -> None:
    """A loss that was accepted, or a pause longer than the late window, is not asked about of whoever comes next."""
    ledger, records = MemoryLedger(), a_changelog(9)
    position = ledger.position_of(records[-1][1])
    assert position is not None
    records.append((18, ledger.encode([], replace(position, cycle=10, memory_from_s=memory_from_s))[0]))
    log = Log(records[4:], start=8)

    with pytest.raises(FoundError) if asks else contextlib.nullcontext():
        await restored(ledger, log, late_window_ms=5, now_ms=now_ms)

    assert ledger.waiting() == (0 if asks else 5)


async def test_a_changelog_that_was_made_anew_in_use_needs_consent() -> None:
    """It begins at its beginning, but not with the first cycle."""
    ledger, records = MemoryLedger(), a_changelog(9)
    log = Log([(offset - 8, value) for offset, value in records[4:]])

    with pytest.raises(FoundError, match="made anew after cycle 4"):
        await restored(ledger, log, late_window_ms=5)

    assert ledger.waiting() == 0
    await restored(ledger, log, late_window_ms=4)
    assert ledger.waiting() == 5


async def test_a_changelog_that_expired_as_it_may_asks_nobody() -> None:
    """What has gone is older than the late window, and was examined for timeouts."""
    ledger, log = MemoryLedger(), Log(a_changelog(9)[4:], start=8)

    await restored(ledger, log, late_window_ms=4)

    assert ledger.waiting() == 5


async def test_a_journal_that_has_all_of_an_expired_changelog_is_kept() -> None:
    """Nothing but the commit marker of its last cycle stood behind what it has: nothing is missed."""
    ledger = MemoryLedger()
    ledger.apply(a_changelog(4))
    after = ledger.next_changelog_offset() + 1

    assert await restored(ledger, Log([], start=after)) == Restored(had_journal=True, changelog_start=after, alone=True)
    assert ledger.discarded == 0
    assert ledger.waiting() == 4


@pytest.mark.parametrize("after", [0, 9, 20], ids=["changelog made anew", "one record more", "many"])
async def test_a_journal_is_not_thrown_away_for_an_empty_changelog(after: int) -> None:
    """There is nothing to put in its place: whoever may accept the loss is asked before it is gone."""
    ledger = MemoryLedger()
    ledger.apply(a_changelog(4))
    assert ledger.next_changelog_offset() == 7

    assert await restored(ledger, Log([], start=after)) == Restored(
        had_journal=True, changelog_start=after, unproven=True
    )
    assert ledger.discarded == 0


async def test_damaged_local_state_is_discarded_and_restored() -> None:
    """Once; damage that comes back is not ours to mend."""

    class Damaged(MemoryLedger):
        def apply(self, records: Sequence[tuple[int, bytes]]) -> int:
            if self.position and not self.discarded:
                raise LedgerDamagedError("gap")
            return super().apply(records)

    ledger, records = Damaged(), a_changelog(3)
    ledger.apply(records[:1])

    await restored(ledger, Log(records))

    assert ledger.discarded == 1
    assert ledger.waiting() == 3


async def test_a_newer_changelog_is_refused() -> None:
    """Whoever starts the older release must act."""

    class Older(MemoryLedger):
        def apply(self, records: object) -> int:
            raise LedgerFormatError(f"newer: {records!r:.20}")

    with pytest.raises(LedgerFormatError):
        await restored(Older(), Log(a_changelog(3)))
