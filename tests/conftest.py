"""Real services for every test that asks for one.

Each is the first of: the one that an environment variable names, a container where a Docker engine answers, a process
of our own (deploy/local). Where none can be had the test fails; it is never skipped.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Final

import pytest

from deploy.local import containers
from deploy.local.kafka import LocalKafka
from deploy.local.postgres import LocalPostgres
from deploy.local.processes import LocalServiceError
from tests.acls.ground import Guarded, all_connections_ended, guarded

CLUSTER_NODES: Final = 3

# Tests say themselves which settings the product sees; what the caller's shell holds only chooses the services.
CALLERS_SETTINGS: Final = {name: os.environ.pop(name) for name in sorted(os.environ) if name.startswith("DLR_")}


@pytest.fixture(scope="session")
def kafka_bootstrap() -> Iterator[str]:
    """Bootstrap servers of a Kafka that all tests share: use topics with `topic_prefix`, do not harm it."""
    named = CALLERS_SETTINGS.get("DLR_KAFKA_BOOTSTRAP_SERVERS")
    with contextlib.ExitStack() as stack:
        yield named or _first_of(stack, containers.kafka, _local_kafka)


@pytest.fixture(scope="session")
def postgres_dsn() -> Iterator[str]:
    """DSN of a PostgreSQL that all tests share: make a schema or table names of your own."""
    named = CALLERS_SETTINGS.get("DLR_POSTGRES_DSN")
    with contextlib.ExitStack() as stack:
        yield named or _first_of(stack, containers.postgres, _local_postgres)


@pytest.fixture(scope="session")
def _own_guarded() -> Iterator[Guarded]:
    with guarded() as kafka:
        yield kafka


@pytest.fixture
async def guarded_kafka(_own_guarded: Guarded) -> AsyncIterator[Guarded]:
    """One node with TLS and logins, on which nobody may do anything without an ACL; always a process of our own."""
    async with all_connections_ended():
        yield _own_guarded


@pytest.fixture
def topic_prefix() -> str:
    """Begin every topic, group and transactional id of one test with this; no other test has it."""
    return f"t{uuid.uuid4().hex[:12]}."


@pytest.fixture(scope="session")
def _own_node() -> Iterator[LocalKafka]:
    with LocalKafka() as kafka:
        yield kafka


@pytest.fixture(scope="session")
def _own_cluster() -> Iterator[LocalKafka]:
    with LocalKafka(CLUSTER_NODES) as kafka:
        yield kafka


@pytest.fixture(scope="session")
def _own_postgres() -> Iterator[LocalPostgres]:
    with LocalPostgres() as postgres:
        yield postgres


@pytest.fixture
def kafka_node(_own_node: LocalKafka) -> Iterator[LocalKafka]:
    """One node that a test may kill, freeze and restart; whole again for the next test."""
    yield _own_node
    _own_node.heal()


@pytest.fixture
def kafka_cluster(_own_cluster: LocalKafka) -> Iterator[LocalKafka]:
    """Three nodes that a test may kill, freeze and restart; whole again for the next test."""
    yield _own_cluster
    _own_cluster.heal()


@pytest.fixture
def postgres_server(_own_postgres: LocalPostgres) -> Iterator[LocalPostgres]:
    """Give a PostgreSQL that a test may kill, freeze and restart; whole again for the next test."""
    yield _own_postgres
    _own_postgres.heal()


@contextlib.contextmanager
def _local_kafka() -> Iterator[str]:
    with LocalKafka() as kafka:
        yield kafka.bootstrap


@contextlib.contextmanager
def _local_postgres() -> Iterator[str]:
    with LocalPostgres() as postgres:
        yield postgres.dsn


def _first_of(
    stack: contextlib.ExitStack,
    container: Callable[[], contextlib.AbstractContextManager[str]],
    local: Callable[[], contextlib.AbstractContextManager[str]],
) -> str:
    """Enter the first that can be had, and say of all why not when none can."""
    reasons = []
    if containers.engine_answers():
        try:
            return stack.enter_context(container())
        except (containers.DockerException, LocalServiceError) as error:
            reasons.append(f"in a container: {error}")
    try:
        return stack.enter_context(local())
    except LocalServiceError as error:
        reasons.append(f"on this machine: {error}")
    pytest.fail("; ".join(reasons), pytrace=False)
