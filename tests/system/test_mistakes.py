"""What stands in the way at the start is said in one clear line, with the exit status of the contract (section 1)."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy.local.processes import PortLease
from deploy.local.product import REPOSITORY

NEED_KAFKA = {
    "topics": ("ingest", "topics"),
    "topics --check": ("ingest", "topics", "--check"),
    "assemble": ("consumers", "assemble"),
    "sink sqlite": ("consumers", "sink", "sqlite"),
    "sink jsonl": ("consumers", "sink", "jsonl"),
    "audit": ("consumers", "audit", "--truth", "truth.jsonl"),
    "dead-letters list": ("consumers", "dead-letters", "list"),
    "dead-letters replay": ("consumers", "dead-letters", "replay"),
}
"""Every command that cannot begin without Kafka."""

PATIENCE_S = 90.0
"""Commands give up after 30 s; a busy machine takes its time to start eight of them."""


class Commands:
    """Runs commands in a folder with some settings; whatever still runs at the end is killed."""

    def __init__(self, folder: Path, settings: dict[str, str]) -> None:
        self._folder = folder
        clean = {name: value for name, value in os.environ.items() if not name.startswith("DLR_")}
        self._environ = {**clean, "PYTHONPATH": str(REPOSITORY), **settings}
        self._started: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str, **settings: str) -> "subprocess.Popen[str]":
        """Start one, with further settings."""
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self._folder,
            env={**self._environ, **settings},
        )
        self._started.append(process)
        return process

    def kill(self) -> None:
        """End what still runs."""
        for process in self._started:
            process.kill()
            process.communicate()


@pytest.fixture
def settings(topic_prefix: str) -> dict[str, str]:
    """Names of this test's own, so that no topic of anybody else is met."""
    return {
        "DLR_REPORTS_TOPIC": f"{topic_prefix}reports",
        "DLR_RESULTS_TOPIC": f"{topic_prefix}results",
        "DLR_DEAD_LETTERS_TOPIC": f"{topic_prefix}dead",
        "DLR_GROUP_ID": f"{topic_prefix}assembler",
        "DLR_SPOOL_ALLOW_VOLATILE": "true",
    }


@contextmanager
def commands(folder: Path, settings: dict[str, str]) -> Iterator[Commands]:
    """Commands in an empty folder with a truth file."""
    (folder / "truth.jsonl").write_text('{"unusable":0}\n')
    running = Commands(folder, settings)
    try:
        yield running
    finally:
        running.kill()


def errors(said: str) -> Sequence[str]:
    """The lines that are no log lines."""
    return [line for line in said.splitlines() if not line.startswith("{") or "event" not in json.loads(line)]


def test_what_stays_away_at_the_start_is_status_3(
    kafka_bootstrap: str, tmp_path: Path, settings: dict[str, str]
) -> None:
    """After 30 s every command gives up in one line that names what it waited for; no password is in it."""
    lease = PortLease.any()
    nowhere = f"127.0.0.1:{lease.port}"
    with commands(tmp_path, settings) as run:
        started = {name: run.start(*them, DLR_KAFKA_BOOTSTRAP_SERVERS=nowhere) for name, them in NEED_KAFKA.items()}
        started["sink postgres"] = run.start(
            *("consumers", "sink", "postgres"),
            DLR_KAFKA_BOOTSTRAP_SERVERS=kafka_bootstrap,
            DLR_POSTGRES_DSN=f"postgresql://me:hunter2@{nowhere}/none",
        )
        said = {name: process.communicate(timeout=PATIENCE_S) for name, process in started.items()}
    lease.release()

    assert {name: process.returncode for name, process in started.items()} == dict.fromkeys(started, 3)
    for name, (output, error) in said.items():
        assert output == "", name
        assert len(errors(error)) == 1, (name, error)
        assert errors(error)[0].startswith("error: "), (name, error)
        assert ("postgres sink" if name == "sink postgres" else "Kafka") in errors(error)[0], (name, error)
        assert "hunter2" not in error, name


@pytest.mark.parametrize(
    "arguments",
    [("ingest", "receive"), ("consumers", "assemble"), ("consumers", "sink", "sqlite")],
    ids=["receive", "assemble", "sink"],
)
def test_an_occupied_admin_port_that_was_chosen_is_a_mistake(
    kafka_bootstrap: str, tmp_path: Path, settings: dict[str, str], arguments: tuple[str, ...]
) -> None:
    """Status 2 and one line that names the port, for every long-running command."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        more = {
            "DLR_KAFKA_BOOTSTRAP_SERVERS": kafka_bootstrap,
            "DLR_ADMIN_PORT": str(port),
            "DLR_HTTP_PORT": "0",
        }
        with commands(tmp_path, settings | more) as run:
            if arguments[-1] == "assemble":
                assert run.start("ingest", "topics").wait(PATIENCE_S) == 0
            process = run.start(*arguments)
            _, error = process.communicate(timeout=PATIENCE_S)

    assert process.returncode == 2
    assert errors(error) == [f"error: admin port 127.0.0.1:{port} is taken (DLR_ADMIN_PORT)"]


@pytest.mark.parametrize(
    "arguments",
    [("assemble",), ("sink", "sqlite"), ("audit", "--truth", "truth.jsonl"), ("dead-letters", "list")],
    ids=["assemble", "sink", "audit", "dead-letters"],
)
def test_missing_topics_are_said_with_the_way_out(
    kafka_bootstrap: str, tmp_path: Path, settings: dict[str, str], arguments: tuple[str, ...]
) -> None:
    """Status 2, one line, and none of the topics came into being by the question."""
    with commands(tmp_path, {**settings, "DLR_KAFKA_BOOTSTRAP_SERVERS": kafka_bootstrap, "DLR_ADMIN_PORT": "0"}) as run:
        process = run.start("consumers", *arguments)
        _, error = process.communicate(timeout=PATIENCE_S)
        check = run.start("ingest", "topics", "--check")
        said, _ = check.communicate(timeout=PATIENCE_S)

    assert process.returncode == 2
    assert len(errors(error)) == 1, error
    assert "`python -m ingest topics`" in error
    assert check.returncode == 1
    assert settings["DLR_REPORTS_TOPIC"] in said


def test_a_truth_file_that_is_not_there_is_a_mistake(
    kafka_bootstrap: str, tmp_path: Path, settings: dict[str, str]
) -> None:
    """Status 2 and one line that names it."""
    with commands(tmp_path, {**settings, "DLR_KAFKA_BOOTSTRAP_SERVERS": kafka_bootstrap}) as run:
        process = run.start("consumers", "audit", "--truth", "none.jsonl")
        _, error = process.communicate(timeout=PATIENCE_S)

    assert process.returncode == 2
    assert errors(error) == ["error: the truth file none.jsonl cannot be read: No such file or directory"]
