"""What Kafka and its client do that loses or repeats data, met on purpose: the results stay exact.

Each of these tests fails when the guard that it is about is taken out of the product (`python -m tests.guards`).
"""

import asyncio
import functools
import random
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import MessageSizeTooLargeError, ProducerFenced
from aiokafka.protocol.admin import DeleteGroupsRequest

from consumers.commands import assemble
from consumers.commands.ledgers import local_ledgers
from consumers.engine import kafka
from consumers.engine.cycle import Rules
from consumers.engine.partition import PartitionWorker
from consumers.engine.protocols import LedgerStore
from ingest.runtime.errors import FoundError
from ingest.runtime.kafka import TopicAdmin
from ingest.runtime.partitioner import partition_of
from tests.assembling import Bench, a_report, assert_exact, some_reports, until
from tests.hooks import (
    HeldStore,
    HookedProducer,
    Step,
    after_restores,
    at_time,
    connection_lost,
    hook_producers,
    watch_consumers,
)
from tests.oracle import Raw

LEAST_SESSION_MS = 6_000
"""The shortest session that brokers allow by default."""

LONGER_THAN_A_SESSION_MS = 8_000
SMALL_RESULT_BYTES_MAX = 1_500
SOON_S = 20.0


async def test_a_refused_batch_takes_its_whole_cycle_along(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path
) -> None:
    """A batch that brokers refuse is noticed before the commit, which would succeed without it; its record is found."""
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path, partitions=1)
    await bench.make_topics()
    reports = some_reports(30, repeats=False)
    noise = random.Random(1)
    huge = a_report("huge", extend="".join(chr(noise.randrange(0x4E00, 0x9F00)) for _ in range(1024)))

    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.publish(reports[:1])
        await bench.until_done(running)
        await _take_only(bench, bench.settings.results_topic, SMALL_RESULT_BYTES_MAX)
        await bench.publish([*reports[1:20], huge, *reports[20:]])
        await bench.until_done(running)

    letters = await bench.dead_letters()
    assert [(letter.key, dict(letter.headers)["dlq-reason"]) for letter in letters] == [(b"huge", b"refused-by-kafka")]
    assert_exact(await bench.results(), reports)


async def test_a_former_owner_commits_too_late(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read of the changelog stays true: before it is read, nobody can commit anything older any more."""
    hooks = hook_producers(monkeypatch)
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path, partitions=1)
    await bench.make_topics()
    reports = some_reports(60)
    former: list[HookedProducer] = []
    outcomes: list[type[BaseException] | None] = []

    async def lose_sight(producer: HookedProducer) -> None:
        producer.kept = True
        former.append(producer)
        await connection_lost(producer)

    async def commit_after_all() -> None:
        if former and not outcomes:
            try:
                await AIOKafkaProducer.commit_transaction(former[0])
            except ProducerFenced as error:
                outcomes.append(type(error))
            else:
                outcomes.append(None)

    hooks[Step.WHOLE] = at_time(2, lose_sight)
    after_restores(monkeypatch, commit_after_all)
    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.publish(reports[:30])
        await bench.until_done(running)
        await bench.publish(reports[30:])
        await until(_holds(lambda: bool(outcomes)), running)
        await bench.until_done(running)
    await former[0].release()

    assert outcomes == [ProducerFenced]
    assert_exact(await bench.results(), reports)


async def test_what_was_aborted_is_neither_read_nor_remembered(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reports of an aborted transaction bring no result, and an aborted cycle of our own leaves no memory."""
    hooks = hook_producers(monkeypatch)
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path, partitions=1)
    await bench.make_topics()
    reports = some_reports(30)
    ghost = AIOKafkaProducer(**bench.options, transactional_id=f"{topic_prefix}foreign")
    await ghost.start()
    await ghost.begin_transaction()
    await ghost.send_and_wait(bench.settings.reports_topic, key=b"ghost", value=_json_of("ghost"), partition=0)
    await ghost.abort_transaction()
    await ghost.stop()
    hooks[Step.WHOLE] = at_time(1, connection_lost)

    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.publish(reports)
        await bench.until_done(running)

    assert_exact(await bench.results(), reports)


async def test_a_long_restore_costs_no_membership_and_hands_nothing_out(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A partition that takes longer than a session to be ready stays ours, and its records wait until it is."""
    monkeypatch.setattr(kafka, "SESSION_TIMEOUT_MS", LEAST_SESSION_MS)
    joined = watch_consumers(monkeypatch)
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path, partitions=1)
    await bench.make_topics()
    reports = some_reports(60)
    # The group has an offset: a partition that is not paused would be read from there at once.
    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.publish(reports[:30])
        await bench.until_done(running)
    await bench.publish(reports[30:])
    asked, hold = threading.Event(), threading.Event()

    def opening() -> None:
        asked.set()
        hold.wait(timeout=60)

    def held(partitions: int, cluster: str) -> LedgerStore:
        return HeldStore(local_ledgers(bench.settings)(partitions, cluster), opening)

    try:
        async with bench.assembling(held) as running:
            await until(_holds(asked.is_set), running)
            place = TopicPartition(bench.settings.reports_topic, 0)
            handed_out = await joined[-1].getmany(place, timeout_ms=LONGER_THAN_A_SESSION_MS)
            members = await _members(bench)
            hold.set()
            await bench.until_done(running)
    finally:
        hold.set()

    assert handed_out == {}
    assert members == 1
    assert_exact(await bench.results(), reports)


class NoWorkerError(OSError):
    """A worker cannot be made just now."""


@pytest.mark.parametrize("fault", [NoWorkerError, ZeroDivisionError])
async def test_a_fault_in_a_rebalance_callback_leaves_no_partition_to_nobody(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: type[Exception]
) -> None:
    """The client logs what a callback raises and goes on; we join again, or end where it is a fault of ours."""
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path, partitions=2)
    await bench.make_topics()
    reports = some_reports(60)
    await bench.publish(reports)
    calls = Counter[int]()

    class Failing(PartitionWorker):
        def __init__(self, rules: Rules, *others: Any) -> None:
            calls[rules.partition] += 1
            if rules.partition == calls[1] == 1:
                raise fault("there is no worker for this partition")
            super().__init__(rules, *others)

    monkeypatch.setattr(assemble, "PartitionWorker", Failing)
    async with asyncio.timeout(SOON_S):
        if fault is NoWorkerError:
            async with bench.assembling(local_ledgers(bench.settings)) as running:
                await bench.until_done(running)
        else:
            with pytest.raises(ZeroDivisionError):
                async with bench.assembling(local_ledgers(bench.settings)) as running:
                    await asyncio.wait({running})

    assert calls[1] > 0
    if fault is NoWorkerError:
        assert_exact(await bench.results(), reports)


async def test_a_fenced_owner_leaves_the_group_before_it_writes_again(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the old assignment it starts no producer again: two owners would fence each other in turn."""
    joined = watch_consumers(monkeypatch)
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path, partitions=1)
    await bench.make_topics()
    reports = some_reports(60)

    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.publish(reports[:30])
        await bench.until_done(running)
        thief = AIOKafkaProducer(**bench.options, transactional_id=bench.transactional_id(0))
        await thief.start()
        await thief.stop()
        memberships = _memberships(joined)
        await bench.publish(reports[30:])
        await bench.until_done(running)

    assert (memberships, _memberships(joined)) == (1, 2)
    assert_exact(await bench.results(), reports)


async def test_a_large_backlog_starves_no_other_partition(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A partition is read for itself: small ones are done before the large one is, and nobody's records are dropped."""
    hooks = hook_producers(monkeypatch)
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path, partitions=4)
    await bench.make_topics()
    large = _messages_of(0, bench.partitions, 13_000)
    small = [report for partition in (1, 2, 3) for report in _messages_of(partition, bench.partitions, 20)]
    await bench.publish([*large, *small])
    order: list[str] = []

    async def note(producer: HookedProducer) -> None:
        order.append(producer.identity)

    hooks[Step.COMMITTED] = note
    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.until_done(running)

    end_of_large = len(order) - order[::-1].index(bench.transactional_id(0))
    assert {bench.transactional_id(partition) for partition in range(4)} == set(order[:end_of_large])
    assert_exact(await bench.results(), [*large, *small])


async def test_a_partition_that_went_to_another_member_is_let_go(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fetched ahead or under way, nothing of it is written by the former owner, who does not fence the new one."""
    hooks = hook_producers(monkeypatch)
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path / "one", commit_interval_ms=1)
    other = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path / "two", commit_interval_ms=1)
    await bench.make_topics()
    reports = some_reports(20_000)
    await bench.publish(reports)
    begun = asyncio.Event()

    async def note(_: HookedProducer) -> None:
        begun.set()

    hooks[Step.COMMITTED] = note
    with structlog.testing.capture_logs() as logs:
        async with bench.assembling(local_ledgers(bench.settings)) as first:
            await until(_holds(begun.is_set), first)
            async with other.assembling(local_ledgers(other.settings)) as second:
                await until(_holds(lambda: _says(logs, "partitions revoked")), second)
                await bench.publish(some_reports(300, first=20_000))
                await bench.until_done(second)

    assert not [line for line in logs if "taken over" in line["event"]]
    assert_exact(await bench.results(), [*reports, *some_reports(300, first=20_000)])


@pytest.mark.parametrize("fate", ["to the beginning", "deleted"])
async def test_offsets_of_the_group_move_nothing(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path, fate: str
) -> None:
    """Reset, or expired with the group, they do not count: the changelog says where the input goes on."""
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path, partitions=1)
    await bench.make_topics()
    reports = some_reports(60)
    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.publish(reports[:30])
        await bench.publish_raw([(0, b"unusable", b"not json")])
        await bench.until_done(running)

    if fate == "deleted":
        await _forget_group(bench)
    else:
        await _reset_offsets(bench, {0: 0})
    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.publish(reports[30:])
        await bench.until_done(running)

    assert [letter.key for letter in await bench.dead_letters()] == [b"unusable"]
    assert_exact(await bench.results(), reports)


async def test_offsets_reset_to_the_end_skip_nothing(kafka_bootstrap: str, topic_prefix: str, tmp_path: Path) -> None:
    """A group that claims to have read further than its memory stops with status 1; moved back, it goes on exactly."""
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path, partitions=1)
    await bench.make_topics()
    reports = some_reports(60)
    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.publish(reports[:30])
        await bench.until_done(running)
    passed = await bench.passed()
    await bench.publish(reports[30:])

    await _reset_offsets(bench, {0: passed + len(reports[30:])})
    with pytest.raises(FoundError, match="--accept-loss"):
        async with bench.assembling(local_ledgers(bench.settings)) as running:
            await asyncio.wait({running}, timeout=SOON_S)
    await _reset_offsets(bench, {0: passed})
    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.until_done(running)

    assert_exact(await bench.results(), reports)


async def test_reports_that_expire_unread_are_never_skipped_in_silence(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retention that overtakes a running assembler stops it with status 1 and the way out."""
    hooks = hook_producers(monkeypatch)
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path, partitions=1)
    await bench.make_topics()
    await bench.publish(some_reports(20_000))  # more than is fetched ahead

    async def expire(_: HookedProducer) -> None:
        await _delete_reports(bench)

    hooks[Step.WHOLE] = at_time(1, expire)
    with pytest.raises(FoundError, match=r"fell out of retention.*--accept-loss"):
        async with bench.assembling(local_ledgers(bench.settings)) as running:
            await asyncio.wait({running}, timeout=SOON_S)


def _holds(condition: Any) -> Any:
    async def holds() -> bool:
        return bool(condition())

    return holds


def _says(logs: Iterable[Mapping[str, Any]], event: str) -> bool:
    return any(line["event"] == event for line in logs)


def _memberships(joined: Iterable[Any]) -> int:
    return len(list(joined))


def _json_of(message_id: str) -> bytes:
    return b'{"smsMsgId":"%s","status":"DELIVRD","updateTime":"2026-11-23T10:00:00Z"}' % message_id.encode()


def _messages_of(partition: int, partitions: int, count: int) -> list[Raw]:
    """Reports of messages that belong to one partition."""
    found: list[Raw] = []
    number = 0
    while len(found) < count:
        message_id = f"message-{number:06}"
        if partition_of(message_id.encode(), partitions) == partition:
            found.append(a_report(message_id))
        number += 1
    return found


async def _take_only(bench: Bench, topic: str, bytes_max: int) -> None:
    """Make a topic refuse batches above a size, and wait until it does."""
    async with TopicAdmin(bench.options) as topics:
        configs = dict((await topics.existing(describe=[topic]))[topic].configs)
    kept = {name: configs[name] for name in ("cleanup.policy", "retention.ms", "min.insync.replicas")}
    admin = AIOKafkaAdminClient(**bench.options)
    await admin.start()
    try:
        smaller = {**kept, "max.message.bytes": str(bytes_max)}
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs=smaller)])
    finally:
        await admin.close()
    await until(functools.partial(_refuses, bench, topic, bytes_max + 1000))


async def _refuses(bench: Bench, topic: str, size: int) -> bool:
    """Whether a topic refuses a record of so many bytes; one that it takes is aborted."""
    probe = AIOKafkaProducer(**bench.options, transactional_id=f"{topic}.probe")
    await probe.start()
    try:
        await probe.begin_transaction()
        await probe.send_and_wait(topic, key=b"probe", value=bytes(size), partition=0)
    except MessageSizeTooLargeError:
        return True
    else:
        return False
    finally:
        await probe.abort_transaction()
        await probe.stop()


async def _delete_reports(bench: Bench) -> None:
    """Delete all records of the input, as its retention does in the end."""
    place = TopicPartition(bench.settings.reports_topic, 0)
    admin = AIOKafkaAdminClient(**bench.options)
    await admin.start()
    try:
        await admin.delete_records({place: RecordsToDelete(before_offset=-1)})
    finally:
        await admin.close()


async def _members(bench: Bench) -> int:
    """How many members the group has."""
    admin = AIOKafkaAdminClient(**bench.options)
    await admin.start()
    try:
        (answer,) = await admin.describe_consumer_groups([bench.settings.group_id])
    finally:
        await admin.close()
    return len(answer.groups[0][5])


async def _reset_offsets(bench: Bench, offsets: Mapping[int, int]) -> None:
    """Commit offsets for a group that nobody is a member of."""
    places = {TopicPartition(bench.settings.reports_topic, number): offset for number, offset in offsets.items()}
    consumer = AIOKafkaConsumer(**bench.options, group_id=bench.settings.group_id, enable_auto_commit=False)
    consumer.assign(list(places))
    await consumer.start()
    try:
        await consumer.commit(places)
    finally:
        await consumer.stop()


async def _forget_group(bench: Bench) -> None:
    """Delete the group with its offsets, as brokers do after a week without members."""
    admin = AIOKafkaAdminClient(**bench.options)
    await admin.start()
    try:
        coordinator = await admin.find_coordinator(bench.settings.group_id)
        answer = await admin._send_request_to_node(coordinator, DeleteGroupsRequest([bench.settings.group_id]))
    finally:
        await admin.close()
    assert [code for _, code in answer.results] == [0]
