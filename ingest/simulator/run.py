"""One run of the simulator: plan, truth file, traffic, progress, and what happened as one line of JSON."""

import asyncio
import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ingest.runtime.errors import FoundError, UsageError
from ingest.runtime.supervise import stop_event_on_signals
from ingest.simulator.plan import Plan, PlanOptions
from ingest.simulator.traffic import Sent, Target, quantile_ms, send


async def simulate(options: PlanOptions, target: Target, truth: Path | None, stop: asyncio.Event) -> dict[str, Any]:
    """Send the traffic and write the truth file.

    Args:
        options: what is sent.
        target: where and how.
        truth: file for the truth (contract.md section 10), or None. Only a run that came to its end has the last line.
        stop: ends the run early.

    Returns:
        What happened: numbers, and latencies in milliseconds.

    Raises:
        UsageError: the truth file cannot be written.
    """
    with _truth_file(truth) as file, _progress() as bar:
        task = bar.add_task("messages", total=options.messages)

        def known(line: dict[str, Any]) -> None:
            if file is not None:
                file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
            bar.advance(task)

        plan = Plan(options, known)
        sent = await send(plan.pushes(), target, stop)
        if file is not None and not stop.is_set():
            file.write(orjson.dumps({"unusable": plan.unusable}, option=orjson.OPT_APPEND_NEWLINE))
    return _summary(plan, sent)


async def play_platform(options: PlanOptions, target: Target, truth: Path | None) -> None:
    """`simulate` until it is done or a signal comes; prints what happened as one line of JSON on standard output.

    Raises:
        FoundError: it was stopped before everything was sent.
        UsageError: the truth file cannot be written.
    """
    stop = stop_event_on_signals()
    print(orjson.dumps(await simulate(options, target, truth, stop)).decode())  # noqa: T201 - the output of the command
    if stop.is_set():
        raise FoundError("stopped before everything was sent; the truth file is not whole")


@contextlib.contextmanager
def _truth_file(path: Path | None) -> Iterator[BinaryIO | None]:
    if path is None:
        yield None
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("wb")
    except OSError as error:
        raise UsageError(f"the truth file {path} cannot be written: {error.strerror}") from None
    with file:
        yield file


def _progress() -> Progress:
    """A bar on a terminal; nothing elsewhere."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(file=sys.stderr),
        disable=not sys.stderr.isatty(),
    )


def _summary(plan: Plan, sent: Sent) -> dict[str, Any]:
    return {
        "planned": plan.reports,
        "pushed": sent.reports,
        "pushes": sent.pushes,
        "resent": sent.resent,
        "unusable": plan.unusable,
        "answers": dict(sent.answers),
        "seconds": round(sent.seconds, 3),
        "reports_per_s": round(sent.reports / sent.seconds) if sent.seconds else 0,
        "p50_ms": _figure(sent.answers_s, 0.50),
        "p99_ms": _figure(sent.answers_s, 0.99),
        "p999_ms": _figure(sent.answers_s, 0.999),
        "from_due_p50_ms": _figure(sent.latencies_s, 0.50),
        "from_due_p99_ms": _figure(sent.latencies_s, 0.99),
    }


def _figure(seconds: Sequence[float], quantile: float) -> float:
    return round(quantile_ms(seconds, quantile), 1)
