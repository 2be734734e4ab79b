"""Compares what stands in the topics with what the oracle makes of the reports that stand there: every byte of it.

Contract.md section 7: a message has its first result when all of its segments are final, or at its timeout; every later
record that changes the result is a revision of its own. So its records say all of its results, in their order. When the
timeout came is all that is left open.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from consumers.engine.record import Record
from ingest.runtime.partitioner import partition_of
from tests.assembling import Bench, written
from tests.oracle import TIMEOUT, Raw, all_results, usable

FINDINGS_KEPT: Final = 20
ASSEMBLE: Final = b"assemble"

TIMED_OUT: Final = b'"reason":"timeout"'

Heard = tuple[Raw, int]
"""A usable report and the timestamp of its record."""


@dataclass(slots=True)
class Verdict:
    """What was found in the topics.

    Attributes:
        records: of the reports topic.
        messages: with at least one usable report.
        results: all revisions.
        by_reason: results by their reason.
        conflicts: messages with a result that says that totals conflict.
        dead_letters: written by assemblers.
        lost: messages or unusable records without what must have come of them, or with a gap in their revisions.
        wrong: messages with a result that the reports do not give, at this place in their revisions.
        repeated: results or dead letters that stand there more than once.
        findings: the first ones.
    """

    records: int = 0
    messages: int = 0
    results: int = 0
    by_reason: dict[str, int] = field(default_factory=dict)
    conflicts: int = 0
    dead_letters: int = 0
    lost: int = 0
    wrong: int = 0
    repeated: int = 0
    findings: list[str] = field(default_factory=list)

    def good(self) -> bool:
        """Whether nothing is amiss."""
        return not (self.lost or self.wrong or self.repeated)

    def find(self, problem: str, what: str) -> None:
        """Book one finding under `lost`, `wrong` or `repeated`."""
        setattr(self, problem, getattr(self, problem) + 1)
        if len(self.findings) < FINDINGS_KEPT:
            self.findings.append(f"{problem}: {what}")


async def judged(bench: Bench) -> Verdict:
    """Read all topics of an assembler and judge; nothing may be on its way any more."""
    verdict = Verdict()
    reports: dict[bytes, list[tuple[bytes, int]]] = defaultdict(list)
    unusable: Counter[tuple[int, int]] = Counter()
    for record in await bench.read(bench.settings.reports_topic):
        verdict.records += 1
        key = _usable_key(record, bench.partitions)
        if key is None:
            unusable[record.partition, record.offset] += 1
        else:
            reports[key].append((record.value or b"", record.timestamp))
    results: dict[bytes, list[bytes]] = defaultdict(list)
    for record in await bench.read(bench.settings.results_topic):
        verdict.results += 1
        results[record.key or b""].append(record.value or b"")
    verdict.messages = len(reports)
    for key in reports.keys() | results.keys():
        heard = [(json.loads(value), timestamp_ms) for value, timestamp_ms in reports[key]]
        _judge_message(verdict, key.decode(), heard, results[key])
    said = [json.loads(value) for chain in results.values() for value in chain]
    verdict.by_reason = dict(Counter(result["reason"] for result in said))
    verdict.conflicts = len({result["smsMsgId"] for result in said if "totalConflict" in result})
    _judge_dead_letters(verdict, unusable, await bench.dead_letters())
    return verdict


def _usable_key(record: Record, partitions: int) -> bytes | None:
    """The key of a record that the assembler must use; None for a dead letter (contract.md sections 5 and 7)."""
    try:
        raw = json.loads(record.value or b"")
    except ValueError:
        return None
    if not usable(raw):
        return None
    key: bytes = raw["smsMsgId"].encode()
    return key if key == record.key and partition_of(key, partitions) == record.partition else None


def _judge_message(verdict: Verdict, name: str, records: Sequence[Heard], chain: Sequence[bytes]) -> None:
    revisions = [json.loads(value)["revision"] for value in chain]
    if repeated := [number for number, times in Counter(revisions).items() if times > 1]:
        verdict.find("repeated", f"{name}: revisions {repeated} of {revisions}")
    elif revisions != sorted(revisions):
        verdict.find("wrong", f"{name}: revisions out of order: {revisions}")
    elif not chain or revisions[-1] != len(revisions):
        verdict.find("lost", f"{name}: revisions are {revisions}")
    elif not is_right(records, chain):
        records_said = [(json.dumps(raw), timestamp_ms) for raw, timestamp_ms in records]
        verdict.find("wrong", f"{name}: {list(chain)} are not what comes of {records_said}")


def is_right(records: Sequence[Heard], chain: Sequence[bytes]) -> bool:
    """Whether these are, byte for byte, all results that come of these records, whenever the timeout was.

    Args:
        records: of one message, in the order of the topic.
        chain: values of its results, revision 1 first, at least one.
    """
    if TIMED_OUT not in chain[0]:
        return written(all_results(records)) == list(chain)
    for number, (raw, _) in enumerate(records, start=1):
        if any(raw == earlier for earlier, _ in records[: number - 1]):
            continue  # as good a moment as the one before
        heard = [*records[:number], TIMEOUT]
        results = all_results(heard)
        if results[0]["reason"] != "timeout":
            return False
        if written(results) == [chain[0]] and written(all_results([*heard, *records[number:]])) == list(chain):
            return True
    return False


def _judge_dead_letters(verdict: Verdict, unusable: Counter[tuple[int, int]], dead: Sequence[Record]) -> None:
    """Every unusable record of the input is one dead letter that names its place, and nothing else is."""
    found: Counter[tuple[int, int]] = Counter()
    for letter in dead:
        headers = dict(letter.headers)
        if headers.get("dlq-stage") == ASSEMBLE:
            verdict.dead_letters += 1
            found[int(headers["dlq-partition"]), int(headers["dlq-offset"])] += 1
    for place in sorted(unusable.keys() | found.keys()):
        if not found[place]:
            verdict.find("lost", f"unusable record at {place} is no dead letter")
        elif not unusable[place]:
            verdict.find("wrong", f"usable record at {place} is a dead letter")
        elif found[place] > 1:
            verdict.find("repeated", f"{found[place]} dead letters of the record at {place}")
