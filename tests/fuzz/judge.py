"""Whether what came back, and what was kept, is what the contract promises for the bytes that were sent."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import orjson

from ingest.contract.push import Push, Route, count_reports, split
from ingest.contract.report import RejectedError
from tests.fuzz.framing import Case, Finish
from tests.fuzz.sender import Answer, Heard
from tests.fuzz.slow_http import REPORTS_MAX, End, Wire
from tests.fuzz.slow_reading import Reading, read_batch, read_form

SUCCESS: Final = b'{"returnCode":0,"returnCodeDesc":"Success"}'
NOT_HTTP: Final = b'{"returnCode":400,"returnCodeDesc":"The request is not valid HTTP."}'
STATUSES: Final = frozenset({200, 400, 401, 403, 404, 405, 408, 413, 415, 503})
KEPT: Final = frozenset({200, 400})
_SENTENCE: Final = re.compile(rb'\{"returnCode":([0-9]{3}),"returnCodeDesc":"([A-Z][A-Za-z0-9 ,.-]{5,150}\.)"\}')
_NAMES: Final = re.compile(rb"c[0-9]+[.-]")
"""What the names of messages in cases look like: in an answer it would be a quote of the input."""

_CUT: Final = frozenset({End.UNCLEAR, End.BODY, End.HEAD, End.BEYOND})
"""Ends at which the parser may refuse what it has read in one piece with what it cannot read."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as promised.

    Attributes:
        case: its number; with the seed it can be played again.
        what: in words.
        data: what was sent.
    """

    case: int
    kind: str
    what: str
    data: bytes


def judge(case: Case, wire: Wire, heard: Heard, kept: Sequence[Push]) -> list[str]:
    """Hold one connection to the contract; returns what is wrong."""
    wrong = [problem for number, answer in enumerate(heard.answers) for problem in _form(answer, number, wire)]
    if not heard.closed:
        wrong.append("the connection stays open for ever")
    if heard.rest and not heard.reset and case.finish is not Finish.ABORT:
        wrong.append(f"no whole answer: {heard.rest[:80]!r}")
    wrong += _sequence(case, wire, heard)
    wrong += _books(case, wire, heard, kept)
    return wrong


def _form(answer: Answer, number: int, wire: Wire) -> list[str]:  # noqa: PLR0911 - one a rule
    """Whether an answer is one of the closed set."""
    if answer.status not in STATUSES:
        return [f"status {answer.status} is not in the contract"]
    if answer.status == 503:
        return ["503 although there is room"]
    if (answer.extra == b"Allow: POST\r\n") != (answer.status == 405):
        return ["Allow does not go with the status"]
    if number < len(wire.requests) and wire.requests[number].method == b"HEAD":
        return [] if answer.body in (b"", NOT_HTTP) else ["an answer to HEAD has a body"]
    if answer.status == 200:
        return [] if answer.body == SUCCESS else [f"200 says {answer.body[:80]!r}"]
    said = _SENTENCE.fullmatch(answer.body)
    if said is None or int(said[1]) != answer.status or _NAMES.search(answer.body):
        return [f"{answer.status} says {answer.body[:80]!r}"]
    return []


def _sequence(case: Case, wire: Wire, heard: Heard) -> list[str]:
    """Whether the answers are those that the requests must get, in their order."""
    for number, answer in enumerate(heard.answers):
        last = number == len(heard.answers) - 1
        if number < len(wire.requests):
            expected = wire.requests[number]
            if answer.status in expected.statuses and answer.body != NOT_HTTP:
                continue
            if _refused_by_parser(answer) and last and (_is_torn(wire, number) or expected.reading is None):
                return []
            return [f"request {number} is answered {answer.status} {answer.body!r}, not {sorted(expected.statuses)}"]
        if wire.end is End.UNCLEAR and (answer.status not in KEPT or _refused_by_parser(answer)):
            continue
        if wire.end is End.BODY and last and (answer.status in wire.early or _refused_by_parser(answer)):
            continue
        if wire.end in _CUT and last and _refused_by_parser(answer):
            continue
        return [f"what is no whole request ({wire.end.name}) is answered {answer.status} {answer.body!r}"]
    return _missing(case, wire, heard)


def _is_torn(wire: Wire, number: int = 0) -> bool:
    """Whether the parser may refuse a sound request for what came with it in one piece, or behind an upgrade."""
    doubtful = any(len(request.statuses) > 1 for request in wire.requests[number:])
    return doubtful or wire.end in _CUT or any(request.upgrade for request in wire.requests[:number])


def _refused_by_parser(answer: Answer) -> bool:
    return answer.closes and (answer.body == NOT_HTTP or answer.status == 415)


def _missing(case: Case, wire: Wire, heard: Heard) -> list[str]:
    """Whether answers may be missing at the end."""
    count = len(heard.answers)
    if count >= len(wire.requests) or case.finish is Finish.ABORT or heard.reset:
        return []
    if count and (heard.answers[-1].closes or wire.requests[count - 1].last):
        return []
    return [f"only {count} of {len(wire.requests)} requests are answered"]


def _books(case: Case, wire: Wire, heard: Heard, kept: Sequence[Push]) -> list[str]:
    """Whether what is kept is what was answered as kept, and says what was sent."""
    answered: list[Reading | None] = []
    for number, answer in enumerate(heard.answers):
        if answer.status not in KEPT or answer.body == NOT_HTTP:
            continue
        if number < len(wire.requests) and wire.requests[number].method == b"HEAD":
            continue
        answered.append(wire.requests[number].reading if number < len(wire.requests) else None)
    wrong = []
    if None in answered:
        wrong.append("a request is answered as kept that has no one meaning")
    bodies = [request.body for request in wire.requests if request.reading is not None]
    for number, push in enumerate(kept):
        if number >= len(bodies) or push.body != bodies[number]:
            wrong.append(f"kept is what nobody sent: {push.body[:80]!r}")
    if len(kept) < len(answered):
        wrong.append(f"{len(answered)} answers say kept, but {len(kept)} are")
    torn = _is_torn(wire) or any(request.upgrade for request in wire.requests)
    whole = not torn and case.finish is not Finish.ABORT and not heard.reset
    if len(kept) > len(answered) and whole:
        wrong.append(f"{len(kept)} are kept, but {len(answered)} answers say so")
    return wrong


def judge_push(push: Push) -> list[str]:
    """Hold what the spool gives back to the slow reader: count, pieces and verdicts."""
    reading = read_batch(push.body, REPORTS_MAX) if push.route is Route.BATCH else read_form(push.body)
    wrong = []
    if push.reports != reading.reports:
        wrong.append(f"counted as {push.reports}, not {reading.reports}")
    if (push.refused is None) != reading.taken:
        wrong.append(f"kept as refused for {push.refused}")
    return wrong + judge_split(push.route, push.body, reading)


def judge_split(route: Route, body: bytes, reading: Reading) -> list[str]:
    """Hold the product's verdict on a body and its division to the slow reader's."""
    try:
        count_reports(route, body, reports_max=REPORTS_MAX)
    except RejectedError:
        return ["refused, but readable"] if reading.taken else []
    if not reading.taken:
        return ["taken, but not readable"]
    try:
        elements = split(route, body)
    except RejectedError:
        return ["taken, but not divided"]
    wrong = []
    if route is Route.BATCH and tuple(element.value for element in elements) != reading.pieces:
        wrong.append("divided into other pieces")
    if route is Route.SINGLE and [orjson.loads(element.value) for element in elements] != list(reading.values):
        wrong.append("the form says something else")
    if tuple(element.report is not None for element in elements) != reading.usable:
        wrong.append("another verdict on a report")
    for element, value in zip(elements, reading.values, strict=False):
        if element.report is not None and element.report.message_id != value["smsMsgId"]:
            wrong.append("another smsMsgId")
    return wrong
