"""From what a partition offers to what its next cycle writes: cut to size, failures isolated, timeouts last."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import structlog

from consumers.engine.cycle import Draft, InternalError, Rules
from consumers.engine.protocols import Ledger
from consumers.engine.record import InputRecord
from consumers.entry import Cursor, Entry
from consumers.message import MessageState
from ingest.contract.report import Reason, RejectedError

CYCLE_BYTES_MAX = 8 * 1024 * 1024
"""Bytes of results and dead letters after which a cycle takes no further records."""

CHUNK_RECORDS = 1000
"""Records between two looks at the size of a cycle."""

DUE_MAX = 2000
"""Timeouts in one cycle."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What there is to decide upon.

    Attributes:
        records: of the input, in their order.
        caught_up: whether nothing else stands in the partition, so that deadlines count.
        clock_ms: partition clock of the cycle.
        now_ms: wall time.
        cursor: where the look at deadlines goes on.
        refused_offset: of a record whose results brokers refused.
        overlay: states that a cycle in flight has written.
    """

    records: Sequence[InputRecord]
    caught_up: bool
    clock_ms: int
    now_ms: int
    cursor: Cursor
    refused_offset: int | None = None
    overlay: Mapping[bytes, MessageState] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A cycle that can be committed.

    Attributes:
        draft: what it writes.
        entries: the same for the ledger.
        taken: how many of the offered records are in it; the others are for the next cycle.
        cursor: deadline cursor after it.
        more_due: whether further deadlines have passed.
    """

    draft: Draft
    entries: list[Entry]
    taken: int
    cursor: Cursor
    more_due: bool


def decide(rules: Rules, ledger: Ledger, offer: Offer) -> Decision:
    """Decide a cycle. Changes nothing.

    Raises:
        InternalError: our code fails on a message whose timeout is due: there is no record that could be put aside.
        LedgerDamagedError, LedgerFormatError, OSError: the ledger does not serve.
    """
    try:
        return _decide(rules, ledger, offer, apart=False)
    except InternalError as error:
        _log.exception("a cycle failed and is repeated record by record", partition=rules.partition, exc_info=error)
        return _decide(rules, ledger, offer, apart=True)


def _decide(rules: Rules, ledger: Ledger, offer: Offer, *, apart: bool) -> Decision:
    draft = Draft(rules, clock_ms=offer.clock_ms, now_ms=offer.now_ms, lookup=ledger.lookup, overlay=offer.overlay)
    taken = _take(draft, rules, offer, apart=apart)
    cursor, more_due = offer.cursor, False
    if offer.caught_up and taken == len(offer.records):
        due = ledger.due(cursor, offer.clock_ms - rules.timeout_ms, DUE_MAX)
        draft.expire(due.messages)
        cursor, more_due = due.cursor, due.more
    return Decision(draft=draft, entries=draft.entries(), taken=taken, cursor=cursor, more_due=more_due)


def _take(draft: Draft, rules: Rules, offer: Offer, *, apart: bool) -> int:
    def note(record: InputRecord, error: Exception) -> None:
        _log.error("a record fails", partition=rules.partition, offset=record.offset, exc_info=error)

    records = offer.records
    if len(records) == 1 and records[0].offset == offer.refused_offset:
        draft.refuse(records[0], RejectedError(Reason.REFUSED_BY_KAFKA, "Kafka refused what follows from the record."))
        return 1
    for start in range(0, len(records), CHUNK_RECORDS):
        chunk = records[start : start + CHUNK_RECORDS]
        if apart:
            draft.take_apart(chunk, note)
        else:
            draft.take(chunk)
        if draft.bytes >= CYCLE_BYTES_MAX:
            return start + len(chunk)
    return len(records)
