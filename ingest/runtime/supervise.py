"""The life of a long-running command: its event loop, its signals, and an end that nothing can hold up.

A Kafka client whose broker is away can hold a stop for ever, and cancelling the wait leaves its tasks alive. So an end
has a deadline, kept by a thread: when it passes, the process exits at once. Nothing is lost by that: what was promised
is on disk or in Kafka, or a crash would lose it too.
"""

import asyncio
import gc
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

import structlog
import uvloop

T = TypeVar("T")

log = structlog.get_logger(__name__)

GC_THRESHOLDS = (50_000, 50, 100)
"""Records come and go by the thousand and form no cycles: looking for some after every 700 costs a tenth of the CPU."""

DESCRIPTORS_WANTED = 65_536

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a command on an event loop of its own and return what it returns."""
    gc.set_threshold(*GC_THRESHOLDS)
    _allow_descriptors()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def _allow_descriptors() -> None:
    """Raise the soft limit of open files as far as it may go: connections and mapped files need more than 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_WANTED if hard == resource.RLIM_INFINITY else min(DESCRIPTORS_WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def exit_within(seconds: float, status: int, *, leave: Callable[[int], None] = os._exit) -> threading.Timer:
    """End the process with this status when the time has passed, whatever it is doing.

    Returns:
        The deadline; `cancel()` takes it back. A process that ends before it is not held.
    """

    def overdue() -> None:
        log.warning("ends without waiting any longer", waited_s=seconds, status=status)
        sys.stderr.flush()
        leave(status)

    deadline = threading.Timer(seconds, overdue)
    deadline.daemon = True
    deadline.start()
    return deadline


def stop_event_on_signals(grace_s: float | None = None, *, status: int = 0) -> asyncio.Event:
    """An event that SIGTERM and SIGINT set, from now on, in the running loop.

    Args:
        grace_s: if given, the process ends with `status` so many seconds after the first signal, whatever it does.
        status: exit status of that end.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def asked(name: str) -> None:
        if stop.is_set():
            return
        log.info("stopping", signal=name)
        stop.set()
        if grace_s is not None:
            exit_within(grace_s, status)

    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, asked, number.name)
    return stop


def survive_hangup(why: str) -> None:
    """Let SIGHUP not end the process, whose default that is, from now on, in the running loop.

    Args:
        why: nothing has to be done for it; logged each time it comes.
    """
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, lambda: log.info("SIGHUP changes nothing", why=why))


async def failure_before(stop: asyncio.Event, tasks: Iterable[asyncio.Task[Any]]) -> BaseException | None:
    """The first failure of a task, None if `stop` is set before. A task that ends without one is done."""
    stopping = asyncio.create_task(stop.wait())
    waiting: set[asyncio.Task[Any]] = {stopping, *tasks}
    try:
        while not stopping.done():
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if task.cancelled():
                    return RuntimeError(f"{task.get_name()} was cancelled by nobody who may")
                if (error := task.exception()) is not None:
                    return error
        return None
    finally:
        stopping.cancel()
