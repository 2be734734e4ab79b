"""What the head of a request says, read as contract.md section 3 compares it. Pure functions."""

import sys
from collections.abc import Iterable
from typing import Final

from ingest.contract.push import Route

JSON: Final = "application/json"
FORM: Final = "application/x-www-form-urlencoded"

_BLANKS: Final = " \t"
"""Of HTTP; Python's `strip` would take away those of Unicode, too."""

_LENGTH_DIGITS_MAX: Final = 19
"""Of 2**63 - 1."""

MEDIA_TYPES: Final = {Route.BATCH: JSON, Route.SINGLE: FORM}


def target_path(target: str) -> str:
    """The path of a request target as it was sent: no decoding, no normalising, without its query.

    Of the absolute form (RFC 9112 section 3.2.2) scheme and authority are left out.
    """
    path = target.partition("?")[0]
    if not path.startswith("/") and "://" in path:
        _, slash, rest = path.partition("://")[2].partition("/")
        return slash + rest
    return path


def is_of_type(content_type: str | None, route: Route) -> bool:
    """Whether a content type is the one of its route, compared without case and parameters.

    A missing one, or one that names nothing, counts as the right one.
    """
    wanted = MEDIA_TYPES[route]
    if content_type is None or content_type == wanted:
        return True
    stated = content_type.partition(";")[0].strip(_BLANKS).lower()
    return stated in ("", wanted)


def is_identity(codings: Iterable[str]) -> bool:
    """Whether the values of all `Content-Encoding` headers name no coding but `identity`."""
    names = (name.strip(_BLANKS).lower() for value in codings for name in value.split(","))
    return all(name in ("", "identity") for name in names)


def is_plainly_chunked(codings: Iterable[str]) -> bool:
    """Whether the values of all `Transfer-Encoding` headers name `chunked` and nothing else."""
    return all(value.strip(_BLANKS).lower() == "chunked" for value in codings)


def content_length(value: str) -> int:
    """What a `Content-Length` that the HTTP parser let pass says, or more than any body has.

    Leading zeros are allowed in any number, and Python converts no more than 4300 digits.
    """
    digits = value.strip().lstrip("0")
    return int(digits or 0) if len(digits) <= _LENGTH_DIGITS_MAX else sys.maxsize
