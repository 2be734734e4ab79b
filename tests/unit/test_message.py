"""The state of one message (contract.md section 7)."""

from typing import Any

import pytest

from consumers.message import (
    FORMAT_VERSION,
    RECORD_MS_MAX,
    Change,
    MessageState,
    StateFormatError,
    apply,
    deadline,
    decode,
    emitted,
    encode,
    forget_at,
    is_forgotten,
    rank_of,
)
from ingest.contract.report import Report, read_report

EARLY, LATE = "2023-04-18T07:26:00Z", "2023-04-18T07:27:00Z"


def a_report(**fields: Any) -> Report:
    """A delivered single-part report, with fields over it."""
    return read_report({"smsMsgId": "m1", "status": "DELIVRD", "updateTime": EARLY} | fields)


def a_state(*reports: Report, record_ms: int = 1000, clock_ms: int = 2000) -> MessageState:
    """The state after some reports."""
    state = None
    for report in reports:
        state, _ = apply(state, report, record_ms, clock_ms)
    assert state is not None
    return state


def test_the_first_report_begins_the_message() -> None:
    """Clock and time are those of its first report, and it waits under its name."""
    state, change = apply(None, a_report(total=2), 1000, 2000)

    assert change is Change.APPLIED
    assert (state.seen_at, state.first_ms, state.last_ms, state.revision) == (2000, 1000, 1000, 0)
    assert (state.total_greatest, state.total_least, state.message_id, state.waiting) == (2, 2, "m1", True)


@pytest.mark.parametrize(
    ("status", "update_time", "rank"),
    [
        ("ACCEPTD", LATE, 0),
        ("ACCEPTD", "", 0),
        ("UNKNOWN", LATE, 1),
        ("UNKNOWN", "", 1),
        ("DELIVRD", "", 2),
        ("EXPIRED", "", 2),
        ("EXPIRED", "soon", 3),
        ("acceptd", EARLY, 3),
    ],
)
def test_rank_is_the_first_that_applies(status: str, update_time: str, rank: int) -> None:
    """Accepted, unknown, without time, with time; case counts."""
    assert rank_of(status, update_time) == rank


@pytest.mark.parametrize(
    ("lesser", "greater"),
    [
        ({"status": "ACCEPTD", "updateTime": LATE}, {"status": "UNKNOWN", "updateTime": None}),
        ({"status": "UNKNOWN", "updateTime": LATE}, {"status": "EXPIRED", "updateTime": None}),
        ({"status": "DELIVRD", "updateTime": None}, {"status": "EXPIRED", "updateTime": EARLY}),
        ({"status": "DELIVRD"}, {"status": "EXPIRED", "updateTime": LATE}),
        ({"status": "UNDELIV"}, {"status": "DELIVRD"}),
        ({"status": "EXPIRED"}, {"status": "UNDELIV"}),
        ({"source": None, "orgCode": "9"}, {"source": "1"}),
        ({"source": "10"}, {"source": "2"}),
        ({"orgCode": "000", "to": "9"}, {"orgCode": "001"}),
        ({"to": "+1", "extend": "9"}, {"to": "+2"}),
        ({"extend": None}, {"extend": "x"}),
        ({"extend": "\uffee"}, {"extend": "\U0001f600"}),
    ],
)
def test_of_one_sequence_the_greatest_report_counts(lesser: dict[str, Any], greater: dict[str, Any]) -> None:
    """Field by field in the order of the contract, in whichever order they come."""
    upward, changed = apply(a_state(a_report(**lesser)), a_report(**greater), 1000, 2000)
    downward, unchanged = apply(a_state(a_report(**greater)), a_report(**lesser), 1000, 2000)

    assert upward == downward
    assert (changed, unchanged) == (Change.APPLIED, Change.SUPERSEDED)


def test_the_report_that_counts_is_a_repeat_when_it_comes_again() -> None:
    """Whatever way its update time is written, and whether it says its total again or not."""
    state = a_state(a_report(total=1, updateTime="2023-04-18T07%3A26%3a00Z"))

    for again in (a_report(total=1), a_report()):
        after, change = apply(state, again, 1, 9999)
        assert change is Change.REPEAT
        assert after is state


def test_a_superseded_report_still_states_a_total() -> None:
    """Every usable report's stated total counts, also of one that does not."""
    state, change = apply(a_state(a_report(total=2)), a_report(status="ACCEPTD", total=3), 5000, 9999)

    assert change is Change.APPLIED
    assert (state.total_least, state.total_greatest, state.last_ms) == (2, 3, 5000)
    assert state.segments[0].status == "DELIVRD"


def test_a_total_between_the_two_known_ones_changes_nothing() -> None:
    """Only the least and the greatest are kept."""
    state = a_state(a_report(total=2), a_report(total=4))

    assert apply(state, a_report(total=3), 1, 1) == (state, Change.REPEAT)


def test_a_report_without_total_states_nothing() -> None:
    """It neither raises nor lowers what others stated."""
    state = a_state(a_report(), a_report(sequence=2, total=3), a_report(sequence=3))

    assert (state.total_least, state.total_greatest) == (3, 3)


def test_segments_stand_in_the_order_of_their_numbers() -> None:
    """However they came."""
    state = a_state(*(a_report(sequence=sequence) for sequence in (3, 1, 99, 2)))

    assert [counted.sequence for counted in state.segments] == [1, 2, 3, 99]


def test_receive_times_span_the_records_that_changed_the_state() -> None:
    """A report that changes nothing leaves no trace, one that does widens the span to either side."""
    state = a_state(a_report(sequence=1, total=2), record_ms=5000)
    state, _ = apply(state, a_report(sequence=1, total=2), 1, 0)
    state, _ = apply(state, a_report(sequence=1, status="ACCEPTD"), 9999, 0)
    assert (state.first_ms, state.last_ms) == (5000, 5000)

    state, _ = apply(state, a_report(sequence=2), 4000, 0)
    state, _ = apply(state, a_report(sequence=2, total=4), 6000, 0)

    assert (state.first_ms, state.last_ms) == (4000, 6000)


@pytest.mark.parametrize(("record_ms", "kept"), [(-1, 0), (1_700_000_000_000_000, RECORD_MS_MAX)])
def test_a_timestamp_that_no_calendar_has_is_bounded(record_ms: int, kept: int) -> None:
    """A foreign producer's microseconds, or none at all, must not stop the assembler."""
    assert a_state(a_report(), record_ms=record_ms).first_ms == kept


def test_a_waiting_message_has_a_deadline_and_no_end() -> None:
    """The timeout runs from the clock at its first applied report."""
    state = a_state(a_report(total=2), clock_ms=2000)

    assert deadline(state, 500) == 2500
    assert forget_at(state, 500) is None
    assert not is_forgotten(state, 500, 10**15)


def test_a_message_with_a_result_is_remembered_for_its_late_window() -> None:
    """The window runs from its last result, its last millisecond included."""
    state = emitted(a_state(a_report()), 3000)

    assert (state.revision, state.message_id, state.waiting) == (1, "", False)
    assert deadline(state, 500) is None
    assert forget_at(state, 500) == 3500
    assert not is_forgotten(state, 500, 3500)
    assert is_forgotten(state, 500, 3501)


def test_the_usual_state_is_small() -> None:
    """A delivered single message takes less than 90 bytes: memory of days is made of these."""
    now = 1_795_428_000_000
    report = a_report(total=1, source="2", orgCode="000", to="+8613500000001")

    state = emitted(a_state(report, record_ms=now, clock_ms=now + 60_000), now + 60_200)

    assert len(encode(state)) < 90


def test_a_newer_form_is_refused_by_name() -> None:
    """Going back to an older release must stop it, not confuse it."""
    newer = bytes([FORMAT_VERSION + 1]) + encode(a_state(a_report()))[1:]

    with pytest.raises(StateFormatError, match="state format 2 is not known") as caught:
        decode(newer)

    assert caught.value.found == FORMAT_VERSION + 1


@pytest.mark.parametrize("damaged", [b"", b"\x01", b"\x01\x90", b"\x01\xc1", b"\x01" + b"\x99" + b"\x00" * 9])
def test_damage_is_never_a_state(damaged: bytes) -> None:
    """Bytes that are no state raise ValueError."""
    with pytest.raises(ValueError, match=r".+"):
        decode(damaged)
