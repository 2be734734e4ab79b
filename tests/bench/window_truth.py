"""Every result against the plan: one for each message, of revision 1, with the outcome that its reports have."""

from __future__ import annotations

import re
from typing import Any, Final

import numpy as np

from tests.bench.broker_log import batches
from tests.bench.group import Group
from tests.bench.planned import OUTCOMES, outcomes
from tests.bench.window_stages import Books

_RESULT: Final = re.compile(rb'"smsMsgId":"[0-9a-f]{32}_(\d{8})","revision":1,"outcome":"([a-z_]+)","final":true')
_STEP: Final = 1 << 20


def judge(group: Group, books: Books) -> dict[str, Any]:
    """Look at all records of the results topic.

    Returns:
        `results` (records), `messages` (planned), and `findings`: what is wrong, empty if nothing is.
    """
    places = {name.encode(): place for place, name in enumerate(OUTCOMES)}
    numbers = np.arange(max([books.messages - 1, *books.probes]) + 1, dtype=np.uint64)
    times = np.zeros(len(numbers), np.uint8)
    outcome = np.full(len(numbers), len(OUTCOMES), np.uint8)
    records = strange = 0
    for partition in range(group.partitions):
        for batch in batches(group.data_folder, group.results, partition):
            records += batch.records
            found = _RESULT.findall(batch.data)
            strange += batch.records - len(found)
            if not found:
                continue
            told, became = zip(*found, strict=True)
            which = np.array(told, "S8").astype(np.int64)
            np.add.at(times, which, 1)
            outcome[which] = [places.get(name, len(OUTCOMES)) for name in became]
    wanted = np.zeros(len(numbers), np.uint8)
    wanted[: books.messages] = 1
    wanted[books.probes] = 1
    wrong = sum(
        int(((outcome[at : at + _STEP] != outcomes(numbers[at : at + _STEP])) & (wanted[at : at + _STEP] == 1)).sum())
        for at in range(0, len(numbers), _STEP)
    )
    letters = sum(
        batch.records for number in range(3) for batch in batches(group.data_folder, group.dead_letters, number)
    )
    findings = {
        "lost": int((times < wanted).sum()),
        "repeated": int((times > wanted).sum()),
        "wrong": wrong,
        "not of the first revision, or not final": strange,
        "dead letters": letters,
    }
    return {
        "messages": int(wanted.sum()),
        "results": records,
        "findings": {name: count for name, count in findings.items() if count},
    }
