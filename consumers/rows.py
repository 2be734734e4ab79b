"""What the delivery loop and the sinks hand each other: plain values and the two errors that a sink may raise."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from ingest.contract.result import Result


class Arrival(NamedTuple):
    """A result and its place on the results topic."""

    partition: int
    offset: int
    result: Result


@dataclass(frozen=True, slots=True)
class WriteCount:
    """What became of a batch; the labels of `dlrflow_rows_total`.

    Attributes:
        written: results that are now what the destination holds, or a line of it.
        older: results that gave way: a repeat, a lower revision, or a later life of a message that keeps its row.
    """

    written: int
    older: int


class StoredRow(NamedTuple):
    """What a sink holds last for a message.

    Attributes:
        message_id: the `smsMsgId`.
        revision: the one that is stored.
        row: `outcome, final, total, received, missing, segments` under these names, as in a result's JSON.
    """

    message_id: str
    revision: int
    row: dict[str, Any]


class RefusedError(Exception):
    """The destination will never take something in this batch as it is. Nothing of the batch was stored.

    The text is for a person and quotes nothing of the rows.
    """


class AwayError(Exception):
    """The destination cannot be used just now; the same batch may be written later. It may also have been stored."""
