"""Which answers of the brokers mean what, and what becomes of the producer after one."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import errors

from ingest.forward.kafka import KafkaLink, _verdict
from ingest.forward.link import RefusedError, SendError
from ingest.forward.record import Record
from tests.fakes.forward import PromptClock


@pytest.mark.parametrize(
    "error",
    [
        errors.TopicAuthorizationFailedError("sms.status-reports"),
        errors.ClusterAuthorizationFailedError(),
        errors.UnknownTopicOrPartitionError(),
        errors.LeaderNotAvailableError(),
        errors.OutOfOrderSequenceNumber(),
        errors.ProducerFenced(),
        errors.KafkaConnectionError(),
        TimeoutError(),
        AssertionError("Unrecognized partition"),
    ],
)
def test_what_says_nothing_about_a_record_is_sent_again(error: BaseException) -> None:
    """Missing permission, missing topics, leaders and producers that broke blame no record."""
    assert not isinstance(_verdict(error, 3), RefusedError)


@pytest.mark.parametrize(
    "error",
    [errors.MessageSizeTooLargeError(), errors.RecordListTooLargeError(), errors.PolicyViolationError()],
)
def test_what_blames_a_record_is_a_refusal(error: BaseException) -> None:
    """Size and policy are refused again however often they are sent."""
    verdict = _verdict(error, 3)

    assert isinstance(verdict, RefusedError)
    assert (verdict.taken, verdict.doubtful, verdict.timestamp) == (3, False, False)


def test_an_error_the_client_does_not_know_is_doubtful() -> None:
    """INVALID_RECORD (87) looks like a fault of the broker to aiokafka 0.14."""
    verdict = _verdict(errors.for_code(87)(), 3)

    assert isinstance(verdict, RefusedError)
    assert verdict.doubtful


def test_an_impossible_timestamp_is_told_apart() -> None:
    """It can be helped by stamping anew."""
    verdict = _verdict(errors.InvalidTimestampError(), 3)

    assert isinstance(verdict, RefusedError)
    assert verdict.timestamp


def test_the_reason_never_quotes_what_was_sent() -> None:
    """Texts of errors can hold keys or values; only their kind is kept."""
    assert str(_verdict(errors.KafkaError("to +8613800000000"), 1)) == "KafkaError"


class FakeBatch:
    """Takes every record."""

    def __init__(self) -> None:
        self._taken = 0

    def append(self, **_record: object) -> object:
        """Take it."""
        self._taken += 1
        return self

    def close(self) -> None:
        """Take no more."""

    def record_count(self) -> int:
        """How many it took."""
        return self._taken


class FakeProducer:
    """A producer of a topic with one partition.

    Attributes:
        ends: how the next batches end, one each; then they are confirmed.
        starts: how the next starts end.
        lists: how the next looks at the topics end.
        silent: no batch ends.
        sent: counts them.
    """

    def __init__(self) -> None:
        self.ends: list[BaseException] = []
        self.starts: list[BaseException] = []
        self.lists: list[BaseException] = []
        self.silent = False
        self.sent = asyncio.Semaphore(0)
        cluster = SimpleNamespace(partitions_for_topic=lambda _topic: {0})
        self.client = SimpleNamespace(cluster=cluster, force_metadata_update=self._look)

    async def _look(self) -> bool:
        if self.lists:
            raise self.lists.pop()
        return True

    async def start(self) -> None:
        """Connect, or not."""
        if self.starts:
            raise self.starts.pop()

    async def stop(self) -> None:
        """Let go."""

    def create_batch(self) -> Any:
        """A batch that takes all."""
        return FakeBatch()

    async def send_batch(self, *_batch: object, **_place: object) -> asyncio.Future[None]:
        """Take a batch, and end it at once."""
        self.sent.release()
        future = asyncio.get_running_loop().create_future()
        if self.silent:
            return future
        if not self.ends:
            future.set_result(None)
        elif isinstance(error := self.ends.pop(), asyncio.CancelledError):
            future.cancel()
        else:
            future.set_exception(error)
        return future


class FakeLink(KafkaLink):
    """A link whose producers are all this one.

    Attributes:
        built: counts them.
    """

    def __init__(self) -> None:
        super().__init__({}, PromptClock())
        self.producer = FakeProducer()
        self.built: asyncio.Semaphore = asyncio.Semaphore(0)

    def _build(self) -> Any:
        self.built.release()
        return self.producer


RECORD = Record(b"key", b"value", [], 1)


@pytest.mark.parametrize("error", [errors.MessageSizeTooLargeError(), errors.KafkaConnectionError()])
async def test_a_replaced_producer_is_there_before_it_is_asked_for(error: Exception) -> None:
    """Else a receiver that is not ready gets no push, and without a push it would never be ready again."""
    link = FakeLink()
    await link.partitions("reports")
    link.producer.ends.append(error)
    with pytest.raises(SendError):
        await link.send("reports", 0, [RECORD])
    assert not link.connected()

    async with asyncio.timeout(10):
        await link.built.acquire()
        await link.built.acquire()
        while not link.connected():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0)

    assert await link.send("reports", 0, [RECORD]) == 1
    await link.close()


async def test_a_closed_link_opens_nothing_more() -> None:
    """What the last batch met does not matter any more."""
    link = FakeLink()
    await link.partitions("reports")
    link.producer.ends.append(errors.KafkaConnectionError())
    with pytest.raises(SendError):
        await link.send("reports", 0, [RECORD])

    await link.close()

    assert not link.connected()
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("place", ["starts", "lists"])
async def test_a_client_that_cancels_what_it_opens_is_opened_again(place: str) -> None:
    """A `CancelledError` that nobody asked for is a failure like others, not the end of who waits for the brokers."""
    link = FakeLink()
    getattr(link.producer, place).append(asyncio.CancelledError())

    assert await link.partitions("reports") == 1
    await link.close()


async def test_a_client_that_cancels_a_batch_is_replaced_and_the_batch_sent_again() -> None:
    """The same, for a batch under way."""
    link = FakeLink()
    link.producer.ends.append(asyncio.CancelledError())

    with pytest.raises(SendError, match="CancelledError"):
        await link.send("reports", 0, [RECORD])

    assert link.replaced == 1
    assert await link.send("reports", 0, [RECORD]) == 1
    await link.close()


async def test_whoever_is_cancelled_while_sending_is_cancelled() -> None:
    """A stop of ours is not taken for a failure of the brokers."""
    link = FakeLink()
    link.producer.silent = True
    sending = asyncio.create_task(link.send("reports", 0, [RECORD]))
    await link.producer.sent.acquire()
    sending.cancel()

    with pytest.raises(asyncio.CancelledError):
        await sending
    await link.close()
