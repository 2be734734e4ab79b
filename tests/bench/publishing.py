"""Fills topics fast: records in ready-made batches, several in flight, as the forwarder writes them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Self

import numpy as np
from aiokafka import AIOKafkaProducer

from ingest.runtime.partitioner import partitions_of
from tests.bench.planned import Reports, message_ids, values

BATCH_BYTES: Final = 1_000_000
IN_FLIGHT_MAX: Final = 32
"""Batches that are not acknowledged yet: what the publisher holds in memory."""


class Publisher:
    """Writes records to one topic; a context, on leaving which all of them are acknowledged."""

    def __init__(self, options: Mapping[str, Any], topic: str, partitions: int) -> None:
        """Describe it.

        Args:
            options: of a client.
            topic: known to exist.
            partitions: how many it has.
        """
        self._topic = topic
        self._partitions = partitions
        self._in_flight: list[asyncio.Future[Any]] = []
        self._producer = AIOKafkaProducer(
            **options, acks="all", enable_idempotence=True, compression_type="zstd", max_batch_size=BATCH_BYTES
        )

    async def __aenter__(self) -> Self:
        await self._producer.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await asyncio.gather(*self._in_flight)
        finally:
            await self._producer.stop()

    async def planned(self, reports: Reports) -> None:
        """Write reports of planned messages, each partition in their order."""
        ids = message_ids(reports.numbers)
        records = list(zip(ids, values(reports, ids), strict=True))
        homes = partitions_of(ids, self._partitions)
        for partition in np.unique(homes).tolist():
            await self.write(partition, [records[at] for at in np.flatnonzero(homes == partition).tolist()])

    async def write(self, partition: int, records: Iterable[tuple[bytes, bytes]]) -> None:
        """Write (key, value) to one partition in their order; returns once they are on their way."""
        now_ms = time.time_ns() // 1_000_000
        batch = self._producer.create_batch()
        for key, value in records:
            if batch.append(timestamp=now_ms, key=key, value=value) is None:
                await self._send(batch, partition)
                batch = self._producer.create_batch()
                batch.append(timestamp=now_ms, key=key, value=value)
        if batch.record_count():
            await self._send(batch, partition)

    async def _send(self, batch: Any, partition: int) -> None:
        self._in_flight.append(await self._producer.send_batch(batch, self._topic, partition=partition))
        if len(self._in_flight) >= IN_FLIGHT_MAX:
            done, self._in_flight = self._in_flight[: IN_FLIGHT_MAX // 2], self._in_flight[IN_FLIGHT_MAX // 2 :]
            await asyncio.gather(*done)


async def published(
    options: Mapping[str, Any], topic: str, partitions: int, blocks: Iterable[Reports] | Sequence[Reports]
) -> None:
    """Write planned reports, block by block, and return when all of them are acknowledged."""
    async with Publisher(options, topic, partitions) as publisher:
        for block in blocks:
            await publisher.planned(block)
