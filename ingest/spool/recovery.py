"""What a folder holds after whatever happened to it. Log files are only read; damaged bytes go to quarantine."""

import contextlib
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from ingest.runtime.files import FileSystem
from ingest.runtime.logfile import Damage, Frame, scan_file
from ingest.spool.cursor import Cursor
from ingest.spool.folder import Folder, LogFile, parse_log_name
from ingest.spool.record import decode_opening, decode_push

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Recovered:
    """The state of a folder when it was opened.

    Attributes:
        cursor: of the folder.
        files: log files with anything in them, oldest first, all sealed.
        leftovers: log files without anything in them, to be removed.
        next_sequence: above every sequence that was ever used here.
        oldest_ms: when the first push that is not settled was received.
        damaged: damaged places found now for the first time and saved in quarantine; each counts as one report.
        trusted_ends: up to where the newest files are good, by name, for the opening note of the next file.
    """

    cursor: Cursor
    files: deque[LogFile] = field(default_factory=deque)
    leftovers: list[LogFile] = field(default_factory=list)
    next_sequence: int = 1
    oldest_ms: int | None = None
    damaged: int = 0
    trusted_ends: dict[str, int] = field(default_factory=dict)


def recover(folder: Folder) -> Recovered:
    """Scan a folder that was just taken.

    A place that cannot be read as frames is

    - room, if it is zeros at the end of a file;
    - a torn tail, which nobody was promised, at the end of the newest file with frames: it is ignored;
    - beyond the end that the next file's opening note states, refused by us after a failed sync: it is ignored;
    - damage otherwise: its bytes go to quarantine, and the frames around it are kept.

    Raises:
        SpoolFormatError: a newer version wrote it.
        OSError: the folder cannot be read.
    """
    fs = folder.fs
    found = Recovered(Cursor(fs, folder.path))
    files = [file for name in fs.listdir(folder.path) if (file := parse_log_name(folder.path / name))]
    stated: dict[str, int] = {}
    for file in files:
        stated.update(_opening(fs, file))
    seen = [_Scan(folder, file, stated.get(file.path.name), found.cursor.position) for file in files]
    newest = max((at for at, scan in enumerate(seen) if scan.frames), default=-1)
    found.next_sequence = found.cursor.position + 1
    for at, scan in enumerate(seen):
        file = scan.file
        found.next_sequence = max(found.next_sequence, scan.highest + 1, file.first)
        damage = scan.damage(torn_is_damage=at < newest or scan.stated is not None)
        following = files[at + 1].first if at + 1 < len(files) else None
        if following is not None and following <= found.cursor.position + 1:
            damage = []  # everything in this file is settled, what is damaged too
        found.damaged += sum(_save(folder, file, place) for place in damage)
        if scan.frames or file.unsaved:
            found.files.append(file)
        else:
            found.leftovers.append(file)
        if found.oldest_ms is None:
            found.oldest_ms = scan.oldest_ms
    _settle_newest(fs, found, seen, newest)
    return found


class _Scan:
    """One log file, read from its beginning."""

    def __init__(self, folder: Folder, file: LogFile, stated: int | None, settled: int) -> None:
        self.file = file
        self.stated = stated
        self.frames = 0
        self.highest = 0
        self.oldest_ms: int | None = None
        self._damage: list[tuple[Damage, bool]] = []  # with: lies before an unsettled frame, or at the end
        file.sealed = True
        opened = folder.fs.open(file.path)
        try:
            file.length = opened.size()
            end = file.length if stated is None else min(stated, file.length)
            waiting: list[Damage] = []
            for item in scan_file(opened, 0, end, salt=file.salt, after=file.first - 1):
                if isinstance(item, Damage):
                    waiting.append(item)
                    continue
                self._count(item, settled)
                if item.sequence > settled:
                    self._damage += [(place, True) for place in waiting]
                waiting.clear()
            self._damage += [(place, place.kind == "corrupt") for place in waiting]
            if stated is not None and file.end < stated and not waiting:
                # Good frames stood here and are gone without a trace.
                self._damage.append((Damage(file.end, stated, "corrupt"), True))
        finally:
            opened.close()

    def damage(self, *, torn_is_damage: bool) -> list[Damage]:
        return [place for place, certain in self._damage if certain or torn_is_damage]

    def _count(self, frame: Frame, settled: int) -> None:
        file = self.file
        self.frames += 1
        self.highest, file.end = frame.sequence, frame.end
        push = decode_push(frame)
        if push is not None and frame.sequence > settled:
            if not file.pushes:
                file.start = frame.start
            file.pushes += 1
            file.reports += push.reports
            file.body_bytes += len(push.body)
            if self.oldest_ms is None:
                self.oldest_ms = push.received_ms


def _opening(fs: FileSystem, file: LogFile) -> dict[str, int]:
    opened = fs.open(file.path)
    try:
        first = next(scan_file(opened, salt=file.salt, after=file.first - 1, chunk_bytes=4096), None)
    finally:
        opened.close()
    return decode_opening(first) if isinstance(first, Frame) and first.start == 0 else {}


def _save(folder: Folder, file: LogFile, place: Damage) -> bool:
    try:
        news = folder.save_damage(file, place)
    except OSError as error:
        _log.warning("damaged spool bytes not in quarantine yet", file=str(file.path), error=str(error))
        file.unsaved.append(place)
        return False
    if news:
        _log.error("spool file damaged, bytes in quarantine", file=str(file.path), start=place.start, end=place.end)
    return news


def _settle_newest(fs: FileSystem, found: Recovered, seen: list[_Scan], newest: int) -> None:
    """Make what the newest file shows true on the device, then its end may be stated; older ones are stated already."""
    for at, scan in enumerate(seen[: newest + 1]):
        if scan.stated is not None:
            found.trusted_ends[scan.file.path.name] = scan.stated
        elif at == newest:
            with contextlib.suppress(OSError):  # not stated, then: the next start judges it anew
                _sync(fs, scan.file.path)
                found.trusted_ends[scan.file.path.name] = scan.file.end


def _sync(fs: FileSystem, path: Path) -> None:
    file = fs.open(path, write=True)
    try:
        file.sync()
    finally:
        file.close()
