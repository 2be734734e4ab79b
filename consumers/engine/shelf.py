"""Ledgers that stay open over a rebalance: a group gives every partition up and most of them come back at once.

What is taken from the shelf is treated like anything that was opened: it is brought to the end of the changelog before
it is asked. So it does not matter whether somebody else had the partition in between.
"""

from collections.abc import Collection

from consumers.engine.protocols import Ledger, LedgerStore


class Shelf:
    """The ledgers of one membership: opened, put aside, taken again. One thread puts, any thread may open."""

    def __init__(self, store: LedgerStore) -> None:
        """Empty.

        Args:
            store: opens what is not here.
        """
        self._store = store
        self._ledgers: dict[int, Ledger] = {}
        self._kept: Collection[int] | None = None  # by the last assignment, None before it
        self._closed = False

    def open(self, partition: int) -> Ledger:
        """The ledger of a partition: the one put aside, else as `LedgerStore.open`. May block."""
        return self._ledgers.pop(partition, None) or self._store.open(partition)

    def put(self, partition: int, ledger: Ledger) -> None:
        """Put a ledger aside for the next owner in this process; its folder stays locked.

        One that comes too late, after the next assignment, is closed where it is of no use.
        """
        before = self._ledgers.pop(partition, None)
        if before is not None:
            before.close()
        if self._closed or (self._kept is not None and partition not in self._kept):
            ledger.close()
        else:
            self._ledgers[partition] = ledger

    def keep(self, partitions: Collection[int]) -> None:
        """Close what is of other partitions: they went to somebody else, who waits for their folders."""
        self._kept = partitions
        for partition in self._ledgers.keys() - set(partitions):
            ledger = self._ledgers.pop(partition, None)  # somebody who was told to stop may still open it
            if ledger is not None:
                ledger.close()

    def close(self) -> None:
        """Close all of it, and whatever is still to be put."""
        self._closed = True
        self.keep(())
