"""What a strict reader of RFC 9112 makes of the bytes of a connection, and what contract.md section 3 answers to it.

It reads only what has one meaning. Where it stops, a receiver must not go on: whatever two readers could frame in two
ways must be refused, or somebody in front of the receiver and the receiver itself see different pushes (request
smuggling). What it stands for is therefore an upper bound: nothing may be kept that is not in its list.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from tests.fuzz.slow_reading import Reading, read_batch, read_form

BODY_MAX_BYTES: Final = 8192
REPORTS_MAX: Final = 20
LINE_MAX: Final = 8000
"""Lines of a head up to this are taken, and beyond `LINE_FAR` refused; in between it is left open."""
LINE_FAR: Final = 9000
HEADERS_MAX: Final = 100
HEADERS_FAR: Final = 200

METHODS: Final = frozenset(
    b"GET HEAD POST PUT DELETE CONNECT OPTIONS TRACE PATCH COPY LOCK MKCOL MOVE PROPFIND PROPPATCH SEARCH UNLOCK BIND "
    b"REBIND UNBIND ACL REPORT MKACTIVITY CHECKOUT MERGE M-SEARCH NOTIFY SUBSCRIBE UNSUBSCRIBE PURGE MKCALENDAR LINK "
    b"UNLINK SOURCE QUERY".split()
)
"""Others may be answered 405 or be refused."""

_REQUEST: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) +([\x21-\x7e\x80-\xff]+) +HTTP/(1\.[01])")
_FIELD: Final = re.compile(
    rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*"
    rb"((?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?)[ \t]*"
)
_CHUNK: Final = re.compile(rb"(0*[0-9A-Fa-f]{1,15})(;[\x21-\x7e\x80-\xff]*)?")
_EXTENSION: Final = re.compile(rb"(?:;[A-Za-z0-9]+=[A-Za-z0-9]+)?")
"""Extensions of chunks that every reader takes; with others it is left open."""

_TYPES: Final = {b"/batchReport": b"application/json", b"/report": b"application/x-www-form-urlencoded"}


class End(Enum):
    """Why the strict reader stopped."""

    WHOLE = "everything was read"
    HEAD = "the last head is not complete"
    BODY = "the last body is not complete"
    UNCLEAR = "what follows has no one meaning"
    CLOSED = "the last request asks for the end of the connection, and it is the end"
    BEYOND = "the last request asks for the end of the connection, and something follows"


@dataclass(slots=True)
class Expected:
    """One request, and what must become of it.

    Attributes:
        method: as sent.
        statuses: any one of them may be answered.
        body: without its framing.
        reading: what it must be kept as; None if it must not be kept.
        last: the connection may be closed after its answer.
        upgrade: it offers another protocol, which is declined; the parser may refuse what follows in the same breath.
    """

    method: bytes
    statuses: frozenset[int]
    body: bytes = b""
    reading: Reading | None = None
    last: bool = False
    upgrade: bool = False


@dataclass(slots=True)
class Wire:
    """What the bytes of one connection stand for.

    Attributes:
        requests: those that can be read, in order.
        end: why there are no more.
        early: what the head of the last request, whose body is not whole or not clear, may be answered.
    """

    requests: list[Expected] = field(default_factory=list)
    end: End = End.WHOLE
    early: frozenset[int] = frozenset()


class _UnclearError(Exception):
    pass


class _IncompleteError(Exception):
    pass


@dataclass(slots=True)
class _Head:
    method: bytes
    target: bytes
    version: bytes
    fields: list[tuple[bytes, bytes]]
    open_size: bool
    open_chunks: bool = False

    def all(self, name: bytes) -> list[bytes]:
        return [value for each, value in self.fields if each == name]

    def one(self, name: bytes) -> bytes | None:
        values = self.all(name)
        return values[0] if values else None


def read_wire(data: bytes) -> Wire:
    """Read all requests of a connection."""
    wire = Wire()
    at = 0
    while True:
        while data[at : at + 1] in (b"\r", b"\n"):  # RFC 9112 section 2.2, and llhttp takes either alone
            at += 1
        if at == len(data):
            return wire
        try:
            head, at = _head(data, at)
        except _UnclearError:
            wire.end = End.UNCLEAR
            return wire
        except _IncompleteError:
            wire.end = End.HEAD
            return wire
        by_head = _by_head(head)
        try:
            body, at = _body(head, data, at)
        except (_UnclearError, _IncompleteError) as error:
            wire.end = End.UNCLEAR if isinstance(error, _UnclearError) else End.BODY
            wire.early = by_head or frozenset({408, 413})
            return wire
        wire.requests.append(_judged(head, body, by_head))
        if _closes(head):
            wire.end = End.CLOSED if at == len(data) else End.BEYOND
            return wire
        if head.open_size:
            wire.end = End.UNCLEAR
            return wire


def _head(data: bytes, at: int) -> tuple[_Head, int]:
    lines: list[bytes] = []
    while True:
        end = data.find(b"\n", at)
        line = data[at : end if end >= 0 else None]
        if len(line) > LINE_FAR or len(lines) > HEADERS_FAR or b"\0" in line:
            raise _UnclearError
        if end < 0:
            _ends_well(line)
            raise _IncompleteError
        if not line.endswith(b"\r"):
            raise _UnclearError
        at = end + 1
        line = line[:-1]
        if lines and not line:
            break
        lines.append(line)
        _checked(lines)
    first = _REQUEST.fullmatch(lines[0])
    if first is None:
        raise _UnclearError
    method, target, version = first.groups()
    fields = [(match[1].lower(), match[2]) for line in lines[1:] if (match := _FIELD.fullmatch(line))]
    head = _Head(method, target, version, fields, max(map(len, lines)) > LINE_MAX or len(fields) > HEADERS_MAX)
    if any(re.match(rb"(?i)transfer-encoding:.*\t$", line) for line in lines):
        raise _UnclearError  # allowed, but not taken by llhttp
    hosts = len(head.all(b"host"))
    if method not in METHODS or hosts > 1 or (not hosts and version == b"1.1") or len(head.all(b"content-type")) > 1:
        raise _UnclearError
    return head, at


def _checked(lines: list[bytes]) -> None:
    """Refuse the line that was read last."""
    form = _REQUEST if len(lines) == 1 else _FIELD
    if form.fullmatch(lines[-1]) is None:
        raise _UnclearError


def _ends_well(rest: bytes) -> None:
    """A head that is not complete may be refused already; what is left of it is taken as unclear if it might be."""
    if rest.strip(b"\r"):
        raise _UnclearError


def _body(head: _Head, data: bytes, at: int) -> tuple[bytes, int]:
    lengths, codings = head.all(b"content-length"), head.all(b"transfer-encoding")
    if head.method == b"CONNECT" and (codings or lengths):
        raise _UnclearError  # it has no body (RFC 9110 section 9.3.6)
    if codings:
        if lengths or len(codings) > 1 or codings[0].lower() != b"chunked" or head.version == b"1.0":
            raise _UnclearError
        return _chunks(head, data, at)
    if not lengths:
        return b"", at
    if len(lengths) > 1 or re.fullmatch(rb"[0-9]{1,18}", lengths[0]) is None:
        raise _UnclearError
    end = at + int(lengths[0])
    if end > len(data):
        raise _IncompleteError
    return data[at:end], end


def _chunks(head: _Head, data: bytes, at: int) -> tuple[bytes, int]:
    pieces: list[bytes] = []
    while True:
        line, at = _line(data, at)
        size = _CHUNK.fullmatch(line)
        if size is None:
            raise _UnclearError
        head.open_chunks |= _EXTENSION.fullmatch(size[2] or b"") is None
        length = int(size[1], 16)
        if not length:
            break
        if at + length > len(data):
            raise _IncompleteError
        pieces.append(data[at : at + length])
        at += length
        ending, at = data[at : at + 2], at + 2
        if not b"\r\n".startswith(ending):
            raise _UnclearError
        if ending != b"\r\n":
            raise _IncompleteError
    for _ in range(HEADERS_MAX):
        line, at = _line(data, at)
        if not line:
            return b"".join(pieces), at
        trailer = _FIELD.fullmatch(line)
        if trailer is None or trailer[1].lower() in (b"content-length", b"transfer-encoding", b"host"):
            raise _UnclearError
    raise _UnclearError


def _line(data: bytes, at: int) -> tuple[bytes, int]:
    end = data.find(b"\n", at)
    if end < 0:
        rest = data[at:]
        if len(rest) > LINE_MAX or (rest and not re.fullmatch(rb"[0-9A-Fa-f]{1,15}\r?|\r", rest)):
            raise _UnclearError
        raise _IncompleteError
    if data[end - 1 : end] != b"\r" or end - at > LINE_MAX:
        raise _UnclearError
    return data[at : end - 1], end + 1


def _by_head(head: _Head) -> frozenset[int]:  # noqa: PLR0911 - one a rule
    """What the head alone is answered, in the order of the contract; empty if it says nothing against the request."""
    path = _path(head.target)
    if path is None:
        return frozenset({400, 404, 405})  # a target of another form, or one that readers need not take
    if path not in _TYPES:
        return frozenset({404})
    if head.method != b"POST":
        return frozenset({405})
    stated = head.one(b"content-type")
    media = (stated or b"").partition(b";")[0].strip().lower()
    if media not in (b"", _TYPES[path]):
        return frozenset({415})
    codings = [name.strip().lower() for value in head.all(b"content-encoding") for name in value.split(b",")]
    if any(name not in (b"", b"identity") for name in codings):
        return frozenset({415, 400})
    lengths = head.all(b"content-length")
    if len(lengths) == 1 and re.fullmatch(rb"[0-9]{1,18}", lengths[0]) and int(lengths[0]) > BODY_MAX_BYTES:
        return frozenset({413})
    return frozenset()


def _path(target: bytes) -> bytes | None:
    if re.fullmatch(rb"[\x21-\x7e]+", target) is None or b"#" in target:
        return None
    if target.startswith(b"/"):
        return target.partition(b"?")[0]
    absolute = re.fullmatch(rb"https?://[0-9A-Za-z.@:\[\]-]+(/[^?]*)(\?.*)?", target)
    return absolute[1] if absolute else None


def _judged(head: _Head, body: bytes, by_head: frozenset[int]) -> Expected:
    also = frozenset({400, 413}) if head.open_size or head.open_chunks else frozenset()
    upgrade = bool(head.all(b"upgrade"))
    last = bool(by_head) or _closes(head) or head.open_size or upgrade
    reading = None
    statuses = by_head
    if not by_head and len(body) > BODY_MAX_BYTES:
        statuses, last = frozenset({413}), True
    elif not by_head:
        reading = read_batch(body, REPORTS_MAX) if _path(head.target) == b"/batchReport" else read_form(body)
        statuses = frozenset({200 if reading.taken else 400})
    return Expected(head.method, statuses | also, body, reading, last=last, upgrade=upgrade)


def _closes(head: _Head) -> bool:
    options = {each.strip().lower() for value in head.all(b"connection") for each in value.split(b",")}
    return b"close" in options or (head.version == b"1.0" and b"keep-alive" not in options)
