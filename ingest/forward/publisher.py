"""Records to partitions: one lane each, which sends one batch after the other and never gives up."""

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain, count, islice
from typing import Final, NamedTuple, Protocol

import msgspec
import structlog

from ingest.forward.link import Link, NoPartitionError, RefusedError, SendError
from ingest.forward.record import Record
from ingest.runtime.backoff import Backoff
from ingest.runtime.clock import Clock
from ingest.runtime.partitioner import partitions_of

RETRY_FIRST_S: Final = 0.05
RETRY_MOST_S: Final = 5.0
"""Bounds of the pause before a batch is sent again."""

DOUBTS_MAX: Final = 5
"""How often in a row a batch is tried after an answer that does not say whether its records are the cause."""

STALL_S: Final = 5.0
"""A lane that has waited this long for one confirmation counts as not available."""

_log = structlog.get_logger(__name__)


class Refused(NamedTuple):
    """A record that the brokers refuse for good, and the name of their reason."""

    record: Record
    why: str


class Publisher:
    """Writes records and says when every one of them has its verdict.

    What it holds is bounded by its callers: each bounds the bytes that it has given and not got back.

    Args:
        link: the way to the brokers. It is closed with the publisher.
        clock: paces repeated attempts and stamps anew what had an impossible timestamp.
    """

    def __init__(self, link: Link, clock: Clock) -> None:
        self._link = link
        self._clock = clock
        self._lanes: dict[tuple[str, int], _Lane] = {}
        self._counts: dict[str, int] = {}
        self._turn = count()

    async def publish(self, topic: str, records: Sequence[Record]) -> list[Refused]:
        """Return once all in-sync replicas have every record, but for those that they refuse for good.

        Waits as long as it takes: for brokers, for the topic to be made, for permission. Whoever stops waiting does
        not stop the sending. Records of one partition are written in the order of the calls, repeats apart.

        Returns:
            The refused records; empty where all is well.

        Raises:
            ClosedError: the publisher was closed before.
        """
        if not records:
            return []
        delivery = _Delivery(len(records))
        await self._dispatch(topic, records, delivery)
        return await asyncio.shield(delivery.done)

    def available(self) -> bool:
        """Whether what is published now would be confirmed soon, as far as is known."""
        since = self._clock.monotonic() - STALL_S
        return self._link.connected() and not any(lane.waits_since(since) for lane in self._lanes.values())

    def missing(self) -> list[str]:
        """Topics that were asked for and do not exist, or may not be seen."""
        return self._link.missing()

    async def connect(self, *topics: str) -> None:
        """Return once there are brokers and each of the topics."""
        for topic in topics:
            await self._partitions(topic)

    async def close(self) -> None:
        """Stop sending. Who still waits in `publish` is cancelled; what was not confirmed may be written or not."""
        await asyncio.gather(*(lane.close() for lane in self._lanes.values()))
        await self._link.close()

    async def _dispatch(self, topic: str, records: Sequence[Record], delivery: "_Delivery") -> None:
        partitions = await self._partitions(topic)
        shares: dict[int, list[Record]] = {}
        for record, partition in zip(records, self._places(records, partitions), strict=True):
            share = shares.get(partition)
            if share is None:
                shares[partition] = [record]
            else:
                share.append(record)
        for partition, share in shares.items():
            self._lane(topic, partition).add(_Piece(delivery, share))

    def _places(self, records: Sequence[Record], partitions: int) -> list[int]:
        places: list[int] = partitions_of([record.key or b"" for record in records], partitions).tolist()
        for at, record in enumerate(records):
            if record.key is None:
                places[at] = next(self._turn) % partitions
        return places

    async def _partitions(self, topic: str) -> int:
        partitions = await self._link.partitions(topic)
        before = self._counts.setdefault(topic, partitions)
        if partitions != before:
            self._counts[topic] = partitions
            _log.error(
                "the number of partitions changed: reports of one message are now in two of them",
                topic=topic,
                before=before,
                now=partitions,
            )
        return partitions

    def _lane(self, topic: str, partition: int) -> "_Lane":
        lane = self._lanes.get((topic, partition))
        if lane is None:
            lane = self._lanes[topic, partition] = _Lane(topic, partition, self._link, self._clock, self._moved)
        return lane

    async def _moved(self, topic: str, piece: "_Piece") -> None:
        await self._dispatch(topic, piece.records[piece.at :], piece.delivery)


class _Moved(Protocol):
    """Finds new places for what waits in a lane."""

    async def __call__(self, topic: str, piece: "_Piece") -> None: ...


class _Delivery:
    """What one call of `publish` waits for."""

    __slots__ = ("_open", "_refused", "done")

    def __init__(self, records: int) -> None:
        self._open = records
        self._refused: list[Refused] = []
        self.done: asyncio.Future[list[Refused]] = asyncio.get_running_loop().create_future()

    def confirm(self, records: int) -> None:
        self._open -= records
        if not self._open and not self.done.done():
            self.done.set_result(self._refused)

    def refuse(self, record: Record, why: str) -> None:
        self._refused.append(Refused(record, why))
        self.confirm(1)

    def fail(self, error: BaseException) -> None:
        if self.done.done():
            return
        if isinstance(error, asyncio.CancelledError):
            self.done.cancel()
        else:
            self.done.set_exception(error)


class _Piece(msgspec.Struct, gc=False):
    """The share of one delivery in one lane: its records from `at` on have no verdict yet."""

    delivery: _Delivery
    records: list[Record]
    at: int = 0


class _Lane:
    """The records of one partition, in order. Its task exists while there is something to send."""

    def __init__(self, topic: str, partition: int, link: Link, clock: Clock, moved: "_Moved") -> None:
        self._topic = topic
        self._partition = partition
        self._link = link
        self._clock = clock
        self._moved = moved
        self._pieces: deque[_Piece] = deque()
        self._task: asyncio.Task[None] | None = None
        self._since: float | None = None
        self._backoff = Backoff(RETRY_FIRST_S, RETRY_MOST_S)
        self._suspects = 0
        self._most: int | None = None
        self._stamp_ms: int | None = None
        self._doubts = 0

    def add(self, piece: _Piece) -> None:
        self._pieces.append(piece)
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"lane {self._topic}-{self._partition}")

    def waits_since(self, moment: float) -> bool:
        return self._since is not None and self._since < moment

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    async def _run(self) -> None:
        self._since = self._clock.monotonic()
        try:
            while self._pieces:
                await self._send_until_verdict()
        except BaseException as error:
            # Nobody awaits this task: whoever waits for its records must hear of its end.
            for piece in self._pieces:
                piece.delivery.fail(error)
            self._pieces.clear()
            if not isinstance(error, Exception):
                raise
        finally:
            self._since = None
            self._task = None

    async def _send_until_verdict(self) -> None:
        try:
            sent = await self._link.send(self._topic, self._partition, self._waiting())
        except NoPartitionError:
            await self._move_all()
        except RefusedError as error:
            await self._search(error)
        except SendError as error:
            _log.warning("a batch is sent again", topic=self._topic, partition=self._partition, because=str(error))
            await self._clock.sleep(self._backoff.next())
        else:
            self._backoff.reset()
            self._doubts = 0
            self._confirm(sent)

    def _waiting(self) -> Iterator[Record]:
        """What the next batch may take, in order."""
        waiting = chain.from_iterable(islice(piece.records, piece.at, None) for piece in self._pieces)
        if self._stamp_ms is not None:
            return (msgspec.structs.replace(record, timestamp_ms=self._stamp_ms) for record in islice(waiting, 1))
        return waiting if self._most is None else islice(waiting, self._most)

    def _confirm(self, sent: int) -> None:
        self._narrow(sent)
        while sent:
            piece = self._pieces[0]
            share = min(sent, len(piece.records) - piece.at)
            self._advance(piece, share)
            piece.delivery.confirm(share)
            sent -= share

    async def _search(self, error: RefusedError) -> None:
        """Find the one record that is refused: of a refused batch, send the first half next."""
        if error.doubtful and self._doubts < DOUBTS_MAX:
            self._doubts += 1
            _log.warning("a batch is sent again", topic=self._topic, partition=self._partition, because=str(error))
            await self._clock.sleep(self._backoff.next())
            return
        if error.taken > 1:
            self._suspects = error.taken
            self._most = error.taken // 2
        elif error.timestamp and self._stamp_ms is None:
            self._most, self._stamp_ms = 1, self._clock.wall_ms()
            _log.warning("a record is stamped anew", topic=self._topic, partition=self._partition, because=str(error))
        else:
            piece = self._pieces[0]
            record = piece.records[piece.at]
            _log.error("a record is refused for good", topic=self._topic, partition=self._partition, why=str(error))
            self._narrow(1)
            self._advance(piece, 1)
            piece.delivery.refuse(record, str(error))

    def _narrow(self, settled: int) -> None:
        """Go on with the search among those suspects that have no verdict yet; end it when there are none."""
        self._stamp_ms = None
        self._suspects = max(0, self._suspects - settled)
        self._most = max(1, self._suspects // 2) if self._suspects else None

    def _advance(self, piece: _Piece, records: int) -> None:
        self._since = self._clock.monotonic()
        piece.at += records
        if piece.at == len(piece.records):
            self._pieces.popleft()

    async def _move_all(self) -> None:
        """Find new places for what waits here: the partition is gone."""
        self._narrow(self._suspects)
        await self._clock.sleep(self._backoff.next())
        for _ in range(len(self._pieces)):
            await self._moved(self._topic, self._pieces[0])
            self._pieces.popleft()
