"""Partition clock, caught up, breaker: what decides whether time and dead letters count."""

import pytest

from consumers.engine.breaker import Breaker
from consumers.engine.clock import WATERMARK_AGE_MAX_S, CaughtUp, PartitionClock, Watermark

AT_MS = 1_790_000_000_000


def test_the_partition_clock_never_falls() -> None:
    """Wall time that steps back stops it, until the wall is past it again."""
    clock = PartitionClock(at_least_ms=100)

    assert [clock.tick(wall) for wall in (50, 120, 90, 119, 130)] == [100, 120, 120, 120, 130]


@pytest.mark.parametrize(
    ("position", "high", "answered_ms", "caught_up"),
    [
        (7, 7, AT_MS, True),
        (7, 8, AT_MS, False),
        (7, None, None, False),
        (None, 7, AT_MS, False),
        (7, 7, AT_MS - int(WATERMARK_AGE_MAX_S * 1000), True),
        (7, 7, AT_MS - int(WATERMARK_AGE_MAX_S * 1000) - 1, False),
        (7, 7, AT_MS + 1, False),
    ],
    ids=["at the end", "behind", "never answered", "no position", "just recent", "stale", "from the future"],
)
def test_caught_up_is_a_recent_answer_and_a_position_at_its_end(
    position: int | None, high: int | None, answered_ms: int | None, *, caught_up: bool
) -> None:
    """An old answer, or one whose time cannot be, says nothing about now."""
    watermark = Watermark(position=position, high=high, answered_ms=answered_ms)

    assert CaughtUp().judge(watermark, wall_ms=AT_MS, monotonic_s=1.0) is caught_up


def test_an_answer_ages_although_the_wall_stands_still() -> None:
    """Brokers away while the wall clock is set back again and again: the monotonic clock notices."""
    judge = CaughtUp()
    watermark = Watermark(position=7, high=7, answered_ms=AT_MS)

    assert judge.judge(watermark, wall_ms=AT_MS + 1000, monotonic_s=10.0)
    assert judge.judge(watermark, wall_ms=AT_MS + 1000, monotonic_s=10.0 + WATERMARK_AGE_MAX_S)
    assert not judge.judge(watermark, wall_ms=AT_MS + 1000, monotonic_s=10.1 + WATERMARK_AGE_MAX_S)


def test_few_dead_letters_stop_nothing() -> None:
    """Below the run of records not even a share of all trips it, nor does a small share of many."""
    breaker = Breaker(run_records=100, share_max=0.5)

    assert not breaker.trips(99, 99)
    breaker.passed(1000, 0)
    assert not breaker.trips(400, 300)


def test_a_flood_trips_the_breaker_before_it_is_committed() -> None:
    """At the share over a whole run the cycle must not happen."""
    breaker = Breaker(run_records=100, share_max=0.5)
    breaker.passed(60, 40)

    assert not breaker.trips(39, 30)
    assert breaker.trips(40, 30)


def test_a_resumed_breaker_watches_again_after_a_good_run() -> None:
    """An operator lets the flood through; once a run is fine the next flood is stopped again."""
    breaker = Breaker(run_records=100, share_max=0.5)
    breaker.resume()

    assert not breaker.trips(4000, 4000)
    breaker.passed(4000, 4000)
    assert not breaker.trips(4000, 4000)
    breaker.passed(100, 0)
    breaker.passed(100, 0)
    assert breaker.trips(4000, 4000)
