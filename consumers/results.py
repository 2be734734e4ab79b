"""From the state of a message to its results: what a result says, and when the next one is due (contract.md section 7).

Results are decided report by report, never by batch: two reports of one cycle give the same revisions as two cycles.
"""

from typing import NamedTuple

from consumers.message import DELIVERED_STATUS, UNKNOWN_STATUS, Change, MessageState, apply, emitted
from ingest.contract.envelope import rfc3339_ms
from ingest.contract.report import Report
from ingest.contract.result import SCHEMA_VERSION, Outcome, Result, ResultReason, SegmentResult

_DELIVERED, _INCOMPLETE = Outcome.DELIVERED, Outcome.INCOMPLETE  # looking a member up costs as much as comparing it

FINAL_RANK = 1
"""The least rank at which a segment is final."""


class Step(NamedTuple):
    """What one report did.

    Attributes:
        state: of its message afterwards, the emitted result counted in.
        change: what the report did to it. Unless `applied`, the state is the one before and nothing need be written.
        result: the result to emit, if any.
    """

    state: MessageState
    change: Change
    result: Result | None


def step(state: MessageState | None, report: Report, record_ms: int, clock_ms: int) -> Step:
    """Apply a report to its message and decide whether a result is due.

    Args:
        state: of the message; None if nothing is remembered of it, or what was is past its late window.
        report: the report.
        record_ms: timestamp of its record.
        clock_ms: the partition clock.
    """
    after, change = apply(state, report, record_ms, clock_ms)
    if change is not Change.APPLIED:
        return Step(after, change, None)
    if state is None or state.revision == 0:
        if not is_final(after):
            return Step(after, change, None)
        reason = ResultReason.COMPLETE
    elif _shown(state) == _shown(after):
        return Step(after, change, None)
    else:
        reason = ResultReason.REVISED
    after = emitted(after, clock_ms)
    return Step(after, change, result_of(after, reason, report.message_id))


def expire(state: MessageState, clock_ms: int) -> tuple[MessageState, Result]:
    """Emit the first result of a waiting message whose reassembly timeout passed.

    Raises:
        ValueError: the message does not wait.
    """
    if not state.waiting:
        raise ValueError("a message that has a result has no timeout")
    after = emitted(state, clock_ms)
    return after, result_of(after, ResultReason.TIMEOUT, state.message_id)


def is_final(state: MessageState) -> bool:
    """Whether every sequence from 1 to the total is final."""
    segments = state.segments
    if len(segments) != total_of(state):
        return False
    for counted in segments:  # noqa: SIM110 - a generator costs more than the rest of it
        if counted.rank < FINAL_RANK:
            return False
    return True


def total_of(state: MessageState) -> int:
    """The number of segments: the greatest stated, at least the greatest sequence heard of."""
    greatest = state.segments[-1].sequence
    return max(greatest, state.total_greatest)


def outcome_of(state: MessageState) -> Outcome:
    """What became of the message so far."""
    if not is_final(state):
        return _INCOMPLETE
    statuses = {counted.status for counted in state.segments}
    if DELIVERED_STATUS in statuses:
        return _DELIVERED if len(statuses) == 1 else Outcome.PARTIALLY_DELIVERED
    return Outcome.UNKNOWN if statuses == {UNKNOWN_STATUS} else Outcome.FAILED


def result_of(state: MessageState, reason: ResultReason, message_id: str) -> Result:
    """The result that a state stands for, with the revision that the state has.

    Args:
        state: with the revision of this result already counted (`consumers.message.emitted`).
        reason: why it is emitted.
        message_id: the `smsMsgId`; a state keeps it only while it waits.
    """
    segments = state.segments
    outcome = outcome_of(state)
    total = total_of(state)
    to, extend = (segments[0].to, segments[0].extend) if len(segments) == 1 else _to_and_extend(state)
    first_received_at = rfc3339_ms(state.first_ms)
    return Result(
        schema_version=SCHEMA_VERSION,
        sms_msg_id=message_id,
        revision=state.revision,
        outcome=outcome,
        final=outcome is not _INCOMPLETE,
        total=total,
        received=len(segments),
        missing=_missing(state, total) if len(segments) != total else [],
        total_conflict=state.total_least != state.total_greatest,
        segments=[SegmentResult(c.sequence, c.status, c.source, c.update_time, c.org_code) for c in segments],
        to=to,
        extend=extend,
        reason=reason,
        first_received_at=first_received_at,
        last_received_at=first_received_at if state.last_ms == state.first_ms else rfc3339_ms(state.last_ms),
    )


def _shown(state: MessageState) -> tuple[object, ...]:
    """Everything whose change emits a revision. `outcome`, `final` and `missing` follow from the rest of it."""
    return (
        total_of(state),
        state.total_least != state.total_greatest,
        _to_and_extend(state),
        [(c.sequence, c.status, c.source, c.update_time, c.org_code) for c in state.segments],
    )


def _missing(state: MessageState, total: int) -> list[int]:
    heard = {counted.sequence for counted in state.segments}
    return [sequence for sequence in range(1, total + 1) if sequence not in heard]


def _to_and_extend(state: MessageState) -> tuple[str, str]:
    """Each from the lowest sequence whose counted report has that one."""
    to = extend = ""
    for counted in state.segments:
        to = to or counted.to
        extend = extend or counted.extend
    return to, extend
