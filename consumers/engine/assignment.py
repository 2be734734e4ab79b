"""What an owner of a partition does before its first cycle: find out where the partition stands.

The changelog is the only authority. The journal on local disk saves reading all of it; the group's offset is looked at
for one thing only: whether the group has read further than memory reaches.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import NamedTuple, ParamSpec, Protocol, TypeVar

import structlog

from consumers.engine.cycle import Rules
from consumers.engine.kafka_raw import UnreadableError
from consumers.engine.metrics import RESTORED
from consumers.engine.protocols import Ledger
from consumers.entry import LedgerDamagedError, Position
from ingest.runtime.errors import FoundError

RESTORE_RECORDS = 16
"""Changelog records (of at most 512 KiB) applied at a time: what a restore holds in memory."""

RESTORE_IDLE_MAX_S = 30.0

P = ParamSpec("P")
T = TypeVar("T")

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is known of a partition once its changelog has been read.

    Attributes:
        topic: the reports topic.
        partition: its number.
        had_journal: whether there was local state before.
        unproven: whether there is local state still that the changelog, expired up to its end, says nothing about.
        changelog_start: first offset of the changelog.
        next_offset: where the changelog says that the input goes on; None if it says nothing.
        committed: the group's offset, None if it has none.
        input_start: first offset of the input.
        input_end: end of the input.
    """

    topic: str
    partition: int
    had_journal: bool
    changelog_start: int
    next_offset: int | None
    committed: int | None
    input_start: int
    input_end: int
    unproven: bool = False


class Restored(NamedTuple):
    """What came of bringing a ledger up to the end of its changelog.

    Attributes:
        had_journal: whether there was local state before.
        changelog_start: first offset of the changelog.
        alone: the changelog expired up to its end, and the journal has all that it held: the position stands in the
            journal only, and is to be written down again.
        unproven: it expired up to its end, and may have held more than the journal. The journal is still there, and is
            to be discarded before the partition goes on without it.
        accepted: it begins later than memory must reach back, and that was accepted.
    """

    had_journal: bool
    changelog_start: int
    alone: bool = False
    unproven: bool = False
    accepted: bool = False


def input_offset(known: Evidence, *, accept_loss: bool) -> int:
    """Where the input is read on.

    Args:
        known: of the partition.
        accept_loss: go on where memory or input was lost: from where the group has read, as far as that is there.

    Raises:
        FoundError: memory does not reach to where the group has read, or the position is not in the input any more.
    """
    where = f"partition {known.partition} of {known.topic}"
    offset = known.next_offset
    if offset is None:
        if known.changelog_start == 0 and known.committed is None and not known.had_journal:
            return known.input_start
        if known.unproven:
            why = "the changelog holds nothing any more, and may have held more than the journal does"
        else:
            why = "journal and changelog hold no position"
        _lost(accept_loss, f"{where}: the memory of this group is lost ({why})")
        offset = known.input_start if known.committed is None else known.committed
    elif known.committed is not None and known.committed > offset:
        _lost(
            accept_loss,
            f"{where}: the group has read up to {known.committed}, its memory (journal and changelog) ends at {offset}",
        )
        offset = known.committed
    if offset < known.input_start:
        _lost(accept_loss, f"{where}: position {offset} fell out of retention, the topic begins at {known.input_start}")
        return known.input_start
    if offset > known.input_end:
        _lost(accept_loss, f"{where}: position {offset} is behind the end of the topic at {known.input_end}")
        return known.input_start
    return offset


def _lost(accept_loss: bool, what: str) -> None:  # noqa: FBT001 - the setting of that name
    if not accept_loss:
        raise FoundError(f"{what}; --accept-loss goes on without it")
    _log.warning("loss accepted", loss=what)


class Input(Protocol):
    """What is asked about the input."""

    async def committed(self, partition: int) -> int | None: ...  # noqa: D102
    async def bounds(self, partition: int) -> tuple[int, int]: ...  # noqa: D102


class Changelog(Protocol):
    """What is asked of a reader of one changelog partition."""

    async def bounds(self) -> tuple[int, int]: ...  # noqa: D102
    def read(  # noqa: D102
        self, first: int, end: int, *, records_max: int, idle_max_s: float
    ) -> AsyncGenerator[list[tuple[int, bytes]], None]: ...


async def restore(ledger: Ledger, changelog: Changelog, rules: Rules, *, now_ms: int, accept_loss: bool) -> Restored:
    """Bring a ledger up to the end of its changelog.

    Local state that does not continue into the changelog is discarded, unless there is nothing to put in its place:
    then whether to go on without it is not decided here.

    Args:
        ledger: as it was left.
        changelog: of the same partition; nobody else writes to it any more.
        rules: of the partition.
        now_ms: wall time.
        accept_loss: go on where the changelog does not reach back as far as memory must.

    Raises:
        FoundError: the changelog does not reach back so far.
        LedgerFormatError: it was written by a newer release.
        UnreadableError: it holds what is no cycle of this group, or the local disk does not keep it.
        OSError: the local disk does not serve.
    """
    start, end = await changelog.bounds()
    behind = ledger.next_changelog_offset()
    had_journal = behind > 0
    if had_journal and start == end != behind:
        # Behind the last record of a transaction stands its commit marker. With nothing else behind it, nothing is
        # missed; anything more may have been a cycle of another owner.
        whole = end == behind + 1
        return Restored(had_journal, start, alone=whole, unproven=not whole)
    if had_journal:
        try:
            await _continue(ledger, changelog, start, end)
        except LedgerDamagedError as error:
            _log.warning(
                "local state is discarded and restored",
                partition=rules.partition,
                cause=str(error),
                local_next=behind,
                changelog_start=start,
                changelog_end=end,
            )
        else:
            return Restored(had_journal, start)
    try:
        missing = await _missing(ledger, changelog, start, end, late_window_ms=rules.late_window_ms, now_ms=now_ms)
        if missing:
            _lost(accept_loss, f"partition {rules.partition} of {rules.reports_topic}: {missing}")
        if had_journal:
            await in_thread(ledger.discard)
        async with aclosing(_read(changelog, start, end)) as parts:
            await _apply(ledger, parts)
    except LedgerDamagedError as error:
        raise UnreadableError(
            f"the changelog of partition {rules.partition} holds what is no cycle of this group ({error}): where "
            "somebody has written into it, delete its records up to that one, and accept their loss with --accept-loss"
        ) from error
    return Restored(had_journal, start, accepted=missing is not None)


async def _continue(ledger: Ledger, changelog: Changelog, start: int, end: int) -> None:
    """Read the changelog on where the journal ends.

    Raises:
        LedgerDamagedError: the journal is no beginning of it. Brokers may have lost what they had confirmed, the topic
            may have been made anew; offsets and numbers of cycles then look as if one followed on the other.
    """
    behind = ledger.next_changelog_offset()
    # Only the marker behind our last record may be missing at the changelog's start.
    if not start <= behind + 1 or behind > end:
        raise LedgerDamagedError("it does not meet the changelog")
    known = behind - 1 if behind > start else None
    if known is not None and end <= behind + 1:
        end = behind  # nothing but the marker of our last cycle can stand behind it
    async with aclosing(_read(changelog, max(start, behind) if known is None else known, end)) as parts:
        if known is not None:
            records: list[tuple[int, bytes]] = await anext(parts, [])
            if (
                not records
                or records[0][0] != known
                or ledger.position_of(records[0][1]) not in {None, ledger.position}
            ):
                raise LedgerDamagedError("its last cycle is not the one that stands in the changelog")
            await _take(ledger, records[1:])
        await _apply(ledger, parts)


def _read(
    changelog: Changelog, first: int, end: int, *, records_max: int = RESTORE_RECORDS
) -> AsyncGenerator[list[tuple[int, bytes]], None]:
    return changelog.read(first, end, records_max=records_max, idle_max_s=RESTORE_IDLE_MAX_S)


async def _apply(ledger: Ledger, parts: AsyncIterator[list[tuple[int, bytes]]]) -> None:
    async for records in parts:
        await _take(ledger, records)
    await in_thread(ledger.waiting)  # counting puts the rest in order: some 50 ms that the first cycle would take


async def _take(ledger: Ledger, records: Sequence[tuple[int, bytes]]) -> None:
    if records:
        RESTORED.inc(await in_thread(ledger.apply, records))


def _first_position(ledger: Ledger, records: Iterable[tuple[int, bytes]]) -> Position | None:
    return next((at for _, value in records if (at := ledger.position_of(value)) is not None), None)


async def _missing(
    ledger: Ledger, changelog: Changelog, start: int, end: int, *, late_window_ms: int, now_ms: int
) -> str | None:
    """Why a changelog whose beginning has gone may not hold all that has to be remembered; None if it does.

    Retention takes only what nobody can ask for any more. Records that somebody deletes, or a topic whose retention
    was made shorter, take more; the position that is left does not show it.
    """
    if start == end:
        return None
    first = await _first_cycle(ledger, changelog, start, end)
    if first is None or (start == 0 and first.cycle == 1):
        return None
    last = await _last_cycle(ledger, changelog, start, end) or first
    needed = first.clock_ms > max(max(last.clock_ms, now_ms) - late_window_ms, last.memory_from_s * 1000)
    if start == 0:
        return f"the changelog was made anew after cycle {first.cycle - 1}" if needed else None
    # A cursor stands right behind a record, where the marker of its transaction is.
    if last.cursor.offset < start - 1:
        return f"the changelog begins at {start}, and what stood before it was not examined for timeouts yet"
    if needed:
        return (
            f"the changelog begins at {start}, later than the late window (DLR_LATE_WINDOW_S) reaches back: "
            "messages before it are forgotten too soon"
        )
    return None


async def _first_cycle(ledger: Ledger, changelog: Changelog, start: int, end: int) -> Position | None:
    first = None
    async with aclosing(_read(changelog, start, end, records_max=1)) as parts:
        while first is None and (records := await anext(parts, None)) is not None:
            first = _first_position(ledger, records)
    return first


async def _last_cycle(ledger: Ledger, changelog: Changelog, start: int, end: int) -> Position | None:
    """Look back twice as far each time: markers and aborted records stand at the end, too."""
    last, reach = None, 2
    while last is None and reach < 2 * (end - start):
        reach *= 2
        async with aclosing(_read(changelog, max(start, end - reach), end)) as parts:
            async for records in parts:
                last = _first_position(ledger, reversed(records)) or last
    return last


async def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a blocking call beside the event loop. A cancellation takes effect after it: a thread cannot be stopped."""
    running = asyncio.ensure_future(asyncio.to_thread(call, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        raise
