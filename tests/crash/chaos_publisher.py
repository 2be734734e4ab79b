"""Publishes planned reports until it is told to stop, through whatever happens to the brokers.

`python -m tests.crash.chaos_publisher BOOTSTRAP TOPIC PARTITIONS RATE SEED TIMEOUT_S`. At SIGTERM it publishes what is
left of the messages that have begun, and prints as one line of JSON how much was acknowledged.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from typing import Final

from aiokafka import AIOKafkaProducer

from consumers.engine.kafka import CLIENT_ERRORS
from consumers.engine.stopping import stop_client
from tests.crash.chaos_plan import Plan, Planned

TICK_S: Final = 0.03
ACKED_WITHIN_S: Final = 20.0
AGAIN_AFTER_S: Final = 0.5


class Publisher:
    """Writes records, each acknowledged by all in-sync replicas; after a failure all of a round once more."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self.published = 0
        self.rounds_repeated = 0
        self._bootstrap = bootstrap
        self._topic = topic
        self._producer: AIOKafkaProducer | None = None

    async def publish(self, records: Iterable[Planned]) -> None:
        """Return once all of them are there; some may be there twice."""
        by_partition: dict[int, list[Planned]] = defaultdict(list)
        for record in records:
            by_partition[record.partition].append(record)
        while True:
            try:
                async with asyncio.timeout(ACKED_WITHIN_S):
                    await self._round(by_partition)
                break
            except CLIENT_ERRORS as error:
                self.rounds_repeated += 1
                print(f"published again: {type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201
                await self.stop()
                await asyncio.sleep(AGAIN_AFTER_S)
        self.published += sum(map(len, by_partition.values()))

    async def _round(self, by_partition: dict[int, list[Planned]]) -> None:
        if self._producer is None:
            self._producer = AIOKafkaProducer(
                bootstrap_servers=self._bootstrap, acks="all", enable_idempotence=True, request_timeout_ms=10_000
            )
            await self._producer.start()
        sent = []
        for partition, records in by_partition.items():
            batch = self._producer.create_batch()
            for record in records:
                if batch.append(key=record.key, value=record.value, timestamp=None) is None:
                    sent.append(await self._producer.send_batch(batch, self._topic, partition=partition))
                    batch = self._producer.create_batch()
                    batch.append(key=record.key, value=record.value, timestamp=None)
            sent.append(await self._producer.send_batch(batch, self._topic, partition=partition))
        for failed in await asyncio.gather(*sent, return_exceptions=True):
            if isinstance(failed, BaseException):
                raise failed

    async def stop(self) -> None:
        """Let the producer go; a failed one is never used again."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await stop_client(producer)


async def main() -> None:
    """Publish until SIGTERM."""
    bootstrap, topic, partitions, rate, seed, timeout_s = sys.argv[1:]
    plan = Plan(int(seed), partitions=int(partitions), rate=float(rate), timeout_s=float(timeout_s))
    publisher = Publisher(bootstrap, topic)
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    began_s = time.monotonic()
    try:
        while not over.is_set():
            await publisher.publish(plan.due(time.monotonic() - began_s))
            await asyncio.sleep(TICK_S)
        await publisher.publish(plan.rest())
    finally:
        await publisher.stop()
    summary = {
        "messages": plan.messages,
        "unusable": plan.unusable,
        "published": publisher.published,
        "rounds_repeated": publisher.rounds_repeated,
    }
    print(json.dumps(summary))  # noqa: T201 - read by whoever started it


if __name__ == "__main__":
    asyncio.run(main())
