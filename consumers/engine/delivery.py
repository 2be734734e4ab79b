"""The loop of every sink: read results, store them, commit the group's offset; in that order, so that nothing is lost.

What was stored and not committed comes again, after a crash or when a partition changes hands, and is harmless: a sink
never replaces a higher revision (see `consumers.sinks.base`). So no offset is kept in the database, and a commit that
did not happen is only made later.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Protocol, TypeVar

import msgspec
import structlog

from consumers.engine.metrics import DEAD_LETTERS, LAG
from consumers.engine.record import Record
from consumers.rows import Arrival, AwayError, RefusedError, WriteCount
from ingest.contract.dead_letter import DeadLetter, Origin, Stage
from ingest.contract.report import Reason, RejectedError
from ingest.contract.result import Result, decode_result
from ingest.runtime.backoff import Backoff
from ingest.runtime.clock import Clock
from ingest.runtime.metrics import counter

log = structlog.get_logger(__name__)

RECORDS_MAX = 5000
"""Results of one batch at most."""
POLL_WAIT_S = 0.5
RETRY_FIRST_S = 0.2
RETRY_MOST_S = 10.0
SETTLE_MAX_S = 5.0
"""How long a rebalance waits for the batch that is being stored, so that it need not come again. Below the session."""

ROWS = counter("dlrflow_rows", "Results by what became of them at the destination", ("result",))

_T = TypeVar("_T")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z")


class Sink(Protocol):
    """A destination of results."""

    @property
    def kind(self) -> str:
        """Its name in commands, metrics and dead letters."""
        ...

    async def open(self) -> None:
        """Make ready to write; may be called again after it raised.

        Raises:
            UsageError: it cannot be used as it is set up.
            AwayError: it cannot be used just now.
        """
        ...

    async def write(self, batch: Sequence[Arrival]) -> WriteCount:
        """Store what is newer; durable on return. Writing a batch twice is harmless.

        Args:
            batch: at least one result; those of one message in the order of the topic.

        Raises:
            RefusedError: some row will never be taken; nothing of the batch was stored.
            AwayError: not now; the same batch may be written later.
        """
        ...

    async def close(self) -> None:
        """Let go of it; twice is harmless."""
        ...


class Source(Protocol):
    """A member of the sink's group on the results topic, `read_committed`."""

    async def poll(self, *, records_max: int, wait_s: float) -> Sequence[Record]:
        """The next records of all owned partitions, none after `wait_s`; those of a partition in order.

        Raises:
            AwayError: Kafka does not answer.
        """
        ...

    async def commit(self, offsets: Mapping[int, int]) -> None:
        """Make next offsets by partition the group's; those of partitions not owned any more are left out.

        Raises:
            AwayError: Kafka does not answer; they may be committed.
        """
        ...

    async def behind(self) -> Mapping[int, bool]:
        """For every owned partition, whether there is more to read than was handed out."""
        ...


class DeadLetters(Protocol):
    """The dead-letters topic."""

    async def write(self, letters: Sequence[DeadLetter]) -> None:
        """Return once all in-sync replicas have them.

        Raises:
            AwayError: Kafka does not answer; they may be there.
            UsageError: the topic does not take one of them: whoever set it up must act.
        """
        ...


class Delivery:
    """Moves results from their topic to one sink until it is told to stop."""

    def __init__(
        self, *, topic: str, sink: Sink, source: Source, dead_letters: DeadLetters, clock: Clock, stop: asyncio.Event
    ) -> None:
        """Join the parts; nothing happens before `run`.

        Args:
            topic: the results topic.
            sink: open.
            source: started; its revocations must be passed to `on_revoked`.
            dead_letters: where goes what is no result, or is refused.
            clock: wall time for lag and dead letters.
            stop: ends `run`, between two batches or while it waits for something that is away.
        """
        self._topic = topic
        self._sink = sink
        self._source = source
        self._dead_letters = dead_letters
        self._clock = clock
        self._stop = stop
        self._away = ""
        self._idle = asyncio.Event()
        self._idle.set()
        self._life = 0
        self._uncommitted: dict[int, int] = {}
        self._handled_ms: dict[int, int] = {}

    @property
    def away(self) -> str:
        """What is waited for just now, for the health detail; empty if all is well."""
        return self._away

    async def run(self) -> None:
        """Deliver until `stop` is set. What was stored by then is committed if Kafka answers.

        Raises:
            UsageError: a dead letter is not taken by its topic; nothing is moved past.
        """
        try:
            while not self._stop.is_set():
                records = await self._patiently("kafka", self._poll)
                if records:
                    await self._deliver(records)
                await self._commit()
                await self._note_lag()
        except _StoppedError:
            log.info("stopped while waiting", waited_for=self._away)
        await self._commit()

    async def on_revoked(self, partitions: Iterable[int]) -> None:
        """Settle before partitions go to somebody else: let the batch end, commit it, forget about them.

        A batch whose destination is away does not hold the group up; it is stored later and not committed.
        """
        if not self._away:
            try:
                async with asyncio.timeout(SETTLE_MAX_S):
                    await self._idle.wait()
            except TimeoutError:
                log.warning("gives partitions up in the middle of a batch")
        await self._commit()
        self._life += 1
        for partition in partitions:
            self._uncommitted.pop(partition, None)
            if self._handled_ms.pop(partition, None) is not None:
                LAG.remove(str(partition))

    async def _poll(self) -> Sequence[Record]:
        return await self._source.poll(records_max=RECORDS_MAX, wait_s=POLL_WAIT_S)

    async def _deliver(self, records: Sequence[Record]) -> None:
        life = self._life
        self._idle.clear()
        try:
            for record in reversed(records):
                self._handled_ms[record.partition] = record.timestamp
            letters = await self._store(records)
            if letters:
                await self._patiently("kafka", lambda: self._dead_letters.write(letters))
                for letter in letters:
                    DEAD_LETTERS.labels(Stage.SINK.value, dict(letter.headers)["dlq-reason"].decode()).inc()
            if life == self._life:
                self._uncommitted |= {record.partition: record.offset + 1 for record in records}
                self._handled_ms |= {record.partition: record.timestamp for record in records}
        finally:
            self._idle.set()

    async def _store(self, records: Sequence[Record]) -> list[DeadLetter]:
        """Store what are results; the dead letters for the rest."""
        arrivals: list[Arrival] = []
        letters = []
        for record in records:
            try:
                arrivals.append(Arrival(record.partition, record.offset, read_result(record.value)))
            except RejectedError as rejected:
                letters.append(self._letter(record, rejected))
        refused = await self._write(arrivals)
        if refused:
            by_place = {(record.partition, record.offset): record for record in records}
            letters += [self._letter(by_place[place], rejected) for place, rejected in refused]
        return letters

    async def _write(self, batch: Sequence[Arrival]) -> list[tuple[tuple[int, int], RejectedError]]:
        """Store a batch; the places of those that the destination refuses, found by halving."""
        if not batch:
            return []
        try:
            count = await self._patiently(self._sink.kind, lambda: self._sink.write(batch))
        except RefusedError as error:
            if len(batch) > 1:
                half = len(batch) // 2
                return await self._write(batch[:half]) + await self._write(batch[half:])
            (arrival,) = batch
            log.warning("row refused", partition=arrival.partition, offset=arrival.offset, why=str(error))
            detail = f"The {self._sink.kind} sink was refused this row: {error}."
            rejected = RejectedError(Reason.REFUSED_BY_DATABASE, detail, arrival.result.sms_msg_id)
            return [((arrival.partition, arrival.offset), rejected)]
        ROWS.labels("written").inc(count.written)
        ROWS.labels("older").inc(count.older)
        return []

    async def _patiently(self, whom: str, act: Callable[[], Awaitable[_T]]) -> _T:
        """What an act returns, tried again for ever while its other side is away.

        Raises:
            _StoppedError: `stop` was set while it waited.
        """
        backoff = Backoff(RETRY_FIRST_S, RETRY_MOST_S)
        while True:
            try:
                done = await act()
            except AwayError as error:
                if not self._away:
                    log.warning("waits for what is away", whom=whom, why=str(error))
                self._away = f"{whom}: {error}"
            else:
                if self._away:
                    log.info("goes on", whom=whom)
                    self._away = ""
                return done
            self._show_lag(dict.fromkeys(self._handled_ms, True))
            await self._wait(backoff.next())

    async def _wait(self, seconds: float) -> None:
        """Wait, or give up once `stop` is set."""
        waiting = asyncio.create_task(self._clock.sleep(seconds))
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({waiting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            stopping.cancel()
        if self._stop.is_set():
            raise _StoppedError

    async def _commit(self) -> None:
        """Commit what is stored. If Kafka is away it stays for the next time: nobody needs to wait for it."""
        offsets = dict(self._uncommitted)
        if not offsets:
            return
        try:
            await self._source.commit(offsets)
        except AwayError as error:
            log.warning("offsets are committed later", why=str(error))
            return
        for partition, offset in offsets.items():
            if self._uncommitted.get(partition) == offset:
                del self._uncommitted[partition]

    async def _note_lag(self) -> None:
        try:
            behind = await self._source.behind()
        except AwayError:
            behind = dict.fromkeys(self._handled_ms, True)
        self._show_lag(behind)

    def _show_lag(self, behind: Mapping[int, bool]) -> None:
        """Age of the oldest result that is not stored: that of the batch in hand, or of the last one while behind."""
        now_ms = self._clock.wall_ms()
        for partition, more in behind.items():
            if not more:
                self._handled_ms[partition] = now_ms
            since_ms = self._handled_ms.setdefault(partition, now_ms)
            LAG.labels(str(partition)).set(max(0, now_ms - since_ms) / 1000)

    def _letter(self, record: Record, rejected: RejectedError) -> DeadLetter:
        return DeadLetter.of_record(
            Stage.SINK,
            rejected,
            origin=Origin(self._topic, record.partition, record.offset),
            key=record.key,
            value=record.value,
            headers=list(record.headers),
            now_ms=self._clock.wall_ms(),
            sink=self._sink.kind,
        )


def read_result(value: bytes | None) -> Result:
    """Read the value of a record on the results topic, its times included, as every sink needs them.

    Raises:
        RejectedError: it is no result.
    """
    try:
        result = decode_result(value or b"")
        times = (result.first_received_at, result.last_received_at)
        usable = all(_TIME.fullmatch(time) and datetime.fromisoformat(time) for time in times)
    except msgspec.ValidationError:
        raise RejectedError(Reason.BAD_FIELD, "The record is not a result: a member is missing or wrong.") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise RejectedError(Reason.NOT_JSON, "The record is not JSON.") from None
    except ValueError:
        raise RejectedError(Reason.BAD_FIELD, "The record is a result of another schema, or has no time.") from None
    if not usable:
        raise RejectedError(Reason.BAD_FIELD, "The result has a time that is not RFC 3339 with milliseconds and Z.")
    return result


class _StoppedError(Exception):
    """The wait for something that is away was ended by `stop`."""
