"""The partition clock, and when a partition counts as caught up (ARCHITECTURE.md).

Deadlines run on the partition clock, which never falls and is kept in the changelog. They are looked at only while
everything that stands in the partition has been applied: an outage, a backlog or a broker that is away expires nothing.
"""

from dataclasses import dataclass
from typing import NamedTuple

from ingest.runtime.clock import Clock

WATERMARK_AGE_MAX_S = 5.0
"""How old the answer may be that says where the partition ends."""


@dataclass(frozen=True, slots=True)
class Watermark:
    """Where reading stands, and where the partition ended when a fetch was answered.

    Attributes:
        position: offset of the next record to read; control records before it have been passed.
        high: the high watermark that the last answered fetch stated, None before the first. Not the last stable
            offset: records behind an open transaction of somebody else stand in the partition, too.
        answered_ms: wall time of that answer, None before the first.
    """

    position: int | None
    high: int | None
    answered_ms: int | None


class PartitionClock:
    """Milliseconds that never fall: the greatest wall time seen, across restarts and owners."""

    def __init__(self, at_least_ms: int = 0) -> None:
        """Begin no earlier than the clock that the changelog kept."""
        self._now_ms = at_least_ms

    def tick(self, wall_ms: int) -> int:
        """The clock of the next cycle. Wall time that steps back stops it, a step forward takes it along."""
        self._now_ms = max(self._now_ms, wall_ms)
        return self._now_ms


class _Moment(NamedTuple):
    """When an answer was read: by the wall as the client says, by the monotonic clock as we noticed it."""

    wall_ms: int
    monotonic_s: float

    def recent(self, wall_ms: int, monotonic_s: float) -> bool:
        """Whether it is within `WATERMARK_AGE_MAX_S` by both clocks; one in the future is not.

        The wall may step, and the monotonic clock stands still while the machine is suspended.
        """
        age_ms = wall_ms - self.wall_ms
        return 0 <= age_ms <= WATERMARK_AGE_MAX_S * 1000 and monotonic_s - self.monotonic_s <= WATERMARK_AGE_MAX_S


class CaughtUp:
    """Decides whether everything that stood in the partition lately has been read."""

    def __init__(self, clock: Clock) -> None:
        """Begin with the assignment, before anything is asked of a broker.

        Args:
            clock: tells the moment before which nothing was asked.
        """
        self._before = _Moment(clock.wall_ms(), clock.monotonic())
        self._latest: _Moment | None = None

    def judge(self, watermark: Watermark, *, wall_ms: int, monotonic_s: float) -> bool:
        """Whether the position is at a high watermark that a broker stated within `WATERMARK_AGE_MAX_S`.

        An answer carries the time at which it was read, not that at which a broker gave it: while the process is frozen
        or the network stalls, it lies there, and says later what was true before. But a partition is asked again only
        after an answer was read. So what the latest one says is no older than the one before it, and both must be
        recent.
        """
        if watermark.answered_ms is None:
            return False
        if self._latest is None or watermark.answered_ms != self._latest.wall_ms:
            self._before, self._latest = self._latest or self._before, _Moment(watermark.answered_ms, monotonic_s)
        recent = self._latest.recent(wall_ms, monotonic_s) and self._before.recent(wall_ms, monotonic_s)
        return recent and watermark.position is not None and watermark.position == watermark.high
