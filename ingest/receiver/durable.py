"""Where a push becomes durable before it is answered: one class for each mode of contract.md section 4."""

import asyncio
from enum import StrEnum
from typing import Final, Protocol

from ingest.contract.push import Push
from ingest.runtime.errors import BusyError
from ingest.spool.base import Spool, SpoolBrokenError, SpoolFullError

RETRY_AFTER_S: Final = 5
"""When a sender is asked to come back: a second sync or a broker's election is over by then."""

OUTSTANDING_MAX_BYTES: Final = 64 * 1024 * 1024
"""Pushes given to the direct publisher whose outcome is not known yet, those that were answered 503 included."""

OUTSTANDING_PUSH_BYTES: Final = 8 * 1024
"""What a push costs there besides its body: tasks, futures, records."""

AWAITING_KAFKA_MAX: Final = 64
"""Outstanding pushes beyond which another is refused at once while Kafka is known not to confirm."""


class AckMode(StrEnum):
    """What must hold the reports before the answer (`DLR_ACK_MODE`)."""

    SPOOL = "spool"
    KAFKA = "kafka"
    SPOOL_OR_KAFKA = "spool-or-kafka"

    @property
    def guarantee(self) -> str:
        """One sentence that says what an answer of 200 is worth."""
        return _GUARANTEES[self]


_GUARANTEES: Final = {
    AckMode.SPOOL: (
        "a push is answered once it is synced to the local spool: it survives a crash of process and machine, "
        "and Kafka away as long as the disk has room"
    ),
    AckMode.KAFKA: (
        "a push is answered once all in-sync replicas have its records: it survives the loss of this machine; "
        "while Kafka is away the answer is 503"
    ),
    AckMode.SPOOL_OR_KAFKA: (
        "a push is answered once it is synced to the local spool, or, if that cannot take it, once all in-sync "
        "replicas have its records: it survives a crash, Kafka away, and a broken or full disk while Kafka is well"
    ),
}


class DirectPublisher(Protocol):
    """Kafka on the way to the answer."""

    async def publish(self, push: Push) -> None:
        """Return once all in-sync replicas have every record of the push, its dead letters included.

        What arrives counts as received and published in the accounts of the worker, whoever still waits for it.
        Calling twice for one push brings repeats with the same identity, value and timestamp.

        Raises:
            BusyError: the push was not published, or that is not known; the answer is 503.
        """
        ...

    def available(self) -> bool:
        """Whether the smallest push would be published now, as far as is known."""
        ...


class Durable(Protocol):
    """What the handlers ask of every mode."""

    async def keep(self, push: Push) -> None:
        """Return once the push is durable: from then on its reports are ours to lose.

        Raises:
            BusyError: no durable place has taken it; the sender should come back.
        """
        ...

    def has_room(self) -> bool:
        """Whether the smallest push would be kept now."""
        ...


class InSpool:
    """Mode `spool`."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self.has_room = spool.has_room

    async def keep(self, push: Push) -> None:
        """See `Durable`."""
        try:
            await self._spool.append(push)
        except (SpoolFullError, SpoolBrokenError) as error:
            raise BusyError(RETRY_AFTER_S) from error


class InKafka:
    """Mode `kafka`.

    A publish that outlasts the timeout goes on: cancelling it would leave its records half on their way. It holds its
    bytes until it ends, and those are bounded.
    """

    def __init__(self, publisher: DirectPublisher, *, ack_timeout_s: float) -> None:
        self._publisher = publisher
        self._ack_timeout_s = ack_timeout_s
        self._outstanding: dict[asyncio.Task[None], int] = {}
        self._outstanding_bytes = 0
        self.has_room = publisher.available

    async def keep(self, push: Push) -> None:
        """See `Durable`."""
        size = len(push.body) + OUTSTANDING_PUSH_BYTES
        if self._is_full(size):
            raise BusyError(RETRY_AFTER_S)
        task = asyncio.create_task(self._publisher.publish(push))
        self._outstanding[task] = size
        self._outstanding_bytes += size
        task.add_done_callback(self._ended)
        done, _ = await asyncio.wait((task,), timeout=self._ack_timeout_s)
        if not done or task.cancelled():
            raise BusyError(RETRY_AFTER_S)
        task.result()

    async def settled(self) -> None:
        """Return once every publish has ended, those that nobody waits for any more included."""
        while self._outstanding:
            await asyncio.wait(self._outstanding)

    def _is_full(self, size: int) -> bool:
        if not self._outstanding:
            return False  # one is always tried
        if self._outstanding_bytes + size > OUTSTANDING_MAX_BYTES:
            return True
        return len(self._outstanding) >= AWAITING_KAFKA_MAX and not self._publisher.available()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._outstanding_bytes -= self._outstanding.pop(task)
        if not task.cancelled():
            # Looked at here, so that asyncio does not report one that ended after its sender was told to come back.
            task.exception()


class InSpoolOrKafka:
    """Mode `spool-or-kafka`: Kafka only for what the spool cannot take."""

    def __init__(self, spool: Spool, kafka: InKafka) -> None:
        self._spool = spool
        self._kafka = kafka

    async def keep(self, push: Push) -> None:
        """See `Durable`."""
        try:
            await self._spool.append(push)
        except (SpoolFullError, SpoolBrokenError):
            await self._kafka.keep(push)

    def has_room(self) -> bool:
        """See `Durable`."""
        return self._spool.has_room() or self._kafka.has_room()

    async def settled(self) -> None:
        """See `InKafka`."""
        await self._kafka.settled()


def durable_path(
    mode: AckMode, spool: Spool, publisher: DirectPublisher | None, *, ack_timeout_s: float
) -> InSpool | InKafka | InSpoolOrKafka:
    """What keeps the pushes in a mode.

    Args:
        mode: `DLR_ACK_MODE`.
        spool: of this worker; not used in mode `kafka`.
        publisher: not used in mode `spool`.
        ack_timeout_s: `DLR_ACK_TIMEOUT_S`.

    Raises:
        ValueError: a mode with Kafka was given no publisher.
    """
    if mode is AckMode.SPOOL:
        return InSpool(spool)
    if publisher is None:
        raise ValueError(f"mode {mode} needs a publisher")
    kafka = InKafka(publisher, ack_timeout_s=ack_timeout_s)
    return kafka if mode is AckMode.KAFKA else InSpoolOrKafka(spool, kafka)
