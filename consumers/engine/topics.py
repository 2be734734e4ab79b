"""What the assembler needs of the topics, looked at before any client is given one of their names."""

from dataclasses import dataclass, replace

import structlog

from consumers.engine.kafka import BATCH_BYTES_MAX
from ingest.contract.topics import (
    TopicNeeds,
    TopicSpec,
    changelog_spec,
    dead_letters_spec,
    differences,
    reports_spec,
    results_spec,
)
from ingest.runtime.clock import Clock
from ingest.runtime.errors import ServiceAwayError, UsageError
from ingest.runtime.kafka import START_PATIENCE_S, TopicAdmin, TopicState

_SIZE_MARGIN_BYTES = 1024
_LOOK_AGAIN_S = 0.2
_SIZE = "max.message.bytes"

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """The topics as they are.

    Attributes:
        reports, results, dead_letters: partitions of each. The changelog has as many as the reports.
        batch_bytes_max: uncompressed bytes of a batch that each of them takes.
    """

    reports: int
    results: int
    dead_letters: int
    batch_bytes_max: int


async def look(admin: TopicAdmin, needs: TopicNeeds, clock: Clock) -> Shapes:
    """Look at the topics, make the changelog if it is missing, and name every difference in the log.

    Raises:
        UsageError: a topic is missing, or the changelog was made for another number of partitions.
        ServiceAwayError: the changelog was made and does not appear.
    """
    specs = [reports_spec(needs), results_spec(needs), dead_letters_spec(needs)]
    changelog = changelog_spec(needs)
    names = {spec.name for spec in (*specs, changelog)}
    existing = await admin.existing(describe=names)
    for spec in specs:
        if spec.name not in existing:
            raise UsageError(f"there is no topic {spec.name}; `python -m ingest topics` makes it")
    partitions = existing[needs.reports_topic].partitions
    changelog = replace(changelog, partitions=partitions)
    if changelog.name not in existing:
        for name in await admin.create([changelog]):
            _log.info("changelog made", topic=name, partitions=partitions)
        existing = await _appeared(admin, names, changelog.name, clock)
    if existing[changelog.name].partitions != partitions:
        raise UsageError(
            f"{changelog.name} has {existing[changelog.name].partitions} partitions and {needs.reports_topic} has "
            f"{partitions}: the memory of this group fits no other number; give the reports a topic of "
            f"{existing[changelog.name].partitions} partitions, or start a new group with DLR_GROUP_ID"
        )
    for spec in (*specs, changelog):
        _name_differences(spec, existing[spec.name])
    sizes = [int(existing[spec.name].configs.get(_SIZE, BATCH_BYTES_MAX)) for spec in (*specs[1:], changelog)]
    return Shapes(
        reports=partitions,
        results=existing[needs.results_topic].partitions,
        dead_letters=existing[needs.dead_letters_topic].partitions,
        batch_bytes_max=min(BATCH_BYTES_MAX, max(_SIZE_MARGIN_BYTES, min(sizes) - _SIZE_MARGIN_BYTES)),
    )


async def _appeared(admin: TopicAdmin, names: set[str], name: str, clock: Clock) -> dict[str, TopicState]:
    until = clock.monotonic() + START_PATIENCE_S
    while clock.monotonic() < until:
        existing = await admin.existing(describe=names)
        if name in existing:
            return existing
        await clock.sleep(_LOOK_AGAIN_S)
    raise ServiceAwayError(f"the topic {name} was made and did not appear within {START_PATIENCE_S:g} s")


def _name_differences(spec: TopicSpec, state: TopicState) -> None:
    for line in differences(spec, partitions=state.partitions, replication=state.replication, configs=state.configs):
        _log.warning("topic is not as needed", difference=line)
