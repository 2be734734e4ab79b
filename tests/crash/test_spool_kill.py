"""kill -9 of a process that appends: what it said it kept is kept."""

import asyncio
import random
import subprocess
import sys
from pathlib import Path

from ingest.runtime.clock import SystemClock
from ingest.runtime.files import RealFileSystem
from ingest.spool.accounts import Accounts
from ingest.spool.disk import SpoolOptions, open_spool
from ingest.spool.folder import TORN
from tests.crash.spool_child import body_of

KILLS = 10
ROOT = Path(__file__).parents[2]


def run_and_kill(folder: Path, first: int, answers: int) -> tuple[list[int], int]:
    """Let a child append until it has answered so often, kill it; numbers answered, and settled up to."""
    command = [sys.executable, "-m", "tests.crash.spool_child", str(folder), str(first)]
    answered: list[int] = []
    settled = -1
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if line.endswith(b"\n"):
                *what, number = line.split()
                if what:
                    settled = int(number)
                else:
                    answered.append(int(number))
            if len(answered) == answers:
                child.kill()  # and read on: what was said before it died counts
    return answered, settled


async def recover(folder: Path) -> tuple[list[int], int]:
    """Everything the folder still holds, in order, checked byte by byte, and the balance; settles nothing."""
    accounts = Accounts()
    options = SpoolOptions(reuse_max_bytes=1 << 40)
    spool = await open_spool(folder, options, fs=RealFileSystem(), clock=SystemClock(), accounts=accounts)
    numbers: list[int] = []
    while len(numbers) < spool.pending_reports:
        for _, push in await spool.take(1_000_000):
            assert push.body == body_of(push.received_ms)
            numbers.append(push.received_ms)
    unaccounted = accounts.unaccounted()
    await spool.close()
    return numbers, unaccounted


async def test_what_was_answered_before_kill_9_is_there(tmp_path: Path) -> None:
    """Ten lives on one folder, each killed at a random moment: nothing answered and unsettled is ever missing."""
    chance = random.Random(3)
    kept: set[int] = set()
    gone = -1
    first = 0
    for _ in range(KILLS):
        answered, settled = await asyncio.to_thread(run_and_kill, tmp_path, first, chance.randint(1, 3000))
        kept |= set(answered)
        gone = max(gone, settled)  # handed out and settled: everything up to there is older and may be gone

        found, unaccounted = await recover(tmp_path)

        assert {number for number in kept if number > gone} <= set(found)
        assert found == sorted(found)
        assert len(found) == len(set(found))
        assert unaccounted == 0
        assert all(path.stem.endswith(TORN) for path in (tmp_path / "quarantine").glob("*"))
        first = max([first, *answered, *found]) + 1
