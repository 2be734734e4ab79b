"""The way to real brokers: what stands in the topics, and what becomes of it when brokers fail."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.structs import ConsumerRecord

from deploy.local.kafka import LocalKafka
from ingest.contract.push import Push, Route
from ingest.contract.topics import TopicSpec
from ingest.forward import kafka as forward_kafka
from ingest.forward.courier import Courier, ForwardTopics
from ingest.forward.kafka import KafkaLink
from ingest.forward.link import ClosedError, NoPartitionError
from ingest.forward.loop import Forwarder
from ingest.forward.publisher import Publisher
from ingest.forward.record import Record
from ingest.runtime.clock import SystemClock
from ingest.runtime.kafka import TopicAdmin
from ingest.runtime.partitioner import partition_of
from ingest.spool.accounts import Accounts
from tests.assembling import PATIENCE_S
from tests.fakes.forward import MemoryBacklog

EXAMPLE = (Path(__file__).parents[1] / "data" / "batch_example.json").read_bytes()
RECEIVED_MS = 1_795_000_000_123
PARTITIONS = 6
MIB = 1024 * 1024


@dataclass
class Wire:
    """A publisher to real brokers, and a look at what arrived."""

    bootstrap: str
    topics: ForwardTopics
    link: KafkaLink
    publisher: Publisher
    accounts: Accounts
    forwarder: Forwarder

    async def forward(self, *pushes: Push) -> MemoryBacklog:
        """Publish these pushes and check that the accounts balance."""
        backlog = MemoryBacklog(pushes)
        self.accounts.attach(backlog)
        await self.forwarder.serve(backlog)
        assert self.accounts.unaccounted() == 0
        return backlog

    async def make_topics(self, *, replication: int = 1, **configs: str) -> None:
        """Create both topics."""
        async with TopicAdmin({"bootstrap_servers": self.bootstrap.split(",")}) as admin:
            await admin.create(
                TopicSpec(
                    name=name,
                    partitions=partitions,
                    replication=replication,
                    configs={"max.message.bytes": str(2 * MIB), "retention.ms": "-1", **configs},
                )
                for name, partitions in ((self.topics.reports, PARTITIONS), (self.topics.dead_letters, 3))
            )

    async def existing(self) -> set[str]:
        """The names of all topics."""
        async with TopicAdmin({"bootstrap_servers": self.bootstrap.split(",")}) as admin:
            return set(await admin.existing(describe=()))

    async def read(self, topic: str) -> list[ConsumerRecord[bytes, bytes]]:
        """Everything in a topic, partition by partition."""
        consumer = AIOKafkaConsumer(bootstrap_servers=self.bootstrap, enable_auto_commit=False)
        await consumer.start()
        try:
            count = len(await consumer._client._wait_on_metadata(topic))
            places = [TopicPartition(topic, partition) for partition in range(count)]
            consumer.assign(places)
            await consumer.seek_to_beginning()
            ends = await consumer.end_offsets(places)
            found: list[ConsumerRecord[bytes, bytes]] = []
            for place in places:
                while await consumer.position(place) < ends[place]:
                    found += (await consumer.getmany(place, timeout_ms=500)).get(place, [])
            return found
        finally:
            await consumer.stop()


Wired = Callable[[str], Awaitable[Wire]]


@pytest.fixture
async def wired(topic_prefix: str) -> AsyncIterator[Wired]:
    """Build a publisher to some brokers; closed at the end."""
    async with AsyncExitStack() as stack:

        async def wire(bootstrap: str) -> Wire:
            clock, accounts = SystemClock(), Accounts()
            link = KafkaLink({"bootstrap_servers": bootstrap.split(",")}, clock)
            publisher = Publisher(link, clock)
            stack.push_async_callback(publisher.close)
            topics = ForwardTopics(reports=topic_prefix + "reports", dead_letters=topic_prefix + "letters")
            courier = Courier(publisher, topics=topics, accounts=accounts, clock=clock)
            return Wire(bootstrap, topics, link, publisher, accounts, Forwarder(courier, clock))

        yield wire


def batch(numbers: Iterable[int], **more: object) -> Push:
    """A push with one usable report for each number."""
    elements = [{"smsMsgId": f"id-{number}", "status": "DELIVRD", **more} for number in numbers]
    return Push(RECEIVED_MS, Route.BATCH, len(elements), orjson.dumps({"statusReportList": elements}))


def record(number: int, size: int = 10) -> Record:
    """A record of so many bytes that do not compress."""
    return Record(b"same", number.to_bytes(4) + _noise(size), [], RECEIVED_MS)


async def _until(condition: Callable[[], object]) -> None:
    """Wait for something that gives no sign."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - what is looked at belongs to aiokafka or to a backlog without events
            await asyncio.sleep(0.005)


def _noise(size: int) -> bytes:
    """A fixed sequence without repetition, which any compression gives up on."""
    return random.Random(7).randbytes(size)


async def test_the_example_body_becomes_two_records(kafka_bootstrap: str, wired: Wired) -> None:
    """Key, value, headers, timestamp and partition of both records are as the contract has them."""
    wire = await wired(kafka_bootstrap)
    await wire.make_topics()

    await wire.forward(Push(RECEIVED_MS, Route.BATCH, 2, EXAMPLE))

    held = await wire.read(wire.topics.reports)
    elements = orjson.loads(EXAMPLE)["statusReportList"]
    assert sorted(each.key.decode() for each in held if each.key) == sorted(one["smsMsgId"] for one in elements)
    assert {dict(each.headers)["ce_id"] for each in held} == {b"2d422abdf28023a4116672c7", b"631ec23a01412c5fbae9ebe5"}
    for each in held:
        assert each.key is not None
        assert each.value is not None
        assert each.value in EXAMPLE
        assert orjson.loads(each.value)["smsMsgId"].encode() == each.key
        assert each.timestamp == RECEIVED_MS
        assert each.partition == partition_of(each.key, PARTITIONS)
        headers = dict(each.headers)
        assert headers.pop("ce_id")
        assert headers == {
            "ce_specversion": b"1.0",
            "ce_type": b"dlrflow.sms.status-report.v1",
            "ce_source": b"/batchReport",
            "ce_time": b"2026-11-18T11:06:40.123Z",
            "content-type": b"application/json",
        }


async def test_the_largest_body_passes(kafka_bootstrap: str, wired: Wired) -> None:
    """One report that fills a body of 1 MiB, and one body that is a dead letter whole, larger than any batch."""
    wire = await wired(kafka_bootstrap)
    await wire.make_topics()
    body = batch([1], unknown=_noise(400_000).hex())
    assert len(body.body) > forward_kafka.BATCH_MAX_BYTES
    broken = Push(RECEIVED_MS, Route.BATCH, 1, _noise(MIB))

    await wire.forward(body, broken)

    (held,) = await wire.read(wire.topics.reports)
    assert held.value in body.body
    (letter,) = await wire.read(wire.topics.dead_letters)
    assert letter.value == broken.body


async def test_a_record_that_no_topic_takes_goes_to_quarantine(kafka_bootstrap: str, wired: Wired) -> None:
    """It alone: everything before and after it is published once, and the balance holds."""
    wire = await wired(kafka_bootstrap)
    await wire.make_topics()
    small = [batch(range(number, number + 10)) for number in range(0, 200, 10)]
    huge = batch([1000], unknown=_noise(2_300_000).hex())

    await wire.forward(*small[:10], huge, *small[10:])

    assert Counter(each.key for each in await wire.read(wire.topics.reports)) == Counter(
        b"id-%d" % number for number in range(200)
    )
    assert (wire.accounts.published, wire.accounts.dead_lettered, wire.accounts.quarantined) == (200, 0, 1)


async def test_a_refused_record_is_kept_as_a_dead_letter(kafka_bootstrap: str, wired: Wired) -> None:
    """Where the dead-letters topic takes more than the reports topic, the record stands there with its reason."""
    wire = await wired(kafka_bootstrap)
    await wire.make_topics(replication=1, **{"max.message.bytes": "600000"})
    wide = wire.topics.dead_letters + "-wide"
    async with TopicAdmin({"bootstrap_servers": kafka_bootstrap.split(",")}) as admin:
        await admin.create(
            [TopicSpec(name=wide, partitions=1, replication=1, configs={"max.message.bytes": str(2 * MIB)})]
        )
    clock = SystemClock()
    courier = Courier(
        wire.publisher,
        topics=ForwardTopics(reports=wire.topics.reports, dead_letters=wide),
        accounts=wire.accounts,
        clock=clock,
    )
    wire.forwarder = Forwarder(courier, clock)
    huge = batch([1000], unknown=_noise(900_000).hex())

    await wire.forward(batch(range(50)), huge, batch(range(50, 100)))

    (letter,) = await wire.read(wide)
    assert letter.value in huge.body
    assert letter.key == b"id-1000"
    assert dict(letter.headers)["dlq-reason"] == b"refused-by-kafka"
    assert len(await wire.read(wire.topics.reports)) == 100


async def test_an_impossible_timestamp_becomes_now(kafka_bootstrap: str, wired: Wired) -> None:
    """A push that was received with a wrong clock is not stuck: its records are stamped with the present time."""
    wire = await wired(kafka_bootstrap)
    await wire.make_topics(replication=1, **{"message.timestamp.after.max.ms": "3600000"})
    clock = SystemClock()
    day_ms = 86_400_000
    good, bad = clock.wall_ms(), clock.wall_ms() + 30 * day_ms
    records = [
        Record(b"key", b"%d" % number, [], bad if number == 5 else good) for number in range(20)
    ]  # fmt: skip

    refused = await wire.publisher.publish(wire.topics.reports, records)

    assert refused == []
    held = await wire.read(wire.topics.reports)
    assert [each.value for each in held] == [b"%d" % number for number in range(20)]
    stamps = {each.value: each.timestamp for each in held}
    assert abs(stamps.pop(b"5") - clock.wall_ms()) < day_ms
    assert set(stamps.values()) == {good}


async def test_a_missing_topic_is_waited_for_and_never_made(kafka_bootstrap: str, wired: Wired) -> None:
    """The publisher does not bring a topic into being by asking for it; once it is made, everything arrives."""
    wire = await wired(kafka_bootstrap)
    forwarding = asyncio.create_task(wire.forward(batch(range(10))))
    await _until(wire.link.missing)
    assert wire.topics.reports not in await wire.existing()
    assert not wire.publisher.available()

    await wire.make_topics()
    await forwarding

    assert len(await wire.read(wire.topics.reports)) == 10


async def test_no_request_names_a_topic_that_is_not_there(
    kafka_bootstrap: str, wired: Wired, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a topic that vanishes while the publisher uses it is not asked for by name."""
    named: list[Any] = []
    wire = await wired(kafka_bootstrap)
    await wire.make_topics()
    await wire.publisher.connect(wire.topics.reports)
    producer = await wire.link._current()
    real = producer.client._metadata_update

    async def update(cluster: object, topics: Iterable[str]) -> object:
        named.extend(topics)
        return await real(cluster, topics)

    monkeypatch.setattr(producer.client, "_metadata_update", update)
    producer.client.cluster._partitions.pop(wire.topics.reports)

    with pytest.raises(NoPartitionError):
        await wire.link.send(wire.topics.reports, 0, [record(1)])
    await wire.publisher.publish(wire.topics.reports, [record(2)])

    assert named == []
    assert len(await wire.read(wire.topics.reports)) == 1


async def test_a_killed_broker_loses_nothing(kafka_node: LocalKafka, wired: Wired) -> None:
    """SIGKILL in the middle of the stream: after the restart every report is there, and the balance holds."""
    wire = await wired(kafka_node.bootstrap)
    await wire.make_topics()
    pushes = [batch(range(start, start + 50), extend="x" * 900) for start in range(0, 20_000, 50)]
    backlog = MemoryBacklog(pushes)
    wire.accounts.attach(backlog)
    serving = asyncio.create_task(wire.forwarder.serve(backlog))
    await _until(lambda: len(backlog.settled) > 2)
    await asyncio.to_thread(kafka_node.kill)
    assert not serving.done()
    settled = backlog.settled[-1]

    await asyncio.to_thread(kafka_node.restart)
    await serving

    assert backlog.settled[-1] > settled
    assert {each.key for each in await wire.read(wire.topics.reports)} == {b"id-%d" % n for n in range(20_000)}
    assert wire.accounts.published == 20_000
    assert wire.accounts.unaccounted() == 0


async def test_a_producer_that_a_clean_stop_broke_is_replaced(
    kafka_node: LocalKafka, wired: Wired, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that says good-bye makes aiokafka fail batches and stay broken for ever: a new producer goes on."""
    monkeypatch.setattr(forward_kafka, "REQUEST_TIMEOUT_S", 2.0)
    wire = await wired(kafka_node.bootstrap)
    await wire.make_topics()
    await wire.publisher.publish(wire.topics.reports, [record(0)])
    producer = await wire.link._current()
    # What the metadata says after a clean stop: the partitions are there, and nobody leads them.
    _forget_leaders(producer)
    before = wire.link.replaced
    await asyncio.to_thread(kafka_node.terminate)
    publishing = asyncio.create_task(
        wire.publisher.publish(wire.topics.reports, [record(number) for number in range(1, 50)])
    )
    await _until(lambda: wire.link.replaced > before)

    await asyncio.to_thread(kafka_node.restart)
    await publishing
    for number in range(50, 100):
        await wire.publisher.publish(wire.topics.reports, [record(number)])

    values = [each.value for each in await wire.read(wire.topics.reports)]
    assert set(values) == {record(number).value for number in range(100)}


async def test_a_confirmation_that_never_comes_is_not_waited_for_for_ever(
    kafka_node: LocalKafka, wired: Wired, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that takes requests and answers none costs a producer, not a report."""
    monkeypatch.setattr(forward_kafka, "DELIVERY_TIMEOUT_S", 0.5)
    monkeypatch.setattr(forward_kafka, "STOP_TIMEOUT_S", 0.2)
    wire = await wired(kafka_node.bootstrap)
    await wire.make_topics()
    await wire.publisher.publish(wire.topics.reports, [record(0)])
    kafka_node.freeze()
    publishing = asyncio.create_task(wire.publisher.publish(wire.topics.reports, [record(1)]))
    await _until(lambda: wire.link.replaced)
    monkeypatch.setattr(forward_kafka, "DELIVERY_TIMEOUT_S", 30.0)

    kafka_node.thaw()
    await publishing

    assert {each.value for each in await wire.read(wire.topics.reports)} == {record(0).value, record(1).value}


async def test_a_leader_that_dies_hands_over_without_loss(kafka_cluster: LocalKafka, wired: Wired) -> None:
    """Of three replicas one is killed in the middle of the stream: nothing waits for its return, nothing is lost."""
    wire = await wired(kafka_cluster.bootstrap)
    await wire.make_topics(replication=3, **{"min.insync.replicas": "2"})
    backlog = MemoryBacklog([batch(range(start, start + 50), extend="x" * 900) for start in range(0, 20_000, 50)])
    wire.accounts.attach(backlog)
    serving = asyncio.create_task(wire.forwarder.serve(backlog))
    await _until(lambda: len(backlog.settled) > 2)
    assert not serving.done()

    await asyncio.to_thread(kafka_cluster.kill, 1)
    await serving

    assert {each.key for each in await wire.read(wire.topics.reports)} == {b"id-%d" % n for n in range(20_000)}
    assert wire.accounts.unaccounted() == 0


async def test_brokers_that_are_away_at_the_start_are_waited_for(kafka_node: LocalKafka, wired: Wired) -> None:
    """Nothing fails before the first connection."""
    await (await wired(kafka_node.bootstrap)).make_topics()
    await asyncio.to_thread(kafka_node.kill)
    wire = await wired(kafka_node.bootstrap)
    forwarding = asyncio.create_task(wire.forward(batch(range(10))))
    await asyncio.sleep(0)

    await asyncio.to_thread(kafka_node.restart)
    await forwarding

    assert len(await wire.read(wire.topics.reports)) == 10


async def test_closing_does_not_hang_while_brokers_are_away(
    kafka_node: LocalKafka, wired: Wired, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A producer with batches in flight ends in bounded time and leaves no task behind."""
    monkeypatch.setattr(forward_kafka, "STOP_TIMEOUT_S", 0.5)
    before = asyncio.all_tasks()
    wire = await wired(kafka_node.bootstrap)
    await wire.make_topics()
    await wire.publisher.publish(wire.topics.reports, [record(0)])
    kafka_node.freeze()
    publishing = asyncio.create_task(wire.publisher.publish(wire.topics.reports, [record(1)]))
    await asyncio.sleep(0)

    async with asyncio.timeout(5):
        await wire.publisher.close()

    with pytest.raises(asyncio.CancelledError):
        await publishing
    with pytest.raises(ClosedError):
        await wire.publisher.publish(wire.topics.reports, [record(2)])
    assert {task for task in asyncio.all_tasks() - before if not task.done()} == set()


def _forget_leaders(producer: AIOKafkaProducer) -> None:
    for partitions in producer.client.cluster._partitions.values():
        for partition, state in partitions.items():
            partitions[partition] = state._replace(leader=-1)
