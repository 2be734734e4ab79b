"""The cycles of one partition, one after the other. Behind, the next one is prepared while the last one commits.

A cycle that is prepared early is decided on what the one in flight has written (its overlay) over what is committed.
Once that one has been committed and applied both say the same, so it does not matter when the commit ends; if it fails
in any way, the prepared one is dropped with it. Nothing of a cycle is visible to anybody before its own commit.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import structlog

from consumers.engine.breaker import Breaker
from consumers.engine.clock import CaughtUp, PartitionClock, Watermark
from consumers.engine.cycle import Draft, InternalError, Rules
from consumers.engine.deciding import Decision, Offer, decide
from consumers.engine.lag import Lag
from consumers.engine.metrics import COMMIT, DEAD_LETTERS, PENDING, RECORDS, RESULTS
from consumers.engine.narrowing import Narrowing
from consumers.engine.protocols import Ledger
from consumers.engine.record import InputRecord
from consumers.engine.routing import Routing
from consumers.engine.transaction import DoubtError, Transactions
from consumers.entry import Cursor, Position
from consumers.message import MessageState
from ingest.contract.dead_letter import Stage
from ingest.runtime.clock import Clock

OWNED_COST_S = 0.005
"""What a transaction costs, about: the interval grows with the partitions that share a core."""

POLL_S = 0.5
DROP_TIMEOUT_S = 5.0
"""For a commit that is given up to end: dropping it waits for nobody."""


_log = structlog.get_logger(__name__)


class HeldError(Exception):
    """The partition cannot go on until an operator has looked at it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How often and how long.

    Attributes:
        commit_interval_s: least time between two cycles of a partition that is caught up.
        idle_cycle_ms: after so long without a cycle an empty one is written, so that the position never ages out.
    """

    commit_interval_s: float
    idle_cycle_ms: int


class Input(Protocol):
    """What is read of the reports topic."""

    async def poll(self, partition: int, *, timeout_s: float, records_max: int) -> Sequence[InputRecord]: ...  # noqa: D102
    async def watermark(self, partition: int) -> Watermark: ...  # noqa: D102


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    """A cycle that waits for its turn to be committed."""

    decision: Decision
    taken: Sequence[InputRecord]
    left: Sequence[InputRecord]
    position: Position
    caught_up: bool
    started_s: float
    looked: bool


class Pipeline:
    """Makes the cycles of one partition.

    Attributes:
        lag: how far the partition is behind.
        narrowing: what the next cycles may hold.
    """

    def __init__(  # noqa: PLR0917 - called once
        self,
        rules: Rules,
        routing: Routing,
        pace: Pace,
        reports: Input,
        transactions: Transactions,
        clock: Clock,
        owned: Callable[[], int],
    ) -> None:
        """Nothing happens before `begin` and `run`.

        Args:
            rules: of the partition.
            routing: of what it writes.
            pace: of its cycles.
            reports: the input.
            transactions: of the partition.
            clock: time.
            owned: how many partitions this process has.
        """
        self._rules = rules
        self._routing = routing
        self._pace = pace
        self._reports = reports
        self._transactions = transactions
        self._time = clock
        self._owned = owned
        self._breaker = Breaker()
        self._position = Position(0, 0, 0, Cursor())
        self._clock = PartitionClock()
        self._caught_up = CaughtUp(clock)
        self._next_at_s = 0.0
        self._carry: Sequence[InputRecord] = ()
        self._looked_alone = False
        self._pending = 0
        self._unsaid = False
        self._cursor_unsaid = False
        self._memory_begins = False
        self._more_due = False
        self._flight: asyncio.Task[None] | None = None
        self._overlay: Mapping[bytes, MessageState] | None = None
        self._ending = False
        self.lag = Lag(rules.partition, clock)
        self.narrowing = Narrowing()

    def begin(self, position: Position, pending: int, *, alone: bool = False, accepted: bool = False) -> None:
        """Go on from a position; whatever was prepared or in hand before is gone.

        Args:
            position: of the last committed cycle.
            pending: messages that wait.
            alone: whether the changelog has expired, so that the position stands nowhere but in the journal.
            accepted: whether a loss of memory was accepted with it.
        """
        self._position = position
        self._clock = PartitionClock(position.clock_ms)
        self._carry = ()
        self._unsaid = alone or accepted
        self._cursor_unsaid = alone
        self._memory_begins = accepted
        self._more_due = False
        self._show_pending(pending)

    async def run(self, ledger: Ledger, committed: Callable[[], None]) -> None:
        """Make cycles until `land`, or until one fails: then nothing of it or of a prepared one is left.

        Args:
            ledger: restored.
            committed: told of every cycle.

        Raises:
            HeldError: an operator has to look.
            TransactionError, LedgerDamagedError, OSError: doubt.
        """
        try:
            while not self._ending:
                try:
                    prepared = await self._prepare(ledger)
                except Exception:
                    # What the cycle in flight fails with matters more than a failure of the one built on it.
                    await self._landed()
                    raise
                await self._landed()
                self._transactions.look()
                if prepared is not None and not self._ending:
                    self._launch(ledger, prepared, committed)
                    if prepared.caught_up or self.narrowing.narrow:
                        await self._landed()
            await self._landed()
        finally:
            await self._drop_flight()

    async def land(self, grace_s: float) -> None:
        """Begin no further cycle, and wait at most so long for the one in flight."""
        self._ending = True
        if self._flight is not None:
            await asyncio.wait({self._flight}, timeout=grace_s)

    def hide(self) -> None:
        """Take the partition out of what is shown."""
        self._show_pending(0)
        self.lag.hide()

    async def _prepare(self, ledger: Ledger) -> _Prepared | None:
        """Decide the next cycle; None if there is nothing to write."""
        await self._time.sleep(max(0.0, self._next_at_s - self._time.monotonic()))
        records = await self._next_records()
        watermark = await self._reports.watermark(self._rules.partition)
        started_s, now_ms = self._time.monotonic(), self._time.wall_ms()
        caught_up = not self._carry and self._caught_up.judge(watermark, wall_ms=now_ms, monotonic_s=started_s)
        self.lag.look(records, caught_up=caught_up)
        offer = Offer(
            records=records,
            caught_up=caught_up and not (records and self.narrowing.apart),
            clock_ms=self._clock.tick(now_ms),
            now_ms=now_ms,
            cursor=self._position.cursor,
            refused_offset=self.narrowing.refused_offset,
            overlay=self._overlay,
        )
        try:
            decision = decide(self._rules, ledger, offer)
        except InternalError as error:
            raise HeldError("our code fails on the timeout of a message") from error
        self._next_at_s = started_s
        self._more_due = decision.more_due
        looked = self._cursor_unsaid and offer.caught_up and not decision.more_due
        wanted = self._unsaid or looked or self._idle_too_long(offer.clock_ms)
        if not (records or decision.draft.writes or wanted):
            # A cursor that moved over nothing due travels with the next cycle.
            self._position = replace(self._position, cursor=decision.cursor)
            return None
        self._carry = (*records[decision.taken :], *self._carry)
        self._position = replace(
            self._position,
            cycle=self._position.cycle + 1,
            next_offset=self._next_offset(watermark),
            clock_ms=offer.clock_ms,
            cursor=decision.cursor,
            memory_from_s=self._memory_from_s(offer.clock_ms),
        )
        return _Prepared(
            decision=decision,
            taken=records[: decision.taken],
            left=self._carry,
            position=self._position,
            caught_up=offer.caught_up,
            started_s=started_s,
            looked=looked,
        )

    async def _next_records(self) -> Sequence[InputRecord]:
        """What is left in hand, or the next of the input; nothing where timeouts go alone before the records."""
        most = self.narrowing.records_max
        if self._carry:
            records, self._carry = self._carry[:most], self._carry[most:]
            return records
        self._looked_alone = self.narrowing.apart and not self._looked_alone
        if self._looked_alone:
            return ()
        return await self._reports.poll(
            self._rules.partition, timeout_s=0 if self._more_due else POLL_S, records_max=most
        )

    def _launch(self, ledger: Ledger, prepared: _Prepared, committed: Callable[[], None]) -> None:
        """Begin to commit a cycle, unless too much of it cannot be used."""
        decision = prepared.decision
        dead = len(decision.draft.dead_letters)
        if self._breaker.trips(decision.taken, dead):
            self._breaker.resume()
            raise HeldError(f"{dead} of {decision.taken} records cannot be used")
        self.narrowing.tries(prepared.taken, timeouts=prepared.caught_up)
        self._overlay = decision.draft.changed
        self._flight = asyncio.create_task(
            self._commit(ledger, prepared, committed), name=f"cycle-{self._rules.partition}"
        )

    async def _commit(self, ledger: Ledger, prepared: _Prepared, committed: Callable[[], None]) -> None:
        """Make a cycle a transaction, then remember it."""
        decision, position = prepared.decision, prepared.position
        changelog = ledger.encode(decision.entries, position)
        sends = self._routing.sends(decision.draft)
        started_s = self._time.monotonic()
        offsets = await self._transactions.commit(sends, changelog, position.next_offset)
        if offsets[0] < ledger.next_changelog_offset():
            # What the journal holds is not in it any more: to be asked about before anything is thrown away.
            raise DoubtError("the changelog was made anew")
        # From here on the cycle has happened. A ledger that fails to take it in stays behind, and is read up.
        ledger.apply(list(zip(offsets, changelog, strict=True)))
        COMMIT.observe(self._time.monotonic() - started_s)
        self._unsaid = self._memory_begins = False
        if prepared.looked:
            self._cursor_unsaid = False
        committed()
        self._show_pending(ledger.waiting())
        _count(decision.draft)
        self._breaker.passed(decision.taken, len(decision.draft.dead_letters))
        self.narrowing.passed()
        self.lag.passed(prepared.taken, prepared.left, caught_up=prepared.caught_up)
        if prepared.caught_up and not prepared.left and not decision.more_due:
            pause_s = max(self._pace.commit_interval_s, self._owned() * OWNED_COST_S)
            self._next_at_s = prepared.started_s + pause_s
        try:
            ledger.forget(position.clock_ms - self._rules.late_window_ms)
        except OSError as error:
            # Nothing rests on it; the next cycle tries again.
            _log.warning("the disk keeps what was to be forgotten", partition=self._rules.partition, error=str(error))

    async def _landed(self) -> None:
        """Wait for the cycle in flight, and raise what became of it."""
        if self._flight is not None:
            await asyncio.wait({self._flight})
            flight, self._flight, self._overlay = self._flight, None, None
            flight.result()

    async def _drop_flight(self) -> None:
        """Give up a cycle in flight, if there is one: it is in doubt from then on."""
        flight, self._flight, self._overlay = self._flight, None, None
        if flight is not None:
            flight.cancel()
            await asyncio.wait({flight}, timeout=DROP_TIMEOUT_S)
            if flight.done() and not flight.cancelled():
                flight.exception()

    def _next_offset(self, watermark: Watermark) -> int:
        """Where the next cycle begins: behind what was taken, past control records where nothing was left over."""
        if self._carry:
            return self._carry[0].offset
        return self._position.next_offset if watermark.position is None else watermark.position

    def _memory_from_s(self, clock_ms: int) -> int:
        """Where memory begins: here, if a loss was accepted or all that was answered before is forgotten by now."""
        before = self._position
        passed = before.clock_ms and clock_ms - before.clock_ms > self._rules.late_window_ms
        return -(-clock_ms // 1000) if self._memory_begins or passed else before.memory_from_s

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
