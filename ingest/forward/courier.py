"""Pushes to Kafka and to the counters: what the forwarder and the direct publisher have in common."""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from ingest.contract.push import Push
from ingest.forward.parcel import Letter, Parcel, unpack
from ingest.forward.publisher import Publisher
from ingest.forward.record import dead_letter_record
from ingest.forward.statistics import ForwardMetrics
from ingest.runtime.clock import Clock
from ingest.spool.accounts import Accounts

TURN_REPORTS: Final = 100
"""Reports that are split in one turn of the event loop, which also answers the callbacks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardTopics:
    """Where records go."""

    reports: str
    dead_letters: str


class Unplaced(NamedTuple):
    """A dead letter that Kafka refuses, too, and the name of its reason."""

    parcel: Parcel
    letter: Letter
    why: str


class Courier:
    """Takes pushes to Kafka and counts what arrived.

    Args:
        publisher: writes the records.
        topics: where to.
        accounts: of this process.
        clock: dates dead letters.
    """

    def __init__(self, publisher: Publisher, *, topics: ForwardTopics, accounts: Accounts, clock: Clock) -> None:
        self._publisher = publisher
        self._topics = topics
        self._accounts = accounts
        self._clock = clock
        self._metrics = ForwardMetrics()

    async def unpack(self, pushes: Iterable[Push]) -> list[Parcel]:
        """Split pushes, letting the event loop turn in between."""
        parcels = []
        since = 0
        for push in pushes:
            if since >= TURN_REPORTS:
                since = 0
                await asyncio.sleep(0)
            parcels.append(unpack(push, now_ms=self._clock.wall_ms()))
            since += push.reports + 1
        return parcels

    async def deliver(self, parcels: Sequence[Parcel]) -> list[Unplaced]:
        """Return once all in-sync replicas have every record and dead letter, but for what Kafka refuses for good.

        Returns:
            The dead letters that Kafka refused; they must go elsewhere.
        """
        letters = [(parcel, letter) for parcel in parcels for letter in parcel.letters]
        records = [record for parcel in parcels for record in parcel.records]
        sending = asyncio.create_task(self._deliver_letters(letters)) if letters else None
        try:
            refused = await self._publisher.publish(self._topics.reports, records)
            unplaced = await sending if sending else []
        finally:
            if sending:
                sending.cancel()
        if refused:
            owners = {id(record): parcel for parcel in parcels for record in parcel.records}
            now_ms = self._clock.wall_ms()
            late = [
                (owners[id(record)], owners[id(record)].refuse(record, why, now_ms=now_ms)) for record, why in refused
            ]
            unplaced += await self._deliver_letters(late)
        return unplaced

    def count(self, parcels: Sequence[Parcel]) -> None:
        """Count parcels whose every part has arrived; call it in the same step in which they are settled."""
        self._accounts.published += sum(parcel.published for parcel in parcels)
        self._accounts.dead_lettered += sum(parcel.dead for parcel in parcels)
        self._accounts.quarantined += sum(parcel.quarantined for parcel in parcels)
        self._metrics.count(parcels)

    def count_received(self, push: Push) -> None:
        """Count a push that became durable by Kafka alone."""
        self._accounts.received += push.reports

    def count_quarantined(self, unplaced: Unplaced) -> None:
        """Count a dead letter that went to a file."""
        unplaced.parcel.quarantine(unplaced.letter)
        self._metrics.count_quarantined()

    def count_window_full(self) -> None:
        """Count one wait for confirmations."""
        self._metrics.count_window_full()

    async def _deliver_letters(self, letters: Sequence[tuple[Parcel, Letter]]) -> list[Unplaced]:
        records = [dead_letter_record(letter.content) for _, letter in letters]
        refused = await self._publisher.publish(self._topics.dead_letters, records)
        owners = {id(record): owner for record, owner in zip(records, letters, strict=True)}
        return [Unplaced(*owners[id(record)], why) for record, why in refused]
