"""Partition clock, caught up, breaker: what decides whether time and dead letters count."""

import pytest

from consumers.engine.breaker import Breaker
from consumers.engine.clock import WATERMARK_AGE_MAX_S, CaughtUp, PartitionClock, Watermark

AT_MS = 1_790_000_000_000
AGE_MAX_MS = int(WATERMARK_AGE_MAX_S * 1000)
HOUR_MS = 3_600_000


class Still:
    """A clock that stands."""

    def wall_ms(self) -> int:
        """Milliseconds."""
        return AT_MS

    def monotonic(self) -> float:
        """Seconds."""
        return 0.0

    async def sleep(self, seconds: float) -> None:
        """Over at once."""


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
        (7, 7, AT_MS - AGE_MAX_MS, True),
        (7, 7, AT_MS - AGE_MAX_MS - 1, False),
        (7, 7, AT_MS + 1, False),
    ],
    ids=["at the end", "behind", "never answered", "no position", "just recent", "stale", "from the future"],
)
def test_caught_up_is_a_recent_answer_and_a_position_at_its_end(
    position: int | None, high: int | None, answered_ms: int | None, *, caught_up: bool
) -> None:
    """An old answer, or one whose time cannot be, says nothing about now."""
    judge = CaughtUp(Still())
    judge.judge(Watermark(position=7, high=7, answered_ms=AT_MS - AGE_MAX_MS + 1), wall_ms=AT_MS, monotonic_s=1.0)
    watermark = Watermark(position=position, high=high, answered_ms=answered_ms)

    assert judge.judge(watermark, wall_ms=AT_MS, monotonic_s=1.0) is caught_up


def test_an_answer_ages_although_the_wall_stands_still() -> None:
    """Brokers away while the wall clock is set back again and again: the monotonic clock notices."""
    judge = CaughtUp(Still())
    judge.judge(Watermark(position=7, high=7, answered_ms=AT_MS - 1), wall_ms=AT_MS, monotonic_s=10.0)
    watermark = Watermark(position=7, high=7, answered_ms=AT_MS)

    assert judge.judge(watermark, wall_ms=AT_MS + 1000, monotonic_s=10.0)
    assert judge.judge(watermark, wall_ms=AT_MS + 1000, monotonic_s=10.0 + WATERMARK_AGE_MAX_S)
    assert not judge.judge(watermark, wall_ms=AT_MS + 1000, monotonic_s=10.1 + WATERMARK_AGE_MAX_S)


def test_an_answer_ages_although_the_monotonic_clock_stands_still() -> None:
    """It does so in a suspended machine: there the wall clock notices."""
    judge = CaughtUp(Still())
    for answered_ms in (AT_MS - 100, AT_MS):
        judge.judge(Watermark(position=7, high=7, answered_ms=answered_ms), wall_ms=AT_MS, monotonic_s=10.0)
    watermark = Watermark(position=7, high=7, answered_ms=AT_MS)

    assert judge.judge(watermark, wall_ms=AT_MS + 1000, monotonic_s=10.0)
    assert not judge.judge(watermark, wall_ms=AT_MS + 4 * HOUR_MS, monotonic_s=10.0)


def test_an_answer_says_how_it_was_when_it_was_asked_for() -> None:
    """One that lay unread while the process was frozen looks new and is not; the one after it was asked for now."""
    judge = CaughtUp(Still())
    for answered_ms in (AT_MS - 100, AT_MS):
        judge.judge(Watermark(position=7, high=7, answered_ms=answered_ms), wall_ms=AT_MS, monotonic_s=10.0)
    later_ms, later_s = AT_MS + 4 * HOUR_MS, 10.0 + 4 * 3600

    lay_unread = Watermark(position=7, high=7, answered_ms=later_ms)
    assert not judge.judge(lay_unread, wall_ms=later_ms, monotonic_s=later_s)
    assert not judge.judge(lay_unread, wall_ms=later_ms + 50, monotonic_s=later_s + 0.05)
    asked_now = Watermark(position=7, high=7, answered_ms=later_ms + 100)
    assert judge.judge(asked_now, wall_ms=later_ms + 100, monotonic_s=later_s + 0.1)


@pytest.mark.parametrize(
    ("restored_s", "caught_up"), [(1, True), (WATERMARK_AGE_MAX_S + 1, False)], ids=["soon", "late"]
)
def test_the_first_answer_was_asked_for_after_the_assignment(restored_s: float, *, caught_up: bool) -> None:
    """Nobody knows when exactly: long after the assignment it does not count; the second one does."""
    clock = Still()
    judge = CaughtUp(clock)
    at_ms, at_s = AT_MS + int(restored_s * 1000), restored_s

    first = Watermark(position=7, high=7, answered_ms=at_ms)
    assert judge.judge(first, wall_ms=at_ms, monotonic_s=at_s) is caught_up
    second = Watermark(position=7, high=7, answered_ms=at_ms + 100)
    assert judge.judge(second, wall_ms=at_ms + 100, monotonic_s=at_s + 0.1)


@pytest.mark.parametrize("step_ms", [-3 * HOUR_MS, 3 * HOUR_MS], ids=["back", "forward"])
def test_a_wall_clock_that_steps_is_caught_up_again_soon(step_ms: int) -> None:
    """For two answers, until both carry the new time; not until the old time is reached again."""
    judge = CaughtUp(Still())
    answers = [AT_MS, AT_MS + 100, *(AT_MS + step_ms + late for late in (200, 300, 400))]
    verdicts = [
        judge.judge(Watermark(position=7, high=7, answered_ms=at), wall_ms=at, monotonic_s=number / 10)
        for number, at in enumerate(answers)
    ]

    assert verdicts == [True, True, False, True, True]


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
