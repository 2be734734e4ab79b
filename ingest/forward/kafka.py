"""The way to the brokers: one idempotent producer at a time, replaced whenever it may be broken.

An aiokafka producer that has seen a batch fail has used up sequence numbers that the broker never got; from then on
every batch of that partition can be refused, for ever. So a producer is used until the first failure of any kind,
then it gets a bounded time to finish what it has in flight, and a new one takes over. What it had not confirmed is
sent again: repeats carry the same identity and are recognised downstream.
"""

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, Final

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka import errors as kafka_errors
from aiokafka.errors import KafkaConnectionError, KafkaError, KafkaTimeoutError

from ingest.forward.link import ClosedError, NoPartitionError, RefusedError, SendError
from ingest.forward.publisher import Publisher
from ingest.forward.record import Record
from ingest.runtime.backoff import Backoff
from ingest.runtime.clock import Clock
from ingest.runtime.first_answer import refusal

BATCH_MAX_BYTES: Final = 512 * 1024
"""A batch before compression. A larger record goes in a batch of its own. Well below the brokers' usual 1 MiB, so that
a batch is refused only for a record in it."""

REQUEST_TIMEOUT_S: Final = 30.0
"""For one request, and for a partition without leader."""

DELIVERY_TIMEOUT_S: Final = 120.0
"""How long one batch may stay unconfirmed before its producer is replaced. aiokafka itself would try for ever."""

START_TIMEOUT_S: Final = 30.0
STOP_TIMEOUT_S: Final = 5.0
TEAR_DOWN_TIMEOUT_S: Final = 1.0
METADATA_TIMEOUT_S: Final = 10.0

RECONNECT_FIRST_S: Final = 0.1
RECONNECT_MOST_S: Final = 5.0
"""Bounds of the pause before brokers or a topic are looked for again."""

_TOO_LARGE: Final = (kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordListTooLargeError)
_REFUSED: Final = (*_TOO_LARGE, kafka_errors.UnsupportedForMessageFormatError, kafka_errors.PolicyViolationError)
_DOUBTFUL: Final = (kafka_errors.UnknownError, kafka_errors.CorruptRecordException)
"""INVALID_RECORD has a number that aiokafka does not know and shows as UnknownError, like a fault of the broker."""

_log = structlog.get_logger(__name__)


class KafkaLink:
    """Implements `ingest.forward.link.Link` with aiokafka.

    Args:
        options: how to reach the brokers, as `ingest.runtime.kafka.client_options` gives them.
        clock: paces attempts to connect.
    """

    def __init__(self, options: Mapping[str, Any], clock: Clock) -> None:
        self._options = dict(options)
        self._clock = clock
        self._producer: AIOKafkaProducer | None = None
        self._opening = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()
        self._reopening: asyncio.Task[None] | None = None
        self._missing: set[str] = set()
        self._closed = False
        self.replaced = 0

    def connected(self) -> bool:
        """See `Link`."""
        return self._producer is not None and not self._missing

    def missing(self) -> list[str]:
        """See `Link`."""
        return sorted(self._missing)

    async def partitions(self, topic: str) -> int:
        """See `Link`. The topic is found by listing all: a client that names one can bring it into being."""
        backoff = Backoff(RECONNECT_FIRST_S, RECONNECT_MOST_S)
        while True:
            producer = await self._current()
            known = producer.client.cluster.partitions_for_topic(topic)
            if known:
                if topic in self._missing:
                    self._missing.discard(topic)
                    _log.info("the topic is there now", topic=topic, partitions=len(known))
                return len(known)
            if not await self._list_topics(producer):
                self._retire(producer, "no list of topics")
            elif not producer.client.cluster.partitions_for_topic(topic):
                if topic not in self._missing:
                    self._missing.add(topic)
                    _log.error("the topic does not exist or may not be seen: waiting for it", topic=topic)
                await self._clock.sleep(backoff.next())

    async def send(self, topic: str, partition: int, records: Iterable[Record]) -> int:
        """See `Link`."""
        producer = await self._current()
        batch = producer.create_batch()
        append = batch.append
        for record in records:
            if append(
                timestamp=record.timestamp_ms, key=record.key, value=record.value, headers=record.headers
            ) is None:  # fmt: skip
                break
        batch.close()
        taken: int = batch.record_count()
        # Nothing may come between this look and the call, which asks for the topic by name if it is not known.
        if partition not in (producer.client.cluster.partitions_for_topic(topic) or ()):
            raise NoPartitionError(f"there is no partition {partition}")
        future = None
        try:
            async with asyncio.timeout(DELIVERY_TIMEOUT_S):
                future = await producer.send_batch(batch, topic, partition=partition)
                await future
        except KafkaTimeoutError as error:
            if future is not None:
                self._retire(producer, _name(error))
            raise SendError(_name(error)) from error
        except (KafkaError, OSError, AssertionError, TimeoutError) as error:
            self._retire(producer, _name(error))
            raise _verdict(error, taken) from error
        except asyncio.CancelledError as error:
            if _is_wanted():
                raise
            self._retire(producer, _name(error))
            raise SendError(_name(error)) from error
        return taken

    async def close(self) -> None:
        """See `Link`."""
        self._closed = True
        if self._reopening is not None:
            self._reopening.cancel()
            await asyncio.wait((self._reopening,))
        if self._producer is not None:
            self._retire(self._producer, "closed")
        if self._retiring:
            await asyncio.wait(self._retiring)

    async def _current(self) -> AIOKafkaProducer:
        if self._producer is not None:
            return self._producer
        async with self._opening:  # one opens, the others wait for it
            if self._producer is None:
                producer = await self._open()
                if self._closed:
                    await _stop(producer)
                    raise ClosedError
                self._producer = producer
            return self._producer

    async def _open(self) -> AIOKafkaProducer:
        backoff = Backoff(RECONNECT_FIRST_S, RECONNECT_MOST_S)
        away = ""
        while True:
            if self._closed:
                raise ClosedError
            producer = self._build()
            try:
                await self._start(producer)
            except (KafkaError, OSError, AssertionError, TimeoutError) as error:
                await _stop(producer)
                because = await refusal(self._options) or _name(error)
                if because != away:
                    away = because
                    _log.warning("Kafka is away: trying again until it is back", because=because)
                await self._clock.sleep(backoff.next())
            except BaseException:
                await _stop(producer)
                raise
            else:
                if away:
                    _log.info("Kafka is back")
                return producer

    async def _start(self, producer: AIOKafkaProducer) -> None:
        async with asyncio.timeout(START_TIMEOUT_S):
            try:
                await producer.start()
            except asyncio.CancelledError as error:
                if _is_wanted():
                    raise
                raise KafkaConnectionError(_name(error)) from error
            # Its first metadata are of no topic: without these it would have to ask for one by name.
            if not await self._list_topics(producer):
                raise KafkaConnectionError("no broker lists the topics")

    async def _reopen(self) -> None:
        """Have a producer ready before anybody asks: whether there is one is what senders are told of Kafka."""
        with suppress(ClosedError):
            await self._current()

    def _build(self) -> AIOKafkaProducer:
        return AIOKafkaProducer(
            **self._options,
            acks="all",
            enable_idempotence=True,
            compression_type="zstd",
            max_batch_size=BATCH_MAX_BYTES,
            linger_ms=0,
            request_timeout_ms=int(REQUEST_TIMEOUT_S * 1000),
        )

    async def _list_topics(self, producer: AIOKafkaProducer) -> bool:
        """Renew what the producer knows of all topics, none of which was named to it."""
        try:
            async with asyncio.timeout(METADATA_TIMEOUT_S):
                return bool(await producer.client.force_metadata_update())
        except (KafkaError, OSError, TimeoutError):
            return False
        except asyncio.CancelledError:
            if _is_wanted():
                raise
            return False

    def _retire(self, producer: AIOKafkaProducer, why: str) -> None:
        """Use it no more; let it finish what it has in flight, for a bounded time."""
        if producer is not self._producer:
            return  # another batch has found out before
        self._producer = None
        self.replaced += 1
        if not self._closed:
            _log.warning("the producer is replaced", because=why)
            self._reopening = asyncio.create_task(self._reopen(), name="opening producer")
        task = asyncio.create_task(_stop(producer), name="retiring producer")
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)


def open_publisher(options: Mapping[str, Any], clock: Clock) -> Publisher:
    """A publisher to real brokers; it connects when it is first needed, and is closed by its owner."""
    return Publisher(KafkaLink(options, clock), clock)


def _verdict(error: BaseException, taken: int) -> SendError:
    why = _name(error)
    if isinstance(error, kafka_errors.InvalidTimestampError):
        return RefusedError(why, taken=taken, timestamp=True)
    if isinstance(error, _REFUSED):
        return RefusedError(why, taken=taken)
    if isinstance(error, _DOUBTFUL):
        return RefusedError(why, taken=taken, doubtful=True)
    return SendError(why)


def _name(error: BaseException) -> str:
    """The class alone: the text of an error may quote what was sent."""
    return type(error).__name__


def _is_wanted() -> bool:
    """Whether a `CancelledError` is for the present task, and not of a future inside the client that was given up."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _stop(producer: AIOKafkaProducer) -> None:
    """End a producer and everything that waits for it, in bounded time.

    `stop` waits for what is in flight, without end while a broker is away, and cannot be called twice. What it leaves
    behind then has no public way to be ended; the version of aiokafka is pinned, and a test breaks if this does not do.
    """
    with suppress(KafkaError, OSError, AssertionError, TimeoutError):
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await producer.stop()
            return
    with suppress(KafkaError, OSError, AssertionError, TimeoutError):
        async with asyncio.timeout(TEAR_DOWN_TIMEOUT_S):
            producer._message_accumulator.fail_all(KafkaError("the producer was replaced"))  # noqa: SLF001
            await producer.client.close()
    with suppress(KafkaError, OSError, AssertionError, TimeoutError):
        async with asyncio.timeout(TEAR_DOWN_TIMEOUT_S):
            await producer._sender.close()  # noqa: SLF001
