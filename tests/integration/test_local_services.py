"""The services that all other integration tests stand on."""

from __future__ import annotations

import os
import platform
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import asyncpg
import psutil
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from deploy.local import containers, kafka, postgres
from deploy.local.kafka import LocalKafka
from deploy.local.postgres import LocalPostgres
from deploy.local.processes import LocalServiceError, PortLease, Service

END_S: Final = 30
STARTER: Final = """
import sys, time
from deploy.local.{module} import {name}
service = {name}()
service.start()
print({pid}, service.folder, flush=True)
time.sleep(600)
"""


async def make_topic(bootstrap: str, name: str, *, replication: int = 1, configs: dict[str, str] | None = None) -> None:
    """Make a topic of one partition."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, 1, replication, topic_configs=configs or {})])
    finally:
        await admin.close()


async def produce(bootstrap: str, topic: str, *values: bytes) -> None:
    """Write records and wait until all in-sync replicas have them."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", enable_idempotence=True)
    await producer.start()
    try:
        for value in values:
            await producer.send_and_wait(topic, value)
    finally:
        await producer.stop()


async def consume(bootstrap: str, topic: str) -> list[bytes]:
    """Read a topic of one partition from its beginning to its end."""
    partition = TopicPartition(topic, 0)
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False)
    await consumer.start()
    try:
        consumer.assign([partition])
        end = (await consumer.end_offsets([partition]))[partition]
        consumer.seek(partition, 0)
        return [(await consumer.getone()).value for _ in range(end)]
    finally:
        await consumer.stop()


async def test_kafka_takes_and_gives_back(kafka_bootstrap: str, topic_prefix: str) -> None:
    """The shared Kafka answers: what is written is read."""
    topic = f"{topic_prefix}echo"
    await make_topic(kafka_bootstrap, topic)

    await produce(kafka_bootstrap, topic, b"one", b"two")

    assert await consume(kafka_bootstrap, topic) == [b"one", b"two"]


async def leader(bootstrap: str, topic: str) -> int:
    """Return the node that leads the only partition of a topic."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        (described,) = await admin.describe_topics([topic])
        return int(described["partitions"][0]["leader"])
    finally:
        await admin.close()


async def select_one(dsn: str) -> int:
    """Ask PostgreSQL for the number one."""
    connection = await asyncpg.connect(dsn)
    try:
        return int(await connection.fetchval("select 1"))
    finally:
        await connection.close()


@pytest.fixture
def started_by_another(request: pytest.FixtureRequest) -> Iterator[tuple[subprocess.Popen[str], int, Path]]:
    """Start a service in a process of its own; give that process, the id of the service and its folder."""
    module, name, pid = request.param
    program = STARTER.format(module=module, name=name, pid=pid)
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    try:
        service, folder = parent.stdout.readline().split()
        yield parent, int(service), Path(folder)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()


def ended(pidfd: int) -> bool:
    """Wait for the end of a process that is not our child."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(END_S * 1000))


async def test_a_killed_node_comes_back_with_its_data(kafka_node: LocalKafka, topic_prefix: str) -> None:
    """After kill -9 and a restart the same address serves the same records."""
    topic = f"{topic_prefix}kept"
    bootstrap = kafka_node.bootstrap
    await make_topic(bootstrap, topic)
    await produce(bootstrap, topic, b"before")

    kafka_node.kill()
    assert not kafka_node.running()
    kafka_node.restart()
    await produce(bootstrap, topic, b"after")

    assert kafka_node.bootstrap == bootstrap
    assert await consume(bootstrap, topic) == [b"before", b"after"]


async def test_a_frozen_node_goes_on_where_it_stood(kafka_node: LocalKafka, topic_prefix: str) -> None:
    """Once it is frozen no thread of it answers; SIGSTOP and SIGCONT lose nothing, and the node answers again."""
    topic = f"{topic_prefix}frozen"
    await make_topic(kafka_node.bootstrap, topic)
    await produce(kafka_node.bootstrap, topic, b"before")

    for _ in range(5):  # one thread that is late each time is enough
        kafka_node.heal()
        kafka_node.freeze()
        threads = psutil.Process(kafka_node.pid()).threads()
        assert {psutil.Process(thread.id).status() for thread in threads} == {psutil.STATUS_STOPPED}
    assert kafka_node.running()
    kafka_node.heal()

    assert await consume(kafka_node.bootstrap, topic) == [b"before"]


async def test_two_of_three_nodes_take_records(kafka_cluster: LocalKafka, topic_prefix: str) -> None:
    """With one node killed, the leader at that, writing to all in-sync replicas goes on; it rejoins when restarted."""
    topic = f"{topic_prefix}replicated"
    bootstrap = kafka_cluster.bootstrap
    await make_topic(bootstrap, topic, replication=3, configs={"min.insync.replicas": "2"})
    await produce(bootstrap, topic, b"by three")

    lost = await leader(bootstrap, topic)
    kafka_cluster.kill(lost)
    await produce(bootstrap, topic, b"by two")

    assert await leader(bootstrap, topic) != lost
    assert await consume(bootstrap, topic) == [b"by three", b"by two"]
    kafka_cluster.restart(lost)
    assert all(kafka_cluster.running(node) for node in kafka_cluster.nodes)


async def test_naming_a_topic_does_not_make_it(kafka_node: LocalKafka, topic_prefix: str) -> None:
    """A topic that is only asked for stays unknown: typing errors show."""
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_node.bootstrap)
    await admin.start()
    try:
        await admin.describe_topics([f"{topic_prefix}typo"])

        assert f"{topic_prefix}typo" not in await admin.list_topics()
    finally:
        await admin.close()


async def test_detached_nodes_are_found_and_stopped_by_their_folder(tmp_path: Path, topic_prefix: str) -> None:
    """What outlives its starter keeps its data between starts and can be stopped by whoever knows the folder."""
    topic = f"{topic_prefix}detached"
    first = LocalKafka(folder=tmp_path, detached=True)
    try:
        await make_topic(first.start(), topic)
        await produce(first.bootstrap, topic, b"kept")
        assert kafka.stop_detached(tmp_path) == 1
        assert not first.running()
        assert kafka.stop_detached(tmp_path) == 0
    finally:
        first.stop()

    with LocalKafka(folder=tmp_path) as second:
        assert await consume(second.bootstrap, topic) == [b"kept"]


async def test_postgres_answers(postgres_dsn: str) -> None:
    """The shared PostgreSQL answers a query."""
    assert await select_one(postgres_dsn) == 1


async def test_postgres_survives_a_kill(postgres_server: LocalPostgres) -> None:
    """After kill -9 and a restart the same address answers."""
    dsn = postgres_server.dsn

    postgres_server.kill()
    assert not postgres_server.running()
    postgres_server.restart()

    assert await select_one(dsn) == 1


async def test_a_detached_server_is_found_and_stopped_by_its_folder() -> None:
    """What outlives its starter keeps its data between starts and can be stopped by whoever knows the folder."""
    # Not below pytest's folder: that is for its owner only, and as root the server runs as somebody else.
    with tempfile.TemporaryDirectory(prefix="dlrflow-test-") as name:
        folder = Path(name)
        first = LocalPostgres(folder=folder, detached=True)
        try:
            connection = await asyncpg.connect(first.start())
            await connection.execute("create table kept as select 7 as figure")
            await connection.close()
            assert postgres.stop_detached(folder)
            assert not first.running()
            assert not postgres.stop_detached(folder)
        finally:
            first.stop()

        with LocalPostgres(folder=folder) as second:
            connection = await asyncpg.connect(second.dsn)
            assert await connection.fetchval("select figure from kept") == 7
            await connection.close()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="these binaries are for x86-64 only")
async def test_postgres_from_maven_answers() -> None:
    """A machine without PostgreSQL gets one that works, root or not."""
    with LocalPostgres(binaries=postgres.embedded_binaries()) as server:
        assert await select_one(server.dsn) == 1
        folder = server.folder

    assert not folder.exists()


@pytest.mark.parametrize(
    "started_by_another",
    [("kafka", "LocalKafka", "service.pid()"), ("postgres", "LocalPostgres", "service.pid")],
    indirect=True,
    ids=["kafka", "postgres"],
)
def test_a_service_does_not_outlive_its_parent(started_by_another: tuple[subprocess.Popen[str], int, Path]) -> None:
    """A starter's kill -9 ends the service and removes its folder, so that test runs leave nothing behind."""
    parent, pid, folder = started_by_another
    service = os.pidfd_open(pid)
    watcher = os.pidfd_open(only_child(pid, "launch.py"))
    try:
        parent.send_signal(signal.SIGKILL)

        assert ended(service)
        assert ended(watcher)
        assert not folder.exists()
    finally:
        os.close(service)
        os.close(watcher)


def only_child(pid: int, command: str) -> int:
    """Return the one child of a process whose command line names that program."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    (found,) = (child for child in children if command in Path(f"/proc/{child}/cmdline").read_text())
    return int(found)


def test_a_wanted_port_in_use_is_one_clear_line() -> None:
    """Whoever asks for a taken port learns which one it is."""
    lease = PortLease.any()

    with pytest.raises(LocalServiceError, match=f"^port {lease.port} for Kafka is in use$"):
        LocalKafka(ports=[lease.port]).start()
    lease.release()


def test_what_ends_while_starting_shows_its_log() -> None:
    """A node that cannot start is reported at once, with what it said."""
    broken = LocalKafka(heap_mib=16)

    with pytest.raises(LocalServiceError, match="OutOfMemoryError"):
        broken.start()
    assert not broken.folder.exists()


@pytest.mark.parametrize("program", ["java", "mvn"])
def test_missing_tools_are_named(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Java or Maven there is one line that says what to install."""
    monkeypatch.setenv("DLRFLOW_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in {"java"} - {program}:
        found = kafka.java_program()[0]
        (tools / tool).symlink_to(found)
    monkeypatch.setenv("PATH", str(tools))

    with pytest.raises(LocalServiceError) as raised:
        LocalKafka().start()

    line = str(raised.value)
    assert {"java": "Java 17", "mvn": "Maven"}[program] in line
    assert "\n" not in line


def test_an_engine_that_does_not_answer_is_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking for a Docker engine where none is costs nothing and leaves nothing open."""
    lease = PortLease.any()
    monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{lease.port}")

    assert not containers.engine_answers()
    lease.release()


def test_a_recycled_process_id_is_not_taken_for_the_service(tmp_path: Path) -> None:
    """A process-id file names one process for ever, not whoever has that number now."""
    file = tmp_path / "pid"
    file.write_text(f"{os.getpid()} 1\n")

    assert Service.recall(file) is None
