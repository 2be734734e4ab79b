"""kill -9 of the assembler in the middle of its work, again and again: each revision stands once, and is right."""

import random
import shutil
import signal
from pathlib import Path

from tests.assembling import Bench, Child, Condition, assert_exact, some_reports, until

KILLS = 3
LOSES_ITS_DISK = 1
MESSAGES = 9_000


async def test_killed_assemblers_lose_and_repeat_nothing(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Killed at any point of a transaction and started again, once without its state folder, it ends exact."""
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path / "state", commit_interval_ms=1)
    await bench.make_topics()
    reports = some_reports(MESSAGES)
    chance = random.Random(7)
    child = Child(bench, tmp_path / "log")
    share = len(reports) // KILLS + 1

    for kill in range(KILLS):
        await bench.publish(reports[kill * share : (kill + 1) * share])
        # Somewhere inside this round's records; transactions follow each other without a pause there.
        goal = await bench.passed() + chance.randrange(1, share)
        process = await child.start()
        await until(_has_passed(bench, goal))
        assert process.returncode is None, child.said()
        await child.end(signal.SIGKILL)
        await bench.forget_members()
        if kill == LOSES_ITS_DISK:
            shutil.rmtree(tmp_path / "state")
    await child.start()
    await until(_has_begun(child, KILLS + 1))
    await bench.until_done()

    assert await child.end(signal.SIGTERM) == 0, child.said()
    assert_exact(await bench.results(), reports)


def _has_passed(bench: Bench, goal: int) -> Condition:
    async def passed() -> bool:
        return await bench.passed() >= goal

    return passed


def _has_begun(child: Child, times: int) -> Condition:
    """Whether it has come so far, counting its earlier lives, that it hears signals."""

    async def begun() -> bool:
        return child.said().count('"assembles"') >= times

    return begun
