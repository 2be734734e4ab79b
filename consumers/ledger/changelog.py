"""Changelog records: the entries of a cycle, packed so that a restore reads them without a loop over the entries.

A record, little endian:

```text
magic 4 | version u16 | flags u16 (1: last of its cycle) | entries u32 | part u32 | cycle u64
next input offset u64 | clock ms u64 | cursor offset u64 | cursor index u32 | memory from s u32 (last only)
entries x row: digest 16 | seen at ms << 8 | flags (1: first seen, 2: waiting) u64 | payload start u32 | length u32
               | check u32
payloads
```

A payload start counts from the beginning of its row, so that a row can be read where it stands, without its record.
The check is the CRC32C of the payload, started from a fold of digest and times: the upper half of the sum of the three
words of the row, each multiplied by an odd constant of its own, modulo 2**64. One changed byte, in the row or in the
payload, always changes it. So an entry that is read by its place is known to be what was encoded, and no record has to
be read for it. A record as a whole is covered by the checksums of Kafka and of the journal's frames.

A changed layout gets a new version; the one before stays readable, and a new one is written one release after it can be
read (ARCHITECTURE.md).
"""

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import google_crc32c
import numpy as np
import numpy.typing as npt

from consumers.entry import (
    DIGEST_BYTES,
    SEEN_AT_LIMIT_MS,
    Cursor,
    Entry,
    LedgerDamagedError,
    LedgerFormatError,
    Position,
)

VERSION = 1
RECORD_MAX_BYTES = 512 * 1024
"""Most that a record of more than one entry has."""

ROW = np.dtype(
    [("high", "<u8"), ("low", "<u8"), ("meta", "<u8"), ("start", "<u4"), ("length", "<u4"), ("check", "<u4")]
)
ROW_BYTES = ROW.itemsize
FIRST_SEEN = 1
WAITING = 2
SEEN_AT_SHIFT = 8

Rows = npt.NDArray[np.void]
"""Array of `ROW`."""

Lengths = npt.NDArray[np.int64]
"""Counts and distances."""

# No byte that changes moves a product by less than 2**32: the upper half shows it.
FOLD = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)
"""Odd multipliers of a row's words: high, low, meta."""

_HIGH, _LOW, _META = map(np.uint64, FOLD)
_HALF = np.uint64(32)
_WRONG_DIGEST = f"a digest has {DIGEST_BYTES} bytes"
_MAGIC = b"DLRl"
_LAST = 1
_HEADER = struct.Struct("<4sHHIIQQQQII")
_VERSION = struct.Struct("<4sH")
HEADER_BYTES = _HEADER.size


class Header(NamedTuple):
    """What stands before the rows.

    Attributes:
        entries: number of rows.
        part: number of the record within its cycle, from 0.
        cycle: number of the cycle.
        position: in the last record of a cycle, else None.
    """

    entries: int
    part: int
    cycle: int
    position: Position | None


def encode_cycle(entries: Sequence[Entry], position: Position) -> list[bytes]:
    """The records of one cycle in order: at least one, at most `RECORD_MAX_BYTES` each unless it has one entry only.

    Raises:
        ValueError: a digest or a time that cannot be written.
    """
    if not entries:
        return [_header(0, 0, position, last=True)]
    digests, seen_at, first_seen, waiting, payloads = zip(*entries, strict=True)
    if set(map(len, digests)) != {DIGEST_BYTES}:
        raise ValueError(_WRONG_DIGEST)
    rows = np.empty(len(entries), ROW)
    rows["high"], rows["low"] = split_digests(digests)
    rows["meta"] = _metas(seen_at, first_seen, waiting)
    lengths = np.fromiter(map(len, payloads), np.int64, len(payloads))
    rows["length"] = lengths
    rows["check"] = np.fromiter(_checks(rows, payloads), np.uint32, len(payloads))
    ends = np.cumsum(lengths + ROW_BYTES)
    cuts = _cuts(ends)
    records = []
    for part, (first, after) in enumerate(zip([0, *cuts], [*cuts, len(entries)], strict=True)):
        some = rows[first:after]
        some["start"] = _starts(lengths[first:after])
        head = _header(after - first, part, position, last=after == len(entries))
        records.append(b"".join((head, some.tobytes(), *payloads[first:after])))
    return records


def read_header(value: bytes, size: int | None = None) -> Header:
    """Check and read the header of a record.

    Args:
        value: the record, or the beginning of it.
        size: of the whole record; by default that of `value`.

    Raises:
        LedgerFormatError: written by a newer release.
        LedgerDamagedError: no changelog record.
    """
    if len(value) < _VERSION.size or not value.startswith(_MAGIC):
        raise LedgerDamagedError("a changelog record does not begin as one")
    version = _VERSION.unpack_from(value)[1]
    if version > VERSION:
        raise LedgerFormatError(
            f"the changelog was written in format {version}, this release reads up to {VERSION}: "
            "go back to the newer release"
        )
    if version < 1 or len(value) < HEADER_BYTES:
        raise LedgerDamagedError("a changelog record has no whole header")
    _, _, flags, entries, part, cycle, next_offset, clock_ms, at, index, accepted = _HEADER.unpack_from(value)
    if (len(value) if size is None else size) < HEADER_BYTES + entries * ROW_BYTES:
        raise LedgerDamagedError("a changelog record is shorter than its entries")
    position = Position(cycle, next_offset, clock_ms, Cursor(at, index), accepted) if flags & _LAST else None
    return Header(entries, part, cycle, position)


def row_bytes(value: bytes, entries: int) -> bytes:
    """The rows of a record as bytes."""
    return value[HEADER_BYTES : HEADER_BYTES + entries * ROW_BYTES]


def rows_of(data: bytes) -> Rows:
    """Bytes as rows, without a copy."""
    return np.frombuffer(data, ROW)


def decode_record(value: bytes) -> tuple[Header, list[Entry]]:
    """A record in full, entry by entry: for tests and tools; a restore takes `row_bytes`.

    Raises:
        LedgerFormatError: as `read_header`.
        LedgerDamagedError: as `read_header`, or a payload lies outside, or an entry is not what was encoded.
    """
    header = read_header(value)
    rows = rows_of(row_bytes(value, header.entries))
    entries = []
    for index, row in enumerate(rows.tolist()):
        high, low, meta, start, length, _ = row
        begin = HEADER_BYTES + index * ROW_BYTES + start
        if begin + length > len(value):
            raise LedgerDamagedError("a payload lies outside its changelog record")
        digest = high.to_bytes(8, "little") + low.to_bytes(8, "little")
        payload = value[begin : begin + length]
        entries.append(Entry(digest, meta >> SEEN_AT_SHIFT, bool(meta & FIRST_SEEN), bool(meta & WAITING), payload))
    if not are_whole(rows, [entry.payload for entry in entries]):
        raise LedgerDamagedError("an entry is not what was encoded")
    return header, entries


def are_whole(rows: Rows, payloads: Sequence[bytes]) -> bool:
    """Whether every row and its payload are what was encoded."""
    checks: list[int] = rows["check"].tolist()
    return list(_checks(rows, payloads)) == checks


def split_digests(digests: Sequence[bytes]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Digests, of 16 bytes each, as two columns of 64 bits, the form in which they are compared and sorted.

    Raises:
        ValueError: they have not 16 bytes on average; looking at each would be a quarter of what a lookup costs.
    """
    joined = b"".join(digests)
    if len(joined) != DIGEST_BYTES * len(digests):
        raise ValueError(_WRONG_DIGEST)
    pairs = np.frombuffer(joined, "<u8").reshape(-1, 2)
    return np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1])


def _checks(rows: Rows, payloads: Sequence[bytes]) -> Iterator[int]:
    high, low, meta = (np.asarray(rows[name], np.uint64) for name in ("high", "low", "meta"))
    folds = (high * _HIGH + low * _LOW + meta * _META) >> _HALF
    return map(google_crc32c.extend, folds.tolist(), payloads)


def _metas(seen_at: Sequence[int], first_seen: Sequence[bool], waiting: Sequence[bool]) -> npt.NDArray[np.uint64]:
    times = np.array(seen_at, np.int64)
    if times.min() < 0 or times.max() >= SEEN_AT_LIMIT_MS:
        raise ValueError(f"seen_at_ms is not within 0 and {SEEN_AT_LIMIT_MS - 1}")
    metas = times << SEEN_AT_SHIFT
    metas |= np.frombuffer(bytes(first_seen), np.uint8) * FIRST_SEEN
    metas |= np.frombuffer(bytes(waiting), np.uint8) * WAITING
    return metas.view(np.uint64)


def _cuts(ends: npt.NDArray[np.int64]) -> list[int]:
    """Indexes at which a new record begins; `ends` are the sizes of rows and payloads, added up."""
    cuts: list[int] = []
    begin, first = 0, 0
    while int(ends[-1]) - begin > RECORD_MAX_BYTES - HEADER_BYTES:
        fit = int(np.searchsorted(ends, begin + RECORD_MAX_BYTES - HEADER_BYTES, "right"))
        first = max(fit, first + 1)
        if first >= len(ends):
            break
        cuts.append(first)
        begin = int(ends[first - 1])
    return cuts


def _starts(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Distance of each payload from its row."""
    rows_left = np.arange(len(lengths), 0, -1, dtype=np.int64) * ROW_BYTES
    before = np.cumsum(lengths) - lengths
    return rows_left + before


def _header(entries: int, part: int, position: Position, *, last: bool) -> bytes:
    told = (
        (position.next_offset, position.clock_ms, position.cursor.offset, position.cursor.index, position.memory_from_s)
        if last
        else (0, 0, 0, 0, 0)
    )
    return _HEADER.pack(_MAGIC, VERSION, _LAST if last else 0, entries, part, position.cycle, *told)
