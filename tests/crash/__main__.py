"""`make chaos`: many faults under load, and the books afterwards.

`python -m tests.crash [--only assemblers|product] [--faults N] [--seed N] [--nodes N] [--keep]`. Twice so many faults:
against three assemblers that are written to directly, with a short session, so that most faults hit transactions; and
against the whole product, from HTTP to the database, as it is. Status 1 if anything was lost, wrong or repeated, or a
process ended that nobody ended or otherwise than it must. Data and logs of such a run stay in `var/chaos`.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
from collections.abc import Mapping
from typing import Any, Final

from deploy.local.kafka import LocalKafka
from deploy.local.processes import LocalServiceError
from deploy.local.product import REPOSITORY
from tests import measurement
from tests.crash.chaos_books import Books
from tests.crash.chaos_runs import SETTINGS, run
from tests.traffic import problems

FOLDER: Final = REPOSITORY / "var" / "chaos"
FAULTS: Final = 200
NODES: Final = 3
BROKER_HEAP_MIB: Final = 512
WHAT: Final = {"assemblers": "three assemblers", "product": "the whole product"}


def main() -> int:
    """Run it, write the figures down, and return the exit status."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--only", choices=SETTINGS, help="one of the two runs")
    parser.add_argument("--faults", type=int, default=FAULTS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--nodes", type=int, default=NODES, help="brokers; a fault of the broker hits one of them")
    parser.add_argument("--rate", type=float, help="reports per second")
    parser.add_argument("--keep", action="store_true", help="write the figures to docs/measurements")
    options = parser.parse_args()
    chosen = [options.only] if options.only else list(SETTINGS)
    return max(_run(name, options) for name in chosen)


def _run(name: str, options: argparse.Namespace) -> int:
    where = measurement.circumstances()
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    setting = SETTINGS[name]
    if options.rate:
        setting = dataclasses.replace(setting, load=dataclasses.replace(setting.load, rate=options.rate))
    try:
        with LocalKafka(options.nodes, folder=folder / "kafka", heap_mib=BROKER_HEAP_MIB) as kafka:
            books = run(setting, folder, kafka, seed=options.seed, faults=options.faults, say=_say)
    except (LocalServiceError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    told = _told(f"Faults against {WHAT[name]}, {options.nodes} brokers, seed {options.seed}", where, books)
    figures = {"circumstances": where, "seed": options.seed, "nodes": options.nodes, **dataclasses.asdict(books)}
    path = measurement.write(f"chaos-{name}", told, figures, keep=options.keep)
    print(f"{told}\nwritten to {path}")  # noqa: T201
    if not books.good():
        return 1
    shutil.rmtree(folder)
    return 0


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


def _told(title: str, where: Mapping[str, Any], books: Books) -> str:
    parts = [
        f"# {title}",
        measurement.told(where),
        measurement.table(["what", "number"], _rows(books)),
        "## Faults by kind",
        measurement.table(["fault", "number"], sorted(books.faults.items())),
        "## What assemblers were doing when a fault hit them",
        measurement.table(["partitions", "number"], sorted(books.caught.items())),
        "## How processes ended",
        measurement.table(["status", "number"], sorted(books.statuses.items())),
    ]
    wrong = [f"- {line}" for line in books.ended]
    wrong += [f"- {finding}" for finding in problems(books.found).get("findings", ())]
    if wrong:
        parts += ["## Findings", "\n".join(wrong)]
    return "\n\n".join(parts) + "\n"


def _rows(books: Books) -> list[tuple[str, object]]:
    found = books.found
    oracle = found.get("oracle", found)
    rows: list[tuple[str, object]] = [("faults", books.total()), ("seconds", round(books.seconds))]
    if "rows" in found:
        pushed, resent = (sum(sent[name] for sent in books.sent) for name in ("pushed", "resent"))
        rows += [
            ("reports pushed and answered", f"{pushed:,}"),
            ("pushes sent again", f"{resent:,}"),
            ("rows in the database", f"{found['rows']:,}"),
            ("reports unaccounted for, most of so many looks", f"{books.unaccounted_most:.0f}, {books.looks:,}"),
        ]
    rows += [
        ("records of the reports topic", f"{oracle['records']:,}"),
        ("messages", f"{oracle['messages']:,}"),
        ("results, each compared with the oracle", f"{oracle['results']:,}"),
        *((f"of them {reason}", f"{number:,}") for reason, number in sorted(oracle["by_reason"].items())),
        ("messages with conflicting totals", f"{oracle['conflicts']:,}"),
        ("dead letters", f"{found['dead_letters']:,}"),
        *((name, f"**{found[name]:,}**") for name in ("lost", "wrong", "repeated", "pending")),
        ("processes that SIGTERM met before they had begun", books.before_begun),
        *((f"tracebacks in logs, {said}", number) for said, number in sorted(books.tracebacks.items())),
        ("processes that ended by themselves or wrongly", len(books.ended)),
        ("gave up waiting for Kafka at their start, as they may", books.gave_up),
    ]
    return rows


if __name__ == "__main__":
    sys.exit(main())
