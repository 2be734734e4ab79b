"""From state to result (contract.md section 7)."""

from typing import Any

import pytest

from consumers.message import Change, MessageState
from consumers.results import expire, step
from ingest.contract.report import Report, read_report
from ingest.contract.result import Result, encode_result

TIME = "2023-04-18T07:26:00Z"
AT = 1_795_428_000_000
"""2026-11-23T10:00:00Z."""


def a_report(sequence: int = 1, status: str = "DELIVRD", **fields: Any) -> Report:
    """A report of a message of two parts, with fields over it."""
    fields = {"smsMsgId": "m1", "status": status, "sequence": sequence, "total": 2, "updateTime": TIME} | fields
    return read_report(fields)


def after(*reports: Report) -> tuple[MessageState, list[Result]]:
    """The state after some reports a quarter of a second apart, and the results on the way."""
    state, results = None, []
    for count, report in enumerate(reports):
        taken = step(state, report, AT + 250 * count, AT)
        state = taken.state
        results += [taken.result] if taken.result else []
    assert state is not None
    return state, results


def outcomes(results: list[Result]) -> list[tuple[int, str, str]]:
    """What tells the results of one message apart at a glance."""
    return [(result.revision, result.outcome.value, result.reason.value) for result in results]


def test_a_result_stands_on_the_topic_as_the_contract_shows_it() -> None:
    """Members in order, absent ones left out, numbers as numbers."""
    _, (result,) = after(
        a_report(1, source=2, orgCode="000", to="+8613500000001"), a_report(2, source=2, orgCode="000", extend="\u00e9")
    )

    segment = '"status":"DELIVRD","source":"2","updateTime":"2023-04-18T07:26:00Z","orgCode":"000"}'
    assert encode_result(result).decode() == (
        '{"schemaVersion":1,"smsMsgId":"m1","revision":1,"outcome":"delivered","final":true,"total":2,"received":2,'
        f'"missing":[],"segments":[{{"sequence":1,{segment},{{"sequence":2,{segment}],"to":"+8613500000001",'
        '"extend":"\u00e9","reason":"complete","firstReceivedAt":"2026-11-23T10:00:00.000Z",'
        '"lastReceivedAt":"2026-11-23T10:00:00.250Z"}'
    )


@pytest.mark.parametrize(
    ("statuses", "outcome"),
    [
        (["DELIVRD", "DELIVRD"], "delivered"),
        (["DELIVRD", "EXPIRED"], "partially_delivered"),
        (["UNKNOWN", "DELIVRD"], "partially_delivered"),
        (["UNKNOWN", "UNKNOWN"], "unknown"),
        (["UNKNOWN", "EXPIRED"], "failed"),
        (["EXPIRED", "UNDELIV"], "failed"),
    ],
)
def test_the_outcome_follows_from_the_segments(statuses: list[str], outcome: str) -> None:
    """All, some or none delivered; unknown only if nothing else was heard."""
    _, results = after(*(a_report(sequence, status) for sequence, status in enumerate(statuses, start=1)))

    assert outcomes(results) == [(1, outcome, "complete")]


def test_nothing_is_emitted_before_every_segment_is_final() -> None:
    """An accepted segment is heard of, but not final."""
    state, results = after(a_report(1), a_report(2, "ACCEPTD"))
    assert results == []

    _, result = expire(state, AT)

    assert (result.outcome, result.final, result.received, result.missing) == ("incomplete", False, 2, [])


def test_a_timeout_says_what_is_missing() -> None:
    """The first result of a message that did not become whole; then it waits no longer."""
    state, _ = after(a_report(2, total=4))

    state, result = expire(state, AT + 5)

    assert (result.sms_msg_id, result.reason, result.missing) == ("m1", "timeout", [1, 3, 4])
    assert (state.waiting, state.last_result_at, state.message_id) == (False, AT + 5, "")
    with pytest.raises(ValueError, match="has no timeout"):
        expire(state, AT + 6)


def test_what_comes_after_a_timeout_revises_it() -> None:
    """A late part is not lost: it becomes the next revision, which counts as final."""
    state, _ = after(a_report(1))
    state, _ = expire(state, AT)

    taken = step(state, a_report(2), AT + 1, AT + 9)

    assert taken.result is not None
    assert outcomes([taken.result]) == [(2, "delivered", "revised")]
    assert taken.state.last_result_at == AT + 9
    assert taken.result.sms_msg_id == "m1"


@pytest.mark.parametrize(
    "late",
    [
        a_report(1, updateTime="2023-04-18T07:26:01Z"),
        a_report(1, source="9"),
        a_report(1, orgCode="9"),
        a_report(1, to="+9"),
        a_report(1, extend="z"),
        a_report(1, "EXPIRED", updateTime="2023-04-18T07:26:01Z"),
        a_report(3, total=3),
        a_report(1, total=3),
        a_report(1, total=1),
    ],
)
def test_a_change_that_a_reader_can_see_is_the_next_revision(late: Report) -> None:
    """Outcome, final, total, missing, totalConflict, segments, to and extend."""
    _, results = after(a_report(1), a_report(2), late)

    assert [result.revision for result in results] == [1, 2]
    assert results[1].reason == "revised"


def test_a_message_that_turns_out_longer_is_incomplete_again() -> None:
    """A greater total takes a final result back."""
    _, results = after(a_report(1), a_report(2), a_report(2, total=3), a_report(3, total=3))

    assert outcomes(results) == [
        (1, "delivered", "complete"),
        (2, "incomplete", "revised"),
        (3, "delivered", "revised"),
    ]
    assert [result.total_conflict for result in results] == [False, True, True]


def test_a_change_that_no_reader_can_see_emits_nothing() -> None:
    """The counted report of a later segment got a `to`, but the one shown is the first segment's."""
    state, _ = after(a_report(1, to="+1", extend="x"), a_report(2))

    taken = step(state, a_report(2, to="+2"), AT + 900, AT)

    assert (taken.change, taken.result, taken.state.revision) == (Change.APPLIED, None, 1)
    assert taken.state.last_ms == AT + 900
    assert taken.state.last_result_at == state.last_result_at


def test_a_total_that_was_only_implied_and_is_then_stated_emits_nothing() -> None:
    """The total shown was 2 before, because a second segment was heard of."""
    state, _ = after(a_report(1, total=None), a_report(2, total=None))

    taken = step(state, a_report(1), AT, AT)

    assert (taken.change, taken.result) == (Change.APPLIED, None)


@pytest.mark.parametrize(
    ("again", "change"), [(a_report(1), Change.REPEAT), (a_report(1, "ACCEPTD"), Change.SUPERSEDED)]
)
def test_what_changes_nothing_emits_nothing(again: Report, change: Change) -> None:
    """It is counted, and the state need not be written."""
    state, _ = after(a_report(1), a_report(2))

    assert step(state, again, AT + 9, AT + 9) == (state, change, None)


def test_to_and_extend_come_each_from_the_lowest_segment_that_has_it() -> None:
    """Not from the first report, nor both from one segment."""
    _, results = after(a_report(2, to="+2", extend="two"), a_report(1, extend="one"))

    assert (results[-1].to, results[-1].extend) == ("+2", "one")
