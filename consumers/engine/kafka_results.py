"""The sinks' side of Kafka: a group member on the results topic, and what writes their dead letters."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

import structlog
from aiokafka import ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError

from consumers.engine.kafka import (
    CLIENT_ERRORS,
    FETCH_MAX_WAIT_MS,
    Options,
    group_consumer,
    is_refused,
    record_producer,
)
from consumers.engine.kafka_raw import DECODE_ERRORS, UnreadableError, fetch
from consumers.engine.metrics import PAUSED
from consumers.engine.record import Record
from consumers.engine.stopping import stop_client
from consumers.rows import AwayError
from ingest.contract.dead_letter import DeadLetter
from ingest.runtime.connections import check_alive
from ingest.runtime.errors import UsageError

CLIENT_ID = "dlrflow-sink"
START_TIMEOUT_S = 20.0
POLL_SLACK_S = 30.0
"""How much longer than it should a poll may take, a rebalance included, before Kafka counts as away."""
COMMIT_TIMEOUT_S = 5.0
SEND_TIMEOUT_S = 20.0
ANSWER_AGE_MAX_S = 5.0
"""What brokers said longer ago says nothing about what there is to read now."""
DAMAGED_AGAIN_S = 60.0
"""How long a partition is left alone whose next batch cannot be read."""

JOINING = "joins the group anew"

log = structlog.get_logger(__name__)


class ResultsConsumer:
    """A member of a sink's group. Offsets are committed by `commit` alone."""

    def __init__(
        self, options: Options, *, group_id: str, topic: str, on_revoked: Callable[[set[int]], Awaitable[None]]
    ) -> None:
        """Describe it; `start` joins.

        Args:
            options: of every client.
            group_id: the consumer group.
            topic: the results topic, known to exist.
            on_revoked: awaited before partitions are given up; the group waits for it, heartbeats go on.
        """
        self._options = options
        self._group_id = group_id
        self._topic = topic
        self._on_revoked = on_revoked
        self._first = 0
        self._failed: AwayError | None = None
        self._damaged: set[TopicPartition] = set()
        self._damaged_until_s = 0.0
        self._consumer: Any = None

    async def start(self) -> None:
        """Connect and begin to join the group.

        Raises:
            AwayError: Kafka does not answer; it may be called again.
        """
        consumer = group_consumer(self._options, client_id=CLIENT_ID, group_id=self._group_id, begin="earliest")
        consumer.subscribe([self._topic], listener=_Revocations(self._on_revoked))
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await consumer.start()
        except BaseException as error:
            await stop_client(consumer)
            if isinstance(error, CLIENT_ERRORS):
                raise AwayError(_said(error)) from error
            raise
        self._consumer = consumer

    async def stop(self) -> None:
        """Leave the group; twice is harmless."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await stop_client(consumer)

    async def poll(self, *, records_max: int, wait_s: float) -> Sequence[Record]:
        """The next records of all owned partitions, none after `wait_s`.

        One partition a call, beginning with another one each time: a call for all of them starves some. What was read
        has moved the position of its partition, so it is handed out also when another partition failed after it; the
        failure is raised by the next call. After a rebalance some records come again.

        A partition whose next batch is damaged where the brokers keep it is left out, and tried again from time to
        time; the others go on.

        Raises:
            AwayError: Kafka does not answer.
        """
        failed, self._failed = self._failed, None
        if failed is not None:
            raise failed
        records: list[Record] = []
        try:
            async with asyncio.timeout(wait_s + POLL_SLACK_S):
                await self._replace_dead()
                self._leave_damaged_out()
                await self._take(records, records_max)
                if not records:
                    await self._wait(records, wait_s)
                    if records:
                        await self._take(records, records_max)
        except CLIENT_ERRORS as error:
            away = AwayError(_said(error))
            away.__cause__ = error
            if not records:
                raise away from error
            self._failed = away
        return records

    async def _replace_dead(self) -> None:
        """Join anew where the consumer would stand still for ever; what is not committed comes again."""
        if self._consumer is not None:
            try:
                check_alive(self._consumer)
            except CLIENT_ERRORS as error:
                log.warning("joins the group anew", why=_said(error))
                await self._on_revoked({place.partition for place in self._consumer.assignment()})
                await self.stop()
        if self._consumer is None:
            await self.start()

    async def _take(self, records: list[Record], records_max: int, *, wait_ms: int = 0) -> None:
        """Add what was fetched, up to so many records in all."""
        places = sorted(self._consumer.assignment())
        self._first += 1
        for at in range(len(places)):
            place = places[(self._first + at) % len(places)]
            left = records_max - len(records)
            if left > 0 and place not in self._damaged:
                try:
                    records += await fetch(self._consumer, self._options, place, timeout_ms=wait_ms, records_max=left)
                except UnreadableError as error:
                    self._put_aside(place, error)

    async def _wait(self, records: list[Record], wait_s: float) -> None:
        """Add the first record that comes, of whatever partition."""
        try:
            # One record: a call that has more than one partition's in hand loses them to an error in the next.
            fetched = await self._consumer.getmany(timeout_ms=int(wait_s * 1000), max_records=1)
        except DECODE_ERRORS:
            # It does not say of which partition: each is asked for itself, with the time that an answer takes.
            await self._take(records, 1, wait_ms=2 * FETCH_MAX_WAIT_MS)
        else:
            records += [record for those in fetched.values() for record in those]

    def _put_aside(self, place: TopicPartition, error: UnreadableError) -> None:
        log.error("a partition is left out", partition=place.partition, why=str(error), again_s=DAMAGED_AGAIN_S)
        self._consumer.pause(place)
        self._damaged.add(place)
        self._damaged_until_s = time.monotonic() + DAMAGED_AGAIN_S
        PAUSED.set(len(self._damaged))

    def _leave_damaged_out(self) -> None:
        """Keep damaged partitions paused, also those that a rebalance has brought back, until their time has come."""
        owned = self._damaged & self._consumer.assignment()
        if self._damaged and time.monotonic() >= self._damaged_until_s:
            self._consumer.resume(*owned)
            self._damaged.clear()
            PAUSED.set(0)
        else:
            self._consumer.pause(*owned)

    async def commit(self, offsets: Mapping[int, int]) -> None:
        """Make next offsets by partition the group's. Those of partitions not owned any more are left out.

        Raises:
            AwayError: Kafka does not answer; they may be committed.
        """
        if self._consumer is None:
            raise AwayError(JOINING)
        owned = self._consumer.assignment()
        places = {TopicPartition(self._topic, partition): offset for partition, offset in offsets.items()}
        kept = {place: offset for place, offset in places.items() if place in owned}
        if not kept:
            return
        try:
            async with asyncio.timeout(COMMIT_TIMEOUT_S):
                await self._consumer.commit(kept)
        except (CommitFailedError, IllegalStateError):
            # The group moved on without us: whoever owns the partitions now stores the same results again.
            return
        except CLIENT_ERRORS as error:
            raise AwayError(_said(error)) from error

    async def behind(self) -> Mapping[int, bool]:
        """For every owned partition, whether there is more to read than was handed out, or nobody can say.

        Raises:
            AwayError: Kafka does not answer.
        """
        if self._consumer is None:
            raise AwayError(JOINING)
        found = {}
        try:
            async with asyncio.timeout(COMMIT_TIMEOUT_S):
                for place in self._consumer.assignment():
                    end, answered_ms = (
                        self._consumer.last_stable_offset(place),
                        self._consumer.last_poll_timestamp(place),
                    )
                    old = answered_ms is not None and time.time() * 1000 - answered_ms > ANSWER_AGE_MAX_S * 1000
                    found[place.partition] = end is not None and (old or await self._consumer.position(place) < end)
        except CLIENT_ERRORS as error:
            raise AwayError(_said(error)) from error
        return found


class _Revocations(ConsumerRebalanceListener):  # type: ignore[misc]
    def __init__(self, on_revoked: Callable[[set[int]], Awaitable[None]]) -> None:
        self._on_revoked = on_revoked

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """Nothing has to be made ready: reading goes on at the group's offset."""

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        await self._on_revoked({place.partition for place in revoked})


class DeadLetterProducer:
    """Writes dead letters, few and each awaited. A producer that failed is never used again."""

    def __init__(self, options: Options, topic: str) -> None:
        """Describe it; it connects with the first letter.

        Args:
            options: of every client.
            topic: the dead-letters topic, known to exist.
        """
        self._options = options
        self._topic = topic
        self._producer: Any = None

    async def write(self, letters: Sequence[DeadLetter]) -> None:
        """Return once all in-sync replicas have them.

        Raises:
            AwayError: Kafka does not answer; some may be there.
            UsageError: the topic does not take one of them.
        """
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                producer = await self._started()
                sends = [
                    await producer.send(
                        self._topic,
                        value=letter.value,
                        key=letter.key,
                        headers=letter.headers,
                        timestamp_ms=letter.timestamp_ms,
                    )
                    for letter in letters
                ]
                await asyncio.gather(*sends)
        except CLIENT_ERRORS as error:
            await self.stop()
            if is_refused(error):
                raise UsageError(
                    f"{self._topic} takes no dead letter of this size "
                    f"(the greatest has {max(len(letter.value or b'') for letter in letters)} bytes): "
                    "raise its max.message.bytes, and the message.max.bytes of the brokers"
                ) from error
            raise AwayError(_said(error)) from error

    async def stop(self) -> None:
        """Close the producer; twice is harmless."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await stop_client(producer)

    async def _started(self) -> Any:
        if self._producer is None:
            self._producer = record_producer(self._options, client_id=CLIENT_ID)
            await self._producer.start()
        return self._producer


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__
