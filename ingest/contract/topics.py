"""The topics that dlrflow needs, and how a broker's answer differs from them (contract.md section 11)."""

from collections.abc import Mapping
from dataclasses import dataclass

RECORD_BYTES_MAX = 2 * 1024 * 1024
_DAY_S = 86_400
_MS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicSpec:
    """A topic as it must be: every config named here, and nothing said of the others."""

    name: str
    partitions: int
    replication: int
    configs: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicNeeds:
    """What decides about the topics, out of the settings.

    Attributes:
        partitions: of the reports topic and those that follow it.
        reports_retention_s, reassembly_timeout_s, late_window_s: seconds.
    """

    reports_topic: str
    results_topic: str
    dead_letters_topic: str
    group_id: str
    partitions: int
    replication: int
    min_insync: int
    reports_retention_s: int
    reassembly_timeout_s: int
    late_window_s: int


DEAD_LETTERS_PARTITIONS = 3
RESULTS_RETENTION_S = 7 * _DAY_S
DEAD_LETTERS_RETENTION_S = 30 * _DAY_S
TIMESTAMP_AFTER_MAX_S = 3600


def changelog_topic(group_id: str, reports_topic: str) -> str:
    """Where the assembler of a group keeps its memory."""
    return f"{group_id}.{reports_topic}.changelog"


def transactional_id(group_id: str, reports_topic: str, partition: int) -> str:
    """The transactional id that owns one input partition."""
    return f"{group_id}.{reports_topic}.{partition}"


def reports_spec(needs: TopicNeeds) -> TopicSpec:
    """The topic of the single reports."""
    return _spec(
        needs,
        needs.reports_topic,
        needs.partitions,
        needs.reports_retention_s,
        {
            "max.message.bytes": str(RECORD_BYTES_MAX),
            "message.timestamp.type": "CreateTime",
            "message.timestamp.after.max.ms": str(TIMESTAMP_AFTER_MAX_S * _MS),
        },
    )


def results_spec(needs: TopicNeeds) -> TopicSpec:
    """The topic of the results."""
    return _spec(needs, needs.results_topic, needs.partitions, RESULTS_RETENTION_S, {})


def dead_letters_spec(needs: TopicNeeds) -> TopicSpec:
    """The topic of what could not be used."""
    return _spec(
        needs,
        needs.dead_letters_topic,
        DEAD_LETTERS_PARTITIONS,
        DEAD_LETTERS_RETENTION_S,
        {"max.message.bytes": str(RECORD_BYTES_MAX)},
    )


def changelog_spec(needs: TopicNeeds) -> TopicSpec:
    """The assembler's memory: it must outlive every waiting message and every report that can still be read."""
    return _spec(
        needs,
        changelog_topic(needs.group_id, needs.reports_topic),
        needs.partitions,
        max(needs.reassembly_timeout_s, needs.late_window_s) + needs.reports_retention_s,
        {
            "retention.bytes": "-1",
            "max.message.bytes": str(RECORD_BYTES_MAX),
            "message.timestamp.type": "LogAppendTime",
        },
    )


def wanted_topics(needs: TopicNeeds) -> list[TopicSpec]:
    """All topics, in the order in which they are made."""
    return [reports_spec(needs), results_spec(needs), dead_letters_spec(needs), changelog_spec(needs)]


def differences(spec: TopicSpec, *, partitions: int, replication: int, configs: Mapping[str, str]) -> list[str]:
    """What of an existing topic is not as it must be, one sentence each; empty where all is well.

    Args:
        spec: the topic as it must be.
        partitions: as the broker reports them.
        replication: replicas of its partitions.
        configs: effective topic configuration.
    """
    found = []
    if partitions != spec.partitions:
        found.append(f"{spec.name}: has {partitions} partitions, needs {spec.partitions}")
    if replication != spec.replication:
        found.append(f"{spec.name}: has {replication} replicas, needs {spec.replication}")
    found += [
        f"{spec.name}: {name} is {configs.get(name, 'unknown')}, needs {value}"
        for name, value in spec.configs.items()
        if configs.get(name) != value
    ]
    return found


def _spec(needs: TopicNeeds, name: str, partitions: int, retention_s: int, configs: Mapping[str, str]) -> TopicSpec:
    common = {
        "cleanup.policy": "delete",
        "retention.ms": str(retention_s * _MS),
        "min.insync.replicas": str(needs.min_insync),
    }
    return TopicSpec(name=name, partitions=partitions, replication=needs.replication, configs=common | dict(configs))
