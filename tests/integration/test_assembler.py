"""The assembler with a real broker: what it promises while nothing worse happens than restarts and lost disks."""

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from consumers.commands.ledgers import local_ledgers
from ingest.runtime.errors import FoundError, UsageError
from ingest.runtime.kafka import TopicAdmin
from ingest.runtime.partitioner import partition_of
from tests.assembling import Bench, a_report, assert_exact, last_of, some_reports, until
from tests.fakes.ledgers import MemoryStore


async def test_results_equal_the_oracle(kafka_bootstrap: str, topic_prefix: str) -> None:
    """Segments in any order, repeats included, become one result per message, equal to what the contract says."""
    bench = Bench(kafka_bootstrap, topic_prefix)
    await bench.make_topics()
    reports = some_reports(300)
    await bench.publish(reports)
    store = MemoryStore()

    async with bench.assembling(lambda *_: store) as running:
        await bench.until_done(running)

    assert store.closed
    assert_exact(await bench.results(), reports)


async def test_ledgers_on_disk_serve_as_well(kafka_bootstrap: str, topic_prefix: str, tmp_path: Path) -> None:
    """The store that the product uses gives the same results."""
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path)
    await bench.make_topics()
    reports = some_reports(300)
    await bench.publish(reports)

    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.until_done(running)

    assert_exact(await bench.results(), reports)


@pytest.mark.parametrize("lose_disk", [False, True], ids=["state-kept", "state-lost"])
async def test_a_restart_goes_on_where_it_was(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path, *, lose_disk: bool
) -> None:
    """Parts that came before a restart count after it, from the local state or from the changelog alone."""
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path / "state")
    await bench.make_topics()
    reports = some_reports(200)
    half = len(reports) // 2
    await bench.publish(reports[:half])
    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.until_done(running)
    if lose_disk:
        shutil.rmtree(tmp_path / "state")
    await bench.publish(reports[half:])

    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.until_done(running)

    assert_exact(await bench.results(), reports)


async def test_late_reports_are_revisions(kafka_bootstrap: str, topic_prefix: str, tmp_path: Path) -> None:
    """A report that changes a result writes the next revision, one that changes nothing writes nothing."""
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path, partitions=1)
    await bench.make_topics()
    early, late = a_report("m", status="ACCEPTD"), a_report("m", status="DELIVRD")
    reports = [early, a_report("m", status="UNDELIV"), late, late, early]
    await bench.publish(reports)

    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.until_done(running)

    results = await bench.results()
    assert [(result["revision"], result["outcome"], result["reason"]) for result in results] == [
        (1, "failed", "complete"),
        (2, "delivered", "revised"),
    ]
    assert_exact(results, reports)


async def test_unusable_records_become_dead_letters(kafka_bootstrap: str, topic_prefix: str) -> None:
    """Each record that cannot be used stands in the dead letters with the first reason that applies, once."""
    bench = Bench(kafka_bootstrap, topic_prefix)
    await bench.make_topics()
    good = a_report("good")
    value, key = json.dumps(good).encode(), b"good"
    home = partition_of(key, 2)
    await bench.publish_raw(
        [
            (home, key, None),
            (home, key, b"{"),
            (home, key, b"[]"),
            (home, key, b"{}"),
            (home, key, b'{"smsMsgId":"good"}'),
            (home, b"other", value),
            (home, None, value),
            (1 - home, key, value),
            (home, None, None),
            (home, key, value),
        ]
    )
    store = MemoryStore()

    async with bench.assembling(lambda *_: store) as running:
        await bench.until_done(running)

    letters = sorted((dict(letter.headers) for letter in await bench.dead_letters()), key=_place)
    assert [letter["dlq-reason"].decode() for letter in letters if letter["dlq-partition"] == b"%d" % home] == [
        "not-json",
        "not-json",
        "not-an-object",
        "missing-id",
        "missing-status",
        "key-mismatch",
        "key-mismatch",
        "not-json",
    ]
    assert [letter["dlq-reason"] for letter in letters if letter["dlq-partition"] != b"%d" % home] == [
        b"wrong-partition"
    ]
    assert_exact(await bench.results(), [good])


async def test_timeouts_fire_on_a_quiet_topic(kafka_bootstrap: str, topic_prefix: str, tmp_path: Path) -> None:
    """A message whose parts stay away gets its result when the timeout has passed, once, also over a restart."""
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path, reassembly_timeout_s=2)
    await bench.make_topics()
    reports = [a_report(f"waiting-{number}", 1, 2) for number in range(50)]
    await bench.publish(reports)

    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.until_done(running)
        assert await bench.results() == []
    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.until_results(50, running)
        await bench.publish([a_report("waiting-0", 2, 2)])
        await bench.until_done(running)

    results = await bench.results()
    assert {result["reason"] for result in results if result["revision"] == 1} == {"timeout"}
    assert [result["reason"] for result in results if result["revision"] == 2] == ["revised"]
    assert_exact(results, [*reports, a_report("waiting-0", 2, 2)])


async def test_members_share_the_partitions(kafka_bootstrap: str, topic_prefix: str, tmp_path: Path) -> None:
    """Two assemblers divide the partitions, one can leave, and nothing is lost or repeated."""
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path / "one", partitions=4)
    other = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path / "two", partitions=4)
    await bench.make_topics()
    reports = some_reports(900)
    third = len(reports) // 3

    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.publish(reports[:third])
        async with other.assembling(local_ledgers(other.settings)) as beside:
            await bench.publish(reports[third : 2 * third])
            await bench.until_done(running)
            await until(lambda: _has_state(tmp_path / "two"), beside)
        await bench.publish(reports[2 * third :])
        await bench.until_done(running)

    assert_exact(await bench.results(), reports)


async def test_lost_memory_stops_the_assembler(kafka_bootstrap: str, topic_prefix: str, tmp_path: Path) -> None:
    """Without journal and changelog it stops with status 1, unless told to accept the loss."""
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path / "state")
    await bench.make_topics()
    await bench.publish(some_reports(20))
    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.until_done(running)
    shutil.rmtree(tmp_path / "state")
    await bench.remake_changelog()

    with pytest.raises(FoundError, match="--accept-loss"):
        async with bench.assembling(local_ledgers(bench.settings)) as running:
            await asyncio.wait({running}, timeout=30)
    before = len(await bench.results())

    async def remembered() -> bool:
        return len({record.partition for record in await bench.read(bench.changelog)}) == bench.partitions

    async with bench.assembling(local_ledgers(bench.settings), accept_loss=True) as running:
        await until(remembered, running)
    # Accepted once is accepted: without a record in between, the next start needs no word about it.
    more = some_reports(10, first=100)
    await bench.publish(more)
    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.until_done(running)

    assert last_of(await bench.results())
    assert len(await bench.results()) == before + 10


async def test_a_changelog_that_expired_costs_no_memory_that_the_disk_has(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path
) -> None:
    """The journal goes on where the changelog expired up to its end; without the journal it stops, with status 1."""
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path / "state")
    await bench.make_topics()
    reports = some_reports(60)
    await bench.publish(reports[:70])
    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.until_done(running)
    await bench.expire_changelog()

    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.publish(reports[70:])
        await bench.until_done(running)
    assert_exact(await bench.results(), reports)

    await bench.expire_changelog()
    shutil.rmtree(tmp_path / "state")
    with pytest.raises(FoundError, match="--accept-loss"):
        async with bench.assembling(local_ledgers(bench.settings)) as running:
            await asyncio.wait({running}, timeout=30)


async def test_a_missing_topic_is_named(kafka_bootstrap: str, topic_prefix: str) -> None:
    """It does not start, and makes no topic by asking for it."""
    bench = Bench(kafka_bootstrap, topic_prefix)

    with pytest.raises(UsageError, match=f"there is no topic {topic_prefix}reports"):
        async with bench.assembling(lambda *_: MemoryStore()) as running:
            await asyncio.wait({running}, timeout=30)

    async with TopicAdmin(bench.options) as admin:
        assert not [name for name in await admin.existing(describe=()) if name.startswith(topic_prefix)]


async def _has_state(folder: Path) -> bool:
    return await asyncio.to_thread(lambda: any(folder.rglob("journal-*")))


def _place(letter: dict[str, bytes]) -> tuple[int, int]:
    return int(letter["dlq-partition"]), int(letter["dlq-offset"])
