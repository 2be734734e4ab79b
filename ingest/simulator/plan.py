"""What the simulated platform sends: messages, their reports, disorder, repeats, unusable elements.

The same seed and shares give the same pushes and the same truth. Memory is bounded by `DISORDER` reports, whatever the
number of messages.
"""

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any
from urllib.parse import urlencode

import orjson

from ingest.contract.push import Route
from ingest.simulator.truth import truth_of

BATCH_MAX = 50
"""Reports in one push of the platform (protocol.md section 1)."""
DISORDER = 20_000
"""With `shuffle`, the most reports by which one is late."""
SINGLE_SHARE = 0.002
"""Of the reports, those that come by the single callback."""

_FAILURES = ("UNDELIV", "EXPIRED", "REJECTD", "DELETED", "E200018", "MBBLACK", "MK:0012", "MC:0055", "CL26:-36")
_EXTENDS = ("order-4711", "Grüße aus Köln", "短信回执", "🚀 campaign", 'quotes " and \\ too')
_SECONDS = 4 * 24 * 3600
_FIRST_DAY = 18

_SHARE_UNKNOWN = 0.01
_SHARE_FAILED = 0.06
_SHARE_ACCEPTED_FIRST = 0.10
_SHARE_WITHOUT_TIME = 0.03
_SHARE_EXTEND = 0.2
_SHARE_NUMBERS = 0.1
_SHARE_NO_TOTAL = 0.02

Fields = dict[str, Any]


class _Usable(Fields):
    """A report, told from the unusable elements beside it: only those keep their meaning in every form."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """What the traffic is made of; shares are 0 to 1.

    Attributes:
        messages: how many different messages.
        seed: the same seed gives the same traffic.
        long_share: of the messages, those with 2 to 8 segments.
        duplicate_share: of the reports, those that are sent twice.
        invalid_share: unusable elements beside the reports, as a share of them.
        incomplete_share: of the messages, those of which something final never comes.
        shuffle: reports arrive up to `DISORDER` reports late.
    """

    messages: int
    seed: int
    long_share: float
    duplicate_share: float
    invalid_share: float
    incomplete_share: float
    shuffle: bool


@dataclass(frozen=True, slots=True)
class PlannedPush:
    """One body to send."""

    route: Route
    body: bytes
    reports: int


class Plan:
    """The traffic of one run; iterate `pushes` to its end, then `unusable` and `reports` are known.

    Args:
        options: what it is made of.
        on_truth: takes the truth line of each message, before its first report is sent.
    """

    def __init__(self, options: PlanOptions, on_truth: Callable[[dict[str, Any]], None]) -> None:
        self._options = options
        self._on_truth = on_truth
        self._random = Random(options.seed)
        self._position = 0
        self._delayed: list[tuple[int, int, object]] = []
        self.unusable = 0
        self.reports = 0

    def pushes(self) -> Iterator[PlannedPush]:
        """The pushes in the order in which they are sent."""
        batch: list[object] = []
        for element in self._elements():
            self.reports += 1
            if isinstance(element, _Usable) and self._random.random() < SINGLE_SHARE:
                yield _single(element)
                continue
            batch.append(element)
            if len(batch) == BATCH_MAX:
                yield _batch(batch)
                batch = []
        if batch:
            yield _batch(batch)

    def _elements(self) -> Iterator[object]:
        for number in range(self._options.messages):
            message_id, reports = self._message(number)
            self._on_truth(truth_of(message_id, reports))
            for fields in reports:
                self._plan(_Usable(fields))
                if self._random.random() < self._options.duplicate_share:
                    self._plan(_Usable(fields))
                if self._random.random() < self._options.invalid_share:
                    self._plan(self._unusable())
            while self._delayed and self._delayed[0][0] <= self._position:
                yield heapq.heappop(self._delayed)[2]
        while self._delayed:
            yield heapq.heappop(self._delayed)[2]

    def _plan(self, element: object) -> None:
        self._position += 1
        late = self._random.randrange(DISORDER) if self._options.shuffle else 0
        heapq.heappush(self._delayed, (self._position + late, self._position, element))

    def _message(self, number: int) -> tuple[str, list[Fields]]:
        """One message and all its different reports."""
        chance = self._random
        digits = f"{chance.getrandbits(128):032x}"
        message_id = f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}_{number:07d}"
        total = chance.randint(2, 8) if chance.random() < self._options.long_share else 1
        shared: Fields = {}
        if chance.random() < _SHARE_EXTEND:
            shared = {"extend": chance.choice(_EXTENDS), "to": f"+86135{chance.randrange(10**8):08d}"}
        unfinished = 0
        if chance.random() < self._options.incomplete_share:
            unfinished = chance.randint(1, total)
        numbers = chance.random() < _SHARE_NUMBERS
        reports: list[Fields] = []
        for sequence in range(1, total + 1):
            segment: Fields = {
                "smsMsgId": message_id,
                "sequence": sequence if numbers else str(sequence),
                "total": total if numbers else str(total),
                **shared,
            }
            if sequence == unfinished:
                # A message without any report would be unknown to everybody: a lone segment is accepted for ever.
                if total == 1 or chance.random() < 1 / 2:
                    reports.append(segment | {"status": "ACCEPTD", "updateTime": self._time()})
                continue
            reports += self._segment(segment)
        if not unfinished and total > 1 and chance.random() < _SHARE_NO_TOTAL:
            del reports[0]["total"]  # the others still state it
        return message_id, reports

    def _segment(self, segment: Fields) -> list[Fields]:
        chance = self._random
        reports = []
        if chance.random() < _SHARE_ACCEPTED_FIRST:
            reports.append(segment | {"status": "ACCEPTD", "updateTime": self._time(), "source": "1"})
        kind = chance.random()
        if kind < _SHARE_WITHOUT_TIME:
            reports.append(segment | {"status": "EXPIRED", "source": 1})
            if kind < _SHARE_WITHOUT_TIME / 2:
                return reports
            kind = chance.random()
        status = "DELIVRD"
        if kind < _SHARE_UNKNOWN:
            status = "UNKNOWN"
        elif kind < _SHARE_FAILED:
            status = chance.choice(_FAILURES)
        reports.append(segment | {"status": status, "source": "2", "updateTime": self._time(), "orgCode": "000"})
        return reports

    def _time(self) -> str:
        second = self._random.randrange(_SECONDS)
        days, rest = divmod(second, 86_400)
        hours, rest = divmod(rest, 3600)
        colon = "%3A" if self._random.random() < _SHARE_NUMBERS else ":"
        return f"2023-04-{_FIRST_DAY + days}T{hours:02d}{colon}{rest // 60:02d}{colon}{rest % 60:02d}Z"

    def _unusable(self) -> object:
        """An element that nobody can use, different from all others."""
        self.unusable += 1
        mark = f"unusable-{self._options.seed}-{self.unusable}"
        shapes: tuple[object, ...] = (
            {"status": "DELIVRD", "extend": mark},
            {"smsMsgId": mark, "status": ""},
            {"smsMsgId": mark, "status": "DELIVRD", "sequence": 3, "total": 2},
            {"smsMsgId": mark * 5, "status": "DELIVRD"},
            {"smsMsgId": mark, "status": "DELIVRD", "orgCode": ["000"]},
            [mark],
            mark,
        )
        return shapes[self.unusable % len(shapes)]


def _batch(elements: list[object]) -> PlannedPush:
    return PlannedPush(Route.BATCH, orjson.dumps({"statusReportList": elements}), len(elements))


def _single(fields: Fields) -> PlannedPush:
    return PlannedPush(Route.SINGLE, urlencode(fields).encode(), 1)
