"""The stages of the measurement of a large window: from a full topic to its end, and two kinds of restart."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np

from ingest.runtime.partitioner import partitions_of
from tests.bench import vitals
from tests.bench.group import Group, GroupError, until
from tests.bench.planned import Numbers, Reports, Sent, message_ids, totals
from tests.bench.publishing import published
from tests.bench.watching import Watch

ASSEMBLER: Final = "assembler"
LOOK_S: Final = 0.5
"""A look costs the assembler a millisecond or two."""

RESTART_LOOK_S: Final = 0.05
START_TIMEOUT_S: Final = 60.0
STALL_S: Final = 120.0
RESTART_TIMEOUT_S: Final = 900.0
PROBES_AMONG: Final = 64
"""Messages looked at for each partition: one of them is in every partition."""

MILLION: Final = 1_000_000


@dataclass(slots=True)
class Books:
    """What was sent, and what the present assembler process has to say in the end.

    Attributes:
        messages: planned ones.
        sent: their reports.
        probes: numbers of further messages of one segment, sent to see a partition work.
    """

    messages: int
    sent: Sent
    probes: list[int] = field(default_factory=list)


class _Progress(NamedTuple):
    """Reports that were passed at one time (monotonic seconds), and the CPU seconds so far."""

    reports: int
    at_s: float
    cpu_s: float


def assemble(group: Group, books: Books, *, points: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Start the assembler on the full topic, take figures at so many points, and check what it has counted.

    Raises:
        GroupError: it stopped getting on, or the counts are not what was sent.
    """
    product = group.product
    product.launch(ASSEMBLER)
    until(lambda: bool(_records(group)), "the assembler did not begin", timeout_s=START_TIMEOUT_S)
    pid = product.pid(ASSEMBLER)
    found: list[dict[str, Any]] = []
    goal, done = books.sent.reports, _records(group)
    last = _Progress(done, time.monotonic(), vitals.cpu_s(pid))
    moved_at = time.monotonic()
    for number in range(1, points + 1):
        while done < goal * number // points:
            if not product.running(ASSEMBLER) or time.monotonic() - moved_at > STALL_S:
                raise GroupError(f"the assembler stopped at {done:,} of {goal:,} reports")
            time.sleep(LOOK_S)
            before, done = done, _records(group)
            if done != before:
                moved_at = time.monotonic()
        now = _Progress(done, time.monotonic(), vitals.cpu_s(pid))
        if done > last.reports:
            found.append(_point(group, pid, last, now))
            say(str(found[-1]))
            last = now
    told = group.counts(ASSEMBLER, "dlrflow_records_total", "result")
    wanted = {"applied": books.sent.applied, "repeat": books.sent.repeats}
    if (counted := {name: value for name, value in told.items() if value}) != {k: v for k, v in wanted.items() if v}:
        raise GroupError(f"the assembler has counted {counted}, sent were {wanted}")
    results = group.product.metric(ASSEMBLER, "dlrflow_results_total")
    if results != books.messages:
        raise GroupError(f"the assembler has counted {results} results of {books.messages} messages")
    return found


def restart(group: Group, books: Books, known: Numbers, *, lose_state: bool) -> dict[str, Any]:
    """End the assembler, send a new message to each partition and repeats of known ones, and start it again.

    Raises:
        GroupError: it did not come up, or took a known message for a new one.
    """
    product = group.product
    began = time.monotonic()
    product.terminate(ASSEMBLER)
    stopping_s = time.monotonic() - began
    if lose_state:
        product.lose_state(ASSEMBLER)
    seen = asyncio.run(_started(group, books, known))
    wanted = {"applied": group.partitions, "repeat": len(known)}
    goal = sum(wanted.values())
    until(lambda: _records(group) >= goal, "the repeats were not passed", timeout_s=RESTART_TIMEOUT_S)
    told = {name: n for name, n in group.counts(ASSEMBLER, "dlrflow_records_total", "result").items() if n}
    if told != wanted:
        raise GroupError(f"after a restart the assembler has counted {told}, sent were {wanted}")
    lines = group.lines(ASSEMBLER, seen.launched_at_s)
    assigned_at_s = next(line.at_s for line in lines if line.event == "partitions assigned")
    runs_at_s = [line.at_s for line in lines if line.event == "partition runs"]
    entries = product.metric(ASSEMBLER, "dlrflow_restore_entries_total") or 0
    restoring_s, cpu_s = max(runs_at_s) - assigned_at_s, seen.cpu_s(assigned_at_s, max(runs_at_s))
    return {
        "stopping_s": round(stopping_s, 2),
        "assigned_after_s": round(assigned_at_s - seen.launched_at_s, 2),
        "first_results_after_s": [round(at_s - seen.launched_at_s, 2) for at_s in sorted(seen.came_at_s)],
        "restored_entries": round(entries),
        "restoring_s": round(restoring_s, 2),
        "restoring_cpu_s": round(cpu_s, 2),
        "entries_per_s": round(entries / restoring_s),
        "entries_per_cpu_s": round(entries / cpu_s) if cpu_s else 0,
        "anonymous_mib_most": round(max(look.anonymous_mib for look in seen.looks)),
        "anonymous_mib_after": round(vitals.memory(product.pid(ASSEMBLER)).anonymous_mib),
        "repeats_known": len(known),
    }


class _Look(NamedTuple):
    """At one time, epoch seconds: CPU seconds so far, and memory."""

    at_s: float
    cpu_s: float
    anonymous_mib: float


@dataclass(slots=True)
class _Seen:
    """What was seen of a start: when it was launched, looks at the process, and when the first results came."""

    launched_at_s: float
    looks: list[_Look] = field(default_factory=list)
    came_at_s: list[float] = field(default_factory=list)

    def cpu_s(self, begin_s: float, end_s: float) -> float:
        """CPU time between the looks nearest to two times."""
        first, last = (min(self.looks, key=lambda look: abs(look.at_s - at_s)) for at_s in (begin_s, end_s))
        return last.cpu_s - first.cpu_s


async def _started(group: Group, books: Books, known: Numbers) -> _Seen:
    """Send the probes and the repeats, launch, and watch until each partition has answered its probe."""
    probes = _probes(group, books)
    names = message_ids(probes)
    async with Watch(group.options, group.results, group.partitions) as watch:
        reports = [Reports(numbers, np.ones(len(numbers), np.uint64)) for numbers in (probes, known)]
        await published(group.options, group.reports, group.partitions, reports)
        seen, over = _Seen(time.time()), time.monotonic() + RESTART_TIMEOUT_S
        since_monotonic_s = time.time() - time.monotonic()
        group.product.launch(ASSEMBLER)
        pid = group.product.pid(ASSEMBLER)
        while not watch.came.keys() >= set(names):
            if not group.product.running(ASSEMBLER) or time.monotonic() > over:
                raise GroupError("the assembler did not come up again")
            seen.looks.append(_Look(time.time(), vitals.cpu_s(pid), vitals.memory(pid).anonymous_mib))
            await asyncio.sleep(RESTART_LOOK_S)
    seen.came_at_s = [watch.came[name] + since_monotonic_s for name in names]
    return seen


def _probes(group: Group, books: Books) -> Numbers:
    """New messages of one segment, one for each partition."""
    first = max([books.messages - 1, *books.probes]) + 1
    numbers = np.arange(first, first + PROBES_AMONG * group.partitions, dtype=np.uint64)
    numbers = numbers[totals(numbers) == 1]
    _, chosen = np.unique(partitions_of(message_ids(numbers), group.partitions), return_index=True)
    if len(chosen) != group.partitions:
        raise GroupError("a partition has no probe")
    probes: Numbers = numbers[chosen]
    books.probes += probes.tolist()
    return probes


def _point(group: Group, pid: int, last: _Progress, now: _Progress) -> dict[str, Any]:
    """Figures of the stretch between two looks, and of the state at its end."""
    reports, memory = now.reports - last.reports, vitals.memory(pid)
    state = group.product.state_folder(ASSEMBLER)
    return {
        "reports": now.reports,
        "reports_per_s": round(reports / (now.at_s - last.at_s)),
        "cpu_s_per_million": round((now.cpu_s - last.cpu_s) / reports * MILLION, 2),
        "anonymous_mib": round(memory.anonymous_mib),
        "file_mib": round(memory.file_mib),
        "journal_mib": round(vitals.disk_mib(state.rglob("journal-*"))),
        "runs_mib": round(vitals.disk_mib(state.rglob("run-*"))),
        "journals": len(list(state.rglob("journal-*"))),
        "runs": len(list(state.rglob("run-*"))),
    }


def _records(group: Group) -> int:
    return round(group.product.metric(ASSEMBLER, "dlrflow_records_total") or 0)
