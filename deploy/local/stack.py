"""The stack of the demo on this machine: Kafka, receiver, two assemblers, sink to SQLite.

`python -m deploy.local.stack up` starts it on the ports that the settings have by default and leaves it running,
`down` stops it and whatever a kept demo left. Data stays in `var/`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from deploy.local.kafka import LocalKafka, stop_detached
from deploy.local.processes import LocalServiceError, PortLease, Service, await_ready

REPOSITORY: Final = Path(__file__).resolve().parents[2]
STACK_FOLDER: Final = REPOSITORY / "var" / "stack"
DEMO_FOLDER: Final = REPOSITORY / "var" / "demo"
KAFKA_PORT: Final = 9092
HTTP_PORT: Final = 8080
KAFKA_HEAP_MIB: Final = 512
READY_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 30.0
ASKING_TIMEOUT_S: Final = 2.0

RECEIVER: Final = "receiver"
ASSEMBLERS: Final = ("assembler-1", "assembler-2")
SINK: Final = "sink"
COMMANDS: Final[Mapping[str, tuple[str, ...]]] = {
    RECEIVER: ("ingest", "receive"),
    **dict.fromkeys(ASSEMBLERS, ("consumers", "assemble")),
    SINK: ("consumers", "sink", "sqlite"),
}


class Stack:
    """All processes of one stack, in one folder; methods block until what they say is true."""

    def __init__(
        self,
        folder: Path,
        *,
        detached: bool,
        kafka_port: int | None = None,
        http_port: int | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """Describe it; nothing happens before `start`.

        Args:
            folder: of all its data and logs; found again by the next start.
            detached: it outlives this process; otherwise all of it ends with this process, however that ends.
            kafka_port: None takes a free one.
            http_port: the same.
            settings: `DLR_*` settings beside its own.
        """
        self.folder = folder
        self._detached = detached
        folder.mkdir(parents=True, exist_ok=True)
        ports = () if kafka_port is None else (kafka_port,)
        self.kafka = LocalKafka(
            folder=folder / "kafka", ports=ports, heap_mib=KAFKA_HEAP_MIB, throughput=True, detached=detached
        )
        self._http = PortLease.any() if http_port is None else PortLease.wanted(http_port, "the receiver")
        self._admin = {name: PortLease.any() for name in COMMANDS}
        self._settings = dict(settings or {})
        self._running: dict[str, Service] = {}

    @property
    def url(self) -> str:
        """Where the receiver takes callbacks."""
        return f"http://127.0.0.1:{self._http.port}"

    @property
    def database(self) -> Path:
        """The file of the SQLite sink."""
        return self.folder / "results.db"

    def admin_url(self, name: str) -> str:
        """Where a process answers for health and metrics."""
        return f"http://127.0.0.1:{self._admin[name].port}"

    def log(self, name: str) -> Path:
        """The output of a process."""
        return self.folder / f"{name}.log"

    def environment(self, name: str | None = None) -> dict[str, str]:
        """The environment of a process of the stack, or of a command beside them."""
        own = {key: value for key, value in os.environ.items() if not key.startswith("DLR_")}
        settings = {
            "DLR_KAFKA_BOOTSTRAP_SERVERS": self.kafka.bootstrap,
            "DLR_HTTP_PORT": str(self._http.port),
            "DLR_SPOOL_DIR": str(self.folder / "spool"),
            "DLR_STATE_DIR": str(self.folder / "state"),
            "DLR_SQLITE_PATH": str(self.database),
            **self._settings,
        }
        if name is not None:
            settings["DLR_ADMIN_PORT"] = str(self._admin[name].port)
        return own | settings

    def start(self, say: Callable[[str], None]) -> None:
        """Start everything, in the order in which it is needed.

        Args:
            say: is told what is being started.

        Raises:
            LocalServiceError: something did not come up; the line says what and why.
        """
        say("Kafka (fetched with Maven the first time)")
        self.kafka.start()
        say("topics, receiver, two assemblers, sink")
        self.run("ingest", "topics")
        for name in COMMANDS:
            self.launch(name)
        for name in COMMANDS:
            self.await_ready(name)

    def run(self, *arguments: str) -> str:
        """Run a command of the product to its end and return its output.

        Raises:
            LocalServiceError: it ended with another status than 0.
        """
        command = [sys.executable, "-m", *arguments]
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, cwd=REPOSITORY, env=self.environment()
        )
        if done.returncode != 0:
            raise LocalServiceError(f"`python -m {' '.join(arguments)}` failed: {done.stderr.strip()}")
        return done.stdout

    def launch(self, name: str) -> None:
        """Start one process."""
        command = [sys.executable, "-m", *COMMANDS[name]]
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

    def kill(self, name: str) -> None:
        """End a process with SIGKILL."""
        self._running[name].kill()

    def stop(self) -> None:
        """End everything cleanly, Kafka last; twice is harmless."""
        for service in self._running.values():
            service.send(signal.SIGTERM)
        for service in self._running.values():
            service.stop(signal.SIGTERM, STOP_TIMEOUT_S)
        self._running.clear()
        self.kafka.stop()


def down(folder: Path) -> int:
    """Stop what a detached stack left running in that folder; return the number of processes."""
    found = [service for file in sorted(folder.glob("*.pid")) if (service := Service.recall(file)) is not None]
    for service in found:
        service.send(signal.SIGTERM)
    for service in found:
        service.stop(signal.SIGTERM, STOP_TIMEOUT_S)
    for file in folder.glob("*.pid"):
        file.unlink()
    return len(found) + stop_detached(folder / "kafka")


def where_to_look(stack: Stack) -> str:
    """Lines that tell a person what runs where."""
    return "\n".join(
        [
            f"callbacks   {stack.url}/batchReport and {stack.url}/report",
            f"Kafka       {stack.kafka.bootstrap}",
            f"results     {stack.database} (table message_results)",
            *(f"{name:<11} {stack.admin_url(name)}/healthz, log {stack.log(name)}" for name in COMMANDS),
            "stop it     make down",
        ]
    )


def main() -> int:
    """`up` or `down`."""
    if sys.argv[1:] == ["down"]:
        print(f"stopped {down(STACK_FOLDER) + down(DEMO_FOLDER)} processes")
        return 0
    if sys.argv[1:] != ["up"]:
        print("usage: python -m deploy.local.stack up|down", file=sys.stderr)
        return 2
    try:
        if down(STACK_FOLDER):
            print("stopped the stack that was running")
        stack = Stack(STACK_FOLDER, detached=True, kafka_port=KAFKA_PORT, http_port=HTTP_PORT)
        try:
            stack.start(lambda what: print(f"starting {what}", flush=True))
        except BaseException:
            stack.stop()
            raise
    except LocalServiceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    print(where_to_look(stack))
    return 0


if __name__ == "__main__":
    sys.exit(main())
