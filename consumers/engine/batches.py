"""Record batches as brokers store and send them (Kafka protocol, message format 2), read leniently and slowly.

aiokafka fails on a whole fetch where the name of one header is not UTF-8, and brokers take such a record. Java clients
put a replacement character there; here such a header is left out, since it cannot be written again as it was. Used for
the bytes that aiokafka has failed on, and for nothing else.

A batch, big endian; sizes inside of records are zigzag varints:

```text
base offset i64 | length i32 | leader epoch i32 | format i8 | CRC32C of what follows u32
attributes i16 (0-2 codec, 3 log append time, 4 transactional, 5 control) | last offset delta i32 | first timestamp i64
greatest timestamp i64 | producer id i64 | producer epoch i16 | base sequence i32 | records i32 | records, compressed
record: length | attributes i8 | timestamp delta | offset delta | key | value | headers: count, then name and value each
```
"""

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import google_crc32c

Decompress = Callable[[bytes], bytes]
Headers = Sequence[tuple[str, Any]]
"""Names and values; a value is bytes, or None."""

_PREFIX = struct.Struct(">qi")
_HEADER = struct.Struct(">qiibIhiqqqhii")
_CONTROL_KEY = struct.Struct(">hh")
_CHECKED_FROM = struct.calcsize(">qiibI")

_FORMAT = 2
_CODEC = 0x07
_LOG_APPEND_TIME = 0x08
_TRANSACTIONAL = 0x10
_CONTROL = 0x20
_ABORT = 0


class DamagedBatchError(Exception):
    """The bytes of a batch are not what a producer wrote, or are compressed in a way that is not known here."""


class RawRecord(NamedTuple):
    """A record as a Kafka client hands it out (`consumers.engine.record.Record`)."""

    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers


class Stretch(NamedTuple):
    """What some bytes hold.

    Attributes:
        records: those that a `read_committed` reader sees.
        next_offset: behind the last batch that was read, whatever stood in it.
        damage: why reading ended before the end of the bytes, None if it did not.
    """

    records: list[RawRecord]
    next_offset: int
    damage: DamagedBatchError | None


class _Batch(NamedTuple):
    base_offset: int
    attributes: int
    next_offset: int
    first_timestamp: int
    last_timestamp: int
    producer_id: int
    size: int
    body: bytes


def read_stretch(
    data: bytes, *, partition: int, offset: int, aborted: Sequence[tuple[int, int]], codecs: Mapping[int, Decompress]
) -> Stretch:
    """Read batches up to the first damaged one, or one that the fetch has cut.

    Args:
        data: of the partition, from the answer to a fetch.
        partition: its number.
        offset: that was asked for; batches may begin before it.
        aborted: (producer id, first offset) of transactions that were aborted, from the same answer.
        codecs: by their number in the attributes.
    """
    records: list[RawRecord] = []
    waiting = sorted(aborted, key=lambda one: one[1])
    gone: set[int] = set()
    try:
        for batch in _batches(data):
            while waiting and waiting[0][1] <= batch.base_offset:
                gone.add(waiting.pop(0)[0])
            if batch.attributes & _CONTROL:
                if _is_abort(batch):
                    gone.discard(batch.producer_id)
            elif not (batch.attributes & _TRANSACTIONAL and batch.producer_id in gone):
                found = _records(batch, partition, codecs)
                records += [record for record in found if record.offset >= offset]
            offset = max(offset, batch.next_offset)
    except DamagedBatchError as error:
        return Stretch(records, offset, error)
    return Stretch(records, offset, None)


def _batches(data: bytes) -> Iterator[_Batch]:
    start = 0
    while start + _HEADER.size <= len(data):
        base_offset, length = _PREFIX.unpack_from(data, start)
        end = start + _PREFIX.size + length
        if end > len(data):
            return
        head = _HEADER.unpack_from(data, start)
        _, _, _, version, checksum, attributes, last_delta, first_ms, last_ms, producer, _, _, count = head
        if version != _FORMAT or length < _HEADER.size - _PREFIX.size:
            raise DamagedBatchError(f"it has message format {version}")
        if checksum != google_crc32c.value(data[start + _CHECKED_FROM : end]):
            raise DamagedBatchError("its checksum is wrong")
        body = data[start + _HEADER.size : end]
        yield _Batch(base_offset, attributes, base_offset + last_delta + 1, first_ms, last_ms, producer, count, body)
        start = end


def _is_abort(batch: _Batch) -> bool:
    record = next(_decode(batch, batch.body, 0), None)
    if record is None or record.key is None or len(record.key) < _CONTROL_KEY.size:
        raise DamagedBatchError("it marks the end of a transaction and says not how")
    return bool(_CONTROL_KEY.unpack_from(record.key)[1] == _ABORT)


def _records(batch: _Batch, partition: int, codecs: Mapping[int, Decompress]) -> list[RawRecord]:
    body, codec = batch.body, batch.attributes & _CODEC
    if codec:
        if codec not in codecs:
            raise DamagedBatchError(f"it is compressed by a codec of number {codec}")
        try:
            body = codecs[codec](body)
        except Exception as error:  # each codec has errors of its own
            raise DamagedBatchError(f"it cannot be decompressed: {type(error).__name__}") from error
    return list(_decode(batch, body, partition))


def _decode(batch: _Batch, body: bytes, partition: int) -> Iterator[RawRecord]:
    reader = _Reader(body)
    for _ in range(batch.size):
        end = reader.varint() + reader.at
        reader.skip(1)
        timestamp = batch.first_timestamp + reader.varint()
        if batch.attributes & _LOG_APPEND_TIME:
            timestamp = batch.last_timestamp
        offset = batch.base_offset + reader.varint()
        key, value = reader.some(), reader.some()
        headers = [(reader.some() or b"", reader.some()) for _ in range(reader.varint())]
        if reader.at != end:
            raise DamagedBatchError("a record in it has another size than it says")
        yield RawRecord(partition, offset, timestamp, key, value, _representable(headers))


def _representable(headers: Sequence[tuple[bytes, bytes | None]]) -> Headers:
    kept = []
    for name, value in headers:
        try:
            kept.append((name.decode(), value))
        except UnicodeDecodeError:
            continue
    return kept


class _Reader:
    """Takes sized things from bytes, one after the other.

    Attributes:
        at: how many bytes were taken.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:  # noqa: PLR2004 - the bit that says that more follows
                return (value >> 1) ^ -(value & 1)
            shift += 7

    def some(self) -> bytes | None:
        """Bytes with their length before them, None for a negative one."""
        length = self.varint()
        return None if length < 0 else self._take(length)

    def skip(self, count: int) -> None:
        self._take(count)

    def _take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self._data):
            raise DamagedBatchError("a record in it is longer than the batch")
        taken, self.at = self._data[self.at : end], end
        return taken
