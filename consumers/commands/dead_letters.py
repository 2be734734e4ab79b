"""`python -m consumers dead-letters`: look at dead letters and send them back through."""

import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from datetime import UTC, datetime
from typing import Protocol

from rich.console import Console
from rich.table import Table

from consumers.dead_letters import Filter, Letter, Publication, Replay
from consumers.engine.delivery import read_result
from consumers.engine.record import Record
from consumers.engine.snapshot import RecordWriter, read_record, read_topic
from consumers.rows import Arrival, AwayError, RefusedError, WriteCount
from consumers.settings import DeadLettersSettings
from ingest.contract.acls import Acl, looking_at_letters, replaying
from ingest.contract.dead_letter import Stage
from ingest.contract.report import Reason, RejectedError
from ingest.runtime.errors import FoundError, ServiceAwayError, UsageError
from ingest.runtime.kafka import TopicAdmin, client_options
from ingest.runtime.partitioner import partitions_of

_NAME = re.compile(r"([0-9]{1,10}):([0-9]{1,18})")
_CONSOLE = Console(highlight=False, soft_wrap=True)
_COLUMNS = ("name", "time", "stage", "reason", "attempt", "bytes", "from")


class ResultSink(Protocol):
    """The part of a sink that a replay writes to."""

    async def write(self, batch: Sequence[Arrival]) -> WriteCount:
        """Store every result or raise; writing a batch twice is harmless."""
        ...


OpenSink = Callable[[str], AbstractAsyncContextManager[ResultSink]]
"""Opens a sink by its kind."""


def filter_of(reason: str | None, since: str | None, until: str | None) -> Filter:
    """A filter from the words of the command line.

    Raises:
        UsageError: an unknown reason, or a time that is none.
    """
    if reason is not None and reason not in set(Reason):
        raise UsageError(f"unknown reason {reason!r}; one of {', '.join(Reason)}")
    return Filter(
        reason=None if reason is None else Reason(reason), since=_time("--from", since), until=_time("--to", until)
    )


async def list_letters(settings: DeadLettersSettings, wanted: Filter, limit: int | None) -> None:
    """Print a line for each dead letter that is meant: a table on a terminal, tab-separated columns elsewhere."""
    table = Table(*_COLUMNS)
    async for letter in _letters(settings, wanted, limit):
        row = _row(letter)
        if _CONSOLE.is_terminal:
            table.add_row(*row)
        else:
            print(*row, sep="\t")  # noqa: T201 - the output of the command
    if _CONSOLE.is_terminal:
        _CONSOLE.print(table)
        _CONSOLE.print(f"{table.row_count} dead letters")


def _row(letter: Letter) -> tuple[str, ...]:
    place = ":".join(letter.header(f"dlq-{part}") for part in ("topic", "partition", "offset")).strip(":")
    return (
        letter.name,
        letter.header("dlq-time"),
        letter.header("dlq-stage"),
        letter.reason,
        letter.header("dlq-attempt"),
        str(len(letter.value or b"")),
        place or letter.header("dlq-source"),
    )


async def show_letter(settings: DeadLettersSettings, name: str) -> None:
    """Print one dead letter, whole.

    Raises:
        UsageError: there is none of that name.
    """
    letter = await _letter(settings, name)
    for header, value in letter.headers:
        _CONSOLE.print(f"{header}: {(value or b'').decode(errors='replace')}", markup=False)
    _CONSOLE.print(f"key: {(letter.key or b'').decode(errors='replace')}", markup=False)
    _CONSOLE.print()
    _CONSOLE.print((letter.value or b"").decode(errors="backslashreplace"), markup=False)


async def replay_letters(
    settings: DeadLettersSettings,
    names: Sequence[str],
    wanted: Filter,
    limit: int | None,
    *,
    dry_run: bool,
    open_sink: OpenSink,
) -> None:
    """Send dead letters back through: those that are named, else all that are meant.

    Raises:
        FoundError: some still cannot be used; they stay where they are.
        ServiceAwayError: Kafka or the sink does not answer; says how many were sent.
        UsageError: a name that is none.
    """
    letters = [await _letter(settings, name) for name in names]
    if not names:
        letters = [letter async for letter in _letters(settings, wanted, limit)]
    sent = refused = 0
    publications: list[tuple[str, Publication]] = []
    for letter in letters:
        if letter.header("dlq-stage") == Stage.SINK:
            done = await _write(letter, open_sink, dry_run=dry_run)
            sent, refused = sent + done, refused + (not done)
            continue
        try:
            replay = Replay.of(letter, time.time_ns() // 1_000_000)
        except (RejectedError, ValueError) as error:
            _CONSOLE.print(f"{letter.name}: {error}", markup=False)
            refused += 1
            continue
        for rejected in replay.refused:
            _CONSOLE.print(f"{letter.name}: still {rejected.reason}: {rejected.detail}", markup=False)
        publications += [(letter.name, publication) for publication in replay.publications]
        refused += len(replay.refused)
    published = len(publications) if dry_run else await _publish(settings, publications, before=sent)
    sent, refused = sent + published, refused + len(publications) - published
    _CONSOLE.print(f"{'would send' if dry_run else 'sent'} {sent}, still unusable {refused}")
    if refused:
        raise FoundError(f"{refused} still cannot be used and stay dead letters")


def _time(option: str, text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{option} {text!r} is no time; write it as 2026-11-23T10:00:00Z") from None
    return when if when.tzinfo else when.replace(tzinfo=UTC)


async def _partitions(settings: DeadLettersSettings, topic: str, rights: Sequence[Acl]) -> int:
    async with TopicAdmin(client_options(settings)) as admin:
        await admin.demand(rights)
        existing = await admin.existing(describe=())
    if topic not in existing:
        raise UsageError(f"there is no topic {topic}; `python -m ingest topics` makes it")
    return existing[topic].partitions


async def _letters(settings: DeadLettersSettings, wanted: Filter, limit: int | None) -> AsyncIterator[Letter]:
    topic = settings.dead_letters_topic
    since_ms = None if wanted.since is None else int(wanted.since.timestamp() * 1000)
    partitions = await _partitions(settings, topic, looking_at_letters(settings.acl_names()))
    records = read_topic(client_options(settings), topic, partitions, since_ms=since_ms)
    found = 0
    try:
        async with aclosing(records):
            async for batch in records:
                for letter in filter(wanted.matches, map(_read, batch)):
                    if limit is not None and found >= limit:
                        return
                    found += 1
                    yield letter
    except AwayError as error:
        raise ServiceAwayError(f"Kafka stopped handing out records: {error}") from None


async def _letter(settings: DeadLettersSettings, name: str) -> Letter:
    parsed = _NAME.fullmatch(name)
    topic = settings.dead_letters_topic
    if parsed is None:
        raise UsageError(f"{name!r} is no name of a dead letter; write PARTITION:OFFSET, such as 0:17")
    partition, offset = int(parsed[1]), int(parsed[2])
    record = None
    if partition < await _partitions(settings, topic, looking_at_letters(settings.acl_names())):
        try:
            record = await read_record(client_options(settings), topic, partition, offset)
        except AwayError as error:
            raise ServiceAwayError(f"Kafka stopped handing out records: {error}") from None
    if record is None:
        raise UsageError(f"there is no dead letter {name}")
    return _read(record)


def _read(record: Record) -> Letter:
    return Letter(
        partition=record.partition,
        offset=record.offset,
        timestamp_ms=record.timestamp,
        key=record.key,
        value=record.value,
        headers=list(record.headers),
    )


async def _publish(
    settings: DeadLettersSettings, publications: Sequence[tuple[str, Publication]], *, before: int
) -> int:
    """Publish to the reports topic what letters of these names became; how many it took. The others are named."""
    if not publications:
        return 0
    topic = settings.reports_topic
    partitions = await _partitions(settings, topic, replaying(settings.acl_names()))
    sent = 0
    async with RecordWriter(client_options(settings)) as writer:
        for name, publication in publications:
            partition = publication.partition
            if publication.key is not None:
                partition = int(partitions_of([publication.key], partitions)[0])
            elif partition is not None and partition >= partitions:
                _CONSOLE.print(f"{name}: {topic} has no partition {partition}", markup=False)
                continue
            try:
                await writer.write(
                    topic,
                    key=publication.key,
                    value=publication.value,
                    headers=publication.headers,
                    timestamp_ms=publication.timestamp_ms,
                    partition=partition,
                )
            except RefusedError as error:
                _CONSOLE.print(f"{name}: {error}", markup=False)
            except AwayError as error:
                raise ServiceAwayError(
                    f"Kafka went away at dead letter {name} ({error}); {before + sent} were sent before. "
                    "A second replay of all is harmless"
                ) from error
            else:
                sent += 1
    return sent


async def _write(letter: Letter, open_sink: OpenSink, *, dry_run: bool) -> bool:
    """Write the result in a sink's dead letter to that sink; whether it took it, or might when nothing is written."""
    try:
        result = read_result(letter.value)
        place = (int(letter.header("dlq-partition")), int(letter.header("dlq-offset")))
        if not dry_run:
            async with open_sink(letter.header("dlq-sink")) as sink:
                await sink.write([Arrival(*place, result)])
    except (ValueError, RejectedError, RefusedError) as error:
        _CONSOLE.print(f"{letter.name}: {error}", markup=False)
        return False
    return True
