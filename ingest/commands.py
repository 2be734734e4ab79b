"""What the one-shot commands of `python -m ingest` do."""

from collections.abc import Sequence

import typer
from aiokafka.errors import KafkaError

from ingest.contract.topics import TopicSpec, differences, wanted_topics
from ingest.runtime.errors import FoundError, ServiceAwayError
from ingest.runtime.kafka import TopicAdmin, TopicState, client_options
from ingest.settings import TopicsSettings


async def manage_topics(settings: TopicsSettings, *, check: bool) -> None:
    """Print a line for each topic that is as needed or made now, and one for each difference, on standard output.

    Args:
        settings: what is wanted.
        check: create nothing.

    Raises:
        FoundError: `check`, and something is missing or different.
        ServiceAwayError: no broker answered, or none went on answering.
        UsageError: the brokers refuse to make a topic like that.
    """
    wanted = wanted_topics(settings.topic_needs())
    try:
        async with TopicAdmin(client_options(settings)) as admin:
            existing = await admin.existing(describe={spec.name for spec in wanted})
            missing = [spec for spec in wanted if spec.name not in existing]
            made = [] if check else await admin.create(missing)
    except KafkaError as error:
        raise ServiceAwayError(f"Kafka went away while its topics were looked at: {error}") from None
    found = [_difference(spec, existing.get(spec.name), made) for spec in wanted]
    for spec, lines in zip(wanted, found, strict=True):
        for line in lines or [f"{spec.name}: {'created' if spec.name in made else 'as needed'}"]:
            typer.echo(line)
    wrong = sum(bool(lines) for lines in found)
    if check and wrong:
        raise FoundError(f"{wrong} of {len(wanted)} topics are not as needed")


def _difference(spec: TopicSpec, state: TopicState | None, made: Sequence[str]) -> list[str]:
    if spec.name in made:
        return []
    if state is None:
        return [f"{spec.name}: missing"]
    return differences(spec, partitions=state.partitions, replication=state.replication, configs=state.configs)
