"""Rounds of cases against one receiver each, with its books at the end: answers, disk, memory, descriptors, tasks."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.fuzz.framing import Case, a_case
from tests.fuzz.judge import Finding, judge, judge_push
from tests.fuzz.receiver import memory_kib, on_disk, open_descriptors, receiving, tasks
from tests.fuzz.sender import Heard, send
from tests.fuzz.slow_http import Wire, read_wire

ABREAST: Final = 256
FINDINGS_MAX: Final = 20
SETTLED_TRIES: Final = 200
SETTLED_PAUSE_S: Final = 0.01


@dataclass(slots=True)
class Tally:
    """What a run has seen.

    Attributes:
        inputs: connections, each with its hostile bytes.
        requests: that a strict reader finds in them.
        kinds: inputs by kind.
        statuses: answers by status.
        said: how many different bodies of answers there were.
        kept: pushes found on disk.
        reports: in those.
        closed: connections that ended without an answer to their last bytes.
        descriptors: open after the first round, which opens some for good.
        memory: resident KiB after each round.
        findings: what is wrong.
    """

    inputs: int = 0
    requests: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    said: set[bytes] = field(default_factory=set)
    kept: int = 0
    reports: int = 0
    closed: int = 0
    descriptors: int = 0
    memory: list[int] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def found(self, problems: Iterable[str], *, case: int = -1, kind: str = "round", data: bytes = b"") -> None:
        """Note what is wrong."""
        self.findings += [Finding(case, kind, problem, data) for problem in problems]


async def run_round(tally: Tally, folder: Path, *, seed: int, numbers: range, abreast: int = ABREAST) -> None:
    """Play cases against a new receiver, then compare all of its books."""
    running = tasks()
    async with receiving(folder) as receiver:
        played: list[tuple[Case, Wire, Heard]] = []
        waiting = iter(numbers)

        async def lane() -> None:
            for number in waiting:
                case = a_case(seed, number)
                wire = read_wire(case.data)
                played.append((case, wire, await send(case, wire, receiver.address)))

        async with asyncio.TaskGroup() as group:
            for _ in range(abreast):
                group.create_task(lane())
        await _quiet(lambda: not receiver.connections)
        if receiver.held_bytes or receiver.connections:
            tally.found([f"{receiver.held_bytes} bytes and {receiver.connections} connections are held at the end"])
    tally.found(receiver.faults)
    stood = await on_disk(folder)
    if stood != receiver.kept:
        tally.found([f"the disk gives back {len(stood)} pushes, not exactly the {len(receiver.kept)} that were kept"])
    by_sender = receiver.by_sender
    for case, wire, heard in played:
        kept = by_sender.get(heard.sender, [])
        problems = judge(case, wire, heard, kept)
        tally.found(problems, case=case.number, kind=case.kind, data=case.data)
        tally.kinds[case.kind] += 1
        tally.requests += len(wire.requests)
        tally.statuses.update(answer.status for answer in heard.answers)
        tally.said.update(answer.body for answer in heard.answers)
        tally.closed += not heard.answers or not heard.answers[-1].closes
    for push in stood:
        tally.found(judge_push(push), kind="push", data=push.body)
    tally.inputs += len(played)
    tally.kept += len(stood)
    tally.reports += sum(push.reports for push in stood)
    if tally.descriptors:
        await _quiet(lambda: open_descriptors() <= tally.descriptors and tasks() <= running)
    else:
        tally.descriptors = open_descriptors()
    if open_descriptors() > tally.descriptors or tasks() > running:
        tally.found([f"descriptors {tally.descriptors} -> {open_descriptors()}, tasks {running} -> {tasks()}"])
    tally.memory.append(memory_kib())


async def _quiet(holds: Callable[[], bool]) -> None:
    """Wait a bounded time for what ends by itself."""
    for _ in range(SETTLED_TRIES):
        if holds():
            return
        await asyncio.sleep(SETTLED_PAUSE_S)
