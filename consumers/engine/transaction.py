"""The transactions of one partition: nothing else begins, sends, commits, aborts or makes their producer.

A producer object is used until the first error of any kind and never again: aiokafka's state after an error is not
worth knowing (a batch that failed leaves a hole in the sequence numbers for ever, `commit_transaction` then returns
normally without the batch). A new object under the same transactional id settles what the old one left, whatever that
was; what had been committed stands in the changelog. So an unknown outcome needs no handling of its own.
"""

import asyncio
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, Protocol

import structlog

from consumers.engine.cycle import Outgoing
from consumers.engine.kafka import (
    CLIENT_ERRORS,
    TRANSACTION_TIMEOUT_MS,
    forget_failure,
    identity_of,
    is_fenced,
    is_refused,
    lost_starts,
    take_in,
    topic_partition,
)
from consumers.engine.settling import ENDING_TIMEOUT_MS, Endings, Settlement, named
from consumers.engine.stopping import stop_wholly

SETTLE_TIMEOUT_S = 20.0
"""For a new producer to start and to settle its predecessor's transaction."""

SEND_TIMEOUT_S = 15.0
"""From the begin of a transaction until every record and the offset are in it."""

COMMIT_TIMEOUT_S = 10.0
"""With the former below the transaction timeout: we give a transaction up before the broker does."""

LOOK_EVERY_S = 5.0
"""How often to look: what brokers have left without its end is noticed within twice this time."""

_log = structlog.get_logger(__name__)


class TransactionError(Exception):
    """A cycle was not committed as far as we know; the producer has been let go."""


class DoubtError(TransactionError):
    """Whether the cycle was committed is not known: only a new producer and the changelog can tell."""


class FencedError(TransactionError):
    """Somebody else owns the partition, or the broker gave this owner up: leave the group and join again."""


class RefusedError(TransactionError):
    """Brokers will never take a record of this cycle; nothing of it was committed."""


class Send(NamedTuple):
    """Records for one partition of one topic."""

    topic: str
    partition: int
    records: Sequence[Outgoing]


class Producer(Protocol):
    """What is used of aiokafka's producer."""

    async def start(self) -> None: ...  # noqa: D102
    async def stop(self) -> None: ...  # noqa: D102
    def create_batch(self) -> Any: ...  # noqa: D102
    async def begin_transaction(self) -> None: ...  # noqa: D102
    async def send_batch(self, batch: Any, topic: str, *, partition: int) -> "asyncio.Future[Any]": ...  # noqa: D102
    async def send_offsets_to_transaction(self, offsets: dict[Any, int], group_id: str) -> None: ...  # noqa: D102
    async def commit_transaction(self) -> None: ...  # noqa: D102
    async def abort_transaction(self) -> None: ...  # noqa: D102


class MakeProducer(Protocol):
    """Makes a producer of one identity, with that transaction timeout."""

    def __call__(self, *, timeout_ms: int) -> Producer: ...  # noqa: D102


class Retired:
    """Producers that are of no use any more and are still being stopped.

    A stop waits for pending batches, with brokers away for ever, and cannot be cancelled without leaking connections.
    So it goes on beside everything else; the process ends without it if need be.
    """

    def __init__(self) -> None:
        self._stopping: set[asyncio.Task[None]] = set()

    def add(self, producer: Producer) -> "asyncio.Task[None]":
        """Let a producer go. A transaction of its is aborted by the next one, not by itself: that may be too early."""
        task = asyncio.create_task(_retire(producer))
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)
        return task

    async def drain(self, timeout_s: float) -> bool:
        """Wait for the stops at most so long; whether none is left."""
        if self._stopping:
            await asyncio.wait(self._stopping, timeout=timeout_s)
        return not self._stopping


class Transactions:
    """The transactions of one input partition under one assignment.

    `settle` first, and again after every `TransactionError`.
    """

    def __init__(
        self,
        make_producer: MakeProducer,
        endings: Endings,
        *,
        identity: str,
        group_id: str,
        reports_topic: str,
        changelog_topic: str,
        partition: int,
        outlets: Collection[tuple[str, int]],
        retired: Retired,
    ) -> None:
        """Describe them.

        Args:
            make_producer: makes a producer of this identity.
            endings: tells what became of the transactions before.
            identity: the transactional id.
            group_id: of the input's offset.
            reports_topic: the input.
            changelog_topic: where the ledger's records go, under the partition's number.
            partition: of the input.
            outlets: every topic and partition that other records may go to.
            retired: takes producers that are of no use any more.
        """
        self._make_producer = make_producer
        self._endings = endings
        self._group_id = group_id
        self._input = topic_partition(reports_topic, partition)
        self._settlement = Settlement(
            endings,
            identity,
            changelog=topic_partition(changelog_topic, partition),
            places=[topic_partition(*outlet) for outlet in outlets],
        )
        self._changelog_topic = changelog_topic
        self._partition = partition
        self._retired = retired
        self._producer: Producer | None = None
        self._open = False
        self._looking: asyncio.Task[bool] | None = None
        self._look_at_s = 0.0

    async def settle(self) -> None:
        """Start a new producer: on return every transaction of a predecessor has its end, everywhere.

        Raises:
            DoubtError: brokers did not answer in time; try again later.
            FencedError: another owner has come meanwhile.
            UnendedError: one has no end, and how it was decided cannot be told any more.
        """
        self.let_go()
        try:
            async with asyncio.timeout(SETTLE_TIMEOUT_S):
                last = await self._settlement.before(self._end)
                producer = self._producer = self._make_producer(timeout_ms=TRANSACTION_TIMEOUT_MS)
                lost = lost_starts(producer)
                await producer.start()
                again = (
                    last is not None
                    and last.state == "Ongoing"
                    and await self._settlement.after(last, identity_of(producer), self._end, lost=len(lost))
                )
        except CLIENT_ERRORS as error:
            self.let_go()
            if is_fenced(error):
                raise FencedError("the transactional id was taken over") from error
            why = self._endings.trouble if isinstance(error, TimeoutError) else ""
            raise DoubtError(f"no producer could be started: {why or f'{type(error).__name__}: {error}'}") from error
        except BaseException:
            self.let_go()
            raise
        self._settlement.settled()
        self._look_at_s = asyncio.get_running_loop().time() + LOOK_EVERY_S
        if again:
            self.let_go()
            raise DoubtError("the end of a transaction had to be written")

    async def _end(self, places: Collection[Any], *, commit: bool) -> None:
        """Write the end of a transaction where it is missing: end one of no records over these partitions."""
        _log.warning(
            "brokers have left a transaction without its end, which is written now",
            partition=self._partition,
            commit=commit,
            places=named(places),
        )
        producer = self._make_producer(timeout_ms=ENDING_TIMEOUT_MS if commit else TRANSACTION_TIMEOUT_MS)
        try:
            await producer.start()
            await producer.begin_transaction()
            take_in(producer, places)
            await (producer.commit_transaction() if commit else producer.abort_transaction())
        finally:
            self._retired.add(producer)

    async def commit(self, sends: Sequence[Send], changelog: Sequence[bytes], next_offset: int) -> list[int]:
        """Write a cycle as one transaction.

        Args:
            sends: results and dead letters.
            changelog: the records of the ledger, in order, at least one.
            next_offset: of the input, for the group.

        Returns:
            The changelog offset of each changelog record. All is committed and visible to `read_committed` readers.

        Raises:
            DoubtError: anything went wrong; it may have been committed all the same.
            FencedError: this member does not own the partition any more.
            RefusedError: a record is larger than its topic takes; nothing was committed.
        """
        producer = self._producer
        if producer is None:
            raise DoubtError("there is no producer")
        futures: list[asyncio.Future[Any]] = []
        ours: list[tuple[asyncio.Future[Any], int]] = []
        first: dict[Any, asyncio.Future[Any]] = {}
        changelog_send = Send(self._changelog_topic, self._partition, [_changelog_record(value) for value in changelog])
        self._open = True
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await producer.begin_transaction()
                # The first batches of all partitions go out together: they join the transaction in one request.
                for send, batch, count in _in_turn(producer, [changelog_send, *sends]):
                    future = await producer.send_batch(batch, send.topic, partition=send.partition)
                    future.add_done_callback(_look)
                    futures.append(future)
                    first.setdefault(topic_partition(send.topic, send.partition), future)
                    if send is changelog_send:
                        ours.append((future, count))
                await producer.send_offsets_to_transaction({self._input: next_offset}, self._group_id)
                # Without this wait a commit succeeds although a batch has failed.
                await asyncio.gather(*futures)
            self._open = False
            async with asyncio.timeout(COMMIT_TIMEOUT_S):
                await producer.commit_transaction()
        except CLIENT_ERRORS as error:
            raise self._failed(error, futures) from error
        except BaseException:
            self.let_go()
            raise
        self._settlement.remember({place: sent.result().offset for place, sent in first.items()})
        return self._offsets(ours)

    def look(self) -> None:
        """See now and then, beside everything else, whether what is committed has its end. Returns at once.

        Raises:
            DoubtError: brokers have left one out: whoever settles writes it.
        """
        if self._looking is not None and self._looking.done():
            looked, self._looking = self._looking, None
            failure = None if looked.cancelled() else looked.exception()
            if failure is not None:
                _log.warning(
                    "brokers do not tell whether results can be seen, asking again",
                    partition=self._partition,
                    error=f"{type(failure).__name__}: {failure}",
                )
            elif not looked.cancelled() and not looked.result():
                self.let_go()
                raise DoubtError("brokers have left out the end of what they said is committed")
        now_s = asyncio.get_running_loop().time()
        if self._looking is None and self._producer is not None and now_s >= self._look_at_s:
            self._look_at_s = now_s + LOOK_EVERY_S
            producer_id, _ = identity_of(self._producer)
            self._looking = asyncio.create_task(self._settlement.stands(producer_id))

    def let_go(self) -> None:
        """Drop the producer, if there is one; an open transaction is aborted by the next one."""
        if self._producer is not None:
            self._retired.add(self._producer)
            self._producer = None
        if self._looking is not None:
            self._looking.cancel()
            self._looking.add_done_callback(_look)
            self._looking = None
        self._open = False

    def _offsets(self, sent: Sequence[tuple["asyncio.Future[Any]", int]]) -> list[int]:
        offsets: list[int] = []
        for future, count in sent:
            base = future.result().offset
            if base < 0:
                # A batch that was answered as a repeat of one the broker has forgotten: committed, but where?
                self.let_go()
                raise DoubtError("the broker did not say where the changelog was written")
            offsets.extend(range(base, base + count))
        return offsets

    def _failed(self, error: BaseException, futures: Sequence["asyncio.Future[Any]"]) -> TransactionError:
        before_commit = self._open
        errors = [error, *(failure for future in futures if (failure := _failure(future)) is not None)]
        self.let_go()
        if any(map(is_fenced, errors)):
            return FencedError("the transactional id was taken over")
        if before_commit and any(map(is_refused, errors)):
            return RefusedError("a record is larger than its topic takes")
        return DoubtError(f"a transaction failed: {type(error).__name__}")


def _changelog_record(value: bytes) -> Outgoing:
    # The broker stamps the changelog with its own time (LogAppendTime).
    return Outgoing(None, value, [], 0)


def _in_turn(producer: Producer, sends: Sequence[Send]) -> "list[tuple[Send, Any, int]]":
    """Fill batches; the first of every partition first, then the second ones, so that partitions overlap."""
    rounds: list[list[tuple[Send, Any, int]]] = []
    for send in sends:
        for turn, (batch, count) in enumerate(_batches(producer, send.records)):
            if turn == len(rounds):
                rounds.append([])
            rounds[turn].append((send, batch, count))
    return [filled for turn in rounds for filled in turn]


def _batches(producer: Producer, records: Sequence[Outgoing]) -> "list[tuple[Any, int]]":
    filled: list[tuple[Any, int]] = []
    batch, count = None, 0
    for key, value, headers, timestamp_ms in records:
        if batch is None or batch.append(timestamp=timestamp_ms, key=key, value=value, headers=headers) is None:
            if batch is not None:
                filled.append((batch, count))
            batch, count = producer.create_batch(), 0
            # A batch takes its first record whatever its size; the broker then says whether its topic does.
            batch.append(timestamp=timestamp_ms, key=key, value=value, headers=headers)
        count += 1
    if batch is not None:
        batch.close()
        filled.append((batch, count))
    return filled


def _failure(future: "asyncio.Future[Any]") -> BaseException | None:
    return future.exception() if future.done() and not future.cancelled() else None


def _look(future: "asyncio.Future[Any]") -> None:
    """Look at what a send came to, so that one whose transaction failed elsewhere is not reported as overlooked."""
    if not future.cancelled():
        future.exception()


async def _retire(producer: Producer) -> None:
    try:
        await stop_wholly(producer)
    except CLIENT_ERRORS as error:
        _log.debug("a producer did not stop cleanly", error=type(error).__name__)
    forget_failure(producer)
