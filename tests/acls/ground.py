"""A Kafka on which nobody may do anything, and the names of one trial on it."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from unittest import mock

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.conn import AIOKafkaConnection
from aiokafka.protocol.admin import CreateAclsRequest, DeleteAclsRequest, DescribeAclsRequest

from deploy.local.kafka import LocalKafka
from deploy.local.kafka_security import Security
from ingest.contract.acls import Acl, Names, Resource
from tests.assembling import until

PASSWORD: Final = "correct-horse"  # noqa: S105 - of a Kafka that lives as long as a test
USERS: Final = ("receiver", "drainer", "topics-maker", "sinker", "looker", "newcomer")
"""Who can log in with a password. With a certificate anybody can."""

END_TIMEOUT_S: Final = 0.5
"""Of a connection that was never made there is no end."""

_TYPES: Final = {Resource.TOPIC: 2, Resource.GROUP: 3, Resource.TRANSACTIONAL_ID: 5}
_OPERATIONS: Final = {"Read": 3, "Write": 4, "Create": 5, "Describe": 8, "DescribeConfigs": 10}
_LITERAL, _PREFIXED, _ALLOW, _ANY = 3, 4, 3, 1
"""Codes of Kafka's protocol (`org.apache.kafka.common.acl`, `...common.resource`)."""


class Guarded:
    """A Kafka with listeners for logins, and its administrator."""

    def __init__(self, kafka: LocalKafka, security: Security) -> None:
        self.kafka = kafka
        self.security = security

    def by_certificate(self, user: str) -> dict[str, Any]:
        """The settings of somebody who shows a certificate."""
        pair = self.security.client(user)
        return {
            "kafka_bootstrap_servers": self.kafka.secured("MTLS"),
            "kafka_security_protocol": "SSL",
            "kafka_ca_file": str(self.security.ca_file),
            "kafka_cert_file": str(pair.cert_file),
            "kafka_key_file": str(pair.key_file),
        }

    def by_password(
        self, user: str, mechanism: str, *, listener: str = "SASL_SSL", password: str = PASSWORD
    ) -> dict[str, Any]:
        """The settings of somebody who knows a password."""
        protocol = self.security.protocols[listener]
        ca_file = {"kafka_ca_file": str(self.security.ca_file)} if protocol == "SASL_SSL" else {}
        return {
            "kafka_bootstrap_servers": self.kafka.secured(listener),
            "kafka_security_protocol": protocol,
            "kafka_sasl_mechanism": mechanism,
            "kafka_sasl_username": user,
            "kafka_sasl_password": password,
            **ca_file,
        }

    async def allow(self, user: str, acls: Iterable[Acl]) -> None:
        """Give somebody these rights; on return the broker knows."""
        await self._change(user, [(acl, True) for acl in acls])

    async def forbid(self, user: str, acls: Iterable[Acl]) -> None:
        """Take rights away; on return the broker knows."""
        await self._change(user, [(acl, False) for acl in acls])

    async def _change(self, user: str, changes: Iterable[tuple[Acl, bool]]) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.kafka.bootstrap)
        await admin.start()
        principal = f"User:{user}"
        try:
            before, wanted = await _known(admin, principal), 0
            for acl, given in changes:
                pattern = _PREFIXED if acl.prefixed else _LITERAL
                place = (_TYPES[acl.resource], acl.name, pattern, principal, "*", _OPERATIONS[acl.operation], _ALLOW)
                await admin._send_request((CreateAclsRequest if given else DeleteAclsRequest)(*place))
                wanted += 1 if given else -1

            async def told() -> bool:
                return await _known(admin, principal) == before + wanted

            await until(told)
        finally:
            await admin.close()


async def _known(admin: AIOKafkaAdminClient, principal: str) -> int:
    """How many rights of somebody the broker knows."""
    answer = await admin._send_request(DescribeAclsRequest(_ANY, None, _ANY, principal, None, _ANY, _ANY))
    return sum(len(resource[-1]) for resource in answer.resources)


@asynccontextmanager
async def all_connections_ended() -> AsyncIterator[None]:
    """Wait at the end until every connection of a client in this process is closed.

    A client closes its connections without waiting for that, and with TLS it takes the broker's answer.
    """
    closing: list[asyncio.Future[None]] = []
    close = AIOKafkaConnection.close

    def note(self: Any, *arguments: Any, **options: Any) -> Any:
        closed = close(self, *arguments, **options)
        if closed is not None:
            closing.append(closed)
        return closed

    with mock.patch.object(AIOKafkaConnection, "close", note):
        yield
    if closing:
        await asyncio.wait(set(closing), timeout=END_TIMEOUT_S)


@contextmanager
def guarded() -> Iterator[Guarded]:
    """Start such a Kafka, and end it."""
    with TemporaryDirectory(prefix="dlrflow-security-") as folder:
        security = Security(Path(folder), dict.fromkeys(USERS, PASSWORD))
        with LocalKafka(security=security) as kafka:
            yield Guarded(kafka, security)


class Ground:
    """The names of one trial, and who tries."""

    def __init__(self, guarded: Guarded, prefix: str, folder: Path, login: Mapping[str, Any]) -> None:
        """Describe it.

        Args:
            guarded: the Kafka.
            prefix: of every name.
            folder: for what processes keep.
            login: settings of whoever tries.
        """
        self.guarded = guarded
        self.prefix = prefix
        self.folder = folder
        self.login = dict(login)
        self.administrator: dict[str, Any] = {"kafka_bootstrap_servers": guarded.kafka.bootstrap}
        self.names = Names(
            reports_topic=f"{prefix}reports",
            results_topic=f"{prefix}results",
            dead_letters_topic=f"{prefix}dead",
            group_id=f"{prefix}group",
            sink_group_id=f"{prefix}sink",
        )
        self.topics: dict[str, Any] = {
            "reports_topic": self.names.reports_topic,
            "results_topic": self.names.results_topic,
            "dead_letters_topic": self.names.dead_letters_topic,
        }
