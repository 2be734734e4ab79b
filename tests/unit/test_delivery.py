"""The loop of the sinks, against a topic and a destination in memory."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import orjson
import pytest

from consumers.engine.delivery import Delivery, read_result
from consumers.engine.metrics import LAG
from consumers.engine.record import Record
from consumers.rows import Arrival, AwayError, RefusedError, WriteCount
from ingest.contract.dead_letter import DeadLetter
from ingest.contract.report import Reason, RejectedError

NOW_MS = 1_795_428_010_000


def a_value(message_id: str = "m1", revision: int | str = 1, **members: Any) -> bytes:
    """A result as it stands on the topic."""
    known = {
        "schemaVersion": 1,
        "smsMsgId": message_id,
        "revision": revision,
        "outcome": "delivered",
        "final": True,
        "total": 1,
        "received": 1,
        "missing": [],
        "segments": [{"sequence": 1, "status": "DELIVRD"}],
        "reason": "complete",
        "firstReceivedAt": "2026-11-23T10:00:00.000Z",
        "lastReceivedAt": "2026-11-23T10:00:00.000Z",
    }
    return orjson.dumps(known | members)


class ARecord(NamedTuple):
    """A record of the results topic."""

    partition: int
    offset: int
    value: bytes | None
    timestamp: int = NOW_MS - 3000
    key: bytes | None = b"m"
    headers: Sequence[tuple[str, bytes]] = (("ce_id", b"m/1"),)


class Clock:
    """Stands still; a sleep is over at once, and counted."""

    def __init__(self) -> None:
        self.sleeps = 0
        self.slept = asyncio.Event()

    def wall_ms(self) -> int:
        """The one moment."""
        return NOW_MS

    def monotonic(self) -> float:
        """As little."""
        return 0.0

    async def sleep(self, seconds: float) -> None:  # noqa: ARG002
        """Let others run."""
        self.sleeps += 1
        self.slept.set()
        await asyncio.sleep(0)


class World:
    """A topic, a destination and the dead letters, with a log of what happened in which order."""

    kind = "memory"

    def __init__(self, *batches: Sequence[Record]) -> None:
        self.batches = list(batches)
        self.stop = asyncio.Event()
        self.happened: list[str] = []
        self.rows: list[str] = []
        self.letters: list[DeadLetter] = []
        self.offsets: dict[int, int] = {}
        self.refuses: set[str] = set()
        self.away: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.writing = asyncio.Event()
        self.clock = Clock()
        self.more: dict[int, bool] = {}
        self.delivery = Delivery(
            topic="results", sink=self, source=self, dead_letters=Letters(self), clock=self.clock, stop=self.stop
        )

    def _answer(self, whom: str) -> None:
        if whom in self.away:
            self.away.remove(whom)
            self.happened.append(f"{whom} away")
            raise AwayError(whom)

    async def open(self) -> None:
        """Nothing to open."""

    async def close(self) -> None:
        """Nor to close."""

    async def write(self, batch: Sequence[Arrival]) -> WriteCount:
        """Take a batch unless something in it is refused."""
        self.writing.set()
        await self.gate.wait()
        self._answer("sink")
        ids = [arrival.result.sms_msg_id for arrival in batch]
        if self.refuses & set(ids):
            raise RefusedError("SQLSTATE 23514")
        self.rows += ids
        self.happened.append(f"write {len(ids)}")
        return WriteCount(len(ids), 0)

    async def poll(self, *, records_max: int, wait_s: float) -> Sequence[Record]:  # noqa: ARG002
        """The next batch; the end of them stops the loop."""
        self._answer("poll")
        if not self.batches:
            self.stop.set()
            return []
        return self.batches.pop(0)

    async def commit(self, offsets: Mapping[int, int]) -> None:
        """Keep them."""
        self._answer("commit")
        self.happened.append("commit")
        self.offsets |= offsets

    async def behind(self) -> Mapping[int, bool]:
        """As the test says."""
        return self.more


class Letters:
    """The dead-letters topic of a world."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def write(self, letters: Sequence[DeadLetter]) -> None:
        """Keep them."""
        self.world._answer("letters")
        self.world.letters += letters
        self.world.happened.append(f"letters {len(letters)}")


def headers_of(letter: DeadLetter) -> dict[str, str]:
    """The headers of a dead letter as text."""
    return {name: value.decode() for name, value in letter.headers}


async def test_the_offset_is_committed_after_the_rows_are_stored() -> None:
    """Never before: a crash in between repeats, it does not lose."""
    world = World([ARecord(0, 7, a_value("a")), ARecord(1, 3, a_value("b"))], [ARecord(0, 8, a_value("c"))])

    await world.delivery.run()

    assert world.happened == ["write 2", "commit", "write 1", "commit"]
    assert world.offsets == {0: 9, 1: 4}


async def test_a_record_that_is_no_result_is_a_dead_letter_before_its_offset() -> None:
    """With where it came from and its own headers; the results beside it are stored."""
    world = World([ARecord(0, 1, a_value("a")), ARecord(0, 2, b"{"), ARecord(0, 3, a_value("b"))])

    await world.delivery.run()

    assert world.rows == ["a", "b"]
    assert world.happened == ["write 2", "letters 1", "commit"]
    (letter,) = world.letters
    said = headers_of(letter)
    assert (said["dlq-stage"], said["dlq-reason"], said["dlq-sink"]) == ("sink", "not-json", "memory")
    assert (said["dlq-topic"], said["dlq-partition"], said["dlq-offset"]) == ("results", "0", "2")
    assert (said["dlq-attempt"], said["ce_id"]) == ("1", "m/1")
    assert (letter.key, letter.value) == (b"m", b"{")


@pytest.mark.parametrize("refused", [{"3"}, {"0", "9"}, set("0123456789")])
async def test_a_row_that_is_refused_is_found_and_only_it_is_left_out(refused: set[str]) -> None:
    """Halving finds each, the others are stored in their order."""
    world = World([ARecord(0, at, a_value(str(at))) for at in range(10)])
    world.refuses = refused

    await world.delivery.run()

    assert world.rows == [str(at) for at in range(10) if str(at) not in refused]
    assert [headers_of(letter)["dlq-offset"] for letter in world.letters] == sorted(refused)
    assert {headers_of(letter)["dlq-reason"] for letter in world.letters} == {"refused-by-database"}
    assert world.offsets == {0: 10}
    assert world.happened[-1] == "commit"


@pytest.mark.parametrize("whom", ["poll", "sink", "letters"])
async def test_what_is_away_is_waited_for(whom: str) -> None:
    """Nothing is lost or left out by it, and the wait shows in the health and ends."""
    world = World([ARecord(0, 1, a_value("a")), ARecord(0, 2, b"")])
    world.away = [whom] * 3

    await world.delivery.run()

    assert world.clock.sleeps == 3
    assert (world.rows, len(world.letters), world.offsets) == (["a"], 1, {0: 3})
    assert world.delivery.away == ""


async def test_a_commit_that_did_not_happen_is_made_later() -> None:
    """Nobody waits for it; it is made with the next look at the topic."""
    world = World([ARecord(0, 1, a_value("a"))], [])
    world.away = ["commit"]

    await world.delivery.run()

    assert world.happened == ["write 1", "commit away", "commit"]
    assert world.offsets == {0: 2}


async def test_a_stop_while_the_destination_is_away_commits_nothing() -> None:
    """The batch comes again after the start."""
    world = World([ARecord(0, 1, a_value("a"))])
    world.away = ["sink"] * 100
    running = asyncio.create_task(world.delivery.run())
    await world.clock.slept.wait()

    world.stop.set()
    await running

    assert world.rows == []
    assert world.offsets == {}


async def test_a_revocation_waits_for_the_batch_and_commits_it() -> None:
    """So that whoever has the partition next does not repeat it."""
    world = World([ARecord(0, 1, a_value("a"))])
    world.gate.clear()
    running = asyncio.create_task(world.delivery.run())
    await world.writing.wait()
    revoking = asyncio.create_task(world.delivery.on_revoked({0}))
    await asyncio.sleep(0)
    assert not revoking.done()

    world.gate.set()
    await revoking
    await running

    assert world.happened == ["write 1", "commit"]
    assert world.offsets == {0: 2}


async def test_a_revocation_does_not_wait_for_a_destination_that_is_away() -> None:
    """The group goes on; what is stored afterwards is not committed any more."""
    world = World([ARecord(0, 1, a_value("a"))])
    world.away = ["sink"] * 50
    running = asyncio.create_task(world.delivery.run())
    await world.clock.slept.wait()

    await world.delivery.on_revoked({0})
    await running

    assert world.rows == ["a"]
    assert world.offsets == {}


async def test_lag_is_the_age_of_what_is_not_stored() -> None:
    """Zero where the end of the partition was reached."""
    world = World([ARecord(0, 1, a_value("a")), ARecord(5, 1, a_value("b"))])
    world.more = {0: False, 5: True}

    await world.delivery.run()

    assert LAG.labels("0")._value.get() == 0
    assert LAG.labels("5")._value.get() == 3
    await world.delivery.on_revoked({0, 5})


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, Reason.NOT_JSON),
        (b"", Reason.NOT_JSON),
        (b"\xff", Reason.NOT_JSON),
        (b'{"smsMsgId":"\xff"}', Reason.NOT_JSON),
        (b"[]", Reason.BAD_FIELD),
        (b"{}", Reason.BAD_FIELD),
        (a_value(schemaVersion=2), Reason.BAD_FIELD),
        (a_value(outcome="lost"), Reason.BAD_FIELD),
        (a_value(revision="1"), Reason.BAD_FIELD),
        (a_value(firstReceivedAt="2026-11-23T10:00:00Z"), Reason.BAD_FIELD),
        (a_value(firstReceivedAt="2026-11-23T10:00:00.000+01:00"), Reason.BAD_FIELD),
        (a_value(lastReceivedAt="2026-13-23T10:00:00.000Z"), Reason.BAD_FIELD),
    ],
)
def test_what_is_no_result_is_named(value: bytes | None, reason: Reason) -> None:
    """A time that a sink could not order by is none."""
    with pytest.raises(RejectedError) as caught:
        read_result(value)

    assert caught.value.reason is reason
