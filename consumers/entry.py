"""What engine and ledger hand each other: plain values and errors, no behaviour (ARCHITECTURE.md)."""

from dataclasses import dataclass
from typing import NamedTuple

from ingest.runtime.errors import UsageError

DIGEST_BYTES = 16
SEEN_AT_LIMIT_MS = 2**48


class LedgerFormatError(UsageError):
    """Local state or a changelog record is of a newer format: whoever starts the older release must act."""


class LedgerDamagedError(Exception):
    """The local state is not what was written, or the records given do not continue it.

    The way on is `discard` and a restore from the changelog.
    """


@dataclass(frozen=True, slots=True, order=True)
class Cursor:
    """A place in the changelog: everything before it, in changelog order, has been examined for its deadline.

    Attributes:
        offset: of a changelog record.
        index: of an entry in that record.
    """

    offset: int = 0
    index: int = 0


@dataclass(frozen=True, slots=True)
class Position:
    """How far the input of a partition was processed when a cycle was committed.

    Attributes:
        cycle: number of the cycle, one above that of the committed cycle before; the first is 1.
        next_offset: of the reports partition, where the next cycle begins.
        clock_ms: partition clock of the cycle, epoch ms; it never falls.
        cursor: deadline cursor after the cycle.
        memory_from_s: partition clock, epoch seconds, before which there is nothing to remember any more: a loss was
            accepted, or the clock went on by more than the late window; 0 if never.
    """

    cycle: int
    next_offset: int
    clock_ms: int
    cursor: Cursor
    memory_from_s: int = 0


class Entry(NamedTuple):
    """The state of one message after a cycle, in full.

    Attributes:
        digest: of `smsMsgId`, 16 bytes, evenly distributed (BLAKE2b-128).
        seen_at_ms: partition clock when this life of the message began, epoch ms below 2**48. It names the life: all
            entries of one life carry the same value. Zero or more.
        first_seen: whether this is the first entry of this life; its place in the changelog is its place in the order
            of the deadlines.
        waiting: whether a timeout would still emit a result. Never true again in a life once it was false.
        payload: the encoded state, opaque to the ledger; any length, empty included.
    """

    digest: bytes
    seen_at_ms: int
    first_seen: bool
    waiting: bool
    payload: bytes


class Due(NamedTuple):
    """What one look at the deadlines found.

    Attributes:
        messages: (digest, payload) of messages that still wait, in the order in which they were first seen. No digest
            comes twice.
        cursor: the first place that was not examined. It is not below the one that was asked for.
        more: whether the look ended at its bound of work, so that another one from `cursor` may find more at once.
    """

    messages: list[tuple[bytes, bytes]]
    cursor: Cursor
    more: bool
