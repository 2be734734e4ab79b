"""The state of one message and its join: the heart of the product, without I/O and without a clock.

Invariant 6: what counts of a message is the least upper bound of its reports. Each sequence keeps the greatest of its
reports, in the order that contract.md section 7 gives; the stated totals keep their greatest and least. Order and
repeats therefore cannot change it, and dedupe is nothing but its idempotence.

Revision, receive times, `seen_at` and `last_result_at` stand beside the join: they depend on the order of the records,
and on nothing else that batching, restarts or rebalances could change. A record changes the state or it does not, by
what stands before it in its partition; the receive times span those that did.
"""

from bisect import bisect_left
from enum import StrEnum

import msgspec

from ingest.contract.report import Report

DELIVERED_STATUS = "DELIVRD"
ACCEPTED_STATUS = "ACCEPTD"
UNKNOWN_STATUS = "UNKNOWN"

RECORD_MS_MAX = 253_402_300_799_999
"""The last millisecond of the year 9999: RFC 3339 has no later one. Timestamps of records are bounded by it and 0."""

FORMAT_VERSION = 1
"""First byte of an encoded state. A new form is written one release after it can be read."""


class StateFormatError(ValueError):
    """An encoded state has a format version that this release does not know: a newer release wrote it."""

    def __init__(self, found: int | None) -> None:
        super().__init__(f"state format {found} is not known, this release reads {FORMAT_VERSION}")
        self.found = found


class Change(StrEnum):
    """What a report did to the state of its message; the label `result` of `dlrflow_records_total`."""

    APPLIED = "applied"
    REPEAT = "repeat"
    SUPERSEDED = "superseded"


class Counted(msgspec.Struct, frozen=True, order=True, array_like=True, gc=False):
    """The report that counts for one sequence. Compared field by field, as contract.md section 7 orders reports.

    Texts compare by code point, which is the order of their UTF-8 bytes; absent ones are empty.
    """

    sequence: int
    rank: int
    """0 accepted, 1 unknown, 2 without time, 3 with one; final from 1 on."""
    update_time: str
    delivered: bool
    status: str
    source: str
    org_code: str
    to: str
    extend: str


class MessageState(msgspec.Struct, frozen=True, gc=False):
    """All that is remembered of one message.

    Attributes:
        segments: what counts, one per sequence heard of, ascending.
        total_greatest: the greatest stated total, 0 where none was stated.
        total_least: the least stated total, 0 where none was stated.
        revision: of the last emitted result, 0 before the first.
        first_ms: least timestamp of the records that changed the state.
        last_ms: the greatest of them.
        seen_at: partition clock at the first applied report, milliseconds.
        last_result_at: partition clock at the last emitted result, 0 before the first.
        message_id: kept while the message waits, for its timeout has no report that names it; else empty.
    """

    segments: tuple[Counted, ...]
    total_greatest: int
    total_least: int
    revision: int
    first_ms: int
    last_ms: int
    seen_at: int
    last_result_at: int
    message_id: str

    @property
    def waiting(self) -> bool:
        """Whether no result was emitted yet."""
        return self.revision == 0


def rank_of(status: str, update_time: str) -> int:
    """How much a report counts before its time is looked at (contract.md section 7)."""
    if status == ACCEPTED_STATUS:
        return 0
    if status == UNKNOWN_STATUS:
        return 1
    return 3 if update_time else 2


def counted_of(report: Report) -> Counted:
    """A report in the form in which reports of one sequence are compared."""
    status = report.status
    update_time = report.update_time
    return Counted(
        report.sequence,
        rank_of(status, update_time),
        update_time,
        status == DELIVERED_STATUS,
        status,
        report.source,
        report.org_code,
        report.to,
        report.extend,
    )


def apply(state: MessageState | None, report: Report, record_ms: int, clock_ms: int) -> tuple[MessageState, Change]:
    """Join one report into the state of its message.

    Args:
        state: of the report's message; None if nothing is remembered of it.
        report: the report.
        record_ms: timestamp of its record.
        clock_ms: the partition clock, kept as `seen_at` by the first report.

    Returns:
        The new state, and whether the report changed it. Unless it did, the state is the one given.
    """
    counted = counted_of(report)
    total = report.total or 0
    record_ms = min(max(record_ms, 0), RECORD_MS_MAX)
    if state is None:
        first = MessageState((counted,), total, total, 0, record_ms, record_ms, clock_ms, 0, report.message_id)
        return first, Change.APPLIED
    segments = state.segments
    index = bisect_left(segments, counted.sequence, key=_sequence)
    known = segments[index] if index < len(segments) and segments[index].sequence == counted.sequence else None
    if known is None:
        segments = (*segments[:index], counted, *segments[index:])
    elif counted > known:
        segments = (*segments[:index], counted, *segments[index + 1 :])
    greatest = max(state.total_greatest, total)
    least = _least(state.total_least, total)
    if segments is state.segments and greatest == state.total_greatest and least == state.total_least:
        return state, Change.REPEAT if counted == known else Change.SUPERSEDED
    joined = MessageState(
        segments,
        greatest,
        least,
        state.revision,
        min(state.first_ms, record_ms),
        max(state.last_ms, record_ms),
        state.seen_at,
        state.last_result_at,
        state.message_id,
    )
    return joined, Change.APPLIED


def merge(one: MessageState, other: MessageState) -> MessageState:
    """The least upper bound of two states of one message: commutative, associative, idempotent.

    `apply` is this with the state of a single report, made quick; what stands beside the join is joined here in the
    way that keeps those laws (the wider span, the earlier sight, the later result).
    """
    best = {counted.sequence: counted for counted in one.segments}
    for counted in other.segments:
        best[counted.sequence] = max(counted, best.get(counted.sequence, counted))
    revision = max(one.revision, other.revision)
    return MessageState(
        tuple(best[sequence] for sequence in sorted(best)),
        max(one.total_greatest, other.total_greatest),
        _least(one.total_least, other.total_least),
        revision,
        min(one.first_ms, other.first_ms),
        max(one.last_ms, other.last_ms),
        min(one.seen_at, other.seen_at),
        max(one.last_result_at, other.last_result_at),
        "" if revision else max(one.message_id, other.message_id),
    )


def emitted(state: MessageState, clock_ms: int) -> MessageState:
    """The state after its next result was emitted at a partition clock: no longer waiting, its name let go."""
    return MessageState(
        state.segments,
        state.total_greatest,
        state.total_least,
        state.revision + 1,
        state.first_ms,
        state.last_ms,
        state.seen_at,
        clock_ms,
        "",
    )


def deadline(state: MessageState, timeout_ms: int) -> int | None:
    """The partition clock from which a waiting message is due for its timeout; None for one that does not wait."""
    return state.seen_at + timeout_ms if state.revision == 0 else None


def forget_at(state: MessageState, late_window_ms: int) -> int | None:
    """The last partition clock at which a message is remembered; None while it waits, which has no such end."""
    return state.last_result_at + late_window_ms if state.revision else None


def is_forgotten(state: MessageState, late_window_ms: int, clock_ms: int) -> bool:
    """Whether the state counts as absent: a report begins the message anew."""
    return state.revision > 0 and clock_ms > state.last_result_at + late_window_ms


_Wire = tuple[tuple[Counted, ...], int, int, int, int, int, int, int, str]
_PREFIX = bytes([FORMAT_VERSION])
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Wire)


def encode(state: MessageState) -> bytes:
    """A state as the ledger keeps it: format version, then a MessagePack array with times relative to the first."""
    first_ms = state.first_ms
    return _PREFIX + _encoder.encode(
        (
            state.segments,
            state.total_greatest,
            state.total_least,
            state.revision,
            first_ms,
            state.last_ms - first_ms,
            state.seen_at - first_ms,
            state.last_result_at - state.seen_at if state.revision else 0,
            state.message_id,
        )
    )


def decode(encoded: bytes) -> MessageState:
    """Read what `encode` wrote.

    Raises:
        StateFormatError: a newer release wrote it.
        ValueError: it is damaged.
    """
    if encoded[:1] != _PREFIX:
        raise StateFormatError(encoded[0] if encoded else None)
    segments, greatest, least, revision, first_ms, span_ms, seen_after, result_after, message_id = _decoder.decode(
        memoryview(encoded)[1:]
    )
    seen_at = first_ms + seen_after
    return MessageState(
        segments,
        greatest,
        least,
        revision,
        first_ms,
        first_ms + span_ms,
        seen_at,
        seen_at + result_after if revision else 0,
        message_id,
    )


def _sequence(counted: Counted) -> int:
    return counted.sequence


def _least(one: int, other: int) -> int:
    """The lesser of two stated totals; 0 states nothing."""
    return min(one, other) if one and other else one or other
