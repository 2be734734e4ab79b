"""Publishes what the spool folders hold that nobody holds any more, and says what remains."""

import asyncio
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, Protocol

from ingest.forward.courier import ForwardTopics
from ingest.forward.loop import Adopted, Forwarder
from ingest.forward.publisher import Publisher
from ingest.runtime.errors import ServiceAwayError
from ingest.spool.accounts import Accounts

KAFKA_PATIENCE_S: Final = 30.0
"""How long Kafka, or a topic, may stay away at the start (contract.md section 1)."""


class Progress(Protocol):
    """Shows how far it is."""

    def watch(self, accounts: Accounts, reports: int) -> AbstractContextManager[None]:
        """Show, while inside, how many of the reports the accounts have seen out."""
        ...


@dataclass(frozen=True, slots=True)
class Drained:
    """What was done, in reports."""

    folders: int
    published: int
    dead_lettered: int
    quarantined: int


async def drain(
    adopted: Sequence[Adopted],
    *,
    forwarder: Forwarder,
    publisher: Publisher,
    topics: ForwardTopics,
    accounts: Accounts,
    progress: Progress,
) -> Drained:
    """Publish backlogs that end, oldest first; each folder is removed once all of it is confirmed.

    Raises:
        ServiceAwayError: no broker answered at the start, or a topic is missing.
    """
    if adopted:
        try:
            await _reach(publisher, topics)
        except BaseException:
            for backlog in adopted:
                await backlog.close()
            raise
        with progress.watch(accounts, accounts.pending):
            await forwarder.serve_all(adopted)
    return Drained(len(adopted), accounts.published, accounts.dead_lettered, accounts.quarantined)


async def _reach(publisher: Publisher, topics: ForwardTopics) -> None:
    try:
        async with asyncio.timeout(KAFKA_PATIENCE_S):
            await publisher.connect(topics.reports, topics.dead_letters)
    except TimeoutError:
        if missing := publisher.missing():
            raise ServiceAwayError(
                f"topic {missing[0]} does not exist or may not be seen; `python -m ingest topics` makes it"
            ) from None
        raise ServiceAwayError(f"Kafka did not answer within {KAFKA_PATIENCE_S:g} s") from None
