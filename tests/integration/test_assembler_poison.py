"""Records that nobody should have written: each costs itself and nothing else, and what nobody can judge waits."""

import asyncio
import contextlib
import json
import random
import signal
import sqlite3
from collections.abc import AsyncIterator, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from consumers import results
from consumers.commands.ledgers import local_ledgers
from consumers.commands.sink import serve as serve_sink
from consumers.engine import cycle, kafka_results
from consumers.engine.breaker import RUN_RECORDS
from consumers.engine.metrics import PAUSED
from consumers.engine.record import Record
from consumers.engine.snapshot import read_record
from consumers.settings import SinkSettings
from deploy.local.kafka import LocalKafka
from ingest.runtime.partitioner import partition_of
from tests.assembling import Bench, Child, Condition, a_report, assert_exact, some_reports, until
from tests.hooks import Step, at_time, connection_lost, hook_producers
from tests.poison import Raw, a_batch, damage, mend, produce

ODD = (b"\xff\xfe", b"of nobody")
"""A header whose name no client of ours can decode."""

SMALL_BYTES_MAX = 20_000


def a_record(report: Mapping[str, Any], *headers: tuple[bytes, bytes | None]) -> Raw:
    """A report as a record of a batch."""
    return Raw(report["smsMsgId"].encode(), json.dumps(report).encode(), headers)


@pytest.mark.parametrize("codec", ["none", "zstd"])
async def test_a_header_that_cannot_be_named_costs_no_report(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path, codec: str
) -> None:
    """A usable report counts all the same; an unusable one becomes a dead letter with the headers that have a name."""
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path, partitions=1)
    await bench.make_topics()
    reports = some_reports(300)
    third = len(reports) // 3
    odd = [a_report(f"odd-{number}") for number in range(20)]
    unusable = Raw(b"odd", b"no report", [(b"good", b"1"), ODD, (b"none", None)])
    mixed = [
        *(a_record(report) for report in reports[third : 2 * third]),
        unusable,
        *(a_record(report, ODD, (b"good", b"1")) for report in odd),
        *(a_record(report) for report in odd),
    ]
    await bench.publish(reports[:third])
    await produce(bench.options, bench.settings.reports_topic, 0, a_batch(mixed, codec=codec))
    await bench.publish(reports[2 * third :])

    after = await _two_lives(bench)

    (letter,) = await bench.dead_letters()
    assert (letter.key, letter.value) == (unusable.key, unusable.value)
    assert _own_headers(letter) == [("good", b"1"), ("none", None)]
    assert dict(letter.headers)["dlq-reason"] == b"not-json"
    assert dict(letter.headers)["dlq-offset"] == b"%d" % (2 * third)
    assert_exact(await bench.results(), [*reports, *odd, *after])


async def test_a_topic_full_of_such_headers_is_read_at_once(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Not one by one: what was fetched is handed out in whole cycles."""
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path, partitions=1)
    await bench.make_topics()
    reports = [a_report(f"odd-{number}") for number in range(6000)]
    for start in range(0, len(reports), 3000):
        batch = a_batch([a_record(report, ODD) for report in reports[start : start + 3000]], codec="zstd")
        await produce(bench.options, bench.settings.reports_topic, 0, batch)

    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.until_done(running)

    assert len(await bench.read(bench.changelog)) < 20
    assert_exact(await bench.results(), reports)


async def test_such_headers_stop_no_sink_and_no_command(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path
) -> None:
    """In the results and the dead letters, too, a record is read without the header that has no name."""
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path / "state")
    await bench.make_topics()
    reports = some_reports(60)
    await bench.publish(reports)
    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.until_done(running)
    topic = bench.settings.results_topic
    results = await bench.read(topic)
    again = [Raw(record.key, record.value, [ODD]) for record in results if record.partition == 0]
    await produce(bench.options, topic, 0, a_batch([*again, Raw(b"k", b"no result", [ODD, (b"good", b"1")])]))
    await produce(bench.options, topic, 0, a_batch([Raw(b"later", _renamed(results[0], "later"))]))
    rows = tmp_path / "rows.db"

    async with _delivering(bench, rows) as running:
        await until(_has_row(rows, "later"), running)

    assert _row_ids(rows) == {record.key.decode() for record in results if record.key} | {"later"}
    (letter,) = await bench.dead_letters()
    assert (letter.value, _own_headers(letter)) == (b"no result", [("good", b"1")])
    offset = await produce(bench.options, bench.settings.dead_letters_topic, 1, a_batch([again[0], Raw(b"k", b"v")]))
    assert len(await bench.dead_letters()) == 3
    found = await read_record(bench.options, bench.settings.dead_letters_topic, 1, offset)
    assert found is not None
    assert (found.key, found.headers) == (again[0].key, [])


async def test_a_sink_leaves_out_a_partition_that_is_damaged(
    kafka_node: LocalKafka, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it is passed over, the other partitions go on, it is shown, and goes on once it was mended."""
    monkeypatch.setattr(kafka_results, "DAMAGED_AGAIN_S", 0.5)
    bench = Bench(kafka_node.bootstrap, topic_prefix, state_dir=tmp_path / "state")
    await bench.make_topics()
    reports = some_reports(60)
    await bench.publish(reports)
    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.until_done(running)
    topic, results = bench.settings.results_topic, await bench.read(bench.settings.results_topic)
    await produce(bench.options, topic, 0, a_batch([Raw(b"spoilt", _renamed(results[0], "spoilt"))]))
    await produce(bench.options, topic, 0, a_batch([Raw(b"behind", _renamed(results[0], "behind"))]))
    damage(kafka_node.folder, topic, 0, b"spoilt")
    rows = tmp_path / "rows.db"

    with structlog.testing.capture_logs() as logs:
        async with _delivering(bench, rows) as running:
            await until(_paused(1), running)
            await produce(bench.options, topic, 1, a_batch([Raw(b"beside", _renamed(results[0], "beside"))]))
            await until(_has_row(rows, "beside"), running)
            assert not {"spoilt", "behind"} & _row_ids(rows)
            mend(kafka_node.folder, topic, 0, b"spoilt")
            await until(_has_row(rows, "behind"), running)

    (why, *_) = (line["why"] for line in logs if line["event"] == "a partition is left out")
    assert f"{topic}, partition 0" in why
    assert "checksum" in why
    assert {"spoilt", "behind", "beside"} <= _row_ids(rows)


async def test_a_damaged_batch_holds_its_partition(kafka_node: LocalKafka, topic_prefix: str, tmp_path: Path) -> None:
    """Nobody can read it, so nobody passes it: the others go on, and so does it once its disk was mended."""
    bench = Bench(kafka_node.bootstrap, topic_prefix, state_dir=tmp_path)
    await bench.make_topics()
    reports = some_reports(100)
    ours = [report for report in reports if partition_of(report["smsMsgId"].encode(), 2) == 1]
    spoilt = next(f"spoilt-{number}" for number in range(99) if partition_of(b"spoilt-%d" % number, 2) == 0)
    topic, resume = bench.settings.reports_topic, asyncio.Event()
    offset = await produce(bench.options, topic, 0, a_batch([a_record(a_report(spoilt))]))
    await bench.publish(reports)
    damage(kafka_node.folder, topic, 0, spoilt.encode())

    with structlog.testing.capture_logs() as logs:
        async with bench.assembling(local_ledgers(bench.settings), resume=resume) as running:
            await until(_paused(1), running)
            await bench.until_results(len({report["smsMsgId"] for report in ours}), running)
            assert_exact(await bench.results(), ours)
            resume.set()
            await until(_logged(logs, "partition is paused, SIGHUP resumes it", times=2), running)
            mend(kafka_node.folder, topic, 0, spoilt.encode())
            resume.set()
            await bench.until_done(running)

    why = _event(logs, "partition is paused, SIGHUP resumes it")["why"]
    assert f"offset {offset} of {topic}, partition 0" in why
    assert "checksum" in why
    assert await bench.dead_letters() == []
    assert_exact(await bench.results(), [*reports, a_report(spoilt)])


@pytest.mark.parametrize("lost", [None, Step.WHOLE, Step.ENDED], ids=["at once", "before commit", "after commit"])
async def test_a_record_that_our_code_fails_on_is_put_aside(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: Step | None
) -> None:
    """It alone, in the transaction that passes it, once: whether that one, or the process, comes to its end or not."""
    hooks = hook_producers(monkeypatch)
    _fail_on(monkeypatch, "poison")
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path)
    await bench.make_topics()
    reports = some_reports(300)
    half = len(reports) // 2
    await bench.publish([*reports[:half], a_report("poison"), *reports[half:]])
    if lost is not None:
        hooks[lost] = at_time(1, connection_lost)

    with structlog.testing.capture_logs() as logs:
        after = await _two_lives(bench)

    place = {"partition": partition_of(b"poison", 2), "offset": int(_place(await bench.dead_letters()))}
    assert {name: _event(logs, "a record fails")[name] for name in place} == place
    (letter,) = await bench.dead_letters()
    assert letter.key == b"poison"
    assert json.loads(letter.value or b"") == a_report("poison")
    assert dict(letter.headers)["dlq-reason"] == b"internal"
    assert_exact(await bench.results(), [*reports, *after])


async def test_what_no_topic_takes_holds_its_partition(kafka_bootstrap: str, topic_prefix: str, tmp_path: Path) -> None:
    """A dead letter that is refused is not lost: the others go on, and so does it once its topic was mended."""
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path)
    await bench.make_topics()
    reports = some_reports(200)
    huge = random.Random(1).randbytes(2 * SMALL_BYTES_MAX)
    resume = asyncio.Event()

    async with bench.assembling(local_ledgers(bench.settings), resume=resume) as running:
        await bench.publish([a_report("first")])
        await bench.until_done(running)
        await _take_only(bench, bench.settings.dead_letters_topic, SMALL_BYTES_MAX)
        await bench.publish_raw([(0, b"huge", huge)])
        await until(_paused(1), running)
        await bench.publish(reports)
        ours = [report for report in reports if partition_of(report["smsMsgId"].encode(), 2) == 1]
        await bench.until_results(1 + len({report["smsMsgId"] for report in ours}), running)
        assert_exact(await bench.results(), [a_report("first"), *ours])
        assert await bench.dead_letters() == []
        await _take_only(bench, bench.settings.dead_letters_topic, 2 << 20)
        resume.set()
        await bench.until_done(running)

    (letter,) = await bench.dead_letters()
    assert (letter.key, letter.value) == (b"huge", huge)
    assert_exact(await bench.results(), [a_report("first"), *reports])


async def test_the_breaker_holds_until_an_operator_resumes(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Not ready, counted, nothing let through, also by another process; the other partitions go on; SIGHUP resumes."""
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path / "state", log_format="json")
    await bench.make_topics()
    flood = [(0, b"%d" % number, b"unusable") for number in range(RUN_RECORDS)]
    beside = [report for report in some_reports(200) if partition_of(report["smsMsgId"].encode(), 2) == 1]
    await bench.publish_raw(flood)
    child = Child(bench, tmp_path / "log")

    for life, reports in enumerate((beside[:100], beside[100:]), start=1):
        process = await child.start()
        await until(_says(child, "partition is paused, SIGHUP resumes it", times=life))
        await bench.publish(reports)
        await until(_lags_by(bench, len(flood)))
        ready, metrics = await _asked(child)
        assert ready == HTTPStatus.SERVICE_UNAVAILABLE
        assert "dlrflow_paused_partitions 1.0" in metrics
        assert await bench.dead_letters() == []
        if life == 1:
            await child.end(signal.SIGTERM)
    process.send_signal(signal.SIGHUP)
    await bench.until_done()

    assert (await _asked(child))[0] == HTTPStatus.OK
    assert await child.end(signal.SIGTERM) == 0, child.said()
    assert len(await bench.dead_letters()) == len(flood)
    assert_exact(await bench.results(), beside)


async def test_keys_and_values_of_any_kind(kafka_bootstrap: str, topic_prefix: str, tmp_path: Path) -> None:
    """Each becomes a dead letter with the first reason that applies, whole, and none of them holds a report up."""
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path)
    await bench.make_topics()
    good = json.dumps(a_report("good")).encode()
    home = partition_of(b"good", 2)
    noise = random.Random(2)
    largest = b'{"smsMsgId":"good","status":"DELIVRD","other":"' + b"x" * ((2 << 20) - 500) + b'"}'
    million = b'{"smsMsgId":"good","status":"DELIVRD","other":"' + noise.randbytes(500_000).hex().encode() + b'"}'
    wrong: list[tuple[int, bytes | None, bytes | None, str]] = [
        (home, None, good, "key-mismatch"),
        (home, b"", good, "key-mismatch"),
        (home, b"other", good, "key-mismatch"),
        (home, b"\xff", good, "key-mismatch"),
        (home, noise.randbytes(100_000), good, "key-mismatch"),
        (1 - home, b"good", good, "wrong-partition"),
        (home, b"good", None, "not-json"),
        (home, b"good", b"", "not-json"),
        (home, b"good", b"[" * 200_000, "not-json"),
        (home, b"good", b"[" * 5000 + b"]" * 5000, "not-json"),
        (home, b"good", b"9" * 10_000, "not-an-object"),
        (home, b"good", b"[]", "not-an-object"),
        (home, b"good", noise.randbytes(900_000), "not-json"),
        (home, None, b"\0" * (1 << 20), "not-json"),
    ]
    reports = some_reports(30)

    async with bench.assembling(local_ledgers(bench.settings)) as running:
        for partition, key, value, _ in wrong:
            await produce(bench.options, bench.settings.reports_topic, partition, a_batch([Raw(key, value)]))
        for value in (million, largest):
            batch = a_batch([Raw(b"good", value)], codec="zstd")
            await produce(bench.options, bench.settings.reports_topic, home, batch)
        await bench.publish([*reports, a_report("good")])
        await bench.until_done(running)

    letters = {(letter.key, letter.value, dict(letter.headers)["dlq-reason"]) for letter in await bench.dead_letters()}
    named = {
        (b"good" if key is None and value == good else key, value, reason.encode()) for _, key, value, reason in wrong
    }
    assert letters == named
    assert_exact(await bench.results(), [*reports, json.loads(million), json.loads(largest), a_report("good")])


@contextlib.asynccontextmanager
async def _delivering(bench: Bench, rows: Path) -> AsyncIterator["asyncio.Task[None]"]:
    """A sink of a bench's results in this process."""
    settings = SinkSettings(
        kafka_bootstrap_servers=bench.settings.kafka_bootstrap_servers,
        results_topic=bench.settings.results_topic,
        dead_letters_topic=bench.settings.dead_letters_topic,
        sink_group_id=f"{bench.settings.group_id}.sink",
        sqlite_path=rows,
        admin_port=0,
    )
    stop = asyncio.Event()
    running = asyncio.create_task(serve_sink(settings, "sqlite", create=True, stop=stop))
    try:
        yield running
    finally:
        stop.set()
        await running


def _row_ids(rows: Path) -> set[str]:
    with contextlib.closing(sqlite3.connect(rows)) as connection, contextlib.suppress(sqlite3.OperationalError):
        return {row[0] for row in connection.execute("SELECT sms_msg_id FROM message_results")}
    return set()


def _has_row(rows: Path, message_id: str) -> Condition:
    async def there() -> bool:
        return message_id in await asyncio.to_thread(_row_ids, rows)

    return there


def _renamed(result: Record, message_id: str) -> bytes:
    return json.dumps(json.loads(result.value or b"") | {"smsMsgId": message_id}).encode()


def _own_headers(letter: Record) -> Sequence[tuple[str, bytes | None]]:
    return [(name, value) for name, value in letter.headers if not name.startswith("dlq-")]


def _place(letters: Sequence[Record]) -> bytes:
    return dict(letters[0].headers)["dlq-offset"] or b""


def _event(logs: Sequence[Any], event: str) -> Any:
    return next(line for line in logs if line["event"] == event)


def _fail_on(patch: pytest.MonkeyPatch, message_id: str) -> None:
    """Break the joining of reports for one message."""
    step = results.step

    def failing(state: Any, report: Any, *times: int) -> Any:
        if report.message_id == message_id:
            raise ZeroDivisionError(message_id)
        return step(state, report, *times)

    patch.setattr(cycle, "step", failing)


async def _take_only(bench: Bench, topic: str, message_bytes_max: int) -> None:
    admin = AIOKafkaAdminClient(**bench.options)
    await admin.start()
    try:
        configs = {"max.message.bytes": str(message_bytes_max)}
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs=configs)])
    finally:
        await admin.close()


def _paused(count: int) -> Condition:
    async def paused() -> bool:
        return [sample.value for metric in PAUSED.collect() for sample in metric.samples] == [count]

    return paused


def _logged(logs: Sequence[Any], event: str, *, times: int) -> Condition:
    async def logged() -> bool:
        return len([line for line in logs if line["event"] == event]) >= times

    return logged


def _lags_by(bench: Bench, count: int) -> Condition:
    async def lags() -> bool:
        return await bench.lag() == count

    return lags


def _says(child: Child, event: str, *, times: int = 1) -> Condition:
    async def says() -> bool:
        return len([line for line in child.lines() if line["event"] == event]) >= times

    return says


async def _two_lives(bench: Bench) -> list[dict[str, Any]]:
    """Assemble all there is, twice, the second time without anything of it; one more report each time, returned."""
    after = [a_report("first life"), a_report("second life")]
    for report in after:
        async with bench.assembling(local_ledgers(bench.settings)) as running:
            await bench.publish([report])
            await bench.until_done(running)
    return after


async def _asked(child: Child) -> tuple[int, str]:
    """What a process says of itself: status of `/readyz`, and `/metrics`."""
    port = [line["port"] for line in child.lines() if line["event"] == "admin listens"][-1]
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
        async with session.get("/readyz") as answer:
            ready = answer.status
        async with session.get("/metrics") as answer:
            return ready, await answer.text()
