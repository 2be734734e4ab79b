"""Results in a PostgreSQL table: one statement a batch, committed before `write` returns."""

import os
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import asyncpg
import orjson

from consumers.rows import Arrival, AwayError, RefusedError, StoredRow, WriteCount
from consumers.sinks.base import COLUMNS, TABLE, Row, coalesce, row_of
from ingest.contract.result import Result
from ingest.runtime.errors import UsageError

CONNECT_TIMEOUT_S = 10
COMMAND_TIMEOUT_S = 60
"""A batch that takes longer is tried anew on a new connection."""
CLOSE_TIMEOUT_S = 5
READ_ROWS = 5000

COLUMN_TYPES = (
    ("sms_msg_id", "text PRIMARY KEY"),
    ("revision", "int"),
    ("outcome", "text"),
    ("final", "bool"),
    ("total", "int"),
    ("received", "int"),
    ("missing", "int[]"),
    ("recipient", "text"),
    ("extend", "text"),
    ("segments", "jsonb"),
    ("total_conflict", "bool"),
    ("reason", "text"),
    ("first_received_at", "timestamptz"),
    ("last_received_at", "timestamptz"),
    ("written_at", "timestamptz"),
)
DDL = f"CREATE TABLE IF NOT EXISTS {TABLE} (\n" + ",\n".join(f"    {n} {t}" for n, t in COLUMN_TYPES) + "\n);\n"

_SENT = ("text", "int", "text", "bool", "int", "int", "text", "text", "text", "text", "bool", "text")
"""Types of the arrays that are unnested; an array of arrays cannot be, so `missing` and `segments` come as text."""
_UPSERT = f"""
INSERT INTO {TABLE} ({", ".join(COLUMNS)})
SELECT sms_msg_id, revision, outcome, final, total, received, missing::int[], recipient, extend, segments::jsonb,
    total_conflict, reason, first_received_at, last_received_at, ${len(COLUMNS)}
FROM unnest({", ".join(f"${at}::{kind}[]" for at, kind in enumerate(_SENT, start=1))},
    $13::timestamptz[], $14::timestamptz[]) AS new ({", ".join(COLUMNS[:-1])})
ON CONFLICT (sms_msg_id) DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in COLUMNS[1:])}
WHERE excluded.revision > {TABLE}.revision AND excluded.first_received_at <= {TABLE}.first_received_at
"""  # noqa: S608 - names of our own
_READ = f"""
SELECT sms_msg_id, revision, outcome, final, total, received, missing, segments::text AS segments FROM {TABLE}
"""  # noqa: S608 - names of our own

ROW_FAULTS = ("22", "23", "54", "P0001")
"""SQLSTATE beginnings for which the row is to blame: data, constraint, a limit of the program, a trigger's refusal."""
_SETUP_FAULTS = ("28", "3D", "42")
"""Login, database, privileges and columns: at the start whoever started us must act."""

_UNTRUSTED = ssl.SSLCertVerificationError
"""The database's certificate is not by whom it should be, or is for another host."""

_FILES = ("sslrootcert", "sslcert", "sslkey", "sslcrl")
_WRITING = ("SELECT", "INSERT", "UPDATE")

_BROKEN = (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""What a connection raises that broke; the last one where the server's farewell met the next statement."""


class PostgresSink:
    """The table `message_results` of one database, over one connection that is made anew when it breaks."""

    kind = "postgres"

    def __init__(self, dsn: str, *, now_ms: Callable[[], int], create: bool = True, writes: bool = True) -> None:
        """Describe it; nothing happens before `open`.

        Args:
            dsn: of the database.
            now_ms: wall clock, for `written_at`.
            create: make the table if it is missing.
            writes: whether rows will be written, so that it must be allowed.
        """
        self._dsn = dsn
        self._writes = writes
        self._now_ms = now_ms
        self._create = create
        self._connection: asyncpg.Connection | None = None

    async def open(self) -> None:
        """Connect and make sure of the table.

        Raises:
            UsageError: login, database, privileges or columns are not as they must be.
            AwayError: the database cannot be reached.
        """
        _look_for_files(self._dsn)
        try:
            with self._errors():
                await self._ensure_table(await self._connected())
        except RefusedError as error:  # the table is there and no row was sent: another process makes it just now
            raise AwayError(str(error)) from error
        except AwayError as error:
            if _state(error.__cause__).startswith(_SETUP_FAULTS) or isinstance(error.__cause__, _UNTRUSTED):
                raise UsageError(f"DLR_POSTGRES_DSN: {error}") from error
            raise

    async def write(self, batch: Sequence[Arrival]) -> WriteCount:
        """Store what is newer; on return it is committed. Writing a batch twice is harmless.

        Raises:
            RefusedError: the database will not take some row; nothing of the batch was stored.
            AwayError: not reachable, read-only, out of resources, or its table is not as it was.
        """
        with self._errors():
            written = await self._upsert(coalesce(batch))
        return WriteCount(written, len(batch) - written)

    async def stored(self) -> AsyncIterator[StoredRow]:
        """Every row, in no order.

        Raises:
            AwayError: the database cannot be read just now.
        """
        with self._errors():
            connection = await self._connected()
            async with connection.transaction():
                async for record in connection.cursor(_READ, prefetch=READ_ROWS):
                    row = dict(record)
                    message_id, revision = row.pop("sms_msg_id"), row.pop("revision")
                    yield StoredRow(message_id, revision, row | {"segments": orjson.loads(row["segments"])})

    async def close(self) -> None:
        """Close the connection; twice is harmless."""
        connection, self._connection = self._connection, None
        if connection is not None and not connection.is_closed():
            try:
                await connection.close(timeout=CLOSE_TIMEOUT_S)
            except (*_BROKEN, asyncpg.PostgresError):
                connection.terminate()

    async def _upsert(self, rounds: Sequence[Sequence[Result]]) -> int:
        written_at = datetime.fromtimestamp(self._now_ms() / 1000, UTC)
        calls = [[list(column) for column in zip(*map(_values, results), strict=True)] for results in rounds]
        connection = await self._connected()
        if len(calls) == 1:  # a single statement is a transaction, and one round trip
            return _rows(await connection.execute(_UPSERT, *calls[0], written_at))
        async with connection.transaction():
            return sum([_rows(await connection.execute(_UPSERT, *columns, written_at)) for columns in calls])

    async def _connected(self) -> asyncpg.Connection:
        if self._connection is None or self._connection.is_closed():
            try:
                connection = await asyncpg.connect(
                    self._dsn, timeout=CONNECT_TIMEOUT_S, command_timeout=COMMAND_TIMEOUT_S
                )
            except _UNTRUSTED as error:  # a ValueError as well
                raise AwayError(f"the certificate of the database is refused: {error.verify_message}") from error
            except ValueError as error:
                raise UsageError("DLR_POSTGRES_DSN cannot be used as it is") from error
            self._connection = connection
            # The offset that is committed afterwards must not outlive the rows.
            if await connection.fetchval("SHOW synchronous_commit") == "off":
                await connection.execute("SET synchronous_commit = on")
        return self._connection

    async def _ensure_table(self, connection: asyncpg.Connection) -> None:
        # A role that may not create gets an error even from IF NOT EXISTS: look first.
        if self._create and await connection.fetchval("SELECT to_regclass($1)", TABLE) is None:
            try:
                await connection.execute(DDL)
            except (asyncpg.UniqueViolationError, asyncpg.DuplicateTableError):
                # Two sinks that start at once: the other one made it.
                await connection.execute(DDL)
        await connection.execute(f"SELECT {', '.join(COLUMNS)} FROM {TABLE} LIMIT 0")  # noqa: S608 - our own names
        if self._writes:
            for right in _WRITING:
                if not await connection.fetchval("SELECT has_any_column_privilege($1, $2)", TABLE, right):
                    raise UsageError(f"DLR_POSTGRES_DSN: this role may not {right} on {TABLE}")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Divide what asyncpg raises into what the row is to blame for, and what may pass on a new connection."""
        try:
            yield
        except asyncpg.PostgresError as error:
            if _state(error).startswith(ROW_FAULTS):
                raise RefusedError(f"SQLSTATE {_state(error)}") from error
            self._drop()
            raise AwayError(_said(error)) from error
        except _BROKEN as error:
            # asyncpg's own check of an argument is a ValueError too, raised before anything is sent.
            if isinstance(error, ValueError):
                raise RefusedError("a value does not fit its column") from error
            self._drop()
            raise AwayError(_said(error)) from error

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()


def _look_for_files(dsn: str) -> None:
    """A certificate that is not there is no database that is away."""
    for name, value in parse_qsl(urlsplit(dsn).query):
        if name in _FILES and not os.access(value, os.R_OK):
            raise UsageError(f"DLR_POSTGRES_DSN: the file of {name}, {value}, cannot be read")


def _values(result: Result) -> tuple[Any, ...]:
    row: Row = row_of(result)
    missing = "{" + ",".join(map(str, row.missing)) + "}"
    first, last = datetime.fromisoformat(row.first_received_at), datetime.fromisoformat(row.last_received_at)
    return (*row[:6], missing, *row[7:12], first, last)


def _rows(status: str) -> int:
    """The number in a command's status, as in `INSERT 0 17`."""
    return int(status.rpartition(" ")[2])


def _state(error: BaseException | None) -> str:
    return (error.sqlstate or "") if isinstance(error, asyncpg.PostgresError) else ""


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__
