"""Membership in the group, with a client and workers that misbehave, without any broker."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from consumers.engine.kafka import OnPartitions, ReportsConsumer
from consumers.engine.member import Member
from consumers.engine.partition import PartitionWorker, Phase, Reports
from consumers.engine.shelf import Shelf
from ingest.runtime.backoff import Backoff
from tests.fakes.ledgers import MemoryStore


class Joined:
    """A consumer that is given partition 0 at once; what it does when it is stopped is told."""

    def __init__(self, on_assigned: OnPartitions, stopped: Callable[[], None]) -> None:
        self._on_assigned = on_assigned
        self._stopped = stopped

    async def start(self) -> None:
        """Join."""
        await self._on_assigned({0})

    async def stop(self) -> None:
        """Leave."""
        self._stopped()

    async def check(self) -> None:
        """Nothing is wrong."""


class Idle:
    """A worker that does nothing until it is cancelled."""

    partition = 0
    phase = Phase.RUNNING

    def __init__(self) -> None:
        self.stopping = False
        self.task: asyncio.Task[Any] | None = None

    def start(self, ended: Callable[[asyncio.Task[Any]], None]) -> None:
        """Begin to do nothing."""
        self.task = asyncio.create_task(asyncio.Event().wait())
        self.task.add_done_callback(ended)

    async def stop(self, grace_s: float) -> None:
        """End it."""
        assert grace_s > 0
        assert self.task is not None
        self.stopping = True
        self.task.cancel()
        await asyncio.wait({self.task})


class Group:
    """Counts joins and workers, and is a member until the end of the test."""

    def __init__(self, stopped: Callable[[], None] = lambda: None) -> None:
        self.stop = asyncio.Event()
        self._made: asyncio.Queue[Idle] = asyncio.Queue()
        self._stopped = stopped
        self.member = Member(self._consumer, self._worker, MemoryStore())

    def _consumer(self, on_assigned: OnPartitions, _: OnPartitions) -> ReportsConsumer:
        return Joined(on_assigned, self._stopped)  # type: ignore[return-value]

    def _worker(self, partition: int, _: Reports, __: Shelf, owned: Callable[[], int]) -> PartitionWorker:
        assert owned() == partition
        worker = Idle()
        self._made.put_nowait(worker)
        return worker  # type: ignore[return-value]

    async def next_worker(self) -> Idle:
        """Wait for the next worker that is made."""
        async with asyncio.timeout(10):
            return await self._made.get()


async def test_a_partition_whose_worker_was_cancelled_from_inside_is_worked_on_again() -> None:
    """A client that cancels what it was asked for must not leave an owned partition to nobody."""
    group = Group()
    running = asyncio.create_task(group.member.run(group.stop))
    worker = await group.next_worker()
    assert worker.task is not None
    worker.task.cancel()

    await group.next_worker()

    group.stop.set()
    await running


async def test_leaving_ends_well_although_the_client_cancels_its_own_fetch() -> None:
    """With brokers away a stop of the client raises a cancellation: the member has left all the same."""

    def stopped() -> None:
        raise asyncio.CancelledError

    group = Group(stopped)
    running = asyncio.create_task(group.member.run(group.stop))
    await group.next_worker()
    group.stop.set()

    await asyncio.wait({running}, timeout=10)

    assert not running.cancelled()
    assert running.exception() is None


async def test_a_fault_that_comes_again_costs_the_group_ever_fewer_rebalances(monkeypatch: pytest.MonkeyPatch) -> None:
    """Joining alone is no success: only what works makes the next wait short again."""
    group = Group()
    waits: list[float] = []
    plain = Backoff.next

    def noting(backoff: Backoff) -> float:
        waits.append(plain(backoff))
        return 0.0

    monkeypatch.setattr(Backoff, "next", noting)
    running = asyncio.create_task(group.member.run(group.stop))
    while len(waits) < 6:
        worker = await group.next_worker()
        worker.phase = Phase.RESTORING
        assert worker.task is not None
        worker.task.cancel()

    assert max(waits) > 2
    group.stop.set()
    await running
