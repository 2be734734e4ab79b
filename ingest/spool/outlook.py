"""How long the room of a spool lasts."""

import math
from collections import deque

_SAMPLES = 13
"""As many as are kept: at one every five seconds they cover the last minute."""


class Outlook:
    """Looks ahead from samples of the last minute.

    Args:
        left_bytes: room there is before anything was measured.
    """

    def __init__(self, left_bytes: int) -> None:
        self._left_bytes = left_bytes
        self._samples: deque[tuple[float, int]] = deque(maxlen=_SAMPLES)

    def add(self, at_s: float, pending_bytes: int, left_bytes: int | None) -> None:
        """One sample.

        Args:
            at_s: when, monotonic seconds.
            pending_bytes: what is held.
            left_bytes: room there is, None if it could not be measured.
        """
        if left_bytes is not None:
            self._left_bytes = left_bytes
        self._samples.append((at_s, pending_bytes))

    @property
    def seconds_until_full(self) -> float:
        """How long the room lasts if what is held goes on growing as it did; infinite if it does not grow."""
        if len(self._samples) < 2:  # noqa: PLR2004 - a rate needs two points
            return math.inf
        (first_s, first_bytes), (last_s, last_bytes) = self._samples[0], self._samples[-1]
        growth = last_bytes - first_bytes
        if growth <= 0:
            return math.inf
        return max(self._left_bytes, 0) * (last_s - first_s) / growth
