"""In-memory stand-ins for what the forwarder works with: the way to the brokers, a backlog, a clock."""

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

from ingest.contract.push import Push
from ingest.forward.link import RefusedError, SendError
from ingest.forward.record import Record
from ingest.spool.base import Spooled


class PromptClock:
    """A clock whose sleeps are over at once and move its time."""

    def __init__(self, wall_ms: int = 1_800_000_000_000) -> None:
        self._wall_ms = wall_ms
        self.now_s = 0.0
        self.slept: list[float] = []

    def wall_ms(self) -> int:
        """Milliseconds since the epoch."""
        return self._wall_ms + int(self.now_s * 1000)

    def monotonic(self) -> float:
        """Seconds slept so far."""
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        """Be over at once."""
        self.slept.append(seconds)
        self.now_s += seconds
        await asyncio.sleep(0)


class MemoryLink:
    """Brokers in memory.

    Attributes:
        written: what every partition holds.
        batches: the number of records of every batch that was tried.
        troubles: errors that the next calls of `send` raise, one each.
        refuses: whether the brokers refuse a record for good.
        impossible: whether they refuse its timestamp.
        batch_records: the most records of one batch.
        gate: no batch is confirmed while it is not set.
    """

    def __init__(self, **partitions: int) -> None:
        self.topics = partitions
        self.made = asyncio.Event()
        self.written: dict[tuple[str, int], list[Record]] = defaultdict(list)
        self.batches: list[int] = []
        self.troubles: deque[Exception] = deque()
        self.refuses: Callable[[str, Record], bool] = lambda _topic, _record: False
        self.impossible: Callable[[Record], bool] = lambda _record: False
        self.batch_records = 1000
        self.gate = asyncio.Event()
        self.gate.set()
        self.closed = False
        self.arrived = asyncio.Event()

    async def partitions(self, topic: str) -> int:
        """See `Link`."""
        while topic not in self.topics:
            self.made.clear()
            await self.made.wait()
        return self.topics[topic]

    def make(self, topic: str, partitions: int) -> None:
        """Create a topic."""
        self.topics[topic] = partitions
        self.made.set()

    async def send(self, topic: str, partition: int, records: Iterable[Record]) -> int:
        """See `Link`."""
        batch = list(islice(records, self.batch_records))
        self.batches.append(len(batch))
        self.arrived.set()
        await asyncio.sleep(0)
        await self.gate.wait()
        if self.troubles:
            raise self.troubles.popleft()
        if any(self.refuses(topic, record) for record in batch):
            raise RefusedError("MessageSizeTooLargeError", taken=len(batch))
        if any(self.impossible(record) for record in batch):
            raise RefusedError("InvalidTimestampError", taken=len(batch), timestamp=True)
        self.written[topic, partition] += batch
        return len(batch)

    def connected(self) -> bool:
        """See `Link`."""
        return not self.closed

    def missing(self) -> list[str]:
        """See `Link`."""
        return []

    async def close(self) -> None:
        """Note it."""
        self.closed = True

    def values(self, topic: str) -> list[bytes | None]:
        """Every value of a topic, partition by partition."""
        return [
            record.value for (name, _), records in sorted(self.written.items()) if name == topic for record in records
        ]


class MemoryBacklog:
    """A backlog in memory that notes when it was settled and what was quarantined.

    Attributes:
        settled: every position that `settle` was called with.
        largest_take: the most bytes of bodies handed out at once.
        broken: errors that the next calls of `take` and `quarantine` raise, one each.
    """

    def __init__(self, pushes: Sequence[Push] = (), *, name: str = "memory", ends: bool = True) -> None:
        self.name = name
        self._pushes = [Spooled(position, push) for position, push in enumerate(pushes, start=10)]
        self._handed = 0
        self._ends = ends
        self._news = asyncio.Event()
        self.settled: list[int] = []
        self.quarantined: list[tuple[bytes, str]] = []
        self.largest_take = 0
        self.broken: deque[OSError] = deque()
        self.closed = False

    def add(self, push: Push) -> None:
        """Make one more push durable."""
        self._pushes.append(Spooled(10 + len(self._pushes), push))
        self._news.set()

    def _unsettled(self) -> list[Push]:
        last = self.settled[-1] if self.settled else 0
        return [spooled.push for spooled in self._pushes if spooled.position > last]

    @property
    def handed(self) -> int:
        """How many pushes were handed out."""
        return self._handed

    @property
    def pending_reports(self) -> int:
        """See `Backlog`."""
        return sum(push.reports for push in self._unsettled())

    @property
    def pending_bytes(self) -> int:
        """See `Backlog`."""
        return sum(len(push.body) for push in self._unsettled())

    @property
    def oldest_ms(self) -> int | None:
        """See `Backlog`."""
        return next((push.received_ms for push in self._unsettled()), None)

    async def take(self, max_bytes: int) -> list[Spooled]:
        """See `Backlog`."""
        if self.broken:
            raise self.broken.popleft()
        while self._handed == len(self._pushes):
            if self._ends:
                return []
            self._news.clear()
            await self._news.wait()
        taken: list[Spooled] = []
        size = 0
        while self._handed < len(self._pushes) and size < max_bytes:
            taken.append(self._pushes[self._handed])
            size += len(taken[-1].push.body)
            self._handed += 1
        self.largest_take = max(self.largest_take, size)
        return taken

    def settle(self, position: int) -> None:
        """See `Backlog`."""
        self.settled.append(position)

    def rewind(self) -> None:
        """See `Backlog`."""
        self._handed = len(self._pushes) - len(self._unsettled())

    async def quarantine(self, value: bytes, note: str) -> None:
        """See `Backlog`."""
        if self.broken:
            raise self.broken.popleft()
        self.quarantined.append((value, note))

    async def close(self) -> None:
        """Note it."""
        self.closed = True


def unclear() -> SendError:
    """A batch of which nobody knows whether it was written."""
    return SendError("RequestTimedOutError")
