"""Transactions that fail, or whose outcome nobody knows: the changelog decides, and the results stay exact."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaConnectionError, MessageSizeTooLargeError

from consumers.commands.ledgers import local_ledgers
from consumers.engine import deciding, kafka
from tests.assembling import Bench, a_report, assert_exact, some_reports, until
from tests.oracle import Raw


class FaultyProducer(AIOKafkaProducer):  # type: ignore[misc]
    """Fails at the calls that a test names, each counted over all producers of the test."""

    calls: ClassVar[dict[str, int]] = {}
    faults: ClassVar[dict[str, set[int]]] = {}

    def _strikes(self, where: str) -> bool:
        self.calls[where] = self.calls.get(where, 0) + 1
        return self.calls[where] in self.faults.get(where, ())

    async def commit_transaction(self) -> None:  # noqa: D102
        if self._strikes("lost before commit"):
            raise KafkaConnectionError("the connection broke before the commit was sent")
        await super().commit_transaction()
        if self._strikes("lost after commit"):
            raise KafkaConnectionError("the connection broke before the answer came")

    async def send_offsets_to_transaction(self, offsets: Any, group_id: str) -> None:  # noqa: D102
        if self._strikes("lost before offsets"):
            raise KafkaConnectionError("the connection broke before the offsets were sent")
        await super().send_offsets_to_transaction(offsets, group_id)

    async def send_batch(self, batch: Any, topic: str, *, partition: int) -> Any:  # noqa: D102
        if self._strikes("batch fails"):
            failed = self._loop.create_future()
            failed.set_exception(KafkaConnectionError("the batch was not written"))
            return failed
        return await super().send_batch(batch, topic, partition=partition)

    async def start(self) -> None:  # noqa: D102
        if self._strikes("start fails"):
            raise KafkaConnectionError("no broker answers")
        await super().start()


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FaultyProducer]]:
    """Make the assembler use producers that fail where the test says."""
    monkeypatch.setattr(kafka, "AIOKafkaProducer", FaultyProducer)
    monkeypatch.setattr(FaultyProducer, "calls", {})
    monkeypatch.setattr(FaultyProducer, "faults", {})
    return FaultyProducer


@pytest.mark.parametrize(
    "fault", ["lost before commit", "lost after commit", "lost before offsets", "batch fails", "start fails"]
)
async def test_a_doubtful_cycle_happens_once(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path, faulty: type[FaultyProducer], fault: str
) -> None:
    """Wherever a transaction breaks off, its cycle is in the results once: before or after the doubt."""
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path)
    await bench.make_topics()
    reports = some_reports(600)
    faulty.faults[fault] = {1, 2, 4, 7}

    async with bench.assembling(local_ledgers(bench.settings)) as running:
        for start in range(0, len(reports), 150):
            await bench.publish(reports[start : start + 150])
            await bench.until_done(running)

    assert faulty.calls[fault] > 4
    assert_exact(await bench.results(), reports)


@pytest.mark.parametrize("fault", ["lost before commit", "lost after commit", "batch fails"])
async def test_a_doubt_in_a_backlog_takes_along_what_was_prepared_on_it(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path, faulty: type[FaultyProducer], fault: str
) -> None:
    """Cycles follow each other without a pause and build on each other: none outlives one before it that failed."""
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path, partitions=1)
    await bench.make_topics()
    reports = _a_backlog()
    await bench.publish(reports)
    faulty.faults[fault] = {1, 3, 4, 8}

    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.until_done(running)

    assert faulty.calls[fault] > 4
    assert_exact(await bench.results(), reports)


async def test_a_backlog_is_joined_over_cycles_that_overlap(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path
) -> None:
    """A cycle that is prepared while the last one commits goes on from what that one has written."""
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path, partitions=1)
    await bench.make_topics()
    reports = _a_backlog()
    await bench.publish(reports)

    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.until_done(running)

    assert_exact(await bench.results(), reports)


async def test_records_in_hand_are_not_taken_twice(
    kafka_bootstrap: str,
    topic_prefix: str,
    tmp_path: Path,
    faulty: type[FaultyProducer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those that a cycle left for the next one are read again after a doubt, and so must be forgotten before."""
    monkeypatch.setattr(deciding, "CHUNK_RECORDS", 20)
    monkeypatch.setattr(deciding, "CYCLE_BYTES_MAX", 100)
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path, partitions=1)
    await bench.make_topics()
    keys = [b"%03d" % number for number in range(200)]
    await bench.publish_raw((0, key, b"not json") for key in keys)
    faulty.faults["lost before commit"] = {2, 4}

    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.until_done(running)

    assert faulty.calls["lost before commit"] > 4
    assert [letter.key for letter in sorted(await bench.dead_letters(), key=_offset)] == keys


async def test_a_doubtful_timeout_happens_once(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path, faulty: type[FaultyProducer]
) -> None:
    """A cycle of timeouts alone has the same authority: the changelog."""
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path, partitions=1, reassembly_timeout_s=1)
    await bench.make_topics()
    reports = [a_report(f"waiting-{number}", 1, 2) for number in range(20)]
    faulty.faults["lost after commit"] = {2}

    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.publish(reports)
        await bench.until_results(20, running)
        await until(_struck(faulty, 1))
        await bench.publish([a_report("another")])
        await bench.until_done(running)

    assert_exact(await bench.results(), [*reports, a_report("another")])


async def test_a_doubtful_dead_letter_happens_once(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path, faulty: type[FaultyProducer]
) -> None:
    """A cycle of dead letters alone, too."""
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path, partitions=1)
    await bench.make_topics()
    faulty.faults["lost after commit"] = {1}
    faulty.faults["lost before commit"] = {2}

    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.publish_raw([(0, b"a", b"not json"), (0, b"b", None)])
        await bench.until_done(running)
        await bench.publish_raw([(0, b"c", b"neither")])
        await bench.until_done(running)

    assert [letter.key for letter in sorted(await bench.dead_letters(), key=_offset)] == [b"a", b"b", b"c"]


async def test_a_fenced_member_joins_again(kafka_bootstrap: str, topic_prefix: str, tmp_path: Path) -> None:
    """When somebody takes a transactional id over, the member leaves the group, comes back, and stays exact."""
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path)
    await bench.make_topics()
    reports = some_reports(300)
    half = len(reports) // 2

    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.publish(reports[:half])
        await bench.until_done(running)
        for partition in range(2):
            thief = AIOKafkaProducer(**bench.options, transactional_id=bench.transactional_id(partition))
            await thief.start()
            await thief.stop()
        await bench.publish(reports[half:])
        await bench.until_done(running)

    assert_exact(await bench.results(), reports)


async def test_a_refused_result_becomes_a_dead_letter(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record whose result no broker takes is found among the others and put aside; they are not held up."""
    monkeypatch.setattr(kafka, "AIOKafkaProducer", PickyProducer)
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path, partitions=1)
    await bench.make_topics()
    reports = some_reports(100, repeats=False)
    huge = a_report("huge")

    await bench.publish([*reports[:77], huge, *reports[77:]])
    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.until_done(running)

    letters = await bench.dead_letters()
    assert [(letter.key, dict(letter.headers)["dlq-reason"]) for letter in letters] == [(b"huge", b"refused-by-kafka")]
    assert_exact(await bench.results(), reports)


class PickyProducer(AIOKafkaProducer):  # type: ignore[misc]
    """Refuses batches of results in which a message `huge` stands."""

    def create_batch(self) -> Any:  # noqa: D102
        batch = super().create_batch()
        append = batch.append

        def noting(**record: Any) -> Any:
            batch.keys = {*getattr(batch, "keys", ()), record["key"]}
            return append(**record)

        batch.append = noting
        return batch

    async def send_batch(self, batch: Any, topic: str, *, partition: int) -> Any:  # noqa: D102
        if topic.endswith("results") and b"huge" in batch.keys:
            raise MessageSizeTooLargeError
        return await super().send_batch(batch, topic, partition=partition)


def _a_backlog() -> list[Raw]:
    """More than a few cycles, in which parts of one message stand in one cycle and in the next."""
    return [report for first in range(0, 10_000, 2_000) for report in some_reports(2_000, first=first)]


def _struck(faulty: type[FaultyProducer], times: int) -> Any:
    async def struck() -> bool:
        return faulty.calls.get("lost after commit", 0) > times

    return struck


def _offset(letter: Any) -> int:
    return int(dict(letter.headers)["dlq-offset"])
