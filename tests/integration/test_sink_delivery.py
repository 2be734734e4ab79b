"""The sinks with a real Kafka and a real PostgreSQL: nothing lost, no lower revision, whatever dies in between."""

import asyncio
import contextlib
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from consumers.commands.sink import serve
from consumers.commands.sinks import open_for_reading
from consumers.engine.delivery import ROWS
from consumers.engine.record import Record
from consumers.engine.snapshot import read_topic
from consumers.settings import SinkSettings
from deploy.local.postgres import LocalPostgres
from ingest.contract.result import Outcome, Result, ResultReason, SegmentResult, encode_result
from ingest.contract.topics import TopicSpec
from ingest.runtime.errors import UsageError
from ingest.runtime.kafka import TopicAdmin, client_options
from ingest.runtime.partitioner import partition_of
from tests.assembling import forget_members, until

PARTITIONS = 3

DIES_AT_COMMIT = """
import os, signal, sys
from consumers.engine.kafka_results import ResultsConsumer

async def die(self, offsets):
    os.kill(os.getpid(), signal.SIGKILL)

ResultsConsumer.commit = die
from consumers.__main__ import main
sys.exit(main())
"""


def a_result(message_id: str, revision: int = 1, **fields: Any) -> Result:
    """A delivered result."""
    known: dict[str, Any] = {
        "schema_version": 1,
        "sms_msg_id": message_id,
        "revision": revision,
        "outcome": Outcome.DELIVERED,
        "final": True,
        "total": 1,
        "received": 1,
        "missing": [],
        "segments": [SegmentResult(1, "DELIVRD", "2", "2023-04-18T07:26:00Z", "000")],
        "to": "+8613500000001",
        "reason": ResultReason.COMPLETE if revision == 1 else ResultReason.REVISED,
        "first_received_at": "2026-11-23T10:00:00.000Z",
        "last_received_at": "2026-11-23T10:00:00.250Z",
    }
    return Result(**known | fields)


class Bench:
    """Topics and a destination of one test, and sinks that run between them."""

    def __init__(self, bootstrap: str, prefix: str, kind: str, folder: Path, **settings: Any) -> None:
        chosen: dict[str, Any] = {
            "kafka_bootstrap_servers": bootstrap,
            "reports_topic": f"{prefix}reports",
            "results_topic": f"{prefix}results",
            "dead_letters_topic": f"{prefix}dead",
            "sink_group_id": f"{prefix}sink",
            "sqlite_path": folder / "results.db",
            "jsonl_dir": folder / "lines",
            "admin_port": 0,
        }
        self.chosen = {name: str(value) for name, value in (chosen | settings).items()}
        self.settings = SinkSettings(**(chosen | settings))
        self.kind = kind
        self.options = client_options(self.settings)

    async def make_topics(self, **dead_letters: str) -> None:
        """Make both topics; settings of the dead letters have underscores for points."""
        configs = {name.replace("_", "."): value for name, value in dead_letters.items()}
        async with TopicAdmin(self.options) as admin:
            await admin.create(
                [
                    TopicSpec(name=self.settings.results_topic, partitions=PARTITIONS, replication=1, configs={}),
                    TopicSpec(name=self.settings.dead_letters_topic, partitions=1, replication=1, configs=configs),
                ]
            )

    async def publish(self, results: Sequence[Result | bytes], *, transactional_id: str | None = None) -> None:
        """Write results as the assembler does, bytes as they are; a transaction is left open and aborted."""
        producer = AIOKafkaProducer(
            **self.options,
            acks="all",
            compression_type="zstd",
            max_request_size=1 << 30,
            transactional_id=transactional_id,
        )
        await producer.start()
        try:
            if transactional_id:
                await producer.begin_transaction()
            for result in results:
                key, value = (b"raw", result) if isinstance(result, bytes) else (_key(result), encode_result(result))
                await producer.send(
                    self.settings.results_topic, key=key, value=value, partition=partition_of(key, PARTITIONS)
                )
            await producer.flush()
            if transactional_id:
                await producer.abort_transaction()
        finally:
            await producer.stop()

    @contextlib.asynccontextmanager
    async def delivering(self) -> AsyncIterator["asyncio.Task[None]"]:
        """A sink in this process, stopped as by SIGTERM at the end."""
        stop = asyncio.Event()
        running = asyncio.create_task(serve(self.settings, self.kind, create=True, stop=stop))
        try:
            yield running
        finally:
            stop.set()
            await running

    @contextlib.asynccontextmanager
    async def process(self, *program: str) -> AsyncIterator[asyncio.subprocess.Process]:
        """A sink in a process of its own."""
        environment = {f"DLR_{name.upper()}": value for name, value in self.chosen.items()}
        process = await asyncio.create_subprocess_exec(
            sys.executable, *(program or ("-m", "consumers")), "sink", self.kind, env=os.environ | environment
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def until_done(self, watched: "asyncio.Task[None] | None" = None) -> None:
        """Wait until the group has passed all results."""
        places = [TopicPartition(self.settings.results_topic, partition) for partition in range(PARTITIONS)]
        consumer = AIOKafkaConsumer(**self.options, group_id=self.settings.sink_group_id, enable_auto_commit=False)
        consumer.assign(places)
        await consumer.start()
        ends = {place: await _last_of(self.options, place) for place in places}

        async def done() -> bool:
            return all([(await consumer.committed(place) or 0) >= ends[place] for place in places])

        try:
            await until(done, watched)
        finally:
            await consumer.stop()

    async def rows(self) -> dict[str, int]:
        """Which revision of each message the destination holds."""
        async with open_for_reading(self.settings, self.kind) as sink:
            return {row.message_id: row.revision async for row in sink.stored()}

    async def dead_letters(self) -> list[Record]:
        """All of them."""
        batches = [batch async for batch in read_topic(self.options, self.settings.dead_letters_topic, 1)]
        return [record for batch in batches for record in batch]


async def _last_of(options: Any, place: TopicPartition) -> int:
    """The offset after the last result of a partition."""
    batches = [batch async for batch in read_topic(options, place.topic, PARTITIONS)]
    offsets = [record.offset for batch in batches for record in batch if record.partition == place.partition]
    return max(offsets, default=-1) + 1


def _key(result: Result) -> bytes:
    return result.sms_msg_id.encode()


Make = Callable[..., Bench]


@pytest.fixture
async def schema_dsn(postgres_dsn: str) -> AsyncIterator[str]:
    """The DSN of an empty schema of its own."""
    schema = f"t{uuid.uuid4().hex}"
    async with _connected(postgres_dsn) as connection:
        await connection.execute(f"CREATE SCHEMA {schema}")
        yield f"{postgres_dsn}?search_path={schema}"
        await connection.execute(f"DROP SCHEMA {schema} CASCADE")


@pytest.fixture(params=["sqlite", "postgres", "jsonl"])
def bench(request: pytest.FixtureRequest, kafka_bootstrap: str, topic_prefix: str, tmp_path: Path) -> Bench:
    """Each sink in turn."""
    more = {"postgres_dsn": request.getfixturevalue("schema_dsn")} if request.param == "postgres" else {}
    return Bench(kafka_bootstrap, topic_prefix, request.param, tmp_path, **more)


async def test_every_message_ends_at_its_highest_revision(bench: Bench) -> None:
    """Results of several partitions, batches and processes end in one row each; the group's offset follows."""
    await bench.make_topics()
    first = [a_result(f"m{number}", revision) for number in range(200) for revision in (1, 2)]
    await bench.publish(first)
    async with bench.delivering() as running:
        await bench.until_done(running)
        await bench.publish([a_result(f"m{number}", 3) for number in range(0, 200, 2)])
        await bench.until_done(running)

    await bench.publish([a_result("m1", 3), a_result("m1", 1)])
    async with bench.delivering() as running:
        await bench.until_done(running)

    assert await bench.rows() == {f"m{number}": 2 if number % 2 else 3 for number in range(200)} | {"m1": 3}


async def test_what_was_aborted_is_never_delivered(bench: Bench) -> None:
    """A cycle that was given up stands on the topic; readers of committed results do not see it."""
    await bench.make_topics()
    await bench.publish([a_result("aborted")], transactional_id=f"{bench.settings.results_topic}.tx")
    await bench.publish([a_result("kept")])

    async with bench.delivering() as running:
        await bench.until_done(running)

    assert await bench.rows() == {"kept": 1}


async def test_a_kill_between_destination_and_offset_changes_no_row(bench: Bench) -> None:
    """The batch comes again and nothing of it counts twice."""
    await bench.make_topics()
    await bench.publish([a_result(f"m{number}", revision) for number in range(50) for revision in (1, 2)])
    async with bench.process("-c", DIES_AT_COMMIT) as process:
        assert await asyncio.wait_for(process.wait(), 60) == -signal.SIGKILL
    await forget_members(bench.options, bench.chosen["sink_group_id"])
    before = await bench.rows()
    assert before

    async with bench.process() as process:
        await bench.until_done()
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 30) == 0

    assert await bench.rows() == {f"m{number}": 2 for number in range(50)}
    assert before.items() <= (await bench.rows()).items()


async def test_two_members_share_the_partitions_and_one_may_leave(bench: Bench) -> None:
    """A rebalance in the middle of it loses nothing and takes nothing back."""
    await bench.make_topics()
    await bench.publish([a_result(f"m{number}") for number in range(500)])

    async with bench.delivering() as running:
        async with bench.delivering():
            await bench.publish([a_result(f"m{number}", 2) for number in range(500)])
            await bench.until_done(running)
        await bench.publish([a_result(f"m{number}", 3) for number in range(500)])
        await bench.until_done(running)

    assert await bench.rows() == {f"m{number}": 3 for number in range(500)}


async def test_what_is_no_result_is_a_dead_letter(bench: Bench) -> None:
    """It does not stop the others, and says where it was."""
    await bench.make_topics()
    await bench.publish([a_result("a"), b"no result", b"{}", a_result("b")])

    async with bench.delivering() as running:
        await bench.until_done(running)

    assert await bench.rows() == {"a": 1, "b": 1}
    letters = await bench.dead_letters()
    headers = [dict(letter.headers) for letter in letters]
    assert [(said["dlq-stage"], said["dlq-reason"]) for said in headers] == [
        (b"sink", b"not-json"),
        (b"sink", b"bad-field"),
    ]
    assert {(said["dlq-sink"], said["dlq-topic"]) for said in headers} == {
        (bench.kind.encode(), bench.settings.results_topic.encode())
    }
    assert [(letter.key, letter.value) for letter in letters] == [(b"raw", b"no result"), (b"raw", b"{}")]


@pytest.mark.parametrize("bench", ["sqlite"], indirect=True)
async def test_a_large_record_that_is_no_result_is_a_dead_letter(bench: Bench) -> None:
    """What the results topic took in, compressed, the dead letters take too: brokers measure what they are sent."""
    await bench.make_topics(max_message_bytes="2097152")
    value = b"no result " * 300_000
    await bench.publish([value, a_result("a")])

    async with bench.delivering() as running:
        await bench.until_done(running)

    assert await bench.rows() == {"a": 1}
    (letter,) = await bench.dead_letters()
    assert letter.value == value


@pytest.mark.parametrize("bench", ["sqlite"], indirect=True)
async def test_a_dead_letter_that_kafka_never_takes_ends_the_sink_by_name(bench: Bench) -> None:
    """Waiting would not help and moving past it would lose it: the line says which setting must be raised."""
    await bench.make_topics(max_message_bytes="1000")
    await bench.publish([os.urandom(5000)])

    with pytest.raises(UsageError, match=rf"{bench.settings.dead_letters_topic} .* max\.message\.bytes"):
        async with asyncio.timeout(30), bench.delivering() as running:
            await running

    assert await bench.dead_letters() == []


@pytest.mark.parametrize("bench", ["sqlite", "postgres"], indirect=True)
async def test_a_row_that_the_database_refuses_is_a_dead_letter(bench: Bench) -> None:
    """The rest of its batch is stored; the offset moves past it once the dead letter is there."""
    await bench.make_topics()
    refused = a_result("m7", 2**63)
    await bench.publish([a_result(f"m{number}") if number != 7 else refused for number in range(20)])

    async with bench.delivering() as running:
        await bench.until_done(running)

    assert await bench.rows() == {f"m{number}": 1 for number in range(20) if number != 7}
    (letter,) = await bench.dead_letters()
    said = dict(letter.headers)
    assert (said["dlq-stage"], said["dlq-reason"]) == (b"sink", b"refused-by-database")
    assert (letter.key, letter.value) == (b"m7", encode_result(refused))
    assert b"m7" not in said["dlq-detail"]


async def test_revisions_of_one_batch_cost_one_row(kafka_bootstrap: str, topic_prefix: str, tmp_path: Path) -> None:
    """Coalescing: nine of ten revisions that come together never reach the database."""
    bench = Bench(kafka_bootstrap, topic_prefix, "sqlite", tmp_path)
    await bench.make_topics()
    await bench.publish([a_result("m", revision) for revision in range(1, 11)])
    written = ROWS.labels("written")._value.get()

    async with bench.delivering() as running:
        await bench.until_done(running)

    assert ROWS.labels("written")._value.get() - written == 1
    assert await bench.rows() == {"m": 10}


async def test_a_torn_line_is_cut_and_its_result_comes_again(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path
) -> None:
    """A crash in the middle of a line leaves no line that nobody can read."""
    bench = Bench(kafka_bootstrap, topic_prefix, "jsonl", tmp_path)
    await bench.make_topics()
    results = [a_result(f"m{number}") for number in range(20)]
    await bench.publish(results)
    path = tmp_path / "lines" / f"{bench.settings.results_topic}-0.jsonl"
    path.parent.mkdir()
    path.write_bytes(encode_result(results[0]) + b"\n" + encode_result(results[1])[:40])

    async with bench.delivering() as running:
        await bench.until_done(running)

    lines = path.read_bytes().splitlines(keepends=True)
    assert all(line.endswith(b"}\n") for line in lines)
    assert await bench.rows() == {f"m{number}": 1 for number in range(20)}


async def test_a_database_that_goes_away_is_waited_for(
    kafka_bootstrap: str, topic_prefix: str, postgres_server: LocalPostgres, tmp_path: Path
) -> None:
    """The sink stops, nothing is lost, and it goes on by itself once the database is back."""
    bench = Bench(kafka_bootstrap, topic_prefix, "postgres", tmp_path, postgres_dsn=postgres_server.dsn)
    await bench.make_topics()
    await bench.publish([a_result("before")])
    async with bench.delivering() as running:
        await bench.until_done(running)
        await asyncio.to_thread(postgres_server.kill)
        await bench.publish([a_result("meanwhile")])
        await asyncio.to_thread(postgres_server.restart)
        await bench.until_done(running)

    assert {"before", "meanwhile"} <= set(await bench.rows())


async def test_a_topic_that_does_not_exist_is_named_and_not_made(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Naming it to a broker could make it, with one partition."""
    bench = Bench(kafka_bootstrap, topic_prefix, "sqlite", tmp_path)

    with pytest.raises(UsageError, match=bench.settings.results_topic):
        await serve(bench.settings, "sqlite", create=True, stop=asyncio.Event())

    async with TopicAdmin(bench.options) as admin:
        assert bench.settings.results_topic not in await admin.existing(describe=())


def _connected(dsn: str) -> AbstractAsyncContextManager[asyncpg.Connection]:
    @contextlib.asynccontextmanager
    async def connected() -> AsyncIterator[asyncpg.Connection]:
        connection = await asyncpg.connect(dsn)
        try:
            yield connection
        finally:
            await connection.close()

    return connected()
