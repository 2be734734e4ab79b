"""What is a usable report (contract.md section 5), and its identity (section 6)."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from ingest.contract.identity import report_id
from ingest.contract.push import NESTED_MAX, Push, Route, count_reports, refusal, split
from ingest.contract.report import Reason, RejectedError, decode_report, read_report

EXAMPLE = Path(__file__).parents[1] / "data" / "batch_example.json"


def a_report(**fields: Any) -> dict[str, Any]:
    """The smallest usable report, with fields over it."""
    return {"smsMsgId": "m1", "status": "DELIVRD"} | fields


def test_the_platforms_example_has_the_published_identities() -> None:
    """The two reports of the platform's example have the ce_ids of the contract."""
    elements = split(Route.BATCH, EXAMPLE.read_bytes())

    ids = [report_id(element.report) for element in elements if element.report]
    assert ids == ["2d422abdf28023a4116672c7", "631ec23a01412c5fbae9ebe5"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"smsMsgId": None}, Reason.MISSING_ID),
        ({"smsMsgId": ""}, Reason.MISSING_ID),
        ({"smsMsgId": 7}, Reason.BAD_ID),
        ({"smsMsgId": "x" * 51}, Reason.BAD_ID),
        ({"smsMsgId": "a\x1fb"}, Reason.BAD_ID),
        ({"smsMsgId": "a\x7f"}, Reason.BAD_ID),
        ({"status": ""}, Reason.MISSING_STATUS),
        ({"status": "x" * 65}, Reason.BAD_STATUS),
        ({"status": True}, Reason.BAD_STATUS),
        ({"status": 1.5}, Reason.BAD_STATUS),
        ({"status": "a\nb"}, Reason.BAD_STATUS),
        ({"sequence": 0}, Reason.BAD_SEQUENCE),
        ({"sequence": "00"}, Reason.BAD_SEQUENCE),
        ({"sequence": "100"}, Reason.BAD_SEQUENCE),
        ({"sequence": 1.0}, Reason.BAD_SEQUENCE),
        ({"sequence": True}, Reason.BAD_SEQUENCE),
        ({"sequence": "\u0663"}, Reason.BAD_SEQUENCE),
        ({"sequence": "1\n"}, Reason.BAD_SEQUENCE),
        ({"sequence": 3, "total": 2}, Reason.BAD_SEQUENCE),
        ({"total": "x"}, Reason.BAD_SEQUENCE),
        ({"source": []}, Reason.BAD_FIELD),
        ({"source": "x" * 65}, Reason.BAD_FIELD),
        ({"updateTime": "a%00b"}, Reason.BAD_FIELD),
        ({"orgCode": "a\tb"}, Reason.BAD_FIELD),
        ({"to": {}}, Reason.BAD_FIELD),
        ({"extend": "x" * 1025}, Reason.BAD_FIELD),
        ({"smsMsgId": 7, "status": None, "sequence": 0}, Reason.BAD_ID),
        ({"status": "a\n", "sequence": 0, "to": []}, Reason.BAD_STATUS),
        ({"sequence": 0, "to": []}, Reason.BAD_SEQUENCE),
    ],
)
def test_an_unusable_report_is_named_by_the_first_reason_that_applies(fields: dict[str, Any], reason: Reason) -> None:
    """Reasons apply in the order of the contract, and a detail never quotes the input."""
    with pytest.raises(RejectedError) as caught:
        read_report(a_report(**fields))

    assert caught.value.reason is reason
    assert len(caught.value.detail) <= 200


def test_integers_stand_for_their_text_and_null_for_absence() -> None:
    """A platform that sends numbers or null where it documents strings is understood."""
    report = read_report(
        a_report(status=0, source=2, sequence=None, total="03", updateTime=None, orgCode="", to=86135, extend=None)
    )

    assert (report.status, report.source, report.to, report.extend) == ("0", "2", "86135", "")
    assert (report.sequence, report.total, report.update_time, report.org_code) == (1, 3, "", "")


@pytest.mark.parametrize("number", [2**64, -(2**63) - 1])
def test_an_integer_beyond_64_bits_is_unusable(number: int) -> None:
    """Nobody downstream could hold it."""
    with pytest.raises(RejectedError, match="bad-field"):
        decode_report(b'{"smsMsgId":"m","status":"S","source":%d}' % number)


@pytest.mark.parametrize(
    "number", [b"1e309", b"-1E+0400", b"9" * 309, b"9" * 5000, b"9" * 250 + b"e99", b"1" + b"0" * 400 + b".5"]
)
def test_a_number_beyond_a_double_spoils_only_its_own_report(number: bytes) -> None:
    """It is valid JSON: ignored in an unknown field, a bad field in one of ours, no harm to its neighbours."""
    body = (
        b'{"statusReportList":[{"smsMsgId":"a","status":"S","x":[%s]},{"smsMsgId":"b","status":"S","to":%s},'
        b'{"smsMsgId":"c","status":"S"}]}' % (number, number)
    )

    first, second, third = split(Route.BATCH, body)

    assert first.report is not None
    assert decode_report(first.value) == first.report
    assert second.rejected is not None
    assert second.rejected.reason is Reason.BAD_FIELD
    assert third.report is not None


@pytest.mark.parametrize(
    "value",
    [
        b'{"x":1e309',
        b'{"x":1e309,"y":"\\ud800"}',
        b'{"x":1e309,"y":NaN}',
        b'\xef\xbb\xbf{"x":1e309}',
        b'{"x":1e309}{}',
        b'["1e309",' + b"[" * 99999,
    ],
)
def test_a_large_number_does_not_excuse_what_is_not_json(value: bytes) -> None:
    """The second look is as strict as the first."""
    with pytest.raises(RejectedError, match="not-json"):
        decode_report(value)


def test_update_time_is_decoded_once() -> None:
    """`%3A` and `%3a` are colons; a doubly encoded one is decoded once."""
    assert read_report(a_report(updateTime="07%3A26%3a00%253A")).update_time == "07:26:00%3A"


def test_identity_ignores_how_a_number_was_written() -> None:
    """Total and sequence default to 1, with or without leading zeros."""
    written = [a_report(), a_report(total=1, sequence="01"), a_report(total="1", to="+86", extend="x")]

    assert len({report_id(read_report(fields)) for fields in written}) == 1


def test_a_batch_keeps_the_bytes_of_each_report() -> None:
    """Spaces, order and unknown fields survive; of a repeated list the last counts."""
    body = b'{"x":[[]],"statusReportList":7,"statusReportList":[ {"a" : 1} ,\n{"smsMsgId":"m", "status":"S"},3 ]}'

    elements = split(Route.BATCH, body)

    assert [element.value for element in elements] == [b'{"a" : 1}', b'{"smsMsgId":"m", "status":"S"}', b"3"]
    reasons = [element.rejected.reason if element.rejected else None for element in elements]
    assert reasons == [Reason.MISSING_ID, None, Reason.NOT_AN_OBJECT]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", Reason.NOT_JSON),
        (b"\xef\xbb\xbf{}", Reason.NOT_JSON),
        (b'{"statusReportList":[]}x', Reason.NOT_JSON),
        (b'{"statusReportList":["\\ud800"]}', Reason.NOT_JSON),
        (b'{"x":1e999,"y":"\\ud800","y":1,"statusReportList":[]}', Reason.NOT_JSON),
        (b'{"x":1e999,"y":"\\ud83d\\ude00\\\\ud800","statusReportList":{}}', Reason.BAD_FIELD),
        (b'{"statusReportList":["\xff"]}', Reason.NOT_JSON),
        (b"[]", Reason.NOT_AN_OBJECT),
        (b"{}", Reason.BAD_FIELD),
        (b'{"statusReportList":{}}', Reason.BAD_FIELD),
        (b'{"statusReportList":[1,2,3]}', Reason.TOO_MANY_REPORTS),
        (b'{"statusReportList":[' + b"[" * 63 + b"]" * 63 + b"]}", Reason.NOT_JSON),
        (b'{"x":' + b"[" * 70 + b"]" * 70 + b',"x":1,"statusReportList":[]}', Reason.NOT_JSON),
    ],
)
def test_a_body_that_cannot_be_split_is_refused_whole(body: bytes, reason: Reason) -> None:
    """It is answered 400 and kept as one dead letter."""
    with pytest.raises(RejectedError) as counted:
        count_reports(Route.BATCH, body, reports_max=2)

    assert counted.value.reason is reason
    assert refusal(Push(1, Route.BATCH, 1, body), reason).reason is reason
    if reason is not Reason.TOO_MANY_REPORTS:
        with pytest.raises(RejectedError) as splitted:
            split(Route.BATCH, body)
        assert splitted.value.reason is reason


@pytest.mark.parametrize("elements", [[b"[" * 62 + b"]" * 62], [b'{"extend":"' + b"[" * 99 + b'"}'], [b"{}"] * 99])
def test_a_body_at_the_depth_limit_is_taken(elements: list[bytes]) -> None:
    """64 levels are allowed, brackets in texts and beside each other do not count."""
    body = b'{"statusReportList":[' + b",".join(elements) + b"]}"

    assert count_reports(Route.BATCH, body, reports_max=1000) == len(elements)


@pytest.mark.parametrize("others", [b"", b'"x":[' + b",".join([b"{}"] * (NESTED_MAX + 1_000)) + b"],"])
def test_splitting_has_no_limit_of_reports_objects_and_lists(others: bytes) -> None:
    """What was answered 200 is divided, however low the limit of reports has become."""
    body = b"{" + others + b'"statusReportList":[1,2,3]}'

    assert len(split(Route.BATCH, body)) == 3


@pytest.mark.parametrize(
    ("route", "body", "reason", "detail"),
    [
        (Route.BATCH, b'{"statusReportList":[1]}', Reason.TOO_MANY_REPORTS, "The body had more reports than"),
        (Route.BATCH, b"{", Reason.NOT_JSON, "The body is not JSON."),
        (Route.BATCH, b'{"statusReportList":[1]}', Reason.NOT_JSON, "The body was refused when"),
        (Route.SINGLE, b"smsMsgId=m", Reason.MISSING_STATUS, "The report has no status."),
        (Route.SINGLE, b"smsMsgId=m", Reason.NOT_A_FORM, "The body was refused when"),
    ],
)
def test_a_refusal_keeps_its_reason(route: Route, body: bytes, reason: Reason, detail: str) -> None:
    """Whatever is thought of the body now; what can still be said of why, is."""
    rejected = refusal(Push(1, route, 1, body), reason)

    assert rejected.reason is reason
    assert rejected.detail.startswith(detail)


def test_a_form_becomes_compact_json_in_the_order_received() -> None:
    """Of repeated names the last value counts at the first place; percent signs without digits stay."""
    body = b"status=DELIVRD&to=%2B86+1&smsMsgId=a&&smsMsgId=m%C3%A9&flag&x=%zz=1"

    (element,) = split(Route.SINGLE, body)

    assert element.value == '{"status":"DELIVRD","to":"+86 1","smsMsgId":"mé","":"","flag":"","x":"%zz=1"}'.encode()
    assert element.report is not None
    assert element.report.to == "+86 1"


@pytest.mark.parametrize(
    ("body", "reason"),
    [(b"a=%ff", Reason.NOT_A_FORM), (b"", Reason.MISSING_ID), (b"smsMsgId=m", Reason.MISSING_STATUS)],
)
def test_a_form_without_a_usable_report_is_refused_whole(body: bytes, reason: Reason) -> None:
    """There is nothing in it to publish."""
    with pytest.raises(RejectedError) as caught:
        count_reports(Route.SINGLE, body, reports_max=10)

    assert caught.value.reason is reason


def test_the_form_and_the_batch_say_the_same() -> None:
    """A report has one meaning, however it came."""
    (form,) = split(Route.SINGLE, b"smsMsgId=m&status=S&sequence=2&total=3")

    assert form.report == decode_report(orjson.dumps({"smsMsgId": "m", "status": "S", "sequence": 2, "total": 3}))
