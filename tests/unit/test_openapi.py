"""The OpenAPI description says what the receiver does."""

from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import orjson
import pytest
from hypothesis import given
from jsonschema_rs import Draft202012Validator

from ingest.__main__ import cli
from ingest.contract.push import Route, split
from ingest.contract.report import RejectedError, read_report
from ingest.receiver.openapi import Described, describe
from tests.oracle import Raw
from tests.strategies import doubtful_reports, reports

KEPT = Path(__file__).parents[2] / "docs" / "openapi.json"
DEFAULTS = Described(batch_path="/batchReport", single_path="/report", body_max_bytes=1_048_576, reports_max=1000)
DESCRIPTION = describe(DEFAULTS)


def validator(name: str) -> Draft202012Validator:
    """Of one schema of the description."""
    return Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": DESCRIPTION["components"]})


REPORT, FORM = validator("StatusReport"), validator("StatusReportForm")


def why_not(value: Any) -> str:
    """Why a value is no usable report, empty if it is one."""
    try:
        read_report(value)
    except RejectedError as error:
        return error.detail
    return ""


def test_the_kept_description_is_the_printed_one(capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m ingest openapi > docs/openapi.json` after a change."""
    assert cli.run(["openapi"], {}) == 0

    assert capsys.readouterr().out == KEPT.read_text()


def test_it_describes_the_configured_port(capsys: pytest.CaptureFixture[str]) -> None:
    """Paths and sizes."""
    cli.run(["openapi"], {"DLR_BATCH_PATH": "/a", "DLR_SINGLE_PATH": "/b", "DLR_REPORTS_MAX": "7"})

    said = orjson.loads(capsys.readouterr().out)
    assert list(said["paths"]) == ["/a", "/b"]
    assert said["components"]["schemas"]["Batch"]["properties"]["statusReportList"]["maxItems"] == 7


def test_the_answers_are_those_of_the_contract() -> None:
    """Of section 3, each once."""
    statuses = ["200", "400", "401", "403", "404", "405", "408", "413", "415", "503"]

    assert [list(operation["post"]["responses"]) for operation in DESCRIPTION["paths"].values()] == [statuses] * 2


@given(reports(greatest=99))
def test_every_usable_report_fits_the_schema(report: Raw) -> None:
    """A sender that goes by the description is not told less than is taken."""
    read_report(report)

    assert REPORT.is_valid(report)


@given(doubtful_reports())
def test_what_fits_the_schema_is_a_usable_report(value: Any) -> None:
    """But for what a schema cannot say: that the sequence is not beyond the total, and what decoding brings."""
    if not REPORT.is_valid(value) or "%" in str(value.get("updateTime")):
        return
    if any(isinstance(each, int | float) for each in value.values()):
        return  # to a schema 1.0 is an integer, and so is one beyond 64 bits
    assert why_not(value) in {"", "The sequence is greater than the total."}


@given(reports(greatest=99))
def test_a_form_that_fits_the_schema_is_taken(report: Raw) -> None:
    """The same report with texts alone."""
    form = {name: str(value) for name, value in report.items() if value is not None}

    if FORM.is_valid(form):
        assert len(split(Route.SINGLE, urlencode(form).encode())) == 1
