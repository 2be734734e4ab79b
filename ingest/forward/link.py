"""What the publisher asks of the way to the brokers. The way itself is in `ingest.forward.kafka`."""

from collections.abc import Iterable
from typing import Protocol

from ingest.forward.record import Record


class SendError(Exception):
    """A batch is not known to be written: it was not sent, or that is open. Sending it again is right."""


class ClosedError(Exception):
    """The link was closed; who still wants something of it came too late."""


class NoPartitionError(SendError):
    """The topic has no such partition (any more); nothing was sent."""


class RefusedError(SendError):
    """The brokers refuse these very records, and will again.

    Attributes:
        taken: how many records the refused batch had; one of them at least is the cause.
        timestamp: it is a timestamp that they refuse.
        doubtful: the answer does not say that the records are the cause; trying again may help.
    """

    def __init__(self, why: str, *, taken: int, timestamp: bool = False, doubtful: bool = False) -> None:
        super().__init__(why)
        self.taken = taken
        self.timestamp = timestamp
        self.doubtful = doubtful


class Link(Protocol):
    """One way to the brokers, which repairs itself."""

    async def partitions(self, topic: str) -> int:
        """How many partitions the topic has; waits until there are brokers and it is known to exist.

        Raises:
            ClosedError: see there.
        """
        ...

    async def send(self, topic: str, partition: int, records: Iterable[Record]) -> int:
        """Write one batch: the first record, and as many of the following ones as fit.

        Returns:
            How many records it were, once all in-sync replicas have them.

        Raises:
            SendError: see there.
            ClosedError: see there.
        """
        ...

    def connected(self) -> bool:
        """Whether a producer stands ready and no topic is missing, as far as is known."""
        ...

    def missing(self) -> list[str]:
        """Topics that were asked for and do not exist, or may not be seen."""
        ...

    async def close(self) -> None:
        """Give up what is not written and close all connections, in bounded time."""
        ...
