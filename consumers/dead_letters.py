"""Reads dead letters and turns them back into what is sent through again (contract.md section 8). Pure."""

from dataclasses import dataclass
from datetime import datetime
from typing import Self

from ingest.contract.dead_letter import Stage, Unit, attempt_of, original_headers
from ingest.contract.envelope import Headers, report_headers
from ingest.contract.identity import report_id
from ingest.contract.push import Element, Route, read_element, split
from ingest.contract.report import Reason, RejectedError, decode_report


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """One record of the dead-letters topic. Texts that it does not state are empty."""

    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers

    @property
    def name(self) -> str:
        """How commands name it: `PARTITION:OFFSET`."""
        return f"{self.partition}:{self.offset}"

    def header(self, name: str) -> str:
        """The text of one header."""
        for known, value in self.headers:
            if known == name:
                return (value or b"").decode(errors="replace")
        return ""

    @property
    def reason(self) -> str:
        """Why it could not be used."""
        return self.header("dlq-reason")


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which dead letters a command is about; an unset part lets all through.

    Attributes:
        since, until: of their timestamps, aware; `until` excluded.
    """

    reason: Reason | None = None
    since: datetime | None = None
    until: datetime | None = None

    def matches(self, letter: Letter) -> bool:
        """Whether a letter is meant."""
        when_s = letter.timestamp_ms / 1000
        return (
            (self.reason is None or letter.reason == self.reason)
            and (self.since is None or when_s >= self.since.timestamp())
            and (self.until is None or when_s < self.until.timestamp())
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """A record to send to the reports topic.

    Attributes:
        partition: only where the key cannot decide; else None.
    """

    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp_ms: int
    partition: int | None = None


@dataclass(frozen=True, slots=True)
class Replay:
    """What a dead letter of the receiver or the assembler becomes.

    Attributes:
        publications: what is sent.
        refused: why parts of it still cannot be used; they are not sent, the dead letter keeps them.
    """

    publications: list[Publication]
    refused: list[RejectedError]

    @classmethod
    def of(cls, letter: Letter, now_ms: int) -> Self:
        """Build it.

        Raises:
            ValueError: the letter is of a sink, or of no stage that is known.
        """
        stage = letter.header("dlq-stage")
        if stage == Stage.RECEIVE:
            return cls(*_received(letter, now_ms))
        if stage == Stage.ASSEMBLE:
            return cls([_assembled(letter, now_ms)], [])
        raise ValueError(f"dead letter {letter.name} of stage {stage or 'unknown'} is not for the reports topic")


def _next_attempt(letter: Letter) -> tuple[str, bytes]:
    return "dlq-attempt", str(attempt_of(letter.headers) + 1).encode()


def _received(letter: Letter, now_ms: int) -> tuple[list[Publication], list[RejectedError]]:
    route = Route(letter.header("dlq-source"))
    value = letter.value or b""
    try:
        elements = _elements(letter, route, value)
    except RejectedError as error:
        return [], [error]
    publications = [
        Publication(
            key=element.report.message_id.encode(),
            value=element.value,
            headers=[*report_headers(route, report_id(element.report), now_ms), _next_attempt(letter)],
            timestamp_ms=now_ms,
        )
        for element in elements
        if element.report is not None
    ]
    return publications, [element.rejected for element in elements if element.rejected is not None]


def _elements(letter: Letter, route: Route, value: bytes) -> list[Element]:
    if letter.header("dlq-unit") == Unit.ELEMENT:
        return [read_element(value)]
    return split(route, value)


def _assembled(letter: Letter, now_ms: int) -> Publication:
    key = letter.key
    if letter.reason == Reason.KEY_MISMATCH:
        key = decode_report(letter.value or b"").message_id.encode()
    partition = letter.header("dlq-partition")
    return Publication(
        key=key,
        value=letter.value,
        headers=[*original_headers(letter.headers), _next_attempt(letter)],
        timestamp_ms=now_ms,
        partition=int(partition) if key is None and partition.isdigit() else None,
    )
