"""The stack of the demo on this machine: Kafka, receiver, two assemblers, sink to SQLite.

`python -m deploy.local.stack up` starts it on the ports that the settings have by default (`DLRFLOW_KAFKA_PORT` and
`DLR_HTTP_PORT` name others) and leaves it running, `down` stops it and whatever a kept demo left. Data stays in `var/`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Final, Protocol

from deploy.local.kafka import LocalKafka, stop_detached
from deploy.local.processes import LocalServiceError, Service
from deploy.local.product import ASSEMBLERS, COMMANDS, RECEIVER, REPOSITORY, SINK, Product, stop_all

__all__ = ["ASSEMBLERS", "COMMANDS", "DEMO_FOLDER", "RECEIVER", "REPOSITORY", "SINK", "Stack", "down", "where_to_look"]

STACK_FOLDER: Final = REPOSITORY / "var" / "stack"
DEMO_FOLDER: Final = REPOSITORY / "var" / "demo"
PORTS: Final = {"DLRFLOW_KAFKA_PORT": 9092, "DLR_HTTP_PORT": 8080}
"""Of `up`, by the variable of the environment that names another."""

KAFKA_HEAP_MIB: Final = 512


class KafkaService(Protocol):
    """The Kafka of a stack: `LocalKafka`, or one in a container."""

    @property
    def bootstrap(self) -> str:
        """What clients are given, once it was started."""
        ...

    def start(self) -> str:
        """Start it and return `bootstrap`."""
        ...

    def stop(self) -> None:
        """End it; twice is harmless."""
        ...


class Stack(Product):
    """All processes of one stack and their Kafka, in one folder; methods block until what they say is true."""

    def __init__(
        self,
        folder: Path,
        *,
        detached: bool,
        kafka: KafkaService | None = None,
        kafka_port: int | None = None,
        http_port: int | None = None,
        commands: Mapping[str, tuple[str, ...]] = COMMANDS,
        guests: Collection[str] = (),
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """Describe it; nothing happens before `start`.

        Args:
            folder: of all its data and logs; found again by the next start.
            detached: it outlives this process; otherwise all of it ends with this process, however that ends.
            kafka: one that has not been started; None makes a node in the folder.
            kafka_port: of that node; None takes a free one.
            http_port: of the receiver; the same.
            commands: the processes of the product.
            guests: those of them that `start` leaves to `launch`.
            settings: `DLR_*` settings beside its own.
        """
        super().__init__(
            folder,
            "",
            detached=detached,
            http_port=http_port,
            commands=commands,
            guests=guests,
            settings=settings,
        )
        ports = () if kafka_port is None else (kafka_port,)
        self.kafka: KafkaService = kafka or LocalKafka(
            folder=folder / "kafka", ports=ports, heap_mib=KAFKA_HEAP_MIB, throughput=True, detached=detached
        )

    @property
    def bootstrap(self) -> str:
        """What clients of its Kafka are given, once that was started."""
        return self.kafka.bootstrap

    def start(self, say: Callable[[str], None] = lambda _: None) -> None:
        """Start everything, in the order in which it is needed.

        Args:
            say: is told what is being started.

        Raises:
            LocalServiceError: something did not come up; the line says what and why.
        """
        say("Kafka (fetched with Maven the first time)")
        self.kafka.start()
        say("topics, receiver, two assemblers, sink")
        super().start()

    def stop(self) -> None:
        """End everything cleanly, Kafka last; twice is harmless."""
        super().stop()
        self.kafka.stop()


def down(folder: Path) -> int:
    """Stop what a detached stack left running in that folder; return the number of processes."""
    found = [service for file in sorted(folder.glob("*.pid")) if (service := Service.recall(file)) is not None]
    stop_all(found)
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
        kafka_port, http_port = (int(os.environ.get(name, port)) for name, port in PORTS.items())
        stack = Stack(STACK_FOLDER, detached=True, kafka_port=kafka_port, http_port=http_port)
        try:
            stack.start(lambda what: print(f"starting {what}", flush=True))
        except BaseException:
            stack.stop()
            raise
    except LocalServiceError as error:
        print(f"error: {error} (other ports: {', '.join(PORTS)})", file=sys.stderr)
        return 3
    print(where_to_look(stack))
    return 0


if __name__ == "__main__":
    sys.exit(main())
