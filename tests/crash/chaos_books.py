"""What happened during faults, and whether all of it is as it must be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.traffic import problems


@dataclass(slots=True)
class Books:
    """What happened.

    Attributes:
        faults: number by kind and target, as they were done.
        caught: number of faults of assemblers by what the target was doing: `running` or `restoring` some partition,
            having `none`, or not yet `starting` to answer.
        ended: processes that ended though nothing was done to them, or not as they should.
        statuses: how processes ended, by what was done to them, with numbers.
        gave_up: processes that ended with status 3 while Kafka was away at their start, as they may.
        before_begun: processes that SIGTERM met while Python was still starting them: nothing is installed then.
        tracebacks: number in all logs, by who logged them and with which words.
        unaccounted_most: the greatest distance of the receiver's accounts from balance, at any look.
        looks: at the receiver's accounts.
        sent: summaries of the traffic.
        found: in the topics, and in the sink where there is one.
        seconds: from the first report to the end of the comparison.
        pending_at_end: reports in the spool after the comparison.
    """

    faults: dict[str, int] = field(default_factory=dict)
    caught: dict[str, int] = field(default_factory=dict)
    ended: list[str] = field(default_factory=list)
    statuses: dict[str, int] = field(default_factory=dict)
    gave_up: int = 0
    before_begun: int = 0
    tracebacks: dict[str, int] = field(default_factory=dict)
    unaccounted_most: float = 0.0
    looks: int = 0
    sent: list[dict[str, Any]] = field(default_factory=list)
    found: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    pending_at_end: float = 0.0

    def total(self) -> int:
        """How many faults there were."""
        return sum(self.faults.values())

    def good(self) -> bool:
        """Whether nothing at all is amiss."""
        accounts = self.unaccounted_most == 0 and self.pending_at_end == 0
        return accounts and bool(self.found) and not problems(self.found) and not self.ended

    def add(self, counts: dict[str, int], what: str) -> None:
        """Count one more of something."""
        counts[what] = counts.get(what, 0) + 1
