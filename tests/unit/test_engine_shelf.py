"""Ledgers that stay open between two assignments, and only those that come back."""

from consumers.engine.shelf import Shelf
from tests.fakes.ledgers import MemoryLedger


class Counting:
    """A store that counts what it opens."""

    def __init__(self) -> None:
        self.opened: list[int] = []

    def open(self, partition: int) -> MemoryLedger:
        """A new one."""
        self.opened.append(partition)
        return MemoryLedger()

    def close(self) -> None:
        """Nothing to do."""


def test_what_comes_back_is_not_opened_again() -> None:
    """The same ledger is taken from the shelf, once."""
    store = Counting()
    shelf = Shelf(store)
    ledger = MemoryLedger()

    shelf.put(3, ledger)

    assert shelf.open(3) is ledger
    assert shelf.open(3) is not ledger
    assert store.opened == [3]


def test_what_went_to_somebody_else_is_closed() -> None:
    """Its folder is waited for."""
    shelf = Shelf(Counting())
    ledgers = [MemoryLedger() for _ in range(3)]
    for partition, ledger in enumerate(ledgers):
        shelf.put(partition, ledger)

    shelf.keep({0, 2, 7})

    assert [ledger.closed for ledger in ledgers] == [False, True, False]


def test_a_closed_shelf_keeps_nothing() -> None:
    """A worker may end after its session."""
    shelf = Shelf(Counting())
    early, late = MemoryLedger(), MemoryLedger()
    shelf.put(0, early)

    shelf.close()
    shelf.put(1, late)

    assert early.closed
    assert late.closed


def test_what_is_put_twice_is_not_lost() -> None:
    """The former one gives its folder up."""
    shelf = Shelf(Counting())
    former, latter = MemoryLedger(), MemoryLedger()

    shelf.put(0, former)
    shelf.put(0, latter)

    assert (former.closed, latter.closed) == (True, False)


def test_what_comes_after_the_assignment_is_kept_only_if_it_is_ours() -> None:
    """A worker that took long to stop must not hold the folder of somebody else's partition."""
    shelf = Shelf(Counting())
    shelf.keep({1})
    ours, theirs = MemoryLedger(), MemoryLedger()

    shelf.put(1, ours)
    shelf.put(2, theirs)

    assert (ours.closed, theirs.closed) == (False, True)


def test_one_that_is_taken_while_others_are_closed_is_let_go() -> None:
    """A thread that opens may come between any two steps."""
    shelf = Shelf(Counting())

    class Slow(MemoryLedger):
        def close(self) -> None:
            super().close()
            for partition in (0, 1):
                shelf.open(partition)

    for partition in (0, 1):
        shelf.put(partition, Slow())

    shelf.keep(())
