"""What is written to a topic."""

import msgspec

from ingest.contract.dead_letter import DeadLetter
from ingest.contract.envelope import Headers, report_headers
from ingest.contract.identity import report_id
from ingest.contract.push import Route
from ingest.contract.report import Report


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


def report_record(value: bytes, report: Report, route: Route, received_ms: int) -> Record:
    """The record of one usable report (contract.md section 6)."""
    headers = report_headers(route, report_id(report), received_ms)
    return Record(report.message_id.encode(), value, headers, received_ms)


def dead_letter_record(letter: DeadLetter) -> Record:
    """The record of a dead letter (contract.md section 8)."""
    return Record(letter.key, letter.value, letter.headers, letter.timestamp_ms)
