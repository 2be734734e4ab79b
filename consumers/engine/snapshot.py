"""Reads what a topic holds now, outside of any group, and writes single records: for commands that look and mend."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self

from aiokafka import AIOKafkaConsumer, TopicPartition

from consumers.engine.kafka import CLIENT_ERRORS, Options, is_refused, record_producer
from consumers.engine.kafka_raw import fetch
from consumers.engine.record import Record
from consumers.engine.stopping import stop_client
from consumers.rows import AwayError, RefusedError

CLIENT_ID = "dlrflow-commands"
READ_IDLE_MAX_S = 30.0
"""The longest wait for the next record of a topic that is known to hold one."""
REQUEST_TIMEOUT_MS = 30_000
WRITE_MAX_S = 30.0
"""The longest wait for one record to be acknowledged, the connection included."""
FETCH_BYTES = 4 << 20
READ_RECORDS = 5_000
POLL_MS = 50
"""A fetch that brings control records alone moves the position and wakes nobody."""


async def read_topic(
    options: Options, topic: str, partitions: int, *, since_ms: int | None = None
) -> AsyncGenerator[Sequence[Record], None]:
    """Hand out every committed record that a topic holds at the moment of the call, each partition in order.

    Whoever does not read to the end must close it (`contextlib.aclosing`).

    Args:
        options: of every client.
        topic: known to exist.
        partitions: how many it has.
        since_ms: leave out what is before the first record of this timestamp or a later one.

    Raises:
        AwayError: the brokers do not answer, or hand out nothing for `READ_IDLE_MAX_S`.
        UnreadableError: what the topic holds is damaged where the brokers keep it.
    """
    places = [TopicPartition(topic, partition) for partition in range(partitions)]
    async with _reader(options, places) as consumer:
        ends = await consumer.end_offsets(places)
        starts: dict[TopicPartition, int] = await consumer.beginning_offsets(places)
        if since_ms is not None:
            found = await consumer.offsets_for_times(dict.fromkeys(places, since_ms))
            starts = {place: found[place].offset if found[place] else ends[place] for place in places}
        for place in places:
            consumer.seek(place, starts[place])
        open_places = {place for place in places if starts[place] < ends[place]}
        consumer.pause(*(place for place in places if place not in open_places))
        while open_places:
            async with asyncio.timeout(READ_IDLE_MAX_S):
                fetched = await _some(consumer, options, open_places)
            for place, records in fetched.items():
                yield [record for record in records if record.offset < ends[place]]
            for place in [place for place in open_places if await consumer.position(place) >= ends[place]]:
                open_places.remove(place)
                consumer.pause(place)


async def read_record(options: Options, topic: str, partition: int, offset: int) -> Record | None:
    """One committed record, or None where there is none at that offset.

    Raises:
        AwayError: as `read_topic`.
    """
    place = TopicPartition(topic, partition)
    async with _reader(options, [place]) as consumer:
        start, end = (await consumer.beginning_offsets([place]))[place], (await consumer.end_offsets([place]))[place]
        if not start <= offset < end:
            return None
        consumer.seek(place, offset)
        async with asyncio.timeout(READ_IDLE_MAX_S):
            while await consumer.position(place) <= offset:
                found = await fetch(consumer, options, place, timeout_ms=POLL_MS, records_max=1)
                if found:
                    return found[0] if found[0].offset == offset else None
    return None


async def _some(
    consumer: AIOKafkaConsumer, options: Options, places: set[TopicPartition]
) -> dict[TopicPartition, list[Record]]:
    """Records of one partition after the other; positions also move over control records, which hand out nothing.

    One partition a call: a call for several loses what it has in hand of one to a failure of the next.
    """
    while True:
        fetched: dict[TopicPartition, list[Record]] = {}
        for place in places:
            before = await consumer.position(place)
            records = await fetch(consumer, options, place, timeout_ms=POLL_MS, records_max=READ_RECORDS)
            if records or await consumer.position(place) != before:
                fetched[place] = records
        if fetched:
            return fetched


@asynccontextmanager
async def _reader(options: Options, places: Sequence[TopicPartition]) -> AsyncIterator[AIOKafkaConsumer]:
    consumer = AIOKafkaConsumer(
        **options,
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="none",
        isolation_level="read_committed",
        request_timeout_ms=REQUEST_TIMEOUT_MS,
        max_partition_fetch_bytes=FETCH_BYTES,
    )
    consumer.assign(places)
    try:
        await consumer.start()
        yield consumer
    except CLIENT_ERRORS as error:
        raise AwayError(_said(error)) from error
    finally:
        await stop_client(consumer)


class RecordWriter:
    """Writes some records, each awaited: idempotent, acknowledged by all in-sync replicas. A context; it ends itself.

    A producer that failed is never used again: after a refusal its sequence numbers have a gap.
    """

    def __init__(self, options: Options) -> None:
        """Describe it; it connects with the first record.

        Args:
            options: of every client.
        """
        self._options = options
        self._producer: Any = None

    async def __aenter__(self) -> Self:
        """Nothing is connected yet."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close what is open."""
        await self._stop()

    async def write(
        self,
        topic: str,
        *,
        partition: int | None,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes]],
        timestamp_ms: int,
    ) -> None:
        """Return once it is there.

        Raises:
            RefusedError: the brokers will never take it; the next one may be written.
            AwayError: they do not answer; it may be there.
        """
        try:
            async with asyncio.timeout(WRITE_MAX_S):
                producer = await self._started()
                await producer.send_and_wait(
                    topic, key=key, value=value, headers=headers, timestamp_ms=timestamp_ms, partition=partition
                )
        except CLIENT_ERRORS as error:
            await self._stop()
            if is_refused(error):
                raise RefusedError(f"{topic} takes no record of this size") from error
            raise AwayError(_said(error)) from error

    async def _started(self) -> Any:
        if self._producer is None:
            self._producer = record_producer(self._options, client_id=CLIENT_ID)
            await self._producer.start()
        return self._producer

    async def _stop(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            await stop_client(producer)


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__
