"""Takes one guard after the other out of a copy of the product, and runs the tests that must fail then.

`python -m tests.guards [NAME ...]` first runs them with every guard in place, then prints a Markdown table. Its status
is 1 if a test passes without its guard, or fails with it.
"""

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from deploy.local.cache import cache_dir
from deploy.local.kafka import LocalKafka
from tests.guards.guard import Guard, Removal

ROOT = Path(__file__).parents[2]
SOURCES = ("ingest", "consumers", "tests", "deploy", "docs", "pyproject.toml")
TEST_TIMEOUT_S = 240.0
PATIENCE = Removal(file="tests/assembling.py", old="PATIENCE_S = 60.0", new="PATIENCE_S = 25.0")
"""Without its guard a test often waits for what never comes."""

ENDED_WELL, ENDED_WITH_FAILURES = 0, 1
SHARED_KAFKA = "DLR_KAFKA_BOOTSTRAP_SERVERS"
"""Names the broker of the tests that do it no harm."""

HOW_MAX = 100
SAID_MAX = 4000
FAILS, PASSES = "fails without it", "STILL PASSES"


def copy_of_the_tree(folder: Path) -> None:
    """Copy what the working tree holds of the sources, tracked or new, and nothing else."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *SOURCES],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def run(folder: Path, tests: Sequence[str], bootstrap: str, timeout_s: float) -> tuple[int | None, str]:
    """Run tests in a copy: the exit status, None if they were ended after `timeout_s`, and all that was printed."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    environ = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
        "DLRFLOW_CACHE_DIR": str(cache_dir()),
        "COLUMNS": "300",  # or pytest cuts the reasons of its summary
        SHARED_KAFKA: bootstrap,
    }
    # A session of its own: what a test has started ends with it.
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environ,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as running:
        try:
            said, _ = running.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)
            return None, running.communicate()[0]
    return running.returncode, said


def verdict(folder: Path, test: str, bootstrap: str) -> tuple[str, str]:
    """What became of one test without its guard, and how it failed."""
    status, said = run(folder, [test], bootstrap, TEST_TIMEOUT_S)
    if status is None or "+ Timeout +" in said:
        return FAILS, "it never ends"
    if status == ENDED_WELL:
        return PASSES, ""
    if status == ENDED_WITH_FAILURES and re.search(r"^\d+ failed", said, re.MULTILINE):
        why = re.search(r"^FAILED .* - (.*)$", said, re.MULTILINE)
        return FAILS, why[1] if why else ""
    if status == ENDED_WITH_FAILURES and (
        left := re.search(r"PytestUnraisableExceptionWarning: (.*)$", said, re.MULTILINE)
    ):
        return FAILS, left[1]
    return f"did not run (status {status})", (said.strip().splitlines() or [""])[-1]


def table(guards: Sequence[Guard], bootstrap: str) -> Iterator[tuple[str, bool]]:
    """The lines of the table, each with whether it is good."""
    yield "| guard | what it is about | test | outcome | how | s |", True
    yield "|---|---|---|---|---|---|", True
    for guard in guards:
        with tempfile.TemporaryDirectory(prefix="dlrflow-guard-") as made:
            folder = Path(made)
            copy_of_the_tree(folder)
            patience = folder / PATIENCE.file
            patience.write_text(PATIENCE.of(patience.read_text()))
            for path, source in guard.taken_out(folder).items():
                (folder / path).write_text(source)
            for test in guard.tests:
                started_s = time.monotonic()
                outcome, how = verdict(folder, test, bootstrap)
                cells = (
                    *(guard.name, guard.what, f"`{test.removeprefix('tests/')}`", outcome),
                    *(how[:HOW_MAX].replace("|", "\\|"), f"{time.monotonic() - started_s:.0f}"),
                )
                yield f"| {' | '.join(cells)} |", outcome == FAILS


def intact(guards: Sequence[Guard], bootstrap: str) -> bool:
    """Whether all their tests pass in a copy from which nothing was taken out; says what does not."""
    tests = list(dict.fromkeys(test for guard in guards for test in guard.tests))
    with tempfile.TemporaryDirectory(prefix="dlrflow-guard-") as made:
        copy_of_the_tree(Path(made))
        status, said = run(Path(made), tests, bootstrap, TEST_TIMEOUT_S * len(tests))
    if status != ENDED_WELL:
        print(said[-SAID_MAX:], file=sys.stderr)  # noqa: T201
    return status == ENDED_WELL


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 if a test passes without its guard, or cannot be run."""
    parser = argparse.ArgumentParser(prog="python -m tests.guards", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these guards; else all")
    parser.add_argument("--list", action="store_true", help="only list the guards")
    wanted = parser.parse_args(arguments)
    known = Guard.load_all()
    if unknown := set(wanted.names) - set(known):
        parser.error(f"no such guard: {', '.join(sorted(unknown))}")
    chosen = [known[name] for name in wanted.names] or list(known.values())
    if wanted.list:
        for guard in chosen:
            print(f"{guard.name}: {guard.what}")  # noqa: T201
        return 0
    with contextlib.ExitStack() as stack:
        bootstrap = os.environ.get(SHARED_KAFKA) or stack.enter_context(LocalKafka()).bootstrap
        if not intact(chosen, bootstrap):
            print("there are tests that fail with all guards in place: nothing follows from the others")  # noqa: T201
            return 1
        good = True
        for line, fine in table(chosen, bootstrap):
            print(line, flush=True)  # noqa: T201
            good &= fine
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
