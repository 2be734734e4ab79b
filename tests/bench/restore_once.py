"""Restores the ledgers of all partitions once, from a broker: `python -m tests.bench.restore_once`; see `restore`.

The clients, the event loop and the bound of simultaneous restores are those of the assembler; there are no cycles, and
nothing else is imported that would hold memory. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final, Self

from consumers.commands.assemble import RESTORES_MAX
from consumers.engine.assignment import restore
from consumers.engine.cycle import Rules
from consumers.engine.kafka import ChangelogReader
from consumers.engine.protocols import Ledger
from consumers.ledger.partition import PartitionLedger, Sizes
from consumers.ledger.store import Identity, Store
from ingest.runtime.files import RealFileSystem
from ingest.runtime.supervise import run

LOOK_S: Final = 0.05
DAY_MS: Final = 24 * 3600 * 1000


class Looks:
    """Looks at the memory of this process that no file backs, in a thread, and keeps the greatest, MiB."""

    def __init__(self) -> None:
        self.most_mib = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(LOOK_S):
            self.most_mib = max(self.most_mib, anonymous_mib())


def anonymous_mib() -> float:
    """Resident memory of this process that no file backs."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1024


async def restored(wanted: argparse.Namespace, ledgers: list[PartitionLedger]) -> int:
    """Bring all ledgers up to the end of their changelogs; how many records they have now read."""
    bound = asyncio.Semaphore(RESTORES_MAX)
    options = {"bootstrap_servers": wanted.bootstrap}

    async def one(ledger: Ledger, partition: int) -> None:
        rules = Rules(
            reports_topic=wanted.topic,
            partition=partition,
            partitions=len(ledgers),
            timeout_ms=DAY_MS,
            late_window_ms=DAY_MS,
        )
        async with bound, ChangelogReader(options, wanted.topic, partition) as changelog:
            await restore(ledger, changelog, rules, now_ms=wanted.clock_ms, accept_loss=False)

    await asyncio.gather(*(one(ledger, partition) for partition, ledger in enumerate(ledgers)))
    return sum(ledger.next_changelog_offset() for ledger in ledgers)


def main() -> None:
    """Restore, measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("bootstrap")
    parser.add_argument("topic")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--partitions", type=int, required=True)
    parser.add_argument("--generation-ms", type=int, required=True)
    parser.add_argument("--clock-ms", type=int, required=True)
    wanted = parser.parse_args()
    identity = Identity(group="bench", topic=wanted.topic, partitions=wanted.partitions)
    store = Store(wanted.folder, RealFileSystem(), identity, Sizes(generation_ms=wanted.generation_ms))
    ledgers = [store.open(partition) for partition in range(wanted.partitions)]
    before_mib = anonymous_mib()
    with Looks() as looks:
        began_s, cpu_s = time.perf_counter(), time.process_time()
        offsets = run(restored(wanted, ledgers))
        figures: dict[str, Any] = {
            "wall_s": time.perf_counter() - began_s,
            "cpu_s": time.process_time() - cpu_s,
            "before_mib": before_mib,
            "offsets": offsets,
        }
        for ledger in ledgers:
            ledger.settle()
        # What is sealed and merged beside the restore, and a little longer, belongs to it.
        figures["settled_wall_s"] = time.perf_counter() - began_s
        figures["settled_cpu_s"] = time.process_time() - cpu_s
        figures["after_mib"] = anonymous_mib()
    figures["most_mib"] = looks.most_mib
    figures["levels"] = max(ledger.levels for ledger in ledgers)
    figures["waiting"] = sum(ledger.waiting() for ledger in ledgers)
    for ledger in ledgers:
        ledger.close()
    store.close()
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
