"""Finds the record whose results Kafka refuses, by cycles that become smaller."""

from collections.abc import Sequence

from consumers.engine.record import InputRecord

CYCLE_RECORDS_MAX = 4000


class Narrowing:
    """What the cycles of a partition may hold, after one was refused.

    First records and timeouts go apart, so that no record is blamed for a timeout; the records' cycles are halved
    until one stands alone, which then becomes a dead letter. Timeouts go only while everything that stands in the
    partition has been applied, so they come after the records and never before them.

    Attributes:
        records_max: most records of the next cycle.
        refused_offset: of the record that is to be blamed.
        apart: whether records and timeouts go in cycles of their own.
    """

    def __init__(self) -> None:
        """Begin with full cycles."""
        self.records_max = CYCLE_RECORDS_MAX
        self.refused_offset: int | None = None
        self.apart = False
        self._tried: Sequence[InputRecord] = ()
        self._timeouts = False

    @property
    def narrow(self) -> bool:
        """Whether a refusal is being looked into."""
        return self.apart or self.refused_offset is not None or self.records_max < CYCLE_RECORDS_MAX

    def tries(self, records: Sequence[InputRecord], *, timeouts: bool) -> None:
        """A cycle of these records is about to be committed, with timeouts or without."""
        self._tried = records
        self._timeouts = timeouts

    def passed(self) -> None:
        """It was committed."""
        self.records_max = min(CYCLE_RECORDS_MAX, self.records_max * 2)
        if self._timeouts:
            self.apart = False
        if self._tried and self._tried[0].offset == self.refused_offset:
            self.refused_offset = None

    def refused(self) -> bool:
        """It was refused; whether there is anything left to try."""
        tried = self._tried
        if not tried:
            return False
        if self._timeouts and not self.apart:
            self.apart = True
        elif len(tried) > 1:
            self.records_max = len(tried) // 2
        elif tried[0].offset != self.refused_offset:
            self.refused_offset = tried[0].offset
            self.records_max = 1
        else:
            return False
        return True

    def forget(self) -> None:
        """An operator has looked at it: nobody is to blame any more."""
        self.refused_offset = None
        self.apart = False
