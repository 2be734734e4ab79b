"""The CloudEvents 1.0 binary-mode headers of our records (contract.md sections 6 and 7)."""

from datetime import UTC, datetime
from functools import lru_cache

from ingest.contract.push import Route

Headers = list[tuple[str, bytes]]
"""Kafka record headers in order."""

REPORT_TYPE = b"dlrflow.sms.status-report.v1"
RESULT_TYPE = b"dlrflow.sms.message-result.v1"

_SPECVERSION = ("ce_specversion", b"1.0")
_REPORT_TYPE = ("ce_type", REPORT_TYPE)
_RESULT_TYPE = ("ce_type", RESULT_TYPE)
_CONTENT_TYPE = ("content-type", b"application/json")
_ROUTE_SOURCE = {route: ("ce_source", route.value.encode()) for route in Route}


def rfc3339_ms(epoch_ms: int) -> str:
    """Epoch milliseconds as RFC 3339 with milliseconds and `Z`."""
    seconds, ms = divmod(epoch_ms, 1000)
    return f"{_rfc3339_s(seconds)}.{ms:03d}Z"


@lru_cache(maxsize=1024)  # times that are written close together lie close together
def _rfc3339_s(epoch_s: int) -> str:
    return f"{datetime.fromtimestamp(epoch_s, UTC):%Y-%m-%dT%H:%M:%S}"


def report_headers(route: Route, ce_id: str, received_ms: int) -> Headers:
    """Headers of a record on the reports topic."""
    return [
        _SPECVERSION,
        _REPORT_TYPE,
        _ROUTE_SOURCE[route],
        ("ce_id", ce_id.encode()),
        ("ce_time", rfc3339_ms(received_ms).encode()),
        _CONTENT_TYPE,
    ]


def result_headers(message_id: str, revision: int, reports_topic: str, produced_ms: int) -> Headers:
    """Headers of a record on the results topic; its `ce_id` is `<smsMsgId>/<revision>`."""
    return [
        _SPECVERSION,
        _RESULT_TYPE,
        ("ce_source", reports_topic.encode()),
        ("ce_id", f"{message_id}/{revision}".encode()),
        ("ce_time", rfc3339_ms(produced_ms).encode()),
        _CONTENT_TYPE,
    ]
