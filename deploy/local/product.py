"""The processes of the product on this machine, beside a Kafka that somebody else has started."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Final

from deploy.local.processes import LocalServiceError, PortLease, Service, await_ready

REPOSITORY: Final = Path(__file__).resolve().parents[2]
READY_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 30.0
ASKING_TIMEOUT_S: Final = 2.0

RECEIVER: Final = "receiver"
ASSEMBLERS: Final = ("assembler-1", "assembler-2")
SINK: Final = "sink"
DATA_SUFFIXES: Final = frozenset({".log", ".idx"})
"""Of the files that hold an assembler's memory; the others say whose it is."""

COMMANDS: Final[Mapping[str, tuple[str, ...]]] = {
    RECEIVER: ("ingest", "receive"),
    **dict.fromkeys(ASSEMBLERS, ("consumers", "assemble")),
    SINK: ("consumers", "sink", "sqlite"),
}


class Product:
    """Receiver, assemblers and sink, in one folder; methods block until what they say is true."""

    def __init__(
        self,
        folder: Path,
        bootstrap: str,
        *,
        detached: bool = False,
        http_port: int | None = None,
        commands: Mapping[str, tuple[str, ...]] = COMMANDS,
        guests: Collection[str] = (),
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """Describe it; nothing happens before `start`.

        Args:
            folder: of all its data and logs; found again by the next start.
            bootstrap: of the Kafka.
            detached: it outlives this process; otherwise all of it ends with this process, however that ends.
            http_port: of the receiver; None takes a free one.
            commands: the processes: name, and arguments after `python -m`.
            guests: those of them that `start` leaves to `launch`.
            settings: `DLR_*` settings beside its own.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.commands = dict(commands)
        self.guests = frozenset(guests)
        self._bootstrap = bootstrap
        self._detached = detached
        self._http = PortLease.any() if http_port is None else PortLease.wanted(http_port, "the receiver")
        self._admin = {name: PortLease.any() for name in self.commands}
        self._settings = dict(settings or {})
        self._running: dict[str, Service] = {}

    @property
    def bootstrap(self) -> str:
        """What clients of its Kafka are given."""
        return self._bootstrap

    @property
    def url(self) -> str:
        """Where the receiver takes callbacks."""
        return f"http://127.0.0.1:{self._http.port}"

    @property
    def database(self) -> Path:
        """The file of the SQLite sink."""
        return self.folder / "results.db"

    def state_folder(self, name: str) -> Path:
        """Where an assembler keeps its memory; each has its own, as on a machine of its own."""
        return self.folder / "state" / name

    def admin_url(self, name: str) -> str:
        """Where a process answers for health and metrics."""
        return f"http://127.0.0.1:{self._admin[name].port}"

    def log(self, name: str) -> Path:
        """The output of a process."""
        return self.folder / f"{name}.log"

    def environment(self, name: str | None = None) -> dict[str, str]:
        """The environment of a process of the product, or of a command beside them."""
        own = {key: value for key, value in os.environ.items() if not key.startswith("DLR_")}
        settings = {
            "DLR_KAFKA_BOOTSTRAP_SERVERS": self.bootstrap,
            "DLR_HTTP_PORT": str(self._http.port),
            "DLR_SPOOL_DIR": str(self.folder / "spool"),
            "DLR_SQLITE_PATH": str(self.database),
            **self._settings,
        }
        if name is not None:
            settings["DLR_ADMIN_PORT"] = str(self._admin[name].port)
            settings["DLR_STATE_DIR"] = str(self.state_folder(name))
        return own | settings

    def start(self) -> None:
        """Make the topics, start everything but guests, and wait until all of it is ready.

        Raises:
            LocalServiceError: something did not come up; the line says what and why.
        """
        self.run("ingest", "topics")
        residents = [name for name in self.commands if name not in self.guests]
        for name in residents:
            self.launch(name)
        for name in residents:
            self.await_ready(name)

    def run(self, *arguments: str) -> str:
        """Run a command of the product to its end and return its output.

        Raises:
            LocalServiceError: it ended with another status than 0.
        """
        done = self.tried(*arguments)
        if done.returncode != 0:
            raise LocalServiceError(f"`python -m {' '.join(arguments)}` failed: {done.stderr.strip()}")
        return done.stdout

    def tried(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the product to its end, whatever that is."""
        command = [sys.executable, "-m", *arguments]
        return subprocess.run(
            command, check=False, capture_output=True, text=True, cwd=REPOSITORY, env=self.environment()
        )

    def launch(self, name: str) -> None:
        """Start one process."""
        command = [sys.executable, "-m", *self.commands[name]]
        service = Service.start(
            command, folder=REPOSITORY, log=self.log(name), environment=self.environment(name), detached=self._detached
        )
        self._running[name] = service
        if self._detached:
            service.remember(self.folder / f"{name}.pid")

    def await_ready(self, name: str) -> None:
        """Wait until a process says that it is ready.

        Raises:
            LocalServiceError: it ended, or the time is over.
        """
        await_ready(
            self._running[name],
            lambda: self.asked(name, "/readyz") is not None,
            name=f"the {name}",
            log=self.log(name),
            timeout_s=READY_TIMEOUT_S,
        )

    def asked(self, name: str, path: str) -> str | None:
        """What a process answers on its admin port; None unless that is a 200."""
        try:
            with urllib.request.urlopen(self.admin_url(name) + path, timeout=ASKING_TIMEOUT_S) as response:  # noqa: S310
                text: str = response.read().decode()
                return text
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return None

    def metric(self, name: str, metric: str) -> float | None:
        """The sum of a metric of a process over its labels; None when it does not answer or has no such metric."""
        found = re.findall(rf"^{metric}(?:\{{[^}}]*\}})? (\S+)$", self.asked(name, "/metrics") or "", re.MULTILINE)
        return sum(map(float, found)) if found else None

    def pid(self, name: str) -> int:
        """The process id; its workers are children of it and in its process group."""
        return self._running[name].pid

    def running(self, name: str) -> bool:
        """Whether a process has not ended; a frozen one runs."""
        return name in self._running and self._running[name].running()

    def status(self, name: str) -> int | None:
        """How a process ended, a signal as its negative number; None while it runs."""
        return None if self.running(name) else self._running[name].status

    def wait(self, name: str, timeout_s: float) -> bool:
        """Wait for the end of a process; False when it still runs after that time."""
        return self._running[name].wait(timeout_s)

    def kill(self, name: str) -> None:
        """End a process with SIGKILL. Workers that it has find out by themselves."""
        self._running[name].kill()

    def kill_group(self, name: str) -> None:
        """End a process and its workers with SIGKILL, as the end of a container does."""
        self._signal_group(name, signal.SIGKILL)
        self._running[name].kill()

    def freeze(self, name: str) -> None:
        """Stop a process and its workers where they stand (SIGSTOP)."""
        self._signal_group(name, signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        """Let a frozen process and its workers go on."""
        self._signal_group(name, signal.SIGCONT)

    def ask_to_end(self, name: str) -> None:
        """Send SIGTERM to a process."""
        self._running[name].send(signal.SIGTERM)

    def terminate(self, name: str) -> None:
        """Ask a process to end cleanly (SIGTERM) and wait until it has; killed when it takes too long."""
        self._running[name].stop(signal.SIGTERM, STOP_TIMEOUT_S)

    def lose_state(self, name: str) -> None:
        """Delete the memory of an assembler that does not run: a lost disk."""
        shutil.rmtree(self.state_folder(name), ignore_errors=True)

    def damage_state(self, name: str, chance: random.Random) -> Path | None:
        """Turn over one bit in the memory of an assembler that does not run, as a bad disk does.

        Returns:
            The file, or None if there is no memory to damage.
        """
        files = sorted(file for file in self.state_folder(name).rglob("*") if file.suffix in DATA_SUFFIXES)
        chance.shuffle(files)
        for file in files:
            data = bytearray(file.read_bytes())
            # Behind what was written stands room that is reserved and says nothing.
            if written := len(data.rstrip(b"\0")):
                data[chance.randrange(written)] ^= 1 << chance.randrange(8)
                file.write_bytes(data)
                return file
        return None

    def stop(self) -> None:
        """End everything cleanly; twice is harmless."""
        stop_all(self._running.values())
        self._running.clear()
        for lease in (self._http, *self._admin.values()):
            lease.release()

    def _signal_group(self, name: str, number: signal.Signals) -> None:
        # A service leads a session of its own (`launch.py`); while it is ours and not reaped its id cannot be reused.
        if self.running(name):
            os.killpg(self._running[name].pid, number)


def stop_all(services: Iterable[Service]) -> None:
    """Ask all of them to end at the same time, then wait for each; one that takes too long is killed."""
    services = list(services)
    for service in services:
        service.send(signal.SIGCONT)
        service.send(signal.SIGTERM)
    for service in services:
        service.stop(signal.SIGTERM, STOP_TIMEOUT_S)
