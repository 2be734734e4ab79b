"""Millions of messages in the window of a real assembler: rate, memory and disk as they grow, restart, restore, truth.

    python -m tests.bench.window [--messages 20000000] [--partitions 4] [--window-s N] [--keep]

All reports stand in their topic before the assembler starts, so that nothing but it and the broker runs while it is
measured: a tenth of the messages long, one report in a hundred repeated soon, two in a hundred at any later time. Then
it is restarted with its state, and restarted without; each time it is first sent repeats of messages from everywhere in
the window, which it must all know. In the end every record of the results topic is looked at.

Window and timeout are shortened to what the run takes, so that the ledger has as many generations as in production.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

from deploy.local.kafka import LocalKafka
from deploy.local.processes import LocalServiceError
from deploy.local.product import REPOSITORY
from tests import measurement
from tests.bench.broker_log import size_bytes
from tests.bench.group import Group, GroupError
from tests.bench.planned import Sent, any_of, blocks
from tests.bench.publishing import published
from tests.bench.window_report import told
from tests.bench.window_stages import ASSEMBLER, Books, assemble, restart
from tests.bench.window_truth import judge

FOLDER: Final = REPOSITORY / "var" / "bench-window"
BROKER_HEAP_MIB: Final = 1024
SEED: Final = 11
POINTS: Final = 20
KNOWN_REPEATS: Final = 100_000
DISK_BYTES_PER_MESSAGE: Final = 1500
"""Broker and state folder together, with as much again for a merge or two."""

SLOWEST_PER_S: Final = 20_000
WINDOW_LEAST_S: Final = 300


def main() -> int:
    """Run it, write the figures down, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.window", description=__doc__)
    parser.add_argument("--messages", type=int, default=20_000_000)
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument("--window-s", type=int, default=0, help="late window and timeout; 0 for what a slow run takes")
    parser.add_argument("--keep", action="store_true", help="write the figures to docs/measurements")
    options = parser.parse_args()
    where = measurement.circumstances()
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    free = shutil.disk_usage(FOLDER).free
    if free < options.messages * DISK_BYTES_PER_MESSAGE:
        print(f"error: {free >> 30} GiB free are too few for {options.messages:,} messages", file=sys.stderr)  # noqa: T201
        return 2
    window_s = options.window_s or max(WINDOW_LEAST_S, options.messages // SLOWEST_PER_S)
    try:
        with LocalKafka(folder=FOLDER / "kafka", heap_mib=BROKER_HEAP_MIB, throughput=True) as kafka:
            figures = measure(kafka, options.messages, options.partitions, window_s)
    except (LocalServiceError, GroupError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    finally:
        shutil.rmtree(FOLDER, ignore_errors=True)
    where["load_after"] = [round(load, 2) for load in os.getloadavg()]
    figures = {"circumstances": where, **figures}
    path = measurement.write("window", markdown := told(figures), figures, keep=options.keep)
    say(f"\n{markdown}\nwritten to {path}")
    return 1 if figures["truth"]["findings"] else 0


def measure(kafka: LocalKafka, messages: int, partitions: int, window_s: int) -> dict[str, Any]:
    """All stages, one after the other, on a running broker.

    Raises:
        GroupError: the assembler did not get through, or its counts are wrong.
    """
    settings = {"DLR_LATE_WINDOW_S": str(window_s), "DLR_REASSEMBLY_TIMEOUT_S": str(window_s)}
    group = Group(kafka, Path(FOLDER), [ASSEMBLER], partitions=partitions, settings=settings)
    sent, began = Sent(), time.monotonic()
    random = np.random.default_rng(SEED)
    try:
        say(f"publishing the reports of {messages:,} messages")
        asyncio.run(published(group.options, group.reports, partitions, blocks(messages, sent, seed=SEED)))
        loading_s = time.monotonic() - began
        say(f"{sent.reports:,} reports in {loading_s:.0f} s, {size_bytes(group.data_folder, group.reports) >> 20} MiB")
        books = Books(messages, sent)
        began = time.monotonic()
        figures: dict[str, Any] = {
            "traffic": {
                "messages": messages,
                "reports": sent.reports,
                "repeats": sent.repeats,
                "partitions": partitions,
                "window_s": window_s,
                "loading_s": round(loading_s, 1),
            },
            "points": assemble(group, books, points=POINTS, say=say),
        }
        for name, lost in (("restarted with its state", False), ("restarted without it", True)):
            known = any_of(messages, min(messages, KNOWN_REPEATS), random)
            figures[name] = restart(group, books, known, lose_state=lost)
            say(f"{name}: {figures[name]}")
        if time.monotonic() - began > window_s:
            raise GroupError(f"the run took longer than the window of {window_s} s: choose a wider one (--window-s)")
    finally:
        group.product.stop()
    say("looking at every result")
    figures["truth"] = judge(group, books)
    figures["topic_mib"] = {
        name: size_bytes(group.data_folder, name) >> 20 for name in (group.reports, group.results, group.changelog)
    }
    return figures


def say(text: str) -> None:
    """Tell a person."""
    print(text, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
