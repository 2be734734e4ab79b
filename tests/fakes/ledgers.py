# ruff: noqa: D102 - the promises stand at the protocol
"""A ledger in dictionaries: the promise of `consumers.engine.protocols` with nothing clever about it.

The engine is tested with it, and the real one must equal it. Its changelog records are those of the real one, so that a
changelog can be handed from one to the other.
"""

from collections.abc import Sequence
from typing import NamedTuple

from consumers.entry import Cursor, Due, Entry, LedgerDamagedError, Position
from consumers.ledger.changelog import Header, decode_record, encode_cycle, read_header


class _Sight(NamedTuple):
    """An entry of a message that waits, at its place in the changelog."""

    place: Cursor
    entry: Entry


class MemoryLedger:
    """Implements `Ledger`; closed and opened again it is as it was. It forgets as soon as it may, cycle by cycle.

    Attributes:
        closed: whether it was closed and not opened since.
        discarded: how often it was discarded.
    """

    def __init__(self) -> None:
        """Begin empty."""
        self.closed = False
        self.discarded = 0
        self._empty()

    def _empty(self) -> None:
        self._cycles: list[tuple[int, Position]] = []  # last offset and position of each cycle
        self._entries: dict[bytes, tuple[int, Entry]] = {}  # with the offset of the cycle's last record
        self._sights: list[_Sight] = []
        self._unfinished: list[tuple[int, Header, list[Entry]]] = []

    @property
    def position(self) -> Position | None:
        return self._cycles[-1][1] if self._cycles else None

    def position_of(self, value: bytes) -> Position | None:
        return read_header(value).position

    def lookup(self, digests: Sequence[bytes]) -> list[bytes | None]:
        found = (self._entries.get(digest) for digest in digests)
        return [one[1].payload if one else None for one in found]

    def encode(self, entries: Sequence[Entry], position: Position) -> list[bytes]:
        return encode_cycle(entries, position)

    def apply(self, records: Sequence[tuple[int, bytes]]) -> int:
        unfinished, whole = list(self._unfinished), []
        position, last_offset, count = self.position, self.next_changelog_offset() - 1, 0
        for offset, value in records:
            header, entries = decode_record(value)
            if offset <= last_offset or not _follows(header, unfinished, position):
                raise LedgerDamagedError(f"the record at {offset} does not follow")
            unfinished.append((offset, header, entries))
            last_offset, count = offset, count + len(entries)
            if header.position is not None:
                whole.append((unfinished, header.position))
                unfinished, position = [], header.position
        for cycle, its_position in whole:
            self._take(cycle, its_position)
        self._unfinished = unfinished
        return count

    def next_changelog_offset(self) -> int:
        if self._unfinished:
            return self._unfinished[-1][0] + 1
        return self._cycles[-1][0] + 1 if self._cycles else 0

    def due(self, cursor: Cursor, seen_until_ms: int, limit: int) -> Due:
        messages: dict[bytes, bytes] = {}
        for place, sight in self._sights:
            if place < cursor:
                continue
            _, latest = self._entries.get(sight.digest, (0, None))
            still = latest is not None and latest.waiting and latest.seen_at_ms == sight.seen_at_ms
            full = len(messages) == limit and still and sight.digest not in messages
            if sight.seen_at_ms > seen_until_ms or full:
                return Due(list(messages.items()), place, full)
            if latest is not None and still:
                messages[sight.digest] = latest.payload
        end = Cursor(self._cycles[-1][0] + 1 if self._cycles else 0)
        return Due(list(messages.items()), max(end, cursor), more=False)

    def forget(self, before_ms: int) -> None:
        if self.position is None:
            return
        kept = next(
            (
                offset
                for offset, position in self._cycles
                if position.clock_ms >= before_ms or self.position.cursor.offset <= offset
            ),
            self._cycles[-1][0],
        )
        self._entries = {key: one for key, one in self._entries.items() if one[0] >= kept}

    def waiting(self) -> int:
        return sum(entry.waiting for _, entry in self._entries.values())

    def flush(self) -> None:
        return

    def discard(self) -> None:
        self.discarded += 1
        self._empty()

    def close(self) -> None:
        self.closed = True
        self._unfinished = []

    def _take(self, cycle: Sequence[tuple[int, Header, list[Entry]]], position: Position) -> None:
        last_offset = cycle[-1][0]
        for offset, _, entries in cycle:
            for index, entry in enumerate(entries):
                self._entries[entry.digest] = (last_offset, entry)
                if entry.waiting:
                    self._sights.append(_Sight(Cursor(offset, index), entry))
        self._cycles.append((last_offset, position))


class MemoryStore:
    """Implements `LedgerStore`.

    Attributes:
        ledgers: those that were opened, by partition.
        closed: whether it was closed.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self.ledgers: dict[int, MemoryLedger] = {}
        self.closed = False

    def open(self, partition: int) -> MemoryLedger:
        ledger = self.ledgers.setdefault(partition, MemoryLedger())
        ledger.closed = False
        return ledger

    def close(self) -> None:
        self.closed = True


def _follows(header: Header, unfinished: Sequence[tuple[int, Header, list[Entry]]], position: Position | None) -> bool:
    if unfinished:
        before = unfinished[-1][1]
        return header.cycle == before.cycle and header.part == before.part + 1
    return position is None or (header.cycle == position.cycle + 1 and header.part == 0)
