"""Signed requests with one part bent: no change of what was signed may pass, and nothing may break the verifier."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from random import Random
from typing import Final
from urllib.parse import quote, unquote_to_bytes

from ingest.receiver.signature import NotAuthenticError, Received, verify
from ingest.simulator.signing import signed_headers
from tests.fuzz.bodies import a_batch, altered

NOW: Final = datetime(2026, 11, 23, 10, tzinfo=UTC)
SECRETS: Final = {"exampleAk": b"exampleSk*1231d881wd", "otherAk": b"otherSk"}
SKEW_S: Final = 900
_HOST: Final = "dlr.example.com"
_PATHS: Final = ("/batchReport", "/batch%20Report", "/a/../b", "/\u4f60", "/batchReport/")
_SIGNED_NAMES: Final = re.compile(rb"SignedHeaders=([^,]*)")
_BLANK: Final = re.compile(rb"(?<=,) ?|(?<=SHA256) +")
"""Where blanks say nothing (docs/protocol.md section 4)."""

_ODD: Final = (
    b"",
    b" ",
    b"\t",
    b"a",
    b"\xff",
    b"\0",
    b"UNSIGNED-PAYLOAD",
    b"close",
    b"%",
    b";",
    b",",
    b"=",
    b"\n",
    b"0" * 5000,
)


@dataclass(frozen=True, slots=True)
class Bent:
    """A request that was signed and then changed.

    Attributes:
        sound: as it was signed.
        received: as it arrives.
    """

    sound: Received
    received: Received


def a_bent_request(rng: Random, name: str) -> Bent:
    """Sign a request as the platform does, then change parts of it."""
    access_key = rng.choice(list(SECRETS))
    body = a_batch(rng, name)
    path = rng.choice(_PATHS)
    headers = signed_headers(
        access_key,
        SECRETS[access_key].decode(),
        path=path,
        host=_HOST,
        content_type="application/JSON;charset=UTF-8",
        body=body,
        now=NOW,
    )
    sound = Received(
        method="POST",
        target=quote(path, safe="/%."),
        headers=[(header.encode(), value.encode()) for header, value in headers.items()],
        body=body,
    )
    received = sound
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        received = _bent(rng, received)
    return Bent(sound, received)


def _bent(rng: Random, received: Received) -> Received:
    headers = list(received.headers)
    at = rng.randrange(len(headers))
    name, value = headers[at]
    match rng.randrange(10):
        case 0:
            return replace(received, body=altered(rng, received.body))
        case 1:
            return replace(received, method=rng.choice(("GET", "PUT", "post", "POST ", "")))
        case 2:
            return replace(
                received,
                target=altered(rng, received.target.encode(errors="surrogateescape")).decode(errors="surrogateescape"),
            )
        case 3:
            return replace(
                received, target=received.target + rng.choice(("?", "?a", "?a=b&a=a", "/", "//", "?" + "&" * 500))
            )
        case 4:
            headers[at] = (name, rng.choice(_ODD))
        case 5:
            headers[at] = (name.swapcase(), b" " + value + b"\t")
        case 6:
            headers.insert(
                rng.randint(0, len(headers)),
                (rng.choice((name, b"x-sdk-content-sha256", b"connection")), rng.choice((value, *_ODD))),
            )
        case 7:
            del headers[at]
            headers = headers or [(b"host", b"a")]
        case 8:
            rng.shuffle(headers)
        case _:
            headers[at] = (name, altered(rng, value))
    return replace(received, headers=headers)


def problems(bent: Bent) -> list[str]:
    """What is wrong with the verdict on a bent request."""
    if not _passes(bent.sound):
        return ["a sound request is refused"]
    if _passes(bent.received) and not _says_the_same(bent):
        return ["a request passes that was not signed so"]
    return []


def _passes(received: Received) -> bool:
    try:
        key = verify(received, SECRETS.get, now_s=NOW.timestamp(), clock_skew_s=SKEW_S)
    except NotAuthenticError:
        return False
    return key in SECRETS


def _says_the_same(bent: Bent) -> bool:
    """Whether nothing that was signed differs: names compare without case, values without outer blanks."""

    def said(received: Received) -> object:
        fields: dict[bytes, list[bytes]] = {}
        for name, value in received.headers:
            fields.setdefault(name.lower(), []).append(value.strip(b" \t"))
        path, _, query = received.target.partition("?")
        decoded = unquote_to_bytes(path.encode(errors="surrogateescape"))
        signed = {name: fields.get(name) for name in (b"host", b"x-sdk-date", b"content-type")}
        authorization = b",".join(fields.get(b"authorization", []))
        names = _SIGNED_NAMES.search(authorization)
        stated = _BLANK.sub(b"", authorization.replace(names[0], names[0].lower()) if names else authorization)
        parameters = [pair for pair in query.split("&") if pair]
        return received.method, decoded.rstrip(b"/"), parameters, signed, stated, received.body

    return said(bent.sound) == said(bent.received)
