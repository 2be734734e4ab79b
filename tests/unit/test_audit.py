"""The audit finds what is lost, wrong or repeated, and nothing else."""

from collections.abc import Sequence
from typing import Any

import msgspec
import orjson
import pytest

from consumers.audit import Audit, Problem, TruthError
from ingest.contract.result import Outcome, Result, ResultReason, SegmentResult


def a_result(message_id: str, revision: int = 1, *, status: str = "DELIVRD") -> Result:
    """A result of one segment."""
    delivered = status == "DELIVRD"
    return Result(
        schema_version=1,
        sms_msg_id=message_id,
        revision=revision,
        outcome=Outcome.DELIVERED if delivered else Outcome.FAILED,
        final=True,
        total=1,
        received=1,
        missing=[],
        segments=[SegmentResult(1, status, update_time="2023-04-18T07:26:00Z")],
        reason=ResultReason.COMPLETE,
        first_received_at="2026-11-23T10:00:00.000Z",
        last_received_at="2026-11-23T10:00:00.000Z",
    )


def truth_line(result: Result, **changes: Any) -> bytes:
    """The truth that a result fulfils, with changes over it."""
    said = msgspec.to_builtins(result)
    names = ("smsMsgId", "outcome", "final", "total", "received", "missing", "segments")
    return orjson.dumps({name: said[name] for name in names} | changes)


def audited(
    truth: Sequence[bytes], results: Sequence[Result], rows: Sequence[Result] | None = None, **waiting: bool
) -> Audit:
    """An audit fed and concluded."""
    audit = Audit()
    for line in [*truth, b'{"unusable":0}']:
        audit.add_truth(line)
    audit.end_truth()
    for result in results:
        audit.add_result(result, "sms.message-results")
    for row in rows or ():
        audit.add_row(row.sms_msg_id, row.revision, msgspec.to_builtins(row), "sqlite")
    audit.conclude(waiting, sink=None if rows is None else "sqlite")
    return audit


ONE, TWO, THREE = a_result("a"), a_result("b"), a_result("b", 2, status="UNDELIV")


def test_a_right_run_has_no_finding() -> None:
    """Revisions up to the truth, the same in the sink."""
    audit = audited([truth_line(ONE), truth_line(THREE)], [ONE, TWO, THREE], [ONE, THREE])

    assert audit.findings == []
    assert (audit.counts.messages, audit.counts.results, audit.counts.rows) == (2, 3, 2)


@pytest.mark.parametrize(
    ("results", "problem"),
    [
        ([], Problem.LOST),
        ([TWO], Problem.WRONG),
        ([TWO, TWO, THREE], Problem.REPEATED),
        ([THREE], Problem.LOST),
        ([TWO, THREE, TWO], Problem.REPEATED),
    ],
)
def test_each_fault_of_the_topic_is_named(results: Sequence[Result], problem: Problem) -> None:
    """One message, its last result lost, wrong, repeated, or with a gap before it."""
    audit = audited([truth_line(THREE)], results)

    assert [finding.problem for finding in audit.findings] == [problem]
    assert audit.found[problem] == 1


@pytest.mark.parametrize(
    ("rows", "problem"), [([], Problem.LOST), ([TWO], Problem.WRONG), ([THREE, THREE], Problem.REPEATED)]
)
def test_each_fault_of_the_sink_is_named(rows: Sequence[Result], problem: Problem) -> None:
    """The row of a message is its last revision, once."""
    audit = audited([truth_line(THREE)], [TWO, THREE], rows)

    assert [finding.problem for finding in audit.findings] == [problem]


def test_an_incomplete_message_counts_only_after_its_timeout() -> None:
    """Until then it waits, and that is right."""
    line = truth_line(ONE, outcome="incomplete", final=False, missing=[2], total=2)

    assert audited([line], [], a=True).findings == []
    assert audited([line], [], a=True).counts.pending == 1
    assert [finding.problem for finding in audited([line], [], a=False).findings] == [Problem.LOST]


def test_unusable_elements_are_counted_once_each() -> None:
    """A push that was sent again repeats its dead letters; one of the truth that is missing is a loss."""
    audit = Audit()
    for line in (truth_line(ONE), b'{"unusable":3}'):
        audit.add_truth(line)
    audit.add_result(ONE, "results")
    for value in (b"x", b"y", b"x"):
        audit.add_dead_letter(None, value, "receive", "dead letters")
    audit.add_dead_letter(b"a", b"{}", "assemble", "dead letters")
    audit.conclude({}, sink=None)

    assert audit.found == {Problem.LOST: 1, Problem.WRONG: 1, Problem.REPEATED: 0}


def test_traffic_beyond_the_truth_is_no_finding() -> None:
    """Other messages on the same topics are counted, not judged, unless a revision comes twice."""
    assert audited([truth_line(ONE)], [ONE, TWO, THREE]).findings == []
    assert audited([truth_line(ONE)], [ONE, TWO, TWO]).found[Problem.REPEATED] == 1


@pytest.mark.parametrize("lines", [[b"{"], [b"{}"], [b'{"unusable":1}', b'{"unusable":1}'], []])
def test_a_truth_file_that_is_not_whole_is_refused(lines: list[bytes]) -> None:
    """A run that was cut off knows no truth."""
    audit = Audit()
    with pytest.raises(TruthError):  # noqa: PT012 - either the line or the end refuses
        for line in lines:
            audit.add_truth(line)
        audit.end_truth()
