"""Stops a partition whose records turn into dead letters, before a bad release has emptied the topic into them."""

from collections import deque

RUN_RECORDS = 1000
"""How many records in a row are looked at; fewer never stop a partition."""

SHARE_MAX = 0.5
"""The share of dead letters in them at which the partition stops."""


class Breaker:
    """Counts dead letters over the last records of a partition.

    It is asked before a cycle is committed: what trips it has not happened. An operator who resumes lets everything
    pass until a whole run of records is below the share again; then it watches anew.
    """

    def __init__(self, *, run_records: int = RUN_RECORDS, share_max: float = SHARE_MAX) -> None:
        self._run_records = run_records
        self._share_max = share_max
        self._cycles: deque[tuple[int, int]] = deque()
        self._records = 0
        self._dead = 0
        self._overruled = False

    def trips(self, records: int, dead_letters: int) -> bool:
        """Whether a cycle of so many records, so many of them dead letters, must not be committed."""
        if not dead_letters or self._overruled:
            return False
        total, dead = self._records + records, self._dead + dead_letters
        return total >= self._run_records and dead >= total * self._share_max

    def passed(self, records: int, dead_letters: int) -> None:
        """Count a committed cycle."""
        self._cycles.append((records, dead_letters))
        self._records += records
        self._dead += dead_letters
        while self._records - self._cycles[0][0] >= self._run_records:
            gone_records, gone_dead = self._cycles.popleft()
            self._records -= gone_records
            self._dead -= gone_dead
        if self._overruled and self._records >= self._run_records and self._dead < self._records * self._share_max:
            self._overruled = False

    def resume(self) -> None:
        """Let everything pass, until a whole run is below the share."""
        self._overruled = True
