"""Results in a SQLite file: one transaction a batch, durable before `write` returns."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import orjson

from consumers.rows import Arrival, AwayError, RefusedError, StoredRow, WriteCount
from consumers.sinks.base import COLUMNS, TABLE, Row, coalesce, row_of
from ingest.contract.envelope import rfc3339_ms
from ingest.contract.result import Result
from ingest.runtime.errors import UsageError

BUSY_TIMEOUT_S = 5
"""How long a batch waits for another writer of the file before it is tried anew."""
READ_ROWS = 10_000

DDL = f"""\
CREATE TABLE IF NOT EXISTS {TABLE} (
    sms_msg_id text PRIMARY KEY,
    revision integer,
    outcome text,
    final integer,
    total integer,
    received integer,
    missing text,
    recipient text,
    extend text,
    segments text,
    total_conflict integer,
    reason text,
    first_received_at text,
    last_received_at text,
    written_at text
);
"""

_UPSERT = f"""
INSERT INTO {TABLE} ({", ".join(COLUMNS)}) VALUES ({", ".join("?" for _ in COLUMNS)})
ON CONFLICT (sms_msg_id) DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in COLUMNS[1:])}
WHERE excluded.revision > {TABLE}.revision AND excluded.first_received_at <= {TABLE}.first_received_at
"""  # noqa: S608 - names of our own
_READ = f"SELECT sms_msg_id, revision, outcome, final, total, received, missing, segments FROM {TABLE}"  # noqa: S608

_NOT_NOW = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR})
"""Primary error codes of a file that may serve later."""

_Found = TypeVar("_Found")


class SqliteSink:
    """The table in one file. Other processes may read it at any time (write-ahead log)."""

    kind = "sqlite"

    def __init__(self, path: Path, *, now_ms: Callable[[], int], create: bool = True) -> None:
        """Describe it; nothing happens before `open`.

        Args:
            path: the file; it and its folder are made if missing.
            now_ms: wall clock, for `written_at`.
            create: make the table if it is missing.
        """
        self._path = path
        self._now_ms = now_ms
        self._create = create
        self._connection: sqlite3.Connection | None = None

    async def open(self) -> None:
        """Open the file and make sure of the table.

        Raises:
            UsageError: the path cannot hold a database, or the table is missing or has other columns.
            AwayError: another process holds the file just now.
        """
        await asyncio.to_thread(self._open)

    async def write(self, batch: Sequence[Arrival]) -> WriteCount:
        """Store what is newer; on return it is on the disk. Writing a batch twice is harmless.

        Raises:
            RefusedError: a row cannot be stored; nothing of the batch was.
            AwayError: locked, full or unreadable just now.
        """
        written = await asyncio.to_thread(self._write, coalesce(batch))
        return WriteCount(written, len(batch) - written)

    async def stored(self) -> AsyncIterator[StoredRow]:
        """Every row, in no order."""
        cursor = await asyncio.to_thread(self._guarded, lambda connection: connection.execute(_READ))
        while rows := await asyncio.to_thread(cursor.fetchmany, READ_ROWS):
            for message_id, revision, outcome, final, total, received, missing, segments in rows:
                row = {
                    "outcome": outcome,
                    "final": bool(final),
                    "total": total,
                    "received": received,
                    "missing": orjson.loads(missing),
                    "segments": orjson.loads(segments),
                }
                yield StoredRow(message_id, revision, row)

    async def close(self) -> None:
        """Close the file; twice is harmless."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await asyncio.to_thread(connection.close)

    def _open(self) -> None:
        try:
            if self._create:
                self._path.parent.mkdir(parents=True, exist_ok=True)
            # One call at a time, each in whichever thread is free: the loop awaits each before the next.
            connection = sqlite3.connect(
                f"{self._path.absolute().as_uri()}?mode={'rwc' if self._create else 'rw'}",
                uri=True,
                timeout=BUSY_TIMEOUT_S,
                isolation_level=None,
                check_same_thread=False,
            )
        except (OSError, sqlite3.Error) as error:
            raise UsageError(f"DLR_SQLITE_PATH {self._path}: {error}") from error
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            # FULL syncs the log at every commit: the offset that is committed after it must not outlive the rows.
            connection.execute("PRAGMA synchronous=FULL")
            if self._create:
                connection.execute(DDL)
            connection.execute(f"SELECT {', '.join(COLUMNS)} FROM {TABLE} LIMIT 0")  # noqa: S608 - names of our own
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in _NOT_NOW:
                raise AwayError(str(error)) from error
            raise UsageError(f"DLR_SQLITE_PATH {self._path}: {error}") from error

    def _write(self, rounds: Sequence[Sequence[Result]]) -> int:
        written_at = rfc3339_ms(self._now_ms())
        values = [[_values(row_of(result), written_at) for result in results] for results in rounds]
        return self._guarded(lambda connection: _upsert(connection, values))

    def _guarded(self, act: Callable[[sqlite3.Connection], _Found]) -> _Found:
        if self._connection is None:
            raise AwayError("the file is not open")
        try:
            return act(self._connection)
        except (sqlite3.IntegrityError, sqlite3.DataError, OverflowError) as error:
            raise RefusedError(type(error).__name__) from error
        except sqlite3.Error as error:
            raise AwayError(str(error)) from error


def _upsert(connection: sqlite3.Connection, rounds: Sequence[Sequence[tuple[object, ...]]]) -> int:
    before = connection.total_changes
    # IMMEDIATE takes the write lock at once: a lock taken later could not be waited for.
    connection.execute("BEGIN IMMEDIATE")
    try:
        for values in rounds:
            connection.executemany(_UPSERT, values)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return connection.total_changes - before


def _values(row: Row, written_at: str) -> tuple[object, ...]:
    missing = orjson.dumps(row.missing).decode()
    return (*row._replace(missing=missing, final=int(row.final), total_conflict=int(row.total_conflict)), written_at)  # type: ignore[arg-type]  # arrays are text here
