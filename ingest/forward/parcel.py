"""A push made ready for Kafka: which records, which dead letters."""

import traceback
from dataclasses import dataclass
from typing import NamedTuple

import structlog

from ingest.contract.dead_letter import DeadLetter, Unit
from ingest.contract.push import Push, refusal, split
from ingest.contract.report import Reason, RejectedError
from ingest.forward.record import Record, ReportRecords

_log = structlog.get_logger(__name__)


class Letter(NamedTuple):
    """A dead letter, and what the counters need of it.

    Attributes:
        content: what is written.
        reason: as its headers say.
        unit: whether it holds a whole body or one element.
    """

    content: DeadLetter
    reason: Reason
    unit: Unit


@dataclass(slots=True)
class Parcel:
    """One push and what becomes of it.

    Attributes:
        push: as it was received.
        records: its usable reports, in their order.
        letters: what cannot be used: the whole body, or single elements.
        dead: how many of the push's reports are dead letters, as the accounts count them.
        quarantined: how many are in files.
        refused: how many of the records Kafka refused.
    """

    push: Push
    records: list[Record]
    letters: list[Letter]
    dead: int
    quarantined: int = 0
    refused: int = 0

    @property
    def published(self) -> int:
        """How many of the push's reports are records, as the accounts count them.

        The push states how many reports it was accepted with. The accounts hold on to that number even where a newer
        parser finds more or fewer of them in the same body.
        """
        return self.push.reports - self.dead - self.quarantined

    def refuse(self, record: Record, why: str, *, now_ms: int) -> Letter:
        """Turn a record that Kafka refused into a dead letter."""
        rejected = RejectedError(
            Reason.REFUSED_BY_KAFKA,
            f"Kafka refused the record for good: {why}.",
            None if record.key is None else record.key.decode(),
        )
        letter = _letter(self.push, record.value or b"", rejected, Unit.ELEMENT, now_ms)
        self.letters.append(letter)
        self.refused += 1
        self.dead = min(self.dead + 1, self.push.reports - self.quarantined)
        return letter

    def quarantine(self, letter: Letter) -> None:
        """Count a dead letter that Kafka refused, too, as kept in a file."""
        self.letters.remove(letter)
        moved = self.dead if letter.unit is Unit.BODY else min(1, self.dead)
        self.dead -= moved
        self.quarantined += moved


def unpack(push: Push, *, now_ms: int) -> Parcel:
    """Divide a push into records and dead letters, as it was answered. Never raises for what the body holds.

    Args:
        push: as the spool kept it.
        now_ms: when its dead letters became such.
    """
    try:
        return _unpack(push, now_ms)
    except RejectedError as rejected:
        return _whole(push, rejected, now_ms)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - a fault of ours must neither lose the body nor hold up the next ones
        # The text of the error may quote the body, so only its kind and place are logged.
        place = traceback.extract_tb(error.__traceback__)[-1]
        _log.error(
            "a push could not be split and becomes a dead letter",
            route=push.route,
            error=type(error).__name__,
            place=f"{place.name}:{place.lineno}",
        )
        return _whole(push, RejectedError(Reason.INTERNAL, "The push could not be split by a fault of ours."), now_ms)


def _unpack(push: Push, now_ms: int) -> Parcel:
    if push.refused is not None:
        return _whole(push, refusal(push, push.refused), now_ms)
    make = ReportRecords(push.route, push.received_ms).make
    records, letters = [], []
    for value, report, rejected in split(push.route, push.body):
        if report is not None:
            records.append(make(value, report))
        elif rejected is not None:
            letters.append(_letter(push, value, rejected, Unit.ELEMENT, now_ms))
    return Parcel(push, records, letters, dead=min(len(letters), push.reports))


def _whole(push: Push, rejected: RejectedError, now_ms: int) -> Parcel:
    return Parcel(push, [], [_letter(push, push.body, rejected, Unit.BODY, now_ms)], dead=push.reports)


def _letter(push: Push, value: bytes, rejected: RejectedError, unit: Unit, now_ms: int) -> Letter:
    return Letter(DeadLetter.of_push(push, value, rejected, unit=unit, now_ms=now_ms), rejected.reason, unit)
