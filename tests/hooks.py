"""The assembler's Kafka clients with hooks: a test stops, breaks or watches them at any step of their work.

What is hooked is the client and never the product, so that these tests say nothing about how the product is built.
"""

import asyncio
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Any, ClassVar, Self

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.transaction import EndTxnRequest

from consumers.commands import assemble
from consumers.engine import kafka
from consumers.engine.kafka import ChangelogReader
from consumers.engine.protocols import Ledger, LedgerStore


class Step(StrEnum):
    """Where a producer or its transaction stands."""

    STARTING = "starting"
    """The producer is about to take its transactional id over."""

    BEGUN = "begun"
    """It has begun, and nothing was sent."""

    WRITTEN = "written"
    """Brokers have all of its records; the input offset was not sent."""

    WHOLE = "whole"
    """Everything is in it; the commit is about to be asked for."""

    ENDING = "ending"
    """The request that commits it is about to be sent."""

    ENDED = "ended"
    """Brokers have committed it and said so; the answer is on its way, and lost if the hook raises."""

    COMMITTED = "committed"
    """It is committed, and the answer has come."""


Hook = Callable[["HookedProducer"], Awaitable[None]]


class HookedProducer(AIOKafkaProducer):  # type: ignore[misc]
    """Calls the hook of each step of its life.

    Attributes:
        hooks: by step, for all producers of a test.
        identity: the transactional id.
        kept: it is neither aborted nor stopped by its owner: a former owner that knows of nothing.
    """

    hooks: ClassVar[dict[Step, Hook]] = {}

    def __init__(self, *, transactional_id: str, **options: Any) -> None:
        super().__init__(transactional_id=transactional_id, **options)
        self.identity = transactional_id
        self.kept = False
        self._sent: list[asyncio.Future[Any]] = []

    async def begin_transaction(self) -> None:  # noqa: D102
        await super().begin_transaction()
        self._sent = []
        await self._at(Step.BEGUN)

    async def send_batch(self, batch: Any, topic: str, *, partition: int) -> Any:  # noqa: D102
        sent = await super().send_batch(batch, topic, partition=partition)
        self._sent.append(sent)
        return sent

    async def send_offsets_to_transaction(self, offsets: Any, group_id: str) -> None:  # noqa: D102
        if Step.WRITTEN in self.hooks:
            await asyncio.gather(*self._sent)
            await self._at(Step.WRITTEN)
        await super().send_offsets_to_transaction(offsets, group_id)

    async def commit_transaction(self) -> None:  # noqa: D102
        await self._at(Step.WHOLE)
        await super().commit_transaction()
        await self._at(Step.COMMITTED)

    async def abort_transaction(self) -> None:  # noqa: D102
        if not self.kept:
            await super().abort_transaction()

    async def start(self) -> None:  # noqa: D102
        await self._at(Step.STARTING)
        await super().start()
        send = self.client.send

        async def sending(node: int, request: Any, **options: Any) -> Any:
            if not isinstance(request, EndTxnRequest) or not request._transaction_result:
                return await send(node, request, **options)
            await self._at(Step.ENDING)
            answer = await send(node, request, **options)
            if Step.ENDED in self.hooks:
                await self._at(Step.ENDED)
            return answer

        self.client.send = sending

    async def stop(self) -> None:  # noqa: D102
        if not self.kept:
            await super().stop()

    async def release(self) -> None:
        """End one that was kept."""
        self.kept = False
        kafka.forget_failure(self)
        await self.stop()

    async def _at(self, step: Step) -> None:
        hook = self.hooks.get(step)
        if hook is not None:
            await hook(self)


class WatchedConsumer(AIOKafkaConsumer):  # type: ignore[misc]
    """Remembers the consumers that joined a group.

    Attributes:
        joined: them, in the order in which they were made.
    """

    joined: ClassVar[list["WatchedConsumer"]] = []

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if options.get("group_id"):
            self.joined.append(self)


class WatchedReader(ChangelogReader):
    """Calls hooks when a changelog has been read.

    Attributes:
        after: the hooks, for all readers of a test.
    """

    after: ClassVar[list[Callable[[], Awaitable[None]]]] = []

    async def __aenter__(self) -> Self:
        """Begin to read."""
        return await super().__aenter__()

    async def __aexit__(self, *error: object) -> None:
        """End reading, then let the test do its own."""
        await super().__aexit__(*error)
        for hook in self.after:
            await hook()


class HeldStore:
    """A store whose ledgers are opened only once a test says so."""

    def __init__(self, store: LedgerStore, opening: Callable[[], None]) -> None:
        """Stand before a store.

        Args:
            store: to open them in.
            opening: called in the thread that opens one, before it does.
        """
        self._store = store
        self._opening = opening

    def open(self, partition: int) -> Ledger:
        """Open a ledger."""
        self._opening()
        return self._store.open(partition)

    def close(self) -> None:
        """Close the store."""
        self._store.close()


def hook_producers(patch: pytest.MonkeyPatch) -> dict[Step, Hook]:
    """Make the assembler use hooked producers; the hooks, to be filled."""
    hooks: dict[Step, Hook] = {}
    patch.setattr(kafka, "AIOKafkaProducer", HookedProducer)
    patch.setattr(HookedProducer, "hooks", hooks)
    return hooks


def watch_consumers(patch: pytest.MonkeyPatch) -> list[WatchedConsumer]:
    """The consumers of the assembler that join a group from now on."""
    joined: list[WatchedConsumer] = []
    patch.setattr(kafka, "AIOKafkaConsumer", WatchedConsumer)
    patch.setattr(WatchedConsumer, "joined", joined)
    return joined


def after_restores(patch: pytest.MonkeyPatch, hook: Callable[[], Awaitable[None]]) -> None:
    """Call a hook each time the assembler has read a changelog."""
    patch.setattr(assemble, "ChangelogReader", WatchedReader)
    patch.setattr(WatchedReader, "after", [hook])


def at_time(number: int, action: Hook) -> Hook:
    """A hook that acts the so-many-th time only, counted over all producers."""
    times = 0

    async def hook(producer: HookedProducer) -> None:
        nonlocal times
        times += 1
        if times == number:
            await action(producer)

    return hook


async def connection_lost(_: HookedProducer) -> None:
    """What a client is told when the connection breaks while it waits."""
    raise KafkaConnectionError("the connection broke before the answer came")
