"""How a push, and the opening and the closing note of a log file, stand in a frame."""

import struct
from typing import NamedTuple

import orjson

from ingest.contract.push import Push, Route
from ingest.contract.report import Reason
from ingest.runtime.logfile import Frame
from ingest.spool.base import SpoolFormatError

_TAG = struct.Struct("<IHIBBI")  # received ms (low 32 bits, high 16), reports, kind, verdict, synced

_NOTE = 0
_KINDS = {Route.BATCH: 1, Route.SINGLE: 2}
_ROUTES = {kind: route for route, kind in _KINDS.items()}

_TAKEN = 0
_VERDICTS = {
    None: _TAKEN,
    Reason.NOT_JSON: 1,
    Reason.NOT_A_FORM: 2,
    Reason.NOT_AN_OBJECT: 3,
    Reason.TOO_MANY_REPORTS: 4,
    Reason.MISSING_ID: 5,
    Reason.BAD_ID: 6,
    Reason.MISSING_STATUS: 7,
    Reason.BAD_STATUS: 8,
    Reason.BAD_SEQUENCE: 9,
    Reason.BAD_FIELD: 10,
}
"""How a push was answered: 200, or 400 and why. The numbers stand on disks."""
_REFUSED = {verdict: reason for reason, verdict in _VERDICTS.items()}

OPENING_TAG = _TAG.pack(0, 0, 0, _NOTE, _TAKEN, 0)


def encode_tag(push: Push, synced: int) -> bytes:
    """The 16 bytes that stand beside a push's body.

    Args:
        push: received before the year 10889, of less than 2**32 reports; refused, if so, for a reason of section 8 of
            the contract that a receiver can have.
        synced: offset in this file up to which everything was durable before this frame was written: if something
            before it is bad, it was good once.
    """
    high, low = divmod(push.received_ms, 1 << 32)
    return _TAG.pack(low, high, push.reports, _KINDS[push.route], _VERDICTS[push.refused], synced)


def encode_closing_tag(synced: int) -> bytes:
    """Tag of the last frame of a file that was ended well; `synced` as in `encode_tag`."""
    return _TAG.pack(0, 0, 0, _NOTE, _TAKEN, synced)


def vouched_end(frame: Frame) -> int:
    """Offset before which the file was good when this frame was written."""
    synced: int = _TAG.unpack(frame.tag)[-1]
    return synced


def decode_push(frame: Frame) -> Push | None:
    """The push in a frame, None if it is a note.

    Raises:
        SpoolFormatError: written by a version that knows more kinds or reasons.
    """
    low, high, reports, kind, verdict, _ = _TAG.unpack(frame.tag)
    if kind == _NOTE:
        return None
    route = _ROUTES.get(kind)
    if route is None:
        raise SpoolFormatError(f"a spool record of unknown kind {kind}")
    if verdict not in _REFUSED:
        raise SpoolFormatError(f"a spool record of unknown verdict {verdict}")
    return Push(high << 32 | low, route, reports, frame.body, _REFUSED[verdict])


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
