"""Reading on where aiokafka cannot decode what a broker has answered.

A record whose header has a name that is not UTF-8 makes every read of aiokafka raise, for ever, and with it all that
was fetched together with it. Brokers take such records from anybody who may write to the topic. The bytes are fetched
once more, past the consumer, and read by `consumers.engine.batches`; then the consumer goes on behind them. What even
that cannot read is damaged where the brokers keep it, and is never passed over.
"""

import asyncio
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.codec import gzip_decode, lz4_decode, snappy_decode, zstd_decode
from aiokafka.errors import CorruptRecordException, UnsupportedCodecError, for_code
from aiokafka.protocol.fetch import FetchRequest

from consumers.engine.batches import Stretch, read_stretch
from consumers.engine.record import Record
from consumers.engine.stopping import stop_client
from ingest.runtime.errors import FoundError

RAW_TIMEOUT_S = 15.0
RAW_FETCH_BYTES = 1 << 20
"""Of one answer; a broker sends the first batch whole, whatever its size."""

_READ_COMMITTED = 1
_SINCE_REPLICAS = 11
_WAIT_MS = 500
_CODECS = {1: gzip_decode, 2: snappy_decode, 3: lz4_decode, 4: zstd_decode}

DECODE_ERRORS = (CorruptRecordException, UnsupportedCodecError, ValueError, LookupError, EOFError)
"""What aiokafka and its codecs raise on bytes that they cannot read, as far as they say it at all."""

_log = structlog.get_logger(__name__)


class UnreadableError(FoundError):
    """What stands at a place of a topic is damaged on the brokers' disks: whoever runs them must act."""


async def fetch(
    consumer: AIOKafkaConsumer, options: Any, place: TopicPartition, *, timeout_ms: int, records_max: int
) -> list[Record]:
    """The next records of one partition as `getmany` hands them out, also those that it fails on.

    Args:
        consumer: `read_committed`, owns the partition.
        options: of every client.
        place: the partition.
        timeout_ms: how long to wait for records.
        records_max: most to hand out.

    Raises:
        UnreadableError: what comes next is damaged.
        KafkaError, OSError, TimeoutError: as the client.
    """
    try:
        fetched = await consumer.getmany(place, timeout_ms=timeout_ms, max_records=records_max)
    except DECODE_ERRORS as error:
        offset = await consumer.position(place)
        stretch = await _read_past(options, place, offset, error)
        records: list[Record] = [*stretch.records[:records_max]]
        cut = len(records) < len(stretch.records)
        consumer.seek(place, records[-1].offset + 1 if cut else stretch.next_offset)
        return records
    found: list[Record] = fetched.get(place, [])
    return found


async def _read_past(options: Any, place: TopicPartition, offset: int, failure: Exception) -> Stretch:
    async with asyncio.timeout(RAW_TIMEOUT_S):
        stretch = await _fetch_raw(options, place, offset)
    if stretch.next_offset > offset:
        _log.warning(
            "the Kafka client cannot decode a record, read without it",
            topic=place.topic,
            partition=place.partition,
            offset=offset,
            until=stretch.next_offset,
            error=f"{type(failure).__name__}: {failure}",
        )
        return stretch
    if stretch.damage is None:
        raise TimeoutError(f"brokers hand out nothing of {place.topic}, partition {place.partition} at {offset}")
    raise UnreadableError(
        f"the batch at offset {offset} of {place.topic}, partition {place.partition}, is damaged on its broker: "
        f"{stretch.damage}; bring a whole replica back, or delete the records up to its end and accept their loss"
    ) from stretch.damage


async def _fetch_raw(options: Any, place: TopicPartition, offset: int) -> Stretch:
    """Ask the leader of a partition for what stands from an offset on."""
    client = AIOKafkaClient(**options)
    try:
        await client.bootstrap()
        await client.set_topics([place.topic])
        request = FetchRequest(
            _WAIT_MS,
            1,
            RAW_FETCH_BYTES,
            _READ_COMMITTED,
            [(place.topic, [(place.partition, offset, RAW_FETCH_BYTES)])],
        )
        response = await client.send(client.cluster.leader_for_partition(place), request)
    finally:
        await stop_client(_Client(client))
    ((_, (answer,)),) = response.topics
    _, error_code, _, _, *rest = answer
    if error_code:
        raise for_code(error_code)(str(place))
    # Behind these four: the start of the log since version 5, always the aborted, a replica since 11, the records last.
    aborted = rest[-3] if response.API_VERSION >= _SINCE_REPLICAS else rest[-2]
    return read_stretch(
        bytes(rest[-1] or b""), partition=place.partition, offset=offset, aborted=aborted or (), codecs=_CODECS
    )


class _Client:
    """A bare client, stopped like the others."""

    def __init__(self, client: AIOKafkaClient) -> None:
        self._client = client

    async def stop(self) -> None:
        await self._client.close()
