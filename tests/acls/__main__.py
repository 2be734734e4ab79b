"""`python -m tests.acls`: every process with exactly its rights, and without each of them, asked for or not.

Each right must be needed by the work itself, not only by the question at its start: so every trial is made a second
time with nobody asking. Takes some minutes; `--only PROCESS` tries one.
"""

import argparse
import asyncio
import contextlib
import io
import logging
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.acls.ground import Guarded, guarded
from tests.acls.trial import Trial, attempt, trials, unasked
from tests.acls.work import WORKS

AT_ONCE = 4


async def try_all(kafka: Guarded, wanted: list[Trial], folder: Path, *, asked: bool) -> list[tuple[Trial, str]]:
    """What each trial came to, some at a time."""
    room = asyncio.Semaphore(AT_ONCE)

    async def one(number: int, trial: Trial) -> tuple[Trial, str]:
        async with room:
            place = folder / f"{number}-{asked}"
            place.mkdir()
            return trial, await attempt(kafka, trial, f"trial{number}{'asked' if asked else 'unasked'}.", place)

    return list(await asyncio.gather(*(one(number, trial) for number, trial in enumerate(wanted))))


async def main(only: str | None) -> int:
    """Try, and print a line for each trial; 1 if one was not as it must be."""
    wanted = trials(lambda process: only in {None, process})
    wrong = 0
    # What the processes print is not what is asked for here.
    with contextlib.redirect_stdout(io.StringIO()), guarded() as kafka, TemporaryDirectory() as folder:
        asked = await try_all(kafka, wanted, Path(folder), asked=True)
        async with unasked():
            unawares = await try_all(kafka, wanted, Path(folder), asked=False)
    for words, found in (("asked at the start", asked), ("not asked", unawares)):
        for trial, came_to in found:
            right = not came_to if trial.without is None else bool(came_to)
            wrong += not right
            print(f"{'ok   ' if right else 'WRONG'} {words}: {trial}: {came_to or 'works'}")  # noqa: T201
    print(f"{2 * len(wanted)} trials, {wrong} wrong")  # noqa: T201
    return 1 if wrong else 0


if __name__ == "__main__":
    logging.disable()
    parser = argparse.ArgumentParser(prog="python -m tests.acls")
    parser.add_argument("--only", choices=sorted(WORKS))
    sys.exit(asyncio.run(main(parser.parse_args().only)))
