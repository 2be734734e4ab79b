"""The OpenAPI description of the callback port, made of what the receiver itself goes by.

Bounds come from `ingest.contract.report`, answers from `ingest.receiver.statuses`, paths and sizes from the settings.
It describes what a sender should send: a usable report (contract.md section 5). What is answered 200 is more than that,
since unusable elements of a batch are taken, too, and become dead letters.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from ingest.contract.push import DEPTH_MAX
from ingest.contract.report import EXTEND_MAX, FIELD_MAX, MESSAGE_ID_MAX, NUMBER_MAX, STATUS_MAX
from ingest.contract.version import VERSION
from ingest.receiver import statuses
from ingest.receiver.parse import FORM, JSON
from ingest.receiver.statuses import Answer

OPENAPI: Final = "3.1.0"
_REF: Final = "#/components/schemas/{name}"
_PRINTED: Final = r"^[^\x00-\x1f\x7f]*$"
_DIGITS: Final = "^(0[1-9]|[1-9][0-9]?)?$"

_Number = Annotated[int, Meta(ge=1, le=NUMBER_MAX)] | Annotated[str, Meta(pattern=_DIGITS)] | None
_Printed = Annotated[str, Meta(max_length=FIELD_MAX, pattern=_PRINTED)]
_Text = Annotated[str, Meta(max_length=FIELD_MAX)]
_Extend = Annotated[str, Meta(max_length=EXTEND_MAX)]
_MessageId = Annotated[str, Meta(min_length=1, max_length=MESSAGE_ID_MAX, pattern=_PRINTED)]
_Status = Annotated[str, Meta(min_length=1, max_length=STATUS_MAX, pattern=_PRINTED)]
_Digits = Annotated[str, Meta(pattern=_DIGITS)]


class StatusReport(msgspec.Struct, rename="camel"):
    """One report of a batch; null and the empty text count as absent, other members are passed on untouched."""

    sms_msg_id: _MessageId
    status: _Status | int
    total: _Number = None
    sequence: _Number = None
    source: _Printed | int | None = None
    update_time: _Printed | int | None = None
    org_code: _Printed | int | None = None
    to: _Text | int | None = None
    extend: _Extend | int | None = None


class StatusReportForm(msgspec.Struct, rename="camel"):
    """The one report of a single callback."""

    sms_msg_id: _MessageId
    status: _Status
    total: _Digits = ""
    sequence: _Digits = ""
    source: _Printed = ""
    update_time: _Printed = ""
    org_code: _Printed = ""
    to: _Text = ""
    extend: _Extend = ""


class Batch(msgspec.Struct):
    """The body of a batch callback; other members are ignored."""

    statusReportList: list[StatusReport]  # noqa: N815 - the name on the wire


class Success(msgspec.Struct):
    """Everything in the push is durable."""

    returnCode: Literal[0]  # noqa: N815 - the name on the wire
    returnCodeDesc: Literal["Success"]  # noqa: N815


class Refusal(msgspec.Struct):
    """Why a push was not taken: the HTTP status, and one sentence."""

    returnCode: int  # noqa: N815 - the name on the wire
    returnCodeDesc: str  # noqa: N815


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """What of the settings stands in the description."""

    batch_path: str
    single_path: str
    body_max_bytes: int
    reports_max: int


def describe(settings: Described) -> dict[str, Any]:
    """The description as JSON values."""
    (batch, form, success, refusal), components = msgspec.json.schema_components(
        (Batch, StatusReportForm, Success, Refusal), ref_template=_REF
    )
    components = {name: _tidy(schema) for name, schema in sorted(components.items())}
    components["Batch"]["properties"]["statusReportList"]["maxItems"] = settings.reports_max
    answers = _answers(success, refusal)
    return {
        "openapi": OPENAPI,
        "info": {
            "title": "dlrflow callback port",
            "version": VERSION,
            "description": (
                "Takes the delivery receipts of an SMS platform. A push is answered 200 once everything in it is "
                f"durable. Bodies: at most {settings.body_max_bytes} bytes, nested at most {DEPTH_MAX} deep, not "
                "compressed. Elements of a batch that are no usable report are taken and become dead letters."
            ),
        },
        "paths": {
            settings.batch_path: _operation("batch", "Several reports", JSON, batch, answers),
            settings.single_path: _operation("single", "One report", FORM, form, answers),
        },
        "components": {
            "schemas": components,
            "securitySchemes": {
                "signature": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "Authorization",
                    "description": "SDK-HMAC-SHA256 over method, path, query, signed headers and body, with "
                    "X-Sdk-Date; asked for where keys are configured.",
                }
            },
        },
    }


def _operation(
    name: str, summary: str, media_type: str, schema: Mapping[str, Any], answers: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "post": {
            "operationId": name,
            "summary": summary,
            "security": [{}, {"signature": []}],
            "requestBody": {"required": True, "content": {media_type: {"schema": schema}}},
            "responses": answers,
        }
    }


def _answers(success: Mapping[str, Any], refusal: Mapping[str, Any]) -> dict[str, Any]:
    """One for each status that the receiver can answer, but for failures of its own."""
    known = [answer for answer in vars(statuses).values() if isinstance(answer, Answer)]
    known += [statuses.bad_request("The body is not JSON."), statuses.come_back(1)]
    by_status: dict[int, Answer] = {}
    for answer in known:
        by_status[int(answer.status)] = answer
    return {
        str(status): _answer(by_status[status], success if status == HTTPStatus.OK else refusal)
        for status in sorted(by_status)
        if status != HTTPStatus.INTERNAL_SERVER_ERROR
    }


def _answer(answer: Answer, schema: Mapping[str, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "description": answer.status.phrase,
        "content": {JSON: {"schema": schema}},
    }
    if answer.headers:
        described["headers"] = {name: {"required": True, "schema": {"type": "string"}} for name, _ in answer.headers}
    return described


def _tidy(schema: dict[str, Any]) -> dict[str, Any]:
    """Without the defaults, which are how absence is written here and nothing that a receiver fills in."""
    for described in schema.get("properties", {}).values():
        described.pop("default", None)
    return schema
