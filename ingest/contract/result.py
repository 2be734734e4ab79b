"""The result of one message as it stands on the results topic (contract.md section 7)."""

from enum import StrEnum

import msgspec

SCHEMA_VERSION = 1


class Outcome(StrEnum):
    """What became of a message."""

    DELIVERED = "delivered"
    PARTIALLY_DELIVERED = "partially_delivered"
    FAILED = "failed"
    UNKNOWN = "unknown"
    INCOMPLETE = "incomplete"


class ResultReason(StrEnum):
    """Why this revision was written."""

    COMPLETE = "complete"
    TIMEOUT = "timeout"
    REVISED = "revised"


class SegmentResult(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, rename="camel"):
    """What counts for one segment; absent texts are empty and left out of the JSON."""

    sequence: int
    status: str
    source: str = ""
    update_time: str = ""
    org_code: str = ""


class Result(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", kw_only=True):
    """One revision of the result of one message. The order of the members is the order in the JSON."""

    schema_version: int
    sms_msg_id: str
    revision: int
    outcome: Outcome
    final: bool
    total: int
    received: int
    missing: list[int]
    total_conflict: bool = False
    segments: list[SegmentResult]
    to: str = ""
    extend: str = ""
    reason: ResultReason
    first_received_at: str
    """RFC 3339 with milliseconds and `Z`."""
    last_received_at: str


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Result)


def encode_result(result: Result) -> bytes:
    """Compact UTF-8 JSON, members in their fixed order, absent ones left out."""
    return _encoder.encode(result)


def decode_result(value: bytes) -> Result:
    """Read the value of a record on the results topic; unknown members are ignored.

    Raises:
        ValueError: it is not a result of this schema.
    """
    try:
        result = _decoder.decode(value)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if result.schema_version != SCHEMA_VERSION:
        raise ValueError(f"schemaVersion {result.schema_version} is not {SCHEMA_VERSION}")
    return result
