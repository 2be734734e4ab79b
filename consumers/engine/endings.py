"""How the last transaction of an owner was decided, and where brokers have not written that down.

A coordinator that ends a transaction writes a marker into each of its partitions. Kafka 4 skips the partitions that
have no leader at that moment, takes them for deleted and calls the transaction complete (KAFKA-20734; one broker that
comes back from a crash is enough). What stands there stays open, and the next transaction of the same owner decides
about it, too: an aborted cycle becomes visible, a committed one goes. aiokafka knows neither of the two requests that
tell (KIP-664); they are spelled out here.
"""

import asyncio
from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError, NodeNotReadyError, for_code
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import CompactArray, CompactString, Int16, Int32, Int64, Schema, TaggedFields

from consumers.engine.stopping import stop_client

RETRY_S = 0.1
_TRANSACTION_COORDINATOR = 1
_ID_NOT_FOUND = 105
_TAGS = ("tags", TaggedFields)

_COMMITTED = {"PrepareCommit", "CompleteCommit"}
_ABORTED = {"PrepareAbort", "CompleteAbort", "PrepareEpochFence"}
_RUNNING = "Ongoing"

Options = Any


class Last(NamedTuple):
    """The last transaction of a transactional id.

    Attributes:
        producer_id: of its producer.
        committed: how it was decided. One that is running is as good as aborted: the next producer aborts it. None
            where nothing was begun since the last producer came.
        places: its partitions, as long as it is not complete; the coordinator then forgets them.
    """

    producer_id: int
    committed: bool | None
    places: frozenset[TopicPartition]


class Endings:
    """Asks the coordinators of transactional ids and the leaders of partitions. One connection each, kept."""

    def __init__(self, options: Options) -> None:
        """Describe it; it connects with the first question.

        Args:
            options: of every client (`ingest.runtime.kafka.client_options`).
        """
        self._options = options
        self._client: AIOKafkaClient | None = None
        self._starting = asyncio.Lock()

    async def last(self, identity: str) -> Last | None:
        """The last transaction of an owner; None if there never was one, or the brokers have forgotten it.

        Needs to DESCRIBE the transactional id. Asks until brokers answer: callers set an end.

        Raises:
            KafkaError: they refuse.
        """
        while True:
            try:
                client = await self._started()
                node = await client.coordinator_lookup(_TRANSACTION_COORDINATOR, identity)
                answer = await client.send(node, _DescribeTransactions([identity]))
                ((code, _, state, _, _, producer_id, _, topics, _),) = answer.states
                if code == _ID_NOT_FOUND:
                    return None
                _check(code, identity)
            except (KafkaError, OSError) as error:
                await self._wait_or_raise(error)
                continue
            committed = True if state in _COMMITTED else False if state in _ABORTED | {_RUNNING} else None
            places = frozenset(TopicPartition(topic, number) for topic, numbers, _ in topics for number in numbers)
            return Last(producer_id, committed, places)

    async def missing(self, producer_id: int, places: Collection[TopicPartition]) -> set[TopicPartition]:
        """Those of these partitions in which a transaction of that producer has no end.

        Needs to READ the topics. Asks until their leaders answer: callers set an end.

        Raises:
            KafkaError: they refuse.
        """
        found: set[TopicPartition] = set()
        asked = set(places)
        while asked:
            try:
                client = await self._started()
                await client.set_topics({place.topic for place in places})
                for node, those in _by_leader(client, asked).items():
                    answer = await client.send(node, _DescribeProducers(those))
                    for place, code, producers in _answers(answer):
                        _check(code, f"{place.topic}, partition {place.partition}")
                        if any(number == producer_id and begin >= 0 for number, *_, begin, _ in producers):
                            found.add(place)
                        asked.discard(place)
            except (KafkaError, OSError) as error:
                await self._wait_or_raise(error)
        return found

    async def written(self, producer_id: int, places: Collection[TopicPartition]) -> None:
        """Wait until every transaction of that producer in these partitions has its end; callers set an end.

        A coordinator answers once it has decided, and writes the markers after that.

        Raises:
            KafkaError: they refuse.
        """
        while True:
            places = await self.missing(producer_id, places)
            if not places:
                return
            await asyncio.sleep(RETRY_S)

    async def close(self) -> None:
        """Close what is open; another question opens it again."""
        client, self._client = self._client, None
        if client is not None:
            await stop_client(_Closing(client))

    async def _started(self) -> AIOKafkaClient:
        async with self._starting:
            if self._client is None:
                client = AIOKafkaClient(**self._options)
                try:
                    await client.bootstrap()
                except BaseException:
                    await stop_client(_Closing(client))
                    raise
                self._client = client
        return self._client

    async def _wait_or_raise(self, error: Exception) -> None:
        if isinstance(error, KafkaError) and not error.retriable:
            raise error
        client = self._client
        if client is not None and not await client.force_metadata_update() and client is self._client:
            # None of the brokers that it knows is there: begin again with the addresses that were configured.
            await self.close()
        await asyncio.sleep(RETRY_S)


class _Closing:
    """A bare client, stopped like the others."""

    def __init__(self, client: AIOKafkaClient) -> None:
        self._client = client

    async def stop(self) -> None:
        await self._client.close()


def _check(code: int, what: str) -> None:
    if code:
        raise for_code(code)(what)


def _by_leader(client: AIOKafkaClient, places: Iterable[TopicPartition]) -> dict[int, list[TopicPartition]]:
    by_leader = defaultdict(list)
    for place in places:
        leader = client.cluster.leader_for_partition(place)
        if leader is None or leader < 0:
            raise NodeNotReadyError(f"no leader for {place.topic}, partition {place.partition}")
        by_leader[leader].append(place)
    return by_leader


def _answers(answer: Any) -> Iterable[tuple[TopicPartition, int, list[Any]]]:
    for topic, partitions, _ in answer.topics:
        for number, code, _, producers, _ in partitions:
            yield TopicPartition(topic, number), code, producers


class _DescribeTransactionsResponse(Response):  # type: ignore[misc]
    API_KEY = 65
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "states",
            CompactArray(
                ("error_code", Int16),
                ("identity", CompactString("utf-8")),
                ("state", CompactString("utf-8")),
                ("timeout_ms", Int32),
                ("start_time_ms", Int64),
                ("producer_id", Int64),
                ("producer_epoch", Int16),
                (
                    "topics",
                    CompactArray(("topic", CompactString("utf-8")), ("partitions", CompactArray(Int32)), _TAGS),
                ),
                _TAGS,
            ),
        ),
        _TAGS,
    )


class _DescribeTransactionsV0(RequestStruct):  # type: ignore[misc]
    API_KEY = 65
    API_VERSION = 0
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _DescribeTransactionsResponse
    SCHEMA = Schema(("identities", CompactArray(CompactString("utf-8"))), _TAGS)


class _DescribeTransactions(Request[_DescribeTransactionsV0]):  # type: ignore[misc]
    API_KEY = 65

    def __init__(self, identities: list[str]) -> None:
        self._identities = identities

    def build(self, request_struct_class: type[_DescribeTransactionsV0]) -> _DescribeTransactionsV0:
        return request_struct_class(self._identities, {})


class _DescribeProducersResponse(Response):  # type: ignore[misc]
    API_KEY = 61
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "topics",
            CompactArray(
                ("topic", CompactString("utf-8")),
                (
                    "partitions",
                    CompactArray(
                        ("partition", Int32),
                        ("error_code", Int16),
                        ("error_message", CompactString("utf-8")),
                        (
                            "producers",
                            CompactArray(
                                ("producer_id", Int64),
                                ("producer_epoch", Int32),
                                ("last_sequence", Int32),
                                ("last_timestamp", Int64),
                                ("coordinator_epoch", Int32),
                                ("transaction_start_offset", Int64),
                                _TAGS,
                            ),
                        ),
                        _TAGS,
                    ),
                ),
                _TAGS,
            ),
        ),
        _TAGS,
    )


class _DescribeProducersV0(RequestStruct):  # type: ignore[misc]
    API_KEY = 61
    API_VERSION = 0
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _DescribeProducersResponse
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(("topic", CompactString("utf-8")), ("partitions", CompactArray(Int32)), _TAGS),
        ),
        _TAGS,
    )


class _DescribeProducers(Request[_DescribeProducersV0]):  # type: ignore[misc]
    API_KEY = 61

    def __init__(self, places: Iterable[TopicPartition]) -> None:
        by_topic: dict[str, list[int]] = defaultdict(list)
        for topic, partition in places:
            by_topic[topic].append(partition)
        no_tags: dict[int, bytes] = {}
        self._topics = [(topic, numbers, no_tags) for topic, numbers in by_topic.items()]

    def build(self, request_struct_class: type[_DescribeProducersV0]) -> _DescribeProducersV0:
        return request_struct_class(self._topics, {})
