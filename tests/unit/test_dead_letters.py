"""Dead letters go back through as the contract says (section 8)."""

from datetime import UTC, datetime

import pytest

from consumers.dead_letters import Filter, Letter, Replay
from ingest.contract.dead_letter import DeadLetter, Origin, Stage, Unit
from ingest.contract.push import Push, Route
from ingest.contract.report import Reason, RejectedError

NOW_MS = 1_795_428_000_000


def kept(letter: DeadLetter) -> Letter:
    """A dead letter as it is read back from its topic."""
    return Letter(
        partition=2,
        offset=7,
        timestamp_ms=letter.timestamp_ms,
        key=letter.key,
        value=letter.value,
        headers=letter.headers,
    )


def received(value: bytes, unit: Unit, reason: Reason = Reason.TOO_MANY_REPORTS) -> Letter:
    """A dead letter of the receiver."""
    push = Push(1, Route.BATCH, 1, value)
    return kept(DeadLetter.of_push(push, value, RejectedError(reason, "A detail."), unit=unit, now_ms=5))


def assembled(value: bytes, reason: Reason, key: bytes | None = b"other") -> Letter:
    """A dead letter of the assembler."""
    return kept(
        DeadLetter.of_record(
            Stage.ASSEMBLE,
            RejectedError(reason, "A detail."),
            origin=Origin("sms.status-reports", 3, 9),
            key=key,
            value=value,
            headers=[("ce_id", b"x")],
            now_ms=5,
        )
    )


def test_a_body_is_split_again_and_published_now() -> None:
    """Usable elements become records with one attempt more; the others are named and stay where they are."""
    body = b'{"statusReportList":[{"smsMsgId":"m","status":"DELIVRD"},{"status":"x"}]}'

    replay = Replay.of(received(body, Unit.BODY), NOW_MS)

    (publication,) = replay.publications
    headers = dict(publication.headers)
    assert (publication.key, publication.value) == (b"m", b'{"smsMsgId":"m","status":"DELIVRD"}')
    assert (headers["dlq-attempt"], headers["ce_time"]) == (b"2", b"2026-11-23T10:00:00.000Z")
    assert publication.timestamp_ms == NOW_MS
    assert [error.reason for error in replay.refused] == [Reason.MISSING_ID]


def test_an_element_is_one_report_even_if_it_looks_like_a_body() -> None:
    """What it is was noted when it was written."""
    value = b'{"statusReportList":[],"smsMsgId":"m","status":"DELIVRD"}'

    assert len(Replay.of(received(value, Unit.ELEMENT), NOW_MS).publications) == 1
    assert Replay.of(received(value, Unit.BODY), NOW_MS) == Replay([], [])


def test_what_is_still_no_json_stays_a_dead_letter() -> None:
    """Nothing is published for it."""
    replay = Replay.of(received(b"{", Unit.BODY), NOW_MS)

    assert (replay.publications, [error.reason for error in replay.refused]) == ([], [Reason.NOT_JSON])


@pytest.mark.parametrize(
    ("reason", "key", "expected"),
    [
        (Reason.INTERNAL, b"other", (b"other", None)),
        (Reason.KEY_MISMATCH, b"other", (b"m", None)),
        (Reason.NOT_JSON, None, (None, 3)),
    ],
)
def test_a_record_of_the_assembler_is_published_with_its_key(
    reason: Reason, key: bytes | None, expected: tuple[bytes | None, int | None]
) -> None:
    """A mismatched key is put right; without a key it goes back to its partition."""
    letter = assembled(b'{"smsMsgId":"m","status":"S"}', reason, key)

    (publication,) = Replay.of(letter, NOW_MS).publications

    assert (publication.key, publication.partition) == expected
    assert publication.headers == [("ce_id", b"x"), ("dlq-attempt", b"2")]


def test_a_dead_letter_of_a_sink_is_not_for_the_topic() -> None:
    """It is written to that sink only."""
    letter = kept(DeadLetter(key=None, value=None, headers=[("dlq-stage", b"sink")], timestamp_ms=0))

    with pytest.raises(ValueError, match="2:7 of stage sink"):
        Replay.of(letter, NOW_MS)


def test_a_filter_lets_through_what_it_names() -> None:
    """Reason and time, the end excluded."""
    letter = received(b"{", Unit.BODY, Reason.NOT_JSON)
    at = datetime.fromtimestamp(0.005, UTC)

    assert Filter().matches(letter)
    assert Filter(reason=Reason.NOT_JSON, since=at).matches(letter)
    assert not Filter(reason=Reason.BAD_ID).matches(letter)
    assert not Filter(until=at).matches(letter)
