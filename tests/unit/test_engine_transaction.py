"""One cycle, one transaction: the order of its calls, and what becomes of a producer after any error."""

import asyncio
from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from aiokafka import TopicPartition
from aiokafka.errors import (
    KafkaConnectionError,
    MessageSizeTooLargeError,
    ProducerFenced,
    TopicAuthorizationFailedError,
)

from consumers.engine import kafka, transaction
from consumers.engine.cycle import Outgoing
from consumers.engine.endings import Last
from consumers.engine.settling import ENDING_TIMEOUT_MS
from consumers.engine.transaction import (
    DoubtError,
    FencedError,
    RefusedError,
    Retired,
    Send,
    TransactionError,
    Transactions,
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
        self.producer_id, self.producer_epoch = 7, 2
        self.client = SimpleNamespace(send=None)

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
        """What aiokafka keeps to itself."""
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
    """Endings that a test tells."""

    trouble = "no leader"

    def __init__(self, last: Last | None = None) -> None:
        self.of_last = last
        self.since: dict[TopicPartition, int] = {}

    async def last(self, _: str) -> Last | None:  # noqa: D102
        return self.of_last

    async def missing(self, _: int, places: Collection[TopicPartition], **__: Any) -> dict[TopicPartition, int]:  # noqa: D102
        return {place: at for place, at in self.since.items() if place in places}

    async def commit(self, _: str, __: Last) -> None:
        """Nothing here is to be committed."""
        raise AssertionError


async def transactions_of(*producers: Scripted, endings: Told | None = None) -> tuple[Transactions, Retired]:
    """Transactions that get these producers, one after the other; the first has started."""
    waiting = list(producers)
    retired = Retired()
    transactions = Transactions(
        lambda **_: waiting.pop(0),
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
    ("where", "error", "raised"),
    [
        ("begin", AssertionError("Invalid state transition"), DoubtError),
        ("send results 1", KafkaConnectionError(), DoubtError),
        ("future results", KafkaConnectionError(), DoubtError),
        ("future changelog", KafkaConnectionError(), DoubtError),
        ("future results", MessageSizeTooLargeError(), RefusedError),
        ("future results", ProducerFenced(), FencedError),
        ("offsets group 42", ProducerFenced(), FencedError),
        ("commit", ProducerFenced(), FencedError),
        ("commit", KafkaConnectionError(), DoubtError),
        ("commit", MessageSizeTooLargeError(), DoubtError),
        ("commit", AssertionError(), DoubtError),
    ],
)
async def test_after_any_error_the_producer_is_let_go(
    where: str, error: Exception, raised: type[TransactionError]
) -> None:
    """Nothing is committed after a failed send; a producer that saw an error commits nothing ever again."""
    producer, following = Scripted({where: error}), Scripted()
    transactions, retired = await transactions_of(producer, following)

    with pytest.raises(raised):
        await transactions.commit(*a_cycle())
    await retired.drain(1)

    assert ("commit" in producer.calls) is (where == "commit")
    assert producer.calls[-1] == "stop"
    assert "abort" not in producer.calls
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


async def test_a_stop_that_never_returns_holds_nobody_up() -> None:
    """The next producer settles at once; the hanging one is left behind."""
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


async def test_a_cancelled_cycle_is_left_to_the_next_producer() -> None:
    """It is not aborted by ourselves: brokers may have left out the end of the one before, which would go with it."""
    producer = Scripted(hangs="offsets group 42")
    transactions, retired = await transactions_of(producer)
    cycle = asyncio.create_task(transactions.commit(*a_cycle()))
    await producer.hanging.wait()

    cycle.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cycle
    await retired.drain(1)

    assert producer.calls[-1] == "stop"
    assert "abort" not in producer.calls


def test_a_transaction_is_given_up_before_the_broker_does() -> None:
    """What a cycle may take is less than the transaction timeout: a slow one is a doubt, and no loss of the id."""
    assert transaction.SEND_TIMEOUT_S + transaction.COMMIT_TIMEOUT_S < kafka.TRANSACTION_TIMEOUT_MS / 1000


async def test_another_owner_who_comes_meanwhile_is_left_alone() -> None:
    """A producer that is fenced off at its start is not doubt: settling again would take the partition back."""
    transactions, _ = await transactions_of(Scripted(), Scripted({"start": ProducerFenced()}))

    with pytest.raises(FencedError):
        await transactions.settle()


async def test_an_end_is_written_by_a_producer_of_its_own() -> None:
    """In a transaction without records, and with the timeout that tells whoever comes next what it was for."""
    endings = Told(Last("CompleteCommit", 7, 1, 30_000))
    endings.since = {TopicPartition("results", 1): 5}
    timeouts: list[int] = []

    class Ending(Scripted):
        async def commit_transaction(self) -> None:
            await super().commit_transaction()
            endings.since = {}

    made = [Ending(), Scripted()]

    def make(*, timeout_ms: int) -> Scripted:
        timeouts.append(timeout_ms)
        return made[len(timeouts) - 1]

    transactions = Transactions(
        make,
        endings,
        identity="identity",
        group_id="group",
        reports_topic="reports",
        changelog_topic="changelog",
        partition=1,
        outlets=[("results", 1)],
        retired=(retired := Retired()),
    )
    await transactions.settle()
    await retired.drain(1)

    assert made[0].calls == ["start", "begin", "take in results", "commit", "stop"]
    assert made[1].calls == ["start"]
    assert timeouts == [ENDING_TIMEOUT_MS, kafka.TRANSACTION_TIMEOUT_MS]


async def test_a_commit_whose_end_was_left_out_is_noticed_by_the_second_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first may have come before its markers; brokers that do not tell are asked again."""
    monkeypatch.setattr(transaction, "LOOK_EVERY_S", 0.0)
    endings = Told()
    transactions, _ = await transactions_of(Scripted(), endings=endings)
    await transactions.commit(*a_cycle())
    endings.since = {TopicPartition("results", 1): 100}

    transactions.look()
    await asyncio.sleep(0)
    transactions.look()
    await asyncio.sleep(0)
    with pytest.raises(DoubtError, match="left out"):
        transactions.look()


async def test_a_look_at_what_stands_is_no_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither is one that fails, nor a transaction that is running."""
    monkeypatch.setattr(transaction, "LOOK_EVERY_S", 0.0)
    endings = Told()
    transactions, _ = await transactions_of(Scripted(), endings=endings)
    await transactions.commit(*a_cycle())
    endings.since = {TopicPartition("results", 1): 10_000}

    for _ in range(4):
        transactions.look()
        await asyncio.sleep(0)
    transactions.let_go()


async def test_a_look_that_brokers_refuse_is_said_and_no_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    """A right that was taken away meanwhile: cycles go on, and an operator can read of it."""
    monkeypatch.setattr(transaction, "LOOK_EVERY_S", 0.0)
    endings = Told()
    transactions, _ = await transactions_of(Scripted(), endings=endings)

    async def refuse(*_: Any, **__: Any) -> dict[TopicPartition, int]:
        raise TopicAuthorizationFailedError("results")

    monkeypatch.setattr(endings, "missing", refuse)
    with structlog.testing.capture_logs() as lines:
        transactions.look()
        await asyncio.sleep(0)
        transactions.look()

    assert [line["log_level"] for line in lines] == ["warning"]
    assert "TopicAuthorizationFailedError" in lines[0]["error"]
    assert await transactions.commit(*a_cycle()) == [100, 101]
    transactions.let_go()
