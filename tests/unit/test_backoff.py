"""Waits between tries grow, have a bound and differ between processes."""

import pytest

from ingest.runtime.backoff import Backoff


def test_waits_double_up_to_the_most() -> None:
    """A service that stays away is asked less and less, but never less than so often."""
    backoff = Backoff(1, 5, chance=lambda: 0)

    assert [backoff.next() for _ in range(5)] == [1, 2, 4, 5, 5]


def test_chance_shortens_a_wait_by_up_to_half() -> None:
    """Processes that failed together do not come back together."""
    assert Backoff(2, 5, chance=lambda: 1).next() == 1
    assert 1 <= Backoff(2, 5).next() <= 2


def test_a_success_begins_anew() -> None:
    """After a success the next failure waits briefly again."""
    backoff = Backoff(1, 5, chance=lambda: 0)
    backoff.next()

    backoff.reset()

    assert backoff.next() == 1


@pytest.mark.parametrize(("first_s", "most_s"), [(0, 1), (2, 1)])
def test_waits_without_sense_are_refused(first_s: float, most_s: float) -> None:
    """A wait of nothing would be a busy loop."""
    with pytest.raises(ValueError, match="first_s"):
        Backoff(first_s, most_s)
