"""When deadlines count: only while everything that stands in the partition has been read."""

import asyncio
import json
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer

from consumers.commands.ledgers import local_ledgers
from consumers.engine.breaker import RUN_RECORDS
from consumers.engine.metrics import PAUSED
from tests.assembling import Bench, Condition, a_report, assert_exact, some_reports, until

TIMEOUT_S = 1
LONGER_THAN_THE_TIMEOUT_S = 2.5


async def test_control_records_at_the_end_do_not_hold_up_timeouts(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path
) -> None:
    """A partition that ends in a transaction marker is caught up."""
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path, partitions=1, reassembly_timeout_s=TIMEOUT_S)
    await bench.make_topics()
    report = a_report("waiting", 1, 2)
    producer = await _transaction(bench)
    await _send(producer, bench, report)
    await producer.commit_transaction()

    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.until_results(1, running)
    await producer.stop()

    assert_exact(await bench.results(), [report])


async def test_records_behind_an_open_transaction_hold_up_timeouts(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path
) -> None:
    """What stands in the partition is applied first, even while somebody else's transaction hides it."""
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path, partitions=1, reassembly_timeout_s=TIMEOUT_S)
    await bench.make_topics()
    reports = [a_report("waiting", 1, 2), a_report("waiting", 2, 2)]

    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.publish(reports[:1])
        producer = await _transaction(bench)
        await _send(producer, bench, a_report("hidden"))
        await bench.publish(reports[1:])
        await asyncio.wait({running}, timeout=LONGER_THAN_THE_TIMEOUT_S)
        assert await bench.results() == []
        await producer.abort_transaction()
        await producer.stop()
        await bench.until_results(1, running)

    assert [result["reason"] for result in await bench.results()] == ["complete"]
    assert_exact(await bench.results(), reports)


async def test_an_outage_expires_nothing_early(kafka_bootstrap: str, topic_prefix: str, tmp_path: Path) -> None:
    """An assembler that was away longer than the timeout applies what came meanwhile before it looks at deadlines."""
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path, partitions=1, reassembly_timeout_s=TIMEOUT_S)
    await bench.make_topics()
    messages = range(5000)
    firsts, seconds = ([a_report(f"m{number}", part, 2) for number in messages] for part in (1, 2))
    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.publish(firsts)
        await bench.until_done(running)
    in_time = {result["smsMsgId"] for result in await bench.results()}
    await bench.publish(seconds)
    await asyncio.sleep(LONGER_THAN_THE_TIMEOUT_S)  # the outage itself

    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.until_done(running)

    results = await bench.results()
    assert {result["reason"] for result in results if result["smsMsgId"] not in in_time} == {"complete"}
    assert_exact(results, [*firsts, *seconds])


async def test_a_flood_of_unusable_records_pauses_the_partition(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path
) -> None:
    """The breaker stops before they are dead letters; an operator lets them through, and everything else with them."""
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path, partitions=2)
    await bench.make_topics()
    reports = some_reports(200)
    flood = [(0, b"%d" % number, b"unusable") for number in range(2 * RUN_RECORDS)]
    await bench.publish_raw(flood)
    resume = asyncio.Event()

    async with bench.assembling(local_ledgers(bench.settings), resume=resume) as running:
        await bench.publish(reports)
        await until(_paused(), running)
        assert await bench.dead_letters() == []
        resume.set()
        await bench.until_done(running)

    assert len(await bench.dead_letters()) == len(flood)
    assert_exact(await bench.results(), reports)


def _paused() -> Condition:
    async def paused() -> bool:
        return any(sample.value for metric in PAUSED.collect() for sample in metric.samples)

    return paused


async def _transaction(bench: Bench) -> Any:
    producer = AIOKafkaProducer(**bench.options, transactional_id=f"{bench.settings.group_id}.foreign")
    await producer.start()
    await producer.begin_transaction()
    return producer


async def _send(producer: Any, bench: Bench, report: dict[str, Any]) -> None:
    await producer.send_and_wait(
        bench.settings.reports_topic, key=report["smsMsgId"].encode(), value=json.dumps(report).encode(), partition=0
    )
