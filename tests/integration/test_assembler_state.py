"""What the assembler remembers, lost, late, damaged, foreign or out of reach: the results stay exact, or it says why.

The changelog is the authority; local state saves reading all of it. Everything here goes through the engine and a real
broker; the store by itself has its own tests.
"""

import asyncio
import errno
import json
import os
import shutil
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, RecordsToDelete

from consumers.commands.assemble import IDLE_CYCLES
from consumers.commands.ledgers import local_ledgers
from consumers.engine.metrics import RESTORED
from consumers.entry import Cursor, LedgerFormatError, Position
from consumers.ledger.changelog import VERSION, encode_cycle
from consumers.ledger.store import encode_manifest
from ingest.runtime.errors import FoundError, UsageError
from ingest.runtime.files import RealFileSystem
from ingest.runtime.logfile import HEADER_BYTES as FRAME_BYTES
from tests.assembling import PATIENCE_S, Bench, Child, Condition, a_report, assert_exact, some_reports, until
from tests.fakes.files import FaultyFileSystem
from tests.memories import SMALL, Memory, assert_same_memory, folder_of, memory, settle, small_ledgers
from tests.oracle import Raw

FAILS_WITHIN_S = 30.0
UNKNOWN = [f"nobody-{number}" for number in range(20)]


def in_parts(messages: int) -> tuple[list[Raw], list[Raw], list[Raw]]:
    """Reports of long messages, part by part; every seventh never becomes whole, all others are revised in the end."""
    names = [f"m{number}" if number % 7 else f"waiting-{number}" for number in range(messages)]
    first = [a_report(name, 1, 2) for name in names]
    second = [a_report(name, 2, 2) for name in names if not name.startswith("waiting")]
    third = [a_report(name, 2, 3, "UNDELIV", source="9") for name in names]
    return first, second, third


def ids(*reports: Sequence[Raw]) -> list[str]:
    """All messages of some reports, in a fixed order, and some that nobody has heard of."""
    return [*sorted({report["smsMsgId"] for those in reports for report in those}), *UNKNOWN]


@pytest.mark.parametrize("state", ["kept", "lost", "late"])
async def test_it_goes_on_from_any_local_state(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path, state: str
) -> None:
    """All of it, none of it, or as it was a while ago: what is missing is read from the changelog, and only that."""
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path / "state")
    await bench.make_topics()
    first, second, third = in_parts(200)
    await _assembled(bench, first)
    shutil.copytree(tmp_path / "state", tmp_path / "late")
    await _assembled(bench, second)
    if state != "kept":
        shutil.rmtree(tmp_path / "state")
    if state == "late":
        (tmp_path / "late").rename(tmp_path / "state")
    before = _restored()

    await _assembled(bench, third)

    read = _restored() - before
    assert read == {"kept": 0, "lost": len(first) + len(second), "late": len(second)}[state]
    await _assert_exact(bench, [*first, *second, *third])
    await assert_same_memory(bench, tmp_path / "alone", ids(first))


async def test_a_kill_leaves_what_the_changelog_makes_whole(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Killed between two cycles the store is behind and never ahead; brought up it is the changelog's, to the entry."""
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path / "state", commit_interval_ms=1, log_format="json")
    await bench.make_topics()
    first, second, third = in_parts(6000)
    child = Child(bench, tmp_path / "log")
    await bench.publish([*first, *second])

    process = await child.start()
    await until(_has_passed(bench, len(first) + len(second) // 2))
    assert process.returncode is None, child.said()
    await child.end(signal.SIGKILL)
    await settle(bench)
    names = ids(first)
    for partition in range(bench.partitions):
        left = await memory(bench, tmp_path / "state", partition, names, restored=False)
        alone = await memory(bench, tmp_path / "alone", partition, names)
        assert _cycle(left) <= _cycle(alone)
        assert left.next_changelog_offset <= alone.next_changelog_offset
        assert await memory(bench, tmp_path / "state", partition, names) == alone
    await _assembled(bench, third)

    await _assert_exact(bench, [*first, *second, *third])


async def test_a_changelog_that_begins_behind_the_local_state(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Its retention went past where this member stopped: what is left of it is all that counts, and it is said."""
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path / "state", partitions=1, late_window_s=1)
    other = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path / "other", partitions=1, late_window_s=1)
    await bench.make_topics()
    old, gone = some_reports(50), some_reports(50, first=100)
    first, second, third = in_parts(60)
    await _assembled(bench, old)
    await _assembled(other, gone)
    expired = await _changelog_end(bench)
    await _assembled(other, first)
    await asyncio.sleep(1.1)  # the late window itself
    await _assembled(other, second)
    await _expire_before(bench, expired)

    with structlog.testing.capture_logs() as logs:
        await _assembled(bench, third)

    (line,) = _events(logs, "local state is discarded and restored")
    assert line["changelog_start"] == expired > line["local_next"]
    await _assert_exact(bench, [*old, *gone, *first, *second, *third])
    await assert_same_memory(bench, tmp_path / "alone", ids(old, gone, first))


async def test_an_idle_partition_keeps_its_position_from_expiring(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path
) -> None:
    """It is written again before the retention takes it: a new disk then knows how far the input was read."""
    bench = Bench(
        kafka_bootstrap,
        topic_prefix,
        state_dir=tmp_path / "state",
        partitions=1,
        reports_retention_s=2,
        late_window_s=1,
    )
    await bench.make_topics()
    reports = some_reports(40)
    await _assembled(bench, reports)
    expired = await _changelog_end(bench)

    async def written_again() -> bool:
        return await _changelog_end(bench) > expired + 2 * IDLE_CYCLES

    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await until(written_again, running)
    await _expire_before(bench, expired)
    shutil.rmtree(tmp_path / "state")
    more = some_reports(40, first=100)
    await _assembled(bench, more)

    await _assert_exact(bench, [*reports, *more])


async def test_a_changelog_made_anew_under_a_running_assembler_stops_it(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path
) -> None:
    """What it remembers stands nowhere else any more: status 1 here and for whoever has no journal, until accepted."""
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path / "state", partitions=1)
    other = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path / "other", partitions=1)
    await bench.make_topics()
    reports, more, late = (some_reports(30, first=first) for first in (0, 100, 200))

    async def remade_in_use() -> None:
        async with bench.assembling(local_ledgers(bench.settings)) as running:
            await bench.publish(reports)
            await bench.until_done(running)
            await bench.remake_changelog()
            await bench.publish(more)
            await asyncio.wait({running}, timeout=PATIENCE_S)

    with pytest.raises(FoundError, match="made anew after cycle"):
        await remade_in_use()
    with pytest.raises(FoundError, match="made anew after cycle"):
        await _assembled(other, [])
    await _assembled(other, late, accept_loss=True)

    await _assert_exact(bench, [*reports, *more, *late])


async def test_a_changelog_that_was_cut_too_early_is_no_memory(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Status 1 for whoever has no journal, until the loss is accepted; then for nobody any more."""
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path / "state", partitions=1)
    other = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path / "other", partitions=1)
    third = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path / "third", partitions=1)
    await bench.make_topics()
    lost, kept, more, late = (some_reports(30, first=first) for first in (0, 100, 200, 300))
    await _assembled(bench, lost)
    cut = await _changelog_end(bench)
    await _assembled(bench, kept)
    await _expire_before(bench, cut)

    for _ in range(2):
        with pytest.raises(FoundError, match=r"begins at .* later than the late window.*--accept-loss") as found:
            await _assembled(other, [])
        assert found.value.status == 1
    await _assembled(other, more, accept_loss=True)
    await _assembled(third, [*late, *kept])

    await _assert_exact(bench, [*lost, *kept, *more, *late])


async def test_a_changelog_made_anew_takes_no_journal_along(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path
) -> None:
    """The loss is named, with status 1, and nothing is thrown away until it is accepted; then it is over."""
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path / "state", partitions=1)
    await bench.make_topics()
    reports = some_reports(60)
    await _assembled(bench, reports)
    await bench.remake_changelog()
    before = _files(folder_of(bench, 0))
    assert before

    for _ in range(2):
        with pytest.raises(FoundError, match=r"the memory of this group is lost.*--accept-loss") as found:
            await _assembled(bench, [])
        assert found.value.status == 1
        assert _files(folder_of(bench, 0)) == before
    more = some_reports(60, first=100)
    await _assembled(bench, more[:50], accept_loss=True)
    await _assembled(bench, more[50:])

    await _assert_exact(bench, [*reports, *more])
    await assert_same_memory(bench, tmp_path / "alone", ids(reports, more))


async def test_a_changelog_that_others_made_anew_replaces_the_journal(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Where another member has accepted the loss and gone on, the old journal is of no use any more."""
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path / "state", partitions=1)
    other = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path / "other", partitions=1)
    await bench.make_topics()
    reports = some_reports(60)
    for start in range(0, len(reports), 20):
        await _assembled(bench, reports[start : start + 20])
    await bench.remake_changelog()
    first, second, third = in_parts(50)
    await _assembled(other, first, accept_loss=True)

    await _assembled(bench, [*second, *third])

    await _assert_exact(bench, [*reports, *first, *second, *third])
    await assert_same_memory(bench, tmp_path / "alone", ids(reports, first))


SPOILT_BYTES = 100
Spoil = Callable[[Path], None]


def _flip(pattern: str, at: float, *, pick: int = -1, size: int = SPOILT_BYTES) -> Spoil:
    """Change some bytes of a file, at a share of its size."""

    def spoil(folder: Path) -> None:
        path = sorted(folder.glob(pattern))[pick]
        data = bytearray(path.read_bytes())
        start = int(len(data) * at)
        data[start : start + size] = bytes(byte ^ 0x40 for byte in data[start : start + size])
        path.write_bytes(data)

    return spoil


def _cut(pattern: str, at: float, *, pick: int = -1) -> Spoil:
    """Cut a file off, at a share of its size."""

    def spoil(folder: Path) -> None:
        path = sorted(folder.glob(pattern))[pick]
        os.truncate(path, int(path.stat().st_size * at))

    return spoil


def _remove(pattern: str, *, pick: int = -1) -> Spoil:
    """Remove a file."""

    def spoil(folder: Path) -> None:
        sorted(folder.glob(pattern))[pick].unlink()

    return spoil


def _write(name: str, text: str) -> Spoil:
    """Put something else into a file."""

    def spoil(folder: Path) -> None:
        (folder / name).write_text(text)

    return spoil


DAMAGED = {
    "last generation, early": _flip("journal-*.log", 0.1),
    "sealed generation, head": _flip("journal-*.log", 0, pick=1, size=FRAME_BYTES),
    "sealed generation, early": _flip("journal-*.log", 0.3, pick=-2),
    "sealed generation, late": _flip("journal-*.log", 0.8, pick=-2),
    "sealed generation, footer": _flip("journal-*.log", 0.97, pick=-2),
    "last generation, cut": _cut("journal-*.log", 0.5),
    "sealed generation, cut": _cut("journal-*.log", 0.5, pick=0),
    "sealed generation, empty": _cut("journal-*.log", 0, pick=0),
    "sealed generation, gone": _remove("journal-*.log", pick=1),
    "run, head": _flip("run-*.idx", 0.01, pick=0),
    "run, filter": _flip("run-*.idx", 0.2, pick=0),
    "run, digests": _flip("run-*.idx", 0.5, pick=0),
    "run, places": _flip("run-*.idx", 0.95, pick=0),
    "run, cut": _cut("run-*.idx", 0.5, pick=0),
    "run, gone": _remove("run-*.idx", pick=0),
    "manifest, rubbish": _write("manifest.json", "{"),
    "manifest, empty": _write("manifest.json", ""),
    "manifest, gone": _remove("manifest.json"),
}
QUIET = {"last generation, early", "last generation, cut", "manifest, gone"}
"""What a crash leaves, too, or what looks like it: it is mended without a word."""

UNASKED = {"sealed generation, head"}
"""What no answer rests on until deadlines are looked for there: nobody looks at it before."""


async def test_whatever_is_damaged_the_results_are_not(kafka_bootstrap: str, topic_prefix: str, tmp_path: Path) -> None:
    """Each partition with another file of its state spoilt in another way: found, said, and restored."""
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path / "state", partitions=len(DAMAGED))
    await bench.make_topics()
    first, second, third = in_parts(120 * len(DAMAGED))
    # Which bytes an answer rests on must not depend on how many cycles came to stand in one generation.
    make_store = small_ledgers(bench.settings, sizes=replace(SMALL, generation_ms=1))
    async with bench.assembling(make_store) as running:
        for reports in (first, second):
            for start in range(4):
                await bench.publish(reports[start::4])
                await bench.until_done(running)
    for partition, spoil in enumerate(DAMAGED.values()):
        spoil(folder_of(bench, partition))

    with structlog.testing.capture_logs() as logs:
        await _assembled(bench, third, make_store=make_store)

    wrong = [
        kind
        for partition, kind in enumerate(DAMAGED)
        if kind not in QUIET | UNASKED
        and not any(_is_about(line, folder_of(bench, partition), partition) for line in logs)
    ]
    assert not wrong
    await _assert_exact(bench, [*first, *second, *third])
    unasked = {partition for partition, kind in enumerate(DAMAGED) if kind in UNASKED}
    await assert_same_memory(bench, tmp_path / "alone", ids(first), damaged=unasked)


async def test_a_folder_that_another_process_holds(kafka_bootstrap: str, topic_prefix: str, tmp_path: Path) -> None:
    """Its state is restored into a folder of its own, which goes away again once nobody needs it."""
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path / "state")
    await bench.make_topics()
    first, second, third = in_parts(100)
    await _assembled(bench, first, make_store=small_ledgers(bench.settings))
    held = folder_of(bench, 0)
    lock = RealFileSystem().lock(held / "lock")
    assert lock is not None

    async with bench.assembling(small_ledgers(bench.settings)) as running:
        await bench.publish(second)
        await bench.until_done(running)
        own = [path.name for path in held.parent.iterdir()]
    lock.release()
    await _assembled(bench, third, make_store=small_ledgers(bench.settings))

    assert sorted(name.partition(".")[0] for name in own) == ["0", "0", "1"]
    assert sorted(path.name for path in held.parent.iterdir()) == ["0", "1"]
    await _assert_exact(bench, [*first, *second, *third])
    await assert_same_memory(bench, tmp_path / "alone", ids(first))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO], ids=["full", "read-only", "broken"])
async def test_a_disk_that_takes_nothing_costs_time_only(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path, code: int
) -> None:
    """Nothing is counted twice while it lasts, and the work goes on by itself when the disk does."""
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path / "state")
    await bench.make_topics()
    first, second, third = in_parts(150)
    disk = FaultyFileSystem(RealFileSystem())

    def fail(call: str, path: Path) -> None:
        if call in {"create", "pwrite", "allocate", "truncate", "sync", "rename", "mkdir", "unlink"}:
            raise OSError(code, os.strerror(code), str(path))

    with structlog.testing.capture_logs() as logs:

        async def doubted() -> bool:
            return len(_events(logs, "in doubt, reading the changelog again")) >= 4

        async with bench.assembling(small_ledgers(bench.settings, fs=disk)) as running:
            await bench.publish(first)
            await bench.until_done(running)
            disk.plan = fail
            await bench.publish(second)
            await until(doubted, running)
            disk.plan = None
            await bench.publish(third)
            await bench.until_done(running)

    await _assert_exact(bench, [*first, *second, *third])
    await assert_same_memory(bench, tmp_path / "alone", ids(first))


async def test_another_number_of_partitions_is_refused(kafka_bootstrap: str, topic_prefix: str, tmp_path: Path) -> None:
    """First for the changelog, then for the state folder: status 2, and the way out; no result comes of it."""
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path / "state")
    await bench.make_topics()
    reports = some_reports(50)
    await _assembled(bench, reports)
    more = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path / "state", partitions=3)
    await _admin(bench, lambda admin: admin.create_partitions({bench.settings.reports_topic: NewPartitions(3)}))

    with pytest.raises(UsageError, match=r"changelog has 2 partitions and .* has 3.*DLR_GROUP_ID") as found:
        await _assembled(more, [])
    assert found.value.status == 2
    before = _files(folder_of(bench, 0))
    await more.remake_changelog()
    with pytest.raises(UsageError, match=r"was made for 2 partitions.*has 3 now.*DLR_GROUP_ID"):
        await _assembled(more, [])

    assert _files(folder_of(bench, 0)) == before
    await _assert_exact(bench, reports)


async def test_a_newer_format_ends_it(kafka_bootstrap: str, topic_prefix: str, tmp_path: Path) -> None:
    """In the state folder as in the changelog: status 2, both numbers named, and nothing is thrown away."""
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path / "state", partitions=1, log_format="json")
    await bench.make_topics()
    reports = some_reports(50)
    await _assembled(bench, reports)
    folder = folder_of(bench, 0)
    manifest = folder / "manifest.json"
    told = manifest.read_bytes()
    newer = {name: value for name, value in json.loads(told).items() if name != "crc32c"} | {"format": 99}
    manifest.write_bytes(encode_manifest(newer))
    before = _files(folder)

    with pytest.raises(LedgerFormatError, match=r"has format 99.*reads up to 1.*go back") as found:
        await _assembled(bench, [])
    assert found.value.status == 2
    assert _files(folder) == before
    manifest.write_bytes(told)
    await _write_newer_cycle(bench)
    before = _files(folder)
    child = Child(bench, tmp_path / "log")
    process = await child.start()

    assert await asyncio.wait_for(process.wait(), 60) == 2, child.said()
    assert f"format {VERSION + 1}, this release reads up to {VERSION}: go back to the newer release" in child.said()
    assert "Traceback" not in child.said()
    assert _files(folder) == before
    await _assert_exact(bench, reports)


async def _assembled(
    bench: Bench, reports: Sequence[Raw], *, make_store: Any = None, accept_loss: bool = False
) -> None:
    """Publish reports and assemble all there is, from a clean start to a clean end; without reports until it fails."""
    make_store = make_store or local_ledgers(bench.settings)
    async with bench.assembling(make_store, accept_loss=accept_loss) as running:
        if reports:
            await bench.publish(reports)
            await bench.until_done(running)
        else:
            await asyncio.wait({running}, timeout=FAILS_WITHIN_S)


async def _assert_exact(bench: Bench, reports: Sequence[Raw]) -> None:
    """Every message that became whole has its results; those that wait have none."""
    assert_exact(await bench.results(), [one for one in reports if not one["smsMsgId"].startswith("waiting")])


def _restored() -> float:
    return sum(sample.value for metric in RESTORED.collect() for sample in metric.samples if "total" in sample.name)


def _has_passed(bench: Bench, goal: int) -> Condition:
    async def passed() -> bool:
        return await bench.passed() >= goal

    return passed


def _cycle(found: Memory) -> int:
    return found.position.cycle if found.position else 0


def _events(logs: Sequence[Any], event: str) -> list[Any]:
    return [line for line in logs if line["event"] == event]


def _is_about(line: Any, folder: Path, partition: int) -> bool:
    """Whether a warning names that folder, or that partition as one whose state was damaged."""
    damaged = "LedgerDamagedError" in str(line.get("error")) and line.get("partition") == partition
    return line["log_level"] == "warning" and (damaged or str(line.get("folder")) == str(folder))


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lock"}


async def _changelog_end(bench: Bench) -> int:
    place = TopicPartition(bench.changelog, 0)
    consumer = AIOKafkaConsumer(**bench.options)
    await consumer.start()
    try:
        return int((await consumer.end_offsets([place]))[place])
    finally:
        await consumer.stop()


async def _expire_before(bench: Bench, offset: int) -> None:
    """Delete the beginning of the changelog, as its retention does."""
    place = TopicPartition(bench.changelog, 0)
    await _admin(bench, lambda admin: admin.delete_records({place: RecordsToDelete(before_offset=offset)}))


async def _admin(bench: Bench, act: Callable[[AIOKafkaAdminClient], Awaitable[object]]) -> None:
    admin = AIOKafkaAdminClient(**bench.options)
    await admin.start()
    try:
        await act(admin)
    finally:
        await admin.close()


async def _write_newer_cycle(bench: Bench) -> None:
    """Write a cycle in the next format of the changelog."""
    (record,) = encode_cycle([], Position(1000, 1000, 0, Cursor()))
    newer = record[:4] + (VERSION + 1).to_bytes(2, "little") + record[6:]
    producer = AIOKafkaProducer(**bench.options)
    await producer.start()
    try:
        await producer.send_and_wait(bench.changelog, newer, partition=0)
    finally:
        await producer.stop()
