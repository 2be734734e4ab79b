"""The only place of the consumers that knows aiokafka: clients with every option that decides about loss written out.

Facts about aiokafka that the options and wrappers follow from are measured, not read: a group member hands out records
while its rebalance callback still runs, `getmany` over all partitions starves some, and no wait of a client has an end
of its own. Hence pause first, one partition a call, and a deadline at every call.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping
from typing import Any, Self

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener, TopicPartition
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.errors import (
    ConsumerStoppedError,
    IllegalOperation,
    KafkaError,
    MessageSizeTooLargeError,
    ProducerFenced,
    RecordListTooLargeError,
)
from aiokafka.protocol.transaction import InitProducerIdRequest

from consumers.engine.clock import Watermark
from consumers.engine.kafka_raw import fetch
from consumers.engine.record import Record
from consumers.engine.stopping import stop_client, stop_wholly
from ingest.runtime.connections import check_alive

Options = Mapping[str, Any]
"""What every client is made with: servers and login (`ingest.runtime.kafka.client_options`)."""

SESSION_TIMEOUT_MS = 10_000
HEARTBEAT_INTERVAL_MS = 500
"""A joining or leaving member costs the others one heartbeat, not more; heartbeats are nearly free."""

REBALANCE_TIMEOUT_MS = 60_000
MAX_POLL_INTERVAL_MS = 24 * 3600 * 1000
"""A restore or a paused partition polls nothing; what hangs is ended by deadlines of our own."""

REQUEST_TIMEOUT_MS = 15_000
FETCH_MAX_WAIT_MS = 100
"""A broker gets one fetch at a time: a partition that is resumed or behind waits for the one that idles for others."""

RESTORE_POLL_MS = 50
"""A fetch that brings control records alone moves the position and wakes nobody."""

PARTITION_FETCH_BYTES = 1 << 20
RESTORE_FETCH_BYTES = 4 << 20
TRANSACTION_TIMEOUT_MS = 30_000
TRANSACTION_BACKOFF_MS = 20
BATCH_BYTES_MAX = 1_000_000
"""Uncompressed bytes of a batch: below the 1 MiB that a topic takes by default, with any codec."""

REQUEST_BYTES_UNLIMITED = 2**31 - 1

CLIENT_ID = "dlrflow-assembler"

CLIENT_ERRORS = (KafkaError, ConsumerStoppedError, IllegalOperation, AssertionError, OSError, TimeoutError)
"""What aiokafka raises when it cannot do what it was asked: a client in a fatal state raises bare AssertionErrors."""


def is_fenced(error: BaseException) -> bool:
    """Whether somebody else has taken over the transactional id."""
    return isinstance(error, ProducerFenced)


def is_refused(error: BaseException) -> bool:
    """Whether a broker will never take that batch."""
    return isinstance(error, MessageSizeTooLargeError | RecordListTooLargeError)


def transactional_producer(
    options: Options, transactional_id: str, *, batch_bytes_max: int, timeout_ms: int = TRANSACTION_TIMEOUT_MS
) -> AIOKafkaProducer:
    """The producer that owns one input partition. Its `start` settles and fences the one before it.

    zstd, since aiokafka runs lz4 at level 9; a short backoff, since it is waited between any two transactions.
    """
    return AIOKafkaProducer(
        **options,
        client_id=CLIENT_ID,
        transactional_id=transactional_id,
        acks="all",
        enable_idempotence=True,
        compression_type="zstd",
        max_batch_size=batch_bytes_max,
        request_timeout_ms=REQUEST_TIMEOUT_MS,
        retry_backoff_ms=TRANSACTION_BACKOFF_MS,
        transaction_timeout_ms=timeout_ms,
    )


def forget_failure(producer: object) -> None:
    """Look at how a producer's last transaction ended, which nobody else does once it has failed before its commit.

    aiokafka keeps that in a future of its own; one that holds an error and was never looked at is reported as a fault.
    """
    manager = getattr(producer, "_txn_manager", None)
    ended = getattr(manager, "_transaction_waiter", None)
    if isinstance(ended, asyncio.Future) and ended.done() and not ended.cancelled():
        ended.exception()


def take_in(producer: Any, places: Collection[TopicPartition]) -> None:
    """Make partitions part of a producer's transaction without writing to them: its end is written there, too."""
    for place in places:
        # Public is only what writes a record.
        producer._txn_manager.maybe_add_partition_to_txn(place)  # noqa: SLF001


def identity_of(producer: Any) -> tuple[int, int]:
    """The id and the epoch that brokers gave a producer at its start."""
    manager = producer._txn_manager  # noqa: SLF001 - nothing public says it
    return manager.producer_id, manager.producer_epoch


def lost_starts(producer: Any) -> list[int]:
    """The brokers whose answer was lost when a producer asked for its id, from now on. Grows in place.

    Each may have taken the id on by an epoch; aiokafka asks again without a word.
    """
    lost: list[int] = []
    send = producer.client.send

    async def sending(node: int, request: Any, **options: Any) -> Any:
        try:
            return await send(node, request, **options)
        except BaseException:
            if isinstance(request, InitProducerIdRequest):
                lost.append(node)
            raise

    producer.client.send = sending
    return lost


def record_producer(options: Options, *, client_id: str) -> AIOKafkaProducer:
    """A producer for single records, each awaited: idempotent, acknowledged by all in-sync replicas.

    It sets no limit of its own to their size: the brokers judge the compressed batch. One that failed must not be used
    again: after a refusal its sequence numbers have a gap.
    """
    return AIOKafkaProducer(
        **options,
        client_id=client_id,
        acks="all",
        enable_idempotence=True,
        compression_type="zstd",
        max_request_size=REQUEST_BYTES_UNLIMITED,
        request_timeout_ms=REQUEST_TIMEOUT_MS,
    )


def group_consumer(options: Options, *, client_id: str, group_id: str, begin: str) -> AIOKafkaConsumer:
    """A member of a group that reads what is committed and says itself how far the group has come.

    Args:
        options: of every client.
        client_id: the name that brokers log.
        group_id: the consumer group.
        begin: where the group has no offset: `earliest`, or `none` to fail.
    """
    return AIOKafkaConsumer(
        **options,
        client_id=client_id,
        group_id=group_id,
        enable_auto_commit=False,
        auto_offset_reset=begin,
        isolation_level="read_committed",
        partition_assignment_strategy=(StickyPartitionAssignor,),
        session_timeout_ms=SESSION_TIMEOUT_MS,
        heartbeat_interval_ms=HEARTBEAT_INTERVAL_MS,
        rebalance_timeout_ms=REBALANCE_TIMEOUT_MS,
        max_poll_interval_ms=MAX_POLL_INTERVAL_MS,
        request_timeout_ms=REQUEST_TIMEOUT_MS,
        fetch_max_wait_ms=FETCH_MAX_WAIT_MS,
        max_partition_fetch_bytes=PARTITION_FETCH_BYTES,
    )


OnPartitions = Callable[[set[int]], Awaitable[None]]


class ReportsConsumer:
    """A member of the assemblers' group: hands out the records of the partitions that it owns, one partition a call."""

    def __init__(
        self, options: Options, *, group_id: str, topic: str, on_assigned: OnPartitions, on_revoked: OnPartitions
    ) -> None:
        """Make a member; `start` joins.

        Args:
            options: of every client.
            group_id: the consumer group.
            topic: the reports topic, known to exist.
            on_assigned: told of the partitions that are owned from now on; all of them are paused. Must be quick and
                must not raise: the group waits for it without heartbeats.
            on_revoked: told of the partitions that are not owned any more. The same.
        """
        self._options = options
        self._topic = topic
        self._on_assigned = on_assigned
        self._on_revoked = on_revoked
        self._consumer = group_consumer(options, client_id=CLIENT_ID, group_id=group_id, begin="none")

    async def start(self) -> None:
        """Connect and begin to join the group; assignments come by callback."""
        self._consumer.subscribe([self._topic], listener=_Listener(self))
        await self._consumer.start()

    async def stop(self) -> None:
        """Leave the group. May wait for ever on brokers that are away: use `stop_client`."""
        await stop_wholly(self._consumer)

    async def check(self) -> None:
        """Raise what membership or fetching has run into, if anything."""
        check_alive(self._consumer)
        await self._consumer.getmany(TopicPartition(self._topic, -1))

    async def poll(self, partition: int, *, timeout_s: float, records_max: int) -> list[Record]:
        """The next records of one partition, or none after `timeout_s`. Waits longer while the group rebalances.

        Raises:
            UnreadableError: what comes next is damaged where the brokers keep it.
        """
        return await fetch(
            self._consumer,
            self._options,
            self._place(partition),
            timeout_ms=int(timeout_s * 1000),
            records_max=records_max,
        )

    async def watermark(self, partition: int) -> Watermark:
        """Where reading stands, and where the partition ended at the last answer of a broker."""
        place = self._place(partition)
        return Watermark(
            position=await self._consumer.position(place),
            high=self._consumer.highwater(place),
            answered_ms=self._consumer.last_poll_timestamp(place),
        )

    def pause(self, partition: int) -> None:
        """Hand out nothing of a partition; what was fetched ahead is dropped."""
        self._consumer.pause(self._place(partition))

    def resume_at(self, partition: int, offset: int) -> None:
        """Read a paused partition from an offset on."""
        self._consumer.seek(self._place(partition), offset)
        self._consumer.resume(self._place(partition))

    async def committed(self, partition: int) -> int | None:
        """The group's offset. Final only once the partition's transactional producer has started."""
        offset: int | None = await self._consumer.committed(self._place(partition))
        return offset

    async def bounds(self, partition: int) -> tuple[int, int]:
        """First offset of a partition, and the end of what is committed in it."""
        return await _bounds(self._consumer, self._place(partition))

    def _place(self, partition: int) -> TopicPartition:
        return TopicPartition(self._topic, partition)

    async def assigned(self, places: Collection[TopicPartition]) -> None:
        """Pass an assignment on, everything paused before anything else."""
        self._consumer.pause(*places)
        await self._on_assigned({place.partition for place in places})

    async def revoked(self, places: Collection[TopicPartition]) -> None:
        """Pass a revocation on."""
        await self._on_revoked({place.partition for place in places})


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    def __init__(self, owner: ReportsConsumer) -> None:
        self._owner = owner

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        await self._owner.assigned(assigned)

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        await self._owner.revoked(revoked)


class ChangelogReader:
    """Reads what is committed of one changelog partition, outside of any group."""

    def __init__(self, options: Options, topic: str, partition: int) -> None:
        self._options = options
        self._place = TopicPartition(topic, partition)
        self._consumer = AIOKafkaConsumer(
            **options,
            client_id=CLIENT_ID,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            request_timeout_ms=REQUEST_TIMEOUT_MS,
            max_partition_fetch_bytes=RESTORE_FETCH_BYTES,
        )

    async def __aenter__(self) -> Self:
        self._consumer.assign([self._place])
        try:
            await self._consumer.start()
        except BaseException:
            await stop_client(self._consumer)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await stop_client(self._consumer)

    async def bounds(self) -> tuple[int, int]:
        """First offset, and the end of what is committed."""
        return await _bounds(self._consumer, self._place)

    async def read(
        self, first: int, end: int, *, records_max: int, idle_max_s: float
    ) -> AsyncGenerator[list[tuple[int, bytes]], None]:
        """Hand out (offset, value) of all records from `first` up to `end`, in lists.

        Raises:
            TimeoutError: nothing came for `idle_max_s`.
            UnreadableError: what comes next is damaged where the brokers keep it.
        """
        self._consumer.seek(self._place, first)
        while await self._consumer.position(self._place) < end:
            async with asyncio.timeout(idle_max_s):
                before = await self._consumer.position(self._place)
                records: list[Record] = []
                # Control records alone move the position and hand out nothing.
                while not records and await self._consumer.position(self._place) == before:
                    records = await fetch(
                        self._consumer,
                        self._options,
                        self._place,
                        timeout_ms=RESTORE_POLL_MS,
                        records_max=records_max,
                    )
            yield [(record.offset, record.value or b"") for record in records if record.offset < end]


async def _bounds(consumer: AIOKafkaConsumer, place: TopicPartition) -> tuple[int, int]:
    begin = await consumer.beginning_offsets([place])
    end = await consumer.end_offsets([place])
    return begin[place], end[place]


def topic_partition(topic: str, partition: int) -> TopicPartition:
    """The client's name of a partition."""
    return TopicPartition(topic, partition)
