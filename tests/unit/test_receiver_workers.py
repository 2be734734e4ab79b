"""The worker processes as their parent sees them, with small programs in their place."""

import asyncio
import errno
import os
import signal
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter

from ingest.receiver.workers import WorkerPool
from ingest.runtime.clock import SystemClock
from ingest.runtime.errors import CommandError

PROGRAM = """
import socket, sys
channel = socket.socket(fileno=int(sys.argv[3]))
channel.send(b'{"ready":true,"begun":true}\\n')
while (said := channel.recv(65536)) and not said.endswith(b"S"):
    pass
"""
PATIENCE_S = 20


@dataclass
class Forks:
    """What becomes of the next starts of processes: errors that they raise, one each; then they succeed again."""

    troubles: list[OSError] = field(default_factory=list)
    good: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> Forks:
    """Every start of a process goes by it."""
    forks = Forks()
    really = asyncio.create_subprocess_exec

    async def fork(*arguments: Any, **options: Any) -> asyncio.subprocess.Process:
        if forks.troubles:
            raise forks.troubles.pop()
        process = await really(*arguments, **options)
        forks.good.release()
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", fork)
    return forks


@pytest.fixture
async def pool() -> AsyncIterator[WorkerPool]:
    """Two workers, once it is run."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield WorkerPool(
            command=("-c", PROGRAM),
            size=2,
            settings=None,
            environ=dict(os.environ),
            listener=listener,
            clock=SystemClock(),
            on_end=lambda _slot: None,
            restarts=Counter("restarts", "Restarts.", registry=CollectorRegistry()),
        )


def no_process() -> OSError:
    """The machine cannot fork for the moment."""
    return BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


async def test_a_start_that_fails_for_the_moment_is_repeated(pool: WorkerPool, forks: Forks) -> None:
    """One worker that cannot be replaced at once ends neither the other nor the command."""
    started = asyncio.Event()
    running = asyncio.create_task(pool.run(started))
    async with asyncio.timeout(PATIENCE_S):
        await started.wait()
        for _ in range(2):
            await forks.good.acquire()
        forks.troubles += [no_process(), no_process()]
        os.kill(pool.detail()[0]["pid"], signal.SIGKILL)

        await forks.good.acquire()

        assert forks.troubles == []
        assert not running.done()
        await pool.stop(PATIENCE_S)
        await running


async def test_nobody_listens_when_the_workers_have_left(pool: WorkerPool) -> None:
    """What the kernel accepted after that would be reset: a sender is refused at once, and the port is free."""
    address = pool.listener.getsockname()
    started = asyncio.Event()
    running = asyncio.create_task(pool.run(started))
    async with asyncio.timeout(PATIENCE_S):
        await started.wait()

        await pool.stop(PATIENCE_S)

        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*address)
        await running


async def test_a_pool_that_was_stopped_starts_nobody(pool: WorkerPool, forks: Forks) -> None:
    """Nor does it fail for want of the socket that it gave back."""
    await pool.stop(PATIENCE_S)

    await pool.run(asyncio.Event())

    assert forks.good.locked()


async def test_a_start_that_fails_when_the_command_begins_is_one_clear_line(pool: WorkerPool, forks: Forks) -> None:
    """Nobody waits then for a receiver that never was one."""
    forks.troubles += [no_process()]

    async with asyncio.timeout(PATIENCE_S):
        with pytest.RaisesGroup(pytest.RaisesExc(CommandError, match="^a worker cannot be started: Resource temp")):
            await pool.run(asyncio.Event())
        await pool.stop(PATIENCE_S)
