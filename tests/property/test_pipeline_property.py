"""Cycles in flight, cycles prepared on them, and failures of every kind: the results are those of the reports."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from random import Random

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.engine import narrowing
from consumers.engine.transaction import DoubtError
from tests.assembling import last_of
from tests.oracle import Raw, last_results
from tests.strategies import reports
from tests.unit.test_engine_cycle import given as records_of
from tests.unit.test_engine_partition import World

RECORDS_MAX = 3
MESSAGES = ("a", "b", "c")

arrivals = st.lists(st.sampled_from(MESSAGES).flatmap(lambda one: reports(one, 3)), min_size=1, max_size=30)
doubts = st.dictionaries(st.integers(1, 12), st.sampled_from(["before", "after"]), max_size=5)


@pytest.fixture(autouse=True, scope="module")
def _small_cycles() -> Iterator[None]:
    """Cycles of so few records that every message is in several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(narrowing, "CYCLE_RECORDS_MAX", RECORDS_MAX)
        yield


@given(arrivals, doubts, st.integers(0, 2**32))
def test_any_mixture_of_commits_and_doubts_ends_in_the_results_of_the_oracle(
    raws: list[Raw], faults: dict[int, str], seed: int
) -> None:
    """Every revision stands once, in order, and the last one is right, whenever a commit ends and however."""
    world = asyncio.run(_played(raws, faults, Random(seed)))

    assert last_of(_results(world)) == last_results(raws)


async def _played(raws: list[Raw], faults: dict[int, str], chance: Random) -> World:
    world = World(records_of(*raws))
    world.idle_polls_max = 40  # past the timeout of 10 s, so that what is incomplete is answered, too
    world.faults = {number: DoubtError(when) for number, when in faults.items()}
    world.commit_steps = lambda: chance.choice((0, 1, 3, 10))
    async with world.working():
        await world.until(lambda: world.idle_polls_max <= 0)
    assert world.ended == [None]
    return world


def _results(world: World) -> list[Raw]:
    """All results in the order of their commits; those of one message keep it."""
    values: dict[str, list[Raw]] = defaultdict(list)
    for sends, _ in world.commits:
        for send in sends:
            if send.topic == "results":
                for record in send.records:
                    result = orjson.loads(record.value or b"")
                    values[result["smsMsgId"]].append(result)
    return [result for those in values.values() for result in those]
