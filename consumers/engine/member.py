"""The process as a member of the assemblers' group: a worker for every partition that it owns.

Callbacks of a rebalance only start and stop workers; everything that takes time happens in the workers, with their
partitions paused.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog

from consumers.engine.kafka import CLIENT_ERRORS, OnPartitions, ReportsConsumer
from consumers.engine.partition import PartitionWorker, Phase, Reports
from consumers.engine.protocols import LedgerStore
from consumers.engine.shelf import Shelf
from consumers.engine.stopping import stop_client
from consumers.engine.transaction import FencedError
from ingest.runtime.backoff import Backoff

REVOKE_GRACE_S = 2.0
"""For a commit under way when its partition is revoked: the group waits for it."""

CONSUMER_START_S = 30.0
CONSUMER_STOP_S = 5.0
CHECK_EVERY_S = 1.0
REJOIN_FIRST_S = 0.2
REJOIN_MOST_S = 5.0

_log = structlog.get_logger(__name__)

MakeConsumer = Callable[[OnPartitions, OnPartitions], ReportsConsumer]
MakeWorker = Callable[[int, Reports, Shelf, Callable[[], int]], PartitionWorker]


class WorkerLostError(Exception):
    """A partition that we own is worked on by nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How the member stands.

    Attributes:
        joined: whether the group has answered with an assignment, an empty one included.
        partitions: phase of every partition owned.
    """

    joined: bool
    partitions: Mapping[int, Phase]

    @property
    def ready(self) -> bool:
        """Whether all that is owned is being worked on."""
        return self.joined and all(phase is Phase.RUNNING for phase in self.partitions.values())


class Member:
    """Keeps this process in the group until it is told to stop."""

    def __init__(self, make_consumer: MakeConsumer, make_worker: MakeWorker, store: LedgerStore) -> None:
        """Describe it.

        Args:
            make_consumer: makes a consumer that tells the two callbacks (assigned, revoked).
            make_worker: makes the worker of a partition, which reads through that consumer, has its ledger from that
                shelf and may ask how many partitions this member has.
            store: of ledgers; between two sessions none is open.
        """
        self._make_consumer = make_consumer
        self._make_worker = make_worker
        self._store = store
        self._session: _Session | None = None

    @property
    def standing(self) -> Standing:
        """How the member stands now."""
        if self._session is None:
            return Standing(joined=False, partitions={})
        return self._session.standing

    def resume(self) -> None:
        """Let all paused partitions go on."""
        if self._session is not None:
            self._session.resume()

    async def run(self, stop: asyncio.Event) -> None:
        """Be a member until `stop` is set.

        Raises:
            CommandError: memory or input was lost, or the state is of a newer release.
            Exception: a fault of ours.
        """
        backoff = Backoff(REJOIN_FIRST_S, REJOIN_MOST_S)
        while not stop.is_set():
            self._session = _Session(self._make_consumer, self._make_worker, Shelf(self._store), working=backoff.reset)
            try:
                await self._session.run(stop)
            except FencedError as error:
                _log.warning("a partition was taken over, leaving the group to join it again", error=str(error))
            except (WorkerLostError, *CLIENT_ERRORS) as error:
                _log.warning("membership failed, joining again", error=f"{type(error).__name__}: {error}")
            finally:
                self._session = None
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), backoff.next())


class _Session:
    """From one join of the group to its end. Callbacks that come after the end do nothing."""

    def __init__(
        self, make_consumer: MakeConsumer, make_worker: MakeWorker, shelf: Shelf, *, working: Callable[[], None]
    ) -> None:
        self._make_worker = make_worker
        self._shelf = shelf
        self._tell_working = working
        self._workers: dict[int, PartitionWorker] = {}
        self._joined = False
        self._over = False
        self._failure: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._consumer = make_consumer(self._assigned, self._revoked)

    @property
    def standing(self) -> Standing:
        phases = {number: worker.phase for number, worker in sorted(self._workers.items())}
        return Standing(joined=self._joined, partitions=phases)

    def resume(self) -> None:
        for worker in self._workers.values():
            worker.resume()

    async def run(self, stop: asyncio.Event) -> None:
        stopping: asyncio.Future[Any] = asyncio.create_task(stop.wait())
        try:
            async with asyncio.timeout(CONSUMER_START_S):
                await self._consumer.start()
            while not stopping.done():
                await asyncio.wait(
                    {stopping, self._failure}, timeout=CHECK_EVERY_S, return_when=asyncio.FIRST_COMPLETED
                )
                if self._failure.done():
                    self._failure.result()
                # Membership that failed is told to whoever polls, and with no partition nobody does.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(CHECK_EVERY_S):
                        await self._consumer.check()
                if self.standing.ready:
                    self._tell_working()
        finally:
            self._over = True
            stopping.cancel()
            if not self._failure.cancel():
                self._failure.exception()
            await self._stop_workers()
            self._shelf.close()
            # With brokers away the stop goes on in the background, without us.
            await stop_client(self._consumer, timeout_s=CONSUMER_STOP_S)

    async def _assigned(self, partitions: set[int]) -> None:
        if self._over:
            return
        self._joined = True
        _log.info("partitions assigned", partitions=sorted(partitions))
        try:
            self._shelf.keep(partitions)
            for partition in sorted(partitions):
                worker = self._make_worker(partition, self._consumer, self._shelf, lambda: len(self._workers))
                self._workers[partition] = worker
                worker.start(partial(self._ended, worker))
        except Exception as error:  # noqa: BLE001 - the client logs what a callback raises and goes on without it
            self._fail(error)

    async def _revoked(self, partitions: set[int]) -> None:
        self._joined = False
        if partitions:
            _log.info("partitions revoked", partitions=sorted(partitions))
        await self._stop_workers()

    async def _stop_workers(self) -> None:
        workers, self._workers = list(self._workers.values()), {}
        await asyncio.gather(*(worker.stop(REVOKE_GRACE_S) for worker in workers))

    def _ended(self, worker: PartitionWorker, task: "asyncio.Task[None]") -> None:
        """A worker that ends by itself ends the session, also where it looks as if somebody had cancelled it."""
        if not task.cancelled():
            error = task.exception()
        elif worker.stopping:
            error = None
        else:
            error = WorkerLostError(f"the work on partition {worker.partition} was cancelled by nobody who may")
        if error is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if not self._failure.done():
            self._failure.set_exception(error)
