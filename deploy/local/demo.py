"""`make demo`: the whole path on this machine, two of its processes killed in the middle, and the proof.

Ends with a reconciliation table and with status 0 only if nothing was lost, wrong or repeated.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import closing
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from deploy.local import containers
from deploy.local.kafka import class_path, java_program
from deploy.local.processes import LocalServiceError
from deploy.local.stack import ASSEMBLERS, DEMO_FOLDER, RECEIVER, REPOSITORY, KafkaService, Stack, down, where_to_look

EXAMPLE: Final = REPOSITORY / "tests" / "data" / "batch_example.json"
EXAMPLE_MESSAGES: Final = (
    "f6dcba15-ced9-45f7-9f5e-af82328c5253_1188602",
    "f6dcba15-ced9-45f7-9f5e-af82328c5253_123456",
)
ACCEPTED: Final = b'{"returnCode":0,"returnCodeDesc":"Success"}'

MESSAGES: Final = 80_000
"""About 200,000 reports."""
REPORTS_ABOUT: Final = 200_000
RATE: Final = 12_000
TIMEOUT_S: Final = 20
"""Of the reassembly in the demo, so that incomplete messages show while one watches."""
KILL_RECEIVER_AT: Final = 0.3
KILL_ASSEMBLER_AT: Final = 0.55
SETTLE_TIMEOUT_S: Final = 90.0
POLL_S: Final = 0.2
RECEIVED: Final = re.compile(r"^dlrflow_reports_received_total(?:\{[^}]*\})? ([0-9.e+]+)$", re.MULTILINE)


class Demo:
    """One run, told on a console."""

    def __init__(self, stack: Stack, console: Console, messages: int) -> None:
        self._stack = stack
        self._console = console
        self._messages = messages
        self._truth = stack.folder / "truth.jsonl"
        self._simulator_log = stack.folder / "simulator.log"
        self._received_before = 0.0

    def run(self) -> bool:
        """Do it all and return whether the books balance."""
        began = time.monotonic()
        self._stack.start(lambda what: self._console.print(f"start {what}"))
        self._push_example()
        sent = self._push_while_killing()
        self._console.print("compare topics and database with the truth")
        found = self._settled()
        example = self._example_results()
        self._console.print(self._table(sent, found, example))
        self._console.print(f"took {time.monotonic() - began:.0f} s, set-up not counted")
        return self._balances(sent, found, example)

    def _push_example(self) -> None:
        request = urllib.request.Request(  # noqa: S310 - loopback
            f"{self._stack.url}/batchReport", EXAMPLE.read_bytes(), {"Content-Type": "application/JSON;charset=UTF-8"}
        )
        with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310
            answer = response.read()
        if answer != ACCEPTED:
            raise LocalServiceError(f"the platform's example was answered {answer!r}")
        self._console.print(f"push the platform's example body: {answer.decode()}")

    def _push_while_killing(self) -> dict[str, Any]:
        """Run the simulator; kill and restart a receiver and an assembler on the way."""
        command = [sys.executable, "-m", "ingest", "simulate", "--url", self._stack.url, "--truth", str(self._truth)]
        command += ["--messages", str(self._messages), "--rate", str(RATE), "--shuffle", "--connections", "16"]
        command += ["--invalid-share", "0.001", "--incomplete-share", "0.002"]
        with (
            self._simulator_log.open("wb") as log,
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, cwd=REPOSITORY, env=self._stack.environment()
            ) as simulator,
        ):
            try:
                self._kill_in_the_middle(simulator)
                output, _ = simulator.communicate()
            finally:
                simulator.kill()
        if simulator.returncode != 0:
            raise LocalServiceError(f"the simulator failed: {self._simulator_log.read_text().strip()}")
        summary: dict[str, Any] = json.loads(output)
        return summary

    def _kill_in_the_middle(self, simulator: subprocess.Popen[bytes]) -> None:
        about = REPORTS_ABOUT * self._messages // MESSAGES
        steps: list[tuple[float, Callable[[], None]]] = [
            (KILL_RECEIVER_AT, self._kill_receiver),
            (KILL_ASSEMBLER_AT, lambda: self._kill(ASSEMBLERS[0])),
        ]
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:,.0f} reports"))
        with Progress(*columns, TimeElapsedColumn(), console=self._console) as progress:
            task = progress.add_task("push", total=about)
            while simulator.poll() is None:
                self._show(progress, task)
                if steps and self._received() >= about * steps[0][0]:
                    steps.pop(0)[1]()
                time.sleep(POLL_S)
            self._show(progress, task)
        if steps:
            raise LocalServiceError("the push was over before the receiver and an assembler were killed")

    def _show(self, progress: Progress, task: TaskID) -> None:
        progress.update(task, completed=self._received())

    def _received(self) -> float:
        """Reports that were answered, over the life of both receivers."""
        found = RECEIVED.search(self._stack.asked(RECEIVER, "/metrics") or "")
        return self._received_before + (float(found[1]) if found else 0.0)

    def _kill_receiver(self) -> None:
        self._received_before = self._received()
        self._kill(RECEIVER)

    def _kill(self, name: str) -> None:
        self._stack.kill(name)
        self._console.print(f"kill -9 {name}, start it again")
        self._stack.launch(name)

    def _settled(self) -> dict[str, Any]:
        """What the audit finds once nothing is on its way any more, or after a patient wait."""
        until = time.monotonic() + SETTLE_TIMEOUT_S
        command = [
            sys.executable,
            "-m",
            "consumers",
            "audit",
            "--json",
            "--sink",
            "sqlite",
            "--truth",
            str(self._truth),
        ]
        with self._console.status("waiting for what is still on its way"):
            while True:
                done = subprocess.run(
                    command, check=False, capture_output=True, text=True, cwd=REPOSITORY, env=self._stack.environment()
                )
                if done.returncode not in {0, 1}:
                    raise LocalServiceError(f"the audit failed: {done.stderr.strip()}")
                found: dict[str, Any] = json.loads(done.stdout)
                if (done.returncode == 0 and not found["pending"]) or time.monotonic() > until:
                    return found

    def _example_results(self) -> int:
        """How many of the example's two messages are in the database, delivered."""
        with closing(sqlite3.connect(self._stack.database)) as database:
            (number,) = database.execute(
                "SELECT count(*) FROM message_results WHERE outcome = 'delivered' AND sms_msg_id IN (?, ?)",
                EXAMPLE_MESSAGES,
            ).fetchone()
        return int(number)

    def _balances(self, sent: dict[str, Any], found: dict[str, Any], example: int) -> bool:
        return (
            not (found["lost"] or found["wrong"] or found["repeated"] or found["pending"])
            and sent["pushed"] == sent["planned"]
            and example == len(EXAMPLE_MESSAGES)
        )

    def _table(self, sent: dict[str, Any], found: dict[str, Any], example: int) -> Table:
        answers = ", ".join(f"{number:,} x {answer}" for answer, number in sorted(sent["answers"].items()))
        removed = found["records"] - len(EXAMPLE_MESSAGES) - (sent["planned"] - sent["unusable"])
        rows = [
            ("reports pushed", f"{sent['pushed']:,} in {sent['pushes']:,} pushes"),
            ("answered", f"{answers}"),
            ("answered within", f"p50 {sent['p50_ms']} ms, p99 {sent['p99_ms']} ms"),
            ("sent again by the simulator", f"{sent['resent']:,} pushes, while the receiver was down"),
            ("records in Kafka", f"{found['records']:,}, {len(EXAMPLE_MESSAGES)} of them of the example"),
            ("  repeats removed", f"{found['repeats']:,}"),
            ("  of them made by crashes", f"{max(removed, 0):,}"),
            ("messages", f"{found['messages']:,}"),
            *((f"  {outcome}", f"{number:,}") for outcome, number in sorted(found["outcomes"].items())),
            ("results, all revisions", f"{found['results']:,}"),
            ("dead letters", f"{found['dead_letters']:,} for {found['unusable']:,} unusable elements"),
            ("rows in the database", f"{found['rows']:,}, {len(EXAMPLE_MESSAGES)} of them of the example"),
            ("the example's results", f"{example} of {len(EXAMPLE_MESSAGES)}"),
            *((problem, f"{found[problem]:,}") for problem in ("lost", "wrong", "repeated")),
        ]
        table = Table(title="Reconciliation", show_header=False)
        for name, value in rows:
            table.add_row(name, value)
        return table


def kafka_to_use(*, keep: bool) -> KafkaService | None:
    """None for a node of the stack's own; one in a container where that is all that can be had.

    Raises:
        LocalServiceError: neither can be had, or a container cannot be kept.
    """
    try:
        java_program()
        class_path()
    except LocalServiceError:
        if not containers.engine_answers():
            raise
        if keep:
            raise LocalServiceError("without Java and Maven nothing is kept; use `docker compose up`") from None
        return containers.ContainerKafka()
    return None


def main() -> int:
    """Run the demo and return its exit status."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the stack up and say where to look")
    parser.add_argument("--messages", type=int, default=MESSAGES, help="size of the run")
    options = parser.parse_args()
    console = Console()
    down(DEMO_FOLDER)
    shutil.rmtree(DEMO_FOLDER, ignore_errors=True)
    stack = None
    good = False
    try:
        kafka = kafka_to_use(keep=options.keep)
        stack = Stack(
            DEMO_FOLDER, detached=options.keep, kafka=kafka, settings={"DLR_REASSEMBLY_TIMEOUT_S": str(TIMEOUT_S)}
        )
        good = Demo(stack, console, options.messages).run()
    except LocalServiceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    finally:
        if stack is not None and not (options.keep and good):
            stack.stop()
    if good and options.keep:
        print(where_to_look(stack))
    console.print("[green]nothing lost, wrong or repeated[/]" if good else "[red]the books do not balance[/]")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
