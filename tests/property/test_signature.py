"""Whatever is signed verifies, however it is spelled on the wire; whatever is changed of it does not."""

from dataclasses import replace
from typing import Any
from urllib.parse import unquote_to_bytes

from hypothesis import assume, given
from hypothesis import strategies as st

from ingest.receiver.signature import (
    QUERY_BYTES_MAX,
    NotAuthenticError,
    Reason,
    Received,
    canonical_path,
    canonical_queries,
    verify,
)
from tests.signer import ACCESS_KEY, DATE, DATE_S, SECRET_KEY, UNRESERVED, Signer

NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=12).map(lambda name: f"x-t-{name}")
VALUES = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x17F, exclude_characters="\x7f"), max_size=20)
TEXTS = st.text(max_size=10)


@st.composite
def signers(draw: st.DrawFn) -> Signer:
    """Any request, signed."""
    names = draw(st.lists(NAMES, unique=True, max_size=4))
    headers = [("host", draw(VALUES)), ("x-sdk-date", DATE), *((name, draw(VALUES)) for name in names)]
    return Signer(
        path="/" + draw(TEXTS),
        query=draw(st.lists(st.tuples(TEXTS, TEXTS), max_size=5)),
        headers=draw(st.permutations(headers)),
        body=draw(st.binary(max_size=200)),
        compares_encoded_names=draw(st.booleans()),
    )


def spelled(draw: st.DrawFn, text: str, bare: frozenset[int]) -> str:
    """A text in one of its percent-encodings; bytes outside `bare` must be encoded."""
    pieces = []
    for byte in text.encode():
        form = draw(st.sampled_from(["%{:02X}", "%{:02x}"]))
        pieces.append(chr(byte) if byte in bare and draw(st.booleans()) else form.format(byte))
    return "".join(pieces)


@st.composite
def arrivals(draw: st.DrawFn) -> tuple[Signer, Received]:
    """A signed request and one way in which it can come over the wire."""
    signer = draw(signers())
    in_path = UNRESERVED | frozenset(b"/+!$&'()*,;=:@")
    path = "/" + spelled(draw, signer.path[1:], in_path)
    in_query = UNRESERVED | frozenset(b"/?!$'()*,;:@")
    pairs = [f"{spelled(draw, name, in_query)}={spelled(draw, value, in_query)}" for name, value in signer.query]
    query = "&".join(draw(st.permutations(pairs)))
    unsigned: list[tuple[str, str]] = draw(st.lists(st.tuples(NAMES.map("un-{}".format), VALUES), max_size=3))
    plus: bool = draw(st.booleans())
    if plus:
        query = query.replace("%20", "+")
    assume(len(query) <= QUERY_BYTES_MAX)
    headers = [*signer.wire_headers(), *((name.encode(), value.encode()) for name, value in unsigned)]
    mixed = draw(st.permutations(headers))
    shouted = [(name.upper() if draw(st.booleans()) else name, value) for name, value in mixed]
    target = f"{path}?{query}" if query or draw(st.booleans()) else path
    return signer, Received(method=signer.method, target=target, headers=shouted, body=signer.body)


def verdict(request: Received) -> str:
    """The access key, or the reason."""
    try:
        return verify(request, {ACCESS_KEY: SECRET_KEY.encode()}.get, now_s=DATE_S, clock_skew_s=900)
    except NotAuthenticError as error:
        return error.reason


@given(arrivals())
def test_what_is_signed_verifies(arrival: tuple[Signer, Received]) -> None:
    """However path and query are encoded, and in whatever order parameters and headers come."""
    assert verdict(arrival[1]) == ACCESS_KEY


@st.composite
def changes(draw: st.DrawFn, signer: Signer) -> dict[str, Any]:
    """Another value for one part of a signed request."""
    name, _ = draw(st.sampled_from(signer.headers))
    value = f"{DATE[:13]}{draw(st.integers(0, 59)):02}Z" if name == "x-sdk-date" else draw(VALUES)
    others: dict[str, st.SearchStrategy[Any]] = {
        "method": st.sampled_from(["PUT", "GET", "post"]),
        "path": TEXTS.map(lambda text: f"/{text}"),
        "query": st.lists(st.tuples(TEXTS, TEXTS), max_size=5),
        "headers": st.just([(each, value if each == name else said) for each, said in signer.headers]),
        "body": st.binary(max_size=200),
        "secret_key": TEXTS,
    }
    part = draw(st.sampled_from(sorted(others)))
    return {part: draw(others[part])}


@given(st.data(), arrivals())
def test_what_is_changed_does_not(data: st.DataObject, arrival: tuple[Signer, Received]) -> None:
    """The signature of one request is that of no other: any change of any signed part is noticed."""
    signer, request = arrival
    forged = signer.but(**data.draw(changes(signer)))
    assume(forged.signature() != signer.signature())
    headers = [header for header in request.headers if header[0].lower() != b"authorization"]
    headers.append((b"Authorization", forged.authorization().encode()))

    assert verdict(replace(request, headers=headers)) == Reason.WRONG


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_different_bytes_have_different_canonical_forms(first: bytes, second: bytes) -> None:
    """Nothing is replaced by a stand-in on the way, not even bytes that are no UTF-8."""
    left, right = (f"/{part.decode(errors='surrogateescape')}".replace("?", "") for part in (first, second))
    same = unquote_to_bytes(left.encode(errors="surrogateescape")).rstrip(b"/") == unquote_to_bytes(
        right.encode(errors="surrogateescape")
    ).rstrip(b"/")

    assert same or canonical_path(left) != canonical_path(right)


@given(st.text(max_size=300), st.lists(st.tuples(st.binary(max_size=30), st.binary(max_size=80)), max_size=8))
def test_anything_at_all_gets_a_reason(target: str, headers: list[tuple[bytes, bytes]]) -> None:
    """Nothing a sender can send makes the verifier fail."""
    known = [(b"Authorization", Signer().authorization().encode()), *Signer().wire_headers()]
    for more in ([], known[:1], known[1:]):
        request = Received(method="POST", target=target, headers=[*more, *headers], body=b"")
        assert verdict(request) in set(Reason)


@given(
    st.text("SDK-HMAC-SHA256 Access=SignedHeaders=Signature=,;hostx-sdk-date0123456789abcdef\u0130\x00", max_size=200),
    st.text("0123456789TZ-: ", max_size=18),
)
def test_anything_like_an_authorization_gets_a_reason(said: str, date: str) -> None:
    """Nor one that looks nearly right, at any date."""
    headers = [(b"Host", b"a"), (b"X-Sdk-Date", date.encode()), (b"Authorization", said.encode())]
    request = Received(method="POST", target="/batchReport", headers=headers, body=b"")
    dated = Signer(headers=[("host", "a"), ("x-sdk-date", date)])
    signed = Received(method="POST", target="/batchReport", headers=dated.wire_headers(), body=dated.body)

    assert verdict(request) in set(Reason)
    assert verdict(signed) in (ACCESS_KEY, Reason.DATE_MALFORMED, Reason.STALE)


@given(st.text(max_size=300))
def test_any_query_has_a_canonical_form(query: str) -> None:
    """Of plain ASCII, and the same for what is canonical already."""
    for form in canonical_queries(query):
        assert form.isascii()
        assert form in canonical_queries(form.decode())
