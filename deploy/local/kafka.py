"""Apache Kafka on this machine: one KRaft node, or several as one cluster, on free ports in a folder of its own.

    with LocalKafka() as kafka:
        print(kafka.bootstrap)

Nodes are numbered from 1; each is broker and controller. Topics are never made by naming them.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError

from deploy.local import cache
from deploy.local.processes import LocalServiceError, PortLease, Service, answer, await_ready, port_open

if TYPE_CHECKING:
    from deploy.local.kafka_security import Security

HEAP_MIB: Final = 256
JAVA_LEAST: Final = 17
START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 30.0
LOGGING: Final = Path(__file__).with_name("log4j2.yaml")
QUIET_JVM: Final = ("-XX:-UsePerfData", "-Xlog:disable")
"""No shared file under /tmp, no remarks on class archives in the log."""
SMALL_JVM: Final = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
"""Quick to start and small; for throughput a node wants the default collector and the full compiler."""


class LocalKafka:
    """A Kafka of one or more nodes; all methods block until what they say is true."""

    def __init__(
        self,
        nodes: int = 1,
        *,
        folder: Path | None = None,
        ports: Sequence[int] = (),
        heap_mib: int = HEAP_MIB,
        throughput: bool = False,
        detached: bool = False,
        security: Security | None = None,
    ) -> None:
        """Describe it; nothing happens before `start`.

        Args:
            nodes: how many; internal topics have replication min(nodes, 3) and need a majority of that in sync.
            folder: where data and logs are kept and found again; default is a temporary one, removed by `stop`.
            ports: the port that clients use, for each node; default is free ones below 32768.
            heap_mib: heap of each node.
            throughput: full compiler and G1 in place of a quick start.
            detached: nodes outlive this process; needs a folder. `stop_detached` ends them.
            security: further listeners (`secured`) with TLS and logins, and ACLs; for one node.
        """
        if detached and folder is None:
            raise LocalServiceError("a detached Kafka needs a folder to be found again")
        if security is not None and nodes != 1:
            raise LocalServiceError("listeners with logins are for a Kafka of one node")
        self._security = security
        self._secured: dict[str, PortLease] = {}
        self.nodes = range(1, nodes + 1)
        self._own_folder = folder is None
        self._folder = folder
        self._wanted_ports = tuple(ports)
        self._heap_mib = heap_mib
        self._throughput = throughput
        self._detached = detached
        self._java: list[str] = []
        self._leases: list[PortLease] = []
        self._running: dict[int, Service] = {}
        self._frozen: set[int] = set()

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def folder(self) -> Path:
        """Where data and logs are."""
        if self._folder is None:
            raise LocalServiceError("Kafka has not been started")
        return self._folder

    @property
    def bootstrap(self) -> str:
        """What clients are given: `host:port` of every node, joined by commas."""
        return ",".join(f"127.0.0.1:{self._port(node)}" for node in self.nodes)

    def secured(self, listener: str) -> str:
        """What clients of a listener with TLS or logins are given (`Security.protocols`)."""
        return f"127.0.0.1:{self._secured[listener].port}"

    def admin_tool(self, main_class: str, *arguments: str) -> None:
        """Run a tool of Kafka's own (a main class of `kafka_2.13`) against this Kafka.

        Raises:
            LocalServiceError: it ended with another status than 0.
        """
        command = [*self._java, main_class, "--bootstrap-server", self.bootstrap, *arguments]
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=self.folder)
        if done.returncode != 0:
            raise LocalServiceError(f"{main_class} failed: {done.stderr.strip() or done.stdout.strip()}")

    def log(self, node: int = 1) -> Path:
        """Return the file with the output of a node."""
        return self._home(node) / "kafka.log"

    def start(self) -> str:
        """Format what is new, start every node, wait until all know each other, and return `bootstrap`.

        Raises:
            LocalServiceError: Java or Maven is missing or too old, a wanted port is taken, a node ends or stays silent.
        """
        self._java = self._java or java_command(heap_mib=self._heap_mib, throughput=self._throughput)
        if self._own_folder:
            self._folder = Path(tempfile.mkdtemp(prefix="dlrflow-kafka-"))
        try:
            self._leases = self._lease_ports()
            with ThreadPoolExecutor(len(self.nodes)) as formatters:
                list(formatters.map(self._format, self.nodes))
            for node in self.nodes:
                self._launch(node)
            self.await_ready()
        except BaseException:
            self.stop()
            raise
        return self.bootstrap

    def stop(self) -> None:
        """End every node and, if it is a temporary one, remove the folder; twice is harmless."""
        for node in list(self._frozen):
            self.thaw(node)
        for service in self._running.values():
            # A temporary folder is thrown away: nothing is gained by letting the nodes tidy it.
            service.send(signal.SIGKILL if self._own_folder else signal.SIGTERM)
        for service in self._running.values():
            service.stop(signal.SIGTERM, STOP_TIMEOUT_S)
        self._running.clear()
        for lease in (*self._leases, *self._secured.values()):
            lease.release()
        if self._own_folder and self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def running(self, node: int = 1) -> bool:
        """Whether the process of a node exists; a frozen one does."""
        return node in self._running and self._running[node].running()

    def pid(self, node: int = 1) -> int:
        """Return the process id of a node that was started."""
        return self._running[node].pid

    def kill(self, node: int = 1) -> None:
        """End a node with SIGKILL; its data stays."""
        self._frozen.discard(node)
        self._running[node].kill()

    def terminate(self, node: int = 1) -> None:
        """End a node cleanly: it hands its partitions over first. The last one of a majority cannot and is killed."""
        self._running[node].stop(signal.SIGTERM, STOP_TIMEOUT_S)

    def freeze(self, node: int = 1) -> None:
        """Stop a node where it stands (SIGSTOP): its connections stay open and nothing answers any more."""
        self._frozen.add(node)
        self._running[node].freeze()

    def thaw(self, node: int = 1) -> None:
        """Let a frozen node go on."""
        self._running[node].thaw()
        self._frozen.discard(node)

    def restart(self, node: int = 1) -> None:
        """Start a node that has ended on its old port and data, and wait until it takes part again."""
        if self.running(node):
            raise LocalServiceError(f"node {node} still runs")
        self._launch(node)
        self.await_ready()

    def heal(self) -> None:
        """Bring back whatever was killed or frozen, and wait until all nodes know each other."""
        for node in self.nodes:
            if node in self._frozen:
                self.thaw(node)
            if not self.running(node):
                self._launch(node)
        self.await_ready()

    def await_ready(self) -> None:
        """Wait until every running node says that all running nodes take records.

        Raises:
            LocalServiceError: one ended, or the time is over.
        """
        up = {node for node in self.nodes if self.running(node) and node not in self._frozen}
        for node in up:
            await_ready(
                self._running[node],
                functools.partial(self._answers, node, up),
                name=f"Kafka node {node}",
                log=self.log(node),
                timeout_s=START_TIMEOUT_S,
            )

    def _answers(self, node: int, expected: set[int]) -> bool:
        """Ask this node for its metadata: a broker is listed in it once the controller has let it take records."""
        port = self._port(node)
        if not port_open(port):
            return False

        async def known() -> set[int]:
            client = AIOKafkaClient(bootstrap_servers=f"127.0.0.1:{port}")
            try:
                await client.bootstrap()
                return {broker.nodeId for broker in client.cluster.brokers()}
            finally:
                await client.close()

        try:
            return answer(known) >= expected
        except KafkaError:
            return False

    def _port(self, node: int) -> int:
        return self._leases[2 * node - 2].port

    def _controller_port(self, node: int) -> int:
        return self._leases[2 * node - 1].port

    def _home(self, node: int) -> Path:
        return self.folder / f"node-{node}"

    def _lease_ports(self) -> list[PortLease]:
        """Lease for each node the port of its clients, then that of its controller."""
        leases: list[PortLease] = []
        for node in self.nodes:
            wanted = self._wanted_ports[node - 1 : node]
            leases.append(PortLease.wanted(wanted[0], "Kafka") if wanted else PortLease.any())
            leases.append(PortLease.any())
        if self._security is not None:
            self._secured = {name: PortLease.any() for name in self._security.protocols}
        return leases

    def _format(self, node: int) -> None:
        home = self._home(node)
        (home / "tmp").mkdir(parents=True, exist_ok=True)
        properties = home / "server.properties"
        properties.write_text("".join(f"{name}={value}\n" for name, value in self._properties(node)))
        if (home / "data" / "meta.properties").exists():
            return
        command = [*self._java, "kafka.tools.StorageTool", "format", "-t", self._cluster_id(), "-c", str(properties)]
        if self._security is not None:
            command += self._security.format_arguments()
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=home)
        if done.returncode != 0:
            raise LocalServiceError(f"Kafka could not format {home}: {done.stderr.strip() or done.stdout.strip()}")

    def _cluster_id(self) -> str:
        """Return an id that is the same for all nodes of this folder and does not look like an option."""
        digest = hashlib.blake2b(str(self.folder).encode(), digest_size=15).digest()
        return base64.urlsafe_b64encode(b"\0" + digest).decode().rstrip("=")

    def _launch(self, node: int) -> None:
        home = self._home(node)
        command = [
            *self._java[:1],
            f"-Dlog4j2.configurationFile={LOGGING}",
            f"-Djava.io.tmpdir={home / 'tmp'}",
            *self._java[1:],
            "kafka.Kafka",
            str(home / "server.properties"),
        ]
        service = Service.start(
            command,
            folder=home,
            log=self.log(node),
            detached=self._detached,
            remove=self.folder if self._own_folder else None,
        )
        self._running[node] = service
        if self._detached:
            service.remember(home / "pid")

    def _properties(self, node: int) -> Iterator[tuple[str, object]]:
        """Yield the configuration of a node: small, quick to elect and to expire, deaf to anything but loopback."""
        replication = min(len(self.nodes), 3)
        in_sync = replication // 2 + 1
        voters = (f"{other}@127.0.0.1:{self._controller_port(other)}" for other in self.nodes)
        client, controller = f"127.0.0.1:{self._port(node)}", f"127.0.0.1:{self._controller_port(node)}"
        yield "process.roles", "broker,controller"
        yield "node.id", node
        yield "controller.quorum.voters", ",".join(voters)
        secured = [f"{name}://{self.secured(name)}" for name in self._secured]
        protocols = [] if self._security is None else [":".join(item) for item in self._security.protocols.items()]
        yield "listeners", ",".join((f"PLAINTEXT://{client}", *secured, f"CONTROLLER://{controller}"))
        yield "advertised.listeners", ",".join((f"PLAINTEXT://{client}", *secured))
        yield "controller.listener.names", "CONTROLLER"
        yield "listener.security.protocol.map", ",".join(("CONTROLLER:PLAINTEXT", "PLAINTEXT:PLAINTEXT", *protocols))
        if self._security is not None:
            yield from self._security.properties()
        yield "log.dirs", self._home(node) / "data"
        # A topic that is only named must not come into being with one partition.
        yield "auto.create.topics.enable", "false"
        yield "num.partitions", 4
        yield "default.replication.factor", replication
        for topic in ("offsets.topic", "transaction.state.log", "share.coordinator.state.topic"):
            yield f"{topic}.replication.factor", replication
            yield f"{topic}.num.partitions", 4
        for topic in ("transaction.state.log", "share.coordinator.state.topic"):
            yield f"{topic}.min.isr", in_sync
        yield "group.initial.rebalance.delay.ms", 0
        # Tests kill members, transactions and brokers; these say how soon the rest of the cluster may believe it.
        yield "group.min.session.timeout.ms", 1000
        yield "transaction.abort.timed.out.transaction.cleanup.interval.ms", 1000
        if not self._throughput:
            # A node that was killed can come back only when its old registration has expired.
            yield "broker.session.timeout.ms", 3000
            yield "broker.heartbeat.interval.ms", 500
        # The default buffer of 128 MiB does not fit a small heap.
        yield "log.cleaner.dedupe.buffer.size", 4 << 20
        yield "log.cleaner.threads", 1


def stop_detached(folder: Path) -> int:
    """Stop the nodes that a detached `LocalKafka` left running in that folder; return how many there were."""
    found = [service for file in sorted(folder.glob("node-*/pid")) if (service := Service.recall(file)) is not None]
    for service in found:
        service.send(signal.SIGTERM)
    for service in found:
        service.stop(signal.SIGTERM, STOP_TIMEOUT_S)
    for file in folder.glob("node-*/pid"):
        file.unlink()
    return len(found)


def java_command(*, heap_mib: int, throughput: bool) -> list[str]:
    """Return how to run a main class of Kafka: the program, its options and the class path, all fetched if needed.

    Raises:
        LocalServiceError: Java or Maven is missing or too old.
    """
    java, version = java_program()
    jars = class_path()
    heap = [f"-Xms{heap_mib}m", f"-Xmx{heap_mib}m"]
    archive = class_archive(java, version, jars)
    shared = [] if archive is None else [f"-XX:SharedArchiveFile={archive}"]
    small = () if throughput else SMALL_JVM
    return [java, *QUIET_JVM, *small, *shared, *heap, "-cp", jars]


def class_path() -> str:
    """Return the class path of Kafka, fetched if needed; always the same text, as class archives ask for."""
    return os.pathsep.join(str(jar) for jar in sorted(cache.fetched("kafka").glob("*.jar")))


def java_program() -> tuple[str, str]:
    """Find Java 17 or newer, `JAVA_HOME` before the PATH; return the program and what it says about itself.

    Raises:
        LocalServiceError: there is none, or it is too old.
    """
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=f"{home}/bin" if home else None)
    if java is None:
        raise LocalServiceError(f"Java {JAVA_LEAST} or newer is needed to run Kafka here: install it, or name a Kafka")
    said = subprocess.run([java, "-version"], check=False, capture_output=True, text=True).stderr
    found = re.search(r'version "(\d+)', said)
    if found is None or int(found[1]) < JAVA_LEAST:
        raise LocalServiceError(
            f"Java {JAVA_LEAST} or newer is needed to run Kafka here; {java} is {said.strip()[:60]}"
        )
    return str(Path(java).resolve()), said


def class_archive(java: str, version: str, jars: str) -> Path | None:
    """Return an archive of loaded classes, which halves the start of a node; None where it cannot be made.

    It is made once per Java and class path, by a node that does nothing but start and end. Without it a node starts all
    the same, so a failure is remembered and no more.
    """
    key = hashlib.sha256(f"{java}\0{version}\0{jars}\0{SMALL_JVM}".encode()).hexdigest()[:12]
    archive = cache.fetched("kafka") / f"classes-{key}.jsa"
    failed = archive.with_suffix(".failed")
    if not archive.exists() and not failed.exists():
        with cache.locked("kafka-classes"):
            if not archive.exists() and not failed.exists():
                _make_archive([java, *QUIET_JVM, *SMALL_JVM, f"-Xmx{HEAP_MIB}m"], jars, archive, failed)
    return archive if archive.exists() else None


def _make_archive(java: list[str], jars: str, archive: Path, failed: Path) -> None:
    unfinished = archive.with_suffix(f".{os.getpid()}")
    kafka = LocalKafka()
    kafka._java = [*java, f"-XX:ArchiveClassesAtExit={unfinished}", "-cp", jars]  # noqa: SLF001 - of this module
    try:
        with kafka:
            kafka.terminate()
        unfinished.rename(archive)
    except (LocalServiceError, OSError) as error:
        unfinished.unlink(missing_ok=True)
        failed.write_text(f"{error}\n")
