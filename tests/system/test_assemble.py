"""`python -m consumers assemble` as a process: what it says, serves, counts, and how it ends."""

import asyncio
import json
import signal
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

from ingest.contract.topics import changelog_spec, wanted_topics
from ingest.runtime.kafka import TopicAdmin
from tests.assembling import Bench, Child, Condition, a_report, assert_exact, some_reports, until

STOP_S = 10.0
NAMED_METRICS = (
    'dlrflow_records_total{result="applied"}',
    'dlrflow_records_total{result="repeat"}',
    'dlrflow_records_total{result="unusable"}',
    'dlrflow_results_total{outcome="delivered",reason="complete"}',
    'dlrflow_dead_letters_total{reason="not-json",stage="assemble"}',
    "dlrflow_pending_messages",
    'dlrflow_lag_seconds{partition="0"}',
    "dlrflow_commit_seconds_bucket",
    "dlrflow_restore_entries_total",
)


@pytest.fixture
def bench(kafka_bootstrap: str, topic_prefix: str, tmp_path: Path) -> Bench:
    """Topics of this test, state in its folder, logs as JSON."""
    return Bench(
        kafka_bootstrap, topic_prefix, state_dir=tmp_path / "state", log_format="json", shutdown_grace_s=STOP_S
    )


async def test_it_says_what_it_guarantees_serves_and_ends_cleanly(bench: Bench, tmp_path: Path) -> None:
    """One line with the guarantee, ready once all partitions run, the metrics of the contract, status 0 on SIGTERM."""
    await bench.make_topics()
    reports = some_reports(200)
    await bench.publish([*reports, a_report("waiting", 1, 2)])
    await bench.publish_raw([(0, b"x", b"unusable")])
    child = Child(bench, tmp_path / "log")
    process = await child.start()
    await until(_logged(child, "admin listens"))
    port = next(line["port"] for line in child.lines() if line["event"] == "admin listens")

    await until(_answers(port, "/readyz"))
    await bench.until_done()
    text = await _get(port, "/metrics")
    health = json.loads(await _get(port, "/healthz"))
    asked = time.monotonic()
    status = await child.end(signal.SIGTERM)

    assert status == 0, child.said()
    assert time.monotonic() - asked < STOP_S
    assert process.returncode == 0
    guarantees = [line for line in child.lines() if "guarantee" in line]
    assert len(guarantees) == 1
    assert "one transaction" in guarantees[0]["guarantee"]
    assert [name for name in NAMED_METRICS if f"\n{name}" not in text] == []
    assert "\ndlrflow_pending_messages 1.0" in text
    assert health["partitions"] == {"0": "running", "1": "running"}
    # The client itself calls it an error that the broker is still making its offsets topic.
    ours = [line for line in child.lines() if not line["logger"].startswith("aiokafka")]
    assert {line["level"] for line in ours} == {"info"}, child.said()
    assert_exact(await bench.results(), reports)


async def test_memory_of_another_number_of_partitions_is_refused(bench: Bench, tmp_path: Path) -> None:
    """Status 2, one line, and the way out."""
    needs = bench.settings.topic_needs()
    async with TopicAdmin(bench.options) as admin:
        other = changelog_spec(bench.settings.model_copy(update={"topic_partitions": 3}).topic_needs())
        await admin.create([*wanted_topics(needs)[:3], other])
    child = Child(bench, tmp_path / "log")

    process = await child.start()
    async with asyncio.timeout(30):
        status = await process.wait()

    assert status == 2, child.said()
    assert "has 3 partitions" in child.said()
    assert "DLR_GROUP_ID" in child.said()
    assert "Traceback" not in child.said()


async def test_a_missing_changelog_is_made(bench: Bench, tmp_path: Path) -> None:
    """With as many partitions as the reports have, and what else the contract says of it."""
    needs = bench.settings.topic_needs()
    async with TopicAdmin(bench.options) as admin:
        await admin.create(wanted_topics(needs)[:3])
    child = Child(bench, tmp_path / "log")
    await child.start()

    await until(_logged(child, "partition runs"))
    await child.end(signal.SIGTERM)

    async with TopicAdmin(bench.options) as admin:
        made = (await admin.existing(describe={bench.changelog}))[bench.changelog]
    wanted = changelog_spec(needs)
    assert made.partitions == 2
    assert {name: made.configs[name] for name in wanted.configs} == wanted.configs


async def test_each_difference_of_a_topic_is_named(bench: Bench, tmp_path: Path) -> None:
    """A topic that serves, but not as it should, is no reason to stop: the log says each difference."""
    async with TopicAdmin(bench.options) as admin:
        await admin.create(wanted_topics(bench.settings.model_copy(update={"reports_retention_s": 7777}).topic_needs()))
    child = Child(bench, tmp_path / "log")
    await child.start()

    await until(_logged(child, "partition runs"))
    await child.end(signal.SIGTERM)

    named = [line["difference"] for line in child.lines() if line["event"] == "topic is not as needed"]
    assert len(named) == 2
    assert f"{bench.settings.reports_topic}: retention.ms is 7777000, needs 604800000" in named


def _logged(child: Child, event: str) -> Condition:
    async def logged() -> bool:
        return any(line["event"] == event for line in child.lines())

    return logged


def _answers(port: int, path: str) -> Condition:
    async def answers() -> bool:
        try:
            await _get(port, path)
        except OSError:
            return False
        return True

    return answers


async def _get(port: int, path: str) -> str:
    def fetch() -> str:
        with urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return str(answer.read().decode())

    return await asyncio.to_thread(fetch)
