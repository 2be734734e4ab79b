"""What a hostile body may cost: its structure is bounded before it is read. Pure."""

import contextlib
import time
from collections.abc import Callable

import pytest

from ingest.contract.push import DEPTH_MAX, FORM_PIECES_MAX, NESTED_MAX, Route, count_reports
from ingest.contract.report import OVERFLOWING_COMMAS_MAX, Reason, RejectedError, decode_json

MIB = 1 << 20
REPORTS_MAX = 1000
COST_MAX_S = 0.15
"""Of processor time, for a body of a mebibyte. Without the bounds, the bodies below cost 0.25 to 0.5 s; with them, none
costs more than 0.06 s on the machine that this was measured on."""


def a_list(inner: bytes) -> bytes:
    """A batch whose list holds these bytes."""
    return b'{"statusReportList":[' + inner + b"]}"


def a_filled(piece: bytes, *, before: bytes = b"0") -> bytes:
    """A batch of one mebibyte that repeats a piece."""
    return a_list(before + piece * ((MIB - 100 - len(before)) // len(piece)))


def refused(route: Route, body: bytes) -> Reason:
    """Why a body is refused."""
    with pytest.raises(RejectedError) as error:
        count_reports(route, body, reports_max=REPORTS_MAX)
    return error.value.reason


def test_objects_and_lists_inside_the_elements_are_bounded() -> None:
    """One more than `NESTED_MAX` is refused, before anything is decoded."""
    most = a_list(b"[" + b",".join([b"[]"] * (NESTED_MAX + REPORTS_MAX - 3)) + b"]")

    assert count_reports(Route.BATCH, most, reports_max=REPORTS_MAX) == 1
    assert refused(Route.BATCH, most[:-3] + b",[]]]}") is Reason.NOT_JSON


def test_brackets_in_strings_are_text() -> None:
    """However many there are, and whatever escapes stand around them."""
    text = rb'"\\\"[[{' + b"[" * 2000 + rb'\\"'
    body = a_list(b",".join([b'{"x":' + text + b"}"] * 200))

    assert count_reports(Route.BATCH, body, reports_max=REPORTS_MAX) == 200


@pytest.mark.parametrize("depth", [DEPTH_MAX, DEPTH_MAX + 1])
@pytest.mark.parametrize("noise", [b'"]]]]"', rb'"\\"', rb'"\"]"'])
def test_depth_is_counted_outside_of_strings(depth: int, noise: bytes) -> None:
    """`DEPTH_MAX` is the greatest that is taken; brackets in strings neither add to it nor take from it."""
    nested = depth - 2
    body = a_list(b"[" * nested + noise + b"]" * nested + b",[]" * DEPTH_MAX)

    if depth > DEPTH_MAX:
        assert refused(Route.BATCH, body) is Reason.NOT_JSON
    else:
        assert count_reports(Route.BATCH, body, reports_max=REPORTS_MAX) == DEPTH_MAX + 1


@pytest.mark.parametrize("piece", [b"&a=b", b"%"])
def test_pairs_and_escapes_of_a_form_are_bounded(piece: bytes) -> None:
    """One more than `FORM_PIECES_MAX` is refused whole."""
    form = b"smsMsgId=m1&status=DELIVRD&x=" + piece * (FORM_PIECES_MAX - 2)

    assert count_reports(Route.SINGLE, form, reports_max=REPORTS_MAX) == 1
    assert refused(Route.SINGLE, form + piece) is Reason.NOT_A_FORM


def test_a_number_beyond_a_double_is_read_only_among_few_others() -> None:
    """It takes the slow decoder, which is bounded."""
    few = b"[1e999" + b",1" * OVERFLOWING_COMMAS_MAX + b"]"

    assert len(decode_json(few)) == OVERFLOWING_COMMAS_MAX + 1
    with pytest.raises(ValueError, match=r"[^ ]"):
        decode_json(few[:-1] + b",1]")


HOSTILE = {
    "lists in lists": lambda: a_filled(b",[[]]", before=b"[[[]]") + b"]",
    "sixty deep": lambda: a_filled(b"," + b"[" * 60 + b"]" * 60),
    "repeated members": lambda: b'{"statusReportList":[]' + b',"a":[]' * (MIB // 7 - 10) + b"}",
    "brackets in strings": lambda: a_filled(b',"["'),
    "numbers beside one beyond a double": lambda: a_filled(b",1", before=b"1e999"),
    "runs of digits": lambda: a_filled(b" " + b"1" * 199),
    "many elements": lambda: a_filled(b",0"),
    "opened for ever": lambda: b"[" * MIB,
}


@pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in HOSTILE.items()])
def test_no_batch_costs_much(make: Callable[[], bytes]) -> None:
    """The event loop stands still for no longer than `COST_MAX_S`, whatever a sender made up."""
    assert cost_s(Route.BATCH, make()) < COST_MAX_S


@pytest.mark.parametrize("piece", [b"%", b"&", b"a&", b"%41", b"a=%41&"])
def test_no_form_costs_much(piece: bytes) -> None:
    """As a batch."""
    assert cost_s(Route.SINGLE, piece * (MIB // len(piece))) < COST_MAX_S


def cost_s(route: Route, body: bytes) -> float:
    """Processor time for a body, the least of three attempts."""
    costs = []
    for _ in range(3):
        began = time.process_time()
        with contextlib.suppress(RejectedError):
            count_reports(route, body, reports_max=REPORTS_MAX)
        costs.append(time.process_time() - began)
    return min(costs)
