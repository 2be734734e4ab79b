"""Steady traffic with a known schedule, and when each of its results can be read by a `read_committed` reader."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict, deque
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final, NamedTuple, Self

import numpy as np
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from ingest.runtime.partitioner import partitions_of
from tests.bench.planned import Reports, message_ids, totals, values

POLL_MS: Final = 1000
TICK_S: Final = 0.01
CHUNK_MESSAGES: Final = 4096


class Watch:
    """Reads the results that are written from now on, and notes when each came.

    Attributes:
        came: seconds of the monotonic clock by `smsMsgId`, of the first result of each.
        again: messages that had a further result.
    """

    def __init__(self, options: Mapping[str, Any], topic: str, partitions: int) -> None:
        """Describe it; a context, inside which it reads."""
        self.came: dict[bytes, float] = {}
        self.again: list[bytes] = []
        self._places = [TopicPartition(topic, number) for number in range(partitions)]
        self._consumer = AIOKafkaConsumer(
            **options,
            group_id=None,
            enable_auto_commit=False,
            isolation_level="read_committed",
            auto_offset_reset="none",
            max_partition_fetch_bytes=4 << 20,
        )
        self._reading: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._consumer.assign(self._places)
        await self._consumer.start()
        await self._consumer.seek_to_end(*self._places)
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._reading is not None:
            self._reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reading
        await self._consumer.stop()

    async def _read(self) -> None:
        while True:
            fetched = await self._consumer.getmany(timeout_ms=POLL_MS)
            now = time.monotonic()
            for records in fetched.values():
                for record in records:
                    if record.key in self.came:
                        self.again.append(record.key)
                    else:
                        self.came[record.key] = now


class Delivery(NamedTuple):
    """One report on its way: when it was due to be sent (monotonic seconds), and how long its result took (seconds)."""

    due_s: float
    delay_s: float


def spread(delays_s: Collection[float]) -> dict[str, float]:
    """How many delays there are, and their median, 99th percentile and greatest in milliseconds."""
    if not delays_s:
        return {"count": 0}
    p50, p99, most = (np.percentile(np.array(list(delays_s)), (50, 99, 100)) * 1000).tolist()
    return {"count": len(delays_s), "median_ms": round(p50, 1), "p99_ms": round(p99, 1), "most_ms": round(most, 1)}


class Steady:
    """Messages of one segment, one to each partition in turn, at a fixed rate.

    What counts is when a report was due: what holds up the sender counts as delay too.
    """

    def __init__(
        self, options: Mapping[str, Any], topic: str, partitions: int, *, rate: float, first_number: int
    ) -> None:
        """Describe it; a context, inside which it sends.

        Args:
            options: of a client.
            topic: of the reports.
            partitions: how many it has.
            rate: reports per second.
            first_number: of its messages among the planned ones.
        """
        self.partitions = partitions
        self._topic = topic
        self._rate = rate
        self._source = _one_for_each(partitions, first_number)
        self._due: dict[bytes, tuple[int, float]] = {}
        self._producer = AIOKafkaProducer(**options, acks="all", enable_idempotence=True)
        self._sending: asyncio.Task[None] | None = None
        self._stopping = False

    async def __aenter__(self) -> Self:
        await self._producer.start()
        self._sending = asyncio.create_task(self._send())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        await self._producer.stop()

    async def stop(self) -> None:
        """Send nothing more; raises what sending failed with. Twice is harmless."""
        # Not cancelled: what is booked as due must be sent.
        self._stopping = True
        if self._sending is not None:
            await self._sending
            await self._producer.flush()

    def missing(self, watch: Watch, before_s: float) -> int:
        """How many reports that were due before a time have no result yet."""
        return sum(due_s < before_s and name not in watch.came for name, (_, due_s) in self._due.items())

    def deliveries(self, watch: Watch, since_s: float, until_s: float) -> dict[int, list[Delivery]]:
        """By partition, what was due in a stretch of time and has its result."""
        found: dict[int, list[Delivery]] = defaultdict(list)
        for name, (partition, due_s) in self._due.items():
            if since_s <= due_s < until_s and name in watch.came:
                found[partition].append(Delivery(due_s, watch.came[name] - due_s))
        return found

    def sent(self) -> int:
        """How many reports were sent so far."""
        return len(self._due)

    async def _send(self) -> None:
        began, count = time.monotonic(), 0
        while not self._stopping:
            for _ in range(count, int((time.monotonic() - began) * self._rate)):
                partition, name, value = next(self._source)
                self._due[name] = partition, began + count / self._rate
                count += 1
                await self._producer.send(self._topic, value, key=name, partition=partition)
            await asyncio.sleep(TICK_S)


def _one_for_each(partitions: int, first_number: int) -> Iterator[tuple[int, bytes, bytes]]:
    """Partition, id and report of ever new messages of one segment, each partition in turn."""
    ready: list[deque[tuple[bytes, bytes]]] = [deque() for _ in range(partitions)]
    while True:
        while not all(ready):
            numbers = np.arange(first_number, first_number + CHUNK_MESSAGES, dtype=np.uint64)
            first_number += CHUNK_MESSAGES
            numbers = numbers[totals(numbers) == 1]
            names = message_ids(numbers)
            reports = values(Reports(numbers, np.ones(len(numbers), np.uint64)), names)
            for partition, name, report in zip(partitions_of(names, partitions).tolist(), names, reports, strict=True):
                ready[partition].append((name, report))
        for partition, waiting in enumerate(ready):
            yield (partition, *waiting.popleft())
