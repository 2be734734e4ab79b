"""Brokers that die and members that freeze in the middle of the assembler's work: the results stay exact."""

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from consumers.commands.ledgers import local_ledgers
from consumers.engine import transaction
from consumers.engine.metrics import DOUBTS
from deploy.local.kafka import LocalKafka
from tests.assembling import Bench, Child, Condition, assert_exact, some_reports, until
from tests.hooks import Hook, HookedProducer, Step, at_time, connection_lost, hook_producers

MESSAGES = 9_000
SHORT_S = 1.0

Stand = tuple[LocalKafka, Bench]


@pytest.fixture
async def stand(kafka_node: LocalKafka, topic_prefix: str, tmp_path: Path) -> Stand:
    """A broker that may be killed, with the topics of an assembler."""
    bench = Bench(kafka_node.bootstrap, topic_prefix, state_dir=tmp_path, partitions=1)
    await bench.make_topics()
    return kafka_node, bench


@pytest.mark.parametrize("stop", ["kill", "terminate"])
async def test_a_broker_that_goes_and_comes_back(
    kafka_node: LocalKafka, topic_prefix: str, tmp_path: Path, stop: str
) -> None:
    """Killed or stopped cleanly inside transactions, it finds every revision once when it is back."""
    bench = Bench(kafka_node.bootstrap, topic_prefix, state_dir=tmp_path, commit_interval_ms=1)
    await bench.make_topics()
    reports = some_reports(MESSAGES)
    await bench.publish(reports)

    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await until(_has_passed(bench, 1), running)
        await asyncio.to_thread(getattr(kafka_node, stop))
        await asyncio.to_thread(kafka_node.restart)
        await bench.until_done(running)

    assert_exact(await bench.results(), reports)


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> dict[Step, Hook]:
    """Hooks into the producers of the assembler, to be filled."""
    return hook_producers(monkeypatch)


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it to make the assembler give transactions up early."""

    def shorten_deadlines() -> None:
        monkeypatch.setattr(transaction, "SEND_TIMEOUT_S", SHORT_S)
        monkeypatch.setattr(transaction, "COMMIT_TIMEOUT_S", SHORT_S)

    return shorten_deadlines


@pytest.mark.parametrize("step", [Step.BEGUN, Step.WRITTEN, Step.WHOLE, Step.ENDING, Step.ENDED])
async def test_a_broker_killed_inside_a_transaction(
    stand: Stand, hooks: dict[Step, Hook], hurry: Callable[[], None], step: Step
) -> None:
    """Given up by us before the broker is back, its cycle happens once, be it committed, half done or not begun."""
    kafka_node, bench = stand
    killed = asyncio.Event()
    reports = some_reports(300)
    half = len(reports) // 2

    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.publish(reports[:half])
        await bench.until_done(running)
        hooks[step] = at_time(1, _killing(kafka_node, killed, answer_lost=step is Step.ENDED))
        hurry()
        doubts = _doubts()
        # The broker may be killed before it has acknowledged them.
        publishing = asyncio.create_task(bench.publish(reports[half:]))
        await until(_is_set(killed), running)
        await until(_has_doubted(doubts), running)
        await asyncio.to_thread(kafka_node.restart)
        await publishing
        await bench.until_done(running)

    assert_exact(await bench.results(), reports)


@pytest.mark.parametrize("step", [Step.ENDING, Step.ENDED])
async def test_a_broker_that_is_back_before_we_give_up(stand: Stand, hooks: dict[Step, Hook], step: Step) -> None:
    """Killed before or after it has committed, and asked once more by a client that still waits: the cycle is once."""
    kafka_node, bench = stand
    killed = asyncio.Event()
    reports = some_reports(300)
    half = len(reports) // 2

    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.publish(reports[:half])
        await bench.until_done(running)
        hooks[step] = at_time(1, _killing(kafka_node, killed, answer_lost=step is Step.ENDED))
        publishing = asyncio.create_task(bench.publish(reports[half:]))
        await until(_is_set(killed), running)
        await asyncio.to_thread(kafka_node.restart)
        await publishing
        await bench.until_done(running)

    assert_exact(await bench.results(), reports)


@pytest.mark.parametrize("step", [Step.WRITTEN, Step.ENDING, Step.ENDED])
async def test_another_broker_takes_over_inside_a_transaction(
    kafka_cluster: LocalKafka, topic_prefix: str, tmp_path: Path, hooks: dict[Step, Hook], step: Step
) -> None:
    """The coordinator of a transaction is killed and stays away: those that take its place find the cycle once."""
    bench = Bench(
        *(kafka_cluster.bootstrap, topic_prefix),
        state_dir=tmp_path,
        partitions=1,
        topic_replication=3,
        topic_min_insync=2,
    )
    await bench.make_topics()
    killed = asyncio.Event()
    reports = some_reports(300)
    half = len(reports) // 2

    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.publish(reports[:half])
        await bench.until_done(running)
        node = await _coordinator(bench)
        hooks[step] = at_time(1, _killing(kafka_cluster, killed, answer_lost=step is Step.ENDED, node=node))
        publishing = asyncio.create_task(bench.publish(reports[half:]))
        await until(_is_set(killed), running)
        await publishing
        await bench.until_done(running)

    assert not kafka_cluster.running(node)
    assert_exact(await bench.results(), reports)


async def test_a_broker_that_hangs_over_a_commit(
    stand: Stand, hooks: dict[Step, Hook], hurry: Callable[[], None]
) -> None:
    """A commit that is neither done nor refused is given up after a time of ours; done later, it still happens once."""
    kafka_node, bench = stand
    frozen = asyncio.Event()
    reports = some_reports(300)
    half = len(reports) // 2

    async def freeze(_: HookedProducer) -> None:
        kafka_node.freeze()
        frozen.set()

    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.publish(reports[:half])
        await bench.until_done(running)
        hooks[Step.ENDING] = at_time(1, freeze)
        hurry()
        doubts = _doubts()
        publishing = asyncio.create_task(bench.publish(reports[half:]))
        await until(_is_set(frozen), running)
        await until(_has_doubted(doubts), running)
        kafka_node.thaw()
        await publishing
        await bench.until_done(running)

    assert_exact(await bench.results(), reports)


async def test_it_ends_well_while_the_broker_is_away(kafka_node: LocalKafka, topic_prefix: str, tmp_path: Path) -> None:
    """SIGTERM in an outage: status 0 and no traceback, although nobody can be told that the member leaves."""
    bench = Bench(kafka_node.bootstrap, topic_prefix, state_dir=tmp_path / "state", log_format="json")
    await bench.make_topics()
    await bench.publish(some_reports(100))
    child = Child(bench, tmp_path / "log")
    await child.start()
    await bench.until_done()
    await asyncio.to_thread(kafka_node.kill)
    await until(_mentions(child, "Failed fetch messages"))

    status = await child.end(signal.SIGTERM)

    assert status == 0, child.said()
    assert "Traceback" not in child.said()


async def test_a_frozen_member_comes_back_as_a_zombie(kafka_bootstrap: str, topic_prefix: str, tmp_path: Path) -> None:
    """Stopped past its session while another takes over, it cannot write when it goes on, and joins again."""
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path / "one", commit_interval_ms=1, log_format="json")
    other = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path / "two", commit_interval_ms=1, log_format="json")
    await bench.make_topics()
    reports = some_reports(MESSAGES)
    half = len(reports) // 2
    frozen, healthy = Child(bench, tmp_path / "log-one"), Child(other, tmp_path / "log-two")

    await frozen.start()
    await bench.publish(reports[:half])
    await until(_has_passed(bench, 1))
    await frozen.freeze()
    await bench.forget_members()
    await healthy.start()
    await bench.publish(reports[half:])
    await bench.until_done()
    frozen.thaw()
    await until(_says(frozen, "partitions revoked"))
    await bench.publish(reports[:100])
    await bench.until_done()

    assert await frozen.end(signal.SIGTERM) == 0, frozen.said()
    assert await healthy.end(signal.SIGTERM) == 0, healthy.said()
    assert_exact(await bench.results(), reports)


async def _coordinator(bench: Bench) -> int:
    """The broker that holds the transactions of partition 0."""
    admin = AIOKafkaAdminClient(**bench.options)
    await admin.start()
    try:
        return int(await admin.find_coordinator(bench.transactional_id(0), coordinator_type=1))
    finally:
        await admin.close()


def _killing(kafka: LocalKafka, killed: asyncio.Event, *, answer_lost: bool, node: int = 1) -> Hook:
    async def kill(producer: HookedProducer) -> None:
        await asyncio.to_thread(kafka.kill, node)
        killed.set()
        if answer_lost:
            await connection_lost(producer)

    return kill


def _doubts() -> float:
    """How often a partition has been in doubt in this process."""
    samples = [sample for metric in DOUBTS.collect() for sample in metric.samples]
    return sum(sample.value for sample in samples if sample.name.endswith("_total"))


def _has_doubted(before: float) -> Condition:
    async def doubted() -> bool:
        return _doubts() > before

    return doubted


def _is_set(event: asyncio.Event) -> Condition:
    async def happened() -> bool:
        return event.is_set()

    return happened


def _has_passed(bench: Bench, goal: int) -> Condition:
    async def passed() -> bool:
        return await bench.passed() >= goal

    return passed


def _says(child: Child, event: str) -> Condition:
    async def says() -> bool:
        return any(line["event"] == event for line in child.lines())

    return says


def _mentions(child: Child, text: str) -> Condition:
    async def mentions() -> bool:
        return text in child.said()

    return mentions
