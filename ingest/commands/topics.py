"""`python -m ingest topics`: makes the missing topics, names what differs."""

import typer

from ingest.contract.acls import checking_topics
from ingest.contract.topics import TopicSpec, differences, wanted_topics
from ingest.runtime.errors import FoundError, ServiceAwayError
from ingest.runtime.kafka import BrokerError, TopicAdmin, TopicState, client_options
from ingest.settings import TopicsSettings


async def manage_topics(settings: TopicsSettings, *, check: bool) -> None:
    """Print a line for each topic that is as needed or made now, and one for each difference, on standard output.

    Args:
        settings: what is wanted.
        check: create nothing.

    Raises:
        FoundError: `check`, and something is missing or different.
        ServiceAwayError: no broker answered, or none went on answering.
        UsageError: the brokers refuse the login, a look at the topics, or to make a topic like that.
    """
    wanted = wanted_topics(settings.topic_needs())
    names = {spec.name for spec in wanted}
    rights = checking_topics(settings.acl_names(group_id=settings.group_id))
    made: list[str] = []
    try:
        async with TopicAdmin(client_options(settings)) as admin:
            await admin.demand(rights)
            existing = await admin.existing(describe=names)
            missing = [spec for spec in wanted if spec.name not in existing]
            if missing and not check:
                made = await admin.create(missing)
                await admin.demand(rights)  # of a topic that is not there brokers do not say what is allowed
                existing = await admin.existing(describe=names)
    except BrokerError as error:
        raise ServiceAwayError(f"Kafka went away while its topics were looked at: {error}") from None
    # A broker of several may not have heard of a topic that was made just now; it is as it was made.
    found = [
        [] if spec.name in made and spec.name not in existing else _differences(spec, existing.get(spec.name))
        for spec in wanted
    ]
    for spec, lines in zip(wanted, found, strict=True):
        well = "created" if spec.name in made else "as needed"
        for line in lines or [f"{spec.name}: {well}"]:
            typer.echo(line)
    wrong = sum(bool(lines) for lines in found)
    if check and wrong:
        raise FoundError(f"{wrong} of {len(wanted)} topics are not as needed")


def _differences(spec: TopicSpec, state: TopicState | None) -> list[str]:
    if state is None:
        return [f"{spec.name}: missing"]
    return differences(spec, partitions=state.partitions, replication=state.replication, configs=state.configs)
