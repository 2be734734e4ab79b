"""Which end a transaction gets that brokers have left without one, and when nobody can tell."""

from collections.abc import Collection, Mapping
from typing import Any

import pytest
from aiokafka import TopicPartition

from consumers.engine import settling
from consumers.engine.endings import Last
from consumers.engine.kafka import TRANSACTION_TIMEOUT_MS
from consumers.engine.settling import ENDING_TIMEOUT_MS, Settlement, UnendedError

CHANGELOG, RESULTS, DEAD = TopicPartition("changelog", 1), TopicPartition("results", 1), TopicPartition("dead", 2)
ALL = frozenset({CHANGELOG, RESULTS, DEAD})
ID, EPOCH = 7, 20
FENCED_OFF, ENDED_BY_ITSELF = (ID, EPOCH + 2), (ID, EPOCH + 1)


class Brokers:
    """A coordinator and the leaders of its partitions, which write every end that they are asked for.

    Attributes:
        said: one answer for each time that the last transaction is asked for; the last one stands.
        since: where transactions are open.
        written: (partitions, whether committed), in order.
        committed: what was committed in the name of its producer.
    """

    trouble = ""

    def __init__(self, *said: Last | None, since: Mapping[TopicPartition, int]) -> None:
        self.said = list(said)
        self.since = dict(since)
        self.written: list[tuple[set[TopicPartition], bool]] = []
        self.committed: list[Last] = []

    async def last(self, _: str) -> Last | None:  # noqa: D102
        return self.said.pop(0) if len(self.said) > 1 else self.said[0]

    async def missing(self, _: int, places: Collection[TopicPartition], **__: Any) -> dict[TopicPartition, int]:  # noqa: D102
        return {place: since for place, since in self.since.items() if place in places}

    async def commit(self, _: str, last: Last) -> None:  # noqa: D102
        self.committed.append(last)

    async def write_end(self, places: Collection[TopicPartition], *, commit: bool) -> None:
        """Write it at once."""
        self.written.append((set(places), commit))
        for place in places:
            del self.since[place]


def settlement(brokers: Brokers) -> Settlement:
    """Of an identity that writes to three partitions."""
    return Settlement(brokers, "identity", changelog=CHANGELOG, places=[RESULTS, DEAD])


def was(state: str, *, ending: bool = False, places: frozenset[TopicPartition] = frozenset()) -> Last:
    """A last transaction."""
    return Last(state, ID, EPOCH, ENDING_TIMEOUT_MS if ending else TRANSACTION_TIMEOUT_MS, places)


@pytest.mark.parametrize(
    ("last", "open_in", "commit"),
    [
        (was("CompleteCommit"), {RESULTS}, True),
        (was("CompleteCommit"), ALL, True),
        (was("CompleteCommit", ending=True), {CHANGELOG}, True),
        (was("Empty", ending=True), {RESULTS}, True),
        (was("CompleteAbort"), {CHANGELOG}, False),
        (was("CompleteAbort"), ALL, False),
    ],
)
async def test_what_was_decided_gets_its_end(last: Last, open_in: set[TopicPartition], *, commit: bool) -> None:
    """Before a new producer starts, over just the partitions that have none."""
    brokers = Brokers(last, since=dict.fromkeys(open_in, 5))

    await settlement(brokers).before(brokers.write_end)

    assert brokers.written == [(open_in, commit)]


@pytest.mark.parametrize(
    ("last", "open_in", "why"),
    [
        (was("Empty"), {RESULTS}, "not known any more"),
        (was("Empty"), {CHANGELOG, RESULTS}, "not known any more"),
        (was("CompleteAbort"), {RESULTS, DEAD}, "not known any more"),
        (was("CompleteAbort", ending=True), {RESULTS}, "have aborted"),
        (was("CompleteAbort", ending=True), set(), "have aborted"),
        (None, {CHANGELOG}, "forgotten"),
    ],
)
async def test_what_may_have_been_decided_otherwise_is_not_guessed(
    last: Last | None, open_in: set[TopicPartition], why: str
) -> None:
    """It may belong to a transaction before the last one, which was committed: nothing is written."""
    brokers = Brokers(last, since=dict.fromkeys(open_in, 5))

    with pytest.raises(UnendedError, match=why):
        await settlement(brokers).before(brokers.write_end)

    assert brokers.written == []


@pytest.mark.parametrize("state", ["Empty", "CompleteCommit", "CompleteAbort"])
async def test_nothing_is_written_where_every_end_stands(state: str) -> None:
    """The usual case, however the last transaction ended."""
    brokers = Brokers(was(state), since={})

    assert await settlement(brokers).before(brokers.write_end) == was(state)
    assert brokers.written == []


async def test_a_commit_that_was_cut_off_is_carried_on() -> None:
    """Its producer is known by its timeout: the next one would abort what it had begun, so it is committed first."""
    cut_off = was("Ongoing", ending=True, places=frozenset({RESULTS}))
    brokers = Brokers(cut_off, was("CompleteCommit", ending=True), since={})

    await settlement(brokers).before(brokers.write_end)

    assert brokers.committed == [cut_off]


async def test_what_is_being_decided_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its coordinator is still writing."""
    monkeypatch.setattr(settling, "POLL_S", 0.0)
    brokers = Brokers(was("PrepareCommit"), was("PrepareCommit"), was("CompleteCommit"), since={})

    assert await settlement(brokers).before(brokers.write_end) == was("CompleteCommit")


@pytest.mark.parametrize(
    ("places", "open_in"),
    [(ALL, {RESULTS}), (frozenset({CHANGELOG, RESULTS}), {RESULTS}), (frozenset(), {CHANGELOG}), (ALL, ALL)],
)
async def test_what_a_start_has_aborted_gets_its_end(
    places: frozenset[TopicPartition], open_in: set[TopicPartition]
) -> None:
    """The running one's own partitions, and whatever stands open with the changelog."""
    brokers = Brokers(was("Ongoing", places=places), since=dict.fromkeys(open_in, 5))
    wanted = settlement(brokers)
    last = await wanted.before(brokers.write_end)
    assert last is not None

    assert await wanted.after(last, FENCED_OFF, brokers.write_end, lost=0)

    assert brokers.written == [(open_in, False)]


@pytest.mark.parametrize(
    ("places", "open_in", "producer", "lost"),
    [
        (ALL, {RESULTS}, ENDED_BY_ITSELF, 0),
        (ALL, {RESULTS}, FENCED_OFF, 1),
        (ALL, {RESULTS}, (ID + 1, 0), 0),
        (frozenset({CHANGELOG}), {RESULTS}, FENCED_OFF, 0),
        (frozenset({CHANGELOG}), {CHANGELOG, RESULTS}, FENCED_OFF, 0),
    ],
)
async def test_what_a_start_may_not_have_aborted_is_not_guessed(
    places: frozenset[TopicPartition], open_in: set[TopicPartition], producer: tuple[int, int], lost: int
) -> None:
    """Its own producer may have ended it meanwhile, or it belongs to a transaction before."""
    last = was("Ongoing", places=places)
    brokers = Brokers(last, since=dict.fromkeys(open_in, 5))

    with pytest.raises(UnendedError, match="not known"):
        await settlement(brokers).after(last, producer, brokers.write_end, lost=lost)

    assert brokers.written == []


async def test_who_has_fenced_a_producer_off_remembers_it() -> None:
    """Brokers fail before the end is written: what stands open was aborted, though nobody else can tell."""
    last = was("Ongoing", places=ALL)
    brokers = Brokers(last, Last("Empty", *FENCED_OFF, TRANSACTION_TIMEOUT_MS), since={CHANGELOG: 5, RESULTS: 5})
    wanted = settlement(brokers)

    async def fail(_: Collection[Any], /, *, commit: bool) -> None:
        raise ConnectionError(commit)

    with pytest.raises(ConnectionError):
        await wanted.after(last, FENCED_OFF, fail, lost=0)
    await brokers.last("identity")
    await wanted.before(brokers.write_end)

    assert brokers.written == [({CHANGELOG, RESULTS}, False)]


async def test_whoever_goes_on_has_compared() -> None:
    """What was aborted in place of a commit is said once; then an operator has let the partition go on."""
    brokers = Brokers(was("CompleteAbort", ending=True), since={})
    wanted = settlement(brokers)
    with pytest.raises(UnendedError):
        await wanted.before(brokers.write_end)

    assert await wanted.before(brokers.write_end) is not None


async def test_what_was_told_as_committed_is_not_aborted_with_a_later_one() -> None:
    """Its end was left out while its producer went on; the next one was aborted, and stands open, too."""
    brokers = Brokers(was("CompleteAbort"), since={CHANGELOG: 9, RESULTS: 5})
    wanted = settlement(brokers)
    wanted.remember({CHANGELOG: 7, RESULTS: 5})

    await wanted.before(brokers.write_end)

    assert brokers.written == [({CHANGELOG}, False), ({RESULTS}, True)]


async def test_a_commit_without_an_end_under_a_living_producer_is_carried_on() -> None:
    """The next cycle has failed before it came to that partition: it is aborted, and the commit gets its end."""
    last = was("Ongoing", places=frozenset({CHANGELOG}))
    brokers = Brokers(last, since={CHANGELOG: 9, RESULTS: 5})
    wanted = settlement(brokers)
    wanted.remember({CHANGELOG: 7, RESULTS: 5})
    await wanted.before(brokers.write_end)

    assert await wanted.after(last, FENCED_OFF, brokers.write_end, lost=0)

    assert brokers.written == [({CHANGELOG}, False), ({RESULTS}, True)]


async def test_a_commit_that_a_failed_cycle_takes_along_is_said() -> None:
    """Both stand open in one partition and get one end: before that is written, somebody must know of it."""
    brokers = Brokers(was("Ongoing", places=frozenset({CHANGELOG, RESULTS})), since={CHANGELOG: 9, RESULTS: 5})
    wanted = settlement(brokers)
    wanted.remember({CHANGELOG: 7, RESULTS: 5})

    with pytest.raises(UnendedError, match="compare"):
        await wanted.before(brokers.write_end)


async def test_what_is_settled_is_forgotten() -> None:
    """Offsets of producers before say nothing about what the present one leaves open."""
    brokers = Brokers(was("Ongoing", places=ALL), since={RESULTS: 5})
    wanted = settlement(brokers)
    wanted.remember({RESULTS: 5})

    wanted.settled()

    assert await wanted.before(brokers.write_end) is not None


@pytest.mark.parametrize(("state", "raised"), [("CompleteCommit", UnendedError), ("PrepareCommit", TimeoutError)])
async def test_an_end_that_does_not_come_is_said(
    state: str, raised: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of another producer, if the coordinator is done; else it may still come, and is asked about again."""
    monkeypatch.setattr(settling, "MARKERS_TIMEOUT_S", 0.01)
    brokers = Brokers(was("CompleteCommit"), was(state), since={RESULTS: 5})

    async def write_nothing(_: Collection[Any], /, *, commit: bool) -> None:
        assert commit

    with pytest.raises(raised):
        await settlement(brokers).before(write_nothing)
