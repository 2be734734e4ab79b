"""SIGHUP ends no long-running command: an operator, a terminal or a service manager may send it to any of them."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

EXAMPLE = (Path(__file__).parents[1] / "data" / "batch_example.json").read_bytes()
NOBODY = "127.0.0.1:1"

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a command without Kafka in a process group of its own; kills what is left of it."""
    started: list[subprocess.Popen[str]] = []
    settings = {
        "DLR_HTTP_PORT": "0",
        "DLR_ADMIN_PORT": "0",
        "DLR_WORKERS": "1",
        "DLR_SPOOL_DIR": str(tmp_path / "spool"),
        "DLR_SPOOL_ALLOW_VOLATILE": "true",
        "DLR_SPOOL_MAX_BYTES": str(1 << 26),
        "DLR_KAFKA_BOOTSTRAP_SERVERS": NOBODY,
        "DLR_LOG_FORMAT": "json",
        "DLR_SHUTDOWN_GRACE_S": "5",
        "DLR_JSONL_DIR": str(tmp_path / "results"),
    }
    clean = {name: value for name, value in os.environ.items() if not name.startswith("DLR_")}

    def run(*arguments: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            cwd=Path(__file__).parents[2],
            env={**clean, **settings},
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def _said(process: "subprocess.Popen[str]", event: str) -> dict[str, Any]:
    """The next log line of this event."""
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("{") and (said := json.loads(line))["event"] == event:
            return dict(said)
    raise AssertionError(f"ended with status {process.wait()} before it said: {event}")


def test_a_receiver_and_its_workers_survive_sighup(start: Start) -> None:
    """Sent to all its processes it changes nothing but a line in the log: the same worker takes the next push."""
    command = start("ingest", "receive")
    port = _said(command, "receives")["port"]
    workers = [child.pid for child in psutil.Process(command.pid).children()]

    os.killpg(command.pid, signal.SIGHUP)

    assert "followed by themselves" in _said(command, "SIGHUP changes nothing")["why"]
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/batchReport", data=EXAMPLE, headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=20) as response:  # noqa: S310
        assert response.status == 200
    assert [child.pid for child in psutil.Process(command.pid).children()] == workers
    command.send_signal(signal.SIGTERM)
    assert command.wait(20) == 0


def test_a_sink_survives_sighup(start: Start) -> None:
    """Also while it waits for Kafka at its start."""
    command = start("consumers", "sink", "jsonl")
    _said(command, "admin listens")

    command.send_signal(signal.SIGHUP)

    assert "tried again by itself" in _said(command, "SIGHUP changes nothing")["why"]
    command.send_signal(signal.SIGTERM)
    assert command.wait(20) == 0
