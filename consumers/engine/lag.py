"""How old the oldest record is that a partition has not processed, at whatever moment somebody asks."""

from collections.abc import Sequence

from consumers.engine.metrics import LAG
from consumers.engine.record import InputRecord
from ingest.runtime.clock import Clock


class Lag:
    """`dlrflow_lag_seconds` of one partition. It ages by itself, also while nothing is looked at.

    Kept is the moment since which a record may stand unprocessed: the timestamp of the first one in hand. Without one
    it is the timestamp of the last one processed, or when the partition was last caught up, whichever is later.
    """

    def __init__(self, partition: int, clock: Clock) -> None:
        """Begin with the assignment: what stands in the partition is not known."""
        self._partition = str(partition)
        self._clock = clock
        self._caught_up_ms = clock.wall_ms()
        self._since_ms: int | None = self._caught_up_ms

    def show(self) -> None:
        """Show it from now on. Done again and again: a former owner in this process may hide it late, when it ends."""
        LAG.labels(self._partition).set_function(self.seconds)

    def hide(self) -> None:
        """The partition is not ours any more."""
        LAG.remove(self._partition)

    def look(self, records: Sequence[InputRecord], *, caught_up: bool) -> None:
        """These records come next; `caught_up` if nothing stands behind them."""
        self.show()
        if caught_up:
            self._caught_up_ms = self._clock.wall_ms()
        if records:
            self._since_ms = records[0].timestamp
        elif caught_up:
            self._since_ms = None
        elif self._since_ms is None:
            self._since_ms = self._caught_up_ms

    def passed(self, taken: Sequence[InputRecord], left: Sequence[InputRecord], *, caught_up: bool) -> None:
        """A cycle is committed: records taken, and left in hand."""
        if left:
            self._since_ms = left[0].timestamp
        elif caught_up:
            self._since_ms = None
        elif taken:
            self._since_ms = max(taken[-1].timestamp, self._caught_up_ms)

    def seconds(self) -> float:
        """The age now, 0 while nothing waits."""
        return 0.0 if self._since_ms is None else max(0, self._clock.wall_ms() - self._since_ms) / 1000
