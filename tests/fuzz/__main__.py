"""The long run: `python -m tests.fuzz [--inputs N] [--seed N] [--keep]`.

At least a million hostile inputs against the receiver: connections over real sockets to the real HTTP stack with its
spool on disk, bodies against the division into reports, bent signed requests against the verifier. Status 1 with the
findings if anything is not as the contract promises. `--keep` writes the figures to docs/measurements.
"""

from __future__ import annotations

import argparse
import logging
import sys
from typing import Any, Final

import structlog
import uvloop

from deploy.local.product import REPOSITORY
from tests import measurement
from tests.fuzz.run import Load, run

FOLDER: Final = REPOSITORY / "var" / "fuzz"
INPUTS: Final = 1_000_000
CONNECTIONS_SHARE: Final = 0.3
SIGNED_SHARE: Final = 0.1


def main() -> int:
    """Run it, write the figures down, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=INPUTS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="write the figures to docs/measurements")
    options = parser.parse_args()
    connections, signed = int(options.inputs * CONNECTIONS_SHARE), int(options.inputs * SIGNED_SHARE)
    load = Load(connections, options.inputs - connections - signed, signed)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    where = measurement.circumstances()
    figures = uvloop.run(run(load, seed=options.seed, folder=FOLDER, say=_say))
    path = measurement.write("fuzz", _told(where, figures), {"where": where, **figures}, keep=options.keep)
    _say(str(path))
    return 1 if figures["findings"] else 0


def _told(where: dict[str, Any], figures: dict[str, Any]) -> str:
    rows = [(name.replace("_", " "), _shown(value)) for name, value in figures.items() if name != "findings"]
    findings = "\n".join(f"- `{finding}`" for finding in figures["findings"]) or "None."
    return "\n\n".join(
        (
            "# Hostile inputs",
            measurement.told(where),
            "Sender and receiver share one process and one core, so the seconds say nothing about the receiver's pace.",
            measurement.table(("figure", "value"), rows),
            f"## Findings\n\n{findings}\n",
        )
    )


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {count:,}" for name, count in value.items())
    return f"{value:,}" if isinstance(value, int | float) else str(value)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
