"""What an operator may do about a request that is refused: `python -m ingest verify` says it.

Where a signature differs, what usually comes in between is tried: a proxy that sets its own host or takes `Connection`
away, an editor that ends the body with a newline, the secrets of two keys exchanged. What would have made the signature
right is said as a fact, the rest as a guess.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Final

from ingest.contract.push import Route
from ingest.receiver.keys import Keys
from ingest.receiver.parse import is_identity, is_of_type, target_path
from ingest.receiver.signature import (
    CONNECTION,
    CONTENT_LENGTH,
    DATE,
    HOST,
    Candidate,
    NotAuthenticError,
    Proxy,
    Reason,
    Received,
    Stated,
    candidates,
    canonical_request,
    is_signature,
    text_to_sign,
    values_by_name,
)

Values = Mapping[bytes, Sequence[bytes]]
Change = tuple[Callable[[Received], Received], str]
"""Something that may have come in between, undone, and what to do about it; the text is empty where nothing is."""

CONTENT_TYPE: Final = b"content-type"
CONTENT_ENCODING: Final = b"content-encoding"
OTHER_PORTS: Final = (443, 80, 8443, 8080)
GUESSED_HOSTS_MAX: Final = 3


def refused_first(received: Received, paths: Sequence[str]) -> str | None:
    """What the receiver answers before it looks at any signature, as far as the head alone tells; None if nothing.

    Args:
        received: the request.
        paths: of the batch callback and of the single one.
    """
    routes = dict(zip(paths, (Route.BATCH, Route.SINGLE), strict=True))
    route = routes.get(received.target) or routes.get(target_path(received.target))
    values = values_by_name(received.headers)
    if route is None:
        status, why = 404, f"for this path: configured are {' and '.join(paths)}"
    elif received.method != "POST":
        status, why = 405, "for this method"
    elif not is_of_type(text_of(values.get(CONTENT_TYPE, (b"",))[0]), route):
        status, why = 415, "for this content type"
    elif not is_identity(map(text_of, values.get(CONTENT_ENCODING, ()))):
        status, why = 415, "for this content encoding"
    else:
        return None
    return f"the receiver answers {status} {why}, before it looks at the signature"


def hints(reason: Reason, received: Received, stated: Stated, keys: Keys, proxy: Proxy) -> Iterator[str]:
    """What to do about a refusal.

    Args:
        reason: of the refusal.
        received: the request.
        stated: what its `Authorization` says.
        keys: of the keys file.
        proxy: what is tried already.
    """
    values = values_by_name(received.headers)
    secret = keys.secret_of(stated.access_key)
    match reason:
        case Reason.STALE:
            yield "pass --at with the value of X-Sdk-Date to judge the rest; if the push was fresh, compare the clocks"
            if secret is not None and not is_right(received, stated, secret, proxy):
                yield from _hints_for_wrong(received, values, stated, keys, proxy)
        case Reason.UNKNOWN_KEY:
            yield f"the keys file has {', '.join(sorted(keys.names()))}"
            yield from _what_makes_it_right(received, stated, keys, proxy)
        case Reason.HEADER_MISSING:
            missing = [text_of(name) for name in stated.signed if name not in values]
            found = list(_what_makes_it_right(received, stated, keys, proxy))
            yield from found or [
                f"a proxy may have taken {', '.join(missing)} away, but that is not all: no usual value makes it right"
            ]
        case Reason.NOT_SIGNED | Reason.UNSIGNED_PAYLOAD | Reason.BODY_HASH:
            yield "the platform does not sign like this: who sent it?"
        case Reason.WRONG:
            yield from _hints_for_wrong(received, values, stated, keys, proxy)


def _hints_for_wrong(received: Received, values: Values, stated: Stated, keys: Keys, proxy: Proxy) -> Iterator[str]:
    found = list(_what_makes_it_right(received, stated, keys, proxy))
    if found:
        yield from found
        return
    length = values.get(CONTENT_LENGTH, (b"",))[0]
    if length.isdigit() and length != b"%d" % len(received.body):
        ending = ""
        if received.body.endswith(b"\n") and int(length) < len(received.body):
            ending = ": does the file end with a newline that was not sent?"
        yield f"content-length is {text_of(length)} but the body has {len(received.body)} bytes{ending}"
    yield "the secret key may be another one: compare it with the platform's, and which access key it belongs to"
    yield "the host differs if a proxy sets its own: name the one that the platform calls in DLR_AUTH_EXTERNAL_HOSTS"
    yield "the path differs if a proxy removed a prefix: name it in DLR_AUTH_PATH_PREFIX"


def _what_makes_it_right(received: Received, stated: Stated, keys: Keys, proxy: Proxy) -> Iterator[str]:
    """The fewest changes under which the signature is right."""
    choices = [
        _bodies(received),
        _hosts(received),
        _connections(received),
        _lengths(received, stated),
        _targets(received),
    ]
    combined = sorted(product(*choices), key=lambda changes: sum(bool(hint) for _, hint in changes))
    for access_key in sorted(keys.names(), key=lambda name: name != stated.access_key):
        secret = keys.secret_of(access_key)
        for changes in combined:
            request = received
            for change, _ in changes:
                request = change(request)
            if is_right(request, stated, secret, proxy):
                if access_key != stated.access_key:
                    yield f"it is right with the secret of {access_key}: is it in the keys file under the wrong name?"
                yield from (hint for _, hint in changes if hint)
                return


def _same(request: Received) -> Received:
    return request


def _bodies(received: Received) -> list[Change]:
    body = received.body
    bare = body.removesuffix(b"\n").removesuffix(b"\r")
    unix = body.replace(b"\r\n", b"\n")
    others = {
        bare: "it is right without the newline at the end of the body file",
        body + b"\n": "it is right with a newline at the end of the body",
        unix: "it is right with LF instead of CRLF in the body",
        unix.replace(b"\n", b"\r\n"): "it is right with CRLF instead of LF in the body",
    }
    return [(_same, ""), *((_with_body(each), hint) for each, hint in others.items() if each != body)]


def _hosts(received: Received) -> list[Change]:
    said = values_by_name(received.headers)
    stated = [value for name in (HOST, b"x-forwarded-host", b"x-original-host") for value in said.get(name, ())]
    tried: dict[bytes, None] = {}
    for value in stated[:GUESSED_HOSTS_MAX]:
        name = value.rpartition(b":")[0] or value
        tried |= dict.fromkeys((value, name, *(b"%s:%d" % (name, port) for port in OTHER_PORTS)))
    return [
        (_same, ""),
        *(
            (_with_header(HOST, value), f"it is right with host {text_of(value)}: name it in DLR_AUTH_EXTERNAL_HOSTS")
            for value in tried
            if value not in said.get(HOST, ())
        ),
    ]


def _connections(received: Received) -> list[Change]:
    said = values_by_name(received.headers).get(CONNECTION, ())
    return [
        (_same, ""),
        *(
            (
                _with_header(CONNECTION, value),
                f"it is right with connection {text_of(value)}: set DLR_AUTH_CONNECTION_VALUES=close,keep-alive",
            )
            for value in (b"close", b"keep-alive")
            if value not in said
        ),
    ]


def _lengths(received: Received, stated: Stated) -> list[Change]:
    choices: list[Change] = [(_same, "")]
    if CONTENT_LENGTH in stated.signed and CONTENT_LENGTH not in values_by_name(received.headers):
        choices.append(
            (
                lambda request: _with_header(CONTENT_LENGTH, b"%d" % len(request.body))(request),
                "it is right with the length of the body, which a proxy sends chunked: any setting for a proxy helps",
            )
        )
    return choices


def _targets(received: Received) -> list[Change]:
    path, mark, _ = received.target.partition("?")
    choices: list[Change] = [(_same, "")]
    if mark:
        choices.append((_with_target(path), "it is right without the query"))
    for value in values_by_name(received.headers).get(b"x-forwarded-prefix", ())[:1]:
        prefix = text_of(value).rstrip("/")
        choices.append(
            (
                _with_target(prefix + received.target),
                f"it is right with DLR_AUTH_PATH_PREFIX={prefix} in front of the path",
            )
        )
    return choices


def _with_target(target: str) -> Callable[[Received], Received]:
    return lambda request: replace(request, target=target)


def _with_body(body: bytes) -> Callable[[Received], Received]:
    return lambda request: replace(request, body=body)


def _with_header(name: bytes, value: bytes) -> Callable[[Received], Received]:
    def changed(request: Received) -> Received:
        others = [(each, said) for each, said in request.headers if each.lower() != name]
        return replace(request, headers=[*others, (name, value)])

    return changed


def is_right(request: Received, stated: Stated, secret: bytes | None, proxy: Proxy) -> bool:
    """Whether a secret made the stated signature for a request, as received or as a proxy may have got it."""
    try:
        tried = candidates(request, values_by_name(request.headers), stated, proxy)
        return any(is_signed(request, stated, secret, candidate) for candidate in tried)
    except NotAuthenticError:
        return False


def is_signed(request: Received, stated: Stated, secret: bytes | None, candidate: Candidate) -> bool:
    """Whether a secret made the stated signature for one candidate."""
    if secret is None:
        return False
    body_hash = hashlib.sha256(request.body).hexdigest().encode()
    canonical = canonical_request(request.method, candidate, body_hash)
    return is_signature(stated.signature, secret, text_to_sign(date_of(request), canonical))


def date_of(request: Received) -> bytes:
    """`X-Sdk-Date` as it stands there, empty if it does not."""
    return (values_by_name(request.headers).get(DATE) or (b"",))[0]


def text_of(data: bytes) -> str:
    """Bytes of a request for a terminal: what is not printable is escaped."""
    text = data.decode(errors="backslashreplace")
    return "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text)
