"""The partition clock, and when a partition counts as caught up (ARCHITECTURE.md).

Deadlines run on the partition clock, which never falls and is kept in the changelog. They are looked at only while
everything that stands in the partition has been applied: an outage, a backlog or a broker that is away expires nothing.
"""

from dataclasses import dataclass

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


class CaughtUp:
    """Decides whether everything that stood in the partition lately has been read."""

    def __init__(self) -> None:
        self._answered_ms: int | None = None
        self._noticed_s = 0.0

    def judge(self, watermark: Watermark, *, wall_ms: int, monotonic_s: float) -> bool:
        """Whether the position is at a high watermark that a fetch answered within `WATERMARK_AGE_MAX_S`.

        The answer carries wall time. It must be recent by the wall and, since the wall may step, also have been noticed
        recently by the monotonic clock; an answer from the future does not count.
        """
        if watermark.answered_ms is None:
            return False
        if watermark.answered_ms != self._answered_ms:
            self._answered_ms = watermark.answered_ms
            self._noticed_s = monotonic_s
        age_ms = wall_ms - watermark.answered_ms
        recent = 0 <= age_ms <= WATERMARK_AGE_MAX_S * 1000 and monotonic_s - self._noticed_s <= WATERMARK_AGE_MAX_S
        return recent and watermark.position is not None and watermark.position == watermark.high
