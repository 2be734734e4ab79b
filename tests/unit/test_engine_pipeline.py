"""Cycles that are prepared while the one before commits: ahead by one, on its overlay, and gone with it."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from prometheus_client import REGISTRY

from consumers.engine import narrowing, pipeline
from consumers.engine.breaker import RUN_RECORDS
from consumers.engine.cycle import InternalError
from consumers.engine.deciding import Decision, decide
from consumers.engine.partition import Phase
from consumers.engine.transaction import DoubtError, FencedError, RefusedError, Send
from consumers.entry import Due, LedgerDamagedError
from tests.assembling import a_report
from tests.unit.test_engine_cycle import Given, given
from tests.unit.test_engine_partition import World, keys, some

FULL = 100
"""Records of a full cycle here."""


@pytest.fixture(autouse=True)
def _small_cycles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(narrowing, "CYCLE_RECORDS_MAX", FULL)


def segments(messages: int) -> list[Given]:
    """First segments of so many messages, then their second ones: a whole cycle of each."""
    return given(
        *(a_report(f"m{number}", 1, 2) for number in range(messages)),
        *(a_report(f"m{number}", 2, 2) for number in range(messages)),
    )


def held(records: list[Given]) -> World:
    """A world whose commits wait for its gate."""
    world = World(records)
    world.gate = asyncio.Event()
    return world


async def test_behind_the_next_cycle_is_prepared_while_the_last_commits() -> None:
    """One ahead and not two: what is in hand stays bounded."""
    world = held(some(4 * FULL))

    async with world.working():
        await world.until(lambda: len(world.polls) == 2)
        for _ in range(100):
            await asyncio.sleep(0)
        assert (world.polls, world.tries, world.commits) == ([FULL, FULL], 1, [])
        assert world.gate is not None
        world.gate.set()
        await world.until(lambda: world.commits and world.commits[-1][1] == 4 * FULL)

    assert world.results() == keys(4 * FULL)


async def test_caught_up_nothing_is_prepared_ahead() -> None:
    """The next cycle takes what comes until the interval is over, not what is there at once."""
    world = held(some(10))

    async with world.working():
        await world.committing.wait()
        for _ in range(100):
            await asyncio.sleep(0)
        assert world.polls == [10]


async def test_a_prepared_cycle_sees_what_the_one_in_flight_has_written() -> None:
    """Second segments meet first ones that are in no ledger yet."""
    world = held(segments(FULL))

    async with world.working():
        await world.until(lambda: len(world.polls) == 2)
        assert world.gate is not None
        assert world.ledger.position is None
        world.gate.set()
        await world.until(lambda: world.commits and world.commits[-1][1] == 2 * FULL)

    assert world.results() == keys(FULL)


@pytest.mark.parametrize("fault", [DoubtError("before"), DoubtError("after")], ids=str)
async def test_a_prepared_cycle_goes_with_the_one_in_flight(fault: Exception) -> None:
    """After a doubt it is decided again, on what the changelog says."""
    world = held(segments(FULL))
    world.faults = {1: fault}

    async with world.working():
        await world.until(lambda: len(world.polls) == 2)
        assert world.gate is not None
        world.gate.set()
        await world.until(lambda: world.commits and world.commits[-1][1] == 2 * FULL)

    assert world.settled == 2
    assert world.results() == keys(FULL)


async def test_a_fenced_cycle_takes_the_prepared_one_along() -> None:
    """The partition ends; nothing more is sent."""
    world = held(segments(FULL))
    world.faults = {1: FencedError("before")}

    async with world.working():
        await world.until(lambda: len(world.polls) == 2)
        assert world.gate is not None
        world.gate.set()
        await world.until(lambda: world.ended)

    assert isinstance(world.ended[0], FencedError)
    assert (world.tries, world.commits) == (1, [])


async def test_when_the_partition_is_revoked_a_prepared_cycle_is_not_begun() -> None:
    """The one in flight may end; the next owner does the rest."""
    world = held(some(2 * FULL))

    async with world.working():
        await world.until(lambda: len(world.polls) == 2)
        stopping = asyncio.create_task(world.worker.stop(5))
        await asyncio.sleep(0)
        assert world.gate is not None
        world.gate.set()
        await stopping

    assert world.tries == 1
    assert world.ledger.position is not None
    assert world.ledger.position.next_offset == FULL


async def test_a_revoked_partition_drops_what_is_in_flight_and_what_is_prepared() -> None:
    """A commit that does not end holds up neither the group nor the end of the task."""
    world = held(some(2 * FULL))

    async with world.working():
        await world.until(lambda: len(world.polls) == 2)
        await world.worker.stop(0.01)
        assert world.ended == [None]

    assert world.commits == []
    assert world.ledger.position is None


async def test_while_a_refusal_is_looked_into_nothing_is_prepared_ahead() -> None:
    """Whose cycle was refused must be certain."""
    world = World(some(2 * FULL))
    world.faults = {1: RefusedError("before")}
    world.commit_steps = lambda: 50

    async with world.working():
        await world.until(lambda: world.commits and world.commits[-1][1] == 2 * FULL)

    # The refused one and the one ahead of it; half of it, alone; and as much as that has earned.
    assert world.polls[:4] == [FULL, FULL, FULL // 2, FULL]
    assert world.results() == keys(2 * FULL)


async def test_a_cycle_in_flight_lands_before_a_failure_of_the_next_one_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A prepared cycle that our code fails on holds the partition; the one before has happened."""
    decided = 0

    def failing(*arguments: object) -> Decision:
        nonlocal decided
        decided += 1
        if decided == 2:
            raise InternalError
        return decide(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "decide", failing)
    world = held(some(2 * FULL))

    async with world.working():
        await world.until(lambda: decided == 2)
        assert world.gate is not None
        world.gate.set()
        await world.until(lambda: world.worker.phase is Phase.PAUSED)
        assert world.ledger.position is not None
        assert world.ledger.position.next_offset == FULL
        world.worker.resume()
        await world.until(lambda: world.commits and world.commits[-1][1] == 2 * FULL)

    assert world.results() == keys(2 * FULL)


async def test_the_breaker_counts_the_cycle_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepared ahead or not, a cycle is weighed with all that was committed before it."""
    monkeypatch.setattr(narrowing, "CYCLE_RECORDS_MAX", RUN_RECORDS // 2)
    records = some(RUN_RECORDS // 2)
    records += [Given(RUN_RECORDS // 2 + number, b"x", b"unusable") for number in range(2 * RUN_RECORDS)]
    world = World(records)

    async with world.working():
        await world.until(lambda: world.worker.phase is Phase.PAUSED)

    assert [offset for _, offset in world.commits] == [RUN_RECORDS // 2]
    assert world.letters() == []


async def test_a_ledger_that_fails_under_a_prepared_cycle_is_read_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit has happened; what was prepared on its overlay is decided again."""
    world = held(segments(FULL))
    apply = world.ledger.apply
    failures = [LedgerDamagedError("the disk is gone")]

    def failing(records: list[tuple[int, bytes]]) -> int:
        if failures and world.commits:
            raise failures.pop()
        return apply(records)

    monkeypatch.setattr(world.ledger, "apply", failing)

    async with world.working():
        await world.until(lambda: len(world.polls) == 2)
        assert world.gate is not None
        world.gate.set()
        await world.until(lambda: world.commits and world.commits[-1][1] == 2 * FULL)

    assert world.results() == keys(FULL)


async def test_after_a_refused_record_cycles_overlap_again() -> None:
    """Once the record is a dead letter nothing is looked into any more."""
    world = World(some(4 * FULL))
    plain = world.commit

    async def picky(sends: Sequence[Send], changelog: Sequence[bytes], next_offset: int) -> list[int]:
        if any(record.key == b"m150" for send in sends if send.topic == "results" for record in send.records):
            raise RefusedError("before")
        return await plain(sends, changelog, next_offset)

    world.commit = picky  # type: ignore[method-assign]

    async with world.working():
        await world.until(lambda: world.commits and world.commits[-1][1] == 4 * FULL)
        world.gate = asyncio.Event()
        world.records += given(*(a_report(f"late{number}") for number in range(2 * FULL)), first=4 * FULL)
        polls = len(world.polls)
        await world.until(lambda: world.polls[polls:].count(FULL) == 2)
        world.gate.set()

    assert world.letters() == [b"m150"]


async def test_what_was_committed_is_counted_whatever_the_disk_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that cannot be removed costs no doubt: nothing rests on it."""

    def failing(before_ms: int) -> None:
        raise FileNotFoundError(before_ms)

    world = World(some(3 * FULL))
    monkeypatch.setattr(world.ledger, "forget", failing)
    before = _counted()

    async with world.working():
        await world.until(lambda: world.commits and world.commits[-1][1] == 3 * FULL)
        await world.until(lambda: _counted() == before + 3 * FULL)

    assert world.settled == 1


async def test_more_deadlines_do_not_wait_for_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long walk over what was answered is not held up by a quiet topic at each of its steps."""
    world = World(some(1))
    steps = iter([True] * 20)
    due = world.ledger.due

    def walking(*arguments: Any) -> Due:
        return due(*arguments)._replace(more=next(steps, False))

    monkeypatch.setattr(world.ledger, "due", walking)

    async with world.working():
        await world.until(lambda: len(world.polls) > 19)

    assert world.time.now_s < 1


def _counted() -> float:
    return REGISTRY.get_sample_value("dlrflow_results_total", {"outcome": "delivered", "reason": "complete"}) or 0.0
