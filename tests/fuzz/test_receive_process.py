"""The command `receive` as it is deployed, with its workers and its spool, under hostile connections; Kafka is away."""

import asyncio
import os
import re
import signal
import sys
import urllib.request
from collections import Counter
from pathlib import Path

import psutil

from deploy.local.processes import PortLease
from deploy.local.product import REPOSITORY
from tests.fuzz.framing import a_case
from tests.fuzz.judge import KEPT, NOT_HTTP, judge
from tests.fuzz.receiver import on_disk
from tests.fuzz.sender import Heard, send
from tests.fuzz.slow_http import BODY_MAX_BYTES, REPORTS_MAX, Wire, read_wire

CASES = 400
SEED = 11
ABREAST = 48
READY_TRIES = 300
BOOKS = re.compile("kept is what|answers say kept|are kept, but")
"""What only books of one connection show; here are those of all of them."""


async def started(command: asyncio.subprocess.Process, admin: str) -> None:
    """Wait until it is ready."""
    for _ in range(READY_TRIES):
        assert command.returncode is None
        try:
            await asyncio.to_thread(ask, f"{admin}/readyz")
        except OSError:
            await asyncio.sleep(0.1)
        else:
            return
    raise AssertionError("it was never ready")


def ask(url: str) -> str:
    """What the admin port says."""
    with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310 - loopback
        text: str = response.read().decode()
        return text


async def test_the_command_survives_and_its_books_balance(tmp_path: Path) -> None:
    """The same workers at the end, no line of an error, nothing unaccounted, and on disk what was answered, once."""
    http, admin = PortLease.any(), PortLease.any()
    log = tmp_path / "log"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DLR_")} | {
        "DLR_HTTP_PORT": str(http.port),
        "DLR_ADMIN_PORT": str(admin.port),
        "DLR_SPOOL_DIR": str(tmp_path / "spool"),
        "DLR_SPOOL_ALLOW_VOLATILE": "true",
        "DLR_KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1",
        "DLR_ACK_MODE": "spool",
        "DLR_BODY_MAX_BYTES": str(BODY_MAX_BYTES),
        "DLR_REPORTS_MAX": str(REPORTS_MAX),
        "DLR_REQUEST_TIMEOUT_S": "2",
        "DLR_KEEPALIVE_S": "2",
        "DLR_SHUTDOWN_GRACE_S": "2",
        "DLR_LOG_FORMAT": "json",
    }
    with log.open("wb") as output:
        command = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "ingest", "receive", env=environment, stderr=output, cwd=REPOSITORY
        )
    try:
        await started(command, f"http://127.0.0.1:{admin.port}")
        workers = {child.pid for child in psutil.Process(command.pid).children()}
        played: list[tuple[Wire, Heard]] = []
        wrong: list[str] = []
        waiting = iter(range(CASES))

        async def lane() -> None:
            for number in waiting:
                case = a_case(SEED, number)
                wire = read_wire(case.data)
                heard = await send(case, wire, ("127.0.0.1", http.port))
                played.append((wire, heard))
                wrong.extend(problem for problem in judge(case, wire, heard, []) if not BOOKS.search(problem))

        async with asyncio.TaskGroup() as group:
            for _ in range(ABREAST):
                group.create_task(lane())
        metrics = await asyncio.to_thread(ask, f"http://127.0.0.1:{admin.port}/metrics")
        still = {child.pid for child in psutil.Process(command.pid).children()}
    finally:
        command.send_signal(signal.SIGTERM)
        status = await asyncio.wait_for(command.wait(), 60)
        http.release()
        admin.release()
    (folder,) = [path for path in (tmp_path / "spool").iterdir() if re.fullmatch(r"[0-9]+-[0-9a-f]+", path.name)]
    stood = Counter(push.body for push in await on_disk(folder.parent))
    answered = Counter(
        request.body
        for wire, heard in played
        for request, answer in zip(wire.requests, heard.answers, strict=False)
        if answer.status in KEPT and answer.body != NOT_HTTP and request.method != b"HEAD"
    )

    assert wrong == []
    assert (status, still) == (0, workers)
    assert re.search(r"^dlrflow_unaccounted_reports 0\.0$", metrics, re.MULTILINE)
    assert '"level": "error"' not in log.read_text()
    assert "Traceback" not in log.read_text()
    assert answered - stood == Counter()
    sent = Counter(request.body for wire, _ in played for request in wire.requests if request.reading is not None)
    assert stood - sent == Counter()
