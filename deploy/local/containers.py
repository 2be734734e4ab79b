"""Kafka and PostgreSQL in containers, for machines where a Docker engine answers."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Final

import asyncpg
import docker  # type: ignore[import-untyped]
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError
from docker.errors import DockerException  # type: ignore[import-untyped]
from testcontainers.core.container import DockerContainer

from deploy.local.processes import LocalServiceError, PortLease, answer

__all__ = ["ContainerKafka", "DockerException", "engine_answers", "kafka", "postgres"]

KAFKA_IMAGE: Final = "apache/kafka:4.3.1"
POSTGRES_IMAGE: Final = "postgres:17.5"
ENGINE_SOCKET: Final = Path("/var/run/docker.sock")
ENGINE_TIMEOUT_S: Final = 3
START_TIMEOUT_S: Final = 90
POLL_S: Final = 0.2


def engine_answers() -> bool:
    """Whether a Docker engine can be used; without one nothing is contacted."""
    if "DOCKER_HOST" not in os.environ and not ENGINE_SOCKET.exists():
        return False
    try:
        client = docker.from_env(timeout=ENGINE_TIMEOUT_S)
    except DockerException:
        return False
    with contextlib.closing(client):
        try:
            return bool(client.ping())
        except (DockerException, OSError):
            return False


@contextlib.contextmanager
def kafka() -> Iterator[str]:
    """Run one node and yield its bootstrap servers."""
    # A broker tells its clients where to find it, so the port must be known before it starts.
    lease = PortLease.any()
    container = DockerContainer(KAFKA_IMAGE).with_bind_ports(9092, lease.port)
    address = f"{container.get_docker_client().host()}:{lease.port}"
    container.with_envs(
        KAFKA_NODE_ID="1",
        KAFKA_PROCESS_ROLES="broker,controller",
        KAFKA_CONTROLLER_QUORUM_VOTERS="1@localhost:9093",
        KAFKA_LISTENERS="PLAINTEXT://0.0.0.0:9092,CONTROLLER://localhost:9093",
        KAFKA_ADVERTISED_LISTENERS=f"PLAINTEXT://{address}",
        KAFKA_CONTROLLER_LISTENER_NAMES="CONTROLLER",
        KAFKA_LISTENER_SECURITY_PROTOCOL_MAP="CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
        KAFKA_AUTO_CREATE_TOPICS_ENABLE="false",
        KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR="1",
        KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR="1",
        KAFKA_TRANSACTION_STATE_LOG_MIN_ISR="1",
        KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS="0",
        KAFKA_GROUP_MIN_SESSION_TIMEOUT_MS="1000",
    )

    async def ask() -> None:
        client = AIOKafkaClient(bootstrap_servers=address)
        try:
            await client.bootstrap()
        finally:
            await client.close()

    with contextlib.ExitStack() as stack:
        stack.callback(lease.release)
        stack.enter_context(container)
        _await_answer(ask, KAFKA_IMAGE)
        yield address


class ContainerKafka:
    """One node in a container, where a stack would otherwise run one of its own; it ends with this process."""

    def __init__(self) -> None:
        self._running = contextlib.ExitStack()
        self.bootstrap = ""

    def start(self) -> str:
        """Run it and return `bootstrap`.

        Raises:
            LocalServiceError: it cannot be had.
        """
        try:
            self.bootstrap = self._running.enter_context(kafka())
        except DockerException as error:
            raise LocalServiceError(f"Kafka cannot be run in a container: {error}") from error
        return self.bootstrap

    def stop(self) -> None:
        """End it; twice is harmless."""
        self._running.close()


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """Run one server and yield its DSN."""
    container = DockerContainer(POSTGRES_IMAGE).with_exposed_ports(5432)
    container.with_envs(POSTGRES_HOST_AUTH_METHOD="trust", POSTGRES_USER="dlrflow", POSTGRES_DB="dlrflow")
    with container:
        address = f"{container.get_container_host_ip()}:{container.get_exposed_port(5432)}"
        dsn = f"postgresql://dlrflow@{address}/dlrflow"

        async def ask() -> None:
            connection = await asyncpg.connect(dsn, timeout=ENGINE_TIMEOUT_S)
            await connection.close(timeout=ENGINE_TIMEOUT_S)

        _await_answer(ask, POSTGRES_IMAGE)
        yield dsn


def _await_answer(ask: Callable[[], Coroutine[None, None, None]], image: str) -> None:
    until = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until:
        try:
            return answer(ask)
        except (KafkaError, asyncpg.PostgresError, OSError):
            time.sleep(POLL_S)
    raise LocalServiceError(f"a container of {image} did not answer within {START_TIMEOUT_S} s")
