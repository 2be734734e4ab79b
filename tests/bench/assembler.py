"""Reports through the assembler: rate and processor time, from a full topic to its end.

    python -m tests.bench.assembler [--reports 500000] [--partitions 4] [--profile FILE]

A node of our own, reports preloaded (30 % of the messages in two to four segments, 2 % repeats), then one assembler as
a process of its own until the group has passed all of it. Its start and the join of the group are counted in.
"""

import argparse
import asyncio
import os
import random
import signal
import tempfile
import time
from pathlib import Path

import psutil

from deploy.local.kafka import LocalKafka
from tests.assembling import Bench, Child
from tests.oracle import Raw

PUBLISH_AT_ONCE = 50_000
LOOK_AGAIN_S = 0.5
"""A look costs the measuring side some milliseconds on the cores that are measured."""


def traffic(count: int, seed: int = 7) -> list[Raw]:
    """Reports as a platform sends them."""
    chance = random.Random(seed)
    placed: list[tuple[float, Raw]] = []
    number = 0
    while len(placed) < count:
        message_id = f"{chance.randbytes(16).hex()}_{number:08}"
        total = 1 if chance.random() < 0.7 else chance.randint(2, 4)
        status = "DELIVRD" if chance.random() < 0.95 else "UNDELIV"
        begin = len(placed)
        for sequence in range(1, total + 1):
            report = {
                "smsMsgId": message_id,
                "total": total,
                "sequence": sequence,
                "status": status,
                "source": 1,
                "updateTime": "2026-11-23T09:30:27Z",
                "orgCode": "000500",
                "extend": "",
                "to": f"+861350{number % 10**7:07}",
            }
            place = begin + (0 if sequence == 1 else chance.random() * 4000)
            placed.append((place, report))
            if chance.random() < 0.02:
                placed.append((place + chance.random() * 100_000, report))
        number += 1
    placed.sort(key=lambda item: item[0])
    return [report for _, report in placed[:count]]


async def measure(bootstrap: str, reports: int, partitions: int, folder: Path) -> None:
    """Preload, run, print."""
    bench = Bench(bootstrap, "bench.", partitions=partitions, state_dir=folder / "state", commit_interval_ms=200)
    await bench.make_topics()
    given = traffic(reports)
    for start in range(0, len(given), PUBLISH_AT_ONCE):
        await bench.publish(given[start : start + PUBLISH_AT_ONCE])
    child = Child(bench, folder / "log")
    started = time.perf_counter()
    process = await child.start()
    while await bench.lag():  # noqa: ASYNC110 - another process brings it about
        await asyncio.sleep(LOOK_AGAIN_S)
    wall_s = time.perf_counter() - started
    used = psutil.Process(process.pid).cpu_times()
    memory = psutil.Process(process.pid).memory_info().rss
    await child.end(signal.SIGTERM)
    cpu_s = used.user + used.system
    print(  # noqa: T201 - the output of the program
        f"{reports:,} reports, {partitions} partitions: {reports / wall_s:,.0f}/s over {wall_s:.1f} s, "
        f"{cpu_s / reports * 1e6:.2f} CPU s per million ({cpu_s:.1f} s), {memory >> 20} MiB resident"
    )


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--reports", type=int, default=500_000)
    parser.add_argument("--partitions", type=int, default=4)
    chosen = parser.parse_args()
    os.environ.pop("DLR_LOG_LEVEL", None)
    with LocalKafka(throughput=True, heap_mib=1024) as kafka, tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(kafka.bootstrap, chosen.reports, chosen.partitions, Path(folder)))


if __name__ == "__main__":
    main()
