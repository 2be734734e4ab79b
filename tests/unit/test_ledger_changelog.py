"""The codec of changelog records."""

import json
import struct
from pathlib import Path

import pytest

from consumers.entry import Cursor, Entry, LedgerDamagedError, LedgerFormatError, Position
from consumers.ledger.changelog import FOLD, HEADER_BYTES, RECORD_MAX_BYTES, ROW_BYTES, decode_record, encode_cycle

POSITION = Position(7, 1234, 1_795_428_000_123, Cursor(88, 3))
VECTOR = Path(__file__).parents[1] / "data" / "changelog_v1.json"


def an_entry(number: int, payload: bytes = b"state", **fields: bool) -> Entry:
    """An entry with a digest of its own."""
    return Entry(
        number.to_bytes(16, "big"), 1000 + number, **{"first_seen": True, "waiting": True} | fields, payload=payload
    )


def test_version_1_is_read_and_written_as_it_was() -> None:
    """Bytes that a release wrote stay readable, and the present release writes the same."""
    vector = json.loads(VECTOR.read_text(encoding="utf-8"))
    position = Position(**vector["position"] | {"cursor": Cursor(**vector["position"]["cursor"])})
    entries = [
        Entry(
            bytes.fromhex(one["digest"]), one["seen_at_ms"], one["first_seen"], one["waiting"], one["payload"].encode()
        )
        for one in vector["entries"]
    ]
    record = bytes.fromhex(vector["record"])

    header, decoded = decode_record(record)

    assert header.position == position
    assert decoded == entries
    assert encode_cycle(entries, position) == [record]


def test_entries_keep_order_flags_times_and_payloads() -> None:
    """What goes in comes out, an empty payload and the latest time included."""
    entries = [
        an_entry(1),
        an_entry(2, b"", waiting=False),
        Entry(b"\xff" * 16, 2**48 - 1, first_seen=False, waiting=True, payload=b"x" * 1000),
        an_entry(3, first_seen=False, waiting=False),
    ]

    [record] = encode_cycle(entries, POSITION)

    header, decoded = decode_record(record)
    assert decoded == entries
    assert header == (4, 0, 7, POSITION)


def test_cycle_without_entries_is_one_record_with_the_position() -> None:
    """The empty cycle of an idle partition."""
    [record] = encode_cycle([], POSITION)

    assert decode_record(record) == ((0, 0, 7, POSITION), [])
    assert len(record) == HEADER_BYTES


def test_only_the_last_record_carries_the_position() -> None:
    """The parts of a cycle are numbered, and the position stands in the last."""
    records = encode_cycle([an_entry(n, bytes(100_000)) for n in range(12)], POSITION)

    headers = [decode_record(record)[0] for record in records]
    assert [header.part for header in headers] == list(range(len(records)))
    assert {header.cycle for header in headers} == {7}
    assert [header.position for header in headers] == [*[None] * (len(records) - 1), POSITION]


@pytest.mark.parametrize("spare", [-1, 0, 1])
def test_record_is_filled_to_its_bound_and_not_beyond(spare: int) -> None:
    """Two entries share a record exactly as long as they fit."""
    room = RECORD_MAX_BYTES - HEADER_BYTES - 2 * ROW_BYTES
    entries = [an_entry(1, bytes(1000)), an_entry(2, bytes(room - 1000 - spare))]

    records = encode_cycle(entries, POSITION)

    assert len(records) == (2 if spare < 0 else 1)
    assert max(map(len, records)) <= RECORD_MAX_BYTES
    assert [entry for record in records for entry in decode_record(record)[1]] == entries


@pytest.mark.parametrize("at", [0, 1, 2])
def test_oversize_entry_has_a_record_of_its_own(at: int) -> None:
    """An entry above the bound stands alone, wherever it comes."""
    entries = [an_entry(n) for n in range(2)]
    entries.insert(at, an_entry(9, bytes(RECORD_MAX_BYTES)))

    records = [decode_record(record)[1] for record in encode_cycle(entries, POSITION)]

    assert [entries[at]] in records
    assert [entry for record in records for entry in record] == entries


@pytest.mark.parametrize(
    "entry",
    [
        an_entry(1)._replace(digest=b"short"),
        an_entry(1)._replace(seen_at_ms=-1),
        an_entry(1)._replace(seen_at_ms=2**48),
    ],
)
def test_what_cannot_be_written_is_refused(entry: Entry) -> None:
    """A digest of another length and a time out of range are faults of the caller."""
    with pytest.raises(ValueError, match=r"digest|seen_at_ms"):
        encode_cycle([an_entry(2), entry], POSITION)


@pytest.mark.parametrize("mask", [1, 0x80, 0xFF])
def test_any_changed_byte_of_an_entry_is_noticed(mask: int) -> None:
    """Digest, times, flags, place and length of the payload, the payload, the check: no byte of them goes unseen."""
    entries = [an_entry(1, b""), an_entry(2, waiting=False), an_entry(0x1234, bytes(9))]
    [record] = encode_cycle(entries, POSITION)

    for at in range(HEADER_BYTES, len(record)):
        changed = record[:at] + bytes([record[at] ^ mask]) + record[at + 1 :]
        if 24 <= at - HEADER_BYTES < 28:  # where the empty payload begins: nothing is read from there
            continue
        with pytest.raises(LedgerDamagedError):
            decode_record(changed)


def test_every_changed_byte_moves_the_start_of_the_check() -> None:
    """The multipliers are chosen so that no difference of one byte stays below the half that is kept."""
    for multiplier in FOLD:
        for shift in range(0, 64, 8):
            for difference in range(1, 256):
                moved = (difference << shift) * multiplier % 2**64
                assert 2**32 <= moved <= 2**64 - 2**32


def test_newer_version_is_named() -> None:
    """The line says which format was found and what to do."""
    [record] = encode_cycle([an_entry(1)], POSITION)

    with pytest.raises(LedgerFormatError, match=r"format 2, this release reads up to 1.*newer release"):
        decode_record(record[:4] + struct.pack("<H", 2) + record[6:])


@pytest.mark.parametrize("length", [0, 3, 5, HEADER_BYTES - 1, HEADER_BYTES + 3, -1])
def test_cut_record_is_damage(length: int) -> None:
    """No prefix of a record passes for one."""
    [record] = encode_cycle([an_entry(1)], POSITION)

    with pytest.raises(LedgerDamagedError):
        decode_record(record[:length])


def test_foreign_record_is_damage() -> None:
    """What does not begin as a changelog record is none."""
    with pytest.raises(LedgerDamagedError, match="begin"):
        decode_record(b'{"a":1}' * 20)
