"""Kafka on the way to the answer: the modes in which the receiver waits for the brokers."""

from typing import Final

from ingest.contract.push import Push
from ingest.forward.courier import Courier
from ingest.forward.publisher import Publisher
from ingest.runtime.errors import BusyError

RETRY_AFTER_S: Final = 5.0
"""When a sender whose push Kafka refused may try again."""


class KafkaPublisher:
    """Publishes single pushes and returns when they are confirmed (the receiver's `DirectPublisher`).

    How long to wait, and how many may wait, is for the caller to bound; giving up does not stop the sending.
    """

    def __init__(self, courier: Courier, publisher: Publisher) -> None:
        self._courier = courier
        self._publisher = publisher
        self.available = publisher.available

    async def publish(self, push: Push) -> None:
        """Return once all in-sync replicas have every record of the push, its dead letters included.

        Raises:
            BusyError: Kafka refuses even a dead letter of it, and without a spool there is no other durable place.
        """
        parcels = await self._courier.unpack((push,))
        if unplaced := await self._courier.deliver(parcels):
            raise BusyError(RETRY_AFTER_S, f"Kafka refused a dead letter: {unplaced[0].why}")
        self._courier.count_received(push)
        self._courier.count(parcels)
