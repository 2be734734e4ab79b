"""The plan of the measuring programs: what they hold the assembler to is what its reports mean."""

import json
from collections import Counter, defaultdict

import numpy as np

from tests.bench.planned import OUTCOMES, Reports, Sent, blocks, message_ids, outcomes, totals, values
from tests.oracle import Raw, last_result

MESSAGES = 50_000


def _sent() -> tuple[Sent, list[tuple[int, int]]]:
    sent = Sent()
    order = [
        pair
        for block in blocks(MESSAGES, sent, seed=3)
        for pair in zip(block.numbers.tolist(), block.sequences.tolist(), strict=True)
    ]
    return sent, order


def test_planned_outcomes_are_those_of_the_oracle() -> None:
    """The outcome that is worked out from a number is the one that its reports have by the contract."""
    numbers = np.arange(2_000, dtype=np.uint64)
    by_message: dict[str, list[Raw]] = defaultdict(list)
    for sequence in (1, 2, 3):
        some = numbers[totals(numbers) >= sequence]
        reports = Reports(some, np.full(len(some), sequence, np.uint64))
        for value in values(reports, message_ids(some)):
            report = json.loads(value)
            by_message[report["smsMsgId"]].append(report)

    wanted = [OUTCOMES[place] for place in outcomes(numbers).tolist()]
    found = [last_result(by_message[name.decode()]) for name in message_ids(numbers)]

    assert [result and (result["outcome"], result["final"]) for result in found] == [(name, True) for name in wanted]
    assert set(wanted) == set(OUTCOMES)


def test_every_report_is_sent_and_repeats_are_counted_as_such() -> None:
    """Each segment of each message comes at least once; what is counted as a repeat was sent before."""
    sent, order = _sent()
    counts = Counter(order)

    lengths = totals(np.arange(MESSAGES, dtype=np.uint64)).tolist()
    every = {(number, sequence) for number, total in enumerate(lengths) for sequence in range(1, total + 1)}
    assert counts.keys() == every
    assert sent.applied == len(every)
    assert sent.reports == len(order)
    assert sent.repeats == len(order) - len(every) > 0


def test_a_plan_is_the_same_again() -> None:
    """A message can be sent again later without having been kept."""
    assert _sent() == _sent()
    numbers = np.array([7, 7, 12_345], np.uint64)
    first, again, other = message_ids(numbers)
    assert first == again != other
