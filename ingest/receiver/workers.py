"""The worker processes of one command: started, watched, replaced and stopped by their parent.

All of them inherit one listening socket, so a connection that waits in its queue outlives the death of any of them.
Each has a slot, 0 to n-1. A slot names the files of its counters, so that the successor of a dead worker goes on with
them and a worker that dies again and again does not fill the folder.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import structlog
from prometheus_client import Counter

from ingest.receiver.channel import HEARTBEAT_S, STOP, State, pack_settings
from ingest.runtime.backoff import Backoff
from ingest.runtime.clock import Clock
from ingest.runtime.errors import CommandError, UsageError

log = structlog.get_logger(__name__)

FRESH_S: Final = 3.0
"""A worker that said nothing for longer does not count as ready."""

HUNG_AFTER_TICKS: Final = 60
"""Looks of the parent, `HEARTBEAT_S` apart, without a sign of life, after which a worker is killed. Looks and not
seconds: a machine that slept must not kill its workers when it wakes."""

RESTART_FIRST_S: Final = 0.1
RESTART_MOST_S: Final = 10.0
STEADY_S: Final = 30.0
"""A worker that lived this long is replaced at once when it dies."""

_STATE_MAX_BYTES = 1 << 16


@dataclass(slots=True)
class Worker:
    """One worker process.

    Attributes:
        heard_at: monotonic time of its last state, None before the first.
        ticks: looks of the parent since then.
    """

    slot: int
    process: asyncio.subprocess.Process
    channel: socket.socket
    started_at: float
    state: State = field(default_factory=lambda: State(ready=False))
    heard_at: float | None = None
    ticks: int = 0


@dataclass(slots=True)
class WorkerPool:
    """Keeps one worker in each slot.

    Args:
        command: the arguments of a worker after the interpreter; slot and the descriptors of listener and channel are
            appended.
        size: how many workers.
        settings: what each gets.
        environ: of the workers.
        listener: inherited by all of them; `stop` closes it.
        clock: time.
        on_end: called with the slot of each worker that ended.
        restarts: counts the workers that were replaced.
    """

    command: tuple[str, ...]
    size: int
    settings: object
    environ: Mapping[str, str]
    listener: socket.socket
    clock: Clock
    on_end: Callable[[int], None]
    restarts: Counter
    _workers: dict[int, Worker] = field(default_factory=dict)
    _stopping: bool = False

    async def run(self, started: asyncio.Event) -> None:
        """Start all and replace those that end, until `stop`; sets `started` once each serves.

        Raises:
            CommandError: a worker could not work at all, or not be started, when the command started.
        """
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self._watch())
            keeping = [group.create_task(self._keep(slot, started)) for slot in range(self.size)]
            await asyncio.wait(keeping)
            watching.cancel()

    async def stop(self, within_s: float) -> None:
        """Ask all workers for a clean end, and kill those that take longer than that.

        The listening socket is closed here at once: when the last worker closes it, too, senders are refused. As long
        as anybody held it, the kernel would go on to accept pushes that nobody answers.
        """
        self._stopping = True
        self.listener.close()
        for worker in self._workers.values():
            _ask_to_stop(worker)
        waits = [asyncio.create_task(worker.process.wait()) for worker in self._workers.values()]
        if waits:
            await asyncio.wait(waits, timeout=within_s)
        for worker in self._workers.values():
            if worker.process.returncode is None:
                log.warning("a worker takes too long to end: killed", slot=worker.slot, pid=worker.process.pid)
                _kill(worker.process)

    def ready(self) -> bool:
        """Whether some worker can take pushes and no end has begun."""
        return not self._stopping and any(self._is_ready(worker) for worker in self._workers.values())

    def detail(self) -> list[dict[str, Any]]:
        """What each worker last said, for people."""
        return [
            {
                "slot": worker.slot,
                "pid": worker.process.pid,
                "ready": self._is_ready(worker),
                **worker.state.detail,
            }
            for _, worker in sorted(self._workers.items())
        ]

    def _is_ready(self, worker: Worker) -> bool:
        fresh = worker.heard_at is not None and self.clock.monotonic() - worker.heard_at <= FRESH_S
        return fresh and worker.state.ready

    async def _keep(self, slot: int, started: asyncio.Event) -> None:
        backoff = Backoff(RESTART_FIRST_S, RESTART_MOST_S)
        while not self._is_stopping():
            try:
                worker = await self._start(slot)
            except OSError as error:
                if not started.is_set():
                    raise CommandError(f"a worker cannot be started: {error.strerror}") from None
                log.warning("a worker cannot be started: trying again", slot=slot, because=error.strerror)
                await self.clock.sleep(backoff.next())
                continue
            await self._listen(worker, started)
            status = await worker.process.wait()
            worker.channel.close()
            del self._workers[slot]
            self.on_end(slot)
            if self._is_stopping():
                return
            if worker.state.failed and not started.is_set():
                raise _as_error(worker.state)
            log.warning(
                "a worker ended, another takes its place",
                slot=slot,
                pid=worker.process.pid,
                status=status,
                because=worker.state.failed or None,
            )
            self.restarts.inc()
            if self.clock.monotonic() - worker.started_at >= STEADY_S:
                backoff.reset()
            await self.clock.sleep(backoff.next())

    def _is_stopping(self) -> bool:
        return self._stopping

    async def _start(self, slot: int) -> Worker:
        """Start a worker in a slot.

        Raises:
            OSError: the machine has no process, no memory or no descriptor for it now.
        """
        ours, theirs = socket.socketpair()
        passed = (self.listener.fileno(), theirs.fileno())
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *self.command,
                str(slot),
                *map(str, passed),
                pass_fds=passed,
                env=dict(self.environ),
                stdin=asyncio.subprocess.DEVNULL,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)  # noqa: FBT003 - the socket's own signature
        worker = self._workers[slot] = Worker(slot, process, ours, self.clock.monotonic())
        return worker

    async def _listen(self, worker: Worker, started: asyncio.Event) -> None:
        """Take over what the worker says until it says nothing any more."""
        loop = asyncio.get_running_loop()
        buffer = b""
        try:
            await loop.sock_sendall(worker.channel, pack_settings(self.settings))
            if self._stopping:
                _ask_to_stop(worker)
            while said := await loop.sock_recv(worker.channel, _STATE_MAX_BYTES):
                *lines, buffer = (buffer + said).split(b"\n")
                for line in lines:
                    worker.state = msgspec.json.decode(line, type=State)
                    worker.heard_at = self.clock.monotonic()
                    worker.ticks = 0
                if self._all_have_begun():
                    started.set()
        except (ConnectionError, msgspec.DecodeError) as error:
            log.debug("a worker said no more", slot=worker.slot, because=str(error))

    def _all_have_begun(self) -> bool:
        workers = self._workers.values()
        return len(workers) == self.size and all(each.state.begun for each in workers)

    async def _watch(self) -> None:
        while True:
            await self.clock.sleep(HEARTBEAT_S)
            for worker in self._workers.values():
                worker.ticks += 1
                if worker.ticks == HUNG_AFTER_TICKS:
                    log.error("a worker gives no sign of life: killed", slot=worker.slot, pid=worker.process.pid)
                    _kill(worker.process)


def _ask_to_stop(worker: Worker) -> None:
    with contextlib.suppress(OSError):
        worker.channel.send(STOP)


def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)


def _as_error(state: State) -> CommandError:
    if state.status == UsageError.status:
        return UsageError(state.failed)
    return CommandError(state.failed)
