"""Reading pushes back from the log files, one bounded piece at a time."""

import structlog

from ingest.runtime.logfile import Damage, read_frames
from ingest.spool.base import PUSH_OVERHEAD_BYTES, Spooled
from ingest.spool.folder import Folder, LogFile
from ingest.spool.record import decode_push
from ingest.spool.salvage import SalvagedFile

_log = structlog.get_logger(__name__)


class Place:
    """Where reading goes on in the files."""

    __slots__ = ("after", "file", "offset")

    def __init__(self, file: LogFile, offset: int | None = None, after: int | None = None) -> None:
        self.file = file
        self.offset = file.start if offset is None else offset
        self.after = file.first - 1 if after is None else after  # the sequence that stands before the offset


class Piece:
    """What one read brought."""

    __slots__ = ("after", "damaged", "items", "offset")

    def __init__(self, offset: int, after: int) -> None:
        self.items: list[Spooled] = []
        self.damaged: list[Damage] = []
        self.offset = offset
        self.after = after


def read_piece(folder: Folder, file: LogFile, place: Place, end: int, max_bytes: int) -> Piece:
    """Read on from a place up to `end`, which is known to be good: what is no frame there is damage.

    So is what the device does not give back, and all of a file that somebody has removed.

    Raises:
        OSError: the file cannot be opened or read now.
    """
    piece = Piece(place.offset, place.after)
    try:
        opened = SalvagedFile(folder.fs.open(file.path))
    except FileNotFoundError:
        _log.error("spool file is gone, its pushes are lost", folder=folder.name, file=file.path.name)
        piece.damaged.append(Damage(place.offset, end, "corrupt"))
        piece.offset = end
        return piece
    try:
        found, offset = read_frames(
            opened,
            place.offset,
            max_bytes,
            end,
            salt=file.salt,
            after=place.after,
            overhead_bytes=PUSH_OVERHEAD_BYTES,
        )
    finally:
        opened.close()
    if opened.lost_bytes:
        _log.error("spool file cannot be read in places", file=str(file.path), unreadable_bytes=opened.lost_bytes)
    piece.offset = offset
    for item in found:
        if isinstance(item, Damage):
            piece.damaged.append(item)
            continue
        piece.after = item.sequence
        if (push := decode_push(item)) is not None:
            piece.items.append(Spooled(item.sequence, push))
    if not found and offset < end:
        piece.damaged.append(Damage(offset, end, "corrupt"))
        piece.offset = end
    return piece
