"""How a push, and the opening and the closing note of a log file, stand in a frame."""

import struct
from typing import NamedTuple

import orjson

from ingest.contract.push import Push, Route
from ingest.runtime.logfile import Frame
from ingest.spool.base import SpoolFormatError

_TAG = struct.Struct("<IHIBxI")  # received ms (low 32 bits, high 16), reports, kind, synced

_NOTE = 0
_KINDS = {Route.BATCH: 1, Route.SINGLE: 2}
_ROUTES = {kind: route for route, kind in _KINDS.items()}

OPENING_TAG = _TAG.pack(0, 0, 0, _NOTE, 0)


def encode_tag(push: Push, synced: int) -> bytes:
    """The 16 bytes that stand beside a push's body.

    Args:
        push: received before the year 10889, of less than 2**32 reports.
        synced: offset in this file up to which everything was durable before this frame was written: if something
            before it is bad, it was good once.
    """
    high, low = divmod(push.received_ms, 1 << 32)
    return _TAG.pack(low, high, push.reports, _KINDS[push.route], synced)


def encode_closing_tag(synced: int) -> bytes:
    """Tag of the last frame of a file that was ended well; `synced` as in `encode_tag`."""
    return _TAG.pack(0, 0, 0, _NOTE, synced)


def vouched_end(frame: Frame) -> int:
    """Offset before which the file was good when this frame was written."""
    synced: int = _TAG.unpack(frame.tag)[-1]
    return synced


def decode_push(frame: Frame) -> Push | None:
    """The push in a frame, None if it is a note.

    Raises:
        SpoolFormatError: written by a version that knows more kinds.
    """
    low, high, reports, kind, _ = _TAG.unpack(frame.tag)
    if kind == _NOTE:
        return None
    route = _ROUTES.get(kind)
    if route is None:
        raise SpoolFormatError(f"a spool record of unknown kind {kind}")
    return Push(high << 32 | low, route, reports, frame.body)


class GoodEnd(NamedTuple):
    """What is known of a log file that is not written any more.

    Attributes:
        end: offset up to which it is good.
        holes: start and end of places before it that were torn, not good.
    """

    end: int
    holes: list[tuple[int, int]] = []  # noqa: RUF012 - never changed


def encode_opening(ends: dict[str, GoodEnd]) -> bytes:
    """Body of the first frame of a log file: what is known of the files before it, by name."""
    return orjson.dumps({name: [end, *holes] for name, (end, holes) in ends.items()})


def decode_opening(frame: Frame) -> dict[str, GoodEnd]:
    """What `encode_opening` said; empty if the frame is something else."""
    if frame.tag != OPENING_TAG:
        return {}
    return {
        name: GoodEnd(end, [(start, until) for start, until in holes])
        for name, (end, *holes) in orjson.loads(frame.body).items()
    }
