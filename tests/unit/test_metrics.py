"""Metrics of one process, and sums over the workers of a command."""

import os
import subprocess
import sys
from pathlib import Path

from ingest.runtime.metrics import counter, exposition, forget_worker, gauge, histogram, worker_environment

WORKER = """
import os, sys
from ingest.runtime.metrics import counter, gauge, histogram
counter("dlrflow_test_worker", "Work.", ("kind",)).labels("a").inc(2)
gauge("dlrflow_test_pending", "Pending.").set(5)
histogram("dlrflow_test_seconds", "Time.", buckets=(0.1, 1.0)).observe(0.5)
print(os.getpid())
"""


def work(folder: Path) -> int:
    """Let a worker count something and end; return its process id."""
    done = subprocess.run(
        [sys.executable, "-c", WORKER],
        env={**os.environ, **worker_environment(folder), "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return int(done.stdout)


def test_a_metric_is_made_once() -> None:
    """Modules may ask for the same metric; none is registered twice."""
    assert counter("dlrflow_test_once", "Once.") is counter("dlrflow_test_once", "Once.")
    assert gauge("dlrflow_test_one", "One.") is gauge("dlrflow_test_one", "One.")
    assert histogram("dlrflow_test_s", "S.", buckets=(1.0,)) is histogram("dlrflow_test_s", "S.", buckets=(1.0,))


def test_one_process_shows_its_own_metrics_without_times_of_creation() -> None:
    """The text has the counter under its full name, and nothing that nobody asked for."""
    counter("dlrflow_test_shown", "Shown.", ("reason",)).labels("x").inc()

    text = exposition().decode()

    assert 'dlrflow_test_shown_total{reason="x"} 1.0' in text
    assert "dlrflow_test_shown_created" not in text


def test_workers_are_summed_and_the_gauges_of_the_dead_are_dropped(tmp_path: Path) -> None:
    """What was counted stays counted; what a worker held is gone with it."""
    first, _second = work(tmp_path), work(tmp_path)

    both = exposition(tmp_path).decode()
    forget_worker(tmp_path, first)
    one = exposition(tmp_path).decode()

    assert 'dlrflow_test_worker_total{kind="a"} 4.0' in both
    assert "dlrflow_test_pending 10.0" in both
    assert 'dlrflow_test_seconds_bucket{le="1.0"} 2.0' in both
    assert 'dlrflow_test_worker_total{kind="a"} 4.0' in one
    assert "dlrflow_test_pending 5.0" in one
