"""The life of one partition: what it does with time, revocation, refusals and doubts, without any broker."""

import asyncio
import contextlib
import errno
import os
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from prometheus_client import REGISTRY

from consumers.engine import partition as engine_partition
from consumers.engine.clock import Watermark
from consumers.engine.cycle import Rules, digest_of
from consumers.engine.kafka_raw import UnreadableError
from consumers.engine.partition import PartitionWorker, Phase, Tools
from consumers.engine.pipeline import Pace
from consumers.engine.routing import Outlet, Routing
from consumers.engine.shelf import Shelf
from consumers.engine.transaction import DoubtError, FencedError, RefusedError, Send
from consumers.entry import Cursor, Entry, LedgerDamagedError, Position
from consumers.ledger.partition import Sizes
from consumers.ledger.store import Identity, Store
from ingest.runtime.errors import FoundError
from ingest.runtime.files import RealFileSystem
from ingest.runtime.logfile import HEADER_BYTES as FRAME_BYTES
from tests.assembling import a_report
from tests.fakes.ledgers import MemoryLedger
from tests.unit.test_engine_assignment import Log
from tests.unit.test_engine_cycle import NOW_MS, Given, given

IDLE_CYCLE_MS = 60_000


class Time:
    """A clock that moves only when somebody sleeps, or a poll finds nothing."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def wall_ms(self) -> int:
        """Moves with the other one."""
        return NOW_MS + int(self.now_s * 1000)

    def monotonic(self) -> float:
        """Seconds."""
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        """Over at once."""
        self.now_s += seconds
        await asyncio.sleep(0)


class World:
    """A partition's input, changelog and transactions in memory, and the worker that is tested."""

    def __init__(self, records: Sequence[Given] = (), *, partitions: int = 1, accept_loss: bool = False) -> None:
        self.time = Time()
        self.records = list(records)
        self.position = 0
        self.paused = True
        self.polls: list[int] = []
        self.idle_polls_max = 10_000
        self.ledger = MemoryLedger()
        self.log: list[tuple[int, bytes]] = []
        self.log_start = 0
        self.commits: list[tuple[list[Send], int]] = []
        self.faults: dict[int, BaseException] = {}
        self.tries = 0
        self.settled = 0
        self.gate: asyncio.Event | None = None
        self.committing = asyncio.Event()
        self.reads_cancelled = 0
        self.ended: list[BaseException | None] = []
        self.commit_steps: Callable[[], int] = lambda: 0
        self.shelf = Shelf(SimpleNamespace(open=lambda _: self.ledger, close=lambda: None))
        rules = Rules(
            reports_topic="reports", partition=0, partitions=partitions, timeout_ms=10_000, late_window_ms=10_000
        )
        outlet = Outlet(topic="results", partitions=1)
        routing = Routing(
            results=outlet, dead_letters=Outlet(topic="dead", partitions=3), partition=0, partitions=partitions
        )
        tools = Tools(
            reports=self,
            shelf=self.shelf,
            changelog=self._changelog,
            restores=asyncio.Semaphore(1),
            owned=lambda: 1,
            clock=self.time,
            accept_loss=accept_loss,
        )
        pace = Pace(commit_interval_s=0.2, idle_cycle_ms=IDLE_CYCLE_MS)
        self.worker = PartitionWorker(rules, routing, pace, tools, self)  # type: ignore[arg-type]

    # What the consumer does.

    async def poll(self, partition: int, *, timeout_s: float, records_max: int) -> Sequence[Given]:
        """What stands at the position; nothing costs the whole wait."""
        await asyncio.sleep(0)
        found = [] if self.paused else self.records[self.position : self.position + records_max]
        self.position += len(found)
        self.polls.append(len(found))
        if not found:
            self.time.now_s += timeout_s
            self.idle_polls_max -= 1
            if self.idle_polls_max <= partition:
                await asyncio.Event().wait()
        return found

    async def watermark(self, partition: int) -> Watermark:
        """Always answered just now."""
        assert partition == 0
        return Watermark(position=self.position, high=len(self.records), answered_ms=self.time.wall_ms())

    async def committed(self, partition: int) -> int | None:
        """The group's offset follows the transactions."""
        assert partition == 0
        return self.commits[-1][1] if self.commits else None

    async def bounds(self, partition: int) -> tuple[int, int]:
        """All of it."""
        return partition, len(self.records)

    def pause(self, partition: int) -> None:
        """Hand out nothing."""
        assert partition == 0
        self.paused = True

    def resume_at(self, partition: int, offset: int) -> None:
        """Hand out from there."""
        self.paused = bool(partition)
        self.position = offset

    # What the transactions do.

    async def settle(self) -> None:
        """A new producer."""
        self.settled += 1

    def look(self) -> None:
        """Every end stands."""

    async def commit(self, sends: Sequence[Send], changelog: Sequence[bytes], next_offset: int) -> list[int]:
        """Commit, or fail as told: a doubt after the fact is one whose cycle has happened."""
        self.tries += 1
        self.committing.set()
        if self.gate is not None:
            await self.gate.wait()
        for _ in range(self.commit_steps()):
            await asyncio.sleep(0)
        fault = self.faults.get(self.tries)
        if fault is not None and "after" not in str(fault):
            raise fault
        self.commits.append((list(sends), next_offset))
        first = max(self.log_start, self.log[-1][0] + 2 if self.log else 0)
        offsets = [first + index for index in range(len(changelog))]
        self.log += zip(offsets, changelog, strict=True)
        if fault is not None:
            raise fault
        return offsets

    def let_go(self) -> None:
        """Nothing to do."""

    # What the test does.

    @contextlib.asynccontextmanager
    async def _changelog(self, partition: int) -> AsyncIterator[Log]:
        assert partition == 0
        left = [record for record in self.log if record[0] >= self.log_start]
        yield Log(left, start=self.log_start)
        if self.reads_cancelled:
            self.reads_cancelled -= 1
            raise asyncio.CancelledError

    @contextlib.asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """The worker at work, stopped at the end."""
        self.worker.start(lambda task: self.ended.append(None if task.cancelled() else task.exception()))
        try:
            yield
        finally:
            await self.worker.stop(1)

    async def until(self, condition: Callable[[], Any]) -> None:
        """Let the worker go on until something holds."""
        async with asyncio.timeout(5):
            while not condition():  # noqa: ASYNC110 - the worker goes on in steps of the loop
                await asyncio.sleep(0)

    def results(self) -> list[bytes | None]:
        """Keys of all results, in order."""
        return [
            record.key
            for sends, _ in self.commits
            for send in sends
            if send.topic == "results"
            for record in send.records
        ]

    def letters(self) -> list[bytes | None]:
        """Keys of all dead letters, in order."""
        return [
            record.key for sends, _ in self.commits for send in sends if send.topic == "dead" for record in send.records
        ]


def some(count: int) -> list[Given]:
    """Records of so many messages."""
    return given(*(a_report(f"m{number}") for number in range(count)))


def keys(count: int) -> list[bytes]:
    """Their keys."""
    return [b"m%d" % number for number in range(count)]


def shown_lag() -> float | None:
    """What `/metrics` says of partition 0."""
    return REGISTRY.get_sample_value("dlrflow_lag_seconds", {"partition": "0"})


async def test_an_idle_partition_keeps_its_position_alive() -> None:
    """Once in a while it writes a cycle of nothing but its position, so that the changelog never ages past it."""
    world = World(some(3))

    async with world.working():
        await world.until(lambda: world.time.now_s > 3.5 * IDLE_CYCLE_MS / 1000)

    assert world.results() == keys(3)
    assert len(world.commits) == 4
    assert [next_offset for _, next_offset in world.commits] == [3, 3, 3, 3]


async def test_a_partition_that_never_had_a_cycle_writes_none() -> None:
    """An empty new partition is silent."""
    world = World()

    async with world.working():
        await world.until(lambda: world.time.now_s > 2 * IDLE_CYCLE_MS / 1000)

    assert world.commits == []


async def test_caught_up_cycles_keep_their_interval() -> None:
    """Many small arrivals are not as many transactions."""
    world = World(some(1))
    world.idle_polls_max = 1

    async with world.working():
        await world.until(lambda: len(world.commits) == 1)
        began_s = world.time.now_s
        world.records += given(a_report("later"), first=1)
        await world.until(lambda: len(world.commits) == 2)

    assert world.time.now_s - began_s == pytest.approx(0.2)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_doubtful_cycle_is_in_the_changelog_once(when: str) -> None:
    """Whether it happened before the doubt or not, the partition goes on right behind it."""
    world = World(some(9000))
    world.faults = {2: DoubtError(when)}

    async with world.working():
        await world.until(lambda: world.commits and world.commits[-1][1] == 9000)

    assert world.results() == keys(9000)
    assert world.settled == 2


async def test_a_reader_that_cancels_its_own_fetch_is_a_doubt_and_no_end() -> None:
    """A client of the changelog that raises a cancellation when it is stopped: the partition begins again."""
    world = World(some(10))
    world.reads_cancelled = 2

    async with world.working():
        await world.until(lambda: world.commits)
        assert world.ended == []

    assert world.results() == keys(10)
    assert world.settled == 3


def expired(missing: int, *, accept_loss: bool = False) -> World:
    """A world with a journal of one waiting message, and a changelog that expired so many offsets behind it."""
    world = World(some(2), accept_loss=accept_loss)
    entry = Entry(digest_of(b"w"), NOW_MS, first_seen=True, waiting=True, payload=b"")
    world.ledger.apply([(4, world.ledger.encode([entry], Position(3, 1, NOW_MS, Cursor()))[0])])
    world.log_start = 6 + missing
    return world


async def test_a_position_that_only_the_journal_has_is_written_down_again() -> None:
    """The changelog expired up to its end, the journal has it all: the next cycle says the position at once."""
    world = expired(0)
    world.records = world.records[:1]

    async with world.working():
        await world.until(lambda: world.commits)

    assert world.log[0][0] == 6
    assert world.ledger.discarded == 0
    assert world.ledger.position is not None
    assert world.ledger.position.cycle == 4
    assert world.ledger.waiting() == 1
    assert world.results() == []


async def test_a_journal_survives_a_refusal_to_go_on() -> None:
    """It may be the last copy of what the group remembers: only who accepts the loss does without it."""
    refused, accepted = expired(1), expired(1, accept_loss=True)

    async with refused.working():
        await refused.until(lambda: refused.ended)
    async with accepted.working():
        await accepted.until(lambda: accepted.commits)

    assert isinstance(refused.ended[0], FoundError)
    assert "may have held more than the journal" in str(refused.ended[0])
    assert refused.ledger.discarded == 0
    assert refused.ledger.waiting() == 1
    assert accepted.ledger.discarded == 1
    assert accepted.results() == keys(2)


async def test_a_ledger_that_fails_after_the_commit_is_read_up() -> None:
    """The cycle has happened; the changelog gives it back."""
    world = World(some(9000))
    apply, failures = world.ledger.apply, [OSError("no space")]

    def failing(records: Sequence[tuple[int, bytes]]) -> int:
        if failures and world.tries == 2:
            raise failures.pop()
        return apply(records)

    world.ledger.apply = failing  # type: ignore[method-assign]

    async with world.working():
        await world.until(lambda: world.commits and world.commits[-1][1] == 9000)

    assert failures == []
    assert world.results() == keys(9000)


async def test_the_record_that_kafka_refuses_is_found() -> None:
    """The cycle is halved until it stands alone, becomes a dead letter, and the others go through."""
    world = World(some(500))
    plain = world.commit

    async def picky(sends: Sequence[Send], changelog: Sequence[bytes], next_offset: int) -> list[int]:
        if any(record.key == b"m333" for send in sends if send.topic == "results" for record in send.records):
            raise RefusedError
        return await plain(sends, changelog, next_offset)

    world.commit = picky  # type: ignore[method-assign]

    async with world.working():
        await world.until(lambda: world.commits and world.commits[-1][1] == 500)

    assert world.letters() == [b"m333"]
    assert world.results() == [key for key in keys(500) if key != b"m333"]


async def test_what_cannot_even_be_a_dead_letter_waits_for_an_operator() -> None:
    """Refused as a result and as a dead letter: the partition stands. Resumed, it blames nobody for what was then."""
    world = World(some(1))
    world.faults = {1: RefusedError("result"), 2: RefusedError("result alone"), 3: RefusedError("dead letter")}

    async with world.working():
        await world.until(lambda: world.worker.phase is Phase.PAUSED)
        assert world.commits == []
        world.worker.resume()
        await world.until(lambda: world.commits)

    assert world.letters() == []
    assert world.results() == [b"m0"]


async def test_no_record_is_blamed_for_a_timeout_that_kafka_refuses() -> None:
    """The record of the same cycle goes through; the partition then waits for an operator."""
    world = World(given(a_report("waits", 1, 2)))
    plain = world.commit

    async def picky(sends: Sequence[Send], changelog: Sequence[bytes], next_offset: int) -> list[int]:
        if any(record.key == b"waits" for send in sends if send.topic == "results" for record in send.records):
            raise RefusedError
        return await plain(sends, changelog, next_offset)

    world.commit = picky  # type: ignore[method-assign]

    async with world.working():
        await world.until(lambda: world.commits)
        world.time.now_s += 20
        world.records += given(a_report("innocent"), first=1)
        await world.until(lambda: world.worker.phase is Phase.PAUSED)

    assert world.results() == [b"innocent"]
    assert world.letters() == []


async def test_timeouts_and_records_that_were_parted_come_together_again() -> None:
    """A refusal that was over by the next try costs nothing but itself."""
    world = World(given(a_report("waits", 1, 2)))

    async with world.working():
        await world.until(lambda: world.time.now_s > 7)
        world.time.now_s += 4  # past the timeout, and still within what counts as caught up
        world.faults = {2: RefusedError("once")}
        world.records += given(a_report("record"), first=1)
        await world.until(lambda: len(world.results()) == 2)

    assert world.results() == [b"record", b"waits"]
    assert world.letters() == []


async def test_the_lag_of_a_held_partition_ages_until_it_goes_on() -> None:
    """Nobody processes its records: their age is what an alarm needs to see, at every look."""
    world = World([Given(number, b"k", b"no json") for number in range(1500)])

    async with world.working():
        await world.until(lambda: world.worker.phase is Phase.PAUSED)
        world.time.now_s = 100
        assert shown_lag() == 100
        world.time.now_s = 200
        assert shown_lag() == 200
        world.worker.resume()
        await world.until(lambda: world.commits)
        await world.until(lambda: shown_lag() == 0)

    assert shown_lag() is None


async def test_the_lag_ages_while_kafka_is_away() -> None:
    """What stands in a partition that cannot be looked at is not known: it counts from the last time it was."""
    world = World(some(3))
    answered = world.watermark

    async with world.working():
        await world.until(lambda: world.commits and world.polls[-1] == 0)
        away_s = world.time.now_s

        async def stale(partition: int) -> Watermark:
            return replace(await answered(partition), answered_ms=NOW_MS + int(away_s * 1000))

        world.watermark = stale  # type: ignore[method-assign]
        await world.until(lambda: world.time.now_s > away_s + 50)
        lag_s = shown_lag()

    assert lag_s is not None
    assert 40 < lag_s <= world.time.now_s - away_s + 1


async def test_a_fenced_partition_ends() -> None:
    """It does not begin again by itself: only a new assignment may."""
    world = World(some(1))
    world.faults = {1: FencedError("taken over")}

    async with world.working():
        await world.until(lambda: world.ended)

    assert isinstance(world.ended[0], FencedError)
    assert world.settled == 1
    assert world.ledger.closed


async def test_a_commit_under_way_may_end_when_the_partition_is_revoked() -> None:
    """The group waits for it a little; afterwards the ledger stands on the shelf, with the cycle in it."""
    world = World(some(5))
    world.gate = asyncio.Event()

    async with world.working():
        await world.committing.wait()
        stopping = asyncio.create_task(world.worker.stop(5))
        await asyncio.sleep(0)
        world.gate.set()
        await stopping

    assert world.results() == keys(5)
    assert not world.ledger.closed
    assert world.ledger.position is not None
    assert world.ledger.position.next_offset == 5


async def test_a_commit_that_takes_too_long_is_dropped_when_the_partition_is_revoked() -> None:
    """The next owner settles it; we are gone."""
    world = World(some(5))
    world.gate = asyncio.Event()

    async with world.working():
        await world.committing.wait()
        await world.worker.stop(0.01)

    assert world.commits == []
    assert world.ledger.position is None
    world.shelf.close()
    assert world.ledger.closed


class UselessLedger(MemoryLedger):
    """Local state that is damaged, on a disk that does not even let it be thrown away."""

    def __init__(self, closed: Callable[[], None]) -> None:
        super().__init__()
        self._closed = closed

    def lookup(self, digests: Sequence[bytes]) -> list[bytes | None]:  # noqa: ARG002 - the protocol names it
        """Find damage."""
        raise LedgerDamagedError("a bit flipped")

    def discard(self) -> None:
        """Fail."""
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def close(self) -> None:
        """Say so."""
        self._closed()


async def test_damage_that_cannot_be_thrown_away_is_left_behind() -> None:
    """The partition goes on with a ledger opened anew, restored from the changelog."""
    world = World(some(3))

    def replaced() -> None:
        world.ledger = MemoryLedger()

    world.ledger = UselessLedger(replaced)

    async with world.working():
        await world.until(lambda: len(world.commits) == 1)

    assert world.results() == keys(3)
    assert world.ended == [None]


def spoil_head(state: Path) -> None:
    """Overwrite where the first frame of the second generation begins."""
    second = sorted(state.rglob("journal-*.log"))[1]
    with second.open("r+b") as file:
        file.write(bytes(FRAME_BYTES))


async def test_damage_that_only_deadlines_come_upon_costs_no_timeout(tmp_path: Path) -> None:
    """No other answer rests on the head of a frame: who looks for what is due there has all restored, and says so."""
    identity = Identity(group="group", topic="reports", partitions=1)
    each_cycle_a_file = Sizes(generation_ms=1, preallocate_bytes=4096)
    store = Store(tmp_path, RealFileSystem(), identity, each_cycle_a_file)
    world = World()
    with contextlib.closing(store), contextlib.closing(store.open(0)) as ledger:
        world.shelf.put(0, ledger)
        with structlog.testing.capture_logs() as logs:
            async with world.working():
                for number in range(4):
                    world.records += given(a_report(f"m{number}", 1, 2), first=number)
                    await world.until(lambda: len(world.commits) == len(world.records))
                spoil_head(tmp_path)
                await world.until(lambda: len(world.results()) >= len(world.records))

    assert world.results() == keys(4)
    (doubt,) = (line for line in logs if line["event"].startswith("in doubt"))
    assert "has no frame where one was written" in doubt["error"]


class Vanished(MemoryLedger):
    """Local state whose folder is gone."""

    def apply(self, records: Sequence[tuple[int, bytes]]) -> int:  # noqa: ARG002 - the protocol names it
        """Find no file."""
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))


async def test_state_whose_folder_is_gone_is_opened_anew() -> None:
    """The same ledger would fail for ever."""
    world = World(some(3))
    gone = world.ledger = Vanished()

    async with world.working():
        await world.until(lambda: world.settled == 2)
        assert gone.closed
        world.ledger = MemoryLedger()
        await world.until(lambda: world.ledger.position is not None)

    assert world.results() == keys(3)


async def test_an_accepted_loss_is_written_down_for_whoever_comes_next() -> None:
    """With the first cycle, as of its own time, and with all after it."""
    world = World(some(3), accept_loss=True)
    world.log_start = 5
    world.log = [(5, MemoryLedger().encode([], Position(9, 1, NOW_MS, Cursor()))[0])]
    world.faults = {1: DoubtError("before")}

    async with world.working():
        await world.until(lambda: world.commits)
        world.records += given(a_report("later"), first=3)
        await world.until(lambda: world.results() == [b"m1", b"m2", b"later"])

    first, *others = _positions(world)[1:]
    assert first.clock_ms > NOW_MS
    assert first.memory_from_s * 1000 >= first.clock_ms
    assert [position.memory_from_s for position in others] == [first.memory_from_s] * len(others)


async def test_a_changelog_that_is_made_anew_under_a_running_partition_stops_it() -> None:
    """With status 1, and the journal as it was: nothing else holds what was remembered."""
    world = World(some(2))

    async with world.working():
        await world.until(lambda: world.commits)
        world.log.clear()
        world.records += given(a_report("later"), first=2)
        await world.until(lambda: world.ended)

    assert isinstance(world.ended[0], FoundError)
    assert world.ledger.discarded == 0
    assert world.ledger.position is not None
    assert world.ledger.position.next_offset == 2


async def test_after_a_pause_longer_than_the_late_window_memory_begins_anew() -> None:
    """What was answered before is forgotten: a changelog that begins there is whole."""
    world = World(some(2))

    async with world.working():
        await world.until(lambda: world.commits)
        world.time.now_s += 10.1
        world.records += given(a_report("later"), first=2)
        await world.until(lambda: len(world.results()) == 3)

    before, after = _positions(world)
    assert before.memory_from_s == 0
    assert after.memory_from_s * 1000 >= after.clock_ms


async def test_a_position_that_only_the_journal_had_is_written_with_its_cursor() -> None:
    """Once with what is known at once, and again when the deadlines before it were looked through."""
    world = World(some(3))
    async with world.working():
        await world.until(lambda: world.commits)
    old = world.log[-1][0]
    again = World(world.records)
    again.ledger, again.commits, again.log_start = world.ledger, world.commits, old + 2
    again.idle_polls_max = 20
    plain, unknown = again.watermark, iter(range(3))

    async def watermark(partition: int) -> Watermark:
        at = await plain(partition)
        return at if next(unknown, None) is None else replace(at, answered_ms=None)

    again.watermark = watermark  # type: ignore[method-assign]

    async with again.working():
        await again.until(lambda: again.idle_polls_max == 0)

    assert _positions(again)[-1].cursor.offset > old


def _positions(world: World) -> list[Position]:
    """Of all cycles in the changelog."""
    return [position for _, value in world.log if (position := MemoryLedger().position_of(value))]


async def test_a_partition_that_nobody_can_read_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another broker may have it whole after a while, without an operator."""
    monkeypatch.setattr(engine_partition, "DAMAGED_AGAIN_S", 0.01)
    world = World(some(3))
    plain, failures = world.poll, [UnreadableError("damaged")]

    async def poll(partition: int, **how: Any) -> Sequence[Given]:
        if failures:
            raise failures.pop()
        return await plain(partition, **how)

    world.poll = poll  # type: ignore[method-assign]

    async with world.working():
        await world.until(lambda: world.worker.phase is Phase.PAUSED)
        await world.until(lambda: world.results() == keys(3))
