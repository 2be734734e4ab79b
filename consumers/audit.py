"""Compares what came out with what is known to have gone in: lost, wrong, repeated (contract.md sections 1 and 10).

Pure: it is fed lines and records and counts. Memory is some short digests per message and report.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from hashlib import blake2b
from typing import Any

import msgspec
import orjson

from ingest.contract.result import Result

FINDINGS_KEPT = 1000
"""Findings that are listed; all are counted."""
TIMEOUT_SLACK_S = 60
"""How long after its timeout a message may still be on its way."""

_DIGEST_BYTES = 12
_COMPARED = ("outcome", "final", "total", "received", "missing", "segments")


class Problem(StrEnum):
    """What can be wrong with a message."""

    LOST = "lost"
    WRONG = "wrong"
    REPEATED = "repeated"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that must not be."""

    problem: Problem
    message_id: str
    where: str
    detail: str


@dataclass(slots=True)
class _Expected:
    digest: bytes
    final: bool
    revision: int = 0
    result: bytes = b""
    outcome: str = ""
    record: bool = False
    row: bool = False


@dataclass(slots=True)
class Counts:
    """What was seen; the lines of the closing table."""

    messages: int = 0
    unusable: int = 0
    records: int = 0
    repeats: int = 0
    """Records of a report that was there before."""
    results: int = 0
    dead_letters: int = 0
    rows: int = 0
    rows_beyond: int = 0
    """Rows of messages that neither the truth nor the topic knows: older ones, or somebody else's."""
    pending: int = 0
    """Incomplete in the truth, without a result, their timeout not yet over."""
    beyond: int = 0
    """Messages with results that the truth does not know: other traffic on the same topics."""


class TruthError(ValueError):
    """The truth file cannot be used."""


def digest_of(said: Mapping[str, Any]) -> bytes:
    """What the truth speaks about, in short.

    Args:
        said: `outcome, final, total, received, missing, segments` as in a result's JSON; other members do not count.
    """
    shown = {name: said[name] for name in _COMPARED}
    return blake2b(orjson.dumps(shown, option=orjson.OPT_SORT_KEYS), digest_size=_DIGEST_BYTES).digest()


class Audit:
    """Feed truth first, then results, dead letters and rows in any amount; then ask for `findings`."""

    def __init__(self) -> None:
        self.counts = Counts()
        self.found: dict[Problem, int] = dict.fromkeys(Problem, 0)
        self.findings: list[Finding] = []
        self._expected: dict[str, _Expected] = {}
        self._unusable: int | None = None
        self._dead: set[bytes] = set()
        self._seen: set[bytes] = set()
        self._beyond: dict[str, int] = {}

    def add_truth(self, line: bytes) -> None:
        """Take one line of the truth file.

        Raises:
            TruthError: it is no such line, or comes after the last one.
        """
        try:
            said = orjson.loads(line)
            if self._unusable is not None:
                raise TruthError("a line follows the one that counts the unusable elements")
            if "unusable" in said:
                self._unusable = self.counts.unusable = int(said["unusable"])
                return
            self._expected[said["smsMsgId"]] = _Expected(digest_of(said), said["final"])
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise TruthError(f"a line is not of a truth file: {error!r}") from error
        self.counts.messages += 1

    def end_truth(self) -> None:
        """Check that the file was whole.

        Raises:
            TruthError: its last line is missing, so its writer did not come to its end.
        """
        if self._unusable is None:
            raise TruthError('its last line {"unusable":n} is missing: the run that wrote it did not end')

    def add_result(self, result: Result, where: str) -> None:
        """Take the next record of the results topic, in the order of its partition."""
        self.counts.results += 1
        expected = self._expected.get(result.sms_msg_id)
        last = self._beyond.get(result.sms_msg_id, 0) if expected is None else expected.revision
        if result.revision <= last:
            self._find(Problem.REPEATED, result.sms_msg_id, where, f"revision {result.revision} after {last}")
        elif result.revision != last + 1:
            self._find(Problem.LOST, result.sms_msg_id, where, f"revision {result.revision} follows {last}")
        revision = max(last, result.revision)
        if expected is None:
            self._beyond[result.sms_msg_id] = revision
            self.counts.beyond = len(self._beyond)
        elif revision == result.revision:
            expected.revision, expected.result = revision, digest_of(msgspec.to_builtins(result))
            expected.outcome = result.outcome.value

    def add_unreadable(self, where: str) -> None:
        """Take a record of the results topic that is no result."""
        self.counts.results += 1
        self._find(Problem.WRONG, "-", where, "not a result")

    def add_record(self, key: bytes | None, identity: bytes | None) -> None:
        """Take a record of the reports topic.

        Args:
            key: its `smsMsgId`.
            identity: its `ce_id`, or what else tells reports apart.
        """
        self.counts.records += 1
        known = len(self._seen)
        self._seen.add(blake2b(identity or b"", digest_size=_DIGEST_BYTES).digest())
        self.counts.repeats += len(self._seen) == known
        expected = self._expected.get((key or b"").decode(errors="replace"))
        if expected is not None:
            expected.record = True

    def add_dead_letter(self, key: bytes | None, value: bytes | None, stage: str, where: str) -> None:
        """Take a record of the dead-letters topic.

        A repeat counts once: a push that was not answered is sent again. A report of the truth must not be there.
        """
        self.counts.dead_letters += 1
        message_id = (key or b"").decode(errors="replace")
        if message_id in self._expected:
            self._find(Problem.WRONG, message_id, where, f"a usable report became a dead letter at {stage}")
        else:
            self._dead.add(blake2b(value or b"", digest_size=_DIGEST_BYTES).digest())

    def add_row(self, message_id: str, revision: int, row: Mapping[str, Any], where: str) -> None:
        """Take what a sink holds last for a message, its columns under the names of the result's members."""
        self.counts.rows += 1
        expected = self._expected.get(message_id)
        if expected is None:
            self.counts.rows_beyond += message_id not in self._beyond
            return
        if expected.row:
            self._find(Problem.REPEATED, message_id, where, "more than one row")
        expected.row = True
        if revision != expected.revision:
            detail = f"revision {revision}, the last one of the topic is {expected.revision}"
            self._find(Problem.WRONG, message_id, where, detail)
        elif digest_of(row) != expected.result:
            self._find(Problem.WRONG, message_id, where, f"differs from revision {revision} of the topic")

    def conclude(self, waiting: Mapping[str, bool], *, sink: str | None) -> None:
        """Compare, after everything was fed.

        Args:
            waiting: for messages incomplete in the truth, whether their timeout is still to come.
            sink: the name of the sink whose rows were fed, or None.
        """
        for message_id, expected in self._expected.items():
            if not expected.revision:
                if not expected.final and waiting.get(message_id, False):
                    self.counts.pending += 1
                else:
                    detail = "no result" if expected.record else "no result, and no report of it either"
                    self._find(Problem.LOST, message_id, "results", detail)
                continue
            if expected.result != expected.digest:
                self._find(Problem.WRONG, message_id, "results", f"revision {expected.revision} differs from the truth")
            if sink is not None and not expected.row:
                self._find(Problem.LOST, message_id, sink, "no row")
        missing = (self._unusable or 0) - len(self._dead)
        if missing > 0:
            self._find(Problem.LOST, "-", "dead letters", f"{missing} of {self._unusable} unusable elements", missing)

    def unanswered(self) -> list[str]:
        """Messages that are incomplete in the truth and have no result yet."""
        return [key for key, expected in self._expected.items() if not expected.final and not expected.revision]

    def outcomes(self) -> dict[str, int]:
        """How many messages of the truth have which outcome in their last result."""
        return dict(Counter(expected.outcome for expected in self._expected.values() if expected.revision))

    def _find(self, problem: Problem, message_id: str, where: str, detail: str, count: int = 1) -> None:
        self.found[problem] += count
        if len(self.findings) < FINDINGS_KEPT:
            self.findings.append(Finding(problem, message_id, where, detail))
