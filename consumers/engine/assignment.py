"""What an owner of a partition does before its first cycle: find out where the partition stands.

The changelog is the only authority. The journal on local disk saves reading all of it; the group's offset is looked at
for one thing only: whether the group has read further than memory reaches.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import NamedTuple, ParamSpec, Protocol, TypeVar

import structlog

from consumers.engine.metrics import RESTORED
from consumers.engine.protocols import Ledger
from consumers.entry import LedgerDamagedError
from ingest.runtime.errors import FoundError

RESTORE_RECORDS = 64
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
    """

    had_journal: bool
    changelog_start: int
    alone: bool = False
    unproven: bool = False


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
    ) -> AsyncIterator[list[tuple[int, bytes]]]: ...


async def restore(ledger: Ledger, changelog: Changelog) -> Restored:
    """Bring a ledger up to the end of its changelog.

    Local state that does not meet the changelog is discarded, unless there is nothing to put in its place: then whether
    to go on without it is not decided here.

    Raises:
        LedgerFormatError: the changelog was written by a newer release.
        OSError: the local disk does not serve.
    """
    start, end = await changelog.bounds()
    had_journal = ledger.next_changelog_offset() > 0
    if had_journal and start == end != ledger.next_changelog_offset():
        # Behind the last record of a transaction stands its commit marker. With nothing else behind it, nothing is
        # missed; anything more may have been a cycle of another owner.
        whole = end == ledger.next_changelog_offset() + 1
        return Restored(had_journal, start, alone=whole, unproven=not whole)
    if had_journal and not start <= ledger.next_changelog_offset() <= end:
        _log.warning(
            "local state does not meet the changelog and is discarded",
            local_next=ledger.next_changelog_offset(),
            changelog_start=start,
            changelog_end=end,
        )
        await in_thread(ledger.discard)
    try:
        await _read_on(ledger, changelog, start, end)
    except LedgerDamagedError as error:
        _log.warning("local state is discarded and restored", cause=str(error))
        await in_thread(ledger.discard)
        await _read_on(ledger, changelog, start, end)
    return Restored(had_journal, start)


async def _read_on(ledger: Ledger, changelog: Changelog, start: int, end: int) -> None:
    first = max(start, ledger.next_changelog_offset())
    async for records in changelog.read(first, end, records_max=RESTORE_RECORDS, idle_max_s=RESTORE_IDLE_MAX_S):
        if records:
            RESTORED.inc(await in_thread(ledger.apply, records))


async def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a blocking call beside the event loop. A cancellation takes effect after it: a thread cannot be stopped."""
    running = asyncio.ensure_future(asyncio.to_thread(call, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        raise
