"""A member of a sink's group on a real Kafka: what it has read it hands out, whatever fails beside it."""

import asyncio
from collections.abc import AsyncIterator, Collection, Iterator

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import CorruptRecordException, TopicAuthorizationFailedError

from consumers.engine.kafka_results import ResultsConsumer
from consumers.engine.record import Record
from consumers.rows import AwayError
from tests.assembling import Bench, until

PARTITIONS = 2
RECORDS = 20
QUIET_POLLS = 10


@pytest.fixture
async def member(kafka_bootstrap: str, topic_prefix: str) -> AsyncIterator[ResultsConsumer]:
    """A member that owns both partitions of a topic with ten records each."""
    bench = Bench(kafka_bootstrap, topic_prefix, partitions=PARTITIONS)
    await bench.make_topics()
    topic = bench.settings.results_topic
    producer = AIOKafkaProducer(**bench.options, acks="all")
    await producer.start()
    for number in range(RECORDS):
        await producer.send(topic, b"%d" % number, partition=number % PARTITIONS)
    await producer.stop()
    member = ResultsConsumer(
        bench.options, group_id=f"{topic_prefix}sink", topic=topic, on_revoked=lambda _: asyncio.sleep(0)
    )
    await member.start()
    yield member
    await member.stop()


async def read_all(member: ResultsConsumer) -> tuple[list[Record], int]:
    """What it hands out until all came or nothing more does, and how often it said that Kafka is away."""
    got: list[Record] = []
    away = quiet = 0

    async def done() -> bool:
        nonlocal away, quiet
        try:
            some = await member.poll(records_max=5000, wait_s=0.2)
        except AwayError:
            away, quiet = away + 1, 0
            return False
        got.extend(some)
        quiet = 0 if some or not got else quiet + 1
        return len(got) >= RECORDS or quiet == QUIET_POLLS

    await until(done)
    return got, away


def places(records: Collection[Record]) -> list[tuple[int, int]]:
    """Where they stand, in order."""
    return sorted((record.partition, record.offset) for record in records)


EVERYTHING = [(partition, offset) for partition in range(PARTITIONS) for offset in range(RECORDS // PARTITIONS)]


async def the_last_asked(member: ResultsConsumer) -> TopicPartition:
    """The partition that the next poll asks last, once records of all are here."""
    fetcher = member._consumer._fetcher

    async def fetched() -> bool:
        return len(fetcher._records) == PARTITIONS

    await until(fetched)
    return sorted(fetcher._records)[member._first % PARTITIONS]


async def test_what_was_read_is_handed_out_when_another_partition_fails(member: ResultsConsumer) -> None:
    """The positions have moved: records that were dropped with the error would never come again."""
    last = await the_last_asked(member)
    fetcher = member._consumer._fetcher
    del fetcher._records[last]
    fetcher._set_error(last, TopicAuthorizationFailedError(last.topic))

    got, away = await read_all(member)

    assert places(got) == EVERYTHING
    assert away == 1


async def test_a_damaged_batch_costs_a_second_read_and_no_record(member: ResultsConsumer) -> None:
    """Neither those of another partition nor those that stand before it are passed over."""
    last = await the_last_asked(member)
    fetched = member._consumer._fetcher._records[last]._partition_records
    whole = fetched._records_iterator

    def damaged() -> Iterator[Record]:
        yield next(whole)
        yield next(whole)
        raise CorruptRecordException("Invalid CRC")

    fetched._records_iterator = damaged()

    got, away = await read_all(member)

    assert places(got) == EVERYTHING
    assert away == 0


async def test_leaving_is_no_cancellation_of_whoever_leaves(
    member: ResultsConsumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client whose stop trips over a fetch that it has cancelled itself ends the membership, not the process."""
    client = member._consumer
    stop = client.stop

    async def tripping() -> None:
        await stop()
        fetch = asyncio.create_task(asyncio.Event().wait())
        await asyncio.sleep(0)
        fetch.cancel()
        await fetch

    monkeypatch.setattr(client, "stop", tripping)
    leaving = asyncio.create_task(member.stop())
    await asyncio.wait({leaving})

    assert not leaving.cancelled()
    await leaving
