"""One partition under one assignment: restore, then cycles, until it is revoked or somebody else owns it.

All of it runs in one task beside the poll loop. After any doubt the task begins again with a new producer and the
changelog; nothing that a failed cycle would have left behind is kept.
"""

import asyncio
import socket
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol

import structlog

from consumers.engine.assignment import Changelog, Evidence, in_thread, input_offset, restore
from consumers.engine.cycle import Rules
from consumers.engine.kafka import CLIENT_ERRORS
from consumers.engine.kafka_raw import UnreadableError
from consumers.engine.metrics import DOUBTS, PAUSED
from consumers.engine.pipeline import HeldError, Input, Pace, Pipeline
from consumers.engine.protocols import Ledger
from consumers.engine.routing import Routing
from consumers.engine.settling import UnendedError
from consumers.engine.shelf import Shelf
from consumers.engine.stopping import is_cancelled
from consumers.engine.transaction import DoubtError, RefusedError, Transactions
from consumers.entry import Cursor, LedgerDamagedError, Position
from ingest.runtime.backoff import Backoff
from ingest.runtime.clock import Clock
from ingest.runtime.errors import FoundError

BACKOFF_FIRST_S = 1.2
"""Longer than a heartbeat, also when shortened at random: a member that was thrown out hears of it before it would take
the transactional id away from the present owner."""

BACKOFF_MOST_S = 5.0
OFFSETS_TIMEOUT_S = 20.0
DAMAGED_AGAIN_S = 60.0
"""How long a partition is left alone whose next batch cannot be read: another broker may have it whole."""

CANCEL_TIMEOUT_S = 5.0

_log = structlog.get_logger(__name__)


class Phase(StrEnum):
    """What a partition is doing; ready means running."""

    RESTORING = "restoring"
    RUNNING = "running"
    PAUSED = "paused"


class Reports(Input, Protocol):
    """What is used of the group's consumer (`consumers.engine.kafka.ReportsConsumer`)."""

    async def committed(self, partition: int) -> int | None: ...  # noqa: D102
    async def bounds(self, partition: int) -> tuple[int, int]: ...  # noqa: D102
    def pause(self, partition: int) -> None: ...  # noqa: D102
    def resume_at(self, partition: int, offset: int) -> None: ...  # noqa: D102


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What the partitions of a process work with.

    Attributes:
        reports: the group's consumer.
        shelf: where ledgers are.
        changelog: makes the reader of one changelog partition.
        restores: bounds how many partitions restore at the same time.
        owned: how many partitions this process has.
        clock: time.
        accept_loss: go on where memory or input was lost.
    """

    reports: Reports
    shelf: Shelf
    changelog: Callable[[int], AbstractAsyncContextManager[Changelog]]
    restores: asyncio.Semaphore
    owned: Callable[[], int]
    clock: Clock
    accept_loss: bool


class PartitionWorker:
    """Owner of one input partition.

    Attributes:
        partition: its number.
        phase: what it is doing.
    """

    def __init__(self, rules: Rules, routing: Routing, pace: Pace, tools: Tools, transactions: Transactions) -> None:
        """Describe the work; `start` begins it."""
        self.partition = rules.partition
        self.phase = Phase.RESTORING
        self._rules = rules
        self._tools = tools
        self._transactions = transactions
        self._pipeline = Pipeline(rules, routing, pace, tools.reports, transactions, tools.clock, tools.owned)
        self._backoff = Backoff(BACKOFF_FIRST_S, BACKOFF_MOST_S)
        self._operator = asyncio.Event()
        self._ledger: Ledger | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._accepted = False

    @property
    def stopping(self) -> bool:
        """Whether it was told to stop."""
        return self._stopping

    def start(self, ended: Callable[[asyncio.Task[None]], None]) -> None:
        """Begin to work.

        Args:
            ended: told when the work has ended, with its task. By itself it ends only with an exception: `FencedError`,
                a `CommandError`, or a fault of ours.
        """
        self._task = asyncio.create_task(self._run(), name=f"partition-{self.partition}")
        self._task.add_done_callback(ended)

    async def stop(self, grace_s: float) -> None:
        """End the work: a commit under way has `grace_s` to end, anything else is dropped. Returns quickly."""
        self._stopping = True
        if self._task is None:
            return
        await self._pipeline.land(grace_s)
        self._task.cancel()
        await asyncio.wait({self._task}, timeout=CANCEL_TIMEOUT_S)

    def resume(self) -> None:
        """Let a paused partition go on: an operator has looked at it."""
        self._operator.set()

    async def _run(self) -> None:
        try:
            while not self._stopping:
                try:
                    self._ledger = self._ledger or await self._open()
                    await self._begin(self._ledger)
                    await self._pipeline.run(self._ledger, self._committed)
                except RefusedError:
                    await self._narrow()
                except (HeldError, UnendedError) as error:
                    await self._hold(str(error), error.__cause__)
                except UnreadableError as error:
                    await self._hold(str(error), error.__cause__, at_most_s=DAMAGED_AGAIN_S)
                except (LedgerDamagedError, DoubtError, *CLIENT_ERRORS) as error:
                    await self._doubt(error)
                except asyncio.CancelledError as error:
                    if self.stopping or is_cancelled():
                        raise
                    # A client has cancelled something of its own while we waited for it.
                    await self._doubt(error)
        finally:
            self._transactions.let_go()
            # Where the group took the partition back it may come again at once.
            self._leave(on_shelf=self._stopping)
            self._pipeline.hide()

    def _committed(self) -> None:
        self._backoff.reset()
        self._accepted = False

    def _leave(self, *, on_shelf: bool = False) -> None:
        """Let go of the ledger, if there is one."""
        ledger, self._ledger = self._ledger, None
        if ledger is not None and on_shelf:
            self._tools.shelf.put(self.partition, ledger)
        elif ledger is not None:
            ledger.close()

    async def _open(self) -> Ledger:
        opening = asyncio.ensure_future(asyncio.to_thread(self._tools.shelf.open, self.partition))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_opened)
            raise

    async def _mend(self, error: BaseException) -> None:
        """Empty a damaged ledger, or leave it: its folder may be gone, or another one by now, and is opened anew."""
        if isinstance(error, LedgerDamagedError) and self._ledger is not None:
            try:
                await in_thread(self._ledger.discard)
            except OSError as failure:
                _log.warning("local state cannot be discarded", partition=self.partition, error=str(failure))
                self._leave()
        elif _is_of_the_disk(error):
            self._leave()

    async def _begin(self, ledger: Ledger) -> None:
        """Settle what came before, restore, and read on where the changelog says."""
        tools, partition = self._tools, self.partition
        self.phase = Phase.RESTORING
        self._pipeline.lag.show()
        tools.reports.pause(partition)
        await self._transactions.settle()
        async with tools.restores, tools.changelog(partition) as changelog:
            restored = await restore(
                ledger, changelog, self._rules, now_ms=tools.clock.wall_ms(), accept_loss=tools.accept_loss
            )
        async with asyncio.timeout(OFFSETS_TIMEOUT_S):
            committed = await tools.reports.committed(partition)
            input_start, input_end = await tools.reports.bounds(partition)
        last = None if restored.unproven else ledger.position
        evidence = Evidence(
            topic=self._rules.reports_topic,
            partition=partition,
            had_journal=restored.had_journal,
            unproven=restored.unproven,
            changelog_start=restored.changelog_start,
            next_offset=None if last is None else last.next_offset,
            committed=committed,
            input_start=input_start,
            input_end=input_end,
        )
        self._accepted |= restored.accepted
        try:
            offset = input_offset(evidence, accept_loss=False)
        except FoundError:
            if not tools.accept_loss:
                raise
            offset, self._accepted = input_offset(evidence, accept_loss=True), True
            if restored.unproven:
                await in_thread(ledger.discard)
        position = last or Position(0, offset, 0, Cursor())
        if restored.accepted or last is None:
            # Nothing is remembered of what stood before: there is no deadline to be looked for.
            position = replace(position, cursor=max(position.cursor, Cursor(restored.changelog_start)))
        # An accepted loss is written down at once, records or not, and not asked about again, whoever comes next.
        self._pipeline.begin(position, ledger.waiting(), alone=restored.alone, accepted=self._accepted)
        tools.reports.resume_at(partition, offset)
        self.phase = Phase.RUNNING
        _log.info("partition runs", partition=partition, offset=offset, cycle=position.cycle)

    async def _narrow(self) -> None:
        _log.warning("kafka refuses a cycle", partition=self.partition)
        if not self._pipeline.narrowing.refused():
            await self._hold("kafka refuses a record of ours: max.message.bytes of a topic is too small")

    async def _hold(self, why: str, cause: BaseException | None = None, *, at_most_s: float | None = None) -> None:
        """Pause until an operator resumes the partition (SIGHUP), or for so long; the others go on."""
        self._tools.reports.pause(self.partition)
        self._transactions.let_go()
        self.phase = Phase.PAUSED
        self._operator.clear()
        _log.error("partition is paused, SIGHUP resumes it", partition=self.partition, why=why, exc_info=cause)
        PAUSED.inc()
        try:
            async with asyncio.timeout(at_most_s):
                await self._operator.wait()
        except TimeoutError:
            _log.info("partition is tried again", partition=self.partition)
            return
        finally:
            PAUSED.dec()
        self._pipeline.narrowing.forget()
        _log.warning("partition is resumed", partition=self.partition)

    async def _doubt(self, error: BaseException) -> None:
        wait_s = self._backoff.next()
        self.phase = Phase.RESTORING
        self._transactions.let_go()
        await self._mend(error)
        DOUBTS.labels(type(error).__name__).inc()
        _log.warning(
            "in doubt, reading the changelog again",
            partition=self.partition,
            error=f"{type(error).__name__}: {error}",
            wait_s=round(wait_s, 3),
        )
        await self._tools.clock.sleep(wait_s)


def _is_of_the_disk(error: BaseException) -> bool:
    """Whether the ledger raised it. Of the network are timeouts and connections, in whatever they are wrapped."""
    return isinstance(error, OSError) and not isinstance(error, TimeoutError | ConnectionError | socket.gaierror)


def _close_opened(opening: "asyncio.Future[Ledger]") -> None:
    """Let go of a ledger that was opened for an assignment which has gone by then."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
