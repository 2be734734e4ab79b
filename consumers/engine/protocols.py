"""What the engine asks of the memory of a partition. `consumers.ledger` keeps the promise, `__main__` joins the two.

All calls block, on local disk only. `open`, `apply` of a restore and `discard` belong into a thread; those of a running
cycle (some milliseconds) need none. Calls on one ledger must not overlap; ledgers of different partitions are apart.
"""

from collections.abc import Sequence
from typing import Protocol

from consumers.entry import Cursor, Due, Entry, Position


class Ledger(Protocol):
    """The committed state of one partition: a copy of its changelog on local disk, behind it at most, never ahead."""

    @property
    def position(self) -> Position | None:
        """Of the last cycle that was applied whole; None if there is none."""
        ...

    def position_of(self, value: bytes) -> Position | None:
        """The position that a changelog record carries: the last one of a cycle does, another one None.

        Raises:
            LedgerFormatError: the record is of a newer format than this release reads.
            LedgerDamagedError: it is none.
        """
        ...

    def lookup(self, digests: Sequence[bytes]) -> list[bytes | None]:
        """Payloads of the last applied entries, in the order asked for; None for what is unknown or was forgotten.

        A message past its `forget_at` may still be found: whoever decodes the payload decides. Digests may repeat.
        Meant for a whole cycle at once: the cost is per call, then well below a microsecond for each.

        Raises:
            LedgerDamagedError: the index points at something else than the entry.
        """
        ...

    def encode(self, entries: Sequence[Entry], position: Position) -> list[bytes]:
        """The changelog records of one cycle, in the order in which they must be sent; changes nothing here.

        At least one record, also without entries. Each has at most 512 KiB, or one larger entry. The last carries the
        position. Entries keep their order; a digest comes once in a cycle. For the deadlines to be right `seen_at_ms`
        of entries with `first_seen` must not fall from one to the next, cycles before included.
        """
        ...

    def apply(self, records: Sequence[tuple[int, bytes]]) -> int:
        """Take committed changelog records in: write them to the local journal, then make them visible to `lookup`.

        Args:
            records: (changelog offset, value), in changelog order, any number of cycles. Offsets rise, gaps allowed
                (transaction markers take offsets). A cycle may be split over several calls, in a restore; what is
                not whole yet is neither visible nor in the journal.

        Returns:
            How many entries came in (the number that a restore counts).

        Raises:
            OSError: the journal could not be written. The state is that of some cycle before, whole, `position` and
                `next_changelog_offset()` say which: to be treated as doubt (read the changelog from there again).
            LedgerFormatError: a record is of a newer format than this release reads; nothing of it was applied.
            LedgerDamagedError: an offset that does not rise, a cycle that does not follow on the last one, a record
                that is none, or a journal file that could not be synced. Cycles before it may have been applied.
        """
        ...

    def next_changelog_offset(self) -> int:
        """Offset after the last record that `apply` took: where reading the changelog goes on; 0 if empty."""
        ...

    def due(self, cursor: Cursor, seen_until_ms: int, limit: int) -> Due:
        """Messages first seen at or before `seen_until_ms` that still wait in that same life, from `cursor` on.

        It sees applied cycles only: the caller leaves out those whose entry a cycle in flight has changed (they are
        answered by that cycle) and need not fear to pass any, since the cursor stops at the end of what is applied.
        A cursor that moved over nothing due needs no cycle of its own; it travels with the next one.

        Args:
            cursor: from the last position; `Cursor()` at the very beginning. It may name a place that is not here
                any more; then the look begins at the first one after it.
            seen_until_ms: the partition clock less the timeout, epoch ms.
            limit: most messages to return, at least 1.

        Raises:
            LedgerDamagedError: as `lookup`.
        """
        ...

    def forget(self, before_ms: int) -> None:
        """Drop what nobody can ask for any more, in whole generations: cheap, may be called after every cycle.

        A generation goes once the clock of its last cycle is before `before_ms` and the deadline cursor of `position`
        has passed it. An entry that was written again later lives in the later generation and stays.

        Args:
            before_ms: the partition clock less the late window, epoch ms.
        """
        ...

    def waiting(self) -> int:
        """Number of messages that wait for their result, exact, also after a restore."""
        ...

    def flush(self) -> None:
        """Return once all that was applied is on the device. Not needed for correctness: it shortens a restore.

        Raises:
            LedgerDamagedError: the device did not take it, so that what stands there is not certain.
        """
        ...

    def discard(self) -> None:
        """Throw the local state away and go on empty, `next_changelog_offset()` 0: the changelog restores it.

        Raises:
            OSError: the folder does not serve, or was removed: close, and open anew.
        """
        ...

    def close(self) -> None:
        """Let go of files and lock, fast, without a sync. Calling it twice is harmless."""
        ...


class LedgerStore(Protocol):
    """Where the ledgers of one process are."""

    def open(self, partition: int) -> Ledger:
        """The ledger of one partition as it was left, locked against everybody else.

        Damage is repaired here: an append that a crash cut short is removed, anything worse discards the local state
        (then `next_changelog_offset()` is 0) and is logged. A folder that somebody else holds is waited for briefly,
        at most `lock_wait_s`; then the ledger is an empty one in a folder of its own.

        What is opened must be brought to the end of the changelog before it is asked: where a crash took cycles from
        its end, entries that only these allowed to forget may be gone already.

        Raises:
            LedgerFormatError: the state is of a newer format; says which.
            UsageError: it was made for another number of partitions; says the way out. (State of another cluster is
                discarded: it was never a copy of this one's changelog.)
            OSError: the disk does not serve.
        """
        ...

    def close(self) -> None:
        """End what works in the background, once all its ledgers are closed. May wait for a step under way."""
        ...
