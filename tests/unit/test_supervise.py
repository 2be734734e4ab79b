"""Tasks that belong together end together, in order, and nothing holds up the end."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ingest.runtime.supervise import exit_within, run, run_until, stop_event_on_signals


class Recorder:
    """Coroutines that note when they end."""

    def __init__(self) -> None:
        self.ended: list[str] = []

    async def forever(self, name: str) -> None:
        """Run until cancelled."""
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.append(name)

    async def fails(self, error: Exception) -> None:
        """Fail at once."""
        raise error

    async def returns(self, name: str) -> None:
        """End at once."""
        self.ended.append(name)


async def test_stop_ends_all_in_reverse_order() -> None:
    """What was named first, because others need it, ends last."""
    recorder, stop = Recorder(), asyncio.Event()
    running = asyncio.create_task(run_until(stop, recorder.forever("first"), recorder.forever("second")))
    await asyncio.sleep(0)

    stop.set()
    await running

    assert recorder.ended == ["second", "first"]


async def test_the_first_failure_ends_all_and_is_raised() -> None:
    """A part that fails does not leave the others running."""
    recorder = Recorder()

    with pytest.raises(OSError, match="broken"):
        await run_until(asyncio.Event(), recorder.forever("other"), recorder.fails(OSError("broken")))

    assert recorder.ended == ["other"]


async def test_a_part_that_is_done_does_not_end_the_others() -> None:
    """Only failures and the stop end what still runs; when all are done it is over."""
    recorder = Recorder()

    await run_until(asyncio.Event(), recorder.returns("a"), recorder.returns("b"))

    assert recorder.ended == ["a", "b"]


async def test_cancelling_ends_all() -> None:
    """Whoever cancels the whole cancels the parts."""
    recorder = Recorder()
    running = asyncio.create_task(run_until(asyncio.Event(), recorder.forever("a")))
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    running.cancel()

    with pytest.raises(asyncio.CancelledError):
        await running
    assert recorder.ended == ["a"]


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
