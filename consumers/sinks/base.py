"""What the sinks have in common: the columns of contract.md section 9, and which result of a message stays.

A row gives way to a result with a higher revision whose first receive time is not later. That guard is what makes a
repeated batch harmless: a row only ever moves to a higher revision and an earlier time, so whatever was refused once,
or was there once, is refused again.
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from consumers.rows import Arrival
from ingest.contract.result import Result, SegmentResult

TABLE = "message_results"

_NUL, _REPLACEMENT = "\x00", "\N{REPLACEMENT CHARACTER}"
_segments = msgspec.json.Encoder()


class Row(NamedTuple):
    """The columns of a result, in the order of the contract, without `written_at`. Absent texts are None.

    Times are RFC 3339 text, `segments` the JSON of a result; U+0000, which no database takes, is U+FFFD.
    """

    sms_msg_id: str
    revision: int
    outcome: str
    final: bool
    total: int
    received: int
    missing: list[int]
    recipient: str | None
    extend: str | None
    segments: str
    total_conflict: bool
    reason: str
    first_received_at: str
    last_received_at: str


COLUMNS = (*Row._fields, "written_at")


def row_of(result: Result) -> Row:
    """A result as a row."""
    segments = [
        SegmentResult(
            segment.sequence,
            _text(segment.status),
            _text(segment.source),
            _text(segment.update_time),
            _text(segment.org_code),
        )
        for segment in result.segments
    ]
    return Row(
        _text(result.sms_msg_id),
        result.revision,
        result.outcome.value,
        result.final,
        result.total,
        result.received,
        result.missing,
        _text(result.to) or None,
        _text(result.extend) or None,
        _segments.encode(segments).decode(),
        result.total_conflict,
        result.reason.value,
        result.first_received_at,
        result.last_received_at,
    )


def gives_way(kept: Result, new: Result) -> bool:
    """Whether the row of one result is replaced by another result: the guard of every upsert.

    Times are of one form (RFC 3339, milliseconds, `Z`), so their texts compare as they do.
    """
    return new.revision > kept.revision and new.first_received_at <= kept.first_received_at


def coalesce(batch: Sequence[Arrival]) -> list[list[Result]]:
    """The results of a batch that can matter, as upserts in which a message comes once, to be done in order.

    A result goes where the next one of its message replaces it, or would be refused wherever it is accepted; the end is
    exactly that of writing one by one. So a batch becomes one upsert of the highest revision per message. Only where
    lives of a message meet in one batch, and neither settles the other, is there a second one.
    """
    rounds: list[dict[str, Result]] = []
    latest: dict[str, int] = {}
    for arrival in batch:
        result = arrival.result
        message_id = result.sms_msg_id
        at = latest.get(message_id, -1)
        kept = rounds[at][message_id] if at >= 0 else None
        if kept is not None and gives_way(kept, result):
            rounds[at][message_id] = result
        elif kept is None or not _never_over(kept, result):
            at = latest[message_id] = at + 1
            if at == len(rounds):
                rounds.append({})
            rounds[at][message_id] = result
    # One order of keys for every writer: two that upsert the same messages at once must not lock each other out.
    return [[of_message[message_id] for message_id in sorted(of_message)] for of_message in rounds]


def _never_over(kept: Result, new: Result) -> bool:
    """Whether any row that refuses `kept`, and `kept` itself, refuses `new`."""
    return new.revision <= kept.revision and new.first_received_at >= kept.first_received_at


def _text(value: str) -> str:
    return value.replace(_NUL, _REPLACEMENT) if _NUL in value else value
