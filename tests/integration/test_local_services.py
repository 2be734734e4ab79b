"""The services that all other integration tests stand on."""

from __future__ import annotations

import asyncpg
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic


async def make_topic(bootstrap: str, name: str, *, replication: int = 1, configs: dict[str, str] | None = None) -> None:
    """Make a topic of one partition."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, 1, replication, topic_configs=configs or {})])
    finally:
        await admin.close()


async def produce(bootstrap: str, topic: str, *values: bytes) -> None:
    """Write records and wait until all in-sync replicas have them."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", enable_idempotence=True)
    await producer.start()
    try:
        for value in values:
            await producer.send_and_wait(topic, value)
    finally:
        await producer.stop()


async def consume(bootstrap: str, topic: str) -> list[bytes]:
    """Read a topic of one partition from its beginning to its end."""
    partition = TopicPartition(topic, 0)
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False)
    await consumer.start()
    try:
        consumer.assign([partition])
        end = (await consumer.end_offsets([partition]))[partition]
        consumer.seek(partition, 0)
        return [(await consumer.getone()).value for _ in range(end)]
    finally:
        await consumer.stop()


async def test_kafka_takes_and_gives_back(kafka_bootstrap: str, topic_prefix: str) -> None:
    """The shared Kafka answers: what is written is read."""
    topic = f"{topic_prefix}echo"
    await make_topic(kafka_bootstrap, topic)

    await produce(kafka_bootstrap, topic, b"one", b"two")

    assert await consume(kafka_bootstrap, topic) == [b"one", b"two"]


async def test_postgres_answers(postgres_dsn: str) -> None:
    """The shared PostgreSQL answers a query."""
    connection = await asyncpg.connect(postgres_dsn)
    try:
        assert await connection.fetchval("select 1") == 1
    finally:
        await connection.close()
