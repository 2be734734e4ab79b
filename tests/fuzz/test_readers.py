"""The slow readers, which the product is held to, held to what is known; and the product to them, by Hypothesis."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.contract.push import Route
from tests.fuzz.judge import judge_split
from tests.fuzz.slow_http import REPORTS_MAX, End, read_wire
from tests.fuzz.slow_reading import read_batch, read_form
from tests.property.test_split_property import bodies
from tests.strategies import any_json

HEAD = b"POST /batchReport HTTP/1.1\r\nHost: a\r\n"


@given(any_json)
def test_the_slow_reader_reads_json(value: Any) -> None:
    """As the standard library writes it."""
    body = json.dumps({"statusReportList": [value]}).encode()

    (read,) = read_batch(body, REPORTS_MAX).values

    assert json.dumps(read) == json.dumps(value) or isinstance(value, float | int | list | dict)


@pytest.mark.parametrize(
    ("body", "taken"),
    [
        (b'{"statusReportList":[]}', True),
        (b' {"a":[{"statusReportList":1}],"statusReportList":[{},\n{"b":"\\ud83d\\ude00"}] }\r\n', True),
        (b'{"statusReportList":1,"statusReportList":[]}', True),
        (b'{"statusReportList":[],"statusReportList":1}', False),
        (b'{"statusReportList":[1,]}', False),
        (b'{"statusReportList":[],}', False),
        (b'{"statusReportList":[01]}', False),
        (b'{"statusReportList":["\\ud800"]}', False),
        (b'{"statusReportList":["\n"]}', False),
        (b'{"statusReportList":[NaN]}', False),
        (b'{"statusReportList":[]}{}', False),
        (b"\xef\xbb\xbf{}", False),
        (b'{"statusReportList":[' + b"[" * 62 + b"]" * 62 + b"]}", True),
        (b'{"statusReportList":[' + b"[" * 63 + b"]" * 63 + b"]}", False),
    ],
)
def test_the_slow_reader_knows_a_body(body: bytes, *, taken: bool) -> None:
    """What the contract takes, and nothing else."""
    assert read_batch(body, REPORTS_MAX).taken is taken


def test_the_slow_reader_knows_the_places_of_the_elements() -> None:
    """Of the last list, byte for byte, whatever stands around it."""
    body = b'{"statusReportList":[9],"statusReportList" : [ {"a":[1]} , "\\u00e9",[2] ],"x":{"statusReportList":[3]}}'

    assert read_batch(body, REPORTS_MAX).pieces == (b'{"a":[1]}', b'"\\u00e9"', b"[2]")


@pytest.mark.parametrize(
    ("data", "end", "requests"),
    [
        (HEAD + b"Content-Length: 2\r\n\r\n{}", End.WHOLE, 1),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n2;a=b\r\n{}\r\n0\r\nX: y\r\n\r\n", End.WHOLE, 1),
        (HEAD + b"Content-Length: 2\r\n\r\n{", End.BODY, 0),
        (HEAD + b"Connection: close\r\n\r\nx", End.BEYOND, 1),
        (HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}", End.UNCLEAR, 0),
        (HEAD + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}", End.UNCLEAR, 0),
        (HEAD + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", End.UNCLEAR, 0),
        (HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", End.UNCLEAR, 0),
        (HEAD + b"X: a\r\n b\r\n\r\n", End.UNCLEAR, 0),
        (HEAD + b"X: a\0\r\n\r\n", End.UNCLEAR, 0),
        (HEAD + b"X: a\n\r\n", End.UNCLEAR, 0),
        (b"POST /batchReport HTTP/2.0\r\nHost: a\r\n\r\n", End.UNCLEAR, 0),
        (b"POST /batchReport HTTP/1.1\r\n\r\n", End.UNCLEAR, 0),
        (HEAD + b"\r\n" + HEAD, End.HEAD, 1),
    ],
)
def test_the_strict_reader_stops_where_there_is_no_one_meaning(data: bytes, end: End, requests: int) -> None:
    """Each shape of request smuggling is one of these."""
    wire = read_wire(data)

    assert (wire.end, len(wire.requests)) == (end, requests)


@settings(max_examples=60)
@given(bodies() | st.binary(max_size=80))
def test_batches_are_divided_as_the_slow_reader_divides_them(body: bytes) -> None:
    """The same elements, byte for byte, and the same verdict on each."""
    assert judge_split(Route.BATCH, body, read_batch(body, REPORTS_MAX)) == []


PAIRS = st.lists(
    st.tuples(st.sampled_from(["smsMsgId", "status", "total", "sequence", "to", "x"]), st.text(max_size=4)), max_size=6
)


@given(PAIRS.map(lambda pairs: "&".join(f"{name}={value}" for name, value in pairs).encode(errors="replace")))
def test_forms_are_read_as_the_slow_reader_reads_them(body: bytes) -> None:
    """The same fields, and the same verdict."""
    assert judge_split(Route.SINGLE, body, read_form(body)) == []
