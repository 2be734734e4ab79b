"""Reading pushes back from the log files, one bounded piece at a time."""

from ingest.runtime.logfile import Damage, read_frames
from ingest.spool.base import Spooled
from ingest.spool.folder import Folder, LogFile
from ingest.spool.record import decode_push


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
    """Read on from a place up to `end`, which is known to be good: what is no frame there is damage."""
    opened = folder.fs.open(file.path)
    try:
        found, offset = read_frames(opened, place.offset, max_bytes, end, salt=file.salt, after=place.after)
    finally:
        opened.close()
    piece = Piece(offset, place.after)
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
