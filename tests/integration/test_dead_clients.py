"""A client whose background task has ended hands out nothing and says nothing: it is noticed, and replaced."""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.fetch import FetchRequest

from consumers.commands.ledgers import local_ledgers
from consumers.engine.kafka_results import ResultsConsumer
from consumers.rows import AwayError
from tests.assembling import Bench, Condition, assert_exact, some_reports, until

Break = Callable[[str], None]


@pytest.fixture
def break_fetching(monkeypatch: pytest.MonkeyPatch) -> Break:
    """Let the next fetch of a topic end the task that fetches, as an error does that aiokafka does not expect."""
    send = AIOKafkaClient.send
    topics: set[str] = set()

    async def sending(client: Any, node: int, request: Any, **options: Any) -> Any:
        if isinstance(request, FetchRequest) and (hit := topics & {name for name, _ in request.topics}):
            topics.difference_update(hit)
            raise RuntimeError("unable to perform operation; the handler is closed")
        return await send(client, node, request, **options)

    monkeypatch.setattr(AIOKafkaClient, "send", sending)
    return topics.add


async def test_an_assembler_that_reads_nothing_any_more_joins_again(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path, break_fetching: Break
) -> None:
    """Its heartbeats go on, so nobody else would."""
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path)
    await bench.make_topics()
    reports = some_reports(100)

    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.publish(reports[:50])
        await bench.until_done(running)
        break_fetching(bench.settings.reports_topic)
        await bench.publish(reports[50:])
        await bench.until_done(running)

    assert_exact(await bench.results(), reports)


async def test_a_sink_that_reads_nothing_any_more_joins_again(
    kafka_bootstrap: str, topic_prefix: str, break_fetching: Break
) -> None:
    """What it had not committed comes again, and everything after it."""
    bench = Bench(kafka_bootstrap, topic_prefix, partitions=1)
    await bench.make_topics()
    topic = bench.settings.results_topic
    member = ResultsConsumer(
        bench.options, group_id=f"{topic_prefix}sink", topic=topic, on_revoked=lambda _: asyncio.sleep(0)
    )
    await member.start()
    got: list[bytes | None] = []

    def came(value: bytes) -> Condition:
        async def there() -> bool:
            with contextlib.suppress(AwayError):
                got.extend(record.value for record in await member.poll(records_max=10, wait_s=0.2))
            return value in got

        return there

    await _write(bench, topic, b"before")
    await until(came(b"before"))
    break_fetching(topic)
    await _write(bench, topic, b"after")
    await until(came(b"after"))
    await member.stop()


async def _write(bench: Bench, topic: str, value: bytes) -> None:
    producer = AIOKafkaProducer(**bench.options, acks="all")
    await producer.start()
    await producer.send_and_wait(topic, value, partition=0)
    await producer.stop()
