"""Which faults there are, and in which order a seed deals them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import Final

from deploy.local.product import ASSEMBLERS, RECEIVER, SINK

BROKER: Final = "broker"
SESSION_S: Final = 10.0
"""After so long without a sign of life the group goes on without a member."""


class Kind(StrEnum):
    """What is done to a process."""

    KILL = "SIGKILL"
    KILL_PARENT = "SIGKILL of the parent alone"
    KILL_WORKER = "SIGKILL of a worker"
    TERMINATE = "SIGTERM"
    FREEZE = "SIGSTOP, SIGCONT"
    LOSE_STATE = "SIGKILL, state folder deleted"


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is done to the product, and undone.

    Attributes:
        kind: what.
        target: name of a process, or `BROKER`.
        hold_s: until it is undone: started again, or thawed.
        gap_s: until the next fault, whether or not this one is undone by then.
    """

    kind: Kind
    target: str
    hold_s: float
    gap_s: float

    def __str__(self) -> str:
        """For people."""
        return f"{self.kind} of {self.target}, {self.hold_s:.1f} s"


PROCESS_KILLS: Final = tuple((Kind.KILL, target) for target in (RECEIVER, *ASSEMBLERS, SINK))
EVERYTHING: Final = (
    *PROCESS_KILLS,
    (Kind.KILL_PARENT, RECEIVER),
    (Kind.KILL_WORKER, RECEIVER),
    *((Kind.FREEZE, target) for target in (RECEIVER, *ASSEMBLERS, SINK)),
    *((Kind.LOSE_STATE, target) for target in ASSEMBLERS),
    *((Kind.TERMINATE, target) for target in (RECEIVER, *ASSEMBLERS, SINK)),
    (Kind.KILL, BROKER),
    (Kind.FREEZE, BROKER),
)
"""Each once: a deck of faults."""


def dealt(seed: int, count: int, deck: Sequence[tuple[Kind, str]] = EVERYTHING) -> Iterator[Fault]:
    """Deal so many faults: every card of the deck once in random order, then again, so that none is left out."""
    chance = Random(seed)
    cards: list[tuple[Kind, str]] = []
    for _ in range(count):
        if not cards:
            cards = list(deck)
            chance.shuffle(cards)
        kind, target = cards.pop()
        yield Fault(kind, target, _hold_s(chance, kind, target), chance.uniform(0.3, 4.0))


def _hold_s(chance: Random, kind: Kind, target: str) -> float:
    if kind is Kind.FREEZE:
        # Past the session: the group has moved on when a member wakes up and does not know it yet.
        return chance.uniform(1, 20) if target in {BROKER, RECEIVER} else SESSION_S + chance.uniform(0.5, 6)
    return chance.uniform(0, 6) if target == BROKER else min(4.0, chance.expovariate(1))
