"""One cycle, one transaction: the order of its calls, and what becomes of a producer after any error."""

import asyncio
from collections.abc import Collection, Iterable
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaConnectionError, MessageSizeTooLargeError, ProducerFenced

from consumers.engine import kafka, transaction
from consumers.engine.cycle import Outgoing
from consumers.engine.endings import Last
from consumers.engine.transaction import (
    DoubtError,
    FencedError,
    RefusedError,
    Retired,
    Send,
    TransactionError,
    Transactions,
    UnendedError,
)


class Batch(list[tuple[bytes | None, bytes | None]]):
    """Takes two records."""

    def append(self, *, key: bytes | None, value: bytes | None, **_: Any) -> object | None:  # type: ignore[override]
        """None when full."""
        if len(self) == 2:
            return None
        super().append((key, value))
        return self

    def close(self) -> None:
        """Nothing to do."""


class Scripted:
    """A producer that notes its calls and fails where it is told to."""

    def __init__(self, fails: dict[str, BaseException] | None = None, hangs: str = "") -> None:
        self.calls: list[str] = []
        self.sent: list[tuple[str, int, Batch]] = []
        self.fails = fails or {}
        self.hangs = hangs
        self.offset = 100
        self.hanging = asyncio.Event()

    async def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.hangs:
            self.hanging.set()
            await asyncio.Event().wait()
        if name in self.fails:
            raise self.fails[name]

    async def start(self) -> None:  # noqa: D102
        await self._call("start")

    async def stop(self) -> None:  # noqa: D102
        await self._call("stop")

    def maybe_add_partition_to_txn(self, place: TopicPartition) -> None:
        """As aiokafka's own, which is not public."""
        self.calls.append(f"take in {place.topic}")

    @property
    def _txn_manager(self) -> "Scripted":
        return self

    def create_batch(self) -> Batch:  # noqa: D102
        return Batch()

    async def begin_transaction(self) -> None:  # noqa: D102
        await self._call("begin")

    async def send_batch(self, batch: Batch, topic: str, *, partition: int) -> "asyncio.Future[Any]":  # noqa: D102
        await self._call(f"send {topic} {partition}")
        self.sent.append((topic, partition, batch))
        future = asyncio.get_running_loop().create_future()
        if f"future {topic}" in self.fails:
            future.set_exception(self.fails[f"future {topic}"])
        else:
            future.set_result(SimpleNamespace(offset=self.offset))
            self.offset += len(batch)
        return future

    async def send_offsets_to_transaction(self, offsets: dict[Any, int], group_id: str) -> None:  # noqa: D102
        await self._call(f"offsets {group_id} {next(iter(offsets.values()))}")

    async def commit_transaction(self) -> None:  # noqa: D102
        await self._call("commit")

    async def abort_transaction(self) -> None:  # noqa: D102
        await self._call("abort")


def a_cycle(results: int = 3) -> tuple[list[Send], list[bytes], int]:
    """Results, a dead letter, two changelog records, and where the input goes on."""
    records = [Outgoing(b"%d" % number, b"{}", [], 0) for number in range(results)]
    return [Send("results", 1, records), Send("dead", 2, [Outgoing(b"x", b"y", [], 0)])], [b"c1", b"c2"], 42


class Told:
    """Endings that a test tells: of a last transaction, and where it has none until one is written."""

    def __init__(self, last: Last | None = None, missing: Iterable[TopicPartition] = ()) -> None:
        self.of_last = last
        self.left = set(missing)

    async def last(self, _: str) -> Last | None:  # noqa: D102
        return self.of_last

    async def missing(self, _: int, places: Collection[TopicPartition]) -> set[TopicPartition]:  # noqa: D102
        return self.left & set(places)

    async def written(self, _: int, places: Collection[TopicPartition]) -> None:  # noqa: D102
        while self.left & set(places):
            await asyncio.Event().wait()


async def transactions_of(*producers: Scripted, endings: Told | None = None) -> tuple[Transactions, Retired]:
    """Transactions that get these producers, one after the other; the first has started."""
    waiting = list(producers)
    retired = Retired()
    transactions = Transactions(
        lambda: waiting.pop(0),
        endings or Told(),
        identity="identity",
        group_id="group",
        reports_topic="reports",
        changelog_topic="changelog",
        partition=1,
        outlets=[("results", 1), ("dead", 2)],
        retired=retired,
    )
    await transactions.settle()
    return transactions, retired


async def test_a_cycle_is_sent_whole_before_it_is_committed() -> None:
    """Changelog, results, dead letters, offset; the answer is where the changelog was written."""
    producer = Scripted()
    transactions, _ = await transactions_of(producer)

    assert await transactions.commit(*a_cycle()) == [100, 101]
    assert producer.calls == [
        "start",
        "begin",
        "send changelog 1",
        "send results 1",
        "send dead 2",
        "send results 1",
        "offsets group 42",
        "commit",
    ]


async def test_records_of_a_partition_keep_their_order_over_batches() -> None:
    """The first batches of all go out together, the second ones after them."""
    producer = Scripted()
    transactions, _ = await transactions_of(producer)

    await transactions.commit(*a_cycle(results=5))

    results = [record for topic, _, batch in producer.sent if topic == "results" for record in batch]
    assert [key for key, _ in results] == [b"0", b"1", b"2", b"3", b"4"]


@pytest.mark.parametrize(
    ("where", "error", "raised", "aborts"),
    [
        ("begin", AssertionError("Invalid state transition"), DoubtError, True),
        ("send results 1", KafkaConnectionError(), DoubtError, True),
        ("future results", KafkaConnectionError(), DoubtError, True),
        ("future changelog", KafkaConnectionError(), DoubtError, True),
        ("future results", MessageSizeTooLargeError(), RefusedError, True),
        ("future results", ProducerFenced(), FencedError, True),
        ("offsets group 42", ProducerFenced(), FencedError, True),
        ("commit", ProducerFenced(), FencedError, False),
        ("commit", KafkaConnectionError(), DoubtError, False),
        ("commit", MessageSizeTooLargeError(), DoubtError, False),
        ("commit", AssertionError(), DoubtError, False),
    ],
)
async def test_after_any_error_the_producer_is_let_go(
    where: str, error: Exception, raised: type[TransactionError], *, aborts: bool
) -> None:
    """Nothing is committed after a failed send; a producer that saw an error commits nothing ever again."""
    producer, following = Scripted({where: error}), Scripted()
    transactions, retired = await transactions_of(producer, following)

    with pytest.raises(raised):
        await transactions.commit(*a_cycle())
    await retired.drain(1)

    assert ("commit" in producer.calls) is (where == "commit")
    assert producer.calls[-2:] == (["abort", "stop"] if aborts else ["commit", "stop"])
    with pytest.raises(DoubtError):
        await transactions.commit(*a_cycle())
    await transactions.settle()
    assert await transactions.commit(*a_cycle()) == [100, 101]


@pytest.mark.parametrize("where", ["offsets group 42", "commit"])
async def test_a_call_that_never_returns_is_doubt(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Aiokafka waits for ever on a broker that is away; we do not."""
    monkeypatch.setattr(transaction, "SEND_TIMEOUT_S", 0.01)
    monkeypatch.setattr(transaction, "COMMIT_TIMEOUT_S", 0.01)
    transactions, _ = await transactions_of(Scripted(hangs=where))

    with pytest.raises(DoubtError):
        await transactions.commit(*a_cycle())


async def test_a_stop_that_never_returns_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next producer settles at once; the hanging one is left behind."""
    monkeypatch.setattr(transaction, "ABORT_TIMEOUT_S", 0.01)
    transactions, retired = await transactions_of(Scripted(hangs="stop"), Scripted())

    async with asyncio.timeout(1):
        await transactions.settle()

    assert await transactions.commit(*a_cycle()) == [100, 101]
    assert await retired.drain(0.01) is False
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()


async def test_a_producer_that_does_not_start_is_doubt() -> None:
    """It is stopped all the same, or its connections would leak."""
    failing = Scripted({"start": KafkaConnectionError()})
    transactions, retired = await transactions_of(Scripted(), failing)

    with pytest.raises(DoubtError):
        await transactions.settle()
    await retired.drain(1)

    assert failing.calls == ["start", "stop"]


async def test_a_changelog_written_nobody_knows_where_is_doubt() -> None:
    """The broker may answer a repeated batch without its offset: the cycle is committed, the changelog says where."""
    producer = Scripted()
    producer.offset = -1
    transactions, _ = await transactions_of(producer)

    with pytest.raises(DoubtError):
        await transactions.commit([], [b"c"], 42)


async def test_a_cancelled_cycle_is_aborted() -> None:
    """A partition that is revoked in the middle of a cycle leaves no open transaction behind for readers to wait on."""
    producer = Scripted(hangs="offsets group 42")
    transactions, retired = await transactions_of(producer)
    cycle = asyncio.create_task(transactions.commit(*a_cycle()))
    await producer.hanging.wait()

    cycle.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cycle
    await retired.drain(1)

    assert producer.calls[-2:] == ["abort", "stop"]


def test_a_transaction_is_given_up_before_the_broker_does() -> None:
    """What a cycle may take is less than the transaction timeout: a slow one is a doubt, and no loss of the id."""
    assert transaction.SEND_TIMEOUT_S + transaction.COMMIT_TIMEOUT_S < kafka.TRANSACTION_TIMEOUT_MS / 1000


CHANGELOG, RESULTS, DEAD = TopicPartition("changelog", 1), TopicPartition("results", 1), TopicPartition("dead", 2)
NOWHERE: frozenset[TopicPartition] = frozenset()


class Ending(Scripted):
    """A producer whose ends of transactions stand where it has taken in."""

    def __init__(self, endings: Told, fails: dict[str, BaseException] | None = None) -> None:
        super().__init__(fails)
        self._endings = endings

    def maybe_add_partition_to_txn(self, place: TopicPartition) -> None:
        """Have its end written at once."""
        super().maybe_add_partition_to_txn(place)
        self._endings.left.discard(place)


@pytest.mark.parametrize(
    ("last", "missing", "end"),
    [
        (Last(7, committed=True, places=NOWHERE), {RESULTS}, "commit"),
        (Last(7, committed=True, places=frozenset({CHANGELOG, RESULTS})), {CHANGELOG, RESULTS}, "commit"),
        (Last(7, committed=False, places=NOWHERE), {CHANGELOG}, "abort"),
        (Last(7, committed=False, places=NOWHERE), {CHANGELOG, RESULTS, DEAD}, "abort"),
        (Last(7, committed=False, places=frozenset({CHANGELOG, RESULTS})), {RESULTS}, "abort"),
    ],
)
async def test_an_end_that_brokers_left_out_is_written_as_decided(
    last: Last, missing: set[TopicPartition], end: str
) -> None:
    """Before anything else is written, in one transaction without records, over just these partitions."""
    endings = Told(last, missing)
    producer = Ending(endings)

    await transactions_of(producer, endings=endings)

    assert producer.calls[:2] == ["start", "begin"]
    assert sorted(producer.calls[2:-1]) == sorted(f"take in {place.topic}" for place in missing)
    assert producer.calls[-1] == end
    assert producer.sent == []


@pytest.mark.parametrize(
    ("last", "missing"),
    [
        (Last(7, committed=None, places=NOWHERE), {CHANGELOG}),
        (Last(7, committed=False, places=NOWHERE), {RESULTS}),
        (Last(7, committed=False, places=frozenset({CHANGELOG, RESULTS})), {RESULTS, DEAD}),
    ],
)
async def test_an_end_that_may_have_been_another_is_not_guessed(last: Last, missing: set[TopicPartition]) -> None:
    """Nothing is begun: what is open may belong to a transaction that was committed before the last one."""
    endings = Told(last, missing)
    producer = Ending(endings)

    with pytest.raises(UnendedError, match="not known"):
        await transactions_of(producer, endings=endings)

    assert producer.calls == ["start"]


@pytest.mark.parametrize(
    "last",
    [
        None,
        Last(7, committed=True, places=NOWHERE),
        Last(7, committed=False, places=NOWHERE),
        Last(7, committed=None, places=NOWHERE),
    ],
)
async def test_nothing_is_written_where_every_end_stands(last: Last | None) -> None:
    """The usual case, however the last transaction ended."""
    producer = Scripted()

    await transactions_of(producer, endings=Told(last))

    assert producer.calls == ["start"]


async def test_an_end_that_does_not_come_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is open belongs to a producer that nobody can follow any more: an operator must end it."""
    monkeypatch.setattr(transaction, "MARKERS_TIMEOUT_S", 0.01)
    endings = Told(Last(7, committed=True, places=NOWHERE), {RESULTS})

    with pytest.raises(UnendedError, match="cannot be ended in results, partition 1"):
        await transactions_of(Scripted(), endings=endings)


async def test_a_commit_that_was_owed_and_became_an_abort_is_said() -> None:
    """The end fails half way, and the next producer aborts what it had begun: somebody must look at the results."""
    endings = Told()
    producers = (Scripted(), Ending(endings, {"commit": KafkaConnectionError()}), Scripted())
    transactions, _ = await transactions_of(*producers, endings=endings)
    endings.of_last, endings.left = Last(7, committed=True, places=NOWHERE), {RESULTS}
    with pytest.raises(DoubtError):
        await transactions.settle()
    endings.of_last = Last(7, committed=False, places=NOWHERE)

    with pytest.raises(UnendedError, match="compare"):
        await transactions.settle()
