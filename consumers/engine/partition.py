"""One partition under one assignment: restore, then cycles, until it is revoked or somebody else owns it.

All of it runs in one task beside the poll loop. After any doubt the task begins again with a new producer and the
changelog; nothing that a failed cycle would have left behind is kept.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol

import structlog

from consumers.engine.assignment import Changelog, Evidence, in_thread, input_offset, restore
from consumers.engine.breaker import Breaker
from consumers.engine.clock import CaughtUp, PartitionClock, Watermark
from consumers.engine.cycle import Draft, InternalError, Rules
from consumers.engine.deciding import Decision, Offer, decide
from consumers.engine.kafka import CLIENT_ERRORS
from consumers.engine.lag import Lag
from consumers.engine.metrics import COMMIT, DEAD_LETTERS, DOUBTS, PAUSED, PENDING, RECORDS, RESULTS
from consumers.engine.narrowing import Narrowing
from consumers.engine.protocols import Ledger, LedgerStore
from consumers.engine.record import InputRecord
from consumers.engine.routing import Routing
from consumers.engine.stopping import is_cancelled
from consumers.engine.transaction import DoubtError, RefusedError, Transactions
from consumers.entry import Cursor, LedgerDamagedError, Position
from ingest.contract.dead_letter import Stage
from ingest.runtime.backoff import Backoff
from ingest.runtime.clock import Clock
from ingest.runtime.errors import FoundError

OWNED_COST_S = 0.005
"""What a transaction costs, about: the interval grows with the partitions that share a core."""

POLL_S = 0.5
BACKOFF_FIRST_S = 0.2
BACKOFF_MOST_S = 5.0
OFFSETS_TIMEOUT_S = 20.0
CANCEL_TIMEOUT_S = 5.0

_log = structlog.get_logger(__name__)


class Phase(StrEnum):
    """What a partition is doing; ready means running."""

    RESTORING = "restoring"
    RUNNING = "running"
    PAUSED = "paused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How often and how long.

    Attributes:
        commit_interval_s: least time between two cycles of a partition that is caught up.
        idle_cycle_ms: after so long without a cycle an empty one is written, so that the position never ages out.
    """

    commit_interval_s: float
    idle_cycle_ms: int


class Reports(Protocol):
    """What is used of the group's consumer (`consumers.engine.kafka.ReportsConsumer`)."""

    async def poll(self, partition: int, *, timeout_s: float, records_max: int) -> Sequence[InputRecord]: ...  # noqa: D102
    async def watermark(self, partition: int) -> Watermark: ...  # noqa: D102
    async def committed(self, partition: int) -> int | None: ...  # noqa: D102
    async def bounds(self, partition: int) -> tuple[int, int]: ...  # noqa: D102
    def pause(self, partition: int) -> None: ...  # noqa: D102
    def resume_at(self, partition: int, offset: int) -> None: ...  # noqa: D102


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What the partitions of a process work with.

    Attributes:
        reports: the group's consumer.
        store: where ledgers are.
        changelog: makes the reader of one changelog partition.
        restores: bounds how many partitions restore at the same time.
        owned: how many partitions this process has.
        clock: time.
        accept_loss: go on where memory or input was lost.
    """

    reports: Reports
    store: LedgerStore
    changelog: Callable[[int], AbstractAsyncContextManager[Changelog]]
    restores: asyncio.Semaphore
    owned: Callable[[], int]
    clock: Clock
    accept_loss: bool


class _HeldError(Exception):
    """The partition cannot go on until an operator has looked at it."""


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
        self._routing = routing
        self._pace = pace
        self._tools = tools
        self._transactions = transactions
        self._breaker = Breaker()
        self._backoff = Backoff(BACKOFF_FIRST_S, BACKOFF_MOST_S)
        self._operator = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._committing = False
        self._position = Position(0, 0, 0, Cursor())
        self._clock = PartitionClock()
        self._caught_up = CaughtUp()
        self._next_cycle_at_s = 0.0
        self._carry: Sequence[InputRecord] = ()
        self._narrowing = Narrowing()
        self._pending = 0
        self._lag = Lag(rules.partition, tools.clock)
        self._unsaid = False

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
        if self._committing:
            await asyncio.wait({self._task}, timeout=grace_s)
        self._task.cancel()
        await asyncio.wait({self._task}, timeout=CANCEL_TIMEOUT_S)

    def resume(self) -> None:
        """Let a paused partition go on: an operator has looked at it."""
        self._operator.set()

    async def _run(self) -> None:
        ledger: Ledger | None = None
        try:
            while not self._stopping:
                try:
                    ledger = ledger or await self._open()
                    await self._begin(ledger)
                    await self._work(ledger)
                except RefusedError:
                    await self._narrow()
                except _HeldError as error:
                    await self._hold(str(error), error.__cause__)
                except LedgerDamagedError as error:
                    ledger = None if ledger is None else await self._discarded(ledger)
                    await self._doubt(error)
                except (DoubtError, *CLIENT_ERRORS) as error:
                    await self._doubt(error)
                except asyncio.CancelledError as error:
                    if self.stopping or is_cancelled():
                        raise
                    # A client has cancelled something of its own while we waited for it.
                    await self._doubt(error)
        finally:
            self._transactions.let_go()
            if ledger is not None:
                ledger.close()
            self._show_pending(0)
            self._lag.hide()

    async def _open(self) -> Ledger:
        opening = asyncio.ensure_future(asyncio.to_thread(self._tools.store.open, self.partition))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_opened)
            raise

    async def _discarded(self, ledger: Ledger) -> Ledger | None:
        """The ledger, emptied; None where its folder cannot even be emptied, so that another one must be opened."""
        try:
            await in_thread(ledger.discard)
        except OSError as error:
            _log.warning("local state cannot be discarded", partition=self.partition, error=str(error))
            ledger.close()
            return None
        return ledger

    async def _begin(self, ledger: Ledger) -> None:
        """Settle what came before, restore, and read on where the changelog says."""
        tools, partition = self._tools, self.partition
        self.phase = Phase.RESTORING
        self._lag.show()
        tools.reports.pause(partition)
        self._carry = ()
        await self._transactions.settle()
        async with tools.restores, tools.changelog(partition) as changelog:
            restored = await restore(ledger, changelog)
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
        try:
            offset, self._unsaid = input_offset(evidence, accept_loss=False), restored.alone
        except FoundError:
            if not tools.accept_loss:
                raise
            # Written down at once, records or not: an accepted loss is not asked about again.
            offset, self._unsaid = input_offset(evidence, accept_loss=True), True
            if restored.unproven:
                await in_thread(ledger.discard)
        self._position = last or Position(0, offset, 0, Cursor())
        self._clock = PartitionClock(self._position.clock_ms)
        self._show_pending(ledger.waiting())
        tools.reports.resume_at(partition, offset)
        self.phase = Phase.RUNNING
        _log.info("partition runs", partition=partition, offset=offset, cycle=self._position.cycle)

    async def _work(self, ledger: Ledger) -> None:
        clock = self._tools.clock
        while not self._stopping:
            await clock.sleep(max(0.0, self._next_cycle_at_s - clock.monotonic()))
            if self._narrowing.apart and not self._carry:
                await self._cycle(ledger, ())
            await self._cycle(ledger, await self._next_records())

    async def _next_records(self) -> Sequence[InputRecord]:
        """What is left in hand, or the next of the input."""
        most = self._narrowing.records_max
        if self._carry:
            records, self._carry = self._carry[:most], self._carry[most:]
            return records
        return await self._tools.reports.poll(self.partition, timeout_s=POLL_S, records_max=most)

    async def _cycle(self, ledger: Ledger, records: Sequence[InputRecord]) -> None:
        """Decide a cycle, make it a transaction, then remember it."""
        clock = self._tools.clock
        watermark = await self._tools.reports.watermark(self.partition)
        started_s, now_ms = clock.monotonic(), clock.wall_ms()
        caught_up = not self._carry and self._caught_up.judge(watermark, wall_ms=now_ms, monotonic_s=started_s)
        self._lag.look(records, caught_up=caught_up)
        offer = Offer(
            records=records,
            caught_up=caught_up and not (records and self._narrowing.apart),
            clock_ms=self._clock.tick(now_ms),
            now_ms=now_ms,
            cursor=self._position.cursor,
            refused_offset=self._narrowing.refused_offset,
        )
        try:
            decision = decide(self._rules, ledger, offer)
        except InternalError as error:
            raise _HeldError("our code fails on the timeout of a message") from error
        self._next_cycle_at_s = started_s
        if not (records or decision.draft.writes or self._unsaid or self._idle_too_long(offer.clock_ms)):
            # A cursor that moved over nothing due travels with the next cycle.
            self._position = replace(self._position, cursor=decision.cursor)
            return
        dead = len(decision.draft.dead_letters)
        if self._breaker.trips(decision.taken, dead):
            self._breaker.resume()
            raise _HeldError(f"{dead} of {decision.taken} records cannot be used")
        taken, self._carry = records[: decision.taken], (*records[decision.taken :], *self._carry)
        self._narrowing.tries(taken, timeouts=offer.caught_up)
        await self._commit(
            ledger,
            decision,
            Position(self._position.cycle + 1, self._next_offset(watermark), offer.clock_ms, decision.cursor),
        )
        self._breaker.passed(decision.taken, dead)
        self._narrowing.passed()
        self._lag.passed(taken, self._carry, caught_up=caught_up)
        if caught_up and not self._carry and not decision.more_due:
            self._next_cycle_at_s = started_s + max(self._pace.commit_interval_s, self._tools.owned() * OWNED_COST_S)

    async def _commit(self, ledger: Ledger, decision: Decision, position: Position) -> None:
        clock = self._tools.clock
        changelog = ledger.encode(decision.entries, position)
        sends = self._routing.sends(decision.draft)
        started_s = clock.monotonic()
        self._committing = True
        try:
            offsets = await self._transactions.commit(sends, changelog, position.next_offset)
            # From here on the cycle has happened. A ledger that fails to take it in stays behind, and is read up.
            ledger.apply(list(zip(offsets, changelog, strict=True)))
        finally:
            self._committing = False
        COMMIT.observe(clock.monotonic() - started_s)
        self._position = position
        self._unsaid = False
        self._backoff.reset()
        ledger.forget(position.clock_ms - self._rules.late_window_ms)
        self._show_pending(ledger.waiting())
        _count(decision.draft)

    async def _narrow(self) -> None:
        _log.warning("kafka refuses a cycle", partition=self.partition)
        if not self._narrowing.refused():
            await self._hold("kafka refuses a record of ours: max.message.bytes of a topic is too small")

    async def _hold(self, why: str, cause: BaseException | None = None) -> None:
        """Pause until an operator resumes the partition (SIGHUP); the others go on."""
        self._tools.reports.pause(self.partition)
        self._transactions.let_go()
        self.phase = Phase.PAUSED
        self._operator.clear()
        _log.error("partition is paused, SIGHUP resumes it", partition=self.partition, why=why, exc_info=cause)
        PAUSED.inc()
        try:
            await self._operator.wait()
        finally:
            PAUSED.dec()
        self._narrowing.forget()
        _log.warning("partition is resumed", partition=self.partition)

    async def _doubt(self, error: BaseException) -> None:
        wait_s = self._backoff.next()
        self.phase = Phase.RESTORING
        self._transactions.let_go()
        DOUBTS.labels(type(error).__name__).inc()
        _log.warning(
            "in doubt, reading the changelog again",
            partition=self.partition,
            error=f"{type(error).__name__}: {error}",
            wait_s=round(wait_s, 3),
        )
        await self._tools.clock.sleep(wait_s)

    def _next_offset(self, watermark: Watermark) -> int:
        """Where the next cycle begins: behind what was taken, past control records where nothing was left over."""
        if self._carry:
            return self._carry[0].offset
        return self._position.next_offset if watermark.position is None else watermark.position

    def _idle_too_long(self, clock_ms: int) -> bool:
        return self._position.cycle > 0 and clock_ms - self._position.clock_ms >= self._pace.idle_cycle_ms

    def _show_pending(self, pending: int) -> None:
        PENDING.inc(pending - self._pending)
        self._pending = pending


def _count(draft: Draft) -> None:
    for change, number in draft.records.items():
        RECORDS.labels(change).inc(number)
    for (outcome, reason), number in draft.outcomes.items():
        RESULTS.labels(outcome, reason).inc(number)
    for reason, number in draft.reasons.items():
        DEAD_LETTERS.labels(Stage.ASSEMBLE, reason).inc(number)


def _close_opened(opening: "asyncio.Future[Ledger]") -> None:
    """Let go of a ledger that was opened for an assignment which has gone by then."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
