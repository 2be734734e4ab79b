"""What the local services run is fetched once, whole, and by one process at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from deploy.local import cache
from deploy.local.processes import LocalServiceError

MAVEN = """#!/bin/sh
# Writes one jar where it is told to, and a line per run.
for argument in "$@"; do case "$argument" in -DoutputDirectory=*) folder="${argument#*=}" ;; esac; done
echo run >> "$RUNS"
test -z "$FAIL" || { echo "[ERROR] no route to the repository"; echo "[ERROR] more"; exit 1; }
mkdir "$folder" && echo jar > "$folder/some.jar"
"""


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a Maven that needs no network on the PATH; give the file that counts its runs."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "mvn").write_text(MAVEN)
    (tools / "mvn").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("DLRFLOW_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def test_a_second_use_fetches_nothing(runs: Path) -> None:
    """What is complete is not asked for again."""
    first = cache.fetched("kafka")
    second = cache.fetched("kafka")

    assert first == second
    assert (first / "some.jar").exists()
    assert runs.read_text().count("run") == 1


def test_a_half_finished_fetch_is_not_taken_for_complete(runs: Path) -> None:
    """A folder without its stamp is emptied and fetched anew."""
    folder = cache.cache_dir() / f"kafka-{cache.version('kafka')}"
    folder.mkdir()
    (folder / "torn.jar").touch()

    assert cache.fetched("kafka") == folder
    assert runs.read_text().count("run") == 1
    assert not (folder / "torn.jar").exists()


def test_processes_at_once_fetch_once(runs: Path) -> None:
    """The others wait for the one that fetches."""
    command = [sys.executable, "-c", "from deploy.local import cache; print(cache.fetched('kafka'))"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for _ in range(4)]

    answers = {process.communicate()[0] for process in processes}

    assert len(answers) == 1
    assert runs.read_text().count("run") == 1


def test_a_failed_unpacking_leaves_nothing_complete(runs: Path) -> None:
    """What follows the fetch belongs to it."""

    def refuse(_folder: Path) -> None:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        cache.fetched("kafka", refuse)
    cache.fetched("kafka")

    assert runs.read_text().count("run") == 2


def test_a_failing_maven_is_one_clear_line(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first complaint of Maven is passed on, its stack of hints is not."""
    monkeypatch.setenv("FAIL", "yes")

    with pytest.raises(LocalServiceError, match=r"^Maven could not fetch kafka: \[ERROR\] no route to the repository$"):
        cache.fetched("kafka")
    assert runs.exists()


def test_versions_come_from_the_pom() -> None:
    """One place pins them; an unknown one is an error."""
    assert cache.version("kafka").count(".") == 2
    with pytest.raises(LocalServiceError, match=r"unknown\.version"):
        cache.version("unknown")


def test_the_pom_names_no_repository() -> None:
    """Where artifacts come from is the user's Maven settings' business."""
    tags = {element.tag.rpartition("}")[2] for element in ET.parse(cache.POM).iter()}  # noqa: S314 - our own file

    assert not {"repository", "repositories", "pluginRepository", "distributionManagement", "url"} & tags
