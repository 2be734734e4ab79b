"""How the last transaction of an owner was decided, and where brokers have not written that down.

A coordinator that ends a transaction writes a marker into each of its partitions. Kafka 4 skips the partitions that
have no leader at that moment, takes them for deleted and calls the transaction complete (KAFKA-20734; one broker that
comes back from a crash is enough). What stands there stays open, and the next transaction of the same owner decides
about it, too: an aborted cycle becomes visible, a committed one goes. aiokafka knows neither of the two requests that
tell (KIP-664); they are spelled out here.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import structlog
from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import IncompatibleBrokerVersion, KafkaError, NodeNotReadyError, RequestTimedOutError, for_code
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.transaction import EndTxnRequest
from aiokafka.protocol.types import CompactArray, CompactString, Int16, Int32, Int64, Schema, TaggedFields

from consumers.engine.stopping import stop_client

REQUEST_TIMEOUT_MS = 4_000
"""A broker that is silent must not use up the time that its successor needs."""

RETRY_S = 0.1
_TRANSACTION_COORDINATOR = 1
_ID_NOT_FOUND = 105
_TAGS = ("tags", TaggedFields)

Options = Mapping[str, Any]

_log = structlog.get_logger(__name__)


class Last(NamedTuple):
    """The last transaction of a transactional id, as its coordinator describes it.

    Attributes:
        state: a word of Kafka's: `Empty` where nothing was begun since the last producer came, `Ongoing`,
            `CompleteCommit`, `CompleteAbort`; anything else is on its way to one of these.
        producer_id: of its producer.
        epoch: of its producer.
        timeout_ms: the producer's transaction timeout.
        places: its partitions, as long as it is not complete; the coordinator then forgets them.
    """

    state: str
    producer_id: int
    epoch: int
    timeout_ms: int
    places: frozenset[TopicPartition] = frozenset()


class Endings:
    """Asks the coordinators of transactional ids and the leaders of partitions.

    All owners of a process share one client. One that an answer stayed away from is replaced: brokers may have moved.

    Attributes:
        trouble: why they did not answer, the last time that they did not.
    """

    def __init__(self, options: Options, topics: Collection[str]) -> None:
        """Describe it; it connects with the first question.

        Args:
            options: of every client (`ingest.runtime.kafka.client_options`).
            topics: that are asked about.
        """
        self._options = options
        self._topics = sorted(topics)
        self._line: _Line | None = None
        self._connecting = asyncio.Lock()
        self.trouble = ""

    async def last(self, identity: str) -> Last | None:
        """The last transaction of an owner; None if there never was one, or the brokers have forgotten it.

        Needs to DESCRIBE the transactional id. Asks until brokers answer: callers set an end.

        Raises:
            KafkaError: they refuse.
        """
        while True:
            try:
                async with self._connected() as client:
                    node = await client.coordinator_lookup(_TRANSACTION_COORDINATOR, identity)
                    answer = await client.send(node, _DescribeTransactions([identity]))
                ((code, _, state, timeout_ms, _, producer_id, epoch, topics, _),) = answer.states
                if code == _ID_NOT_FOUND:
                    return None
                _check(code, identity)
            except IncompatibleBrokerVersion:
                _log.warning("brokers before Kafka 3.0 cannot be asked whether they have ended every transaction")
                return None
            except (KafkaError, OSError) as error:
                await self._wait_or_raise(error)
            else:
                places = frozenset(TopicPartition(topic, number) for topic, numbers, _ in topics for number in numbers)
                return Last(state, producer_id, epoch, timeout_ms, places)

    async def missing(
        self, producer_id: int, places: Collection[TopicPartition], *, own: TopicPartition | None = None
    ) -> dict[TopicPartition, int]:
        """Where a transaction of that producer has no end, and the offset of its first record there.

        Needs to READ the topics. Asks until their leaders answer: callers set an end.

        Args:
            producer_id: the producer.
            places: partitions to look at.
            own: the one of them that no other owner writes to: there any producer counts.

        Raises:
            KafkaError: they refuse.
        """
        since: dict[TopicPartition, int] = {}
        asked = set(places)
        while asked:
            try:
                async with self._connected() as client:
                    for node, those in _by_leader(client, asked).items():
                        answer = await client.send(node, _DescribeProducers(those))
                        for place, code, producers in _answers(answer):
                            _check(code, f"{place.topic}, partition {place.partition}")
                            for number, *_, begin, _ in producers:
                                if begin >= 0 and (number == producer_id or place == own):
                                    since[place] = begin
                            asked.discard(place)
            except IncompatibleBrokerVersion:
                return {}
            except (KafkaError, OSError) as error:
                await self._wait_or_raise(error)
        return since

    async def commit(self, identity: str, last: Last) -> None:
        """Commit a transaction in the name of the producer that began it.

        Raises:
            KafkaError: it cannot be, at the moment or any more: ask for the last transaction again.
        """
        async with self._connected() as client:
            node = await client.coordinator_lookup(_TRANSACTION_COORDINATOR, identity)
            committing = EndTxnRequest(identity, last.producer_id, last.epoch, transaction_result=True)
            answer = await client.send(node, committing)
        _check(answer.error_code, identity)

    async def close(self) -> None:
        """Close what is open; another question opens it again."""
        line, self._line = self._line, None
        if line is not None and not line.users:
            await stop_client(line)

    @asynccontextmanager
    async def _connected(self) -> AsyncGenerator[AIOKafkaClient, None]:
        async with self._connecting:
            line = self._line
            if line is None:
                line = self._line = await _Line.connected(self._options, self._topics)
            line.users += 1
        try:
            yield line.client
        except KeyError as error:
            # aiokafka, when a request times out whose connection another one has closed
            self._give_up(line)
            raise RequestTimedOutError from error
        except BaseException:
            self._give_up(line)
            raise
        finally:
            line.users -= 1
            if line is not self._line and not line.users:
                await stop_client(line)

    async def _wait_or_raise(self, error: Exception) -> None:
        if isinstance(error, KafkaError) and not error.retriable:
            raise error
        self.trouble = f"{type(error).__name__}: {error}"
        await asyncio.sleep(RETRY_S)

    def _give_up(self, line: "_Line") -> None:
        if self._line is line:
            self._line = None


class _Line:
    """A client, and how many wait for an answer on it."""

    def __init__(self, client: AIOKafkaClient) -> None:
        self.client = client
        self.users = 0

    @classmethod
    async def connected(cls, options: Options, topics: Iterable[str]) -> "_Line":
        client = AIOKafkaClient(**{**options, "request_timeout_ms": REQUEST_TIMEOUT_MS})
        line = cls(client)
        try:
            await client.bootstrap()
            await client.set_topics(topics)
        except BaseException:
            await stop_client(line)
            raise
        return line

    async def stop(self) -> None:
        await self.client.close()


def _check(code: int, what: str) -> None:
    if code:
        raise for_code(code)(what)


def _by_leader(client: AIOKafkaClient, places: Iterable[TopicPartition]) -> dict[int, list[TopicPartition]]:
    by_leader: defaultdict[int, list[TopicPartition]] = defaultdict(list)
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
