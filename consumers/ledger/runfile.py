"""Files of sealed runs.

```text
header 128: magic 4 | version u16 | zero u16 | digests u64 | room for digests u64 | filter words u64
            | first seal u64 | last seal u64 | after: generation u64, its salt u64, byte u64
            | covered: generation u64, its salt u64, byte u64 | greatest place u64
            | CRC32C of filter, high halves, low halves, places: u32 each | zero u32 | CRC32C of the header so far u32
filter words u64 | high halves u64, ascending | low halves u64 | places u64
```

A run is written under another name, synced and renamed: it is there in whole or not at all. All of it is read and
checked when it is opened: a digest that a flipped bit hides would be a new message. It can always be made again from
the journal.
"""

import contextlib
import mmap
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import numpy as np

from consumers.entry import LedgerDamagedError
from consumers.ledger import bloom
from consumers.ledger.columns import Columns
from consumers.ledger.reading import lost_is_damage
from consumers.ledger.runs import Covered, Reach, Run, Span
from ingest.runtime.files import FileSystem

_VERSION = 1
_MAGIC = b"DLRr"
_HEADER = struct.Struct("<4sHHQQQQQQQQQQQQIIII4x")
_CHECKSUM = struct.Struct("<I")
_HEADER_BYTES = _HEADER.size + _CHECKSUM.size
_WORD_BYTES = 8
_READ_BYTES = 1 << 20
_NAME = re.compile(r"run-(\d{10,})-(\d{10,})\.idx")
_PREFIX, _UNFINISHED = "run-", ".tmp"


class _Header(NamedTuple):
    """What stands before the filter, checksums of the rest included."""

    digests: int
    capacity: int
    words: int
    reach: Reach
    greatest: int
    filter_check: int
    checks: tuple[int, int, int]

    @property
    def begin(self) -> int:
        """Byte at which the first column begins."""
        return _HEADER_BYTES + self.words * _WORD_BYTES

    @property
    def columns(self) -> list[int]:
        """Bytes at which the columns begin."""
        return [self.begin + number * self.capacity * _WORD_BYTES for number in range(len(self.checks))]

    @property
    def size(self) -> int:
        """Of the whole file."""
        return self.begin + len(self.checks) * self.capacity * _WORD_BYTES


def run_name(span: Span) -> str:
    """Name of the file."""
    return f"{_PREFIX}{span.first:010d}-{span.last:010d}.idx"


def parse_name(name: str) -> Span | None:
    """The span of a run's file, None for other files."""
    found = _NAME.fullmatch(name)
    return Span(int(found[1]), int(found[2])) if found else None


def unfinished_name(unique: str) -> str:
    """Name of a file that is to become a run."""
    return f"{_PREFIX}{unique}{_UNFINISHED}"


def is_unfinished(name: str) -> bool:
    """Whether a file is a run that was not finished."""
    return name.startswith(_PREFIX) and name.endswith(_UNFINISHED)


def write_run(fs: FileSystem, path: Path, parts: Iterator[Columns], reach: Reach, capacity: int) -> None:
    """Write a run under an unfinished name and sync it; it counts once it is renamed to `run_name`.

    Args:
        fs: where.
        path: from `unfinished_name`.
        parts: digests, ascending over all parts, none twice.
        reach: what the run is made of.
        capacity: at least how many digests there are.

    Raises:
        OSError: nothing is left behind that counts; so with whatever `parts` raises.
    """
    file = fs.create(path)
    try:
        words = np.zeros(bloom.words_for(capacity), np.uint64)
        header = _Header(0, capacity, len(words), reach, 0, 0, (0, 0, 0))
        count, greatest, checks = 0, 0, [0, 0, 0]
        for part in parts:
            for column, (begin, values) in enumerate(zip(header.columns, part, strict=True)):
                data = values.tobytes()
                checks[column] = google_crc32c.extend(checks[column], data)
                file.pwrite([data], begin + count * _WORD_BYTES)
            bloom.add(words, part.high, part.low)
            count += len(part.high)
            greatest = max(greatest, int(part.places.max(initial=0)))
        data = words.tobytes()
        high, low, places = checks
        header = header._replace(
            digests=count, greatest=greatest, filter_check=google_crc32c.value(data), checks=(high, low, places)
        )
        file.allocate(header.size)
        file.pwrite([_encode(header), data], 0)
        file.sync()
    except BaseException:
        file.close()
        with contextlib.suppress(OSError):  # `recover` removes it otherwise; what ended the writing is what matters
            fs.unlink(path)
        raise
    file.close()


def open_run(path: Path) -> Run:
    """Check a run from end to end and map it from its file.

    Raises:
        LedgerDamagedError: it is not what was written, or cannot be read, or is of another version.
        OSError: the device does not serve.
    """
    with lost_is_damage(path.name):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            header = _checked(descriptor, path.name)
            data = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
        finally:
            os.close(descriptor)
    columns = Columns(*(np.frombuffer(data, np.uint64, header.digests, begin) for begin in header.columns))
    words = np.frombuffer(data, np.uint64, header.words, _HEADER_BYTES)
    return Run(
        header.reach, columns, words, path=path, checks=(*header.checks, header.filter_check), greatest=header.greatest
    )


def _encode(header: _Header) -> bytes:
    span, after, covered = header.reach
    plain = _HEADER.pack(
        _MAGIC,
        _VERSION,
        0,
        header.digests,
        header.capacity,
        header.words,
        *span,
        *after,
        *covered,
        header.greatest,
        header.filter_check,
        *header.checks,
    )
    return plain + _CHECKSUM.pack(google_crc32c.value(plain))


def _decode(data: bytes, name: str) -> _Header:
    plain = data[: _HEADER.size]
    if len(data) < _HEADER_BYTES or not plain.startswith(_MAGIC):
        raise LedgerDamagedError(f"{name} is no run")
    if _CHECKSUM.unpack_from(data, _HEADER.size)[0] != google_crc32c.value(plain):
        raise LedgerDamagedError(f"{name} has a damaged header")
    _, version, _, digests, capacity, words, *rest = _HEADER.unpack(plain)
    if version != _VERSION:
        raise LedgerDamagedError(f"{name} is of version {version}")
    first, last, *points, greatest, filter_check, high, low, places = rest
    reach = Reach(Span(first, last), Covered(*points[:3]), Covered(*points[3:]))
    return _Header(digests, capacity, words, reach, greatest, filter_check, (high, low, places))


def _checked(descriptor: int, name: str) -> _Header:
    """The header of a file that is as it was written. Read, not mapped: what is lost would end the process there."""
    header = _decode(os.pread(descriptor, _HEADER_BYTES, 0), name)
    if os.fstat(descriptor).st_size < header.size:
        raise LedgerDamagedError(f"{name} is cut short")
    lengths = [header.words, *[header.digests] * len(header.checks)]
    begins = [_HEADER_BYTES, *header.columns]
    for begin, length, check in zip(begins, lengths, (header.filter_check, *header.checks), strict=True):
        if _checksum(descriptor, begin, length * _WORD_BYTES) != check:
            raise LedgerDamagedError(f"{name} is not what was written")
    return header


def _checksum(descriptor: int, begin: int, length: int) -> int:
    """CRC32C of a stretch of a file; of what is there, if that is less."""
    value, at, end = 0, begin, begin + length
    while at < end and (data := os.pread(descriptor, min(_READ_BYTES, end - at), at)):
        value = google_crc32c.extend(value, data)
        at += len(data)
    return value
