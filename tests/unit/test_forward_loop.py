"""The forwarder: what is settled is in Kafka, every report has its place, and the accounts balance."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest

from ingest.contract.push import Push, Route
from ingest.contract.push import split as split_body
from ingest.contract.report import Reason
from ingest.forward.courier import Courier, ForwardTopics
from ingest.forward.direct import KafkaPublisher
from ingest.forward.loop import TAKE_MAX_BYTES, TAKES_IN_FLIGHT, Forwarder
from ingest.forward.publisher import Publisher
from ingest.forward.record import Record
from ingest.runtime.errors import BusyError
from ingest.spool.accounts import Accounts
from tests.fakes.forward import MemoryBacklog, MemoryLink, PromptClock, unclear

EXAMPLE = (Path(__file__).parents[1] / "data" / "batch_example.json").read_bytes()
RECEIVED_MS = 1_795_000_000_123


def batch(*elements: object, received_ms: int = RECEIVED_MS) -> Push:
    """A push with these elements."""
    return Push(received_ms, Route.BATCH, len(elements), orjson.dumps({"statusReportList": elements}))


def report(number: int, **more: object) -> dict[str, object]:
    """A usable report."""
    return {"smsMsgId": f"id-{number}", "status": "DELIVRD", **more}


def unsplittable(body: bytes = b"{") -> Push:
    """A push that is refused whole."""
    return Push(RECEIVED_MS, Route.BATCH, 1, body, Reason.NOT_JSON)


class World:
    """A forwarder with brokers in memory, and what can be asked of it afterwards."""

    def __init__(self) -> None:
        self.link = MemoryLink(reports=4, letters=3)
        self.clock = PromptClock()
        self.accounts = Accounts()
        self.publisher = Publisher(self.link, self.clock)
        self.courier = Courier(
            self.publisher,
            topics=ForwardTopics(reports="reports", dead_letters="letters"),
            accounts=self.accounts,
            clock=self.clock,
        )
        self.forwarder = Forwarder(self.courier, self.clock)

    async def forward(self, *pushes: Push) -> MemoryBacklog:
        """Publish these pushes and check that the accounts balance."""
        backlog = MemoryBacklog(pushes)
        self.accounts.attach(backlog)
        await self.forwarder.serve(backlog)
        assert self.accounts.unaccounted() == 0
        return backlog

    @property
    def letters(self) -> list[Record]:
        """The dead letters."""
        return [each for (topic, _), held in sorted(self.link.written.items()) if topic == "letters" for each in held]

    @property
    def reasons(self) -> list[str]:
        """Their reasons, sorted."""
        return sorted(dict(each.headers)["dlq-reason"].decode() for each in self.letters)


async def test_a_refused_push_is_one_dead_letter_for_good() -> None:
    """The sender was told that it has too many reports: none of them is published, however many are allowed now."""
    world = World()
    refused = Push(RECEIVED_MS, Route.BATCH, 1, batch(report(1), report(2)).body, Reason.TOO_MANY_REPORTS)

    await world.forward(refused)

    assert world.reasons == ["too-many-reports"]
    assert world.letters[0].value == refused.body
    assert world.link.values("reports") == []


async def test_the_example_body_becomes_two_records() -> None:
    """Key, value, headers and timestamp of both records are as the contract has them."""
    world = World()

    await world.forward(Push(RECEIVED_MS, Route.BATCH, 2, EXAMPLE))

    held = [each for records in world.link.written.values() for each in records]
    assert {dict(each.headers)["ce_id"] for each in held} == {b"2d422abdf28023a4116672c7", b"631ec23a01412c5fbae9ebe5"}
    for each in held:
        assert each.value is not None
        assert each.value in EXAMPLE
        assert each.key == orjson.loads(each.value)["smsMsgId"].encode()
        assert each.timestamp_ms == RECEIVED_MS
        assert [name for name, _ in each.headers] == [
            "ce_specversion", "ce_type", "ce_source", "ce_id", "ce_time", "content-type",
        ]  # fmt: skip
        assert dict(each.headers)["ce_source"] == b"/batchReport"


async def test_what_cannot_be_used_becomes_dead_letters() -> None:
    """Elements and bodies that cannot be used are dead letters with their bytes; the balance holds."""
    world = World()

    await world.forward(
        batch(report(1), {"status": "DELIVRD"}, report(2), 7),
        unsplittable(b"{not json"),
        batch(),
        Push(RECEIVED_MS, Route.SINGLE, 1, b"smsMsgId=a&status=DELIVRD"),
    )

    assert world.reasons == ["missing-id", "not-an-object", "not-json"]
    assert sorted(each.value or b"" for each in world.letters) == [b"7", b'{"status":"DELIVRD"}', b"{not json"]
    assert len(world.link.values("reports")) == 3
    assert (world.accounts.published, world.accounts.dead_lettered) == (3, 3)


async def test_a_push_keeps_the_limit_it_was_accepted_with() -> None:
    """A lower limit of reports does not refuse what was already answered."""
    world = World()

    await world.forward(batch(*(report(number) for number in range(40))))

    assert len(world.link.values("reports")) == 40
    assert world.letters == []


async def test_a_fault_of_ours_neither_loses_a_body_nor_holds_up_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unexpected error in splitting makes the body a dead letter with the reason `internal`."""

    def faulty(route: Route, body: bytes) -> object:
        if b"id-2" in body:
            raise KeyError("id-2")
        return split_body(route, body)

    monkeypatch.setattr("ingest.forward.parcel.split", faulty)
    world = World()
    poison = batch(report(2), report(3))

    await world.forward(batch(report(1)), poison, batch(report(4)))

    assert world.reasons == ["internal"]
    assert world.letters[0].value == poison.body
    assert len(world.link.values("reports")) == 2
    assert (world.accounts.published, world.accounts.dead_lettered) == (2, 2)


async def test_settling_follows_the_confirmation() -> None:
    """While Kafka has not confirmed, nothing is settled and nothing counts as published."""
    world = World()
    world.link.gate.clear()
    backlog = MemoryBacklog([batch(report(1)), batch(report(2))])
    world.accounts.attach(backlog)
    serving = asyncio.create_task(world.forwarder.serve(backlog))
    await world.link.arrived.wait()
    assert backlog.settled == []
    assert world.accounts.published == 0
    assert world.accounts.unaccounted() == 0

    world.link.gate.set()
    await serving
    assert backlog.settled[-1] == 11
    assert world.accounts.published == 2


async def test_takes_are_settled_in_their_order() -> None:
    """However the confirmations come, positions only rise, and the last is the last push."""
    world = World()
    world.link.batch_records = 3
    world.link.troubles.extend(unclear() for _ in range(20))
    pushes = [batch(report(number, extend="x" * 1000), report(number)) for number in range(1500)]

    backlog = await world.forward(*pushes)

    assert backlog.settled == sorted(backlog.settled)
    assert backlog.settled[-1] == 10 + len(pushes) - 1
    assert len(backlog.settled) > 1
    assert len(world.link.values("reports")) == 2 * len(pushes)


async def test_bytes_in_flight_are_bounded() -> None:
    """While Kafka is away no more is taken than the window allows, however much is there."""
    world = World()
    world.link.gate.clear()
    body = batch(*(report(number, extend="x" * 1000) for number in range(100)))
    backlog = MemoryBacklog([body] * 200, ends=True)
    world.accounts.attach(backlog)
    serving = asyncio.create_task(world.forwarder.serve(backlog))
    await world.link.arrived.wait()
    for _ in range(2000):
        await asyncio.sleep(0)

    held = backlog.handed * len(body.body)
    assert held <= TAKES_IN_FLIGHT * (TAKE_MAX_BYTES + len(body.body))
    assert backlog.largest_take <= TAKE_MAX_BYTES + len(body.body)

    world.link.gate.set()
    await serving
    assert len(world.link.values("reports")) == 200 * 100


async def test_resending_repeats_the_same_record() -> None:
    """After an unclear batch the same bytes, identity and timestamp are sent, whatever the clock says by then."""
    world = World()
    world.link.troubles.extend(unclear() for _ in range(4))

    await world.forward(batch(report(1)))

    (written,) = [each for held in world.link.written.values() for each in held]
    assert written.timestamp_ms == RECEIVED_MS
    assert world.clock.slept


async def test_a_record_that_kafka_refuses_becomes_a_dead_letter() -> None:
    """It is counted as one, with the reason `refused-by-kafka` and its key."""
    world = World()
    world.link.refuses = lambda topic, each: topic == "reports" and each.key == b"id-2"

    await world.forward(batch(report(1), report(2), report(3)))

    assert world.reasons == ["refused-by-kafka"]
    (letter,) = world.letters
    assert letter.key == b"id-2"
    assert letter.value == b'{"smsMsgId":"id-2","status":"DELIVRD"}'
    assert dict(letter.headers)["dlq-unit"] == b"element"
    assert (world.accounts.published, world.accounts.dead_lettered) == (2, 1)


async def test_a_dead_letter_that_kafka_refuses_goes_to_quarantine() -> None:
    """Its bytes are kept in a file before the push is settled, also if the first try fails."""
    world = World()
    world.link.refuses = lambda topic, each: topic == "letters" or each.key == b"id-2"
    backlog = MemoryBacklog([batch(report(1), report(2), 7), unsplittable(b"{no")])
    world.accounts.attach(backlog)
    await asyncio.sleep(0)
    serving = asyncio.create_task(world.forwarder.serve(backlog))
    await world.link.arrived.wait()
    backlog.broken.append(OSError(28, "No space left on device"))
    await serving

    assert sorted(value for value, _ in backlog.quarantined) == [
        b"7", b'{"smsMsgId":"id-2","status":"DELIVRD"}', b"{no",
    ]  # fmt: skip
    assert not any("id-2" in note for _, note in backlog.quarantined)
    assert world.accounts.unaccounted() == 0
    assert (world.accounts.published, world.accounts.quarantined) == (1, 3)


async def test_a_device_that_does_not_read_is_asked_again() -> None:
    """An error of `take` is waited out."""
    world = World()
    backlog = MemoryBacklog([batch(report(1))])
    world.accounts.attach(backlog)
    backlog.broken.append(OSError(5, "Input/output error"))

    await world.forwarder.serve(backlog)

    assert world.accounts.published == 1


async def test_a_delivery_that_is_cancelled_from_inside_ends_the_forwarding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever started it hears of it and starts anew: waiting on would settle nothing for ever, silently."""
    world = World()

    async def cancelled(*_arguments: object) -> int:
        raise asyncio.CancelledError

    monkeypatch.setattr(world.link, "send", cancelled)

    with pytest.RaisesGroup(RuntimeError):
        await asyncio.wait_for(world.forwarder.serve(MemoryBacklog([batch(report(1))], ends=False)), 10)


async def test_a_new_push_is_settled_without_another_one_coming() -> None:
    """Settling does not wait for the next push, and whoever flushes is told."""
    world = World()
    backlog = MemoryBacklog(ends=False)
    world.accounts.attach(backlog)
    serving = asyncio.create_task(world.forwarder.serve(backlog))
    await world.forwarder.until_settled(backlog)
    push = batch(report(1))
    backlog.add(push)
    world.accounts.received += push.reports

    await world.forwarder.until_settled(backlog)

    assert backlog.settled == [10]
    assert world.accounts.unaccounted() == 0
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving


async def test_adopted_folders_are_published_one_after_the_other_and_let_go() -> None:
    """The oldest first, each closed when it is empty."""
    world = World()
    folders = [MemoryBacklog([batch(report(number))], name=f"folder-{number}") for number in range(3)]
    for folder in folders:
        world.accounts.attach(folder)

    await world.forwarder.serve_all(folders)

    assert all(folder.closed for folder in folders)
    assert world.accounts.published == 3


async def test_a_folder_is_published_while_the_next_one_is_still_being_read() -> None:
    """A large folder holds up only itself; what was found and not published is let go in the end."""
    world = World()
    first, second = (MemoryBacklog([batch(report(number))], name=f"folder-{number}") for number in range(2))
    world.accounts.attach(first)
    read, found = asyncio.Event(), asyncio.Event()

    async def adopt() -> AsyncIterator[MemoryBacklog]:
        yield first
        await read.wait()
        world.link.gate.clear()
        yield second
        found.set()
        await asyncio.Event().wait()

    serving = asyncio.create_task(world.forwarder.serve_adopted(adopt))
    async with asyncio.timeout(10):
        await world.forwarder.until_settled(first)
        assert world.accounts.published == 1
        read.set()
        await found.wait()
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving

    assert (first.closed, second.closed) == (True, True)
    world.link.gate.set()
    await world.publisher.close()


async def test_folders_that_cannot_be_looked_for_are_looked_for_again() -> None:
    """What was found before that is published."""
    world = World()
    first, second = (MemoryBacklog([batch(report(number))], name=f"folder-{number}") for number in range(2))
    looks = iter([first, second])

    async def adopt() -> AsyncIterator[MemoryBacklog]:
        if (folder := next(looks, None)) is None:
            await asyncio.Event().wait()
        else:
            yield folder
            raise OSError(5, "Input/output error")

    serving = asyncio.create_task(world.forwarder.serve_adopted(adopt))
    async with asyncio.timeout(10):
        await world.forwarder.until_settled(first)
        await world.forwarder.until_settled(second)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving

    assert world.accounts.published == 2


async def test_an_interrupted_adoption_lets_the_folders_go() -> None:
    """What is not published can be taken by another process."""
    world = World()
    world.link.gate.clear()
    folders = [MemoryBacklog([batch(report(number))], name=f"folder-{number}") for number in range(2)]
    serving = asyncio.create_task(world.forwarder.serve_all(folders))
    await world.link.arrived.wait()
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving

    assert all(folder.closed for folder in folders)
    assert [folder.settled for folder in folders] == [[], []]
    world.link.gate.set()
    await world.publisher.close()


async def test_direct_publishing_counts_what_it_confirms() -> None:
    """A push published on the way to the answer counts as received and published at once."""
    world = World()

    await KafkaPublisher(world.courier, world.publisher).publish(batch(report(1), 7))

    assert (world.accounts.received, world.accounts.published, world.accounts.dead_lettered) == (2, 1, 1)
    assert world.accounts.unaccounted() == 0


async def test_direct_publishing_does_not_confirm_what_has_no_place() -> None:
    """Without a spool a dead letter that Kafka refuses must not be answered."""
    world = World()
    world.link.refuses = lambda topic, _: topic == "letters"

    with pytest.raises(BusyError):
        await KafkaPublisher(world.courier, world.publisher).publish(unsplittable())

    assert world.accounts.received == 0
