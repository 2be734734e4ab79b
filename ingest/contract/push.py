"""One push of the platform and its division into reports.

Whether a push is taken is judged once, under the limits of the receiver that answers it. Splitting is a pure function
of the body, repeated when the spool is forwarded, so that a better parser can split anew what an older one kept; no
limit of that time counts for it. Rules: docs/contract.md sections 3, 5 and 6.
"""

from array import array
from enum import StrEnum
from itertools import accumulate
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

import msgspec
import orjson

from ingest.contract.report import Reason, RejectedError, Report, decode_json, decode_report, read_report

DEPTH_MAX = 64
"""Containers inside one another in a body, its own object included."""

NESTED_MAX = 50_000
"""Objects and lists that a batch may have beyond the limit of reports, all of them counted, the reports and the body
itself, too: half a million, which fit into a body, cost half a second."""

FORM_PIECES_MAX = 50_000
"""Pairs and escapes (`%`) of a form, together, for the same reason."""


class Route(StrEnum):
    """The kind of callback. The value is the `ce_source`, whatever path is configured."""

    BATCH = "/batchReport"
    SINGLE = "/report"


class Push(msgspec.Struct, frozen=True, gc=False):
    """One request body as it was received.

    Attributes:
        received_ms: when the receiver had the whole body, epoch milliseconds.
        route: which callback it came by.
        reports: how many reports it counts as: its elements, or 1 for a body that cannot be split.
        body: the bytes, untouched.
        refused: why it was answered 400, None if it was answered 200. It stays one dead letter, or the reports that it
            was taken with, whatever the limits are when it is published.
    """

    received_ms: int
    route: Route
    reports: int
    body: bytes
    refused: Reason | None = None


class Element(NamedTuple):
    """One report of a push: its bytes, and either what they say or why they cannot be used."""

    value: bytes
    report: Report | None
    rejected: RejectedError | None


class _Body(msgspec.Struct):
    """Of repeated members the last counts: a raw member takes whatever comes, the list is read afterwards."""

    statusReportList: msgspec.Raw  # noqa: N815 - the name on the wire


_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
"""What a bracket does to the depth, as the bytes of signed numbers."""
_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_body = msgspec.json.Decoder(_Body)
_list = msgspec.json.Decoder(list[msgspec.Raw])


def count_reports(route: Route, body: bytes, *, reports_max: int) -> int:
    """How many elements a body holds, without reading them: what the receiver must know before it answers.

    Returns:
        The number of elements of a batch (0 is possible), 1 for a form with a usable report.

    Raises:
        RejectedError: the body is refused whole (answer 400), and is one dead letter.
    """
    if route is Route.SINGLE:
        _read_form(body)
        return 1
    return len(_elements(body, reports_max))


def split(route: Route, body: bytes) -> list[Element]:
    """Divide a body into its reports, each with its verdict. However many they are: that was judged by `count_reports`.

    Raises:
        RejectedError: the body cannot be divided and is one dead letter.
    """
    if route is Route.SINGLE:
        value, report = _read_form(body)
        return [Element(value, report, None)]
    elements = _elements(body, None)
    raw = _list.decode(_body.decode(body).statusReportList)
    return [_judge(bytes(value), element) for value, element in zip(raw, elements, strict=True)]


def refusal(push: Push, reason: Reason) -> RejectedError:
    """Why a push was answered 400, in words. Its reason stands; the limits of then are not known any more."""
    if reason is Reason.TOO_MANY_REPORTS:
        return RejectedError(reason, "The body had more reports than were allowed when it was received.")
    try:
        # The least limit, so that what was refused for its size costs no more now; its sentences are true of any other.
        count_reports(push.route, push.body, reports_max=0)
    except RejectedError as rejected:
        if rejected.reason is reason:
            return rejected
    return RejectedError(reason, "The body was refused when it was received.")


def read_element(value: bytes) -> Element:
    """Judge the bytes of one element of a batch, as a replayed dead letter holds them."""
    try:
        return Element(value, decode_report(value), None)
    except RejectedError as error:
        return Element(value, None, error)


def _judge(value: bytes, element: object) -> Element:
    try:
        return Element(value, read_report(element), None)
    except RejectedError as error:
        return Element(value, None, error)


def _elements(body: bytes, reports_max: int | None) -> list[object]:
    """The decoded elements of a batch; without a limit of reports there is none of objects and lists either."""
    plain = body
    # Looked at before the body is decoded, because that is what is dear. What stands in strings is no bracket, but it
    # is only looked for where it matters.
    if reports_max is not None and _openers(body) > (most := reports_max + NESTED_MAX):
        plain = _without_strings(body)
        if _openers(plain) > most:
            raise RejectedError(Reason.NOT_JSON, f"The body has more than {most} objects and lists.")
    try:
        decoded = decode_json(body)
    except ValueError:
        raise RejectedError(Reason.NOT_JSON, "The body is not JSON.") from None
    if type(decoded) is not dict:
        raise RejectedError(Reason.NOT_AN_OBJECT, "The body is not a JSON object.")
    elements = decoded.get("statusReportList")
    if type(elements) is not list:
        raise RejectedError(Reason.BAD_FIELD, "The body has no list statusReportList.")
    if _deeper_than(plain, elements):
        raise RejectedError(Reason.NOT_JSON, f"The body is nested deeper than {DEPTH_MAX}.")
    if reports_max is not None and len(elements) > reports_max:
        raise RejectedError(Reason.TOO_MANY_REPORTS, f"The body has more than {reports_max} reports.")
    return elements


def _openers(body: bytes) -> int:
    return body.count(b"{") + body.count(b"[")


def _without_strings(body: bytes) -> bytes:
    """A body without what stands in its strings; of one that is not JSON, something no longer than it."""
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    return b"".join(plain.split(b'"')[::2])


def _deeper_than(body: bytes, elements: list[object]) -> bool:
    """Whether a body that is valid JSON is nested deeper than `DEPTH_MAX`.

    The bytes decide, not the decoded value: that has lost the repeated members. They are only walked where counting
    brackets leaves it open.
    """
    openers = _openers(body)
    if openers <= DEPTH_MAX:
        return False
    # Elements stand beside each other: all but one of their own brackets add nothing to the depth.
    beside = sum(type(element) is dict or type(element) is list for element in elements)
    if openers - beside + 1 <= DEPTH_MAX:
        return False
    steps = array("b", _without_strings(body).translate(_STEPS, _NO_BRACKETS))
    return max(accumulate(steps)) > DEPTH_MAX


def _read_form(body: bytes) -> tuple[bytes, Report]:
    """The JSON value that stands for a form, and the report in it."""
    fields: dict[str, str] = {}
    if body.count(b"&") + body.count(b"%") > FORM_PIECES_MAX:
        raise RejectedError(Reason.NOT_A_FORM, f"The form has more than {FORM_PIECES_MAX} pairs and escapes.")
    try:
        for pair in body.split(b"&"):
            name, _, value = pair.replace(b"+", b" ").partition(b"=")
            fields[unquote_to_bytes(name).decode()] = unquote_to_bytes(value).decode()
    except UnicodeDecodeError:
        raise RejectedError(Reason.NOT_A_FORM, "The form is not UTF-8.") from None
    return orjson.dumps(fields), read_report(fields)
