"""What all Kafka clients share: how to reach the brokers, and the administration of topics.

A client that names a topic which does not exist can create it with the broker's defaults. `TopicAdmin` therefore never
asks for a topic by name: it lists all of them, and describes the configuration of those that it saw.
"""

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, UnknownTopicOrPartitionError, for_code
from pydantic import SecretStr

from ingest.runtime.backoff import Backoff
from ingest.runtime.clock import Clock, SystemClock
from ingest.runtime.connections import notice_resets
from ingest.runtime.errors import ServiceAwayError, UsageError
from ingest.runtime.first_answer import REQUEST_TIMEOUT_MS, first_answer, user_of, words_of
from ingest.runtime.rights import R, Right, lacking

T = TypeVar("T")

BrokerError = KafkaError
"""What clients raise when brokers do not do what they were asked."""

START_PATIENCE_S = 30.0
_RETRY_FIRST_S = 0.2
_RETRY_MOST_S = 2.0
_CLOSE_S = 2.0
_USABLE_S = 15.0
_LOOK_FIRST_S = 0.02
_LOOK_MOST_S = 0.5


class KafkaLogin(Protocol):
    """The settings that say where the brokers are and how to log in."""

    @property
    def kafka_bootstrap_servers(self) -> str: ...  # noqa: D102
    @property
    def kafka_security_protocol(self) -> str: ...  # noqa: D102
    @property
    def kafka_sasl_mechanism(self) -> str | None: ...  # noqa: D102
    @property
    def kafka_sasl_username(self) -> str | None: ...  # noqa: D102
    @property
    def kafka_sasl_password(self) -> SecretStr | None: ...  # noqa: D102
    @property
    def kafka_ca_file(self) -> Path | None: ...  # noqa: D102
    @property
    def kafka_cert_file(self) -> Path | None: ...  # noqa: D102
    @property
    def kafka_key_file(self) -> Path | None: ...  # noqa: D102


class TopicWish(Protocol):
    """A topic to be made."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def partitions(self) -> int: ...  # noqa: D102
    @property
    def replication(self) -> int: ...  # noqa: D102
    @property
    def configs(self) -> Mapping[str, str]: ...  # noqa: D102


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicState:
    """A topic as the brokers have it.

    Attributes:
        replication: replicas of its least replicated partition.
        configs: effective configuration; empty if it was not asked for.
    """

    partitions: int
    replication: int
    configs: Mapping[str, str]


def client_options(login: KafkaLogin) -> dict[str, Any]:
    """Arguments that every aiokafka client takes: addresses, protocol, TLS context, login. They hold the password.

    Clients made afterwards survive connections that brokers reset (`ingest.runtime.connections`).

    Raises:
        UsageError: a certificate or key cannot be read.
    """
    notice_resets()
    options: dict[str, Any] = {
        "bootstrap_servers": [server.strip() for server in login.kafka_bootstrap_servers.split(",")],
        "security_protocol": login.kafka_security_protocol,
    }
    if login.kafka_security_protocol.endswith("SSL"):
        options["ssl_context"] = _tls(login)
    if login.kafka_sasl_mechanism and login.kafka_sasl_password:
        options["sasl_mechanism"] = login.kafka_sasl_mechanism
        options["sasl_plain_username"] = login.kafka_sasl_username
        options["sasl_plain_password"] = login.kafka_sasl_password.get_secret_value()
    return options


def refuse_lacking(rights: Sequence[Right], user: str) -> None:
    """End a command that may not do what it is for.

    Args:
        rights: those that are missing.
        user: who does not have them, in words.

    Raises:
        UsageError: there are any.
    """
    if rights:
        listed = ", ".join(f"{right.operation} on {right.resource} {right.name}" for right in rights)
        raise UsageError(f"Kafka does not allow {user}: {listed}; `python -m ingest acls` says what is needed")


def _tls(login: KafkaLogin) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=login.kafka_ca_file)
    except OSError as error:
        raise UsageError(f"the certificates in {login.kafka_ca_file} cannot be used: {error.strerror}") from None
    if login.kafka_cert_file and login.kafka_key_file:
        try:
            context.load_cert_chain(login.kafka_cert_file, login.kafka_key_file, password=_no_password)
        except OSError as error:
            raise UsageError(
                f"the certificate {login.kafka_cert_file} with the key {login.kafka_key_file} cannot be used: "
                f"{error.strerror}"
            ) from None
    return context


def _no_password() -> str:
    raise UsageError("the key for Kafka is encrypted; give one that is not")


class TopicAdmin:
    """Looks at topics and makes them; an async context manager that connects and closes.

    Args:
        options: from `client_options`.
        patience_s: how long entering, and a look, may wait for a broker. None: entering waits for ever, and a look
            fails with what the first broker that was asked came to.
        clock: time for the waits.
    """

    def __init__(
        self, options: Mapping[str, Any], *, patience_s: float | None = START_PATIENCE_S, clock: Clock | None = None
    ) -> None:
        self._options = options
        self._patience_s = patience_s
        self._clock = clock or SystemClock()
        self._client: AIOKafkaAdminClient | None = None
        self._last_error = ""

    async def __aenter__(self) -> Self:
        """Connect.

        Raises:
            LoginRefusedError: a broker answered, and that was that.
            ServiceAwayError: no broker answered in time.
        """
        try:
            async with asyncio.timeout(self._patience_s):
                await self._connect()
        except TimeoutError:
            servers = ", ".join(self._options["bootstrap_servers"])
            raise ServiceAwayError(
                f"Kafka at {servers} did not answer within {self._patience_s:g} s{self._last_error}"
            ) from None
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def existing(self, *, describe: Collection[str] | None = None) -> dict[str, TopicState]:
        """All topics there are, by name.

        Args:
            describe: names whose configuration is wanted; those that do not exist are not asked for. None: of all.

        Raises:
            ServiceAwayError: no broker answered in time.
            BrokerError: it may not be looked at.
        """
        return await self._patiently(lambda: self._existing(describe))

    async def lacking(self, rights: Iterable[R]) -> list[R]:
        """Those of the rights that this user does not have (`ingest.runtime.rights`). Raises what `existing` does."""
        wanted = list(rights)
        return await self._patiently(lambda: lacking(self._admin, wanted))

    async def demand(self, rights: Iterable[Right]) -> None:
        """Make sure of rights. Raises what `existing` does, and `UsageError` if one is missing."""
        refuse_lacking(await self.lacking(rights), user_of(self._options))

    async def cluster_id(self) -> str:
        """The id of the cluster, "" if it has none. Raises what `existing` does."""

        async def ask() -> str:
            return str((await self._admin.describe_cluster()).get("cluster_id") or "")

        return await self._patiently(ask)

    async def _existing(self, describe: Collection[str] | None) -> dict[str, TopicState]:
        found = {
            topic["topic"]: topic["partitions"]
            for topic in await self._admin.describe_topics()
            if not topic["error_code"]
        }
        wanted = [name for name in found if describe is None or name in describe]
        configs = await self._configs(wanted)
        return {
            name: TopicState(
                partitions=len(partitions),
                replication=min((len(partition["replicas"]) for partition in partitions), default=0),
                configs=configs.get(name, {}),
            )
            for name, partitions in found.items()
        }

    async def create(self, wishes: Iterable[TopicWish]) -> list[str]:
        """Make topics and return the names of those made; one that exists by now is left as it is.

        On return each of them is listed with a leader for every partition: a broker learns of a topic some time after
        the controller made it.

        Raises:
            UsageError: the brokers refused one, for instance for too many replicas.
            ServiceAwayError: a topic was made but did not become usable in time.
        """
        topics = {
            wish.name: NewTopic(wish.name, wish.partitions, wish.replication, topic_configs=dict(wish.configs))
            for wish in wishes
        }
        if not topics:
            return []
        response = await self._admin.create_topics(list(topics.values()))
        made = []
        for name, code, message in response.topic_errors:
            error = for_code(code)
            if code and error is not TopicAlreadyExistsError:
                raise UsageError(f"Kafka does not create topic {name}: {message or error.__name__}")
            if not code:
                made.append(name)
        try:
            async with asyncio.timeout(_USABLE_S):
                await self._usable(topics.keys())
        except TimeoutError:
            raise ServiceAwayError(f"Kafka made topics that have no leaders after {_USABLE_S:g} s") from None
        return made

    @property
    def _admin(self) -> AIOKafkaAdminClient:
        if self._client is None:
            raise RuntimeError("enter the context first")
        return self._client

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask again until somebody answers: the client asks any broker that it knows of, and one may be away."""
        if self._patience_s is None:
            return await ask()
        backoff = Backoff(_RETRY_FIRST_S, _RETRY_MOST_S)
        why = "no answer"
        try:
            async with asyncio.timeout(self._patience_s):
                while True:
                    try:
                        return await ask()
                    except KafkaError as error:
                        if not error.retriable:
                            raise
                        why = str(error)
                    except OSError as error:
                        why = str(error)
                    await self._clock.sleep(backoff.next())
        except TimeoutError:
            raise ServiceAwayError(f"Kafka stayed away for {self._patience_s:g} s: {why}") from None

    async def _connect(self) -> None:
        backoff = Backoff(_RETRY_FIRST_S, _RETRY_MOST_S)
        while self._client is None:
            try:
                await first_answer(self._options)
            except (KafkaError, OSError) as error:
                self._last_error = f": {words_of(error)}"
                await self._clock.sleep(backoff.next())
                continue
            client = AIOKafkaAdminClient(**self._options, request_timeout_ms=REQUEST_TIMEOUT_MS)
            try:
                await client.start()
            except (KafkaError, OSError) as error:
                self._last_error = f": {words_of(error)}"
                await client.close()
                await self._clock.sleep(backoff.next())
            except BaseException:
                await client.close()
                raise
            else:
                self._client = client

    async def _usable(self, names: Collection[str]) -> None:
        backoff = Backoff(_LOOK_FIRST_S, _LOOK_MOST_S)
        while True:
            usable = {
                topic["topic"]
                for topic in await self._admin.describe_topics()
                if topic["partitions"] and all(partition["leader"] >= 0 for partition in topic["partitions"])
            }
            if usable.issuperset(names):
                return
            await self._clock.sleep(backoff.next())

    async def _close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_S):
                    await client.close()

    async def _configs(self, names: Collection[str]) -> dict[str, dict[str, str]]:
        if not names:
            return {}
        asked = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
        configs = {}
        for response in await self._admin.describe_configs(asked):
            for code, message, _kind, name, entries in response.resources:
                error = for_code(code)
                if error is UnknownTopicOrPartitionError:
                    continue  # deleted since it was listed
                if code:
                    raise error(message)
                configs[name] = {entry[0]: entry[1] for entry in entries}
        return configs
