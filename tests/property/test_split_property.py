"""Splitting a body never loses, alters or invents a report, whatever JSON it is."""

import json
from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from ingest.contract.push import Route, count_reports, read_element, split
from ingest.contract.report import RejectedError

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
NAMES = st.sampled_from(["smsMsgId", "status", "sequence", "total", "source", "updateTime", "orgCode", "to", "extend"])
ELEMENTS = VALUES | st.dictionaries(NAMES | TEXTS, VALUES, max_size=9)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """A batch body in any of the ways in which JSON can be written, other and repeated members included."""
    written = [
        json.dumps(
            draw(ELEMENTS),
            ensure_ascii=draw(st.booleans()),
            indent=draw(st.sampled_from([None, 0, 2])),
            separators=draw(st.sampled_from([(",", ":"), (" , ", "\t:\r\n")])),
        )
        for _ in range(draw(st.integers(0, 6)))
    ]
    before = draw(st.lists(st.tuples(TEXTS, VALUES), max_size=3))
    repeated = draw(st.sampled_from(["", '"statusReportList":1,', '"statusReportList":[[{}],"x"],']))
    members = "".join(
        f"{json.dumps(name)}:{json.dumps(value)}," for name, value in before if name != "statusReportList"
    )
    return ("{" + members + repeated + '"statusReportList":[' + ",".join(written) + "]}").encode()


@given(bodies())
def test_the_pieces_are_what_the_body_says(body: bytes) -> None:
    """As many as counted, each decoding to its element, judged alone as it is judged in the body."""
    elements: list[Any] = orjson.loads(body)["statusReportList"]

    pieces = split(Route.BATCH, body, reports_max=10)

    assert len(pieces) == len(elements) == count_reports(Route.BATCH, body, reports_max=10)
    assert [orjson.loads(piece.value) for piece in pieces] == elements
    for piece in pieces:
        assert piece.value in body
        alone = read_element(piece.value)
        assert alone.report == piece.report
        assert (alone.rejected and alone.rejected.reason) == (piece.rejected and piece.rejected.reason)


@given(st.binary(max_size=60) | bodies().flatmap(lambda body: st.integers(0, len(body)).map(lambda n: body[:n])))
def test_any_bytes_are_counted_or_refused_alike(body: bytes) -> None:
    """What the receiver accepted the forwarder can split, and what it refused the forwarder refuses for one reason."""
    for route in Route:
        try:
            counted: int | str = count_reports(route, body, reports_max=10)
        except RejectedError as error:
            counted = error.reason
        try:
            pieces: int | str = len(split(route, body, reports_max=10))
        except RejectedError as error:
            pieces = error.reason
        assert counted == pieces
