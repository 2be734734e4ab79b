"""How a push, and the opening note of a log file, stand in a frame."""

import struct

import orjson

from ingest.contract.push import Push, Route
from ingest.runtime.logfile import Frame

_TAG = struct.Struct("<QIB3x")  # received ms, reports, kind

_OPENING = 0
_KINDS = {Route.BATCH: 1, Route.SINGLE: 2}
_ROUTES = {kind: route for route, kind in _KINDS.items()}

OPENING_TAG = _TAG.pack(0, 0, _OPENING)


def encode_tag(push: Push) -> bytes:
    """The 16 bytes that stand beside a push's body."""
    return _TAG.pack(push.received_ms, push.reports, _KINDS[push.route])


def decode_push(frame: Frame) -> Push | None:
    """The push in a frame, None if it is an opening note.

    Raises:
        ValueError: written by a version that knows more kinds.
    """
    received_ms, reports, kind = _TAG.unpack(frame.tag)
    if kind == _OPENING:
        return None
    route = _ROUTES.get(kind)
    if route is None:
        raise ValueError(f"a spool record of unknown kind {kind}")
    return Push(received_ms, route, reports, frame.body)


def encode_opening(ends: dict[str, int]) -> bytes:
    """Body of the first frame of a log file: up to where the files before it are good, by name."""
    return orjson.dumps(ends)


def decode_opening(frame: Frame) -> dict[str, int]:
    """What `encode_opening` said; empty if the frame is a push."""
    if frame.tag != OPENING_TAG:
        return {}
    ends: dict[str, int] = orjson.loads(frame.body)
    return ends
