"""Records as they stand on the topics: headers, dead letters, results, topic definitions."""

import pytest

from ingest.contract.dead_letter import DeadLetter, Origin, Stage, Unit, attempt_of
from ingest.contract.envelope import report_headers, result_headers, rfc3339_ms
from ingest.contract.push import Push, Route
from ingest.contract.report import Reason, RejectedError
from ingest.contract.result import Outcome, Result, ResultReason, SegmentResult, decode_result, encode_result
from ingest.contract.topics import TopicNeeds, changelog_topic, differences, transactional_id, wanted_topics

NEEDS = TopicNeeds(
    reports_topic="sms.status-reports",
    results_topic="sms.message-results",
    dead_letters_topic="sms.dead-letters",
    group_id="dlrflow-assembler",
    partitions=12,
    replication=3,
    min_insync=2,
    reports_retention_s=604_800,
    reassembly_timeout_s=259_200,
    late_window_s=172_800,
)


def test_a_report_record_carries_the_cloudevents_headers() -> None:
    """All six, in binary mode, with the time of the push."""
    assert report_headers(Route.BATCH, "2d422abdf28023a4116672c7", 1_795_428_000_007) == [
        ("ce_specversion", b"1.0"),
        ("ce_type", b"dlrflow.sms.status-report.v1"),
        ("ce_source", b"/batchReport"),
        ("ce_id", b"2d422abdf28023a4116672c7"),
        ("ce_time", b"2026-11-23T10:00:00.007Z"),
        ("content-type", b"application/json"),
    ]


def test_a_result_record_is_named_by_message_and_revision() -> None:
    """Its source is the reports topic."""
    headers = dict(result_headers("m", 2, "sms.status-reports", 0))

    assert headers["ce_id"] == b"m/2"
    assert headers["ce_source"] == b"sms.status-reports"
    assert headers["ce_time"] == rfc3339_ms(0).encode() == b"1970-01-01T00:00:00.000Z"


def test_a_result_is_compact_json_in_the_order_of_the_contract() -> None:
    """Absent members are left out, text is not escaped, and reading it back gives the same."""
    result = Result(
        schema_version=1,
        sms_msg_id="m",
        revision=1,
        outcome=Outcome.PARTIALLY_DELIVERED,
        final=True,
        total=2,
        received=2,
        missing=[],
        total_conflict=True,
        segments=[SegmentResult(1, "DELIVRD", "2", "2023-04-18T07:26:00Z", "000"), SegmentResult(2, "UNDELIV")],
        extend="Grüße/x",
        reason=ResultReason.COMPLETE,
        first_received_at="2026-11-23T10:00:00.000Z",
        last_received_at="2026-11-23T10:00:00.250Z",
    )

    assert (
        encode_result(result).decode()
        == '{"schemaVersion":1,"smsMsgId":"m","revision":1,"outcome":"partially_delivered","final":true,"total":2,'
        '"received":2,"missing":[],"totalConflict":true,"segments":[{"sequence":1,"status":"DELIVRD","source":"2",'
        '"updateTime":"2023-04-18T07:26:00Z","orgCode":"000"},{"sequence":2,"status":"UNDELIV"}],"extend":"Grüße/x",'
        '"reason":"complete","firstReceivedAt":"2026-11-23T10:00:00.000Z","lastReceivedAt":"2026-11-23T10:00:00.250Z"}'
    )
    assert decode_result(encode_result(result)) == result


@pytest.mark.parametrize("value", [b"", b"{}", b"[]", b'{"x":' + b"[" * 5000 + b"]" * 5000 + b"}"])
def test_a_value_that_is_no_result_is_refused(value: bytes) -> None:
    """The reader learns it by ValueError."""
    with pytest.raises(ValueError, match=r".+"):
        decode_result(value)


def test_a_newer_result_schema_is_refused() -> None:
    """Guessing at a newer form would write wrong rows."""
    value = (
        b'{"schemaVersion":2,"smsMsgId":"m","revision":1,"outcome":"failed","final":true,"total":1,"received":1,'
        b'"missing":[],"segments":[],"reason":"complete","firstReceivedAt":"","lastReceivedAt":""}'
    )
    with pytest.raises(ValueError, match="schemaVersion 2"):
        decode_result(value)


def test_a_dead_letter_of_the_receiver_says_where_it_came_by() -> None:
    """Key and detail where they are known; the attempt is the first."""
    rejected = RejectedError(Reason.BAD_STATUS, "The status is bad.", "m")
    push = Push(1, Route.BATCH, 1, b"body")

    letter = DeadLetter.of_push(push, b"element", rejected, unit=Unit.ELEMENT, now_ms=0)

    assert (letter.key, letter.value) == (b"m", b"element")
    assert dict(letter.headers) == {
        "dlq-stage": b"receive",
        "dlq-reason": b"bad-status",
        "dlq-detail": b"The status is bad.",
        "dlq-time": b"1970-01-01T00:00:00.000Z",
        "dlq-version": b"0.1.0",
        "dlq-attempt": b"1",
        "dlq-source": b"/batchReport",
        "dlq-unit": b"element",
    }


def test_a_dead_letter_of_a_record_keeps_its_headers_and_its_attempt() -> None:
    """What was replayed before counts on."""
    letter = DeadLetter.of_record(
        Stage.SINK,
        RejectedError(Reason.REFUSED_BY_DATABASE, "x" * 300),
        origin=Origin("sms.message-results", 3, 7),
        key=b"m",
        value=None,
        headers=[("ce_id", b"m/1"), ("dlq-attempt", b"2"), ("dlq-reason", b"internal")],
        now_ms=0,
        sink="postgres",
    )
    headers = dict(letter.headers)

    assert (headers["dlq-topic"], headers["dlq-partition"], headers["dlq-offset"]) == (
        b"sms.message-results",
        b"3",
        b"7",
    )
    assert (headers["dlq-sink"], headers["ce_id"], headers["dlq-reason"]) == (
        b"postgres",
        b"m/1",
        b"refused-by-database",
    )
    assert len(headers["dlq-detail"]) == 200
    assert attempt_of(letter.headers) == 2
    assert len(letter.headers) == len(headers)


def test_topics_are_as_the_contract_has_them() -> None:
    """Names, partitions, retentions and what must not be left to a broker's defaults."""
    reports, results, dead_letters, changelog = wanted_topics(NEEDS)

    assert [spec.partitions for spec in (reports, results, dead_letters, changelog)] == [12, 12, 3, 12]
    assert changelog.name == changelog_topic("dlrflow-assembler", "sms.status-reports")
    assert changelog.name == "dlrflow-assembler.sms.status-reports.changelog"
    assert transactional_id("g", "t", 3) == "g.t.3"
    assert changelog.configs == {
        "cleanup.policy": "delete",
        "retention.ms": str((259_200 + 604_800) * 1000),
        "min.insync.replicas": "2",
        "retention.bytes": "-1",
        "max.message.bytes": str(2 * 1024 * 1024),
        "message.timestamp.type": "LogAppendTime",
    }
    assert reports.configs["message.timestamp.after.max.ms"] == "3600000"
    assert results.configs["retention.ms"] == str(7 * 86_400_000)
    assert dead_letters.configs["retention.ms"] == str(30 * 86_400_000)


def test_each_difference_of_a_topic_is_named() -> None:
    """An operator reads what it is and what it must be; a topic that is right has none."""
    spec = wanted_topics(NEEDS)[1]

    assert differences(spec, partitions=12, replication=3, configs=spec.configs) == []
    assert differences(
        spec, partitions=6, replication=1, configs=dict(spec.configs) | {"cleanup.policy": "compact"}
    ) == [
        "sms.message-results: has 6 partitions, needs 12",
        "sms.message-results: has 1 replicas, needs 3",
        "sms.message-results: cleanup.policy is compact, needs delete",
    ]


@pytest.mark.parametrize(
    ("told", "attempt"), [(b"999999999", 999_999_999), (b"1000000000", 1), (b"9" * 5000, 1), (b"-1", 1), (b"", 1)]
)
def test_an_attempt_that_we_cannot_have_written_is_the_first(told: bytes, attempt: int) -> None:
    """At most nine digits are read: a header of thousands must not fail whoever makes a dead letter of its record."""
    assert attempt_of([("dlq-attempt", told)]) == attempt
