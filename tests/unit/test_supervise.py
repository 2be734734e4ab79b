"""Signals ask for an end, and nothing holds it up."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ingest.runtime.supervise import exit_within, run, stop_event_on_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_sets_the_stop_event(number: signal.Signals) -> None:
    """Both ways of asking a command to end do the same, and asking twice does no more."""

    async def main() -> bool:
        stop = stop_event_on_signals()
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        return await stop.wait()

    assert run(main())


def test_an_end_that_takes_too_long_is_cut_off() -> None:
    """The deadline is kept by a thread, so that not even a blocked event loop holds the process."""
    left: list[int] = []
    gone = threading.Event()

    def leave(status: int) -> None:
        left.append(status)
        gone.set()

    exit_within(0, 3, leave=leave)

    assert gone.wait(10)
    assert left == [3]


def test_a_deadline_can_be_taken_back() -> None:
    """What ended in time is left alone."""
    left: list[int] = []
    deadline = exit_within(60, 3, leave=left.append)

    deadline.cancel()
    deadline.join(10)

    assert not deadline.is_alive()
    assert left == []


HANGING = """
import asyncio, time
from ingest.runtime.supervise import run, stop_event_on_signals

async def main():
    stop = stop_event_on_signals(0.2, status=5)
    print("ready", flush=True)
    await stop.wait()
    {hang}

run(main())
"""


@pytest.mark.parametrize("hang", ["await asyncio.Event().wait()", "time.sleep(600)"])
def test_a_process_that_cannot_end_is_ended(hang: str) -> None:
    """Whether a client waits for ever or the whole loop is blocked, the grace time is the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", HANGING.format(hang=hang)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"

        process.terminate()

        assert process.wait(30) == 5


LIMITED = """
import asyncio, resource
from ingest.runtime.supervise import run

async def main():
    return resource.getrlimit(resource.RLIMIT_NOFILE)

resource.setrlimit(resource.RLIMIT_NOFILE, (100, 2000))
print(*run(main()))
"""


def test_a_command_may_open_as_many_files_as_the_machine_allows() -> None:
    """The soft limit of a login shell is too low for thousands of connections."""
    done = subprocess.run([sys.executable, "-c", LIMITED], check=True, capture_output=True, text=True)

    assert done.stdout.split() == ["2000", "2000"]
