"""One status report: what is usable of it, and the one decoder for both sides of Kafka.

Rules: docs/contract.md section 5. `decode_json` decides what JSON is, everywhere: two parsers that disagree would turn
a report that the receiver accepted into a dead letter later.
"""

import json
import re
from enum import StrEnum
from typing import Any, NoReturn
from urllib.parse import unquote

import msgspec
import orjson

MESSAGE_ID_MAX = 50
STATUS_MAX = 64
FIELD_MAX = 64
EXTEND_MAX = 1024
NUMBER_MAX = 99

_INT64_MIN, _UINT64_MAX = -(2**63), 2**64 - 1
_CONTROL = re.compile("[\x00-\x1f\x7f]")
_INT64_DIGITS = 20
_MAY_OVERFLOW = re.compile(rb"(?<![0-9])[0-9]{200}|[eE]\+?0*[1-9][0-9]{2}")
"""In every document with a number beyond a double: an exponent of three digits, or nearly as many digits. Each run of
digits is looked at from its beginning alone: from every digit of it, a hostile body would cost 200 times as much."""

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_NO_LONE_SURROGATE = re.compile(rb"\\[^u]|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}")
"""Escapes after whose removal from valid JSON each surrogate that is left has no other half."""

OVERFLOWING_COMMAS_MAX = 50_000
"""Of a document with a number beyond a double: it is read ten times as slowly as any other."""

_NUMBERS = {text: number for number in range(1, NUMBER_MAX + 1) for text in (f"{number}", f"{number:02}")}
"""Every text of one or two ASCII digits that names a segment number."""


class Reason(StrEnum):
    """Why something became a dead letter, in the order in which the reasons apply (contract.md section 8)."""

    NOT_JSON = "not-json"
    NOT_A_FORM = "not-a-form"
    NOT_AN_OBJECT = "not-an-object"
    TOO_MANY_REPORTS = "too-many-reports"
    MISSING_ID = "missing-id"
    BAD_ID = "bad-id"
    MISSING_STATUS = "missing-status"
    BAD_STATUS = "bad-status"
    BAD_SEQUENCE = "bad-sequence"
    BAD_FIELD = "bad-field"
    KEY_MISMATCH = "key-mismatch"
    WRONG_PARTITION = "wrong-partition"
    REFUSED_BY_KAFKA = "refused-by-kafka"
    REFUSED_BY_DATABASE = "refused-by-database"
    INTERNAL = "internal"


class RejectedError(Exception):
    """The sender gave something that cannot be used.

    Attributes:
        reason: the first reason that applies.
        detail: one sentence for a person, never a quote of the input.
        message_id: the `smsMsgId`, where it could be read.
    """

    def __init__(self, reason: Reason, detail: str, message_id: str | None = None) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.message_id = message_id


class Report(msgspec.Struct, frozen=True, gc=False):
    """One usable status report. Texts that the report does not state are empty; nothing is trimmed.

    Build it with `read_report` or `decode_report`, which check it.
    """

    message_id: str
    status: str
    sequence: int
    total: int | None
    source: str
    update_time: str
    """Percent-decoded; need not be a valid time."""
    org_code: str
    to: str
    extend: str


def decode_report(value: bytes) -> Report:
    """Read the value of a record, or one element of a batch.

    Raises:
        RejectedError: `not-json`, or what `read_report` raises.
    """
    try:
        decoded = decode_json(value)
    except ValueError:
        raise RejectedError(Reason.NOT_JSON, "The value is not JSON.") from None
    return read_report(decoded)


def decode_json(value: bytes) -> Any:
    """What JSON is, on both sides of Kafka: orjson's reading of RFC 8259, and numbers of any size.

    Integers beyond 64 bits and numbers beyond a double come out as floats, which no field of ours may be.

    Raises:
        ValueError: it is not JSON: not UTF-8, a byte order mark, an unpaired surrogate, trailing data and the like; or
            it holds a number beyond a double among more than `OVERFLOWING_COMMAS_MAX` others.
    """
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        if _MAY_OVERFLOW.search(value) is None or value.count(b",") > OVERFLOWING_COMMAS_MAX:
            raise
    # orjson refuses the whole document for one number beyond a double.
    try:
        decoded = json.loads(value.decode(), parse_int=_integer, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("nested too deep") from None
    # The bytes are looked at, because the decoded value has lost what stood in repeated members.
    if _SURROGATE.search(_NO_LONE_SURROGATE.sub(b"", value)):
        raise ValueError("an unpaired surrogate")
    return decoded


def _integer(digits: str) -> int | float:
    number = int(digits) if len(digits) <= _INT64_DIGITS else _UINT64_MAX + 1
    return number if _INT64_MIN <= number <= _UINT64_MAX else float(number)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def read_report(value: object) -> Report:  # noqa: C901 - one branch a field; calls cost a tenth of it each
    """Read one decoded JSON value as a report.

    Raises:
        RejectedError: with the first reason of contract.md section 8 that applies.
    """
    if type(value) is not dict:
        raise RejectedError(Reason.NOT_AN_OBJECT, "The report is not a JSON object.")
    get = value.get
    message_id = get("smsMsgId")
    if not (type(message_id) is str and 0 < len(message_id) <= MESSAGE_ID_MAX and message_id.isprintable()):
        message_id = _message_id(message_id)
    status = get("status")
    if not (type(status) is str and 0 < len(status) <= STATUS_MAX and status.isprintable()):
        status = _status(status, message_id)
    sequence = _number(get("sequence"), "sequence", message_id)
    total = _number(get("total"), "total", message_id)
    if sequence is None:
        sequence = 1
    elif total is not None and sequence > total:
        raise RejectedError(Reason.BAD_SEQUENCE, "The sequence is greater than the total.", message_id)
    source = get("source", "")
    if not (type(source) is str and len(source) <= FIELD_MAX):
        source = _text(source, "source", FIELD_MAX, message_id)
    update_time = get("updateTime", "")
    if not (type(update_time) is str and len(update_time) <= FIELD_MAX):
        update_time = _text(update_time, "updateTime", FIELD_MAX, message_id)
    if "%" in update_time:
        update_time = unquote(update_time)
    org_code = get("orgCode", "")
    if not (type(org_code) is str and len(org_code) <= FIELD_MAX):
        org_code = _text(org_code, "orgCode", FIELD_MAX, message_id)
    to = get("to", "")
    if not (type(to) is str and len(to) <= FIELD_MAX):
        to = _text(to, "to", FIELD_MAX, message_id)
    extend = get("extend", "")
    if not (type(extend) is str and len(extend) <= EXTEND_MAX):
        extend = _text(extend, "extend", EXTEND_MAX, message_id)
    # One look at all of them: printable text, the usual case, holds no control character.
    if not f"{source}{update_time}{org_code}".isprintable():
        _refuse_control_characters((source, update_time, org_code), message_id)
    return Report(message_id, status, sequence, total, source, update_time, org_code, to, extend)


def _message_id(value: object) -> str:
    if value is None or value == "":
        raise RejectedError(Reason.MISSING_ID, "The report has no smsMsgId.")
    if type(value) is not str:
        raise RejectedError(Reason.BAD_ID, "The smsMsgId is not a string.")
    if len(value) > MESSAGE_ID_MAX:
        raise RejectedError(Reason.BAD_ID, f"The smsMsgId is longer than {MESSAGE_ID_MAX} characters.")
    if not value.isprintable() and _CONTROL.search(value):
        raise RejectedError(Reason.BAD_ID, "The smsMsgId holds a control character.")
    return value


def _decimal(value: int) -> str | None:
    """The text of an integer, None beyond 64 bits (orjson reads those as floats; other decoders do not)."""
    return str(value) if _INT64_MIN <= value <= _UINT64_MAX else None


def _status(value: object, message_id: str) -> str:
    if value is None or value == "":
        raise RejectedError(Reason.MISSING_STATUS, "The report has no status.", message_id)
    text = _decimal(value) if type(value) is int else value
    if type(text) is not str:
        raise RejectedError(Reason.BAD_STATUS, "The status is neither a string nor a 64-bit integer.", message_id)
    if len(text) > STATUS_MAX:
        raise RejectedError(Reason.BAD_STATUS, f"The status is longer than {STATUS_MAX} characters.", message_id)
    if _CONTROL.search(text):
        raise RejectedError(Reason.BAD_STATUS, "The status holds a control character.", message_id)
    return text


def _number(value: object, name: str, message_id: str) -> int | None:
    """A segment number: an integer or one or two ASCII digits, 1 to 99; None where it is absent."""
    if value is None or value == "":
        return None
    number = _NUMBERS.get(value) if type(value) is str else value
    if type(number) is not int or not 1 <= number <= NUMBER_MAX:
        raise RejectedError(Reason.BAD_SEQUENCE, f"The {name} is not a number from 1 to {NUMBER_MAX}.", message_id)
    return number


def _text(value: object, name: str, characters_max: int, message_id: str) -> str:
    if value is None:
        return ""
    text = _decimal(value) if type(value) is int else value
    if type(text) is not str:
        raise RejectedError(Reason.BAD_FIELD, f"The {name} is neither a string nor a 64-bit integer.", message_id)
    if len(text) > characters_max:
        raise RejectedError(Reason.BAD_FIELD, f"The {name} is longer than {characters_max} characters.", message_id)
    return text


def _refuse_control_characters(fields: tuple[str, str, str], message_id: str) -> None:
    for name, text in zip(("source", "updateTime", "orgCode"), fields, strict=True):
        if _CONTROL.search(text):
            raise RejectedError(Reason.BAD_FIELD, f"The {name} holds a control character.", message_id)
