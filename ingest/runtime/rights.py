"""What of the rights that are needed a Kafka user does not have, asked of the brokers themselves.

A right that is missing shows late and badly: a topic that may not be seen is one that does not exist, a batch that may
not be written looks like a broker that is away. Brokers say for topics and groups what may be done with them (KIP-430).
For a transactional id they only say whether it may be seen. aiokafka's own requests stop short of these versions, or
read the answer wrongly.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    IncompatibleBrokerVersion,
    NoError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.protocol.admin import DescribeGroupsRequest_v3, DescribeGroupsResponse_v3
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.coordination import FindCoordinatorRequest
from aiokafka.protocol.types import Array, Boolean, Int16, Int32, Schema, String

_BITS: Final[Mapping[str, int]] = {"Read": 3, "Write": 4, "Create": 5, "Describe": 8, "DescribeConfigs": 10}
"""Codes of `org.apache.kafka.common.acl.AclOperation`: each a bit of what may be done."""

_UNSEEN: Final = 1 << _BITS["Create"] | 1 << _BITS["DescribeConfigs"]
"""What may be allowed on a topic that may not be seen: these do not bring Describe with them, the others do."""

_GROUP, _TRANSACTION = 0, 1


class Right(Protocol):
    """Something that must be allowed."""

    @property
    def resource(self) -> str:
        """`topic`, `group` or `transactional-id`."""
        ...

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def operation(self) -> str: ...  # noqa: D102


R = TypeVar("R", bound=Right)


class _MetadataResponse(Response):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 8
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("brokers", Array(("node_id", Int32), ("host", String()), ("port", Int32), ("rack", String()))),
        ("cluster_id", String()),
        ("controller_id", Int32),
        (
            "topics",
            Array(
                ("error_code", Int16),
                ("topic", String()),
                ("is_internal", Boolean),
                (
                    "partitions",
                    Array(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", Array(Int32)),
                        ("isr", Array(Int32)),
                        ("offline_replicas", Array(Int32)),
                    ),
                ),
                ("authorized_operations", Int32),
            ),
        ),
        ("cluster_authorized_operations", Int32),
    )


class _MetadataStruct(RequestStruct):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 8
    RESPONSE_TYPE = _MetadataResponse
    SCHEMA = Schema(
        ("topics", Array(String())), ("create", Boolean), ("cluster_operations", Boolean), ("topic_operations", Boolean)
    )


class _TopicOperations(Request[_MetadataStruct]):  # type: ignore[misc]
    API_KEY = 3

    def __init__(self, topics: Sequence[str]) -> None:
        self._topics = list(topics)

    def build(self, request_struct_class: type[_MetadataStruct]) -> _MetadataStruct:
        """Ask for these topics without bringing any into being."""
        return request_struct_class(self._topics, False, False, True)  # noqa: FBT003


class _GroupsStruct(DescribeGroupsRequest_v3):  # type: ignore[misc]
    RESPONSE_TYPE = DescribeGroupsResponse_v3


class _GroupOperations(Request[_GroupsStruct]):  # type: ignore[misc]
    API_KEY = 15

    def __init__(self, group: str) -> None:
        self._group = group

    def build(self, request_struct_class: type[_GroupsStruct]) -> _GroupsStruct:
        """Ask for one group, which need not exist."""
        return request_struct_class([self._group], True)  # noqa: FBT003


async def lacking(client: AIOKafkaAdminClient, rights: Iterable[R]) -> list[R]:
    """Those of the rights that this user does not have, in their order. Nothing comes into being by the question.

    On a topic that does not exist brokers do not say what may be done. Of a transactional id only is known whether it
    may be seen, which goes with Write; of a group of ids, its first is asked for. Brokers before 2.3 say nothing.

    Raises:
        KafkaError: a broker did not answer, or not with an answer.
    """
    wanted = list(rights)
    topics = sorted({right.name for right in wanted if right.resource == "topic"})
    try:
        allowed = await _topics(client, topics) if topics else {}
        for right in wanted:
            place = (right.resource, right.name)
            if right.resource == "group" and place not in allowed:
                allowed[place] = await _group(client, right.name)
            elif right.resource == "transactional-id" and place not in allowed:
                allowed[place] = await _transactional_id(client, right.name)
    except (IncompatibleBrokerVersion, NotImplementedError):
        return []
    return [right for right in wanted if not allowed[right.resource, right.name] >> _BITS[right.operation] & 1]


async def _topics(client: AIOKafkaAdminClient, names: Sequence[str]) -> dict[tuple[str, str], int]:
    response = await _ask(client, _TopicOperations(names))
    allowed = {}
    for code, name, _internal, _partitions, operations in response.topics:
        error = for_code(code)
        if error is TopicAuthorizationFailedError:
            allowed["topic", name] = _UNSEEN
        elif error is UnknownTopicOrPartitionError:
            allowed["topic", name] = -1
        else:
            # A leader that is missing just now does not keep a broker from saying what is allowed.
            allowed["topic", name] = operations
    return allowed


async def _group(client: AIOKafkaAdminClient, name: str) -> int:
    found = await _ask(client, FindCoordinatorRequest(name, _GROUP))
    if for_code(found.error_code) is GroupAuthorizationFailedError:
        return 0
    _raise(found.error_code, name)
    response = await _ask(client, _GroupOperations(name), found.coordinator_id)
    code, operations = response.groups[0][0], response.groups[0][-1]
    if for_code(code) is GroupAuthorizationFailedError:
        return 0
    _raise(code, name)
    return int(operations)


async def _transactional_id(client: AIOKafkaAdminClient, prefix: str) -> int:
    found = await _ask(client, FindCoordinatorRequest(prefix + "0", _TRANSACTION))
    if for_code(found.error_code) is TransactionalIdAuthorizationFailed:
        return 0
    _raise(found.error_code, prefix)
    return -1


def _raise(code: int, name: str) -> None:
    error = for_code(code)
    if error is not NoError:
        raise error(name)


async def _ask(client: AIOKafkaAdminClient, request: Any, node: int | None = None) -> Any:
    return await client._send_request(request, node)  # noqa: SLF001 - nothing public asks this; aiokafka is pinned
