"""What stands behind an answer, by mode (contract.md section 4)."""

import asyncio
from dataclasses import dataclass, field

import pytest

from ingest.contract.push import Push, Route
from ingest.receiver import durable
from ingest.receiver.durable import AckMode
from ingest.runtime.errors import BusyError
from ingest.spool.base import SpoolBrokenError, SpoolFullError
from tests.wire.conftest import FakeSpool, Start, a_request

BODY = b'{"statusReportList":[{"smsMsgId":"m1","status":"DELIVRD"}]}'


@dataclass
class FakePublisher:
    """Kafka in memory.

    Attributes:
        pushes: what was confirmed.
        error: raised by every publish, if set.
        gate: a publish waits for it.
    """

    pushes: list[Push] = field(default_factory=list)
    error: BaseException | None = None
    gate: asyncio.Event | None = None

    async def publish(self, push: Push) -> None:
        """Confirm it, or raise."""
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        self.pushes.append(push)

    def available(self) -> bool:
        """Well unless it raises."""
        return self.error is None


async def test_mode_spool_never_asks_kafka(start: Start) -> None:
    """A full spool is 503 although Kafka is well."""
    publisher = FakePublisher()
    receiver = await start(mode=AckMode.SPOOL, spool=FakeSpool(error=SpoolFullError()), publisher=publisher)

    assert (await receiver.ask(a_request(BODY))).status == 503
    assert publisher.pushes == []


async def test_mode_kafka_answers_after_the_replicas(start: Start) -> None:
    """The push went to Kafka, nothing to the spool; an unusable body too, before its 400."""
    publisher = FakePublisher()
    receiver = await start(mode=AckMode.KAFKA, publisher=publisher)

    assert (await receiver.ask(a_request(BODY))).status == 200
    assert (await receiver.ask(a_request(b"no json"))).status == 400
    assert [push.body for push in publisher.pushes] == [BODY, b"no json"]
    assert receiver.spool.pushes == []


async def test_mode_kafka_without_confirmation_in_time_asks_to_come_back(start: Start) -> None:
    """The outcome is open: 503 with whole seconds, and the publish goes on."""
    publisher = FakePublisher(gate=asyncio.Event())
    receiver = await start(mode=AckMode.KAFKA, publisher=publisher, ack_timeout_s=0.5)

    response = await receiver.ask(a_request(BODY))

    assert (response.status, response.headers["retry-after"]) == (503, "5")
    assert receiver.count("dlrflow_reports_received_total") == 0
    assert publisher.gate is not None
    publisher.gate.set()
    await asyncio.sleep(0)
    await receiver.durable.settled()
    assert [push.body for push in publisher.pushes] == [BODY]


async def test_mode_kafka_answers_a_publish_that_was_given_up(start: Start) -> None:
    """Not confirmed is not kept, whatever the reason: the sender is asked to come back, not cut off."""
    receiver = await start(mode=AckMode.KAFKA, publisher=FakePublisher(error=asyncio.CancelledError()))

    assert (await receiver.ask(a_request(BODY))).status == 503


async def test_mode_kafka_passes_on_when_to_come_back(start: Start) -> None:
    """The publisher knows best; parts of a second are rounded up."""
    receiver = await start(mode=AckMode.KAFKA, publisher=FakePublisher(error=BusyError(7.2)))

    response = await receiver.ask(a_request(BODY))

    assert (response.status, response.headers["retry-after"]) == (503, "8")


async def test_publishes_whose_outcome_is_open_are_bounded(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was answered 503 still holds memory: beyond the bound the answer is 503 at once."""
    monkeypatch.setattr(durable, "OUTSTANDING_MAX_BYTES", len(BODY))
    publisher = FakePublisher(gate=asyncio.Event())
    receiver = await start(mode=AckMode.KAFKA, publisher=publisher, ack_timeout_s=0.5)
    assert (await receiver.ask(a_request(BODY))).status == 503
    assert publisher.gate is not None
    publisher.gate.set()
    publisher.gate = None

    await receiver.durable.settled()

    assert (await receiver.ask(a_request(BODY))).status == 200


@dataclass
class SilentPublisher(FakePublisher):
    """Kafka that confirms nothing while its gate is shut, and is known to."""

    begun: int = 0

    async def publish(self, push: Push) -> None:
        """See `FakePublisher`."""
        self.begun += 1
        await super().publish(push)

    def available(self) -> bool:
        """Well while the gate is open."""
        return self.gate is None or self.gate.is_set()


async def outstanding(publisher: SilentPublisher, body: bytes) -> int:
    """How many pushes a path to Kafka takes up that confirms none of them."""
    path = durable.InKafka(publisher, ack_timeout_s=0)
    for _ in range(20_000):
        with pytest.raises(BusyError):
            await path.keep(Push(1, Route.SINGLE, 1, body))
    assert publisher.gate is not None
    publisher.gate.set()
    await path.settled()
    return publisher.begun


async def test_empty_pushes_whose_outcome_is_open_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A push costs more than its body, so that even pushes without one cannot fill the memory."""
    monkeypatch.setattr(SilentPublisher, "available", lambda _: True)

    assert await outstanding(SilentPublisher(gate=asyncio.Event()), b"") <= 8192


async def test_a_kafka_that_is_away_is_not_given_more_and_more() -> None:
    """Some pushes try it all the same; the others are refused at once, and hold nothing."""
    begun = await outstanding(SilentPublisher(gate=asyncio.Event()), b"smsMsgId=1&status=DELIVRD")

    assert begun == durable.AWAITING_KAFKA_MAX


@pytest.mark.parametrize("error", [SpoolFullError(), SpoolBrokenError()])
async def test_mode_spool_or_kafka_falls_back(start: Start, error: Exception) -> None:
    """What the spool cannot take goes to Kafka; if that fails as well, 503."""
    publisher = FakePublisher()
    receiver = await start(mode=AckMode.SPOOL_OR_KAFKA, spool=FakeSpool(error=error), publisher=publisher)

    assert (await receiver.ask(a_request(BODY))).status == 200
    assert [push.body for push in publisher.pushes] == [BODY]
    publisher.error = BusyError(5)
    assert (await receiver.ask(a_request(BODY))).status == 503


async def test_mode_spool_or_kafka_prefers_the_spool(start: Start) -> None:
    """Kafka is not on the way while the spool is well."""
    publisher = FakePublisher()
    receiver = await start(mode=AckMode.SPOOL_OR_KAFKA, publisher=publisher)

    assert (await receiver.ask(a_request(BODY))).status == 200
    assert (len(receiver.spool.pushes), publisher.pushes) == (1, [])


@pytest.mark.parametrize(
    ("mode", "full", "away", "room"),
    [
        (AckMode.SPOOL, False, True, True),
        (AckMode.SPOOL, True, False, False),
        (AckMode.KAFKA, True, False, True),
        (AckMode.KAFKA, False, True, False),
        (AckMode.SPOOL_OR_KAFKA, True, False, True),
        (AckMode.SPOOL_OR_KAFKA, False, True, True),
        (AckMode.SPOOL_OR_KAFKA, True, True, False),
    ],
)
async def test_room_is_what_the_smallest_push_would_find(mode: AckMode, *, full: bool, away: bool, room: bool) -> None:
    """`/readyz` says 503 exactly while even the smallest push would get it."""
    spool = FakeSpool(error=SpoolFullError() if full else None)
    publisher = FakePublisher(error=BusyError(1) if away else None)

    assert durable.durable_path(mode, spool, publisher, ack_timeout_s=1).has_room() is room


async def test_bodies_in_memory_are_bounded(start: Start) -> None:
    """Over all requests: beyond the bound a push is asked to come back, and room comes back with the answers."""
    spool = FakeSpool(gate=asyncio.Event())
    receiver = await start(spool=spool, bodies_max_bytes=len(BODY))
    first = await receiver.connect()
    await first.send(a_request(BODY))
    await spool.arrived.wait()

    refused = await receiver.ask(a_request(BODY))
    assert spool.gate is not None
    spool.gate.set()

    assert refused.status == 503
    assert (await first.answer()).status == 200
    assert (await receiver.ask(a_request(BODY))).status == 200
    assert receiver.count("dlrflow_limited_total", limit="memory") == 1
