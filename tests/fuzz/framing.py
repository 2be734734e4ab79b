"""Connections as a hostile sender makes them: whole requests, and every framing that readers disagree on."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import Final

from tests.fuzz.bodies import TOKENS, a_batch, a_form, altered
from tests.fuzz.slow_http import BODY_MAX_BYTES

JSON: Final = b"application/json"
FORM: Final = b"application/x-www-form-urlencoded"
KINDS: Final = ("plain", "pipelined", "mutated", "smuggling", "target", "huge", "noise")
_WEIGHTS: Final = (30, 10, 25, 20, 8, 2, 5)


ABORTS: Final = 0.02
WAITS: Final = 0.004
"""Shares of the connections; each that waits for a timeout of the receiver takes a second or some."""


class Finish(Enum):
    """What the sender does once it has sent everything."""

    END = "end"
    """Read what is due, then shut the writing side down and read to the end."""
    WAIT = "wait"
    """Read until the receiver closes the connection."""
    ABORT = "abort"
    """Reset the connection at once."""


@dataclass(frozen=True, slots=True)
class Case:
    """All that one connection sends.

    Attributes:
        number: of the case; with the seed of the run it makes the case again.
        kind: one of `KINDS`.
        data: its bytes.
        cuts: where they are divided into writes.
        finish: what comes after them.
    """

    number: int
    kind: str
    data: bytes
    cuts: tuple[int, ...]
    finish: Finish

    @property
    def pieces(self) -> list[bytes]:
        """The writes."""
        ends = [0, *self.cuts, len(self.data)]
        return [piece for start, end in itertools.pairwise(ends) if (piece := self.data[start:end])]


def a_case(seed: int, number: int) -> Case:
    """The case with this number; the same every time."""
    rng = Random(f"{seed}/{number}")
    (kind,) = rng.choices(KINDS, _WEIGHTS)
    data = _MAKERS[kind](rng, f"c{number}")
    cuts = sorted(rng.randint(0, len(data)) for _ in range(rng.choice((0, 0, 0, 1, 1, 2, 4))))
    chance = rng.random()
    finish = Finish.ABORT if chance < ABORTS else Finish.WAIT if chance < ABORTS + WAITS else Finish.END
    return Case(number, kind, data, tuple(cuts), finish)


def a_request(rng: Random, name: str) -> bytes:
    """A request that has one meaning; its body may be bent."""
    single = rng.random() < 0.35
    body = a_form(rng, name) if single else a_batch(rng, name)
    fields = [b"Host: dlr.example.com"]
    chance = rng.random()
    media = FORM if single else JSON
    if chance < 0.8:
        fields.append(
            b"Content-Type: " + rng.choice((media, media, media.upper() + b";charset=UTF-8", media + b" ; x=y"))
        )
    elif chance < 0.9:
        fields.append(
            b"content-type:" + rng.choice((b"", b"text/plain", b"application/xml", FORM, JSON, b";", b"\xff"))
        )
    if rng.random() < 0.1:
        fields.append(rng.choice(_HARMLESS))
    if rng.random() < 0.04:
        fields.append(
            b"Content-Encoding: " + rng.choice((b"identity", b"gzip", b"deflate", b"br", b"identity, gzip", b"x"))
        )
    version = b"HTTP/1.0" if rng.random() < 0.05 else b"HTTP/1.1"
    if rng.random() < 0.25 and version == b"HTTP/1.1":
        fields.append(rng.choice((b"Transfer-Encoding: chunked", b"transfer-encoding:CHUNKED")))
        framed = _chunked(rng, body)
    else:
        if body or rng.random() < 0.5:
            fields.append(b"Content-Length: %d" % len(body))
        framed = body
    rng.shuffle(fields)
    path = b"/report" if single else b"/batchReport"
    target = path + rng.choice((b"", b"", b"", b"", b"?a=b", b"?"))
    return b"\r\n".join((b"POST " + target + b" " + version, *fields, b"", framed))


_HARMLESS: Final = (
    *(b"Connection: close", b"Connection: keep-alive", b"Expect: 100-continue", b"X-Forwarded-For: 10.0.0.1, ::1"),
    *(
        b"Connection: Upgrade\r\nUpgrade: websocket",
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c",
        b"X-Sdk-Date: x",
    ),
    *(
        b"Authorization: SDK-HMAC-SHA256 Access=a, SignedHeaders=host, Signature=0",
        b"X: \xe4\xff",
        b"Cookie: " + b"a" * 7000,
    ),
    *(b"Accept-Encoding: gzip", b"TE: trailers", b"Trailer: X", b"X-HTTP-Method-Override: DELETE", b"Content-MD5: x"),
)

_CODINGS: Final = (
    *(
        b"Transfer-Encoding: chunked",
        b"Transfer-Encoding : chunked",
        b"Transfer-Encoding: xchunked",
        b"Transfer-Encoding:\tchunked",
    ),
    *(b"Transfer-Encoding: chunked, identity", b"Transfer-Encoding: identity", b"Transfer-Encoding: identity, chunked"),
    *(
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    ),
    *(b"X: x\r\n Transfer-Encoding: chunked", b"X: x\nTransfer-Encoding: chunked", b"X: x\rTransfer-Encoding: chunked"),
    *(
        b"Transfer-Encoding:\r\n chunked",
        b"Transfer-Encoding: \x0bchunked",
        b"Transfer-Encoding: \x00chunked",
        b" Transfer-Encoding: chunked",
    ),
    *(
        b"Transfer_Encoding: chunked",
        b'Transfer-Encoding: "chunked"',
        b"Transfer-Encoding: chunked;q=1",
        b"TRANSFER-ENCODING: Chunked",
    ),
    *(
        b"Transfer-Encoding: gzip, chunked",
        b"Transfer-Encoding: chunked, chunked",
        b"Transfer-Encoding: ,chunked",
        b"Transfer-Encoding:",
    ),
)
_LENGTHS: Final = (
    *(
        b"Content-Length: %d",
        b"Content-Length: +%d",
        b"Content-Length: -%d",
        b"Content-Length: 0%d",
        b"Content-Length: 0x%x",
    ),
    *(
        b"Content-Length: %d, %d",
        b"Content-Length: %d\r\nContent-Length: %d",
        b"Content-Length: %d\r\nContent-Length: 0",
    ),
    *(
        b"Content-Length : %d",
        b"Content-Length: %d ",
        b"Content-Length: %d;",
        b"Content-Length:\r\n %d",
        b"Content-Length: \x0b%d",
    ),
    *(
        b"Content-Length: %d\x00",
        b" Content-Length: %d",
        b"Content-Length: %d.0",
        b"Content-Length: %de0",
        b"Content_Length: %d",
    ),
    *(
        b"Content-Length: 1_0",
        b"Content-Length: 18446744073709551616",
        b"Content-Length: " + b"9" * 5000,
        b"Content-Length:",
        b"",
    ),
    *(
        b"X: x\r\n\tContent-Length: %d",
        b"Content-Length: %d\nX: x",
        b"Content-Length: %d\rX: x",
        b"content-length: \xd9\xa1",
    ),
)
_CHUNK_SIZES: Final = (
    *(
        b"%x",
        b"0%x",
        b"0x%x",
        b"+%x",
        b"-%x",
        b"%x ",
        b" %x",
        b"%x\t",
        b"%x;a=b",
        b"%x ; a",
        b'%x;a="\r\n"',
        b"%x;\n",
        b"%x\x00",
    ),
    *(b"0000000000000000%x", b"ffffffffffffffff%x", b"%x;" + b"a" * 500, b"%xg", b"%x,%x", b"1_%x", b""),
)
_LINE_ENDS: Final = (b"\r\n", b"\r\n", b"\n", b"\r", b"\n\r", b"\r\r\n", b"\r\n\r\n", b" \r\n", b"")
_WIRE_TOKENS: Final = (
    *TOKENS,
    *(line + b"\r\n" for line in _CODINGS),
    *(
        b"Content-Length: 0\r\n",
        b"Content-Length: 5\r\n",
        b"\r\n\r\n",
        b"\r\n",
        b"\n\n",
        b"\r",
        b" ",
        b"\t",
        b":",
        b"0\r\n\r\n",
        b"5\r\n",
    ),
    *(
        b"POST /report HTTP/1.1\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"HTTP/1.1",
        b"HTTP/2.0",
        b"Host: b\r\n",
        b"/report",
    ),
    *(b"Expect: 100-continue\r\n", b"Connection: close\r\n", b"Upgrade: websocket\r\nConnection: Upgrade\r\n"),
)
_ODD_LINES: Final = (
    *(b"Host: b", b"Host:", b"X: a\r\n b", b"X\x00: a", b"X : a", b": a", b"X", b"\xff: a", b"X: a\x00b", b"X: a\x7fb"),
    *(
        b"Content-Type: application/json",
        b"X:",
        b"X: \x01",
        b"Content-Length",
        b"\tX: y",
        b"X: a\r\n\tb",
        b"@: y",
        b"X(: y",
    ),
)
_METHODS: Final = (
    b"GET",
    b"HEAD",
    b"PUT",
    b"DELETE",
    b"OPTIONS",
    b"TRACE",
    b"CONNECT",
    b"PATCH",
    b"BREW",
    b"post",
    b"PRI",
    b"QUERY",
    b"",
)
_TARGETS: Final = (
    *(
        b"/batchReport",
        b"/report",
        b"/batchReport/",
        b"//batchReport",
        b"/batchreport",
        b"/batchReport%20",
        b"/%62atchReport",
    ),
    *(
        b"/batchReport#f",
        b"/batchReport;x",
        b"/./batchReport",
        b"/a/../batchReport",
        b"/batchReport?a=%zz&\xff",
        b"*",
        b"",
        b"/",
    ),
    *(
        b"http://dlr.example.com/batchReport",
        b"https://u:p@[::1]:8/report?x",
        b"http://a/b http://c",
        b"example.com:443",
        b"batchReport",
    ),
    *(
        b"/batchReport HTTP/1.1\r\nX: y",
        b"/batch\x00Report",
        b"/batch\tReport",
        b"/batch Report",
        b"http:///batchReport",
        b"javascript:1",
    ),
    *(
        b"/metrics",
        b"/healthz",
        b"/readyz",
        b"/../../etc/passwd",
        b"/batchReport\\..",
        b"/\xc3\xa4",
        b"file:///batchReport",
        b"?",
    ),
)


def _chunked(rng: Random, body: bytes) -> bytes:
    out = []
    at = 0
    while at < len(body):
        size = rng.choice((1, 2, 7, 64, 1000, len(body)))
        piece = body[at : at + size]
        extension = b";a=b" if rng.random() < 0.05 else b""
        out.append(rng.choice((b"%x", b"%X", b"0%x")) % len(piece) + extension + b"\r\n" + piece + b"\r\n")
        at += size
    trailer = b"X: y\r\n" if rng.random() < 0.1 else b""
    return b"".join(out) + b"0\r\n" + trailer + b"\r\n"


def _plain(rng: Random, name: str) -> bytes:
    return a_request(rng, name)


def _pipelined(rng: Random, name: str) -> bytes:
    parts = [a_request(rng, f"{name}.{n}") for n in range(rng.randint(2, 5))]
    if rng.random() < 0.1:
        parts.append(rng.choice((b"\r\n", b"\r\n\r\n", b"\0", b"GARBAGE", rng.randbytes(20))))
    return b"".join(parts)


def _mutated(rng: Random, name: str) -> bytes:
    data = _plain(rng, name) if rng.random() < 0.6 else _pipelined(rng, name)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        if rng.random() < 0.6:  # in the head
            end = data.find(b"\r\n\r\n") + 4
            data = altered(rng, data[:end], _WIRE_TOKENS) + data[end:]
        else:
            data = altered(rng, data, _WIRE_TOKENS)
    return data


def _smuggling(rng: Random, name: str) -> bytes:
    """A request with two readings, and another one hidden in or behind it."""
    if rng.random() < 0.5:
        return _one_oddity(rng, name)
    body = a_batch(rng, name)[:2000]
    hidden = a_request(rng, f"{name}.hidden")
    end = rng.choice(_LINE_ENDS) if rng.random() < 0.3 else b"\r\n"
    size = rng.choice(_CHUNK_SIZES) if rng.random() < 0.5 else b"%x"
    chunks = b"".join((_filled(size, len(body)), end, body, end, b"0", end, end)) if body else b"0\r\n\r\n"
    framed = rng.choice((body, chunks, chunks + hidden, body + hidden))
    fields = [b"Host: a", b"Content-Type: " + JSON]
    if rng.random() < 0.7:
        length = rng.choice((len(body), len(framed), 0, 5, len(body) + 7, len(chunks)))
        fields.append(_filled(rng.choice(_LENGTHS), length))
    if rng.random() < 0.7:
        fields.append(rng.choice(_CODINGS))
    if rng.random() < 0.1:
        fields.append(rng.choice(_ODD_LINES))
    rng.shuffle(fields)
    odd = rng.choice(_LINE_ENDS) if rng.random() < 0.15 else b"\r\n"
    line = rng.choice(
        (
            b"HTTP/1.1",
            b"HTTP/1.1",
            b"HTTP/1.1",
            b"HTTP/1.0",
            b"HTTP/0.9",
            b"HTTP/1.2",
            b"http/1.1",
            b"HTTP/2.0",
            b"",
            b"HTTP/1.1 ",
        )
    )
    return odd.join((b"POST /batchReport " + line, *fields, b"", framed))


def _one_oddity(rng: Random, name: str) -> bytes:
    """A sound request with a single line that is odd, and another request behind it."""
    head, _, framed = a_request(rng, name).partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    at = rng.randint(1, len(lines))
    match rng.randrange(5):
        case 0:
            lines.insert(at, rng.choice(_CODINGS))
        case 1:
            lines.insert(at, _filled(rng.choice(_LENGTHS), rng.choice((len(framed), 0, 5))))
        case 2:
            lines.insert(at, rng.choice(_ODD_LINES))
        case 3:
            lines[at - 1] += rng.choice((b"\r", b" ", b"\t", b"\0", b"\n", b"\x0b", b"\n "))
        case _:
            framed = framed.replace(b"\r\n", rng.choice(_LINE_ENDS), rng.choice((1, -1)))
    return b"\r\n".join((*lines, b"", framed)) + a_request(rng, f"{name}.hidden")


def _filled(form: bytes, number: int) -> bytes:
    return form % ((number,) * form.count(b"%"))


def _target(rng: Random, name: str) -> bytes:
    request = a_request(rng, name)
    first, _, rest = request.partition(b"\r\n")
    method, target, version = first.split(b" ", 2)
    if rng.random() < 0.6:
        method = rng.choice(_METHODS)
    if rng.random() < 0.7:
        target = rng.choice(_TARGETS)
    return (
        b" ".join((method, target, version))
        + b"\r\n"
        + rest
        + (a_request(rng, f"{name}.next") if rng.random() < 0.3 else b"")
    )


def _huge(rng: Random, name: str) -> bytes:
    request = a_request(rng, name)
    first, _, rest = request.partition(b"\r\n")
    match rng.randrange(6):
        case 0:
            return first + b"\r\n" + b"".join(b"X%d: y\r\n" % n for n in range(rng.choice((50, 300, 2000)))) + rest
        case 1:
            return first + b"\r\nX: " + b"y" * rng.choice((5000, 10_000, 100_000)) + b"\r\n" + rest
        case 2:
            return first + b"\r\nX" + b"y" * 10_000 + b": y\r\n" + rest
        case 3:
            return first.replace(b" HTTP", b"?" + b"q" * rng.choice((5000, 10_000, 70_000)) + b" HTTP") + b"\r\n" + rest
        case 4:
            body = b" " * rng.choice((BODY_MAX_BYTES, BODY_MAX_BYTES + 1, 3 * BODY_MAX_BYTES, 200_000))
            return b"POST /batchReport HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body + request
        case _:
            body = b"7" * rng.choice((BODY_MAX_BYTES + 1, 100_000))
            return (
                b"POST /batchReport HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
                + _chunked(rng, body)
                + request
            )


def _noise(rng: Random, name: str) -> bytes:
    return rng.choice(
        (
            rng.randbytes(rng.choice((1, 3, 40, 500))),
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(300),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + rng.randbytes(30),
            b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n" + a_request(rng, name),
            b"\r\n" * rng.choice((1, 2, 50)) + a_request(rng, name),
            b"\r\n\x0c" + a_request(rng, name),
            b"GET /batchReport\r\n\r\n",
            b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n" + a_request(rng, name),
            b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            b"EHLO a\r\n",
            b"",
        )
    )


_MAKERS: Final = {
    "plain": _plain,
    "pipelined": _pipelined,
    "mutated": _mutated,
    "smuggling": _smuggling,
    "target": _target,
    "huge": _huge,
    "noise": _noise,
}
