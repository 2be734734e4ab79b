"""What could not be used, kept with the reason and with where it came from (contract.md section 8)."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from ingest.contract.envelope import Headers, rfc3339_ms
from ingest.contract.push import Push
from ingest.contract.report import RejectedError
from ingest.contract.version import VERSION

DETAIL_MAX = 200
ATTEMPT_DIGITS_MAX = 9
"""A longer `dlq-attempt` was not written by us, and Python refuses to read a number of thousands of digits."""

_PREFIX = "dlq-"


class Stage(StrEnum):
    """Where it was found to be unusable."""

    RECEIVE = "receive"
    ASSEMBLE = "assemble"
    SINK = "sink"


class Unit(StrEnum):
    """What the value of a dead letter of the stage `receive` is (header `dlq-unit`): replay splits only bodies."""

    BODY = "body"
    ELEMENT = "element"


@dataclass(frozen=True, slots=True)
class Origin:
    """A record's place."""

    topic: str
    partition: int
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A record for the dead-letters topic.

    Attributes:
        key: the record's key, or the `smsMsgId` where it could be read.
        value: the bytes that could not be used, untouched; None only for a record without value.
        timestamp_ms: when it became a dead letter.
    """

    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp_ms: int

    @classmethod
    def of_push(cls, push: Push, value: bytes, rejected: RejectedError, *, unit: Unit, now_ms: int) -> Self:
        """A body, or one element of it, that the receiver cannot use. Its attempt is the first."""
        return cls(
            key=_key(rejected),
            value=value,
            headers=[
                *_reason(Stage.RECEIVE, rejected, now_ms, attempt=1),
                ("dlq-source", push.route.value.encode()),
                ("dlq-unit", unit.value.encode()),
            ],
            timestamp_ms=now_ms,
        )

    @classmethod
    def of_record(
        cls,
        stage: Stage,
        rejected: RejectedError,
        *,
        origin: Origin,
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
        now_ms: int,
        sink: str | None = None,
    ) -> Self:
        """A record that a consumer cannot use; its own headers are kept, and its attempt where it was replayed."""
        place = [
            ("dlq-topic", origin.topic.encode()),
            ("dlq-partition", str(origin.partition).encode()),
            ("dlq-offset", str(origin.offset).encode()),
        ]
        if sink is not None:
            place.append(("dlq-sink", sink.encode()))
        return cls(
            key=_key(rejected) if key is None else key,
            value=value,
            headers=[
                *_reason(stage, rejected, now_ms, attempt=attempt_of(headers)),
                *place,
                *original_headers(headers),
            ],
            timestamp_ms=now_ms,
        )


def attempt_of(headers: Headers) -> int:
    """Which attempt a record is: 1, or what its `dlq-attempt` says, if that is a number that we may have written."""
    for name, value in headers:
        if name == "dlq-attempt" and value and len(value) <= ATTEMPT_DIGITS_MAX and value.isdigit():
            return int(value)
    return 1


def original_headers(headers: Headers) -> Headers:
    """The headers of a record without ours about its being a dead letter."""
    return [(name, value) for name, value in headers if not name.startswith(_PREFIX)]


def _key(rejected: RejectedError) -> bytes | None:
    return None if rejected.message_id is None else rejected.message_id.encode()


def _reason(stage: Stage, rejected: RejectedError, now_ms: int, *, attempt: int) -> Headers:
    return [
        ("dlq-stage", stage.value.encode()),
        ("dlq-reason", rejected.reason.value.encode()),
        ("dlq-detail", rejected.detail[:DETAIL_MAX].encode()),
        ("dlq-time", rfc3339_ms(now_ms).encode()),
        ("dlq-version", VERSION.encode()),
        ("dlq-attempt", str(attempt).encode()),
    ]
