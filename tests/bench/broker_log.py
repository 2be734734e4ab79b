"""Reads a topic off the disk of a broker of our own: the only way to look at every record of tens of millions.

A batch of Kafka's record format 2, big endian:

```text
base offset i64 | length i32 (of what follows) | leader epoch i32 | magic u8 | CRC u32 | attributes u16
last offset delta i32 | first and last timestamp i64 i64 | producer id i64 | its epoch i16 | sequence i32 | records i32
records, compressed as bits 0-2 of the attributes say; bit 4: in a transaction; bit 5: a control record
```

A control record's key begins, after five small integers of one byte each, with its version and type: 0 abort, 1 commit.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import cramjam

_HEADER: Final = struct.Struct(">qiiBIHiqqqhii")
_LENGTH_FROM: Final = 12
"""The length counts from behind itself."""

_COMPRESSION, _TRANSACTIONAL, _CONTROL = 0b111, 1 << 4, 1 << 5
_NONE, _ZSTD = 0, 4
_CONTROL_KEY_AT: Final = 5
_CONTROL_KEY: Final = struct.Struct(">hh")
_COMMIT: Final = 1


class Batch(NamedTuple):
    """Records that were written together and are visible to `read_committed` readers.

    Attributes:
        records: how many.
        data: all of them, uncompressed, as they stand in the batch.
    """

    records: int
    data: bytes


def batches(data_folder: Path, topic: str, partition: int) -> Iterator[Batch]:
    """Every committed batch of a partition in the order of the commits; what was aborted, or is open, is left out.

    Raises:
        ValueError: a batch has another format or compression.
    """
    waiting: dict[int, list[Batch]] = defaultdict(list)
    for segment in sorted((data_folder / f"{topic}-{partition}").glob("*.log")):
        with segment.open("rb") as file:
            while len(head := file.read(_HEADER.size)) == _HEADER.size:
                _, length, _, magic, _, attributes, *_, producer, _, _, records = _HEADER.unpack(head)
                body = file.read(length + _LENGTH_FROM - _HEADER.size)
                if len(body) < length + _LENGTH_FROM - _HEADER.size:
                    break
                if magic != 2:
                    raise ValueError(f"{segment} holds a batch of format {magic}")
                if attributes & _CONTROL:
                    ended = waiting.pop(producer, [])
                    if _CONTROL_KEY.unpack_from(body, _CONTROL_KEY_AT)[1] == _COMMIT:
                        yield from ended
                    continue
                batch = Batch(records, _plain(body, attributes & _COMPRESSION))
                if attributes & _TRANSACTIONAL:
                    waiting[producer].append(batch)
                else:
                    yield batch


def size_bytes(data_folder: Path, topic: str) -> int:
    """Bytes of a topic's log, compressed as they were sent."""
    return sum(segment.stat().st_size for segment in data_folder.glob(f"{topic}-*/*.log"))


def _plain(body: bytes, compression: int) -> bytes:
    if compression == _NONE:
        return body
    if compression == _ZSTD:
        return bytes(cramjam.zstd.decompress(body))
    raise ValueError(f"a batch is compressed in another way ({compression}) than we write")
