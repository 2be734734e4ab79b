"""The sinks by their kind, for the commands that write to one or read it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from consumers.rows import AwayError
from consumers.settings import AuditSettings, DeadLettersSettings, SinkSettings
from consumers.sinks.jsonl import JsonlSink
from consumers.sinks.postgres import DDL as POSTGRES_DDL
from consumers.sinks.postgres import PostgresSink
from consumers.sinks.sqlite import DDL as SQLITE_DDL
from consumers.sinks.sqlite import SqliteSink
from ingest.runtime.clock import Clock, SystemClock
from ingest.runtime.errors import ServiceAwayError, UsageError

KINDS = (PostgresSink.kind, SqliteSink.kind, JsonlSink.kind)

AnySink = PostgresSink | SqliteSink | JsonlSink
Destinations = SinkSettings | DeadLettersSettings | AuditSettings


def make_sink(settings: Destinations, kind: str, *, clock: Clock, create: bool = True, writes: bool = True) -> AnySink:
    """The sink of a kind, not yet open.

    Args:
        settings: where each sink is.
        kind: `postgres`, `sqlite` or `jsonl`.
        clock: for `written_at`.
        create: make the table if it is missing.
        writes: whether it will be written to, so that this must be allowed.

    Raises:
        UsageError: there is no such kind.
    """
    if kind == PostgresSink.kind:
        dsn = settings.postgres_dsn.get_secret_value()
        return PostgresSink(dsn, now_ms=clock.wall_ms, create=create, writes=writes)
    if kind == SqliteSink.kind:
        return SqliteSink(settings.sqlite_path, now_ms=clock.wall_ms, create=create)
    if kind == JsonlSink.kind:
        return JsonlSink(settings.jsonl_dir, settings.results_topic)
    raise UsageError(f"there is no sink {kind!r}; there are {', '.join(KINDS)}")


def ddl_of(kind: str) -> str:
    """The statement that makes the table of a sink.

    Raises:
        UsageError: it has none.
    """
    statements = {PostgresSink.kind: POSTGRES_DDL, SqliteSink.kind: SQLITE_DDL}
    if kind not in statements:
        raise UsageError(f"there is no table of a sink {kind!r}; there are those of {', '.join(statements)}")
    return statements[kind]


@asynccontextmanager
async def open_for_reading(settings: Destinations, kind: str) -> AsyncIterator[AnySink]:
    """A sink whose `stored` can be read; nothing is made or changed.

    Raises:
        UsageError: there is no such sink, or it is not there.
        ServiceAwayError: it does not answer.
    """
    sink = make_sink(settings, kind, clock=SystemClock(), create=False, writes=False)
    # Opening the lines would repair them: that is for whoever writes them.
    async with _open(sink, ready=isinstance(sink, JsonlSink)) as opened:
        yield opened


@asynccontextmanager
async def open_for_writing(settings: Destinations, kind: str) -> AsyncIterator[AnySink]:
    """A sink that is ready for a single batch, made if it is missing.

    Raises:
        UsageError: there is no such sink, or it cannot be used as it is set up.
        ServiceAwayError: it does not answer.
    """
    async with _open(make_sink(settings, kind, clock=SystemClock()), ready=False) as opened:
        yield opened


@asynccontextmanager
async def _open(sink: AnySink, *, ready: bool) -> AsyncIterator[AnySink]:
    try:
        if not ready:
            await sink.open()
        yield sink
    except AwayError as error:
        raise ServiceAwayError(f"the {sink.kind} sink does not answer: {error}") from error
    finally:
        await sink.close()
