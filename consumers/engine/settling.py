"""Whether every transaction before has its end everywhere, and how to write it where brokers have left it out.

The end of a transaction that was committed is written by a producer with a transaction timeout of its own, which
brokers keep with the transactional id. So whoever comes next can tell what such a producer was there for, wherever it
was cut off: the decision outlives everybody.
"""

import asyncio
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Protocol

from consumers.engine.endings import Last, Open
from consumers.engine.kafka import TRANSACTION_TIMEOUT_MS

ENDING_TIMEOUT_MS = TRANSACTION_TIMEOUT_MS - 1
"""Of a producer that is there for nothing but to write the end of a committed transaction."""

MARKERS_TIMEOUT_S = 5.0
"""Markers are written after a coordinator has answered."""

POLL_S = 0.05


class UnendedError(Exception):
    """Brokers have left a transaction without its end, and how it was decided cannot be told any more."""


class Endings(Protocol):
    """What is asked about transactions (`consumers.engine.endings`)."""

    async def last(self, identity: str, /) -> Last | None: ...  # noqa: D102
    async def missing(  # noqa: D102
        self, producer_id: int, places: Collection[Any], /, *, own: Any = None, unled: Collection[Any] = ()
    ) -> Open: ...
    async def commit(self, identity: str, last: Last, /) -> None: ...  # noqa: D102


class WriteEnd(Protocol):
    """Begins a transaction of no records over these partitions and ends it.

    To commit with a producer whose transaction timeout is `ENDING_TIMEOUT_MS`, to abort with any other.
    """

    async def __call__(self, places: Collection[Any], /, *, commit: bool) -> None: ...  # noqa: D102


class Settlement:
    """Of the transactions of one identity.

    Attributes:
        unasked: partitions that nobody led when they were to be looked at.
    """

    def __init__(
        self, endings: Endings, identity: str, *, changelog: Any, places: Collection[Any], unled: Collection[Any]
    ) -> None:
        """Describe it.

        Args:
            endings: answers.
            identity: the transactional id.
            changelog: the partition that each of its transactions writes to, and nobody else.
            places: every partition that it may write to.
            unled: those of them that are seldom written to: nobody has to lead them.
        """
        self._endings = endings
        self._identity = identity
        self._changelog = changelog
        self._places = {changelog, *places}
        self._unled = set(unled)
        self._committed: dict[Any, int] = {}
        self.unasked: Collection[Any] = ()

    def remember(self, committed: Mapping[Any, int]) -> None:
        """Note a transaction of the present producer, of which brokers have said that it is committed.

        Args:
            committed: an offset of it by partition.
        """
        self._committed |= committed

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
                if missing.since:
                    raise UnendedError(f"{self._left_open(missing.since)}, by a producer that brokers have forgotten")
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
            elif missing.since:
                commit = self._was_committed(last, missing.since, ending=ending)
                await self._write(write_end, last, missing.since, commit=commit)
            else:
                return last

    async def after(self, last: Last, producer: tuple[int, int], write_end: WriteEnd) -> bool:
        """See to it that what the start of a new producer has aborted has its end everywhere.

        Args:
            last: was running before.
            producer: id and epoch of the new one.
            write_end: fences the new one off.

        Returns:
            Whether an end had to be written, so that another producer is to be started.

        Raises:
            UnendedError: how something was decided cannot be told.
            KafkaError, OSError: brokers refuse, or fail meanwhile: begin again.
        """
        missing = await self._missing(last.producer_id)
        committed = self._unended_commits(missing)
        aborted = missing.since.keys() - committed.keys()
        producer_id, epoch = producer
        # Two epochs on: one that fenced the former off, and the new one's. With one only, the former has ended it.
        fenced_off = producer_id != last.producer_id or epoch >= last.epoch + 2
        if aborted and not (fenced_off and (self._changelog in aborted or aborted <= last.places)):
            raise UnendedError(f"{self._left_open(aborted)}, and how it was decided is not known: {COMPARE}")
        if aborted:
            await self._write(write_end, last, aborted, commit=False)
        if committed:
            await self._write(write_end, last, committed, commit=True)
        return bool(missing.since)

    def settled(self) -> None:
        """Forget what former producers committed: it has its end."""
        self._committed.clear()

    async def _missing(self, producer_id: int) -> Open:
        missing = await self._endings.missing(producer_id, self._places, own=self._changelog, unled=self._unled)
        self.unasked = missing.unknown
        return missing

    def _was_committed(self, last: Last, places: Collection[Any], *, ending: bool) -> bool:
        """How was decided what a coordinator has called complete without writing its end everywhere?"""
        if last.state == "CompleteCommit" or (ending and last.state == "Empty"):
            return True
        if ending:
            raise UnendedError(
                f"{self._left_open(places)}, and what was to commit it was aborted: {COMPARE}, and end it "
                "(kafka-transactions.sh find-hanging; abort drops its records)"
            )
        if self._changelog in places:
            # Every transaction writes to it, so it is the last one that has no end there, and that one was aborted.
            return False
        raise UnendedError(
            f"{self._left_open(places)}, and how it was decided is not known any more: {COMPARE}, and end it "
            "(kafka-transactions.sh find-hanging; abort drops its records)"
        )

    def _refuse_mixed(self, last: Last, missing: Open) -> None:
        """A cycle that was committed, and a later one that is going to be aborted, must not have one end."""
        mixed = [place for place in self._unended_commits(missing) if place in last.places]
        if mixed:
            raise UnendedError(
                f"{self._left_open(mixed)}, and its next one, which has failed, takes it along: {COMPARE}"
            )

    def _unended_commits(self, missing: Open) -> dict[Any, int]:
        """Where a transaction has no end that we were told was committed: brokers left it out while we went on."""
        return {place: begin for place, begin in missing.since.items() if begin <= self._committed.get(place, -1)}

    async def _write(self, write_end: WriteEnd, last: Last, places: Collection[Any], *, commit: bool) -> None:
        await write_end(places, commit=commit)
        try:
            async with asyncio.timeout(MARKERS_TIMEOUT_S):
                while True:
                    if not (await self._endings.missing(last.producer_id, places)).since:
                        return
                    await asyncio.sleep(POLL_S)
        except TimeoutError as error:
            now = await self._endings.last(self._identity)
            if now is not None and not now.state.startswith("Complete"):
                raise
            raise UnendedError(f"{self._left_open(places)}, and only its own producer could end it") from error

    def _left_open(self, places: Collection[Any]) -> str:
        return f"brokers have left a transaction of {self._identity} without its end in {'; '.join(named(places))}"


COMPARE = "compare the last results of this partition with its reports"


def named(places: Iterable[Any]) -> list[str]:
    """Partitions as an operator names them."""
    return sorted(f"{place.topic}, partition {place.partition}" for place in places)
