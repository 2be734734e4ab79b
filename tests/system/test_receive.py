"""`python -m ingest receive` as whole processes over a real spool, with and without a real Kafka."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from ingest.contract.topics import TopicSpec
from ingest.runtime.kafka import TopicAdmin

EXAMPLE = (Path(__file__).parents[1] / "data" / "batch_example.json").read_bytes()
JSON = {"Content-Type": "application/json"}
NOBODY = "127.0.0.1:1"
"""An address where no broker listens."""


@dataclass
class Command:
    """A running `receive` and what it logged so far."""

    process: asyncio.subprocess.Process
    lines: list[dict[str, Any]] = field(default_factory=list)
    news: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def read(self) -> None:
        """Take over its log until it ends."""
        assert self.process.stderr is not None
        async for raw in self.process.stderr:
            try:
                line = json.loads(raw)
            except ValueError:
                line = {"event": raw.decode().rstrip()}
            async with self.news:
                self.lines.append(line)
                self.news.notify_all()

    async def said(self, event: str) -> dict[str, Any]:
        """The first log line of this event; waits for it."""
        async with asyncio.timeout(60), self.news:
            await self.news.wait_for(lambda: any(line["event"] == event for line in self.lines))
        return next(line for line in self.lines if line["event"] == event)

    async def url(self) -> str:
        """Where it takes pushes."""
        return f"http://127.0.0.1:{(await self.said('receives'))['port']}"

    async def admin(self) -> str:
        """Where it tells how it is."""
        return f"http://127.0.0.1:{(await self.said('admin listens'))['port']}"

    async def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), 60)


Start = Callable[..., Awaitable[Command]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Starts the command with settings by name over some that suit a test; kills what is left at the end.

    `before` are arguments of the interpreter that start something which becomes the command.
    """
    async with asyncio.TaskGroup() as group:
        commands: list[Command] = []

        async def run(*, before: tuple[str, ...] = (), **settings: object) -> Command:
            chosen: dict[str, object] = {
                "http_port": 0,
                "admin_port": 0,
                "spool_dir": tmp_path / "spool",
                "spool_allow_volatile": "true",
                "spool_max_bytes": 1 << 26,
                "kafka_bootstrap_servers": NOBODY,
                "log_format": "json",
                "shutdown_grace_s": 10,
                **settings,
            }
            clean = {name: value for name, value in os.environ.items() if not name.startswith("DLR_")}
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *before,
                "-m",
                "ingest",
                "receive",
                env={**clean, **{f"DLR_{name.upper()}": str(value) for name, value in chosen.items()}},
                stderr=asyncio.subprocess.PIPE,
                cwd=Path(__file__).parents[2],
            )
            commands.append(Command(process))
            group.create_task(commands[-1].read())
            return commands[-1]

        yield run
        for command in commands:
            if command.process.returncode is None:
                for child in psutil.Process(command.process.pid).children():
                    child.kill()
                command.process.kill()
                await command.process.wait()


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client."""
    async with aiohttp.ClientSession() as session:
        yield session


async def push(http: aiohttp.ClientSession, url: str, body: bytes = EXAMPLE) -> int:
    """Push a body; returns the status."""
    async with http.post(f"{url}/batchReport", data=body, headers=JSON) as response:
        return response.status


async def metric(http: aiohttp.ClientSession, admin: str, sample: str) -> float:
    """The value of one sample, 0 if it is not there."""
    async with http.get(f"{admin}/metrics") as response:
        text = await response.text()
    return next((float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{sample} ")), 0.0)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Ask again until it holds: other processes tell us nothing by themselves."""
    async with asyncio.timeout(60):
        while not await condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.1)


async def until_metric(http: aiohttp.ClientSession, admin: str, sample: str, value: float) -> None:
    """Wait for a sample to have a value."""

    async def has_it() -> bool:
        return await metric(http, admin, sample) == value

    await until(has_it)


async def test_without_kafka_pushes_are_taken_and_kept(start: Start, http: aiohttp.ClientSession) -> None:
    """200, ready, counted, pending, nothing unaccounted; one line says the guarantee, one that Kafka is away."""
    command = await start()
    url, admin = await command.url(), await command.admin()

    assert await push(http, url) == 200
    assert await push(http, url, b"no json") == 400

    await until_metric(http, admin, "dlrflow_spool_pending_reports", 3)
    assert await metric(http, admin, "dlrflow_reports_received_total") == 3
    assert await metric(http, admin, 'dlrflow_http_requests_total{path="/batchReport",status="200"}') == 1
    assert await metric(http, admin, "dlrflow_unaccounted_reports") == 0
    said = await command.said("Kafka confirms nothing: reports wait in the spool and are published when it is back")
    assert said["pushes"] == "answered 200"
    async with http.get(f"{admin}/metrics") as response:
        assert "\ndlrflow_kafka_connected 0.0\n" in await response.text()
    for path, status in [("livez", 200), ("readyz", 200), ("healthz", 200)]:
        async with http.get(f"{admin}/{path}") as response:
            assert response.status == status
    assert "synced to the local spool" in (await command.said("receives"))["guarantee"]
    assert sum("Kafka is away" in line["event"] for line in command.lines) == 1
    assert not any(line.get("logger") == "aiokafka" for line in command.lines)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_ends_with_status_0_and_keeps_what_it_took(
    start: Start, http: aiohttp.ClientSession, number: int
) -> None:
    """A clean end loses nothing: the next start finds every report."""
    command = await start(workers=2)
    assert await push(http, await command.url()) == 200

    assert await command.end(number) == 0

    after = await start(workers=2)
    admin = await after.admin()
    await after.url()
    await until_metric(http, admin, "dlrflow_spool_pending_reports", 2)
    assert await metric(http, admin, "dlrflow_unaccounted_reports") == 0


async def test_it_is_not_ready_as_soon_as_it_is_asked_to_end(start: Start, http: aiohttp.ClientSession) -> None:
    """Balancers look elsewhere while it still serves."""
    command = await start(shutdown_grace_s=20)
    url, admin = await command.url(), await command.admin()

    command.process.terminate()
    await command.said("stopping")

    async with http.get(f"{admin}/readyz") as response:
        assert response.status == 503
    assert await push(http, url) == 200
    assert await asyncio.wait_for(command.process.wait(), 60) == 0


async def test_a_killed_worker_is_replaced_and_its_folder_adopted(start: Start, http: aiohttp.ClientSession) -> None:
    """After kill -9 the port stays open, the reports stay, the counters go on, and the sums stay right."""
    command = await start(workers=2)
    url, admin = await command.url(), await command.admin()
    for _ in range(5):
        assert await push(http, url) == 200

    workers = psutil.Process(command.process.pid).children()
    for worker in workers:
        worker.kill()
    await asyncio.to_thread(psutil.wait_procs, workers, 60)
    await command.said("a worker ended, another takes its place")

    assert await push(http, url) == 200
    await until_metric(http, admin, "dlrflow_worker_restarts_total", 2)
    await until_metric(http, admin, "dlrflow_spool_pending_reports", 12)
    assert await metric(http, admin, "dlrflow_reports_received_total") == 12
    assert await metric(http, admin, "dlrflow_unaccounted_reports") == 0


async def test_workers_do_not_outlive_their_parent(start: Start, http: aiohttp.ClientSession) -> None:
    """After kill -9 of the parent the port is free again, and so are the spool folders."""
    command = await start(workers=2)
    url = await command.url()
    assert await push(http, url) == 200
    workers = psutil.Process(command.process.pid).children()

    command.process.kill()

    await asyncio.to_thread(psutil.wait_procs, workers, 60)
    assert not any(worker.is_running() for worker in workers)
    again = await start(http_port=url.rpartition(":")[2])
    assert await push(http, await again.url()) == 200


SERVICE_MANAGER = """
import os, socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


async def test_a_socket_of_the_service_manager_is_served(start: Start, http: aiohttp.ClientSession) -> None:
    """LISTEN_FDS: the settings of host and port do not count then."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    command = await start(before=("-c", SERVICE_MANAGER, str(port)), http_port=9)

    assert (await command.said("receives"))["port"] == port
    assert await push(http, f"http://127.0.0.1:{port}") == 200


FAILING = """
import os, sys
from ingest.receiver.keys import KeysFile
from ingest.__main__ import cli

begun = KeysFile.take

def take(file, seen):
    if seen == b"fail":
        raise LookupError
    begun(file, seen)

KeysFile.take = take
sys.exit(cli.run(["receive"], os.environ))
"""
"""The command with a defect in its parent process; workers are sound."""


async def test_a_part_of_the_parent_that_fails_ends_the_command(
    start: Start, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """Loudly, with status 1: else nobody would be told any more what becomes of the keys. Workers end cleanly."""
    keys = tmp_path / "keys.json"
    keys.write_text('{"ak1":"sk1"}')
    command = await start(before=("-c", FAILING), workers=2, auth_keys_file=keys)
    url = await command.url()
    workers = psutil.Process(command.process.pid).children()
    assert await push(http, url) == 401

    keys.write_text("fail")

    assert await asyncio.wait_for(command.process.wait(), 60) == 1
    told = await command.said("ends: a part of it failed")
    assert "LookupError" in str(told)
    await command.said("error: a part of the receiver failed (LookupError); the log says more")
    assert not any(line["event"] == "a worker takes too long to end: killed" for line in command.lines)
    assert not any(worker.is_running() for worker in workers)


async def test_an_occupied_port_is_one_clear_line(start: Start) -> None:
    """Status 2, no traceback."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = await start(http_port=taken.getsockname()[1])

        assert await asyncio.wait_for(command.process.wait(), 60) == 2
    await asyncio.sleep(0)
    assert len(command.lines) == 1
    assert "is taken" in command.lines[0]["event"]


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"auth_keys_file": "none.json"}, "none.json"),
        ({"tls_cert_files": "none.crt", "tls_key_files": "none.key"}, "none.crt cannot be read: No such file"),
        ({"tls_cert_files": "none.crt"}, "must name equally many files"),
    ],
)
async def test_protection_that_cannot_be_had_is_one_clear_line(
    start: Start, settings: dict[str, str], why: str
) -> None:
    """A receiver that goes without what it was told to protect itself with must not start: status 2."""
    command = await start(**settings)

    assert await asyncio.wait_for(command.process.wait(), 60) == 2
    await asyncio.sleep(0)
    [line] = command.lines
    assert line["event"].startswith("error: ")
    assert why in line["event"]


async def test_a_spool_folder_that_cannot_be_used_is_one_clear_line(start: Start, tmp_path: Path) -> None:
    """Found by a worker, said by the command: status 2."""
    (tmp_path / "file").write_text("")
    command = await start(spool_dir=tmp_path / "file" / "spool")

    assert await asyncio.wait_for(command.process.wait(), 60) == 2
    errors = [line["event"] for line in command.lines if line["event"].startswith("error:")]
    assert errors == [f"error: the spool folder {tmp_path / 'file' / 'spool'} cannot be used: Not a directory"]
    assert not any("Traceback" in line["event"] for line in command.lines)


async def test_mode_kafka_is_not_ready_without_kafka(start: Start, http: aiohttp.ClientSession) -> None:
    """Every push would get 503, so `/readyz` says it too."""
    command = await start(ack_mode="kafka", ack_timeout_s=0.2)
    url, admin = await command.url(), await command.admin()

    async with http.get(f"{admin}/readyz") as response:
        assert response.status == 503
    assert await push(http, url) == 503


async def test_the_example_becomes_two_records(
    start: Start, http: aiohttp.ClientSession, kafka_bootstrap: str, topic_prefix: str
) -> None:
    """In a real Kafka: key, value, timestamp and headers as the contract has them, in every mode."""
    reports, letters = f"{topic_prefix}reports", f"{topic_prefix}dead"
    await _make_topics(kafka_bootstrap, reports, letters)
    for mode in ("spool-or-kafka", "spool", "kafka"):
        command = await start(
            kafka_bootstrap_servers=kafka_bootstrap, reports_topic=reports, dead_letters_topic=letters, ack_mode=mode
        )
        url, admin = await command.url(), await command.admin()

        async def ready(admin: str = admin) -> bool:
            async with http.get(f"{admin}/readyz") as response:
                return response.status == 200

        await until(ready)
        assert await push(http, url) == 200
        await until_metric(http, admin, "dlrflow_reports_published_total", 2)
        assert await metric(http, admin, "dlrflow_unaccounted_reports") == 0
        assert await command.end() == 0

    records = await _read(kafka_bootstrap, reports, 6)

    assert {record.key for record in records} == {
        report["smsMsgId"].encode() for report in json.loads(EXAMPLE)["statusReportList"]
    }
    assert all(record.value in EXAMPLE for record in records)
    headers = [dict(record.headers) for record in records]
    assert {each["ce_id"] for each in headers} == {b"2d422abdf28023a4116672c7", b"631ec23a01412c5fbae9ebe5"}
    assert {each["ce_type"] for each in headers} == {b"dlrflow.sms.status-report.v1"}
    assert {each["ce_source"] for each in headers} == {b"/batchReport"}
    assert all(set(each) >= {"ce_specversion", "ce_time", "content-type"} for each in headers)


async def _make_topics(servers: str, *names: str) -> None:
    async with TopicAdmin({"bootstrap_servers": servers.split(",")}) as admin:
        await admin.create(TopicSpec(name=name, partitions=2, replication=1, configs={}) for name in names)


async def _read(servers: str, topic: str, count: int) -> list[Any]:
    consumer = AIOKafkaConsumer(bootstrap_servers=servers, auto_offset_reset="earliest", enable_auto_commit=False)
    await consumer.start()
    try:
        consumer.assign([TopicPartition(topic, partition) for partition in range(2)])
        records: list[Any] = []
        async with asyncio.timeout(20):
            while len(records) < count:
                for found in (await consumer.getmany(timeout_ms=500)).values():
                    records += found
        return records
    finally:
        with contextlib.suppress(asyncio.CancelledError):
            await consumer.stop()
