"""Members that freeze inside a transaction, are taken for dead, and come back: nothing of theirs becomes visible."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from consumers.commands.ledgers import local_ledgers
from tests.assembling import Bench, Child, Condition, assert_exact, some_reports, until
from tests.hooks import Step


class FrozenChild(Child):
    """An assembler that freezes itself at a step of a transaction, the so-many-th time that it comes there."""

    step = Step.WHOLE
    time = 2

    async def start(self, *arguments: str) -> "asyncio.subprocess.Process":
        """Start it anew."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "tests.crash.assembler_child", self.step, str(self.time), *arguments),
                env={**os.environ, **self._environ},
                stdout=log,
                stderr=log,
            )
        return self._process


@pytest.mark.parametrize("step", [Step.BEGUN, Step.WRITTEN, Step.WHOLE])
async def test_a_zombie_writes_nothing(kafka_bootstrap: str, topic_prefix: str, tmp_path: Path, step: Step) -> None:
    """Frozen inside a transaction until another member has done its work, it is fenced, and joins the group again."""
    bench = Bench(kafka_bootstrap, topic_prefix, partitions=1, state_dir=tmp_path / "one", log_format="json")
    healthy = Bench(kafka_bootstrap, topic_prefix, partitions=1, state_dir=tmp_path / "two")
    await bench.make_topics()
    reports = some_reports(300)
    third = len(reports) // 3
    zombie = FrozenChild(bench, tmp_path / "log")
    zombie.step = step

    await zombie.start()
    try:
        await bench.publish(reports[:third])
        await until(_has_passed(bench, third))
        await bench.publish(reports[third : 2 * third])
        await until(zombie.stands)
        await bench.forget_members()
        async with healthy.assembling(local_ledgers(healthy.settings)) as running:
            await bench.publish(reports[2 * third :])
            # Not until all can be read: without fencing the open transaction of the zombie hides it.
            await until(_has_no_lag(bench), running)
            zombie.thaw()
            await until(_said(zombie, "partitions assigned", 2), running)
            await bench.until_done(running)
        status = await zombie.end(signal.SIGTERM)
    finally:
        await zombie.end(signal.SIGKILL)

    assert status == 0, zombie.said()
    assert_exact(await bench.results(), reports)
    assert "a partition was taken over" in zombie.said()


async def test_a_zombie_that_wakes_before_its_first_producer_repeats_nothing(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Frozen while it takes a partition over, it may fence the present owner once; both find what has happened."""
    bench = Bench(kafka_bootstrap, topic_prefix, partitions=1, state_dir=tmp_path / "one", log_format="json")
    healthy = Bench(kafka_bootstrap, topic_prefix, partitions=1, state_dir=tmp_path / "two")
    await bench.make_topics()
    reports = some_reports(300)
    half = len(reports) // 2
    zombie = FrozenChild(bench, tmp_path / "log")
    zombie.step, zombie.time = Step.STARTING, 1

    await zombie.start()
    try:
        await bench.publish(reports[:half])
        await until(zombie.stands)
        await bench.forget_members()
        async with healthy.assembling(local_ledgers(healthy.settings)) as running:
            await bench.until_done(running)
            zombie.thaw()
            await until(_said(zombie, "partitions assigned", 2), running)
            await bench.publish(reports[half:])
            await bench.until_done(running)
        status = await zombie.end(signal.SIGTERM)
    finally:
        await zombie.end(signal.SIGKILL)

    assert status == 0, zombie.said()
    assert_exact(await bench.results(), reports)


def _has_passed(bench: Bench, goal: int) -> Condition:
    async def passed() -> bool:
        return await bench.passed() >= goal

    return passed


def _has_no_lag(bench: Bench) -> Condition:
    async def passed() -> bool:
        return await bench.lag() == 0

    return passed


def _said(child: Child, event: str, times: int) -> Condition:
    async def said() -> bool:
        return [line["event"] for line in child.lines()].count(event) >= times

    return said
