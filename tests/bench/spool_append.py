"""Measures the spool: `python -m tests.bench.spool_append [--folder DIR] [--seconds N] [--tasks N] [--body BYTES]`.

Many coroutines append bodies and wait for their group's fdatasync, while a reader takes and settles as the forwarder
does. Prints appends per second, per second of CPU, and the time one append takes.
"""

import argparse
import asyncio
import os
import platform
import shutil
import sys
import time
from pathlib import Path
from tempfile import mkdtemp

import uvloop

from ingest.contract.push import Push, Route
from ingest.runtime.clock import SystemClock
from ingest.runtime.files import RealFileSystem
from ingest.spool.accounts import Accounts
from ingest.spool.disk import DiskSpool, SpoolOptions, open_spool

_TAKE_BYTES = 4 * 1024 * 1024
_MS = 1000


async def _append(spool: DiskSpool, body: bytes, until: float, times: list[float]) -> None:
    while (begin := time.perf_counter()) < until:
        await spool.append(Push(time.time_ns() // 1_000_000, Route.BATCH, 50, body))
        times.append(time.perf_counter() - begin)


async def _settle(spool: DiskSpool) -> None:
    while some := await spool.take(_TAKE_BYTES):
        reports = sum(push.reports for _, push in some)
        spool.settle(some[-1].position)
        spool.accounts.published += reports


async def _measure(folder: Path, seconds: float, tasks: int, body_bytes: int) -> str:
    spool = await open_spool(
        folder, SpoolOptions(), fs=RealFileSystem(), clock=SystemClock(), accounts=(accounts := Accounts())
    )
    body = os.urandom(body_bytes)
    times: list[float] = []
    reader = asyncio.create_task(_settle(spool))
    cpu, begin = time.process_time(), time.perf_counter()
    await asyncio.gather(*(_append(spool, body, begin + seconds, times) for _ in range(tasks)))
    took, cpu = time.perf_counter() - begin, time.process_time() - cpu
    unaccounted = accounts.unaccounted()
    await spool.close()
    await reader
    times.sort()
    p50, p99, most = (times[int((len(times) - 1) * share)] * _MS for share in (0.5, 0.99, 1))
    return (
        f"{tasks} coroutines, {body_bytes} bytes: {len(times) / took:,.0f} appends/s, {len(times) / cpu:,.0f} per CPU"
        f" second; p50 {p50:.2f} ms, p99 {p99:.2f} ms, most {most:.1f} ms; unaccounted {unaccounted}\n"
    )


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("var"))
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--tasks", type=int, default=64)
    parser.add_argument("--body", type=int, default=10_000)
    arguments = parser.parse_args()
    arguments.folder.mkdir(exist_ok=True)
    folder = Path(mkdtemp(prefix="spool-bench-", dir=arguments.folder))
    try:
        line = uvloop.run(_measure(folder, arguments.seconds, arguments.tasks, arguments.body))
    finally:
        shutil.rmtree(folder)
    sys.stdout.write(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n{line}")


if __name__ == "__main__":
    main()
