"""The balance of one worker: every report that came in is somewhere (design invariant 2)."""

from dataclasses import dataclass, field
from typing import Protocol


class Pending(Protocol):
    """Something that still holds reports."""

    @property
    def pending_reports(self) -> int:
        """Reports held and not settled."""
        ...


@dataclass(slots=True)
class Accounts:
    """Counters of one process since its start, in reports; a body that cannot be split counts as one.

    `recovered` and `received` and part of `quarantined` are counted by the spool. Whoever settles a push adds its
    reports to `published`, `dead_lettered` or `quarantined` in the same step of the event loop, so that the balance is
    zero whenever it is looked at. All of it belongs to the event loop's thread.

    Attributes:
        recovered: found in folders when they were opened or adopted.
        received: made durable by this process, by the spool or directly by Kafka.
        published: confirmed by Kafka as status reports.
        dead_lettered: confirmed by Kafka as dead letters.
        quarantined: kept in files for a person.
    """

    recovered: int = 0
    received: int = 0
    published: int = 0
    dead_lettered: int = 0
    quarantined: int = 0
    _holders: list[Pending] = field(default_factory=list)

    @property
    def pending(self) -> int:
        """Reports in the spool folders of this process that are not settled."""
        return sum(holder.pending_reports for holder in self._holders)

    def unaccounted(self) -> int:
        """What came in less what went out less what is held: 0 unless something is wrong."""
        settled = self.published + self.dead_lettered + self.quarantined
        return self.recovered + self.received - settled - self.pending

    def attach(self, holder: Pending) -> None:
        """Take over what a folder holds; it counts as recovered."""
        self._holders.append(holder)
        self.recovered += holder.pending_reports

    def detach(self, holder: Pending) -> None:
        """Give a folder back; what it still holds is the next owner's to recover."""
        if holder in self._holders:
            self._holders.remove(holder)
            self.recovered -= holder.pending_reports
