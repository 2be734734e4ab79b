"""One message reported without end: what that does to the others, and how long its partition takes.

    python -m tests.bench.hot_key [--reports 1000000] [--partitions 4] [--rate 500] [--keep]

One assembler, steady traffic over all partitions; then so many reports of one message go into one of them as fast as it
can be filled. Three kinds: always the same report; a status that changes with each report, so that each brings a
revision; 99 segments of which another one changes with each report (a tenth of the reports: each result is some
kilobytes). Every report of the steady traffic must have exactly one result, and the hot message the revisions that
follow from its reports, each once, the last as the oracle has it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import time
from typing import Any, Final

from deploy.local.kafka import LocalKafka
from deploy.local.processes import LocalServiceError
from deploy.local.product import REPOSITORY
from ingest.runtime.partitioner import partition_of
from tests import measurement
from tests.bench.group import Group, GroupError
from tests.bench.hot_kinds import KINDS, Kind
from tests.bench.publishing import Publisher
from tests.bench.watching import Steady, Watch, spread

FOLDER: Final = REPOSITORY / "var" / "bench-hot-key"
BROKER_HEAP_MIB: Final = 1024
ASSEMBLER: Final = "assembler"
QUIET_S: Final = 10.0
CALM_S: Final = 1.0
LOOK_S: Final = 0.2
PATIENCE_S: Final = 900.0

ABOUT: Final = """\
One assembler, {partitions} partitions, {rate:,.0f} reports per second of other messages over all of them. A delay is
the time from when a report was due to be sent until its result could be read (`read_committed`): median -
99th percentile - most, ms. {sent:,} other reports were sent; {missing} have no result, {repeated} more than one."""


def main() -> int:
    """Run it, write the figures down, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.hot_key", description=__doc__)
    parser.add_argument("--reports", type=int, default=1_000_000, help="of the one message")
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument("--rate", type=float, default=500, help="reports per second of other messages")
    parser.add_argument("--keep", action="store_true", help="write the figures to docs/measurements")
    options = parser.parse_args()
    where = measurement.circumstances()
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    try:
        with LocalKafka(folder=FOLDER / "kafka", heap_mib=BROKER_HEAP_MIB, throughput=True) as kafka:
            group = Group(kafka, FOLDER, [ASSEMBLER], partitions=options.partitions)
            try:
                figures = asyncio.run(measure(group, options.reports, options.rate))
            finally:
                group.product.stop()
            for each, kind in zip(figures["kinds"], KINDS, strict=True):
                each["findings"] = kind.findings(group.data_folder, group.results, each["partition"], each["reports"])
    except (LocalServiceError, GroupError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    finally:
        shutil.rmtree(FOLDER, ignore_errors=True)
    where["load_after"] = [round(load, 2) for load in os.getloadavg()]
    figures = {"circumstances": where, **figures}
    path = measurement.write("hot-key", markdown := told(figures), figures, keep=options.keep)
    say(f"\n{markdown}\nwritten to {path}")
    wrong = figures["traffic"]["missing"] or figures["traffic"]["repeated"]
    return 1 if wrong or any(each["findings"] for each in figures["kinds"]) else 0


async def measure(group: Group, reports: int, rate: float) -> dict[str, Any]:
    """All kinds, one after the other, under steady traffic.

    Raises:
        GroupError: reports were left without results.
    """
    group.product.launch(ASSEMBLER)
    await asyncio.to_thread(group.product.await_ready, ASSEMBLER)
    async with (
        Watch(group.options, group.results, group.partitions) as watch,
        Steady(group.options, group.reports, group.partitions, rate=rate, first_number=0) as steady,
    ):
        kinds = [await _flooded(group, kind, round(reports * kind.share), watch, steady) for kind in KINDS]
        await steady.stop()
        await _calm(watch, steady, time.monotonic())
        return {
            "traffic": {
                "partitions": group.partitions,
                "rate": rate,
                "sent": steady.sent(),
                "missing": steady.missing(watch, time.monotonic()),
                "repeated": sum(not name.startswith(b"hot-") for name in watch.again),
            },
            "kinds": kinds,
        }


async def _flooded(group: Group, kind: Kind, count: int, watch: Watch, steady: Steady) -> dict[str, Any]:
    """Delays of the steady traffic before and during so many reports of one message."""
    hot = partition_of(kind.message_id.encode(), group.partitions)
    quiet_s = time.monotonic() + CALM_S
    await asyncio.sleep(QUIET_S + CALM_S)
    began_s = time.monotonic()
    async with Publisher(group.options, group.reports, group.partitions) as publisher:
        await publisher.write(hot, kind.records(count))
    filled_s = time.monotonic()
    await asyncio.sleep(CALM_S)
    await _calm(watch, steady, time.monotonic() - CALM_S)
    # The hot partition has passed the last of them when it has passed what was sent after it.
    behind = steady.deliveries(watch, filled_s, time.monotonic())[hot]
    ended_s = min(one.due_s + one.delay_s for one in behind)
    before, during = (
        steady.deliveries(watch, *stretch) for stretch in ((quiet_s, began_s), (began_s, max(ended_s, filled_s)))
    )
    figures = {
        "kind": kind.name,
        "partition": hot,
        "reports": count,
        "revisions": kind.revisions(count),
        "filling_s": round(filled_s - began_s, 2),
        "seconds": round(ended_s - began_s, 2),
        "reports_per_s": round(count / (ended_s - began_s)),
        "others_before": spread([one.delay_s for some in before.values() for one in some]),
        "others_during": spread([one.delay_s for n, some in during.items() if n != hot for one in some]),
        "same_partition": spread([one.delay_s for one in during[hot]]),
    }
    say(str(figures))
    return figures


async def _calm(watch: Watch, steady: Steady, before_s: float) -> None:
    """Wait until everything that was due before a time has its result."""
    over = time.monotonic() + PATIENCE_S
    while missing := steady.missing(watch, before_s):
        if time.monotonic() > over:
            raise GroupError(f"{missing} reports have no result")
        await asyncio.sleep(LOOK_S)


def told(figures: dict[str, Any]) -> str:
    """The figures as Markdown."""
    head = ["the message has", "reports", "results", "its partition takes, s", "per second", "others before"]
    head += ["others meanwhile", "others in its partition", "wrong"]
    names = ("others_before", "others_during", "same_partition")
    rows = [
        [
            each["kind"],
            *(f"{each[name]:,}" for name in ("reports", "revisions", "seconds", "reports_per_s")),
            *(_spread(each[name]) for name in names),
            "; ".join(each["findings"]) or "nothing",
        ]
        for each in figures["kinds"]
    ]
    parts = [
        "# One message reported without end",
        f"{measurement.told(figures['circumstances'])} After: {figures['circumstances']['load_after'][0]}.",
        ABOUT.format(**figures["traffic"]),
        measurement.table(head, rows),
    ]
    return "\n\n".join(parts) + "\n"


def _spread(delays: dict[str, float]) -> str:
    return " - ".join(f"{delays[name]:,.0f}" for name in ("median_ms", "p99_ms", "most_ms") if name in delays)


def say(text: str) -> None:
    """Tell a person."""
    print(text, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
