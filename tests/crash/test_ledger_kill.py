"""The ledger under kill -9: what is opened afterwards is whole cycles, behind the changelog at most.

And on a disk that loses what was written, which must not end the process.
"""

import os
import random
import subprocess
import sys
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

from consumers.entry import Cursor, Entry, LedgerDamagedError, Position
from consumers.ledger.changelog import encode_cycle
from consumers.ledger.partition import PartitionLedger, Sizes
from consumers.ledger.store import Identity, Store
from ingest.runtime.files import RealFileSystem

ROUNDS = 8
CYCLES_BEFORE_KILL = 40
ENTRIES = 40
CYCLE_MS = 10
WINDOW_MS = 1000
"""How long entries are remembered: a dozen generations come and go in a round."""

SIZES = Sizes(generation_ms=150, preallocate_bytes=16_384, seal_entries=500)


def a_store(folder: Path) -> Store:
    """The store of parent and child."""
    return Store(folder, RealFileSystem(), Identity(group="g", topic="t", partitions=1), SIZES)


def cycle_records(cycle: int) -> list[tuple[int, bytes]]:
    """What the changelog holds of a cycle: new messages, and those of the cycle before answered; always the same."""
    chance = random.Random(cycle)
    clock_ms = cycle * CYCLE_MS
    entries = [
        Entry(
            digest(cycle, n),
            clock_ms,
            first_seen=True,
            waiting=True,
            payload=chance.randbytes(chance.choice((0, 30, 9000))),
        )
        for n in range(ENTRIES)
    ]
    if cycle > 1:
        entries += [answered(cycle - 1, n) for n in range(ENTRIES)]
    values = encode_cycle(entries, Position(cycle, cycle * 10, clock_ms, Cursor(cycle * 3)))
    return list(enumerate(values, cycle * 3))


def digest(cycle: int, number: int) -> bytes:
    """The digest of a message."""
    return blake2b(f"{cycle}/{number}".encode(), digest_size=16).digest()


def answered(cycle: int, number: int) -> Entry:
    """The last entry of a message."""
    return Entry(digest(cycle, number), cycle * CYCLE_MS, first_seen=False, waiting=False, payload=b"%d" % cycle)


def run_child(folder: Path) -> None:
    """Apply cycles for ever; say `n` before and `n done` after each."""
    ledger = a_store(folder).open(0)
    cycle = ledger.position.cycle if ledger.position else 0
    while True:
        cycle += 1
        print(cycle, flush=True)  # noqa: T201 - what the parent reads
        ledger.apply(cycle_records(cycle))
        ledger.forget(cycle * CYCLE_MS - WINDOW_MS)
        print(cycle, "done", flush=True)  # noqa: T201


def kill_in_the_middle(folder: Path, chance: random.Random) -> tuple[int, int]:
    """Start a child, kill it at some moment of some cycle; its last begun and its last finished cycle."""
    with subprocess.Popen([sys.executable, "-m", __name__, str(folder)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        begun = done = 0
        for _ in range(chance.randrange(1, 2 * CYCLES_BEFORE_KILL)):
            begun, done = said(child.stdout.readline(), begun, done)
        child.kill()
        for line in child.stdout:
            begun, done = said(line, begun, done)
    return begun, done


def said(line: str, begun: int, done: int) -> tuple[int, int]:
    """Count a line of the child in."""
    words = line.split()
    if len(words) == 1:
        return int(words[0]), done
    return begun, int(words[0])


def check(ledger: PartitionLedger, cycle: int) -> None:
    """The ledger is the changelog up to the end of a cycle."""
    assert ledger.position == Position(cycle, cycle * 10, cycle * CYCLE_MS, Cursor(cycle * 3))
    assert ledger.waiting() == ENTRIES
    for one in range(max(1, cycle - WINDOW_MS // CYCLE_MS), cycle):
        assert ledger.lookup([digest(one, n) for n in range(ENTRIES)]) == [b"%d" % one] * ENTRIES
    assert None not in ledger.lookup([digest(cycle, n) for n in range(ENTRIES)])
    assert ledger.lookup([digest(cycle + 1, n) for n in range(ENTRIES)]) == [None] * ENTRIES


def test_killed_ledger_opens_as_whole_cycles_and_never_ahead(tmp_path: Path) -> None:
    """Whenever the process dies, the state is that after a cycle which had begun, and no finished one is missing."""
    chance = random.Random(20261123)
    reached = 0
    for _ in range(ROUNDS):
        begun, done = kill_in_the_middle(tmp_path, chance)
        store = a_store(tmp_path)

        ledger = store.open(0)

        cycle = ledger.position.cycle if ledger.position else 0
        assert max(done, reached) <= cycle <= max(begun, reached)
        if cycle:
            check(ledger, cycle)
        reached = cycle
        ledger.close()
        store.close()
    assert reached > ROUNDS * 2


def run_on_a_disk_that_loses(folder: Path) -> None:
    """Ask for what stands in a page that cannot be read any more, then restore it."""
    ledger = a_store(folder).open(0)
    records = [record for cycle in range(1, CYCLES_BEFORE_KILL) for record in cycle_records(cycle)]
    ledger.apply(records)
    check(ledger, CYCLES_BEFORE_KILL - 1)
    os.truncate(min(folder.glob("**/journal-*.log")), 4096)  # in a mapped file the same as a bad sector
    questions: list[Callable[[], object]] = [
        lambda: ledger.lookup([digest(10, n) for n in range(ENTRIES)]),
        lambda: ledger.due(Cursor(), sys.maxsize, 1),
    ]
    for ask in questions:
        try:
            ask()
        except LedgerDamagedError:
            continue
        sys.exit("an answer was made up")
    ledger.discard()
    ledger.apply(records)
    check(ledger, CYCLES_BEFORE_KILL - 1)


def test_page_that_the_device_has_lost_is_damage_and_not_the_end(tmp_path: Path) -> None:
    """A bad sector in a file that no start reads would kill the process, and the next one, for ever."""
    done = subprocess.run([sys.executable, "-m", __name__, str(tmp_path), "lose"], check=False)

    assert done.returncode == 0


if __name__ == "__main__":
    (run_on_a_disk_that_loses if "lose" in sys.argv else run_child)(Path(sys.argv[1]))
