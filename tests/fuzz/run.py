"""Runs of hostile inputs, bounded and seeded: connections, bodies, signed requests; and what they come to."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, Final

from ingest.contract.push import Route
from tests.fuzz.bodies import a_batch, a_form
from tests.fuzz.judge import Finding, judge_split
from tests.fuzz.rounds import FINDINGS_MAX, Tally, run_round
from tests.fuzz.signed import a_bent_request, problems
from tests.fuzz.slow_http import REPORTS_MAX
from tests.fuzz.slow_reading import read_batch, read_form

ROUND: Final = 5_000
GROWTH_MAX_KIB: Final = 16 * 1024
"""From the second quarter of a long run to its last one: rounds differ by some MiB among themselves."""

ROUNDS_FOR_GROWTH: Final = 12
"""Fewer say nothing about growth."""


@dataclass(frozen=True, slots=True)
class Load:
    """How many inputs of each kind."""

    connections: int
    bodies: int
    signed: int

    @property
    def inputs(self) -> int:
        """All of them."""
        return self.connections + self.bodies + self.signed


Say = Callable[[str], None]


async def run(load: Load, *, seed: int, folder: Path, say: Say = lambda _: None) -> dict[str, Any]:
    """Play everything; the figures, with the findings among them. It ends early after `FINDINGS_MAX` of these."""
    began = time.monotonic()
    tally = Tally()
    bodies = play_bodies(tally, seed=seed, numbers=range(load.bodies))
    signed = play_signed(tally, seed=seed, numbers=range(load.signed))
    say(f"{bodies} bodies, {signed} signed requests, {len(tally.findings)} findings")
    for start in range(0, load.connections, ROUND):
        numbers = range(start, min(start + ROUND, load.connections))
        await run_round(tally, folder, seed=seed, numbers=numbers)
        say(f"{tally.inputs} connections, {tally.memory[-1]} KiB, {len(tally.findings)} findings")
        if len(tally.findings) >= FINDINGS_MAX:
            break
    shutil.rmtree(folder, ignore_errors=True)
    growth = growth_kib(tally.memory)
    if growth > GROWTH_MAX_KIB:
        tally.found([f"memory grew by {growth} KiB"])
    return {
        "seed": seed,
        "inputs": tally.inputs + bodies + signed,
        "connections": tally.inputs,
        "bodies": bodies,
        "signed_requests": signed,
        "requests_in_connections": tally.requests,
        "kinds": dict(sorted(tally.kinds.items())),
        "answers": {str(status): count for status, count in sorted(tally.statuses.items())},
        "different_answer_bodies": len(tally.said),
        "pushes_on_disk": tally.kept,
        "reports_on_disk": tally.reports,
        "memory_kib": {"first": tally.memory[0], "most": max(tally.memory), "last": tally.memory[-1]}
        if tally.memory
        else {},
        "memory_growth_kib": growth,
        "seconds": round(time.monotonic() - began, 1),
        "findings": [told(finding) for finding in tally.findings],
    }


def play_bodies(tally: Tally, *, seed: int, numbers: range) -> int:
    """Hold the product's division of hostile bodies to the slow reader's; returns how many."""
    for number in numbers:
        rng = Random(f"{seed}/body/{number}")
        single = number % 3 == 0
        body = a_form(rng, f"b{number}") if single else a_batch(rng, f"b{number}")
        route = Route.SINGLE if single else Route.BATCH
        reading = read_form(body) if single else read_batch(body, REPORTS_MAX)
        tally.found(judge_split(route, body, reading), case=number, kind="body", data=body)
    return len(numbers)


def play_signed(tally: Tally, *, seed: int, numbers: range) -> int:
    """Show bent signed requests to the verifier; returns how many."""
    for number in numbers:
        bent = a_bent_request(Random(f"{seed}/signed/{number}"), f"s{number}")
        tally.found(problems(bent), case=number, kind="signed", data=repr(bent.received).encode())
    return len(numbers)


def growth_kib(memory: list[int]) -> int:
    """By how much memory grew from the second quarter of a run to its last; 0 for a run too short to say."""
    if len(memory) < ROUNDS_FOR_GROWTH:
        return 0
    quarter = len(memory) // 4
    return int(median(memory[-quarter:]) - median(memory[quarter : 2 * quarter]))


def told(finding: Finding) -> str:
    """A finding in one line."""
    return f"case {finding.case} ({finding.kind}): {finding.what}: {finding.data[:300]!r}"
