"""What one process uses: CPU time, and memory by whether a file backs it. Folders: the bytes that they take on disk."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import psutil

_BLOCK_BYTES = 512


class Memory(NamedTuple):
    """Resident memory, MiB. What a file backs can be dropped and read again; what is anonymous cannot."""

    anonymous_mib: float
    file_mib: float


def memory(pid: int) -> Memory:
    """Resident memory of a process without its children."""
    told = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return Memory(*(int(told[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile")))


def cpu_s(pid: int) -> float:
    """CPU seconds of all threads of a process so far."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def disk_mib(files: Iterable[Path]) -> float:
    """What files take on disk, preallocated room included; those that go meanwhile count nothing."""
    total = 0
    for file in files:
        try:
            total += file.stat().st_blocks
        except FileNotFoundError:
            continue
    return total * _BLOCK_BYTES / 2**20
