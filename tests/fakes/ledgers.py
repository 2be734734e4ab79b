"""A ledger in memory, as plain as can be: what the engine is tested with, and what the real one must equal."""

from collections.abc import Sequence

import msgspec

from consumers.entry import Cursor, Due, Entry, LedgerDamagedError, Position

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(tuple[list[Entry], Position | None])


class MemoryLedger:
    """Keeps every entry in a dict, and the order of first sights in a list."""

    def __init__(self, entries_per_record: int = 100) -> None:
        """Begin empty.

        Args:
            entries_per_record: how a cycle is cut into changelog records.
        """
        self._entries_per_record = entries_per_record
        self.closed = False
        self.discarded = 0
        self._empty()

    def _empty(self) -> None:
        self._entries: dict[bytes, Entry] = {}
        self._sights: list[tuple[Cursor, bytes, int]] = []
        self._next_offset = 0
        self.position: Position | None = None

    def lookup(self, digests: Sequence[bytes]) -> list[bytes | None]:
        """Payloads in the order asked for."""
        return [entry.payload if (entry := self._entries.get(digest)) else None for digest in digests]

    def encode(self, entries: Sequence[Entry], position: Position) -> list[bytes]:
        """Records of some entries each; the last has the position."""
        size = self._entries_per_record
        parts = [entries[start : start + size] for start in range(0, len(entries), size)] or [()]
        return [
            _encoder.encode((part, position if number == len(parts) - 1 else None)) for number, part in enumerate(parts)
        ]

    def apply(self, records: Sequence[tuple[int, bytes]]) -> int:
        """Take records in, whatever cycles they belong to."""
        count = 0
        for offset, value in records:
            if offset < self._next_offset:
                raise LedgerDamagedError(f"offset {offset} does not rise")
            entries, position = _decoder.decode(value)
            for index, entry in enumerate(entries):
                self._entries[entry.digest] = entry
                if entry.first_seen:
                    self._sights.append((Cursor(offset, index), entry.digest, entry.seen_at_ms))
            if position is not None:
                self.position = position
            self._next_offset = offset + 1
            count += len(entries)
        return count

    def next_changelog_offset(self) -> int:
        """After the last record."""
        return self._next_offset

    def due(self, cursor: Cursor, seen_until_ms: int, limit: int) -> Due:
        """Walk all first sights from the cursor on."""
        messages: list[tuple[bytes, bytes]] = []
        for place, digest, seen_at_ms in self._sights:
            if place < cursor:
                continue
            if seen_at_ms > seen_until_ms:
                return Due(messages, place, more=False)
            if len(messages) == limit:
                return Due(messages, place, more=True)
            entry = self._entries[digest]
            if entry.waiting and entry.seen_at_ms == seen_at_ms:
                messages.append((digest, entry.payload))
        return Due(messages, max(cursor, Cursor(self._next_offset, 0)), more=False)

    def forget(self, before_ms: int) -> None:
        """Keep everything: whoever decodes a payload decides."""

    def waiting(self) -> int:
        """Count them."""
        return sum(entry.waiting for entry in self._entries.values())

    def flush(self) -> None:
        """Nothing to do."""

    def discard(self) -> None:
        """Forget all."""
        self.discarded += 1
        self._empty()

    def close(self) -> None:
        """Remember that it was closed."""
        self.closed = True


class MemoryStore:
    """Ledgers that live as long as the store."""

    def __init__(self) -> None:
        """Begin with none."""
        self.ledgers: dict[int, MemoryLedger] = {}
        self.closed = False

    def open(self, partition: int) -> MemoryLedger:
        """The ledger of a partition, as it was left."""
        ledger = self.ledgers.setdefault(partition, MemoryLedger())
        ledger.closed = False
        return ledger

    def close(self) -> None:
        """Remember that it was closed."""
        self.closed = True
