"""Brokers that call a transaction complete without having written its end everywhere: the results stay exact.

A coordinator skips the partitions that have no leader when it writes (KAFKA-20734). Here it is made to skip any: the
client does not tell it of them, and the broker is told not to mind. What then stands in their logs is the same.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Collection, Mapping
from pathlib import Path

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaConnectionError

from consumers.commands.ledgers import local_ledgers
from consumers.engine import transaction
from consumers.engine.endings import Endings, Last
from consumers.engine.metrics import PAUSED
from deploy.local.kafka import LocalKafka
from tests.assembling import Bench, assert_exact, some_reports, until
from tests.hooks import Hook, HookedProducer, Step, at_time, connection_lost, hook_producers
from tests.oracle import Raw

LENIENT = "transaction.partition.verification.enable"
DEAD_LETTERS = 3
SOON_S = 20.0


@pytest.fixture
async def bench(kafka_node: LocalKafka, topic_prefix: str, tmp_path: Path) -> AsyncIterator[Bench]:
    """An assembler's topics on a broker that takes records of partitions it was not told of."""
    bench = Bench(kafka_node.bootstrap, topic_prefix, state_dir=tmp_path, partitions=1)
    await bench.make_topics()
    await _configure(bench, {LENIENT: "false"})
    yield bench
    await _configure(bench, {})


@pytest.mark.parametrize(
    ("decided", "skipped"),
    [
        ("committed", "changelog"),
        ("committed", "results dead"),
        ("committed", "changelog results dead"),
        ("aborted", "changelog"),
        ("aborted", "changelog results dead"),
    ],
)
async def test_an_end_that_was_not_written_is_written_as_it_was_decided(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, decided: str, skipped: str
) -> None:
    """Whichever partitions were skipped, the cycle stands in all of them or in none, and happens once."""
    hooks = hook_producers(monkeypatch)
    reports = some_reports(60)
    half = len(reports) // 2
    gone: list[HookedProducer] = []
    seen: list[int] = []

    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await _publish(bench, reports[:half], unusable=1)
        await bench.until_done(running)
        hooks[Step.BEGUN] = at_time(1, _forgetting(bench, skipped))
        if decided == "committed":
            hooks[Step.COMMITTED] = at_time(1, _whole(connection_lost, seen))
        else:
            hooks[Step.WHOLE] = at_time(1, _whole(_crashing(gone), seen))
            _let_coordinators_know(bench, monkeypatch, skipped)
        await _publish(bench, reports[half:], unusable=2)
        await bench.until_done(running)

    for producer in gone:
        await producer.release()
    assert seen == [3]
    assert_exact(await bench.results(), reports)
    assert len(await bench.dead_letters()) == 3
    assert await _unended(bench) == {}


@pytest.mark.parametrize("skipped", ["results", "changelog results dead"])
async def test_an_end_that_is_cut_off_while_it_is_written_is_written_by_the_next(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, skipped: str
) -> None:
    """The process that writes it goes before it has committed: what it had begun is not aborted."""
    hooks = hook_producers(monkeypatch)
    reports = some_reports(60)
    half = len(reports) // 2
    inside = asyncio.Event()
    seen: list[int] = []

    async def stop_inside(producer: HookedProducer) -> None:
        async def added() -> bool:
            return bool(producer._txn_manager.txn_partitions)

        await until(added)
        inside.set()
        await asyncio.Event().wait()

    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await _publish(bench, reports[:half], unusable=1)
        await bench.until_done(running)
        hooks[Step.BEGUN] = at_time(1, _forgetting(bench, skipped))
        hooks[Step.COMMITTED] = at_time(1, _whole(connection_lost, seen))
        hooks[Step.WHOLE] = at_time(2, stop_inside)
        await _publish(bench, reports[half:], unusable=2)
        async with asyncio.timeout(SOON_S):
            await inside.wait()
    hooks.clear()
    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.until_done(running)

    assert seen == [3]
    assert_exact(await bench.results(), reports)
    assert len(await bench.dead_letters()) == 3


async def test_results_whose_end_was_not_written_are_seen_soon_though_nothing_follows(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Brokers have said that they are committed: whoever wrote them looks whether that is so."""
    hooks = hook_producers(monkeypatch)
    monkeypatch.setattr(transaction, "LOOK_EVERY_S", 0.1)
    reports = some_reports(20)
    hooks[Step.BEGUN] = at_time(1, _forgetting(bench, "results"))

    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await _publish(bench, reports, unusable=0)

        async def seen() -> bool:
            return len(await bench.results()) > 0

        await until(seen, running)
        await bench.until_done(running)

    assert_exact(await bench.results(), reports)


async def test_an_end_that_nobody_can_tell_is_left_to_an_operator(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the coordinator knows nothing of may have been committed before: the partition is held."""
    hooks = hook_producers(monkeypatch)
    gone: list[HookedProducer] = []
    paused = PAUSED._value.get()

    async with bench.assembling(local_ledgers(bench.settings)) as running:
        hooks[Step.BEGUN] = at_time(1, _forgetting(bench, "results"))
        hooks[Step.WHOLE] = at_time(1, _crashing(gone))
        await bench.publish(some_reports(10))

        async def held() -> bool:
            return bool(PAUSED._value.get() == paused + 1)

        await until(held, running)

    for producer in gone:
        await producer.release()
    assert await bench.results() == []


async def _publish(bench: Bench, reports: Collection[Raw], *, unusable: int) -> None:
    """Write reports and some records that are none, in one batch and so for one cycle."""
    usable = [(report["smsMsgId"].encode(), json.dumps(report).encode()) for report in reports]
    await bench.publish_raw([(0, key, value) for key, value in [(b"key", b"none")] * unusable + usable])


def _whole(hook: Hook, seen: list[int]) -> Hook:
    """A hook into a cycle of which is noted to how many topics it has written."""

    async def noted(producer: HookedProducer) -> None:
        seen.append(len(producer._sent))
        await hook(producer)

    return noted


def _let_coordinators_know(bench: Bench, patch: pytest.MonkeyPatch, skipped: str) -> None:
    """Let them name the skipped partitions as parts of a running transaction, as they do where they skip them."""
    last = Endings.last

    async def with_skipped(endings: Endings, identity: str) -> Last | None:
        told = await last(endings, identity)
        if told is None or told.state != "Ongoing":
            return told
        return told._replace(places=told.places | _places(bench, skipped))

    patch.setattr(Endings, "last", with_skipped)


def _forgetting(bench: Bench, skipped: str) -> Hook:
    """A producer that does not tell the coordinator of some partitions."""
    places = _places(bench, skipped)

    async def forget(producer: HookedProducer) -> None:
        producer._txn_manager.txn_partitions.update(places)

    return forget


def _places(bench: Bench, names: str) -> set[TopicPartition]:
    settings = bench.settings
    topics = {"changelog": bench.changelog, "results": settings.results_topic, "dead": settings.dead_letters_topic}
    return {TopicPartition(topics[name], number) for name in names.split() for number in range(DEAD_LETTERS)}


def _crashing(gone: list[HookedProducer]) -> Hook:
    """An owner that is gone before it commits, and does not abort either."""

    async def crash(producer: HookedProducer) -> None:
        producer.kept = True
        gone.append(producer)
        raise KafkaConnectionError("the process is gone")

    return crash


async def _unended(bench: Bench) -> Mapping[TopicPartition, int]:
    topics = [bench.changelog, bench.settings.results_topic]
    endings = Endings(bench.options, topics)
    try:
        last = await endings.last(bench.transactional_id(0))
        assert last is not None
        return await endings.missing(last.producer_id, [TopicPartition(topic, 0) for topic in topics])
    finally:
        await endings.close()


async def _configure(bench: Bench, configs: dict[str, str]) -> None:
    """Give the broker these dynamic settings and no other."""
    admin = AIOKafkaAdminClient(**bench.options)
    await admin.start()
    try:
        answers = await admin.alter_configs([ConfigResource(ConfigResourceType.BROKER, "1", configs=configs)])
        assert [code for answer in answers for code, *_ in answer.resources] == [0], answers
    finally:
        await admin.close()
