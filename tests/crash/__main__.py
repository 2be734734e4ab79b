"""`make chaos`: many faults against the whole product under load, and the books afterwards.

`python -m tests.crash [--faults N] [--seed N] [--nodes N] [--messages N] [--rate N] [--keep]`. Status 1 if anything was
lost, wrong or repeated, or a process ended that nobody ended. Data and logs of such a run stay in `var/chaos`.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
from typing import Any, Final

from deploy.local.kafka import LocalKafka
from deploy.local.processes import LocalServiceError
from deploy.local.product import REPOSITORY
from deploy.local.stack import Stack
from tests import measurement
from tests.crash.chaos import Books, Chaos, Load
from tests.crash.chaos_faults import dealt
from tests.traffic import problems

FOLDER: Final = REPOSITORY / "var" / "chaos"
FAULTS: Final = 80
SETTLE_S: Final = 240.0
BROKER_HEAP_MIB: Final = 512
TIMEOUT_S: Final = 20


def main() -> int:
    """Run it, write the figures down, and return the exit status."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--faults", type=int, default=FAULTS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--nodes", type=int, default=1, help="brokers; a fault of the broker hits one of them")
    parser.add_argument("--messages", type=int, default=30_000, help="in one wave of traffic")
    parser.add_argument("--rate", type=float, default=2_000, help="reports per second")
    parser.add_argument("--keep", action="store_true", help="write the figures to docs/measurements")
    options = parser.parse_args()
    where = measurement.circumstances()
    shutil.rmtree(FOLDER, ignore_errors=True)
    settings = {
        "DLR_REASSEMBLY_TIMEOUT_S": str(TIMEOUT_S),
        "DLR_TOPIC_REPLICATION": str(min(options.nodes, 3)),
        "DLR_TOPIC_MIN_INSYNC": str(min(options.nodes, 3) // 2 + 1),
    }
    kafka = LocalKafka(options.nodes, folder=FOLDER / "kafka", heap_mib=BROKER_HEAP_MIB)
    stack = Stack(FOLDER, detached=False, kafka=kafka, settings=settings)
    load = Load(messages=options.messages, rate=options.rate, seed=options.seed * 1_000)
    chaos = Chaos(stack, load, broker=kafka, say=lambda text: print(text, flush=True))  # noqa: T201
    try:
        stack.start()
        books = chaos.run(dealt(options.seed, options.faults), settle_s=SETTLE_S)
    except (LocalServiceError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    finally:
        stack.stop()
    good = books.good()
    markdown = _told(options.seed, where, books)
    figures = {"circumstances": where, "seed": options.seed, "nodes": options.nodes, **dataclasses.asdict(books)}
    path = measurement.write("chaos", markdown, figures, keep=options.keep)
    print(f"{markdown}\nwritten to {path}")  # noqa: T201
    if good:
        shutil.rmtree(FOLDER)
    return 0 if good else 1


def _told(seed: int, where: dict[str, Any], books: Books) -> str:
    found = books.found
    pushed, resent = (sum(sent[name] for sent in books.sent) for name in ("pushed", "resent"))
    rows: list[tuple[str, object]] = [
        ("faults", books.total()),
        ("seconds", round(books.seconds)),
        ("reports pushed and answered", f"{pushed:,}"),
        ("pushes sent again", f"{resent:,}"),
        ("records in Kafka, repeats among them", f"{found['records']:,}, {found['repeats']:,}"),
        ("messages", f"{found['messages']:,}"),
        ("results, all revisions", f"{found['results']:,}"),
        ("dead letters, unusable elements sent", f"{found['dead_letters']:,}, {found['unusable']:,}"),
        ("rows in the database", f"{found['rows']:,}"),
        *((name, f"**{found[name]:,}**") for name in ("lost", "wrong", "repeated", "pending")),
        ("reports unaccounted for, most of so many looks", f"{books.unaccounted_most:.0f}, {books.looks:,}"),
        ("processes that SIGTERM met before they had begun", books.before_begun),
        ("tracebacks in logs", books.tracebacks or 0),
        ("processes that ended by themselves or wrongly", len(books.ended)),
        ("gave up waiting for Kafka at their start, as they may", books.gave_up),
    ]
    parts = [
        f"# Faults against the whole product, seed {seed}",
        measurement.told(where),
        measurement.table(["what", "number"], rows),
        "## Faults by kind",
        measurement.table(["fault", "number"], [[kind, number] for kind, number in sorted(books.faults.items())]),
    ]
    wrong = [f"- {line}" for line in books.ended]
    wrong += [f"- {finding}" for finding in problems(found).get("findings", ())]
    if wrong:
        parts += ["## Findings", "\n".join(wrong)]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.exit(main())
