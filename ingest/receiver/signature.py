"""The platform's AK/SK signature of a request: what it covers, and whether it is right (docs/protocol.md section 4).

Pure functions over the request as it was received: raw target, the list of raw headers in which repeats are visible,
the bytes of the body. `verify` is what the receiver asks; the steps below it are public for `ingest verify`, which
explains a signature that differs.

A proxy may have changed parts that are signed. `Proxy` says which values are tried for them beside the received ones;
each combination is a `Candidate`. That is safe: a signature made with the secret key exists for at most one of them.

The work of one request is bounded, whatever it says: see the `_MAX` below.
"""

import hashlib
import hmac
import itertools
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import quote_from_bytes, unquote_to_bytes

from ingest.receiver.parse import target_path

ALGORITHM: Final = b"SDK-HMAC-SHA256"

HOST: Final = b"host"
DATE: Final = b"x-sdk-date"
AUTHORIZATION: Final = b"authorization"
CONNECTION: Final = b"connection"
CONTENT_LENGTH: Final = b"content-length"
CONTENT_HASH: Final = b"x-sdk-content-sha256"
MUST_BE_SIGNED: Final = (HOST, DATE)
_CHANGEABLE: Final = frozenset((HOST, CONNECTION, CONTENT_LENGTH))

UNSIGNED_PAYLOAD: Final = b"UNSIGNED-PAYLOAD"

AUTHORIZATION_BYTES_MAX: Final = 4096
SIGNED_HEADERS_MAX: Final = 64
SIGNED_BYTES_MAX: Final = 2048
"""Of the names and values of the signed headers together."""
QUERY_PAIRS_MAX: Final = 128
QUERY_BYTES_MAX: Final = 1024
"""What one request may ask us to look at, sort, encode and hash, that for each candidate; real ones sign five headers
of 150 bytes together and have no query. Behind a proxy with eight external hosts the worst one costs 2 ms, without
these bounds 11."""

_STATED: Final = re.compile(
    rb"SDK-HMAC-SHA256 +Access=([!-+\--~]{1,128}), ?SignedHeaders=([!-+\--~]+), ?Signature=([0-9a-f]{64})"
)
_MOMENT: Final = re.compile(rb"([0-9]{4})([0-9]{2})([0-9]{2})T([0-9]{2})([0-9]{2})([0-9]{2})Z")
_BLANKS: Final = b" \t"
_NOBODYS_SECRET: Final = secrets.token_bytes(32)
"""Signs for access keys that nobody has, so that they cost what known ones cost."""

Headers = Sequence[tuple[bytes, bytes]]


class Reason(StrEnum):
    """Why a request is not authentic; a closed set, the label of `dlrflow_auth_failures_total`."""

    MISSING = "missing"
    SCHEME = "scheme"
    MALFORMED = "malformed"
    TOO_MUCH = "too-much"
    NOT_SIGNED = "not-signed"
    HEADER_MISSING = "header-missing"
    HEADER_REPEATED = "header-repeated"
    DATE_MALFORMED = "date-malformed"
    STALE = "stale"
    UNSIGNED_PAYLOAD = "unsigned-payload"
    BODY_HASH = "body-hash"
    UNKNOWN_KEY = "unknown-key"
    WRONG = "wrong"

    @property
    def words(self) -> str:
        """What is wrong, for people."""
        return _WORDS[self]


_WORDS: Final[Mapping[Reason, str]] = {
    Reason.MISSING: "there is no Authorization header",
    Reason.SCHEME: "the scheme of Authorization is not SDK-HMAC-SHA256",
    Reason.MALFORMED: "Authorization is not of the form that the platform sends, or there is more than one",
    Reason.TOO_MUCH: "more signed headers or query parameters, or bytes of them or of Authorization, than any push has",
    Reason.NOT_SIGNED: "host and x-sdk-date must be among the signed headers",
    Reason.HEADER_MISSING: "a header that was signed is not there",
    Reason.HEADER_REPEATED: "a header that was signed is there more than once",
    Reason.DATE_MALFORMED: "X-Sdk-Date is not a time such as 20241212T070653Z",
    Reason.STALE: "X-Sdk-Date is too far from the time of this machine",
    Reason.UNSIGNED_PAYLOAD: "the sender did not sign the body",
    Reason.BODY_HASH: "X-Sdk-Content-Sha256 is not the hash of the body",
    Reason.UNKNOWN_KEY: "the access key is not in the keys file",
    Reason.WRONG: "the signature is not that of this request",
}


class NotAuthenticError(Exception):
    """A request that is to be refused.

    Attributes:
        reason: why.
        access_key: as stated, empty where it could not be read. It is text of an unknown sender.
    """

    def __init__(self, reason: Reason, access_key: str = "") -> None:
        super().__init__(reason.words)
        self.reason = reason
        self.access_key = access_key


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A request as it arrived.

    Attributes:
        target: of the request line, query included; bytes beyond ASCII as surrogate escapes.
        headers: all of them in their order, repeats included.
    """

    method: str
    target: str
    headers: Headers
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """What is tried beside the received values, because a proxy may have changed them.

    If anything is set here, a signed `content-length` that is absent counts as the length of the body, too: a proxy may
    have sent it chunked, and the hash of the body is signed in any case.

    Attributes:
        hosts: of the `host` that the platform called.
        path_prefix: that the proxy took away, without slash at its end.
        connection_values: of `connection`.
    """

    hosts: tuple[str, ...] = ()
    path_prefix: str = ""
    connection_values: tuple[str, ...] = ()

    def tried(self, name: bytes, body: bytes) -> tuple[bytes, ...]:
        """The values of a header that are tried beside the received one."""
        if name == HOST:
            return tuple(value.encode() for value in self.hosts)
        if name == CONNECTION:
            return tuple(value.encode() for value in self.connection_values)
        if name == CONTENT_LENGTH and self != NO_PROXY:
            return (b"%d" % len(body),)
        return ()


NO_PROXY: Final = Proxy()


class Stated(NamedTuple):
    """What `Authorization` says: the access key, names of the signed headers in lower case, the signature as hex."""

    access_key: str
    signed: tuple[bytes, ...]
    signature: bytes


class Candidate(NamedTuple):
    """One request that the platform may have signed.

    Attributes:
        path: canonical.
        query: canonical.
        fields: the signed headers in their order, names in lower case, values trimmed.
        head: the same as they stand in the canonical request; made once for all candidates that share them.
    """

    path: bytes
    query: bytes
    fields: tuple[tuple[bytes, bytes], ...]
    head: bytes


def verify(
    received: Received,
    secret_of: Callable[[str], bytes | None],
    *,
    now_s: float,
    clock_skew_s: float,
    proxy: Proxy = NO_PROXY,
) -> str:
    """The access key that signed a request.

    All candidates are tried, whether one matched already or not, and for an unknown key, too: the time that this takes
    says nothing of the keys.

    Args:
        received: the request.
        secret_of: the secret of an access key.
        now_s: seconds since the epoch.
        clock_skew_s: how far `X-Sdk-Date` may be off.
        proxy: what it may have changed.

    Raises:
        NotAuthenticError: it is not to be believed.
    """
    values = values_by_name(received.headers)
    stated = stated_by(values)
    try:
        date = check_head(values, stated, now_s=now_s, clock_skew_s=clock_skew_s)
        body_hash = hashlib.sha256(received.body).hexdigest().encode()
        check_body_hash(values, body_hash)
        tried = list(candidates(received, values, stated, proxy))
    except NotAuthenticError as error:
        error.access_key = stated.access_key
        raise
    secret = secret_of(stated.access_key)
    matching = 0
    for candidate in tried:
        text = text_to_sign(date, canonical_request(received.method, candidate, body_hash))
        matching += is_signature(stated.signature, _NOBODYS_SECRET if secret is None else secret, text)
    if secret is None:
        raise NotAuthenticError(Reason.UNKNOWN_KEY, stated.access_key)
    if not matching:
        raise NotAuthenticError(Reason.WRONG, stated.access_key)
    return stated.access_key


def values_by_name(headers: Headers) -> Mapping[bytes, list[bytes]]:
    """The values of each header in their order, outer blanks trimmed, names in lower case."""
    values: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        values.setdefault(name.lower(), []).append(value.strip(_BLANKS))
    return values


def stated_by(values: Mapping[bytes, Sequence[bytes]]) -> Stated:
    """Read `Authorization`.

    Raises:
        NotAuthenticError: `MISSING`, `SCHEME`, `MALFORMED` or `TOO_MUCH`.
    """
    said = values.get(AUTHORIZATION)
    if not said:
        raise NotAuthenticError(Reason.MISSING)
    if len(said[0]) > AUTHORIZATION_BYTES_MAX:
        raise NotAuthenticError(Reason.TOO_MUCH)
    if said[0].partition(b" ")[0] != ALGORITHM:
        raise NotAuthenticError(Reason.SCHEME)
    match = _STATED.fullmatch(said[0])
    if match is None or len(said) > 1:
        raise NotAuthenticError(Reason.MALFORMED)
    access_key = match[1].decode()
    signed = tuple(match[2].lower().split(b";"))
    if len(signed) > SIGNED_HEADERS_MAX:
        raise NotAuthenticError(Reason.TOO_MUCH, access_key)
    if b"" in signed or len(set(signed)) < len(signed):
        raise NotAuthenticError(Reason.MALFORMED, access_key)
    return Stated(access_key, signed, match[3])


def check_head(values: Mapping[bytes, Sequence[bytes]], stated: Stated, *, now_s: float, clock_skew_s: float) -> bytes:
    """What stands in the head beside the signature; returns `X-Sdk-Date`.

    Raises:
        NotAuthenticError: `NOT_SIGNED`, `HEADER_REPEATED`, `TOO_MUCH`, `DATE_MALFORMED`, `STALE`.
    """
    for name in MUST_BE_SIGNED:
        if name not in stated.signed:
            raise NotAuthenticError(Reason.NOT_SIGNED)
    for name in stated.signed:
        if len(values.get(name, ())) > 1:
            raise NotAuthenticError(Reason.HEADER_REPEATED)
    if sum(len(name) + sum(map(len, values.get(name, ()))) for name in stated.signed) > SIGNED_BYTES_MAX:
        raise NotAuthenticError(Reason.TOO_MUCH)
    if DATE not in values:
        raise NotAuthenticError(Reason.HEADER_MISSING)
    date = values[DATE][0]
    signed_at_s = seconds_of(date)
    if signed_at_s is None:
        raise NotAuthenticError(Reason.DATE_MALFORMED)
    if abs(now_s - signed_at_s) > clock_skew_s:
        raise NotAuthenticError(Reason.STALE)
    return date


@lru_cache(maxsize=64)
def seconds_of(date: bytes) -> int | None:
    """Seconds since the epoch of a `yyyyMMdd'T'HHmmss'Z'`; None if it is none."""
    match = _MOMENT.fullmatch(date)
    if match is None:
        return None
    year, month, day, hour, minute, second = map(int, match.groups())
    try:
        return int(datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp())
    except ValueError:
        return None


def check_body_hash(values: Mapping[bytes, Sequence[bytes]], body_hash: bytes) -> None:
    """Hold `X-Sdk-Content-Sha256`, signed or not, to the body: it never counts instead of it.

    Raises:
        NotAuthenticError: `UNSIGNED_PAYLOAD` or `BODY_HASH`.
    """
    for value in values.get(CONTENT_HASH, ()):
        if value.upper() == UNSIGNED_PAYLOAD:
            raise NotAuthenticError(Reason.UNSIGNED_PAYLOAD)
        if value.lower() != body_hash:
            raise NotAuthenticError(Reason.BODY_HASH)


def candidates(
    received: Received, values: Mapping[bytes, Sequence[bytes]], stated: Stated, proxy: Proxy
) -> Iterator[Candidate]:
    """The requests that the platform may have signed, the one as received first.

    Raises:
        NotAuthenticError: `HEADER_MISSING`: nothing can be tried for a signed header. `TOO_MUCH`: parameters.
    """
    choices: list[list[tuple[bytes, bytes]]] = []
    for name in stated.signed:
        tried = values.get(name, ())
        if name in _CHANGEABLE and proxy is not NO_PROXY:
            tried = list(dict.fromkeys((*tried, *proxy.tried(name, received.body))))
        if not tried:
            raise NotAuthenticError(Reason.HEADER_MISSING)
        choices.append([(name, value) for value in tried])
    path = target_path(received.target)
    paths = [canonical_path(each) for each in dict.fromkeys((path, proxy.path_prefix + path))]
    queries = canonical_queries(received.target.partition("?")[2])
    names = b"\n" + b";".join(stated.signed)
    lines = {field: b"%s:%s\n" % field for tried in choices for field in tried}
    for fields in itertools.product(*choices):
        head = b"".join([lines[field] for field in fields]) + names
        for each, query in itertools.product(paths, queries):
            yield Candidate(each, query, fields, head)


@lru_cache(maxsize=64)
def canonical_path(path: str) -> bytes:
    """A path decoded once, encoded anew and ended by a slash; dot segments stay."""
    decoded = unquote_to_bytes(path.encode(errors="surrogateescape"))
    encoded = quote_from_bytes(decoded, safe="/").encode()
    return encoded if encoded.endswith(b"/") else encoded + b"/"


def canonical_queries(query: str) -> Sequence[bytes]:
    """A query's parameters decoded, encoded anew and sorted by name, then by encoded value.

    Signers differ in whether names are compared before or after they are encoded; where that matters both are returned.

    Raises:
        NotAuthenticError: `TOO_MUCH`.
    """
    if not query:
        return (b"",)
    if len(query) > QUERY_BYTES_MAX or query.count("&") >= QUERY_PAIRS_MAX:
        raise NotAuthenticError(Reason.TOO_MUCH)
    pairs = []
    for pair in filter(None, query.encode(errors="surrogateescape").replace(b"+", b" ").split(b"&")):
        name, _, value = pair.partition(b"=")
        decoded = unquote_to_bytes(name)
        pairs.append((decoded, quote_from_bytes(decoded, safe=""), quote_from_bytes(unquote_to_bytes(value), safe="")))
    by_name = sorted(pairs, key=lambda pair: (pair[0], pair[2]))
    by_encoded_name = sorted(pairs, key=lambda pair: pair[1:])
    return list(
        dict.fromkeys(
            "&".join(f"{name}={value}" for _, name, value in ordered).encode() for ordered in (by_name, by_encoded_name)
        )
    )


def canonical_request(method: str, candidate: Candidate, body_hash: bytes) -> bytes:
    """The text whose hash is signed."""
    return b"\n".join((method.encode(), candidate.path, candidate.query, candidate.head, body_hash))


def text_to_sign(date: bytes, canonical: bytes) -> bytes:
    """The text that is signed."""
    return b"%s\n%s\n%s" % (ALGORITHM, date, hashlib.sha256(canonical).hexdigest().encode())


def is_signature(stated: bytes, secret: bytes, text: bytes) -> bool:
    """Whether a signature, as lower-case hex, is the one of a text; compared in constant time."""
    return hmac.compare_digest(hmac.digest(secret, text, "sha256").hex().encode(), stated)
