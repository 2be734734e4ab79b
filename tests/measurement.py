"""What every measurement says about itself, and where its figures go: dated Markdown and JSON."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import orjson

from deploy.local.product import REPOSITORY

SCRATCH: Final = REPOSITORY / "var" / "measurements"
KEPT: Final = REPOSITORY / "docs" / "measurements"


def circumstances() -> dict[str, Any]:
    """Commit and machine class, and how busy the machine is at this moment."""
    cpu = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cores": os.cpu_count(),
        "cpu": cpu[1] if cpu else platform.processor(),
        "memory_gib": round(int(memory[1]) / 2**20, 1) if memory else None,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_before": [round(load, 2) for load in os.getloadavg()],
    }


def _commit() -> str:
    """The commit, marked where files that git knows differ from it."""
    said = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        check=False,
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )
    return said.stdout.strip() or "unknown"


def told(where: Mapping[str, Any]) -> str:
    """Circumstances as a Markdown paragraph."""
    return (
        f"{where['at']}, commit `{where['commit']}`; {where['cores']} cores, {where['cpu']}, "
        f"{where['memory_gib']} GiB, Linux {where['kernel']}, Python {where['python']}; "
        f"load before {where['load_before'][0]}."
    )


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines: list[Sequence[object]] = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def write(name: str, markdown: str, figures: Mapping[str, Any], *, keep: bool) -> Path:
    """Write both files and return the path of the Markdown.

    Args:
        name: of the measurement, such as `chaos`.
        markdown: for people.
        figures: all of them, JSON values.
        keep: under `docs/measurements`, which belongs to the repository, in place of `var/measurements`.
    """
    folder = KEPT if keep else SCRATCH
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{datetime.now(UTC):%Y-%m-%dT%H%M%SZ}-{name}.md"
    path.write_text(markdown)
    path.with_suffix(".json").write_bytes(orjson.dumps(figures, option=orjson.OPT_INDENT_2))
    return path
