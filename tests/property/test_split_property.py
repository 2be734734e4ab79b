"""Splitting a body never loses, alters or invents a report, whatever JSON it is."""

import json
from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from ingest.contract.dead_letter import Unit
from ingest.contract.push import Push, Route, count_reports, read_element, split
from ingest.contract.report import RejectedError
from ingest.forward.parcel import unpack
from ingest.runtime.logfile import Frame
from ingest.spool.record import decode_push, encode_tag

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

    pieces = split(Route.BATCH, body)

    assert len(pieces) == len(elements) == count_reports(Route.BATCH, body, reports_max=10)
    assert [orjson.loads(piece.value) for piece in pieces] == elements
    for piece in pieces:
        assert piece.value in body
        alone = read_element(piece.value)
        assert alone.report == piece.report
        assert (alone.rejected and alone.rejected.reason) == (piece.rejected and piece.rejected.reason)


ANY = (
    st.binary(max_size=60) | bodies().flatmap(lambda body: st.integers(0, len(body)).map(lambda n: body[:n])) | bodies()
)


@given(ANY, st.integers(1, 10))
def test_any_bytes_are_published_as_they_were_answered(body: bytes, reports_max: int) -> None:
    """What the receiver took the forwarder splits; what it refused is one dead letter, with the receiver's reason."""
    for route in Route:
        refused = None
        try:
            reports = count_reports(route, body, reports_max=reports_max)
        except RejectedError as error:
            reports, refused = 1, error.reason
        kept = decode_push(Frame(1, encode_tag(Push(1, route, reports, body, refused), synced=0), body, 0, 0))
        assert kept is not None

        parcel = unpack(kept, now_ms=2)

        if refused is None:
            assert len(parcel.records) + len(parcel.letters) == reports
            assert {letter.unit for letter in parcel.letters} <= {Unit.ELEMENT}
        else:
            ((content, reason, unit),) = parcel.letters
            assert (parcel.records, content.value, reason, unit) == ([], body, refused, Unit.BODY)
