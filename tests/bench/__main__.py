"""`make bench`: what each stage and the whole path carry, on a broker of its own, the truth checked after every round.

`python -m tests.bench [--messages N] [--rounds N] [--keep]`. Writes dated Markdown and JSON to `var/measurements`, with
`--keep` to `docs/measurements`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from deploy.local.kafka import LocalKafka
from deploy.local.postgres import LocalPostgres
from deploy.local.processes import LocalServiceError
from deploy.local.product import REPOSITORY
from tests import measurement
from tests.bench import stages
from tests.bench.bodies import Traffic, prepared
from tests.bench.report import Round, medians, told
from tests.bench.stages import Site, StageError

FOLDER: Final = REPOSITORY / "var" / "bench"
MESSAGES: Final = 410_000
"""About a million reports."""
BROKER_HEAP_MIB: Final = 1024
SEED: Final = 7


def main() -> int:
    """Run it, write the figures down, and return the exit status."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--messages", type=int, default=MESSAGES, help="about 2.5 reports each")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--partitions", type=int, default=12)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--keep", action="store_true", help="write the figures to docs/measurements")
    options = parser.parse_args()
    where = measurement.circumstances()
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    say(f"preparing the requests of {options.messages:,} messages")
    traffic = prepared(FOLDER, options.messages, SEED)
    # PostgreSQL runs as a user who may not enter every checkout; a folder that is named keeps its data synced.
    database_folder = Path(tempfile.mkdtemp(prefix="dlrflow-bench-"))
    rounds: list[Round] = []
    try:
        with (
            LocalKafka(folder=FOLDER / "kafka", heap_mib=BROKER_HEAP_MIB, throughput=True) as kafka,
            LocalPostgres(folder=database_folder) as postgres,
        ):
            for number in range(1, options.rounds + 1):
                site = {"kafka": kafka, "dsn": postgres.dsn, "partitions": options.partitions}
                rounds.append(one_round(number, traffic, site, options.connections))
    except (LocalServiceError, StageError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    finally:
        shutil.rmtree(database_folder, ignore_errors=True)
    where["load_after"] = [round(load, 2) for load in os.getloadavg()]
    figures = {"circumstances": where, "traffic": traffic.figures(), "medians": medians(rounds), "rounds": rounds}
    markdown = told(where, traffic, rounds)
    path = measurement.write("bench", markdown, figures, keep=options.keep)
    say(f"\n{markdown}\nwritten to {path}")
    shutil.rmtree(FOLDER)
    return 0


def one_round(number: int, traffic: Traffic, site: dict[str, Any], connections: int) -> Round:
    """All stages once: apart, each on what the one before left in its topic, then the whole path on new topics."""
    found: Round = {}

    def book(stage: str, figures: dict[str, Any]) -> None:
        found[stage] = figures
        say(f"round {number}, {stage}: {figures}")

    apart = Site(FOLDER / f"round-{number}-apart", prefix=f"b{number}a.", connections=connections, **site)
    book("receiver", stages.receive(apart, traffic))
    book("assembler", stages.assemble(apart, traffic))
    book("sink sqlite", stages.sink(apart, traffic, "sqlite"))
    book("sink postgres", stages.sink(apart, traffic, "postgres"))
    shutil.rmtree(apart.folder)
    together = Site(FOLDER / f"round-{number}-together", prefix=f"b{number}t.", connections=connections, **site)
    book("whole path", stages.whole_path(together, traffic))
    shutil.rmtree(together.folder)
    return found


def say(text: str) -> None:
    """Tell a person."""
    print(text, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
