"""The assembler against real brokers: topics of one test's own, reports in, results out.

What is read back is read the way a customer reads it: `read_committed`, from the beginning to the end.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.protocol.group import LeaveGroupRequest

from consumers.commands.assemble import MakeStore, serve
from consumers.engine.record import Record
from consumers.engine.snapshot import read_topic
from consumers.settings import AssembleSettings
from ingest.contract.topics import DEAD_LETTERS_PARTITIONS, changelog_topic, transactional_id, wanted_topics
from ingest.runtime.kafka import TopicAdmin, client_options
from ingest.runtime.partitioner import partition_of
from tests.oracle import Raw, last_results

PATIENCE_S = 60.0
LOOK_AGAIN_S = 0.05

Condition = Callable[[], Awaitable[bool]]


def a_report(message_id: str, sequence: int = 1, total: int = 1, status: str = "DELIVRD", **more: Any) -> Raw:
    """A usable report."""
    return {
        "smsMsgId": message_id,
        "total": total,
        "sequence": sequence,
        "status": status,
        "updateTime": f"2026-11-23T10:00:{sequence:02}Z",
        "to": "+8613500000000",
        **more,
    }


def some_reports(messages: int, *, first: int = 0, repeats: bool = True) -> list[Raw]:
    """Reports of so many messages of one to three segments, parts apart, some repeated, all of them complete."""
    rounds: list[list[Raw]] = [[], [], []]
    for number in range(first, first + messages):
        total = 1 + number % 3
        for sequence in range(1, total + 1):
            status = "DELIVRD" if number % 7 else "UNDELIV"
            rounds[sequence - 1].append(a_report(f"message-{number:06}", sequence, total, status))
    reports = [report for those in rounds for report in those]
    return reports + reports[::5] if repeats else reports


class Bench:
    """Topics of one test, and what is done with them."""

    def __init__(self, bootstrap: str, prefix: str, *, partitions: int = 2, **settings: Any) -> None:
        """Describe it; `make_topics` makes it.

        Args:
            bootstrap: servers.
            prefix: of every name.
            partitions: of reports, results and changelog.
            settings: of the assembler, over those that suit a test.
        """
        chosen: dict[str, Any] = {
            "kafka_bootstrap_servers": bootstrap,
            "reports_topic": f"{prefix}reports",
            "results_topic": f"{prefix}results",
            "dead_letters_topic": f"{prefix}dead",
            "group_id": f"{prefix}group",
            "topic_partitions": partitions,
            "admin_port": 0,
            "commit_interval_ms": 50,
        }
        self.settings = AssembleSettings(**(chosen | settings))
        self.partitions = partitions
        self.options = client_options(self.settings)
        self.changelog = changelog_topic(self.settings.group_id, self.settings.reports_topic)

    def transactional_id(self, partition: int) -> str:
        """The id under which a partition's owner writes."""
        return transactional_id(self.settings.group_id, self.settings.reports_topic, partition)

    async def make_topics(self) -> None:
        """Make all of them, the changelog included."""
        async with TopicAdmin(self.options) as admin:
            await admin.create(wanted_topics(self.settings.topic_needs()))

    async def remake_changelog(self) -> None:
        """Delete the changelog and make it again, empty."""
        admin = AIOKafkaAdminClient(**self.options)
        await admin.start()
        try:
            await admin.delete_topics([self.changelog])
        finally:
            await admin.close()

        async def gone() -> bool:
            async with TopicAdmin(self.options) as topics:
                return self.changelog not in await topics.existing(describe=())

        await until(gone)
        await self.make_topics()

    async def expire_changelog(self) -> None:
        """Delete all records of the changelog, as its retention does in the end."""
        places = [TopicPartition(self.changelog, number) for number in range(self.partitions)]
        consumer, admin = AIOKafkaConsumer(**self.options), AIOKafkaAdminClient(**self.options)
        await consumer.start()
        await admin.start()
        try:
            ends = await consumer.end_offsets(places)
            await admin.delete_records({place: RecordsToDelete(before_offset=ends[place]) for place in places})
        finally:
            await consumer.stop()
            await admin.close()

    async def publish(self, reports: Iterable[Raw], *, timestamp_ms: int | None = None) -> None:
        """Write reports as the forwarder does: value, key, partition by key; `timestamp_ms` in place of now."""
        await self.publish_raw(
            (
                (
                    partition_of(report["smsMsgId"].encode(), self.partitions),
                    report["smsMsgId"].encode(),
                    json.dumps(report).encode(),
                )
                for report in reports
            ),
            timestamp_ms=timestamp_ms,
        )

    async def publish_raw(
        self, records: Iterable[tuple[int, bytes | None, bytes | None]], *, timestamp_ms: int | None = None
    ) -> None:
        """Write (partition, key, value) as they are, in their order."""
        producer = AIOKafkaProducer(**self.options, acks="all", enable_idempotence=True)
        await producer.start()
        by_partition: dict[int, list[tuple[bytes | None, bytes | None]]] = defaultdict(list)
        for partition, key, value in records:
            by_partition[partition].append((key, value))
        try:
            for partition, those in by_partition.items():
                batch = producer.create_batch()
                for key, value in those:
                    if batch.append(key=key, value=value, timestamp=timestamp_ms) is None:
                        await (await producer.send_batch(batch, self.settings.reports_topic, partition=partition))
                        batch = producer.create_batch()
                        batch.append(key=key, value=value, timestamp=timestamp_ms)
                await (await producer.send_batch(batch, self.settings.reports_topic, partition=partition))
        finally:
            await producer.stop()

    async def forget_members(self) -> None:
        """Take members that are dead or frozen out of the group, as the broker does when their session has ended."""
        await forget_members(self.options, self.settings.group_id)

    @contextlib.asynccontextmanager
    async def assembling(
        self, make_store: MakeStore, *, accept_loss: bool = False, resume: asyncio.Event | None = None
    ) -> AsyncIterator["asyncio.Task[None]"]:
        """An assembler in this process, stopped as by SIGTERM at the end."""
        stop = asyncio.Event()
        running = asyncio.create_task(
            serve(self.settings, make_store, stop=stop, resume=resume or asyncio.Event(), accept_loss=accept_loss)
        )
        try:
            yield running
        finally:
            stop.set()
            await running

    async def read(self, topic: str, partitions: int | None = None) -> list[Record]:
        """Every committed record of a topic, each partition in order."""
        return [
            record
            async for records in read_topic(self.options, topic, partitions or self.partitions)
            for record in records
        ]

    async def dead_letters(self) -> list[Record]:
        """Every committed dead letter."""
        return await self.read(self.settings.dead_letters_topic, DEAD_LETTERS_PARTITIONS)

    async def results(self) -> list[dict[str, Any]]:
        """All results, decoded, partition by partition in order."""
        return [json.loads(record.value or b"") for record in await self.read(self.settings.results_topic)]

    async def heard(self) -> dict[str, list[tuple[Raw, int] | None]]:
        """The reports of every message as they stand in the input: in their order, each with its timestamp."""
        heard: dict[str, list[tuple[Raw, int] | None]] = defaultdict(list)
        for record in await self.read(self.settings.reports_topic):
            heard[(record.key or b"").decode()].append((json.loads(record.value or b""), record.timestamp))
        return heard

    async def revisions(self) -> dict[str, list[bytes]]:
        """The results of every message, byte for byte, in their order."""
        revisions: dict[str, list[bytes]] = defaultdict(list)
        for record in await self.read(self.settings.results_topic):
            revisions[(record.key or b"").decode()].append(record.value or b"")
        return revisions

    async def passed(self) -> int:
        """Offsets of the input that the group has passed."""
        return (await self._progress())[0]

    async def lag(self) -> int:
        """Offsets of the input that the group has not passed yet."""
        return (await self._progress())[1]

    async def _progress(self) -> tuple[int, int]:
        consumer = AIOKafkaConsumer(**self.options, group_id=self.settings.group_id, enable_auto_commit=False)
        places = [TopicPartition(self.settings.reports_topic, number) for number in range(self.partitions)]
        consumer.assign(places)
        await consumer.start()
        try:
            ends = await consumer.end_offsets(places)
            passed = sum([await consumer.committed(place) or 0 for place in places])
            return passed, sum(ends.values()) - passed
        finally:
            await consumer.stop()

    async def until_done(self, watched: "asyncio.Task[None] | None" = None) -> None:
        """Wait until the group has passed all of the input and what it wrote can be read."""

        async def done() -> bool:
            return await self.lag() == 0 and await self._settled()

        await until(done, watched)

    async def _settled(self) -> bool:
        """Whether no transaction is open: brokers commit the offset and each output partition one after the other."""
        places = [
            TopicPartition(topic, number)
            for topic, partitions in (
                (self.settings.results_topic, self.partitions),
                (self.settings.dead_letters_topic, DEAD_LETTERS_PARTITIONS),
                (self.changelog, self.partitions),
            )
            for number in range(partitions)
        ]
        ends: list[dict[TopicPartition, int]] = []
        for isolation in ("read_committed", "read_uncommitted"):
            consumer = AIOKafkaConsumer(**self.options, enable_auto_commit=False, isolation_level=isolation)
            consumer.assign(places)
            await consumer.start()
            try:
                ends.append(await consumer.end_offsets(places))
            finally:
                await consumer.stop()
        return ends[0] == ends[1]

    async def until_results(self, count: int, watched: "asyncio.Task[None] | None" = None) -> None:
        """Wait until so many results, all revisions, can be read."""

        async def there() -> bool:
            return len(await self.results()) >= count

        await until(there, watched)


async def forget_members(options: Mapping[str, Any], group: str) -> None:
    """Take all members out of a group: those that are dead or frozen stay in it until their session has ended.

    Args:
        options: to reach the brokers.
        group: whose members.
    """
    admin = AIOKafkaAdminClient(**options)
    await admin.start()
    try:
        coordinator = await admin.find_coordinator(group)
        for answer in await admin.describe_consumer_groups([group], coordinator):
            for member in answer.groups[0][5]:
                await admin._send_request(LeaveGroupRequest(group, member[0]), coordinator)
    finally:
        await admin.close()


async def until(condition: Condition, watched: "asyncio.Task[None] | None" = None) -> None:
    """Wait for an awaitable condition; fail when the assembler that is to bring it about ends."""
    async with asyncio.timeout(PATIENCE_S):
        while not await condition():
            if watched is not None and watched.done():
                watched.result()
                raise AssertionError("the assembler has ended")
            await asyncio.sleep(LOOK_AGAIN_S)


def last_of(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The last revision of every message, without what depends on order and time; fails if a revision repeats."""
    seen: dict[str, int] = defaultdict(int)
    last: dict[str, dict[str, Any]] = {}
    for result in results:
        message_id = result["smsMsgId"]
        assert result["revision"] == seen[message_id] + 1, (message_id, seen[message_id], result["revision"])
        seen[message_id] += 1
        free = {"schemaVersion", "revision", "reason", "firstReceivedAt", "lastReceivedAt"}
        last[message_id] = {name: value for name, value in result.items() if name not in free}
    return last


def written(results: Iterable[Raw]) -> list[bytes]:
    """Results as they stand in their topic (contract.md section 7): compact, unescaped."""
    return [json.dumps(result, ensure_ascii=False, separators=(",", ":")).encode() for result in results]


def assert_exact(results: Sequence[Mapping[str, Any]], reports: Iterable[Raw]) -> None:
    """Every message's last result is the oracle's, and its revisions are 1, 2, ... without gap or repeat."""
    assert last_of(results) == last_results(reports)


class Child:
    """`python -m consumers assemble` as a process of its own."""

    def __init__(self, bench: Bench, log: Path) -> None:
        """Describe it.

        Args:
            bench: whose settings it has.
            log: file for what it prints.
        """
        shown = bench.settings.model_dump(mode="json", exclude_none=True, include=bench.settings.model_fields_set)
        self._environ = {f"DLR_{name.upper()}": str(value) for name, value in shown.items()}
        self._log = log
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, *arguments: str) -> "asyncio.subprocess.Process":
        """Start it anew."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "consumers", "assemble", *arguments),
                env={**os.environ, **self._environ},
                stdout=log,
                stderr=log,
            )
        return self._process

    async def freeze(self) -> None:
        """Stop it where it stands (SIGSTOP); returns once it does, since a signal takes effect some time later."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        await until(self.stands)

    async def stands(self) -> bool:
        """Whether it has been stopped, by whomever, and not continued."""
        assert self._process is not None
        assert self._process.returncode is None, self.said()
        stat = await asyncio.to_thread(Path(f"/proc/{self._process.pid}/stat").read_text)
        return stat.rpartition(") ")[2].startswith("T")

    def thaw(self) -> None:
        """Let it go on (SIGCONT)."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    async def end(self, number: int) -> int:
        """Send a signal and wait for the end; the exit status."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(number)
        async with asyncio.timeout(PATIENCE_S):
            return await self._process.wait()

    def lines(self) -> list[dict[str, Any]]:
        """What it has logged as JSON."""
        return [json.loads(line) for line in self.said().splitlines() if line.startswith("{") and line.endswith("}")]

    def said(self) -> str:
        """All that it has printed."""
        return self._log.read_text()
