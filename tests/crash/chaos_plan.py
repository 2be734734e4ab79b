"""What is published straight to the assemblers during faults: more of everything than the simulator can push.

Conflicting and absent totals, several reports of one segment, reports that come after the timeout of their message,
repeats, messages that never become complete, and records that nobody can use. The same seed gives the same records.
"""

from __future__ import annotations

import heapq
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from ingest.runtime.partitioner import partition_of

LATE_SHARE: Final = 0.15
"""Of the reports, those that come after the timeout of their message."""

REPEAT_SHARE: Final = 0.10
UNFINISHED_SHARE: Final = 0.04
LONG_SHARE: Final = 0.4
CONFLICT_SHARE: Final = 0.03
NO_TOTAL_SHARE: Final = 0.1
SECOND_SHARE: Final = 0.25
"""Of the segments, those with more than one report."""

UNUSABLE_SHARE: Final = 0.003

_STATUSES: Final = ("DELIVRD", "DELIVRD", "DELIVRD", "DELIVRD", "UNDELIV", "EXPIRED", "UNKNOWN", "MK:0012", "ACCEPTD")

Raw = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Planned:
    """One record of the reports topic."""

    partition: int
    key: bytes | None
    value: bytes | None


class Plan:
    """Messages without end; `due` hands out their records in the order of their time."""

    def __init__(self, seed: int, *, partitions: int, rate: float, timeout_s: float) -> None:
        """Plan nothing yet.

        Args:
            seed: two plans with different ones have no message in common.
            partitions: of the reports topic.
            rate: reports per second, about.
            timeout_s: the reassembly timeout, which late reports miss.
        """
        self._seed = seed
        self._partitions = partitions
        self._timeout_s = timeout_s
        self._random = Random(seed)
        self._numbers = itertools.count()
        self._next_s = 0.0
        self._step_s = 1 / rate
        self._planned: list[tuple[float, int, Planned]] = []
        self._order = itertools.count()
        self.messages = 0
        self.unusable = 0

    def due(self, now_s: float) -> Iterator[Planned]:
        """Records whose time has come, counted from the beginning; messages begin as the rate says."""
        while self._next_s <= now_s:
            self._next_s += self._step_s * self._message(self._next_s)
        yield from self._until(now_s)

    def rest(self) -> Iterator[Planned]:
        """What is left of messages that have begun."""
        yield from self._until(float("inf"))

    def _until(self, now_s: float) -> Iterator[Planned]:
        while self._planned and self._planned[0][0] <= now_s:
            yield heapq.heappop(self._planned)[2]

    def _message(self, at_s: float) -> int:
        """Plan one message; the number of its records."""
        chance = self._random
        self.messages += 1
        message_id = f"{self._seed:x}-{chance.getrandbits(48):012x}_{next(self._numbers)}"
        before = len(self._planned)
        for report in self._reports(message_id):
            record = self._record(message_id, json.dumps(report).encode())
            self._plan(at_s + self._delay_s(), record)
            if chance.random() < REPEAT_SHARE:
                self._plan(at_s + self._delay_s(), record)
        if chance.random() < UNUSABLE_SHARE or self.messages == 1:  # a short run has one, too
            self._plan(at_s, self._unusable(message_id))
        return len(self._planned) - before

    def _plan(self, at_s: float, record: Planned) -> None:
        heapq.heappush(self._planned, (at_s, next(self._order), record))

    def _delay_s(self) -> float:
        if self._random.random() < LATE_SHARE:
            return self._timeout_s * self._random.uniform(0.8, 3)
        return self._random.expovariate(2)

    def _reports(self, message_id: str) -> Iterator[Raw]:
        chance = self._random
        total = chance.randint(2, 6) if chance.random() < LONG_SHARE else 1
        missing = chance.randint(1, total) if total > 1 and chance.random() < UNFINISHED_SHARE else 0
        for sequence in range(1, total + 1):
            if sequence == missing:
                continue
            for _ in range(1 if chance.random() > SECOND_SHARE else chance.randint(2, 3)):
                yield self._report(message_id, sequence, total)

    def _report(self, message_id: str, sequence: int, total: int) -> Raw:
        chance = self._random
        report: Raw = {"smsMsgId": message_id, "sequence": str(sequence), "status": chance.choice(_STATUSES)}
        if chance.random() > NO_TOTAL_SHARE:
            report["total"] = total + (1 if total > 1 and chance.random() < CONFLICT_SHARE else 0)
        if chance.random() > NO_TOTAL_SHARE:
            report["updateTime"] = f"2026-11-23T10:{chance.randrange(60):02}:{chance.randrange(60):02}Z"
        if chance.random() < SECOND_SHARE:
            report |= {"to": f"+86135{chance.randrange(10**4):08}", "extend": chance.choice(("order-1", "短信回执"))}
        return report

    def _record(self, message_id: str, value: bytes) -> Planned:
        key = message_id.encode()
        return Planned(partition_of(key, self._partitions), key, value)

    def _unusable(self, message_id: str) -> Planned:
        self.unusable += 1
        good = json.dumps(self._report(message_id, 1, 1)).encode()
        key = message_id.encode()
        here = partition_of(key, self._partitions)
        shapes = (
            Planned(here, key, b"{" + key),
            Planned(here, key, None),
            Planned(here, b"another-" + key, good),
            Planned((here + 1) % self._partitions, key, good),
            Planned(here, key, b'{"smsMsgId":"' + key + b'","status":"DELIVRD","sequence":3,"total":2}'),
        )
        return shapes[self.unusable % len(shapes)]
