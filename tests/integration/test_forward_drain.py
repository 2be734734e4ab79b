"""`python -m ingest drain`: publishes what folders hold that nobody holds, and says by its status if all is out."""

import asyncio
import os
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import orjson
import pytest
from aiokafka import AIOKafkaConsumer

from deploy.local.processes import PortLease
from ingest.contract.push import Push, Route
from ingest.contract.report import Reason
from ingest.contract.topics import TopicSpec
from ingest.forward import drain as drain_module
from ingest.forward.courier import Courier, ForwardTopics
from ingest.forward.kafka import open_publisher
from ingest.forward.loop import Forwarder
from ingest.runtime.clock import SystemClock
from ingest.runtime.errors import ServiceAwayError
from ingest.runtime.files import RealFileSystem
from ingest.runtime.kafka import TopicAdmin
from ingest.spool.accounts import Accounts
from ingest.spool.disk import DiskSpool, SpoolOptions, open_spool
from ingest.spool.folder import TORN, folders, save_in_quarantine
from tests.fakes.forward import MemoryBacklog

RECEIVED_MS = 1_795_000_000_123


def batch(*numbers: int) -> Push:
    """A push with one usable report for each number."""
    elements = [{"smsMsgId": f"id-{number}", "status": "DELIVRD"} for number in numbers]
    return Push(RECEIVED_MS, Route.BATCH, len(elements), orjson.dumps({"statusReportList": elements}))


async def spool_of(root: Path, *pushes: Push) -> DiskSpool:
    """An open spool with these pushes and nobody who publishes them."""
    spool = await open_spool(
        root, SpoolOptions(allow_volatile=True), fs=RealFileSystem(), clock=SystemClock(), accounts=Accounts()
    )
    for push in pushes:
        await spool.append(push)
    return spool


async def run_drain(root: Path, bootstrap: str, prefix: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a process of its own."""
    command = [
        *(sys.executable, "-m", "ingest", "drain", "--spool-dir", str(root), "--spool-allow-volatile"),
        *("--kafka-bootstrap-servers", bootstrap),
        *("--reports-topic", prefix + "reports", "--dead-letters-topic", prefix + "letters"),
    ]
    environ = {**os.environ, **settings}
    return await asyncio.to_thread(
        subprocess.run, command, env=environ, capture_output=True, text=True, check=False, timeout=60
    )


async def make_topics(bootstrap: str, prefix: str) -> None:
    """Create both topics."""
    async with TopicAdmin({"bootstrap_servers": bootstrap.split(",")}) as admin:
        await admin.create(
            TopicSpec(name=prefix + name, partitions=3, replication=1, configs={"retention.ms": "-1"})
            for name in ("reports", "letters")
        )


async def values(bootstrap: str, topic: str, count: int) -> list[bytes | None]:
    """So many values of a topic."""
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    try:
        return [(await consumer.getone()).value for _ in range(count)]
    finally:
        await consumer.stop()


async def test_what_an_ended_process_left_is_published(kafka_bootstrap: str, topic_prefix: str, tmp_path: Path) -> None:
    """All of it arrives as it was answered, the folders are gone, and the status is 0; again: 0, too."""
    await make_topics(kafka_bootstrap, topic_prefix)
    unusable = Push(RECEIVED_MS, Route.BATCH, 1, b"{", Reason.NOT_JSON)
    too_many = Push(RECEIVED_MS, Route.BATCH, 1, batch(31, 32).body, Reason.TOO_MANY_REPORTS)
    await (await spool_of(tmp_path, batch(*range(30)), unusable, too_many, batch(30))).close()

    done = await run_drain(tmp_path, kafka_bootstrap, topic_prefix, DLR_REPORTS_MAX="1")

    assert (done.returncode, done.stdout) == (
        0,
        "reports published: 31, dead-lettered: 2, quarantined: 0; folders emptied: 1\n",
    ), done.stderr
    assert len(set(await values(kafka_bootstrap, topic_prefix + "reports", 31))) == 31
    assert set(await values(kafka_bootstrap, topic_prefix + "letters", 2)) == {b"{", too_many.body}
    assert folders(RealFileSystem(), tmp_path) == []
    assert (await run_drain(tmp_path, "127.0.0.1:1", topic_prefix)).returncode == 0


async def test_a_folder_that_is_held_makes_the_status_1(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path
) -> None:
    """It is left alone and named; what is free is published all the same."""
    await make_topics(kafka_bootstrap, topic_prefix)
    free = await spool_of(tmp_path, batch(1))
    held = await spool_of(tmp_path, batch(2))
    await free.close()
    try:
        done = await run_drain(tmp_path, kafka_bootstrap, topic_prefix)
    finally:
        await held.close()

    assert done.returncode == 1
    assert done.stdout.startswith("reports published: 1, ")
    assert held.name in done.stderr
    assert "Traceback" not in done.stderr


async def test_reports_in_quarantine_are_not_called_drained(tmp_path: Path, topic_prefix: str) -> None:
    """They are nowhere else: who would wipe the disk is told. Torn tails, which nobody was answered, do not count."""
    save_in_quarantine(RealFileSystem(), tmp_path, f"x{TORN}", b"torn", "a note")
    nothing = await run_drain(tmp_path, "127.0.0.1:1", topic_prefix)
    save_in_quarantine(RealFileSystem(), tmp_path, "y", b"a report", "a note")

    done = await run_drain(tmp_path, "127.0.0.1:1", topic_prefix)

    assert nothing.returncode == 0, nothing.stderr
    assert done.returncode == 1
    assert f"1 files in {tmp_path / 'quarantine'} hold reports" in done.stderr


async def test_a_spool_that_was_never_made_is_empty(tmp_path: Path, topic_prefix: str) -> None:
    """Nothing to publish needs no Kafka."""
    done = await run_drain(tmp_path / "none", "127.0.0.1:1", topic_prefix)

    assert done.returncode == 0, done.stderr


async def test_kafka_away_at_the_start_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the patience nothing is lost: the folder is let go with everything in it."""
    monkeypatch.setattr(drain_module, "KAFKA_PATIENCE_S", 0.3)
    port = PortLease.any()
    clock, accounts = SystemClock(), Accounts()
    publisher = open_publisher({"bootstrap_servers": [f"127.0.0.1:{port.port}"]}, clock)
    topics = ForwardTopics(reports="reports", dead_letters="letters")
    courier = Courier(publisher, topics=topics, accounts=accounts, clock=clock)
    backlog = MemoryBacklog([batch(1)])

    with pytest.raises(ServiceAwayError, match="Kafka did not answer"):
        await drain_module.drain(
            [backlog],
            forwarder=Forwarder(courier, clock),
            publisher=publisher,
            topics=topics,
            accounts=accounts,
            progress=_NoProgress(),
        )

    assert backlog.closed
    assert backlog.settled == []
    await publisher.close()
    port.release()


async def test_a_missing_topic_is_named(
    kafka_bootstrap: str, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kafka is there, but a topic is not: the line says which, and how to make it."""
    monkeypatch.setattr(drain_module, "KAFKA_PATIENCE_S", 2.0)
    clock, accounts = SystemClock(), Accounts()
    publisher = open_publisher({"bootstrap_servers": kafka_bootstrap.split(",")}, clock)
    topics = ForwardTopics(reports=topic_prefix + "reports", dead_letters=topic_prefix + "letters")
    courier = Courier(publisher, topics=topics, accounts=accounts, clock=clock)

    with pytest.raises(ServiceAwayError, match=r"topic t\w+\.reports does not exist.*`python -m ingest topics`"):
        await drain_module.drain(
            [MemoryBacklog([batch(1)])],
            forwarder=Forwarder(courier, clock),
            publisher=publisher,
            topics=topics,
            accounts=accounts,
            progress=_NoProgress(),
        )
    await publisher.close()


class _NoProgress:
    """Shows nothing, and must not be asked to before Kafka is there."""

    def watch(self, accounts: Accounts, reports: int) -> AbstractContextManager[None]:
        """See `Progress`."""
        raise AssertionError((accounts, reports))
