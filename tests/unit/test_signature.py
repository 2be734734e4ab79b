"""The platform's signature: the vectors of docs/protocol.md section 4, and everything that must be refused."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from ingest.contract.setting_types import EXTERNAL_HOSTS_MAX
from ingest.receiver import signature
from ingest.receiver.signature import (
    QUERY_BYTES_MAX,
    QUERY_PAIRS_MAX,
    SIGNED_BYTES_MAX,
    SIGNED_HEADERS_MAX,
    NotAuthenticError,
    Proxy,
    Reason,
    Received,
    seconds_of,
    verify,
)
from tests.signer import ACCESS_KEY, DATE_S, SECRET_KEY, Signer

EXAMPLE = (Path(__file__).parents[1] / "data" / "batch_example.json").read_bytes()
KEYS = {ACCESS_KEY: SECRET_KEY.encode(), "QTWAOYTTINDUT2QVKYUC": b"MFyfvK41ba2giqM7Uio6PznpdUKGpownRZlmVmHc"}
BODY = b'{"statusReportList":[]}'


def received(signer: Signer = Signer(), target: str = "/batchReport", **changes: Any) -> Received:  # noqa: B008 - frozen
    """A signed request as it arrives, with parts changed on the way."""
    parts = {"method": signer.method, "target": target, "headers": signer.wire_headers(), "body": signer.body}
    return Received(**{**parts, **changes})


def judged(request: Received, *, now_s: float = DATE_S, skew_s: float = 900, proxy: Proxy | None = None) -> str:
    """The access key that signed it, or the reason to refuse it."""
    try:
        return verify(request, KEYS.get, now_s=now_s, clock_skew_s=skew_s, proxy=proxy or Proxy())
    except NotAuthenticError as error:
        return error.reason


def with_authorization(*values: bytes, signer: Signer = Signer()) -> Received:  # noqa: B008 - frozen
    """A request with other `Authorization` headers."""
    headers = [header for header in signer.wire_headers() if header[0] != b"Authorization"]
    return received(signer, headers=headers + [(b"authorization", value) for value in values])


def vector(method: str, target: str, headers: str, body: bytes, *, access_key: str, signed: str) -> Received:
    """A published vector as a request: `name: value` lines, all signed."""
    pairs = [tuple(line.strip().split(": ", 1)) for line in headers.strip().splitlines()]
    names = ";".join(name for name, _ in pairs)
    pairs.append(("Authorization", f"SDK-HMAC-SHA256 Access={access_key}, SignedHeaders={names}, Signature={signed}"))
    return Received(
        method=method, target=target, headers=[(name.encode(), value.encode()) for name, value in pairs], body=body
    )


V1 = vector(
    "GET",
    "/v1/77b6a44cba5143ab91d13ab9a8ff44fd/vpcs?limit=2&marker=13551d6b-755d-4757-b956-536f674975c0",
    "content-type: application/json\nhost: service.region.example.com\nx-sdk-date: 20191115T033655Z",
    b"",
    access_key="QTWAOYTTINDUT2QVKYUC",
    signed="7be6668032f70418fcc22abc52071e57aff61b84a1d2381bb430d6870f4f6ebe",
)
V2 = vector(
    "POST",
    "/batchReport",
    """connection: close
    content-length: 331
    content-type: application/JSON;charset=UTF-8
    host: 205.145.111.168:9330
    x-sdk-date: 20241212T070653Z""",
    EXAMPLE,
    access_key=ACCESS_KEY,
    signed="c65b4ed12550e6b21c0a88e8d7b048a55028a6a7b684c44f95ff5784bab95e82",
)
V6_SIGNATURE = "a6a18369600570c83abcfe51376935b385125e4c4147d1f324e3f4013e4f2a76"
V6 = vector(
    "POST",
    "/huawei/batch",
    """content-type: application/json
    host: dlr.example.com
    x-sdk-content-sha256: UNSIGNED-PAYLOAD
    x-sdk-date: 20250102T030405Z""",
    EXAMPLE,
    access_key=ACCESS_KEY,
    signed=V6_SIGNATURE,
)


def test_the_vendors_vector_verifies() -> None:
    """V1, with its query."""
    assert judged(V1, now_s=seconds_of(b"20191115T033655Z") or 0) == "QTWAOYTTINDUT2QVKYUC"


def test_the_platforms_example_verifies() -> None:
    """V2; and the signature that the platform's page prints for it does not."""
    placeholder = [
        (name, value.replace(b"c65b4ed1", b"765a365f") if name == b"Authorization" else value)
        for name, value in V2.headers
    ]

    assert judged(V2) == ACCESS_KEY
    assert judged(Received(method="POST", target="/batchReport", headers=placeholder, body=EXAMPLE)) == Reason.WRONG


def test_an_unsigned_payload_is_refused_though_the_signature_is_right() -> None:
    """V6: it says that the body is not signed; an independent signer comes to the same signature."""
    headers = [(name.decode(), value.decode()) for name, value in V6.headers if name != b"Authorization"]
    signer = Signer(path="/huawei/batch", headers=headers, body=EXAMPLE, payload_hash="UNSIGNED-PAYLOAD")

    assert signer.signature() == V6_SIGNATURE
    assert judged(V6, now_s=seconds_of(b"20250102T030405Z") or 0) == Reason.UNSIGNED_PAYLOAD


@pytest.mark.parametrize("after_comma", ["", " "])
def test_a_space_after_commas_is_optional(after_comma: str) -> None:
    """Both forms come."""
    signer = Signer()
    assert judged(with_authorization(signer.authorization(after_comma).encode())) == ACCESS_KEY


def test_names_of_headers_compare_without_case_and_values_without_outer_blanks() -> None:
    """As received, whatever a proxy made of the names."""
    signer = Signer()
    shouted = [(name.upper(), b" \t" + value + b"  ") for name, value in signer.wire_headers()]
    listed = signer.authorization().replace("content-type;host", "Content-Type;HOST").encode()

    assert judged(received(headers=shouted)) == ACCESS_KEY
    assert judged(with_authorization(listed)) == ACCESS_KEY


def test_headers_that_are_not_signed_do_not_count() -> None:
    """The platform's internal ones, repeats of them, and those of proxies."""
    more = [(b"Pooltype", b"x"), (b"UserTrace", b"1"), (b"UserTrace", b"2"), (b"X-Forwarded-For", b"10.0.0.1")]
    assert judged(received(headers=[*more, *Signer().wire_headers()])) == ACCESS_KEY


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ((), Reason.MISSING),
        ((b"",), Reason.SCHEME),
        ((b"Basic dTpw",), Reason.SCHEME),
        ((b"SDK-HMAC-SHA512 Access=a, SignedHeaders=host;x-sdk-date, Signature=" + b"0" * 128,), Reason.SCHEME),
        ((b"sdk-hmac-sha256 Access=a, SignedHeaders=host;x-sdk-date, Signature=" + b"0" * 64,), Reason.SCHEME),
        ((b"SDK-HMAC-SHA256",), Reason.MALFORMED),
        ((b"SDK-HMAC-SHA256 Access=a, SignedHeaders=host;x-sdk-date",), Reason.MALFORMED),
        ((b"SDK-HMAC-SHA256 Access=, SignedHeaders=host;x-sdk-date, Signature=" + b"0" * 64,), Reason.MALFORMED),
        ((b"SDK-HMAC-SHA256 Access=a, SignedHeaders=, Signature=" + b"0" * 64,), Reason.MALFORMED),
        ((b"SDK-HMAC-SHA256 Access=a, SignedHeaders=host;;x-sdk-date, Signature=" + b"0" * 64,), Reason.MALFORMED),
        ((b"SDK-HMAC-SHA256 Access=a, SignedHeaders=host;host;x-sdk-date, Signature=" + b"0" * 64,), Reason.MALFORMED),
        ((b"SDK-HMAC-SHA256 Access=a, SignedHeaders=host;x-sdk-date, Signature=" + b"0" * 63,), Reason.MALFORMED),
        ((b"SDK-HMAC-SHA256 Access=a, SignedHeaders=host;x-sdk-date, Signature=" + b"A" * 64,), Reason.MALFORMED),
        ((b"SDK-HMAC-SHA256 Access=a,  SignedHeaders=host;x-sdk-date, Signature=" + b"0" * 64,), Reason.MALFORMED),
        ((b"SDK-HMAC-SHA256 Access=\xff, SignedHeaders=host;x-sdk-date, Signature=" + b"0" * 64,), Reason.MALFORMED),
        ((b"SDK-HMAC-SHA256 Access=a, SignedHeaders=host, Signature=" + b"0" * 64,), Reason.NOT_SIGNED),
        ((b"SDK-HMAC-SHA256 Access=a, SignedHeaders=x-sdk-date, Signature=" + b"0" * 64,), Reason.NOT_SIGNED),
        (
            (b"SDK-HMAC-SHA256 Access=nobody, SignedHeaders=host;x-sdk-date, Signature=" + b"0" * 64,),
            Reason.UNKNOWN_KEY,
        ),
    ],
)
def test_other_authorizations_are_refused(values: tuple[bytes, ...], reason: Reason) -> None:
    """Each with its reason."""
    assert judged(with_authorization(*values)) == reason


def test_two_authorizations_are_refused() -> None:
    """Even if both are right."""
    right = Signer().authorization().encode()
    assert judged(with_authorization(right, right)) == Reason.MALFORMED


@pytest.mark.parametrize("left_out", ["host", "x-sdk-date"])
def test_host_and_date_must_be_signed(left_out: str) -> None:
    """A right signature over the rest is not enough."""
    signer = Signer()
    short = signer.but(headers=[header for header in signer.headers if header[0] != left_out])
    rest = [header for header in signer.wire_headers() if header[0] == left_out.encode()]

    assert judged(received(short, headers=[*rest, *short.wire_headers()])) == Reason.NOT_SIGNED


@pytest.mark.parametrize("name", [b"content-type", b"host", b"x-sdk-date"])
def test_a_signed_header_that_is_absent_is_refused(name: bytes) -> None:
    """It is not taken for empty."""
    headers = [header for header in Signer().wire_headers() if header[0] != name]
    assert judged(received(headers=headers)) == Reason.HEADER_MISSING


@pytest.mark.parametrize("name", [b"content-type", b"host", b"x-sdk-date"])
@pytest.mark.parametrize("first", [True, False])
def test_a_signed_header_that_is_there_twice_is_refused(name: bytes, first: bool) -> None:  # noqa: FBT001 - a case
    """Whichever of the two is the signed one, and though they are equal."""
    headers = Signer().wire_headers()
    [value] = [value for each, value in headers if each == name]
    for other in (b"other", value):
        repeat = [(name.title(), other)]
        request = received(headers=repeat + headers if first else headers + repeat)
        assert judged(request) == Reason.HEADER_REPEATED


def test_an_empty_signed_header_is_none_that_is_absent() -> None:
    """Signed as empty and there as empty."""
    signer = Signer(headers=[*Signer().headers, ("x-empty", "")])
    assert judged(received(signer)) == ACCESS_KEY


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize(
    ("value", "verdict"),
    [
        (hashlib.sha256(BODY).hexdigest(), ACCESS_KEY),
        (hashlib.sha256(b"other").hexdigest(), Reason.BODY_HASH),
        ("", Reason.BODY_HASH),
        ("UNSIGNED-PAYLOAD", Reason.UNSIGNED_PAYLOAD),
        ("unsigned-payload", Reason.UNSIGNED_PAYLOAD),
    ],
)
def test_a_stated_hash_counts_never_instead_of_the_body(value: str, verdict: str, signed: bool) -> None:  # noqa: FBT001
    """The signature is right over the body, so only what the header says is wrong."""
    header = ("x-sdk-content-sha256", value)
    signer = Signer(headers=[*Signer().headers, header]) if signed else Signer()
    headers = signer.wire_headers() if signed else [*signer.wire_headers(), (header[0].encode(), header[1].encode())]

    assert judged(received(signer, headers=headers)) == verdict


@pytest.mark.parametrize("signed", [True, False])
def test_another_body_is_refused_whatever_the_stated_hash_says(signed: bool) -> None:  # noqa: FBT001 - a case
    """The hole of the vendor's verifier: it believes the header."""
    header = ("x-sdk-content-sha256", hashlib.sha256(BODY).hexdigest())
    signer = Signer(headers=[*Signer().headers, header]) if signed else Signer()
    headers = signer.wire_headers() if signed else [*signer.wire_headers(), (header[0].encode(), header[1].encode())]

    assert judged(received(signer, headers=headers, body=BODY + b" ")) == Reason.BODY_HASH
    assert judged(received(Signer(), body=BODY + b" ")) == Reason.WRONG


@pytest.mark.parametrize(
    "date",
    [
        "",
        "2024-12-12T07:06:53Z",
        "20241212T070653",
        "20241212T070653z",
        "20241212t070653Z",
        "20241312T070653Z",
        "20241232T070653Z",
        "20240230T070653Z",
        "20241212T240000Z",
        "20241212T076053Z",
        "20241212T070660Z",
        "00000000T000000Z",
        "20241212T070653ZZ",
        "\u0662\u0660\u0662\u06641212T070653Z",
    ],
)
def test_a_date_that_is_none_is_refused(date: str) -> None:
    """Signed or not; the form is fixed."""
    headers = [("host", "dlr.example.com"), ("x-sdk-date", date)]
    assert judged(received(Signer(headers=headers))) == Reason.DATE_MALFORMED


@pytest.mark.parametrize(
    ("off_s", "verdict"),
    [(-901, Reason.STALE), (-900, ACCESS_KEY), (0, ACCESS_KEY), (900, ACCESS_KEY), (900.1, Reason.STALE)],
)
def test_a_date_may_be_off_by_fifteen_minutes(off_s: float, verdict: str) -> None:
    """Either way."""
    assert judged(received(), now_s=DATE_S + off_s) == verdict


def test_how_far_a_date_may_be_off_is_a_setting() -> None:
    """Shorter or longer than the default."""
    assert judged(received(), now_s=DATE_S + 61, skew_s=60) == Reason.STALE
    assert judged(received(), now_s=DATE_S + 3600, skew_s=3600) == ACCESS_KEY


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/batchReport", "http://dlr.example.com/batchReport"),
        ("/batchReport/", "/batchReport"),
        ("/a b/ü", "/a%20b/%c3%BC"),
        ("/a b/ü", "/a%20b/\udcc3\udcbc"),
        ("/a/b", "/a%2Fb"),
        ("/../a/./b//c", "/../a/./b//c"),
        ("/100%", "/100%"),
        ("/a+b", "/a+b"),
    ],
)
def test_the_path_is_decoded_once_and_encoded_anew(path: str, target: str) -> None:
    """Whatever the sender encoded of it, dot segments as they are."""
    assert judged(received(Signer(path=path), target)) == ACCESS_KEY


def test_the_path_is_not_decoded_twice() -> None:
    """`%2541` is `%41`, not `A`."""
    assert judged(received(Signer(path="/%41"), "/%2541")) == ACCESS_KEY
    assert judged(received(Signer(path="/A"), "/%2541")) == Reason.WRONG


@pytest.mark.parametrize(
    ("query", "target"),
    [
        ([("b", "2"), ("a", "1")], "/batchReport?b=2&a=1"),
        ([("a", ""), ("b", "")], "/batchReport?b&a="),
        ([("a", "2"), ("a", "10"), ("a", "")], "/batchReport?a=2&a=10&a="),
        ([("a b", "c d")], "/batchReport?a+b=c%20d"),
        ([("a", "1=2")], "/batchReport?a=1=2"),
        ([("q", "?/é")], "/batchReport?q=?%2f%C3%a9"),
        ([("a;b", "1")], "/batchReport?a;b=1"),
        ([("a", "1")], "/batchReport?&a=1&&"),
        ([], "/batchReport?"),
    ],
)
def test_the_query_is_decoded_sorted_and_encoded_anew(query: list[tuple[str, str]], target: str) -> None:
    """By name, then by encoded value."""
    assert judged(received(Signer(query=query), target)) == ACCESS_KEY


@pytest.mark.parametrize("compares_encoded_names", [True, False])
def test_both_ways_to_compare_names_are_right(compares_encoded_names: bool) -> None:  # noqa: FBT001 - a case
    """Signers differ in it: `{` stands behind `z`, but its encoded form before it."""
    signer = Signer(query=[("{", "1"), ("z", "2")], compares_encoded_names=compares_encoded_names)
    assert judged(received(signer, "/batchReport?{=1&z=2")) == ACCESS_KEY


def test_what_a_proxy_changed_is_tried() -> None:
    """Host, prefix and connection, each alone and all at once, beside what was received."""
    signed = [("connection", "close"), ("content-length", "23"), *Signer().headers]
    signer = Signer(path="/sms/batchReport", headers=signed)
    replaced = {b"host": b"backend:8080", b"connection": b"keep-alive"}
    headers = [(name, replaced.get(name, value)) for name, value in signer.wire_headers()]
    proxy = Proxy(
        hosts=("other.example.com", "dlr.example.com"), path_prefix="/sms", connection_values=("keep-alive", "close")
    )

    assert judged(received(signer, headers=headers)) == Reason.WRONG
    assert judged(received(signer, headers=headers), proxy=proxy) == ACCESS_KEY
    assert judged(received(), proxy=proxy) == ACCESS_KEY
    for less in (
        Proxy(hosts=("dlr.example.com",), path_prefix="/sms"),
        Proxy(hosts=("dlr.example.com",), connection_values=("close",)),
        Proxy(path_prefix="/sms", connection_values=("close",)),
    ):
        assert judged(received(signer, headers=headers), proxy=less) == Reason.WRONG


def test_what_a_proxy_took_away_is_tried() -> None:
    """Connection, and the length of a body that it sends chunked, but nothing that is not configured."""
    signer = Signer(headers=[("connection", "close"), ("content-length", "23"), *Signer().headers])
    bare = [header for header in signer.wire_headers() if header[0] not in (b"connection", b"content-length")]
    request = received(signer, headers=bare)

    assert judged(request, proxy=Proxy(connection_values=("close",))) == ACCESS_KEY
    assert judged(request) == Reason.HEADER_MISSING
    assert judged(request, proxy=Proxy(hosts=("dlr.example.com",))) == Reason.HEADER_MISSING
    without_length = [header for header in signer.wire_headers() if header[0] != b"content-length"]
    assert judged(received(signer, headers=without_length)) == Reason.HEADER_MISSING
    assert judged(received(signer, headers=without_length), proxy=Proxy(path_prefix="/sms")) == ACCESS_KEY


def test_a_repeated_header_is_refused_behind_a_proxy_too() -> None:
    """What is tried stands for one value, not for one of two."""
    signer = Signer(headers=[("connection", "close"), *Signer().headers])
    proxy = Proxy(hosts=("dlr.example.com",), connection_values=("close",))
    for name in (b"Connection", b"Host"):
        headers = [(name, b"x"), *signer.wire_headers()]
        assert judged(received(signer, headers=headers), proxy=proxy) == Reason.HEADER_REPEATED


def test_more_than_any_push_has_is_refused_before_it_costs_anything() -> None:
    """Signed headers, parameters of the query, bytes of both and of Authorization."""
    signed = sum(len(name) + len(value) for name, value in Signer().headers)
    fitting = SIGNED_BYTES_MAX - signed - len("x")
    many = [(f"x-{number}", "1") for number in range(SIGNED_HEADERS_MAX - 1)]
    pairs = "&".join(f"a{number}=1" for number in range(QUERY_PAIRS_MAX + 1))
    long = b"SDK-HMAC-SHA256 Access=a, SignedHeaders=" + b"h" * 5000

    assert judged(received(Signer(headers=[*Signer().headers, *many]))) == Reason.TOO_MUCH
    assert judged(received(target=f"/batchReport?{pairs}")) == Reason.TOO_MUCH
    assert judged(with_authorization(long)) == Reason.TOO_MUCH
    for size, verdict in ((fitting, ACCESS_KEY), (fitting + 1, Reason.TOO_MUCH)):
        assert judged(received(Signer(headers=[*Signer().headers, ("x", "v" * size)]))) == verdict
    for size, verdict in ((QUERY_BYTES_MAX, ACCESS_KEY), (QUERY_BYTES_MAX + 1, Reason.TOO_MUCH)):
        value = "v" * (size - len("a="))
        assert judged(received(Signer(query=[("a", value)]), target=f"/batchReport?a={value}")) == verdict


def test_the_work_behind_a_proxy_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that one anonymous request can have hashed: 216 candidates of 6 KB, a millisecond or two."""
    hashed: list[int] = []
    really = signature.text_to_sign

    def counted(date: bytes, canonical: bytes) -> bytes:
        hashed.append(len(canonical))
        return really(date, canonical)

    monkeypatch.setattr(signature, "text_to_sign", counted)
    proxy = Proxy(
        hosts=tuple(f"{number}.example.com" for number in range(EXTERNAL_HOSTS_MAX)),
        path_prefix="/sms",
        connection_values=("close", "keep-alive"),
    )
    odd = [("connection", "odd"), ("content-length", "1"), *Signer().headers]
    most = SIGNED_BYTES_MAX - sum(len(name) + len(value) for name, value in odd) - len("x")
    query = "%80=&~=&a="
    query += "\udcff" * (QUERY_BYTES_MAX - len(query))
    request = received(Signer(headers=[*odd, ("x", "v" * most)]), target=f"/batchReport?{query}")

    assert judged(request, proxy=proxy) == Reason.WRONG
    assert len(hashed) == (EXTERNAL_HOSTS_MAX + 1) * 3 * 2 * 2 * 2
    assert max(hashed) < 3 * QUERY_BYTES_MAX + 2 * SIGNED_BYTES_MAX


def test_known_and_unknown_access_keys_cost_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many signatures are made for one, whether and wherever a candidate matches."""
    made: list[bool] = []
    really = signature.is_signature

    def counted(stated: bytes, secret: bytes, text: bytes) -> bool:
        made.append(really(stated, secret, text))
        return made[-1]

    monkeypatch.setattr(signature, "is_signature", counted)
    proxy = Proxy(hosts=("a", "b"), path_prefix="/p", connection_values=("close",))
    signers = [Signer(), Signer(secret_key=SECRET_KEY[::-1]), Signer(access_key="nobody")]

    verdicts, counts = [], []
    for signer in signers:
        made.clear()
        verdicts.append(judged(received(signer), proxy=proxy))
        counts.append(len(made))

    assert verdicts == [ACCESS_KEY, Reason.WRONG, Reason.UNKNOWN_KEY]
    assert counts == [6, 6, 6]


def test_the_secret_of_another_key_is_wrong() -> None:
    """Each access key has its own."""
    other = "QTWAOYTTINDUT2QVKYUC"
    assert judged(received(Signer(access_key=other))) == Reason.WRONG
    assert judged(received(Signer(access_key=other, secret_key=KEYS[other].decode()))) == other


def test_a_refusal_names_the_access_key_where_it_could_be_read() -> None:
    """For the log."""
    with pytest.raises(NotAuthenticError) as caught:
        verify(received(), KEYS.get, now_s=0, clock_skew_s=900)

    assert (caught.value.reason, caught.value.access_key) == (Reason.STALE, ACCESS_KEY)
    assert all(reason.words for reason in Reason)
