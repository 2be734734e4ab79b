"""What restoring costs, Kafka in the loop: `python -m tests.bench.restore [--messages N] [--rounds N] [--keep]`.

The changelog of planned messages, a tenth of them long, is written as the assembler writes it: a transaction for each
cycle. Then processes that do nothing else restore it, one after the other, each into a folder of its own. What counts
is the CPU time of the process, its threads included, until everything is sealed and merged.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from consumers import message
from consumers.engine.cycle import digest_of
from consumers.engine.endings import Endings
from consumers.engine.kafka import transactional_producer
from consumers.engine.transaction import Retired, Transactions
from consumers.entry import Cursor, Entry, Position
from consumers.ledger.changelog import encode_cycle
from deploy.local.kafka import LocalKafka
from deploy.local.processes import LocalServiceError
from deploy.local.product import REPOSITORY
from ingest.contract.report import decode_report
from tests import measurement
from tests.bench.broker_log import size_bytes
from tests.bench.group import Group, GroupError
from tests.bench.planned import SEGMENTS_MAX, Numbers, Reports, message_ids, totals, values

FOLDER: Final = REPOSITORY / "var" / "bench-restore"
BROKER_HEAP_MIB: Final = 1024
BATCH_BYTES: Final = 1_000_000
CYCLE_MS: Final = 200
GENERATIONS: Final = 6
CLOCK_MS: Final = 1_790_000_000_000


class Plan:
    """The cycles of one partition: new messages, and the later segments of those of the cycles before."""

    def __init__(self, partition: int, partitions: int, messages: int, cycle_messages: int) -> None:
        self._first = partition * (messages // partitions)
        self._messages = messages // partitions
        self._size = cycle_messages
        self._states: dict[int, message.MessageState] = {}
        self.cycles = -(-self._messages // cycle_messages)
        self.entries = 0

    @property
    def waiting(self) -> int:
        """Messages that are not complete yet."""
        return len(self._states)

    def cycle(self, number: int) -> list[Entry]:
        """The entries of a cycle, numbered from 0."""
        clock_ms = CLOCK_MS + number * CYCLE_MS
        entries: list[Entry] = []
        for sequence in range(1, SEGMENTS_MAX + 1):
            numbers = self._of(number - sequence + 1)
            numbers = numbers[totals(numbers) >= sequence]
            ids = message_ids(numbers)
            reports = values(Reports(numbers, np.full(len(numbers), sequence, np.uint64)), ids)
            for named, name, value in zip(numbers.tolist(), ids, reports, strict=True):
                entries.append(self._entry(named, digest_of(name), value, clock_ms))
        self.entries += len(entries)
        return entries

    def _entry(self, named: int, digest: bytes, value: bytes, clock_ms: int) -> Entry:
        before = self._states.pop(named, None)
        state, _ = message.apply(before, decode_report(value), clock_ms - 100, clock_ms)
        if len(state.segments) == state.total_greatest:
            state = message.emitted(state, clock_ms)
        else:
            self._states[named] = state
        return Entry(digest, state.seen_at, before is None, state.waiting, message.encode(state))

    def _of(self, cycle: int) -> Numbers:
        first, after = max(0, cycle * self._size), min(self._messages, max(0, cycle + 1) * self._size)
        return np.arange(self._first + first, self._first + max(first, after), dtype=np.uint64)


async def write(group: Group, plans: list[Plan]) -> None:
    """Write all cycles, the partitions side by side."""
    retired, endings = Retired(), Endings(group.options, [group.changelog])

    async def one(partition: int, plan: Plan) -> None:
        transactions = Transactions(
            partial(transactional_producer, group.options, f"bench.{partition}", batch_bytes_max=BATCH_BYTES),
            endings,
            identity=f"bench.{partition}",
            group_id="bench.group",
            reports_topic=group.reports,
            changelog_topic=group.changelog,
            partition=partition,
            outlets=[],
            retired=retired,
        )
        await transactions.settle()
        for number in range(plan.cycles):
            position = Position(number + 1, 0, CLOCK_MS + number * CYCLE_MS, Cursor())
            await transactions.commit([], encode_cycle(plan.cycle(number), position), 0)
        transactions.let_go()

    await asyncio.gather(*(one(partition, plan) for partition, plan in enumerate(plans)))
    await retired.drain(10)
    await endings.close()


def command(group: Group, cycles: int, state: Path) -> list[str]:
    """What restores once."""
    return [
        *(sys.executable, "-m", "tests.bench.restore_once"),
        *(group.options["bootstrap_servers"], group.changelog, str(state), "--partitions", str(group.partitions)),
        *("--generation-ms", str(max(1, cycles * CYCLE_MS // GENERATIONS))),
        *("--clock-ms", str(CLOCK_MS + cycles * CYCLE_MS)),
    ]


def once(arguments: list[str], where: Path) -> dict[str, Any]:
    """Run it and read what it says."""
    said = subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True, cwd=where).stdout
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    return found


def measure(kafka: LocalKafka, wanted: argparse.Namespace) -> dict[str, Any]:
    """Load, and restore so many times, each time with nothing.

    Raises:
        GroupError: a restored ledger counts other messages that wait than there are.
    """
    group = Group(kafka, FOLDER, [], partitions=wanted.partitions)
    plans = [Plan(number, wanted.partitions, wanted.messages, wanted.cycle) for number in range(wanted.partitions)]
    asyncio.run(write(group, plans))
    entries, waiting = sum(plan.entries for plan in plans), sum(plan.waiting for plan in plans)
    say(f"{entries:,} entries in {sum(plan.cycles for plan in plans):,} cycles")
    rounds = []
    for _ in range(wanted.rounds):
        state = Path(FOLDER) / "state"
        shutil.rmtree(state, ignore_errors=True)
        rounds.append(once(command(group, plans[0].cycles, state), REPOSITORY))
        if rounds[-1]["waiting"] != waiting:
            raise GroupError(f"{rounds[-1]['waiting']} messages wait in the restored ledgers, it should be {waiting}")
        say(str(rounds[-1]))
    return {
        "messages": wanted.messages,
        "entries": entries,
        "partitions": wanted.partitions,
        "cycles": sum(plan.cycles for plan in plans),
        "changelog_mib": size_bytes(group.data_folder, group.changelog) >> 20,
        "rounds": rounds,
    }


def told(figures: dict[str, Any]) -> str:
    """The figures as Markdown."""
    entries = figures["entries"]
    rows = [
        (
            f"{one['wall_s']:.2f}",
            f"{one['cpu_s']:.2f}",
            f"{entries / one['cpu_s']:,.0f}",
            f"{entries / one['settled_cpu_s']:,.0f}",
            f"{one['before_mib']:.0f}",
            f"{one['most_mib']:.0f}",
            f"{one['after_mib']:.0f}",
        )
        for one in figures["rounds"]
    ]
    head = ["wall s", "CPU s", "entries per CPU second", "until sealed, too", "MiB before", "at most", "after"]
    return f"""# Restoring from Kafka

{measurement.told(figures["circumstances"])}

{entries:,} entries of {figures["messages"]:,} messages in {figures["partitions"]} partitions,
{figures["cycles"]:,} cycles and {figures["changelog_mib"]:,} MiB on the broker's disk. A process of its own each
time, all partitions at once. CPU time is that of all its threads, MiB is memory that no file backs.

{measurement.table(head, rows)}
"""


def main() -> int:
    """Run it, write the figures down, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.restore", description=__doc__)
    parser.add_argument("--messages", type=int, default=4_000_000)
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument("--cycle", type=int, default=1500, help="new messages of a cycle")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", action="store_true", help="write the figures to docs/measurements")
    wanted = parser.parse_args()
    where = measurement.circumstances()
    # A broker that is still looking a transaction up says that there are not enough replicas; the client tries again.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    try:
        with LocalKafka(folder=FOLDER / "kafka", heap_mib=BROKER_HEAP_MIB, throughput=True) as kafka:
            figures = measure(kafka, wanted)
    except (LocalServiceError, GroupError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    finally:
        shutil.rmtree(FOLDER, ignore_errors=True)
    where["load_after"] = [round(load, 2) for load in os.getloadavg()]
    figures = {"circumstances": where, **figures}
    path = measurement.write("restore", markdown := told(figures), figures, keep=wanted.keep)
    say(f"\n{markdown}\nwritten to {path}")
    return 0


def say(text: str) -> None:
    """Tell a person."""
    print(text, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
