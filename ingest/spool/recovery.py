"""What a folder holds after whatever happened to it. Log files are only read; damaged bytes go to quarantine."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from ingest.runtime.files import FileSystem
from ingest.runtime.logfile import Damage, Frame, scan_file
from ingest.spool.cursor import Cursor
from ingest.spool.folder import Folder, LogFile, Unsaved, parse_log_name
from ingest.spool.record import GoodEnd, decode_opening, decode_push, vouched_end
from ingest.spool.salvage import SalvagedFile

_log = structlog.get_logger(__name__)

_ITEMS_PER_STEP = 128
"""Frames that are read in one go, about a millisecond's work."""


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
        good_ends: what is known of the files by name, for the opening note of the next file.
    """

    cursor: Cursor
    files: deque[LogFile] = field(default_factory=deque)
    leftovers: list[LogFile] = field(default_factory=list)
    next_sequence: int = 1
    oldest_ms: int | None = None
    damaged: int = 0
    good_ends: dict[str, GoodEnd] = field(default_factory=dict)


def recover(folder: Folder, step: Callable[[], None]) -> Recovered:
    """Scan a folder that was just taken; `step` is called now and then, and may end it by raising.

    A place that cannot be read as frames is

    - room, if it is zeros at the end of a file;
    - damage, if something says that it was good once: a later frame of the file that was written after the place was
      synced, or a newer file. Its bytes go to quarantine, and the frames around it are kept;
    - beyond the end that the next file's opening note states, refused by us after a failed sync: it is ignored;
    - torn otherwise, at the end of the newest file or in the middle of its last group: most likely an append that a
      crash cut short, and nobody was promised what stood there. It counts as nothing, but as nobody can know, its bytes
      are copied to quarantine all the same.

    Raises:
        SpoolFormatError: a newer version wrote it.
        OSError: the folder cannot be read.
    """
    fs = folder.fs
    found = Recovered(Cursor(fs, folder.path))
    files = [file for name in fs.listdir(folder.path) if (file := parse_log_name(folder.path / name))]
    stated: dict[str, GoodEnd] = {}
    for file in files:
        stated.update(_opening(fs, file))
    seen = [_Scan(folder, file, stated.get(file.path.name), found.cursor.position, step) for file in files]
    newest = max((at for at, scan in enumerate(seen) if scan.frames), default=-1)
    found.next_sequence = found.cursor.position + 1
    for at, scan in enumerate(seen):
        file = scan.file
        found.next_sequence = max(found.next_sequence, scan.highest + 1, file.first + 1)
        following = files[at + 1].first if at + 1 < len(files) else None
        if following is None or following > found.cursor.position + 1:  # else all of it is settled, damaged or not
            damage = scan.damage(has_newer=at < newest)
            found.damaged += sum(_save(folder, file, place) for place in damage)
            for place in scan.torn(damage):
                _save(folder, file, place, torn=True)
        if scan.frames or file.unsaved:
            found.files.append(file)
        else:
            found.leftovers.append(file)
            found.good_ends[file.path.name] = GoodEnd(0)
        if found.oldest_ms is None:
            found.oldest_ms = scan.oldest_ms
    _settle_newest(fs, found, seen, newest)
    return found


class _Scan:
    """One log file, read from its beginning."""

    def __init__(
        self, folder: Folder, file: LogFile, stated: GoodEnd | None, settled: int, step: Callable[[], None]
    ) -> None:
        self.file = file
        self.stated = stated
        self.frames = 0
        self.highest = 0
        self.oldest_ms: int | None = None
        self._vouched = 0
        self._unsettled: list[Damage] = []  # before an unsettled frame, or at the end
        file.sealed = True
        opened = SalvagedFile(folder.fs.open(file.path))
        try:
            file.length = opened.size()
            end = file.length if stated is None else min(stated.end, file.length)
            items = scan_file(opened, 0, end, salt=file.salt, after=file.first - 1)
            for number, item in enumerate(items):
                if not number % _ITEMS_PER_STEP:
                    step()
                if isinstance(item, Damage):
                    file.known.append(item)
                    self._unsettled.append(item)
                    continue
                if item.sequence <= settled:
                    self._unsettled.clear()
                self._count(item, settled)
        finally:
            opened.close()

    def damage(self, *, has_newer: bool) -> list[Damage]:
        """The places that were good once and may hold what is not settled."""
        stated, file = self.stated or GoodEnd(0), self.file
        vouched = max(self._vouched, stated.end)
        if has_newer and self.stated is None:
            vouched = file.length  # the note that would say is damaged itself: take no risk
        places = [place for place in self._unsettled if place.start < vouched and place[:2] not in stated.holes]
        if file.end < stated.end and not any(place.start >= file.end for place in places):
            places.append(Damage(file.end, stated.end, "corrupt"))  # gone without a trace
        return places

    def torn(self, damage: list[Damage]) -> list[Damage]:
        """The other places that may hold what is not settled, but for those that an earlier start has judged."""
        holes = self.stated.holes if self.stated else []
        return [place for place in self._unsettled if place not in damage and place[:2] not in holes]

    def good_end(self) -> GoodEnd:
        """What the next file's opening note can say of this one, if it is on the device."""
        if self.stated is not None:
            return self.stated
        return GoodEnd(self.file.end, [place[:2] for place in self.file.known if self._vouched <= place.start])

    def _count(self, frame: Frame, settled: int) -> None:
        file = self.file
        self.frames += 1
        self.highest, file.end = frame.sequence, frame.end
        self._vouched = max(self._vouched, vouched_end(frame))
        push = decode_push(frame)
        if push is not None and frame.sequence > settled:
            if not file.pushes:
                file.start = frame.start
            file.pushes += 1
            file.reports += push.reports
            file.body_bytes += len(push.body)
            if self.oldest_ms is None:
                self.oldest_ms = push.received_ms


def _opening(fs: FileSystem, file: LogFile) -> dict[str, GoodEnd]:
    opened = SalvagedFile(fs.open(file.path))
    try:
        first = next(scan_file(opened, salt=file.salt, after=file.first - 1, chunk_bytes=4096), None)
    finally:
        opened.close()
    return decode_opening(first) if isinstance(first, Frame) and first.start == 0 else {}


def _save(folder: Folder, file: LogFile, place: Damage, *, torn: bool = False) -> bool:
    what = "torn" if torn else "damaged"
    try:
        news = folder.save_damage(file, place, torn=torn)
    except OSError as error:
        _log.warning(f"{what} spool bytes not in quarantine yet", file=str(file.path), error=str(error))
        file.unsaved.append(Unsaved(place, counts=not torn, torn=torn))
        return False
    if news:
        say = _log.warning if torn else _log.error
        say(f"spool file {what}, bytes in quarantine", file=str(file.path), start=place.start, end=place.end)
    return news


def _settle_newest(fs: FileSystem, found: Recovered, seen: list[_Scan], newest: int) -> None:
    """Make what the newest file shows true on the device, then it may be stated; older ones are stated already."""
    for at, scan in enumerate(seen[: newest + 1]):
        if at == newest and scan.stated is None:
            try:
                _sync(fs, scan.file.path)
            except OSError:  # not stated, then: the next start judges it anew
                return
        if at == newest or scan.stated is not None:
            found.good_ends[scan.file.path.name] = scan.good_end()


def _sync(fs: FileSystem, path: Path) -> None:
    file = fs.open(path, write=True)
    try:
        file.sync()
    finally:
        file.close()
