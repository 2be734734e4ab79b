"""Record batches read without aiokafka: what it reads is read the same, and what it fails on is read, too."""

import struct

import google_crc32c
import pytest
from aiokafka.codec import gzip_decode, lz4_decode, snappy_decode, zstd_decode
from aiokafka.record.memory_records import MemoryRecords

from consumers.engine.batches import DamagedBatchError, RawRecord, Stretch, read_stretch
from tests.poison import CODECS, Raw, a_batch

DECOMPRESS = {1: gzip_decode, 2: snappy_decode, 3: lz4_decode, 4: zstd_decode}
RECORDS = [
    Raw(b"key", b"value", [(b"name", b"of a header"), (b"empty", b""), (b"none", None)]),
    Raw(None, None),
    Raw(b"", b"", timestamp_ms=1_600_000_000_000),
    Raw(b"k" * 300, b"v" * 70_000, [("ä".encode(), b"x" * 200)]),
]


def read(data: bytes, *, offset: int = 0, aborted: tuple[tuple[int, int], ...] = ()) -> Stretch:
    """With every codec."""
    return read_stretch(data, partition=3, offset=offset, aborted=aborted, codecs=DECOMPRESS)


def at(batch: bytes, offset: int) -> bytes:
    """A batch as a broker that has put it there sends it: the base offset is outside of the checksum."""
    return struct.pack(">q", offset) + batch[8:]


def changed(batch: bytes, at_byte: int, form: str, value: int) -> bytes:
    """A batch with another value in its header, and the checksum that goes with it."""
    data = bytearray(batch)
    struct.pack_into(form, data, at_byte, value)
    struct.pack_into(">I", data, 17, google_crc32c.value(bytes(data[21:])))
    return bytes(data)


@pytest.mark.parametrize("codec", CODECS)
def test_it_reads_what_aiokafka_reads(codec: str) -> None:
    """Offsets, times, keys, values and headers, with every codec, over several batches."""
    data = at(a_batch(RECORDS, codec=codec), 40) + at(a_batch(RECORDS[:1], codec=codec), 44)
    known, batches = [], MemoryRecords(data)
    while batches.has_next():
        known += [
            RawRecord(3, one.offset, one.timestamp, one.key, one.value, list(one.headers))
            for one in batches.next_batch() or ()
        ]

    assert read(data, offset=40) == Stretch(known, 45, None)
    assert len(known) == 5


@pytest.mark.parametrize("codec", CODECS)
def test_a_header_that_cannot_be_named_is_left_out(codec: str) -> None:
    """The record is there with its other headers, and so are its neighbours."""
    odd = Raw(b"key", b"value", [(b"\xff\xfe", b"1"), (b"good", b"2"), (b"\xed\xa0\x80", b"3")])

    stretch = read(a_batch([RECORDS[0], odd, RECORDS[1]], codec=codec))

    assert [record.headers for record in stretch.records] == [RECORDS_0_HEADERS, [("good", b"2")], []]
    assert stretch.damage is None


RECORDS_0_HEADERS = [("name", b"of a header"), ("empty", b""), ("none", None)]


def test_a_batch_may_begin_before_what_was_asked_for() -> None:
    """What was read before is not handed out again."""
    stretch = read(at(a_batch(RECORDS), 10), offset=12)

    assert [record.offset for record in stretch.records] == [12, 13]
    assert stretch.next_offset == 14


def test_a_batch_that_the_answer_cut_is_left_for_the_next() -> None:
    """Whole batches before it count."""
    whole, cut = a_batch(RECORDS[:2]), at(a_batch(RECORDS), 2)

    assert read(whole + cut[:-1]) == read(whole) == read(whole + cut[:20])
    assert read(whole).next_offset == 2


@pytest.mark.parametrize(
    ("batch", "why"),
    [
        (a_batch(RECORDS)[:-1] + b"\1", "checksum"),
        (changed(a_batch(RECORDS), 21, ">h", 5), "codec of number 5"),
        (changed(a_batch(RECORDS), 21, ">h", 4), "cannot be decompressed"),
        (changed(a_batch(RECORDS), 16, ">b", 1), "message format 1"),
        (changed(a_batch(RECORDS), 57, ">i", 5), "longer than the batch"),
        (changed(a_batch(RECORDS), 61, ">B", 70), "another size"),
    ],
    ids=["checksum", "unknown codec", "not compressed so", "old format", "too few records", "wrong size"],
)
def test_damage_ends_the_reading(batch: bytes, why: str) -> None:
    """What stands before it is handed out; it is named, and never passed over."""
    stretch = read(at(a_batch(RECORDS[:2]), 5) + at(batch, 7), offset=5)

    assert [record.offset for record in stretch.records] == [5, 6]
    assert stretch.next_offset == 7
    assert isinstance(stretch.damage, DamagedBatchError)
    assert why in str(stretch.damage)


def a_marker(*, commit: bool) -> bytes:
    """What a broker writes at the end of a transaction of producer 9."""
    batch = a_batch([Raw(struct.pack(">hh", 0, int(commit)), struct.pack(">hi", 0, 0))], producer=(9, 0, -1))
    return changed(batch, 21, ">h", 0x30)


def test_what_was_aborted_is_not_there() -> None:
    """Records of an aborted transaction are passed over up to its marker; those of others and later ones stay."""
    ours = at(a_batch(RECORDS[:2], producer=(9, 0, 0)), 0)
    other = at(a_batch(RECORDS[:1], producer=(8, 0, 0)), 2)
    later = at(a_batch(RECORDS[:1], producer=(9, 0, 2)), 4)
    data = ours + other + at(a_marker(commit=False), 3) + later + at(a_marker(commit=True), 5)

    stretch = read(data, aborted=((9, 0),))

    assert [record.offset for record in stretch.records] == [2, 4]
    assert stretch.next_offset == 6
    assert [record.offset for record in read(data).records] == [0, 1, 2, 4]
