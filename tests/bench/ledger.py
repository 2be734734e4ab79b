"""Measures the ledger: `python -m tests.bench.ledger [--messages N] [--payload BYTES] [--folder DIR] [--cycle N]`.

Cycles of new messages, every third of them written again 50 cycles later, go through lookup, encode and apply as in
the engine; then absent and present digests are looked up, the ledger is closed and opened (the runs are used), opened
without its runs (the journal is read), and restored from the changelog. Prints the cost of each entry, the longest
call, and the memory that no file backs.
"""

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import mkdtemp
from typing import TypeVar

import numpy as np

from consumers.entry import Cursor, Entry, Position
from consumers.ledger.partition import PartitionLedger, Sizes
from consumers.ledger.store import Identity, Store
from ingest.runtime.files import RealFileSystem

AGAIN_AFTER_CYCLES = 50
RESTORE_RECORDS = 16
"""Records of one fetch while restoring."""

T = TypeVar("T")


def anonymous_mb() -> float:
    """Resident memory of this process that no file backs."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    [kb] = [int(line.split()[1]) for line in lines if line.startswith("RssAnon:")]
    return kb / 1024


class Stage:
    """Adds up the time of the calls of one kind."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.entries = 0
        self.wall_s = self.cpu_s = self.longest_s = 0.0

    def run(self, entries: int, call: Callable[[], T]) -> T:
        """Time one call that handles so many entries; CPU time is that of all threads."""
        wall, cpu = time.perf_counter(), time.process_time()
        done = call()
        took = time.perf_counter() - wall
        self.wall_s += took
        self.cpu_s += time.process_time() - cpu
        self.longest_s = max(self.longest_s, took)
        self.entries += entries
        return done

    def line(self) -> str:
        """Its figures."""
        return (
            f"{self.name:32} {self.entries:>12,} entries  {self.wall_s / self.entries * 1e6:6.3f} us wall  "
            f"{self.cpu_s / self.entries * 1e6:6.3f} us cpu  {self.entries / self.wall_s / 1e6:6.2f} M/s  "
            f"longest call {self.longest_s * 1e3:7.1f} ms"
        )


class Traffic:
    """Digests of the messages in the order in which they come; the same for every run."""

    def __init__(self, cycle_entries: int, payload: bytes) -> None:
        self.fresh = cycle_entries * 3 // 4
        self.again = cycle_entries - self.fresh
        self.payload = payload

    def digests(self, cycle: int) -> list[bytes]:
        """The new messages of a cycle."""
        data = np.random.default_rng(cycle).bytes(16 * self.fresh)
        return [data[at : at + 16] for at in range(0, len(data), 16)]

    def entries(self, cycle: int) -> list[Entry]:
        """What a cycle writes."""
        fresh = [
            Entry(digest, cycle, first_seen=True, waiting=at % 3 == 0, payload=self.payload)
            for at, digest in enumerate(self.digests(cycle))
        ]
        if cycle <= AGAIN_AFTER_CYCLES:
            return fresh
        earlier = self.digests(cycle - AGAIN_AFTER_CYCLES)[:: self.fresh // self.again][: self.again]
        return fresh + [
            Entry(digest, cycle - AGAIN_AFTER_CYCLES, first_seen=False, waiting=False, payload=self.payload)
            for digest in earlier
        ]


def write(ledger: PartitionLedger, traffic: Traffic, messages: int) -> Iterator[str]:
    """The running cycles."""
    look, pack, take = Stage("lookup of a cycle"), Stage("encode"), Stage("apply")
    cycles = -(-messages // traffic.fresh)
    offset = 0
    for cycle in range(1, cycles + 1):
        entries = traffic.entries(cycle)
        digests = [entry.digest for entry in entries]
        look.run(len(entries), lambda digests=digests: ledger.lookup(digests))  # type: ignore[misc]
        position = Position(cycle, cycle * 4000, cycle * 200, Cursor())
        values = pack.run(len(entries), lambda entries=entries, at=position: ledger.encode(entries, at))  # type: ignore[misc]
        records = list(enumerate(values, offset))
        offset += len(values) + 1
        take.run(len(entries), lambda records=records: ledger.apply(records))  # type: ignore[misc]
        if cycle % (cycles // 4 or 1) == 0:
            yield f"-- {cycle * traffic.fresh:,} messages, {anonymous_mb():.0f} MB anonymous, {ledger.levels} levels"
            yield from (stage.line() for stage in (look, pack, take))
            look, pack, take = Stage(look.name), Stage(pack.name), Stage(take.name)


def read(ledger: PartitionLedger, traffic: Traffic, cycles: int) -> Iterator[str]:
    """Lookups of what is not there, and of what is, anywhere in the past."""
    absent, present = Stage("lookup, absent"), Stage("lookup, present anywhere")
    for step in range(50):
        some = traffic.digests(10_000_000 + step)
        if any(absent.run(len(some), lambda some=some: ledger.lookup(some))):  # type: ignore[misc]
            raise AssertionError("a digest that was never written was found")
        mixed = [traffic.digests(1 + (step * 7919 + n * 104_729) % cycles)[n % traffic.fresh] for n in range(100)]
        mixed += traffic.digests(1 + (step * 7919) % cycles)[: traffic.fresh - 100]
        if None in present.run(len(mixed), lambda mixed=mixed: ledger.lookup(mixed)):  # type: ignore[misc]
            raise AssertionError("a digest that was written was not found")
    yield absent.line()
    yield present.line()


def restore(ledger: PartitionLedger, source: PartitionLedger, entries: int) -> Iterator[str]:
    """Reading the changelog back, from memory-mapped files in place of Kafka."""
    stage = Stage("restore")
    journal = source._journal
    batch: list[tuple[int, bytes]] = []
    for stored in journal.records(0, 0):
        batch.append((stored.offset, journal.generation(stored.number).view(stored.end)[stored.start : stored.end]))
        if len(batch) == RESTORE_RECORDS:
            stage.run(0, lambda batch=batch: ledger.apply(batch))  # type: ignore[misc]
            batch = []
    stage.run(entries, lambda: ledger.apply(batch))
    yield stage.line()
    yield f"-- {anonymous_mb():.0f} MB anonymous, {ledger.levels} levels"


def measure(folder: Path, messages: int, cycle_entries: int, payload: bytes) -> Iterator[str]:
    """All stages, one line each."""
    traffic = Traffic(cycle_entries, payload)
    cycles = -(-messages // traffic.fresh)
    store = Store(
        folder,
        RealFileSystem(),
        Identity(group="bench", topic="bench", partitions=2),
        Sizes(generation_ms=max(1, cycles * 200 // 7)),
    )
    yield f"-- nothing yet, {anonymous_mb():.0f} MB anonymous"
    ledger = store.open(0)
    yield from write(ledger, traffic, messages)
    yield from read(ledger, traffic, cycles)
    written = messages + max(0, cycles - AGAIN_AFTER_CYCLES) * traffic.again
    waiting, position = ledger.waiting(), ledger.position
    ledger.settle()
    ledger.close()
    for name in ("open, runs used", "open, runs made again"):
        stage = Stage(name)
        ledger = stage.run(written, lambda: store.open(0))
        if (ledger.waiting(), ledger.position) != (waiting, position):
            raise AssertionError("the ledger is not as it was left")
        yield stage.line()
        runs = list(folder.glob("**/run-*"))
        yield f"-- runs {sum(run.stat().st_size for run in runs) / 1e6:,.0f} MB in {len(runs)} files"
        if name == "open, runs used":
            ledger.settle()
            ledger.close()
            for run in runs:
                run.unlink()
    other = store.open(1)
    yield from restore(other, ledger, written)
    if (other.waiting(), other.position) != (waiting, position):
        raise AssertionError("the restored ledger is not as the one it was restored from")
    other.close()
    ledger.close()
    store.close()


def main() -> None:
    """Parse arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--messages", type=int, default=2_000_000)
    parser.add_argument("--payload", type=int, default=150)
    parser.add_argument("--cycle", type=int, default=4000)
    parser.add_argument("--folder", type=Path, default=None)
    wanted = parser.parse_args()
    folder = Path(mkdtemp(dir=wanted.folder))
    try:
        for line in measure(folder, wanted.messages, wanted.cycle, os.urandom(wanted.payload)):
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
