"""What each process must be allowed to do on Kafka, and nothing more (docs/acls.md).

An operation implies what brokers say it implies: Read and Write each bring Describe, and Write on any topic brings what
an idempotent producer needs of the cluster. Whoever makes topics needs no right on the cluster either.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from ingest.contract.topics import changelog_topic, transactional_id


class Resource(StrEnum):
    """What a right is on, spelled as the option of `kafka-acls`."""

    TOPIC = "topic"
    GROUP = "group"
    TRANSACTIONAL_ID = "transactional-id"


class Operation(StrEnum):
    """What may be done, spelled as `kafka-acls` does."""

    READ = "Read"
    WRITE = "Write"
    CREATE = "Create"
    DESCRIBE = "Describe"
    DESCRIBE_CONFIGS = "DescribeConfigs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Acl:
    """One right.

    Attributes:
        resource, name: what it is on.
        operation: what may be done with it.
        why: what for, in words.
        prefixed: whether it is on everything that begins with `name`.
        needed: whether the process does not do its work without it.
    """

    resource: Resource
    name: str
    operation: Operation
    why: str
    prefixed: bool = False
    needed: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """The names that rights are on, out of the settings."""

    reports_topic: str
    results_topic: str
    dead_letters_topic: str
    group_id: str
    sink_group_id: str

    @property
    def changelog_topic(self) -> str:
        """The assembler's memory."""
        return changelog_topic(self.group_id, self.reports_topic)


def publishing(names: Names) -> list[Acl]:
    """Of `receive` and `drain`."""
    return [
        _topic(names.reports_topic, Operation.WRITE, "publish reports"),
        _topic(names.dead_letters_topic, Operation.WRITE, "publish what is no report"),
    ]


def receiving(names: Names) -> list[Acl]:
    """Of `receive`, which also looks at how the topics are configured; without that right it says so and goes on."""
    looks = [
        _topic(name, Operation.DESCRIBE_CONFIGS, "name differences at the start", needed=False)
        for name in (names.reports_topic, names.dead_letters_topic)
    ]
    return publishing(names) + looks


def assembling(names: Names) -> list[Acl]:
    """Of `assemble`."""
    every = (names.reports_topic, names.results_topic, names.dead_letters_topic, names.changelog_topic)
    return [
        _topic(names.reports_topic, Operation.READ, "read reports, and commit how far"),
        _topic(names.results_topic, Operation.WRITE, "write results"),
        _topic(names.results_topic, Operation.READ, "see that brokers have ended its transactions"),
        _topic(names.dead_letters_topic, Operation.WRITE, "write what cannot be used"),
        _topic(names.dead_letters_topic, Operation.READ, "see that brokers have ended its transactions"),
        _topic(names.changelog_topic, Operation.READ, "restore the memory"),
        _topic(names.changelog_topic, Operation.WRITE, "write the memory"),
        *(_topic(name, Operation.DESCRIBE_CONFIGS, "fit batches, name differences at the start") for name in every),
        Acl(
            resource=Resource.GROUP, name=names.group_id, operation=Operation.READ, why="share partitions, keep offsets"
        ),
        Acl(
            resource=Resource.TRANSACTIONAL_ID,
            name=transactional_ids(names),
            operation=Operation.WRITE,
            why="one transactional producer per partition",
            prefixed=True,
        ),
    ]


def delivering(names: Names) -> list[Acl]:
    """Of `sink`, whatever its kind."""
    return [
        _topic(names.results_topic, Operation.READ, "read results"),
        _topic(names.dead_letters_topic, Operation.WRITE, "write what the destination refuses"),
        Acl(
            resource=Resource.GROUP,
            name=names.sink_group_id,
            operation=Operation.READ,
            why="share partitions, keep offsets",
        ),
    ]


def looking_at_letters(names: Names) -> list[Acl]:
    """Of `dead-letters list` and `show`."""
    return [_topic(names.dead_letters_topic, Operation.READ, "read dead letters")]


def replaying(names: Names) -> list[Acl]:
    """Of `dead-letters replay`."""
    return [*looking_at_letters(names), _topic(names.reports_topic, Operation.WRITE, "publish them again")]


def auditing(names: Names) -> list[Acl]:
    """Of `audit`."""
    every = (names.reports_topic, names.results_topic, names.dead_letters_topic)
    return [_topic(name, Operation.READ, "compare with the truth") for name in every]


def checking_topics(names: Names) -> list[Acl]:
    """Of `topics --check`."""
    return [
        _topic(name, operation, why)
        for name in _every(names)
        for operation, why in (
            (Operation.DESCRIBE, "see it"),
            (Operation.DESCRIBE_CONFIGS, "see how it is configured"),
        )
    ]


def making_topics(names: Names) -> list[Acl]:
    """Of `topics`."""
    return [_topic(name, Operation.CREATE, "make it if it is missing") for name in _every(names)] + checking_topics(
        names
    )


PROCESSES: Final[Mapping[str, Callable[[Names], list[Acl]]]] = {
    "receive": receiving,
    "drain": publishing,
    "assemble": assembling,
    "sink-postgres": delivering,
    "sink-sqlite": delivering,
    "sink-jsonl": delivering,
    "dead-letters": looking_at_letters,
    "dead-letters-replay": replaying,
    "audit": auditing,
    "topics": making_topics,
    "topics-check": checking_topics,
}
"""The rights of every process that talks to Kafka, by its name."""


def transactional_ids(names: Names) -> str:
    """What the transactional ids of a group begin with."""
    return transactional_id(names.group_id, names.reports_topic, 0).removesuffix("0")


def _every(names: Names) -> tuple[str, ...]:
    return names.reports_topic, names.results_topic, names.dead_letters_topic, names.changelog_topic


def _topic(name: str, operation: Operation, why: str, *, needed: bool = True) -> Acl:
    return Acl(resource=Resource.TOPIC, name=name, operation=operation, why=why, needed=needed)
