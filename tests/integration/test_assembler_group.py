"""Members that come and go: what stays with its member is neither opened nor restored again."""

import asyncio
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer

from consumers.commands.assemble import MakeStore
from consumers.commands.ledgers import local_ledgers
from consumers.engine import kafka
from consumers.engine.protocols import Ledger, LedgerStore
from tests.assembling import Bench, Condition, assert_exact, some_reports, until

PARTITIONS = 4


class Counting:
    """A store that notes what it is asked to open."""

    def __init__(self, store: LedgerStore, opened: list[int]) -> None:
        self._store = store
        self._opened = opened
        self.close = store.close

    def open(self, partition: int) -> Ledger:
        """Open it, and note it."""
        self._opened.append(partition)
        return self._store.open(partition)


def counting(make: MakeStore, opened: list[int]) -> MakeStore:
    """The same stores, with a note of every partition that they open."""

    def made(partitions: int, cluster: str) -> LedgerStore:
        return Counting(make(partitions, cluster), opened)

    return made


async def test_a_partition_that_stays_is_not_opened_again(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path
) -> None:
    """A group gives everything up when a member joins or leaves; only what changed hands costs a restore."""
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path / "one", partitions=PARTITIONS)
    other = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path / "two", partitions=PARTITIONS)
    await bench.make_topics()
    reports = some_reports(300)
    third = len(reports) // 3
    stayed: list[int] = []
    moved: list[int] = []

    async with bench.assembling(counting(local_ledgers(bench.settings), stayed)) as running:
        await bench.publish(reports[:third])
        await bench.until_done(running)
        async with other.assembling(counting(local_ledgers(other.settings), moved)) as beside:
            await until(_opened(moved, PARTITIONS // 2), beside)
            await bench.publish(reports[third : 2 * third])
            await bench.until_done(running)
        await until(_opened(stayed, PARTITIONS + PARTITIONS // 2), running)
        await bench.publish(reports[2 * third :])
        await bench.until_done(running)

    assert sorted(stayed) == sorted([*range(PARTITIONS), *moved])
    assert len(moved) == PARTITIONS // 2
    assert_exact(await bench.results(), reports)


async def test_commits_of_several_partitions_overlap(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No commit waits for that of another partition: here each waits until all of them are under way."""
    all_committing = asyncio.Barrier(PARTITIONS)

    class Meeting(AIOKafkaProducer):  # type: ignore[misc]
        met = False

        async def commit_transaction(self) -> None:
            if not self.met:
                await all_committing.wait()
                self.met = True
            await super().commit_transaction()

    monkeypatch.setattr(kafka, "AIOKafkaProducer", Meeting)
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path, partitions=PARTITIONS)
    await bench.make_topics()
    reports = some_reports(100)
    await bench.publish(reports)

    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.until_done(running)

    assert_exact(await bench.results(), reports)


def _opened(opened: list[int], count: int) -> Condition:
    async def so_many() -> bool:
        return len(opened) >= count

    return so_many
