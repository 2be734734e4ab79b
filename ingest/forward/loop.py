"""The forwarder: takes what is durable in the spool, publishes it, and settles it in order."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final, NamedTuple, Protocol

import structlog

from ingest.forward.courier import Courier, Unplaced
from ingest.forward.parcel import Parcel
from ingest.runtime.backoff import Backoff
from ingest.runtime.clock import Clock
from ingest.spool.base import Backlog, Spooled

TAKE_MAX_BYTES: Final = 256 * 1024
"""Bodies taken from a backlog at once; a larger one comes alone."""

TAKES_IN_FLIGHT: Final = 4
"""Takes of one backlog that are not confirmed yet.

What is in flight may be compressed in one turn of the event loop, which also answers the callbacks: four times as much
held it up for 35 ms (p99) in place of 12, and brought no more throughput.
"""

ADOPT_INTERVAL_S: Final = 30.0
"""How often folders are looked for that nobody holds any more."""

RETRY_FIRST_S: Final = 0.2
RETRY_MOST_S: Final = 10.0
"""Bounds of the pause after the device refused to read or to quarantine."""

_log = structlog.get_logger(__name__)


class Adopted(Backlog, Protocol):
    """A folder whose owner has gone. It ends: `take` returns an empty list once everything was handed out."""

    async def close(self) -> None:
        """Let the folder go, and remove it if everything in it is settled."""
        ...


class _Taken(NamedTuple):
    position: int
    parcels: asyncio.Task[tuple[list[Parcel], list[Unplaced]]]


class Forwarder:
    """Publishes backlogs.

    Each backlog has a window of takes in flight, so bytes are bounded by `TAKE_MAX_BYTES` times `TAKES_IN_FLIGHT` for
    each that is served at a time: the worker's own, and one of those it adopted.

    Args:
        courier: takes pushes to Kafka.
        clock: paces what is tried again.
    """

    def __init__(self, courier: Courier, clock: Clock) -> None:
        self._courier = courier
        self._clock = clock
        self._progress = asyncio.Event()

    async def serve(self, backlog: Backlog) -> None:
        """Publish everything of a backlog; returns when nothing will come any more and all of it is settled.

        Never gives up on Kafka or on the device. Cancelling it is safe at any time: what is not settled stays.
        """
        window = asyncio.Semaphore(TAKES_IN_FLIGHT)
        under_way: asyncio.Queue[_Taken | None] = asyncio.Queue()  # bounded by the window
        async with asyncio.TaskGroup() as group:
            group.create_task(self._settle_in_order(backlog, under_way, window))
            while True:
                if window.locked():
                    self._courier.count_window_full()
                await window.acquire()
                taken = await self._take(backlog)
                if not taken:
                    break
                under_way.put_nowait(_Taken(taken[-1].position, group.create_task(self._publish(taken))))
            under_way.put_nowait(None)

    async def serve_adopted(self, adopt: Callable[[], AsyncIterator[Adopted]]) -> None:
        """From time to time take over the folders that nobody holds, and publish them one after the other.

        Reading the next ones does not hold up the first, and what was read is counted before it is published.

        Args:
            adopt: gives what is free, oldest first.
        """
        while True:
            found: asyncio.Queue[Adopted | None] = asyncio.Queue()  # bounded by the number of folders
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._look(adopt, found))
                    while (backlog := await found.get()) is not None:
                        await self.serve_all((backlog,))
            finally:
                while not found.empty():
                    if (backlog := found.get_nowait()) is not None:
                        await backlog.close()
            await self._clock.sleep(ADOPT_INTERVAL_S)

    async def serve_all(self, adopted: Sequence[Adopted]) -> None:
        """Publish backlogs that end, one after the other, and close each."""
        left = list(adopted)
        try:
            while left:
                _log.info("publishing what an ended process left", folder=left[0].name, reports=left[0].pending_reports)
                await self.serve(left[0])
                await left.pop(0).close()
        finally:
            # Another process may take what is not published.
            for backlog in left:
                await backlog.close()

    async def until_settled(self, backlog: Backlog) -> None:
        """Return once everything durable in a backlog that is being served is settled."""
        while True:
            self._progress.clear()
            if backlog.oldest_ms is None:
                return
            await self._progress.wait()

    async def _look(self, adopt: Callable[[], AsyncIterator[Adopted]], found: asyncio.Queue[Adopted | None]) -> None:
        try:
            async for backlog in adopt():
                found.put_nowait(backlog)
        except OSError as error:
            _log.error("folders of ended processes cannot be looked for", because=error.strerror)
        found.put_nowait(None)

    async def _publish(self, taken: Sequence[Spooled]) -> tuple[list[Parcel], list[Unplaced]]:
        parcels = await self._courier.unpack(spooled.push for spooled in taken)
        return parcels, await self._courier.deliver(parcels)

    async def _settle_in_order(
        self, backlog: Backlog, under_way: asyncio.Queue[_Taken | None], window: asyncio.Semaphore
    ) -> None:
        while (taken := await under_way.get()) is not None:
            # A group passes over a child that was cancelled: nothing of this backlog would ever be settled again.
            await asyncio.wait((taken.parcels,))
            if taken.parcels.cancelled():
                raise RuntimeError("a delivery was cancelled by nobody who may")
            parcels, unplaced = taken.parcels.result()
            for each in unplaced:
                await self._quarantine(backlog, each)
            # One step of the event loop: the balance of the accounts holds whenever somebody looks.
            backlog.settle(taken.position)
            self._courier.count(parcels)
            self._progress.set()
            window.release()

    async def _take(self, backlog: Backlog) -> list[Spooled]:
        backoff = Backoff(RETRY_FIRST_S, RETRY_MOST_S)
        while True:
            try:
                return await backlog.take(TAKE_MAX_BYTES)
            except OSError as error:
                _log.error("the spool cannot be read: trying again", folder=backlog.name, because=error.strerror)
                await self._clock.sleep(backoff.next())

    async def _quarantine(self, backlog: Backlog, unplaced: Unplaced) -> None:
        backoff = Backoff(RETRY_FIRST_S, RETRY_MOST_S)
        letter = unplaced.letter
        note = f"{letter.unit.value} of {unplaced.parcel.push.route.value}, {letter.reason.value}, {unplaced.why}"
        while True:
            try:
                await backlog.quarantine(letter.content.value or b"", note)
            except OSError as error:
                _log.error("quarantine fails: trying again", folder=backlog.name, because=error.strerror)
                await self._clock.sleep(backoff.next())
            else:
                _log.error("Kafka refused a dead letter: it is in quarantine", folder=backlog.name, why=unplaced.why)
                self._courier.count_quarantined(unplaced)
                return
