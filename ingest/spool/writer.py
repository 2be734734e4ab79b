"""Writing groups of pushes into log files. Synchronous and single threaded; `ingest.spool.disk` gives it a thread."""

import contextlib
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import structlog

from ingest.contract.push import Push
from ingest.runtime.logfile import HEADER_BYTES, LogWriter, encode_frame, encode_header
from ingest.spool.base import SpoolBrokenError, SpoolFullError
from ingest.spool.cursor import NO_ROOM
from ingest.spool.folder import Budget, Folder, LogFile, log_name
from ingest.spool.record import OPENING_TAG, GoodEnd, encode_closing_tag, encode_opening, encode_tag

_log = structlog.get_logger(__name__)

SMALLEST_FRAME_BYTES = HEADER_BYTES + 64
"""Room that counts as room for the smallest push."""

_STATED_ENDS_MAX = 32
"""Files whose good end an opening note states."""


@dataclass(slots=True)
class Part:
    """Pushes of a group that share their fate, in order.

    Attributes:
        count: how many.
        file: where they are durable, None if they are not.
        first_position: of the first of them; the others follow without gaps.
        starts: offset of each in the file.
        end: offset after the last.
        error: why they are not kept.
    """

    count: int
    file: LogFile | None = None
    first_position: int = 0
    starts: list[int] = field(default_factory=list)
    end: int = 0
    error: Exception | None = None


@dataclass(slots=True)
class Outcome:
    """What became of a group: its parts in order, and the files that were begun and sealed meanwhile."""

    parts: list[Part] = field(default_factory=list)
    opened: list[LogFile] = field(default_factory=list)
    sealed: list[LogFile] = field(default_factory=list)


class GroupWriter:
    """Appends groups to the log files of one folder and syncs each once.

    Args:
        folder: held by this process.
        budget: of the root.
        next_sequence: above every sequence ever used in the folder.
        good_ends: what is known of the files that stand there, by name.
        file_bytes: room that is preallocated for a log file.
        retry_s: how long a refusal to begin a file is repeated without asking the device again, unless `ask_again`.
        now: monotonic seconds.

    Attributes:
        last_kept: position of the last push that became durable, 0 if none did.
        file_kept: whether the present file holds a push.
    """

    def __init__(
        self,
        folder: Folder,
        budget: Budget,
        *,
        next_sequence: int,
        good_ends: dict[str, GoodEnd],
        file_bytes: int,
        retry_s: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._budget = budget
        self._sequence = next_sequence
        self._ends = dict(good_ends)
        self._file_bytes = file_bytes
        self._retry_s = retry_s
        self._now = now
        self._refusal: tuple[float, int, Exception] | None = None  # until when, from which size on, why
        self._log: LogWriter | None = None
        self._file: LogFile | None = None
        self.last_kept = 0
        self.file_kept = False

    @property
    def room_bytes(self) -> int:
        """What the present file still takes, without the room of its last note."""
        return self._log.allocated - self._log.end - HEADER_BYTES if self._log else 0

    def commit(self, pushes: Sequence[Push], outcome: Outcome) -> None:
        """Write all of them and return when each is durable or refused; `outcome` has a part for every one, in order.

        Nothing is raised: an error belongs to the pushes it hit, and the next group begins a new file.
        """
        at = 0
        while at < len(pushes):
            frame_bytes = HEADER_BYTES + len(pushes[at].body)
            if frame_bytes > self.room_bytes and (error := self._next_file(frame_bytes, outcome)):
                outcome.parts.append(Part(1, error=error))
                at += 1
                continue
            count, room = 0, self.room_bytes
            while at + count < len(pushes) and (room := room - HEADER_BYTES - len(pushes[at + count].body)) >= 0:
                count += 1
            outcome.parts.append(self._append(pushes[at : at + count], outcome))
            at += count

    def ask_again(self) -> None:
        """Room may have come back: forget a refusal."""
        self._refusal = None

    def make_room(self, outcome: Outcome) -> Exception | None:
        """Begin the next file if the present one takes nothing any more; says why it could not."""
        if self.room_bytes >= SMALLEST_FRAME_BYTES:
            return None
        return self._next_file(SMALLEST_FRAME_BYTES, outcome)

    def finish(self, outcome: Outcome) -> None:
        """End the present file for good, with a note that vouches for its last group: no other file will."""
        if self._log is not None and self._file is not None and self.file_kept:
            note = encode_frame(self._sequence, encode_closing_tag(self._log.synced), b"", salt=self._file.salt)
            self._sequence += 1
            try:
                self._log.append(note)
                self._log.sync()
            except OSError as error:
                _log.warning("spool file ended without its note", file=str(self._log.path), error=str(error))
        self.seal(outcome)

    def seal(self, outcome: Outcome) -> None:
        """End the present file at its last synced byte; the next push begins a new one."""
        if self._log is None or self._file is None:
            return
        log, file = self._log, self._file
        self._log = self._file = None
        self.file_kept = False
        # Not synced: a failed sync must not be followed by another, and for a good file it only gives room back.
        with contextlib.suppress(OSError):
            log.seal()
        self._ends[log.path.name] = GoodEnd(log.synced)
        outcome.sealed.append(file)

    def close(self) -> None:
        """Let go of the present file as it is."""
        if self._log is not None:
            self._log.close()

    def _append(self, pushes: Sequence[Push], outcome: Outcome) -> Part:
        if self._log is None:
            raise AssertionError("a file was begun before")
        part = Part(len(pushes), file=self._file, first_position=self._sequence)
        frames: list[bytes] = []
        at = self._log.end
        for push in pushes:
            frames += (self._header(push, self._log.synced), push.body)
            part.starts.append(at)
            at += HEADER_BYTES + len(push.body)
        part.end = at
        try:
            self._log.append(*frames)
            self._log.sync()
        except OSError as error:
            _log.error("spool write failed, going on in a new file", file=str(self._log.path), error=str(error))
            self.seal(outcome)
            return Part(len(pushes), error=_as_spool_error(error))
        self.last_kept = self._sequence - 1
        self.file_kept = True
        return part

    def _header(self, push: Push, synced: int) -> bytes:
        sequence = self._sequence
        self._sequence += 1
        return encode_header(sequence, encode_tag(push, synced), push.body, salt=self._file.salt if self._file else 0)

    def _next_file(self, frame_bytes: int, outcome: Outcome) -> Exception | None:
        """Begin a file with room for one such frame. The present one stays in use if that fails."""
        if self._refusal and self._now() < self._refusal[0] and frame_bytes >= self._refusal[1]:
            return self._refusal[2]
        error = self._begin_file(frame_bytes, outcome)
        self._refusal = (self._now() + self._retry_s, frame_bytes, error) if error else None
        return error

    def _begin_file(self, frame_bytes: int, outcome: Outcome) -> Exception | None:
        ends = dict(self._ends)
        if self._log is not None:
            ends[self._log.path.name] = GoodEnd(self._log.synced)
        salt = secrets.randbits(32)
        opening = encode_frame(self._sequence, OPENING_TAG, encode_opening(_newest(ends)), salt=salt)
        least = len(opening) + frame_bytes + HEADER_BYTES
        try:
            with self._budget.claim(max(self._file_bytes, least), least) as granted:
                log = self._create(salt, granted, least)
            try:
                log.append(opening)
            except OSError:
                log.seal()
                raise
        except SpoolFullError as error:
            return error
        except OSError as error:
            return _as_spool_error(error)
        self.seal(outcome)
        self._ends = _newest(self._ends)
        self._log = log
        self._file = LogFile(log.path, salt, self._sequence, length=log.allocated)
        self._sequence += 1
        outcome.opened.append(self._file)
        return None

    def _create(self, salt: int, granted: int, least: int) -> LogWriter:
        path = self._folder.path / log_name(self._sequence, salt)
        while True:
            try:
                return LogWriter(self._folder.fs, path, granted)
            except OSError as error:
                # The device has less room than we may take: a smaller file is better than none.
                if error.errno not in NO_ROOM or granted == least:
                    raise
                granted = max(granted // 2, least)


def _newest(ends: dict[str, GoodEnd]) -> dict[str, GoodEnd]:
    """The files of which a note still has to tell: older ones stand in the notes of these."""
    return dict(sorted(ends.items())[-_STATED_ENDS_MAX:])


def _as_spool_error(error: OSError) -> Exception:
    if error.errno in NO_ROOM:
        return SpoolFullError(f"the spool's device has no room: {error.strerror}")
    return SpoolBrokenError(f"the spool's device failed: {error.strerror}")
