"""What is written to a topic."""

import msgspec

from ingest.contract.dead_letter import DeadLetter
from ingest.contract.envelope import Headers, report_headers
from ingest.contract.identity import report_id
from ingest.contract.push import Route
from ingest.contract.report import Report

_ID = "ce_id"


class Record(msgspec.Struct, frozen=True, gc=False):
    """One Kafka record before it has a place.

    Attributes:
        key: decides the partition; a record without one goes to any.
        timestamp_ms: epoch milliseconds.
    """

    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp_ms: int


class ReportRecords:
    """Makes the records of one push (contract.md section 6). Their headers differ in `ce_id` alone."""

    __slots__ = ("_after", "_before", "_received_ms")

    def __init__(self, route: Route, received_ms: int) -> None:
        headers = report_headers(route, "", received_ms)
        at = headers.index((_ID, b""))
        self._before, self._after = headers[:at], headers[at + 1 :]
        self._received_ms = received_ms

    def make(self, value: bytes, report: Report) -> Record:
        """The record of one usable report, whose bytes are `value`."""
        headers = [*self._before, (_ID, report_id(report).encode()), *self._after]
        return Record(report.message_id.encode(), value, headers, self._received_ms)


def dead_letter_record(letter: DeadLetter) -> Record:
    """The record of a dead letter (contract.md section 8)."""
    return Record(letter.key, letter.value, letter.headers, letter.timestamp_ms)
