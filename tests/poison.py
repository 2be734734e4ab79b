"""Records that no client of ours would write, put into topics all the same: built by hand, sent past the producers."""

import asyncio
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import NotLeaderForPartitionError, for_code
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.default_records import (
    _DefaultRecordBatchBuilderPy as BatchBuilder,  # the one that asks a header's name to encode itself
)

BATCH_BYTES_MAX = 1 << 20
PATIENCE_S = 20.0
CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}


class Raw(NamedTuple):
    """A record whose headers may be named by any bytes."""

    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[bytes, bytes | None]] = ()
    timestamp_ms: int | None = None
    """Now, if None: brokers delete what is older than the retention."""


class _Name(str):
    """A header's name that is written as these bytes."""

    __slots__ = ("raw",)
    raw: bytes

    @classmethod
    def of(cls, raw: bytes) -> "_Name":
        name = cls("a name")
        name.raw = raw
        return name

    def encode(self, *_: Any) -> bytes:
        return self.raw


def a_batch(records: Sequence[Raw], *, codec: str = "none", producer: tuple[int, int, int] = (-1, -1, -1)) -> bytes:
    """A record batch as a producer sends it.

    Args:
        records: of the batch.
        codec: that compresses it.
        producer: id, epoch and first sequence number; a real id makes the batch a transactional one.
    """
    now_ms = int(time.time() * 1000)
    builder = BatchBuilder(2, CODECS[codec], producer[0] >= 0, *producer, BATCH_BYTES_MAX)
    for number, record in enumerate(records):
        headers = [(_Name.of(name), value) for name, value in record.headers]
        when_ms = now_ms if record.timestamp_ms is None else record.timestamp_ms
        builder.append(number, when_ms, record.key, record.value, headers)
    return bytes(builder.build())


async def produce(options: Mapping[str, Any], topic: str, partition: int, batch: bytes) -> int:
    """Write a batch as it is; the offset of its first record. Raises what the broker says."""
    place = TopicPartition(topic, partition)
    request = ProduceRequest(None, -1, 10_000, [(topic, [(partition, batch)])])
    client = AIOKafkaClient(**options)
    try:
        await client.bootstrap()
        await client.set_topics([topic])
        async with asyncio.timeout(PATIENCE_S):
            while True:
                response = await client.send(client.cluster.leader_for_partition(place), request)
                ((_, ((_, error_code, offset, *_),)),) = response.topics
                # The leader of a topic that was just made may not know of it yet.
                if for_code(error_code) is not NotLeaderForPartitionError:
                    break
                await client.force_metadata_update()
    finally:
        await client.close()
    if error_code:
        raise for_code(error_code)(topic)
    return int(offset)


def damage(folder: Path, topic: str, partition: int, text: bytes) -> None:
    """Change one byte of what a broker keeps, as a bad disk does: the first one of a text that stands there.

    Args:
        folder: of the broker, all its data below it.
        topic: known to the broker.
        partition: its number.
        text: uncompressed, in a record of that partition.
    """
    (segment,) = folder.rglob(f"{topic}-{partition}/*.log")
    with segment.open("r+b") as file:
        at = file.read().index(text)
        file.seek(at)
        file.write(struct.pack("B", text[0] ^ 0xFF))


def mend(folder: Path, topic: str, partition: int, text: bytes) -> None:
    """Take a `damage` back."""
    (segment,) = folder.rglob(f"{topic}-{partition}/*.log")
    with segment.open("r+b") as file:
        at = file.read().index(text[1:]) - 1
        file.seek(at)
        file.write(text[:1])
