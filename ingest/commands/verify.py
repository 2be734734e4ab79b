"""`python -m ingest verify`: explains, step by step, whether the signature of a captured request is right.

It takes the receiver's own steps (`ingest.receiver.signature`). Neither secret nor signature is printed, so that what
it says can be passed on; the values of the signed headers are.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final

import typer

from ingest.commands.captured import Capture
from ingest.commands.verify_hints import Values, date_of, hints, is_signed, refused_first, text_of
from ingest.contract.settings import PREFIX, AuthSettings
from ingest.receiver.gate import proxy_of
from ingest.receiver.keys import SETTING, Keys, keys_at_start
from ingest.receiver.signature import (
    AUTHORIZATION,
    CONNECTION,
    CONTENT_LENGTH,
    HOST,
    MUST_BE_SIGNED,
    Candidate,
    NotAuthenticError,
    Proxy,
    Received,
    Stated,
    candidates,
    canonical_request,
    seconds_of,
    stated_by,
    text_to_sign,
    values_by_name,
    verify,
)
from ingest.runtime.errors import FoundError, UsageError

Say = Callable[[str], None]

_SIGNATURE: Final = re.compile(r"(?<=signature=)[^\s,]+", re.IGNORECASE)
"""What stands for a signature anywhere: a sender may have signed its own `Authorization`, or a proxy copied it."""


def explain(
    capture: Capture, settings: AuthSettings, *, now: datetime, paths: Sequence[str], speak: Say = typer.echo
) -> None:
    """Say step by step what is looked at and what comes of it.

    Args:
        capture: the request.
        settings: how the receiver checks.
        now: the time at which it is judged.
        paths: those that the platform is told to call.
        speak: gets each line.

    Raises:
        FoundError: the receiver would answer 401, or something else before it looks at the signature that is wrong.
        UsageError: no usable keys file is configured.
    """
    first = refused_first(capture.received, paths)

    def say(line: str) -> None:
        speak(_SIGNATURE.sub("(hidden)", line))

    if settings.auth_keys_file is None:
        raise UsageError(f"{SETTING} is unset: there is no key to verify with")
    keys = keys_at_start(settings.auth_keys_file)
    received, proxy = capture.received, proxy_of(settings)
    values = values_by_name(received.headers)
    _say_request(capture, say)
    stated = None
    try:
        stated = stated_by(values)
        _say_steps(received, values, stated, settings=settings, keys=keys, now=now, say=say)
        verify(received, keys.secret_of, now_s=now.timestamp(), clock_skew_s=settings.auth_clock_skew_s, proxy=proxy)
    except NotAuthenticError as error:
        say(f"Verdict: refused, {error.reason.words}")
        if stated is not None:
            for hint in hints(error.reason, received, stated, keys, proxy):
                say(f"  hint: {hint}")
        if first is None:
            raise FoundError(f"the receiver answers 401 and counts the reason {error.reason}") from None
        say(f"  hint: {first}")
        raise FoundError(f"the signature is refused for the reason {error.reason}; but {first}") from None
    say("Verdict: the signature is right")
    if first is not None:
        say(f"  hint: but {first}")


def _say_request(capture: Capture, say: Say) -> None:
    received = capture.received
    target = text_of(received.target.encode(errors="surrogateescape"))
    say(f"Request: {received.method} {target}, {len(received.headers)} headers, {len(received.body)} bytes of body")
    for note in capture.notes:
        say(f"  {note}")


def _say_steps(
    received: Received, values: Values, stated: Stated, *, settings: AuthSettings, keys: Keys, now: datetime, say: Say
) -> None:
    proxy = proxy_of(settings)
    secret = keys.secret_of(stated.access_key)
    say(f"Access key: {stated.access_key}, {'in the keys file' if secret else 'NOT in the keys file'}")
    _say_headers(values, stated, proxy, received.body, say)
    _say_date(received, settings, now, say)
    body_hash = hashlib.sha256(received.body).hexdigest()
    say(f"Body: {len(received.body)} bytes, sha256 {body_hash}")
    tried = list(candidates(received, values, stated, proxy))
    matching = [candidate for candidate in tried if is_signed(received, stated, secret, candidate)]
    shown = (matching or tried)[0]
    canonical = canonical_request(received.method, shown, body_hash.encode())
    _say_block("Canonical request" + (", the one that matches" if matching else ", as received"), canonical, say)
    _say_block("String to sign", text_to_sign(date_of(received), canonical), say)
    say("Candidates:" if secret else "Candidates, of which none can match without a secret:")
    for candidate in tried:
        say(f"  {'matches' if candidate in matching else 'differs'}: {_words(candidate)}")


def _say_headers(values: Values, stated: Stated, proxy: Proxy, body: bytes, say: Say) -> None:
    say("Signed headers:")
    for name in stated.signed:
        found = values.get(name, ())
        others = ", ".join(text_of(value) for value in proxy.tried(name, body) if value not in found)
        say(f"  {text_of(name)}: {_value(found) if name != AUTHORIZATION else '(hidden)'}")
        if others:
            say(f"    also tried: {others}")
    for name in MUST_BE_SIGNED:
        if name not in stated.signed:
            say(f"  {text_of(name)}: NOT SIGNED, but it must be")


def _value(found: Sequence[bytes]) -> str:
    """The value of a header, or what is wrong with it."""
    if not found:
        return "MISSING"
    different = [text_of(value) for value in dict.fromkeys(found)]
    if len(found) == 1:
        return different[0]
    alike = f"each {different[0]}" if len(different) == 1 else f"different values: {' and '.join(different)}"
    return f"REPEATED, {len(found)} times, {alike}"


def _say_date(received: Received, settings: AuthSettings, now: datetime, say: Say) -> None:
    signed_at_s = seconds_of(date_of(received))
    if signed_at_s is None:
        say("Date: X-Sdk-Date is missing or no time such as 20241212T070653Z")
        return
    off_s = round(now.timestamp() - signed_at_s)
    side = "before" if off_s >= 0 else "after"
    within = "within" if abs(off_s) <= settings.auth_clock_skew_s else "BEYOND"
    say(
        f"Date: {abs(off_s)} s {side} {now:%Y%m%dT%H%M%SZ}, {within} the {settings.auth_clock_skew_s} s of "
        f"{PREFIX}AUTH_CLOCK_SKEW_S"
    )


def _say_block(title: str, text: bytes, say: Say) -> None:
    say(f"{title}:")
    for line in text_of(text).split("\n"):
        say(f"  | {line}")


def _words(candidate: Candidate) -> str:
    fields = dict(candidate.fields)
    changeable = (
        f"{text_of(name)} {text_of(fields[name])}" for name in (HOST, CONNECTION, CONTENT_LENGTH) if name in fields
    )
    return ", ".join((f"path {text_of(candidate.path)}", *changeable))
