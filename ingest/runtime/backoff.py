"""How long to wait before the next try."""

import random
from collections.abc import Callable


class Backoff:
    """Waits that double from the first to the most, each shortened at random by up to half.

    The randomness keeps processes that failed together from trying again together.

    Args:
        first_s: the first wait before it is shortened.
        most_s: no wait is longer.
        chance: gives numbers from 0 to 1.
    """

    def __init__(self, first_s: float, most_s: float, *, chance: Callable[[], float] = random.random) -> None:
        if not 0 < first_s <= most_s:
            raise ValueError(f"needs 0 < first_s <= most_s, not {first_s} and {most_s}")
        self._first_s = first_s
        self._most_s = most_s
        self._chance = chance
        self._next_s = first_s

    def next(self) -> float:
        """The wait before the next try, in seconds."""
        wait_s = self._next_s * (1 - self._chance() / 2)
        self._next_s = min(self._next_s * 2, self._most_s)
        return wait_s

    def reset(self) -> None:
        """Begin with the first wait again, after a success."""
        self._next_s = self._first_s
