"""Whether every transaction before has its end everywhere, and how to write it where brokers have left it out.

The end of a transaction that was committed is written by a producer with a transaction timeout of its own, which
brokers keep with the transactional id. So whoever comes next can tell what such a producer was there for, wherever it
was cut off: the decision outlives everybody.
"""

import asyncio
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Protocol

from consumers.engine.endings import Last

ENDING_TIMEOUT_MS = 599_999
"""Of a producer that is there for nothing but to write the end of a committed transaction: none else has just this one.
Long, since a coordinator that runs out of it aborts what was to be committed; brokers allow 15 minutes."""

MARKERS_TIMEOUT_S = 5.0
"""Markers are written after a coordinator has answered."""

POLL_S = 0.05


class UnendedError(Exception):
    """Brokers have left a transaction without its end, and how it was decided cannot be told any more."""


class Endings(Protocol):
    """What is asked about transactions (`consumers.engine.endings`)."""

    trouble: str

    async def last(self, identity: str, /) -> Last | None: ...  # noqa: D102
    async def missing(  # noqa: D102
        self, producer_id: int, places: Collection[Any], /, *, own: Any = None
    ) -> dict[Any, int]: ...
    async def commit(self, identity: str, last: Last, /) -> None: ...  # noqa: D102


class WriteEnd(Protocol):
    """Begins a transaction of no records over these partitions and ends it.

    To commit with a producer whose transaction timeout is `ENDING_TIMEOUT_MS`, to abort with any other.
    """

    async def __call__(self, places: Collection[Any], /, *, commit: bool) -> None: ...  # noqa: D102


class Settlement:
    """Of the transactions of one identity."""

    def __init__(self, endings: Endings, identity: str, *, changelog: Any, places: Collection[Any]) -> None:
        """Describe it.

        Args:
            endings: answers.
            identity: the transactional id.
            changelog: the partition that each of its transactions writes to, and nobody else.
            places: every partition that it may write to.
        """
        self._endings = endings
        self._identity = identity
        self._changelog = changelog
        self._places = {changelog, *places}
        self._committed: dict[Any, int] = {}
        self._due: dict[Any, int] = {}
        self._fenced_off: tuple[int, int] | None = None
        self._told: tuple[int, int] | None = None

    def remember(self, committed: Mapping[Any, int]) -> None:
        """Note a transaction of the present producer, of which brokers have said that it is committed.

        Args:
            committed: an offset of it by partition.
        """
        for place, offset in committed.items():
            self._committed[place] = max(offset, self._committed.get(place, -1))

    async def before(self, write_end: WriteEnd) -> Last | None:
        """See to it that what was decided has its end everywhere.

        Returns:
            The last transaction, which may be running; None if brokers know of none.

        Raises:
            UnendedError: how something was decided cannot be told.
            KafkaError, OSError: brokers refuse, or fail meanwhile: begin again.
        """
        while True:
            last = await self._endings.last(self._identity)
            missing = await self._missing(-1 if last is None else last.producer_id)
            if last is None:
                if missing:
                    raise UnendedError(f"{self._left_open(missing)}, by a producer that brokers have forgotten")
                return None
            ending = last.timeout_ms == ENDING_TIMEOUT_MS
            if last.state == "Ongoing" and ending:
                # Whoever was to write the end of a committed transaction did not come to its own.
                await self._endings.commit(self._identity, last)
            elif last.state == "Ongoing":
                self._refuse_mixed(last, missing)
                return last
            elif last.state not in {"Empty", "CompleteCommit", "CompleteAbort"}:
                await asyncio.sleep(POLL_S)
            elif last.state == "CompleteAbort" and ending and self._told != (last.producer_id, last.epoch):
                # Told once: whoever goes on after that has compared.
                self._told = last.producer_id, last.epoch
                raise UnendedError(
                    f"brokers had left a committed transaction of {self._identity} without its end, and have aborted "
                    f"what was left of it before that could be written: {COMPARE}"
                )
            elif others := missing.keys() - (committed := self._unended_commits(missing)).keys():
                # Before those: what writes their end would make it look as if the others had been committed, too.
                await self._write(write_end, last, others, commit=self._was_committed(last, others, ending=ending))
            elif committed:
                await self._write(write_end, last, committed, commit=True)
            else:
                return last

    async def after(self, last: Last, producer: tuple[int, int], write_end: WriteEnd, *, lost: int) -> bool:
        """See to it that what the start of a new producer has aborted has its end everywhere.

        Args:
            last: was running before.
            producer: id and epoch of the new one.
            write_end: fences the new one off.
            lost: how many answers were lost while it started.

        Returns:
            Whether an end had to be written, so that another producer is to be started.

        Raises:
            UnendedError: how something was decided cannot be told.
            KafkaError, OSError: brokers refuse, or fail meanwhile: begin again.
        """
        producer_id, epoch = producer
        # Two epochs on, no answer lost: one fenced the former off, one is the new one's. Else the former has ended it.
        if not lost and producer_id == last.producer_id and epoch == last.epoch + 2:
            self._fenced_off = producer
        missing = await self._missing(last.producer_id)
        committed = self._unended_commits(missing)
        aborted = missing.keys() - committed.keys()
        if aborted and not (self._fenced_off == producer and aborted - {self._changelog} <= last.places):
            raise UnendedError(f"{self._left_open(aborted)}, and how it was decided is not known: {COMPARE}")
        if aborted:
            await self._write(write_end, last, aborted, commit=False)
        if committed:
            await self._write(write_end, last, committed, commit=True)
        return bool(missing)

    async def stands(self, producer_id: int) -> bool:
        """Whether all has its end that brokers had said is committed when this was asked the last time.

        What was committed since then may still be waiting for its markers.

        Args:
            producer_id: of the present producer.
        """
        due, self._due = self._due, dict(self._committed)
        missing = await self._missing(producer_id)
        return not any(begin <= due.get(place, -1) for place, begin in missing.items())

    def settled(self) -> None:
        """Forget what former producers committed: it has its end."""
        self._committed.clear()
        self._due = {}

    async def _missing(self, producer_id: int) -> dict[Any, int]:
        return await self._endings.missing(producer_id, self._places, own=self._changelog)

    def _was_committed(self, last: Last, places: Collection[Any], *, ending: bool) -> bool:
        """How was decided what a coordinator has called complete without writing its end everywhere?"""
        if last.state == "CompleteCommit" or (ending and last.state == "Empty"):
            return True
        # Every transaction writes to the changelog, so where that has no end either, it is the last one that has none.
        # A start that did nothing else leaves no trace of what it has aborted: only who has started it knows.
        known = last.state == "CompleteAbort" or self._fenced_off == (last.producer_id, last.epoch)
        if self._changelog in places and known and not ending:
            return False
        raise UnendedError(
            f"{self._left_open(places)}, and how it was decided is not known any more: {COMPARE}, and end it "
            "(kafka-transactions.sh find-hanging; abort drops its records)"
        )

    def _refuse_mixed(self, last: Last, missing: Mapping[Any, int]) -> None:
        """A cycle that was committed, and a later one that is going to be aborted, must not have one end."""
        mixed = [place for place in self._unended_commits(missing) if place in last.places]
        if mixed:
            raise UnendedError(f"{self._left_open(mixed)}, and its next one, which has failed, drops it: {COMPARE}")

    def _unended_commits(self, missing: Mapping[Any, int]) -> dict[Any, int]:
        """Where a transaction has no end that we were told was committed: brokers left it out while we went on."""
        return {place: begin for place, begin in missing.items() if begin <= self._committed.get(place, -1)}

    async def _write(self, write_end: WriteEnd, last: Last, places: Collection[Any], *, commit: bool) -> None:
        await write_end(places, commit=commit)
        left: Collection[Any] = ()
        try:
            async with asyncio.timeout(MARKERS_TIMEOUT_S):
                while True:
                    left = await self._endings.missing(last.producer_id, places, own=self._changelog)
                    if not left:
                        return
                    await asyncio.sleep(POLL_S)
        except TimeoutError as error:
            now = await self._endings.last(self._identity)
            if not left or (now is not None and not now.state.startswith("Complete")):
                raise
            raise UnendedError(f"{self._left_open(left)}, and only its own producer could end it") from error

    def _left_open(self, places: Collection[Any]) -> str:
        return f"brokers have left a transaction of {self._identity} without its end in {'; '.join(named(places))}"


COMPARE = "compare the last results of this partition with its reports"


def named(places: Iterable[Any]) -> list[str]:
    """Partitions as an operator names them."""
    return sorted(f"{place.topic}, partition {place.partition}" for place in places)
