"""Reports through the assembler: rate and processor time, from a full topic to its end.

    python -m tests.bench.assembler [--messages 500000] [--partitions 4 1] [--keep]

Reports preloaded (a tenth of the messages in two or three segments, 3 % repeats), then one assembler as a process of
its own until it has counted all of them, and every result looked at; for each number of partitions on topics of its
own. The start of the process and the join of the group are left out.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
from pathlib import Path
from typing import Any, Final

from deploy.local.kafka import LocalKafka
from deploy.local.processes import LocalServiceError
from deploy.local.product import REPOSITORY
from tests import measurement
from tests.bench.group import Group, GroupError
from tests.bench.planned import Sent, blocks
from tests.bench.publishing import published
from tests.bench.window_stages import ASSEMBLER, Books, assemble
from tests.bench.window_truth import judge

FOLDER: Final = REPOSITORY / "var" / "bench-assembler"
BROKER_HEAP_MIB: Final = 1024
SEED: Final = 17

ABOUT: Final = """\
{reports:,} reports of {messages:,} messages, {repeats:,} of them repeats, all in their topic before one assembler
starts; its start and the join of the group are left out. Every result was looked at and is right."""


def main() -> int:
    """Run it, write the figures down, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.assembler", description=__doc__)
    parser.add_argument("--messages", type=int, default=500_000)
    parser.add_argument("--partitions", type=int, nargs="+", default=[4, 1])
    parser.add_argument("--keep", action="store_true", help="write the figures to docs/measurements")
    options = parser.parse_args()
    where = measurement.circumstances()
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    try:
        with LocalKafka(folder=FOLDER / "kafka", heap_mib=BROKER_HEAP_MIB, throughput=True) as kafka:
            rounds = [
                one_round(kafka, FOLDER / str(at), options.messages, partitions)
                for at, partitions in enumerate(options.partitions)
            ]
    except (LocalServiceError, GroupError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    finally:
        shutil.rmtree(FOLDER, ignore_errors=True)
    where["load_after"] = [round(load, 2) for load in os.getloadavg()]
    figures = {"circumstances": where, "rounds": rounds}
    path = measurement.write("assembler", markdown := told(figures), figures, keep=options.keep)
    print(f"{markdown}\nwritten to {path}")  # noqa: T201
    return 0


def one_round(kafka: LocalKafka, folder: Path, messages: int, partitions: int) -> dict[str, Any]:
    """Fill topics of its own, and assemble.

    Raises:
        GroupError: a result is wrong, or the assembler did not get through.
    """
    group = Group(kafka, folder, [ASSEMBLER], partitions=partitions, prefix=f"{folder.name}.")
    sent = Sent()
    books = Books(messages, sent)
    try:
        asyncio.run(published(group.options, group.reports, partitions, blocks(messages, sent, seed=SEED)))
        [point] = assemble(group, books, points=1, say=lambda _: None)
    finally:
        group.product.stop()
    if findings := judge(group, books)["findings"]:
        raise GroupError(f"results are wrong: {findings}")
    return {"partitions": partitions, "messages": messages, "reports": sent.reports, "repeats": sent.repeats, **point}


def told(figures: dict[str, Any]) -> str:
    """The figures as Markdown."""
    where, rounds = figures["circumstances"], figures["rounds"]
    names = ("partitions", "reports_per_s", "cpu_s_per_million", "anonymous_mib")
    parts = [
        "# What one assembler carries",
        f"{measurement.told(where)} After: {where['load_after'][0]}.",
        ABOUT.format(**rounds[0]),
        measurement.table(
            ["partitions", "reports per second", "CPU s per million", "anonymous MiB"],
            [[f"{each[name]:,}" for name in names] for each in rounds],
        ),
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.exit(main())
