"""A process that appends until it is killed: `python -m tests.crash.spool_child FOLDER FIRST`.

Prints the number of every push once its append has returned; the number is the beginning of its body.
"""

import asyncio
import itertools
import os
import sys
from pathlib import Path

import uvloop

from ingest.contract.push import Push, Route
from ingest.runtime.clock import SystemClock
from ingest.runtime.files import RealFileSystem
from ingest.spool.accounts import Accounts
from ingest.spool.disk import DiskSpool, SpoolOptions, open_spool

TASKS = 32


def body_of(number: int) -> bytes:
    """The body with this number; lengths differ."""
    return (b"%012d" % number).ljust(12 + number * 7919 % 3000, b".")


async def _append(spool: DiskSpool, numbers: "itertools.count[int]") -> None:
    for number in numbers:
        await spool.append(Push(number, Route.BATCH, 1, body_of(number)))
        os.write(1, b"%d\n" % number)  # at once: a buffer would die with the process


async def _settle(spool: DiskSpool) -> None:
    """Settle every third piece that is taken, so that the cursor moves and files are deleted while it is killed."""
    for turn in itertools.count():
        some = await spool.take(50_000)
        os.write(1, b"settled %d\n" % some[-1].push.received_ms)
        spool.settle(some[-1].position)
        if turn % 3 == 0:
            await spool.tidy()


async def main(folder: Path, first: int) -> None:
    """Append for ever."""
    options = SpoolOptions(file_bytes=256 * 1024, reuse_max_bytes=1 << 40)  # every life on one folder
    spool = await open_spool(folder, options, fs=RealFileSystem(), clock=SystemClock(), accounts=Accounts())
    numbers = itertools.count(first)
    async with asyncio.TaskGroup() as group:
        for _ in range(TASKS):
            group.create_task(_append(spool, numbers))
        group.create_task(_settle(spool))


if __name__ == "__main__":
    uvloop.run(main(Path(sys.argv[1]), int(sys.argv[2])))
