"""One suite for all sinks: what they promise the delivery loop (contract.md section 9)."""

import sqlite3
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import asyncpg
import orjson
import pytest

from consumers.rows import Arrival, AwayError, RefusedError, StoredRow, WriteCount
from consumers.sinks.base import COLUMNS
from consumers.sinks.jsonl import JsonlSink
from consumers.sinks.postgres import COLUMN_TYPES, PostgresSink
from consumers.sinks.sqlite import SqliteSink
from ingest.contract.result import Outcome, Result, ResultReason, SegmentResult
from ingest.runtime.errors import UsageError

NOW_MS = 1_795_428_000_000
TOPIC = "t.results"


class AnySink(Protocol):
    """What the tests use of every sink."""

    async def open(self) -> None: ...  # noqa: D102
    async def write(self, batch: Sequence[Arrival]) -> WriteCount: ...  # noqa: D102
    def stored(self) -> AsyncIterator[StoredRow]: ...  # noqa: D102
    async def close(self) -> None: ...  # noqa: D102


Make = Callable[[], AnySink]
Query = Callable[[str], Awaitable[list[tuple[Any, ...]]]]


def a_result(message_id: str = "m1", revision: int = 1, *, first: int = 0, **fields: Any) -> Result:
    """A delivered result whose first report came in the given second."""
    known: dict[str, Any] = {
        "schema_version": 1,
        "sms_msg_id": message_id,
        "revision": revision,
        "outcome": Outcome.DELIVERED,
        "final": True,
        "total": 1,
        "received": 1,
        "missing": [],
        "segments": [SegmentResult(1, "DELIVRD", "2", "2023-04-18T07:26:00Z", "000")],
        "reason": ResultReason.COMPLETE if revision == 1 else ResultReason.REVISED,
        "first_received_at": f"2026-11-23T10:00:{first:02}.000Z",
        "last_received_at": f"2026-11-23T10:00:{first:02}.250Z",
    }
    return Result(**known | fields)


def batch_of(*results: Result, partition: int = 0) -> list[Arrival]:
    """A batch as it is read."""
    return [Arrival(partition, offset, result) for offset, result in enumerate(results)]


async def rows_of(sink: AnySink) -> dict[str, int]:
    """Which revision of each message a sink holds."""
    return {row.message_id: row.revision async for row in sink.stored()}


@pytest.fixture
async def schema_dsn(postgres_dsn: str) -> AsyncIterator[str]:
    """The DSN of an empty schema of its own."""
    schema = f"t{uuid.uuid4().hex}"
    connection = await asyncpg.connect(postgres_dsn)
    try:
        await connection.execute(f"CREATE SCHEMA {schema}")
        yield f"{postgres_dsn}?search_path={schema}"
        await connection.execute(f"DROP SCHEMA {schema} CASCADE")
    finally:
        await connection.close()


@pytest.fixture(params=["sqlite", "postgres", "jsonl"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Make a sink on one destination, as often as asked."""
    if request.param == "jsonl":
        return lambda: JsonlSink(tmp_path / "results", TOPIC)
    return request.getfixturevalue(f"make_{request.param}")  # type: ignore[no-any-return]


@pytest.fixture(params=["sqlite", "postgres"])
def make_database(request: pytest.FixtureRequest) -> Make:
    """Make one of the sinks with a table."""
    return request.getfixturevalue(f"make_{request.param}")  # type: ignore[no-any-return]


@pytest.fixture
def make_sqlite(tmp_path: Path) -> Make:
    """Make a sink on one file."""
    return lambda: SqliteSink(tmp_path / "sub" / "results.db", now_ms=lambda: NOW_MS)


@pytest.fixture
def make_postgres(schema_dsn: str) -> Make:
    """Make a sink on one schema."""
    return lambda: PostgresSink(schema_dsn, now_ms=lambda: NOW_MS)


@pytest.fixture
async def sink(make: Make) -> AsyncIterator[AnySink]:
    """An open sink."""
    sink = make()
    await sink.open()
    yield sink
    await sink.close()


@pytest.fixture
async def database(make_database: Make) -> AsyncIterator[AnySink]:
    """An open sink with a table."""
    sink = make_database()
    await sink.open()
    yield sink
    await sink.close()


@pytest.fixture
def query(request: pytest.FixtureRequest, make_database: Make) -> Query:  # noqa: ARG001 - decides which of the two
    """Ask the database behind the tests' back."""
    if "make_sqlite" in request.fixturenames or request.node.callspec.params.get("make_database") == "sqlite":
        path: Path = request.getfixturevalue("tmp_path") / "sub" / "results.db"

        async def ask_sqlite(text: str) -> list[tuple[Any, ...]]:
            connection = sqlite3.connect(path)
            try:
                with connection:
                    return connection.execute(text).fetchall()
            finally:
                connection.close()

        return ask_sqlite
    dsn: str = request.getfixturevalue("schema_dsn")

    async def ask_postgres(text: str) -> list[tuple[Any, ...]]:
        connection = await asyncpg.connect(dsn)
        try:
            return [tuple(record.values()) for record in await connection.fetch(text)]
        finally:
            await connection.close()

    return ask_postgres


async def test_what_is_written_is_what_is_stored(sink: AnySink) -> None:
    """Outcome, numbers, the list of the missing and the segments come back as they went in."""
    result = a_result(
        outcome=Outcome.INCOMPLETE, final=False, total=3, missing=[2, 3], segments=[SegmentResult(1, "ACCEPTD")]
    )

    assert await sink.write(batch_of(result)) == WriteCount(1, 0)

    assert [row async for row in sink.stored()] == [
        StoredRow(
            "m1",
            1,
            {
                "outcome": "incomplete",
                "final": False,
                "total": 3,
                "received": 1,
                "missing": [2, 3],
                "segments": [{"sequence": 1, "status": "ACCEPTD"}],
            },
        )
    ]


async def test_a_lower_revision_never_replaces_a_higher_one(sink: AnySink) -> None:
    """Invariant 7, within a batch and from one to the next."""
    await sink.write(batch_of(a_result(revision=2), a_result(revision=1)))
    await sink.write(batch_of(a_result(revision=1)))
    assert await rows_of(sink) == {"m1": 2}

    await sink.write(batch_of(a_result(revision=3)))
    assert await rows_of(sink) == {"m1": 3}


async def test_a_message_that_came_to_life_again_keeps_its_row(sink: AnySink) -> None:
    """A later life has a later first time, whatever its revisions; in one batch or in several."""
    await sink.write(batch_of(a_result("m1", 1, first=1), a_result("m1", 3, first=9)))
    await sink.write(batch_of(a_result("m2", 1, first=1)))
    await sink.write(batch_of(a_result("m2", 3, first=9), a_result("m2", 4, first=9)))

    assert await rows_of(sink) == {"m1": 1, "m2": 1}


async def test_writing_a_batch_again_changes_no_row(sink: AnySink) -> None:
    """After a crash between the database and the offset the batch comes again."""
    batch = batch_of(a_result("m1"), a_result("m1", 2), a_result("m2", first=3))
    await sink.write(batch)
    before = [row async for row in sink.stored()]

    await sink.write(batch)

    assert [row async for row in sink.stored()] == before


@pytest.mark.parametrize("size", [1, 2, 3, 7])
async def test_batching_does_not_matter(sink: AnySink, size: int) -> None:
    """Lives, revisions and repeats in any batches end in the same rows."""
    results = [
        a_result("a", 1, first=5),
        a_result("a", 1, first=5),
        a_result("b", 1, first=5),
        a_result("a", 2, first=4),
        a_result("b", 3, first=6),
        a_result("a", 1, first=1),
        a_result("a", 3, first=1),
    ]

    for start in range(0, len(results), size):
        await sink.write(batch_of(*results[start : start + size]))

    assert await rows_of(sink) == {"a": 3, "b": 1}


async def test_opening_again_keeps_what_is_there(make: Make) -> None:
    """A restart finds the rows of before; closing twice is harmless."""
    for revision in (1, 2):
        sink = make()
        await sink.open()
        await sink.write(batch_of(a_result(f"m{revision}", revision)))
        await sink.close()
        await sink.close()

    sink = make()
    await sink.open()
    try:
        assert await rows_of(sink) == {"m1": 1, "m2": 2}
    finally:
        await sink.close()


async def test_what_gave_way_is_counted(database: AnySink) -> None:
    """Written and older add up to the batch."""
    batch = batch_of(a_result("a", 1), a_result("a", 2), a_result("b"))

    assert await database.write(batch) == WriteCount(2, 1)
    assert await database.write(batch) == WriteCount(0, 3)
    assert await database.write(batch_of(a_result("a", 3, first=9), a_result("c"))) == WriteCount(1, 1)


async def test_every_column_is_as_the_contract_has_it(database: AnySink, query: Query) -> None:
    """Absent texts are NULL, times and lists in the form of each database."""
    full = a_result(
        "m1", missing=[2], total=2, to="+86", extend="\u00e9", total_conflict=True, outcome=Outcome.INCOMPLETE
    )
    await database.write(batch_of(full, a_result("m2")))

    rows = await query("SELECT * FROM message_results ORDER BY sms_msg_id")

    said = [dict(zip(COLUMNS, map(_plain, row), strict=True)) for row in rows]
    assert said[0] == {
        "sms_msg_id": "m1",
        "revision": 1,
        "outcome": "incomplete",
        "final": True,
        "total": 2,
        "received": 1,
        "missing": [2],
        "recipient": "+86",
        "extend": "\u00e9",
        "segments": [
            {
                "sequence": 1,
                "status": "DELIVRD",
                "source": "2",
                "updateTime": "2023-04-18T07:26:00Z",
                "orgCode": "000",
            }
        ],
        "total_conflict": True,
        "reason": "complete",
        "first_received_at": "2026-11-23T10:00:00.000Z",
        "last_received_at": "2026-11-23T10:00:00.250Z",
        "written_at": "2026-11-23T10:00:00.000Z",
    }
    assert (said[1]["recipient"], said[1]["extend"], said[1]["total_conflict"]) == (None, None, False)


async def test_a_text_with_a_null_character_is_taken(database: AnySink, query: Query) -> None:
    """No database takes U+0000; it is written as U+FFFD, in the segments too."""
    segments = [SegmentResult(1, "S\x00")]

    await database.write(batch_of(a_result(to="+\x00", extend="a\x00b", segments=segments)))

    ((recipient, extend, said),) = await query("SELECT recipient, extend, segments FROM message_results")
    assert (recipient, extend) == ("+\ufffd", "a\ufffdb")
    assert orjson.loads(said) == [{"sequence": 1, "status": "S\ufffd"}]


async def test_a_row_that_cannot_be_stored_is_refused_with_its_batch(database: AnySink) -> None:
    """Nothing of the batch is there, so that it can be halved."""
    with pytest.raises(RefusedError):
        await database.write(batch_of(a_result("m1"), a_result("m2", revision=2**63), a_result("m3")))

    assert await rows_of(database) == {}
    assert await database.write(batch_of(a_result("m1"))) == WriteCount(1, 0)


async def test_a_constraint_of_the_operators_refuses_like_any_other(make_postgres: Make, schema_dsn: str) -> None:
    """A check, and a trigger that raises, are the row's fault; a missing column is not."""
    sink = make_postgres()
    await sink.open()
    connection = await asyncpg.connect(schema_dsn)
    try:
        await connection.execute("ALTER TABLE message_results ADD CHECK (recipient <> '+1')")
        with pytest.raises(RefusedError, match="SQLSTATE 23514"):
            await sink.write(batch_of(a_result(), a_result("m2", to="+1")))

        await connection.execute("ALTER TABLE message_results DROP COLUMN outcome")
        with pytest.raises(AwayError):
            await sink.write(batch_of(a_result()))
    finally:
        await connection.close()
        await sink.close()


async def test_lives_that_meet_in_one_batch_are_written_whole_or_not_at_all(
    make_postgres: Make, schema_dsn: str
) -> None:
    """Two statements are one transaction."""
    sink = make_postgres()
    await sink.open()
    connection = await asyncpg.connect(schema_dsn)
    try:
        await connection.execute("ALTER TABLE message_results ADD CHECK (revision < 3)")
        with pytest.raises(RefusedError):
            await sink.write(batch_of(a_result(first=5), a_result(revision=3, first=9)))
        assert await connection.fetchval("SELECT count(*) FROM message_results") == 0
    finally:
        await connection.close()
        await sink.close()


async def test_the_table_has_the_columns_of_the_contract(make_postgres: Make, schema_dsn: str) -> None:
    """Names and types, in order; opening it again, and side by side, is harmless."""
    sinks = [make_postgres(), make_postgres()]
    for sink in sinks:
        await sink.open()
        await sink.close()
    connection = await asyncpg.connect(schema_dsn)
    try:
        found = await connection.fetch(
            "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute "
            "WHERE attrelid = 'message_results'::regclass AND attnum > 0 ORDER BY attnum"
        )
    finally:
        await connection.close()

    spelled = {
        "integer": "int",
        "boolean": "bool",
        "integer[]": "int[]",
        "timestamp with time zone": "timestamptz",
    }
    assert [(name, spelled.get(kind, kind)) for name, kind in found] == [
        (name, kind.removesuffix(" PRIMARY KEY")) for name, kind in COLUMN_TYPES
    ]


async def test_a_broken_connection_is_made_anew(make_postgres: Make, schema_dsn: str) -> None:
    """At worst the batch that met it says that the database is away; the next try finds it."""
    sink = make_postgres()
    await sink.open()
    connection = await asyncpg.connect(schema_dsn)
    try:
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE query LIKE '%message_results%' AND pid <> pg_backend_pid() AND datname = current_database()"
        )
        try:
            count = await sink.write(batch_of(a_result()))
        except AwayError:
            count = await sink.write(batch_of(a_result()))
        assert count == WriteCount(1, 0)
    finally:
        await connection.close()
        await sink.close()


async def test_a_missing_table_is_not_made_against_the_will(schema_dsn: str, tmp_path: Path) -> None:
    """`--no-create` leaves it to the operator, and says that it is missing; nor is a file made."""
    sqlite3.connect(tmp_path / "empty.db").close()
    with pytest.raises(UsageError, match=r"none\.db: unable to open"):
        await SqliteSink(tmp_path / "none.db", now_ms=lambda: NOW_MS, create=False).open()
    for sink in (
        SqliteSink(tmp_path / "empty.db", now_ms=lambda: NOW_MS, create=False),
        PostgresSink(schema_dsn, now_ms=lambda: NOW_MS, create=False),
    ):
        with pytest.raises(UsageError, match="message_results"):
            await sink.open()
        await sink.close()


async def test_a_wrong_destination_is_a_wrong_setting(postgres_dsn: str, tmp_path: Path) -> None:
    """A database, file or folder that cannot be it is named; waiting would not help."""
    file = tmp_path / "file"
    file.write_text("no database" * 1000)
    for sink in (
        PostgresSink(postgres_dsn.rpartition("/")[0] + "/nowhere", now_ms=lambda: NOW_MS),
        SqliteSink(file, now_ms=lambda: NOW_MS),
        SqliteSink(file / "below", now_ms=lambda: NOW_MS),
        JsonlSink(file, TOPIC),
    ):
        with pytest.raises(UsageError, match=r"DLR_(POSTGRES_DSN|SQLITE_PATH|JSONL_DIR)"):
            await sink.open()


async def test_a_database_that_nobody_serves_is_away() -> None:
    """It may come: whoever starts the sink waits."""
    sink = PostgresSink("postgresql://dlrflow@127.0.0.1:1/dlrflow", now_ms=lambda: NOW_MS)

    with pytest.raises(AwayError):
        await sink.open()


async def test_a_locked_file_is_away(make_sqlite: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another writer's transaction delays a batch and refuses nothing."""
    monkeypatch.setattr("consumers.sinks.sqlite.BUSY_TIMEOUT_S", 0)
    sink = make_sqlite()
    await sink.open()
    other = sqlite3.connect(tmp_path / "sub" / "results.db", isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(AwayError, match="locked"):
            await sink.write(batch_of(a_result()))
        other.execute("ROLLBACK")
        assert await sink.write(batch_of(a_result())) == WriteCount(1, 0)
    finally:
        other.close()
        await sink.close()


async def test_lines_stand_in_the_file_of_their_partition(tmp_path: Path) -> None:
    """One result per line, every revision, exactly as on the topic."""
    sink = JsonlSink(tmp_path, TOPIC)
    await sink.open()

    await sink.write([*batch_of(a_result("a"), a_result("a", 2)), *batch_of(a_result("b"), partition=11)])

    lines = (tmp_path / f"{TOPIC}-0.jsonl").read_bytes().splitlines()
    assert [orjson.loads(line)["revision"] for line in lines] == [1, 2]
    assert orjson.loads((tmp_path / f"{TOPIC}-11.jsonl").read_bytes())["smsMsgId"] == "b"


@pytest.mark.parametrize("torn", [b'{"schemaVersion":1,"smsMs', b"x" * 200_000])
@pytest.mark.parametrize("whole", [b"", b'{"a":1}\n'])
async def test_a_torn_last_line_is_cut_at_the_start(tmp_path: Path, whole: bytes, torn: bytes) -> None:
    """What a crash left of a line never becomes part of another; files of others stay as they are."""
    path, other = tmp_path / f"{TOPIC}-3.jsonl", tmp_path / f"{TOPIC}-x.jsonl"
    path.write_bytes(whole + torn)
    other.write_bytes(torn)
    sink = JsonlSink(tmp_path, TOPIC)

    await sink.open()

    assert path.read_bytes() == whole
    assert other.read_bytes() == torn


async def test_a_line_torn_while_running_is_cut_before_the_next(tmp_path: Path) -> None:
    """Another process of the group may have died in the middle of one."""
    sink = JsonlSink(tmp_path, TOPIC)
    await sink.open()
    await sink.write(batch_of(a_result("a")))
    path = tmp_path / f"{TOPIC}-0.jsonl"
    with path.open("ab") as file:
        file.write(b'{"torn')

    await sink.write(batch_of(a_result("b")))

    assert await rows_of(sink) == {"a": 1, "b": 1}
    assert path.read_bytes().count(b"\n") == 2


async def test_a_disk_that_fails_in_the_middle_leaves_no_part_of_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines come again as a whole once the disk serves."""
    sink = JsonlSink(tmp_path, TOPIC)
    await sink.open()
    await sink.write(batch_of(a_result("a")))

    def fail(_file: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("consumers.sinks.jsonl.os.fdatasync", fail)
        with pytest.raises(AwayError, match="No space"):
            await sink.write(batch_of(a_result("b")))

    assert await rows_of(sink) == {"a": 1}
    await sink.write(batch_of(a_result("b")))
    assert await rows_of(sink) == {"a": 1, "b": 1}


def _plain(value: Any) -> Any:
    """A value of either database in one form."""
    if hasattr(value, "isoformat"):
        return value.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if isinstance(value, str) and value.startswith(("[", "{")):
        return orjson.loads(value)
    return value
