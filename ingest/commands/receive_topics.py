"""What `receive` needs of Kafka, looked at once at its start (contract.md section 11): login, rights and topics."""

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import structlog

from ingest.contract.acls import Operation, receiving
from ingest.contract.topics import RECORD_BYTES_MAX, TIMESTAMP_AFTER_MAX_S, TopicSpec, differences
from ingest.runtime.clock import Clock
from ingest.runtime.errors import UsageError
from ingest.runtime.kafka import BrokerError, TopicAdmin, TopicState
from ingest.settings import ReceiveSettings

RETRY_S: Final = 30.0
"""Pause after the brokers would not say what topics there are."""

log = structlog.get_logger(__name__)


async def look_at_topics(settings: ReceiveSettings, options: Mapping[str, Any], clock: Clock) -> None:
    """Wait for Kafka, then name what is not as it must be. That it is away is the forwarder's to say."""
    needs = _needs(settings)
    while True:
        try:
            async with TopicAdmin(options, patience_s=None, clock=clock) as admin:
                lacking = await admin.lacking(receiving(settings.acl_names()))
                hidden = {acl.name for acl in lacking if acl.operation is Operation.DESCRIBE_CONFIGS}
                existing = await admin.existing(describe=needs.keys() - hidden)
            break
        except (BrokerError, UsageError) as error:  # a login may be put right on the other side
            log.warning("the topics cannot be looked at", because=str(error))
            await clock.sleep(RETRY_S)
    for acl in lacking:
        right = f"{acl.operation} on {acl.resource} {acl.name}"
        if acl.needed:
            log.error("Kafka does not allow what is needed: reports stay in the spool", right=right)
        else:
            log.warning("Kafka does not allow a look", right=right)
    unseen = {acl.name for acl in lacking}
    for name, configs in needs.items():
        if name in unseen:
            continue
        for difference in _differences(name, configs, existing.get(name)):
            log.warning("a topic is not as it must be", difference=difference)


def start_look(settings: ReceiveSettings, options: Mapping[str, Any], clock: Clock) -> asyncio.Task[None]:
    """Look at the topics beside the receiver. That it fails is no reason to end one, but is seen in the log."""
    looking = asyncio.create_task(look_at_topics(settings, options, clock))
    looking.add_done_callback(_say_failure)
    return looking


def _say_failure(looking: asyncio.Task[None]) -> None:
    if not looking.cancelled() and (error := looking.exception()) is not None:
        log.error("the look at the topics failed", exc_info=error)


def _needs(settings: ReceiveSettings) -> dict[str, dict[str, str]]:
    large = {"cleanup.policy": "delete", "max.message.bytes": str(RECORD_BYTES_MAX)}
    stamped = {
        "message.timestamp.type": "CreateTime",
        "message.timestamp.after.max.ms": str(TIMESTAMP_AFTER_MAX_S * 1000),
    }
    return {settings.reports_topic: large | stamped, settings.dead_letters_topic: large}


def _differences(name: str, configs: Mapping[str, str], state: TopicState | None) -> list[str]:
    """Shape is the affair of `ingest topics`: only what a record of the receiver meets is looked at."""
    if state is None:
        return [f"{name}: is missing; `python -m ingest topics` makes it"]
    spec = TopicSpec(name=name, partitions=state.partitions, replication=state.replication, configs=configs)
    return differences(spec, partitions=state.partitions, replication=state.replication, configs=state.configs)
