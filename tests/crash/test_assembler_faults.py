"""Brokers that die and members that freeze in the middle of the assembler's work: the results stay exact."""

import asyncio
import signal
from pathlib import Path

import pytest

from consumers.commands.ledgers import local_ledgers
from deploy.local.kafka import LocalKafka
from tests.assembling import Bench, Child, Condition, assert_exact, some_reports, until

MESSAGES = 9_000
SESSION_S = 10


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

    process = await frozen.start()
    await bench.publish(reports[:half])
    await until(_has_passed(bench, 1))
    process.send_signal(signal.SIGSTOP)
    await healthy.start()
    await bench.publish(reports[half:])
    await bench.until_done()
    process.send_signal(signal.SIGCONT)
    await until(_says(frozen, "partitions revoked"))
    await bench.publish(reports[:100])
    await bench.until_done()

    assert await frozen.end(signal.SIGTERM) == 0, frozen.said()
    assert await healthy.end(signal.SIGTERM) == 0, healthy.said()
    assert_exact(await bench.results(), reports)


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
