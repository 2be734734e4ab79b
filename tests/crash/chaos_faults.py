"""Which faults there are, and in which order a seed deals them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from random import Random
from typing import Final

from deploy.local.product import ASSEMBLERS, RECEIVER, SINK

BROKER: Final = "broker"
GUEST: Final = "assembler-3"
"""An assembler that joins the others and leaves them."""

MEMBERS: Final = (*ASSEMBLERS, GUEST)

SESSION_S: Final = 10.0
"""After so long without a sign of life the group goes on without a member (`consumers.engine.kafka`)."""

AIMED_SHARE: Final = 0.8
PAST_SESSION_SHARE: Final = 0.3


class Kind(StrEnum):
    """What is done to a process."""

    KILL = "SIGKILL"
    KILL_PARENT = "SIGKILL of the parent alone"
    KILL_WORKER = "SIGKILL of a worker"
    TERMINATE = "SIGTERM"
    FREEZE = "SIGSTOP, SIGCONT"
    LOSE_STATE = "SIGKILL, state folder deleted"
    DAMAGE_STATE = "SIGKILL, a bit of its state turned over"
    KILL_THEN_SUCCESSOR = "SIGKILL, then whoever takes over"
    FREEZE_THEN_SUCCESSOR = "SIGSTOP, then whoever takes over, SIGCONT"
    JOIN = "joins the group"

    @property
    def freezes(self) -> bool:
        """Whether the process is still there, and is thawed in the end."""
        return self in {Kind.FREEZE, Kind.FREEZE_THEN_SUCCESSOR}

    @property
    def hunts(self) -> bool:
        """Whether the next owner of its partitions is killed, too."""
        return self in {Kind.KILL_THEN_SUCCESSOR, Kind.FREEZE_THEN_SUCCESSOR}


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is done to the product, and undone.

    A fault of a guest makes it join where it is away; where it is not, it is not started again afterwards.

    Attributes:
        kind: what.
        target: name of a process, or `BROKER`.
        hold_s: until it is undone: started again, or thawed.
        gap_s: until the next fault, whether or not this one is undone by then.
        aimed: wait a moment for the target to be at work on a partition, so that its transactions are hit.
    """

    kind: Kind
    target: str
    hold_s: float
    gap_s: float
    aimed: bool = False

    def __str__(self) -> str:
        """For people."""
        return f"{self.kind} of {self.target}, {self.hold_s:.1f} s"


@dataclass(frozen=True, slots=True)
class Step:
    """One fault of a card.

    Attributes:
        kind: what.
        target: whose.
        hold_s: the least and the most; None for what suits the kind.
    """

    kind: Kind
    target: str
    hold_s: tuple[float, float] | None = None


Card = tuple[Step, ...]
"""Faults that follow each other at once."""


@dataclass(frozen=True, slots=True)
class Deck:
    """What is dealt, and at which pace.

    Attributes:
        cards: every one once in a round.
        gap_s: the least and the most between two cards.
        session_s: after so long without a sign of life the group goes on without a member.
    """

    cards: Sequence[Card]
    gap_s: tuple[float, float] = (0.3, 4.0)
    session_s: float = SESSION_S


def _each(kind: Kind, *targets: str) -> tuple[Card, ...]:
    return tuple((Step(kind, target),) for target in targets)


PROCESS_KILLS: Final = _each(Kind.KILL, RECEIVER, *ASSEMBLERS, SINK)

OF_MEMBERS: Final = (
    *_each(Kind.KILL, *MEMBERS),
    *_each(Kind.TERMINATE, *MEMBERS, GUEST),
    *_each(Kind.FREEZE, *MEMBERS),
    *_each(Kind.LOSE_STATE, *ASSEMBLERS),
    *_each(Kind.DAMAGE_STATE, *ASSEMBLERS),
    *_each(Kind.KILL_THEN_SUCCESSOR, *ASSEMBLERS),
    *_each(Kind.FREEZE_THEN_SUCCESSOR, *ASSEMBLERS),
    # The whole group at once, as when a rack loses its power.
    tuple(Step(Kind.KILL, member, (0.5, 3.0)) for member in MEMBERS),
)

OF_BROKERS: Final = (
    *_each(Kind.KILL, BROKER),
    *_each(Kind.FREEZE, BROKER),
    # A changelog is read from its beginning while brokers that have it are away.
    *(
        (Step(kind, BROKER, (6.0, 10.0)), Step(Kind.LOSE_STATE, member, (0.1, 1.0)))
        for kind, member in zip((Kind.KILL, Kind.FREEZE), ASSEMBLERS, strict=True)
    ),
    # The one that coordinates or leads goes while a member is gone and another is frozen.
    (
        Step(Kind.FREEZE, ASSEMBLERS[0]),
        Step(Kind.KILL, ASSEMBLERS[1], (0.5, 4.0)),
        Step(Kind.KILL, BROKER, (0.5, 4.0)),
    ),
)

OF_THE_REST: Final = (
    *_each(Kind.KILL, RECEIVER, SINK),
    *_each(Kind.KILL_PARENT, RECEIVER),
    *_each(Kind.KILL_WORKER, RECEIVER),
    *_each(Kind.TERMINATE, RECEIVER, SINK),
    *_each(Kind.FREEZE, RECEIVER, SINK),
)

EVERYTHING: Final = Deck((*OF_MEMBERS, *OF_BROKERS, *OF_THE_REST))


def dealt(seed: int, count: int, deck: Deck = EVERYTHING) -> Iterator[Fault]:
    """Deal so many faults: every card of the deck once in random order, then again, so that none is left out."""
    return islice(_endless(Random(seed), deck), count)


def _endless(chance: Random, deck: Deck) -> Iterator[Fault]:
    while True:
        cards = list(deck.cards)
        chance.shuffle(cards)
        for card in cards:
            yield from _faults(chance, deck, card)


def _faults(chance: Random, deck: Deck, card: Card) -> Iterator[Fault]:
    for number, step in enumerate(card, start=1):
        hold_s = _hold_s(chance, deck, step) if step.hold_s is None else chance.uniform(*step.hold_s)
        gap_s = chance.uniform(*deck.gap_s) if number == len(card) else 0.0
        aimed = number == 1 and step.target in MEMBERS and chance.random() < AIMED_SHARE
        yield Fault(step.kind, step.target, hold_s, gap_s, aimed)


def _hold_s(chance: Random, deck: Deck, step: Step) -> float:
    """Short at most times; of a member often past the session: the group has moved on when it is back."""
    past_session_s = deck.session_s + chance.uniform(0.5, 6)
    if step.kind.hunts:
        return past_session_s
    if step.kind is Kind.FREEZE:
        return past_session_s if step.target in {*MEMBERS, SINK} else chance.uniform(1, 2 * deck.session_s)
    if step.target == BROKER:
        return chance.uniform(0, 6)
    if step.target in MEMBERS and chance.random() < PAST_SESSION_SHARE:
        return past_session_s
    return min(4.0, chance.expovariate(1))
