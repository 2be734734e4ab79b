"""Processes that end when they should, ports that nobody else takes, and waiting for an answer.

Linux only: pidfds say when a process that is not our child has ended and cannot hit one that reuses its id.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Self, TypeVar

T = TypeVar("T")

LAUNCHER: Final = Path(__file__).with_name("launch.py")
PORTS: Final = range(20_000, 32_768)
"""Below the ephemeral range: a client that retries on loopback could otherwise be given the very port that it looks for
as its own, and connect to itself."""
PORT_TRIES: Final = 200
LOG_TAIL_LINES: Final = 12
POLL_S: Final = 0.05
STANDING: Final = "TtZX"
"""States of a thread that runs no more (proc(5), field 3)."""

STOPPING_POLL_S: Final = 0.001
STOPPING_MAX_S: Final = 10.0
"""How long a process may take to stand still after SIGSTOP: each thread has to be given the processor for it."""


class LocalServiceError(Exception):
    """A local service cannot be had; the message is one line that says what to do."""


class PortLease:
    """A free port of 127.0.0.1 that no other user of this module takes until it is released or this process ends.

    The lease is an abstract Unix socket named after the port, so it needs no file and outlasts no process. It covers
    the gaps while nothing listens: between choosing and binding, and while a killed node is down.
    """

    def __init__(self, port: int, lock: socket.socket) -> None:
        self.port = port
        self._lock = lock

    @classmethod
    def take(cls, port: int) -> Self | None:
        """Lease this very port; None when it is leased or in use."""
        lock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            lock.bind(f"\0dlrflow-port-{port}")
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
                # What is left of closed connections is no hindrance to a server; one that listens is.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
        except OSError:
            lock.close()
            return None
        return cls(port, lock)

    @classmethod
    def wanted(cls, port: int, name: str) -> Self:
        """Lease this very port for the service of that name.

        Raises:
            LocalServiceError: it is leased or in use.
        """
        lease = cls.take(port)
        if lease is None:
            raise LocalServiceError(f"port {port} for {name} is in use")
        return lease

    @classmethod
    def any(cls) -> Self:
        """Lease some free port below 32768."""
        for port in random.sample(PORTS, PORT_TRIES):
            lease = cls.take(port)
            if lease is not None:
                return lease
        raise LocalServiceError(f"none of {PORT_TRIES} ports tried between {PORTS.start} and {PORTS.stop - 1} is free")

    def release(self) -> None:
        """Give the port back; twice is harmless."""
        self._lock.close()


class Service:
    """One running process, ours or one that an earlier command left running."""

    def __init__(self, pid: int, child: subprocess.Popen[bytes] | None = None) -> None:
        self.pid = pid
        self._child = child
        self._pidfd: int | None = os.pidfd_open(pid)

    @classmethod
    def start(
        cls,
        command: Sequence[str],
        *,
        folder: Path,
        log: Path,
        environment: Mapping[str, str] | None = None,
        user: tuple[int, int] | None = None,
        detached: bool = False,
        remove: Path | None = None,
    ) -> Self:
        """Start a process whose output is appended to `log`.

        Args:
            command: program by absolute path, and its arguments.
            folder: its working directory.
            log: a file; made if missing.
            environment: all of it, not an addition; default is ours.
            user: (uid, gid) to run as; needs root.
            detached: it outlives us; otherwise it is killed when this process ends, however that happens.
            remove: a folder that is removed if this process dies first.
        """
        order = {
            "command": list(command),
            "folder": str(folder),
            "log": str(log),
            "user": user,
            "parent": None if detached else os.getpid(),
            "remove": None if remove is None else str(remove),
        }
        launcher = [sys.executable, "-I", "-S", str(LAUNCHER), json.dumps(order)]
        if detached:
            return cls(int(subprocess.run(launcher, check=True, stdout=subprocess.PIPE, env=environment).stdout))
        child = subprocess.Popen(launcher, start_new_session=True, stdin=subprocess.DEVNULL, env=environment)
        return cls(child.pid, child)

    @property
    def status(self) -> int | None:
        """How it ended, a signal as its negative number; None while it is not known to have, or is no child of ours."""
        return None if self._child is None else self._child.returncode

    def running(self) -> bool:
        """Whether it has not ended; a frozen process runs."""
        return not self._ended(0)

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end; False when it still runs after that time."""
        return self._ended(timeout_s)

    def send(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens when it has ended."""
        if self._pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def freeze(self) -> None:
        """Stop it where it stands (SIGSTOP), and return once every thread of it does: until then some may still answer.

        Raises:
            LocalServiceError: it went on for too long.
        """
        self.send(signal.SIGSTOP)
        until = time.monotonic() + STOPPING_MAX_S
        while self.running() and not _stands(self.pid):
            if time.monotonic() > until:
                raise LocalServiceError(f"process {self.pid} went on after SIGSTOP")
            time.sleep(STOPPING_POLL_S)

    def thaw(self) -> None:
        """Let it go on (SIGCONT)."""
        self.send(signal.SIGCONT)

    def stop(self, number: signal.Signals, timeout_s: float) -> None:
        """Ask it to end with that signal, and kill it when it has not after that time."""
        self.send(number)
        if not self.wait(timeout_s):
            self.kill()

    def kill(self) -> None:
        """End it with SIGKILL and wait until it is gone; works on a frozen process too."""
        self.send(signal.SIGKILL)
        self.wait(60)

    def _ended(self, timeout_s: float) -> bool:
        if self._pidfd is None:
            return True
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        if not poll.poll(int(timeout_s * 1000)):
            return False
        os.close(self._pidfd)
        self._pidfd = None
        if self._child is not None:
            self._child.wait()
        return True

    def remember(self, file: Path) -> None:
        """Write a process-id file from which `recall` finds it again."""
        file.write_text(f"{self.pid} {_started(self.pid)}\n")

    @classmethod
    def recall(cls, file: Path) -> Self | None:
        """Find the process of a process-id file; None when there is no such file or that process has ended."""
        try:
            pid, started = file.read_text().split()
            service = cls(int(pid))
        except (FileNotFoundError, ProcessLookupError, ValueError):
            return None
        if _started(service.pid) == started:
            return service
        service.forget()
        return None

    def forget(self) -> None:
        """Let go of a detached process without ending it."""
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None


def _started(pid: int) -> str:
    """Start time in clock ticks since boot: with the process id it names one process for ever (proc(5), field 22)."""
    try:
        return _stat(Path(f"/proc/{pid}"))[19]
    except FileNotFoundError:
        return ""


def _stands(pid: int) -> bool:
    """Whether every thread of a process is stopped, or has ended."""
    for thread in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if _stat(thread)[0] not in STANDING:
                return False
    return True


def _stat(folder: Path) -> list[str]:
    """What proc(5) calls fields 3 and following of `stat`."""
    return (folder / "stat").read_text().rpartition(")")[2].split()


def answer(work: Callable[[], Coroutine[None, None, T]]) -> T:
    """Run a coroutine to its end from synchronous code, whether or not this thread already has an event loop."""
    with ThreadPoolExecutor(1, thread_name_prefix="local-service") as thread:
        return thread.submit(lambda: asyncio.run(work())).result()


def await_ready(service: Service, ready: Callable[[], bool], *, name: str, log: Path, timeout_s: float) -> None:
    """Ask `ready` again and again until it says yes.

    Raises:
        LocalServiceError: the process has ended, or the time is over; with the end of its log.
    """
    until = time.monotonic() + timeout_s
    while not ready():
        if service.wait(POLL_S):
            raise LocalServiceError(f"{name} ended while starting:\n{tail(log)}")
        if time.monotonic() > until:
            raise LocalServiceError(f"{name} did not answer within {timeout_s:.0f} s:\n{tail(log)}")


def port_open(port: int) -> bool:
    """Whether something on 127.0.0.1 accepts connections there."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def tail(log: Path) -> str:
    """Return the last lines of a log, for an error message."""
    with contextlib.suppress(FileNotFoundError):
        return "\n".join(log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])
    return "(it wrote no log)"
