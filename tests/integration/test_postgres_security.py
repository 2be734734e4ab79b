"""The PostgreSQL sink with TLS, passwords and certificates, and the least that its role must be allowed."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest
from pydantic import SecretStr

from consumers.commands.sinks import open_for_reading, open_for_writing
from consumers.rows import Arrival, AwayError
from consumers.settings import AuditSettings
from consumers.sinks.postgres import DDL, PostgresSink
from deploy.local.kafka_security import Security
from deploy.local.postgres import LocalPostgres, ServerSecurity
from ingest.contract.result import Result
from ingest.runtime.errors import UsageError
from tests.integration.test_sink_delivery import a_result

PASSWORD = "correct-horse"  # noqa: S105 - of a server that lives as long as these tests
WRONG = "hunter2"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Security:
    """Who certifies the server and its clients."""
    return Security(tmp_path_factory.mktemp("authority"), {})


@pytest.fixture(scope="module")
def server(authority: Security) -> Iterator[LocalPostgres]:
    """A server that wants TLS from everybody but its superuser."""
    own = authority.server("127.0.0.1")
    security = ServerSecurity(
        cert_file=own.cert_file, key_file=own.key_file, ca_file=authority.ca_file, by_certificate=["certified"]
    )
    with LocalPostgres(security=security) as postgres:
        yield postgres


@pytest.fixture
async def admin(server: LocalPostgres) -> AsyncIterator[asyncpg.Connection]:
    """The superuser, in a database without tables, with two roles that may do nothing."""
    connection = await asyncpg.connect(server.dsn)
    await connection.execute("DROP TABLE IF EXISTS message_results; REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    for role in ("knowing", "certified"):
        await connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}") if await _exists(connection, role) else None
        await connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'")
    yield connection
    await connection.close()


async def _exists(connection: asyncpg.Connection, role: str) -> bool:
    return bool(await connection.fetchval("SELECT true FROM pg_roles WHERE rolname = $1", role))


def dsn(server: LocalPostgres, ca_file: Path, *, password: str = PASSWORD, host: str = "127.0.0.1") -> str:
    """Of the role that knows a password."""
    return f"postgresql://knowing:{password}@{host}:{server.port}/postgres?sslmode=verify-full&sslrootcert={ca_file}"


def sink_of(address: str, *, create: bool = True) -> PostgresSink:
    """Not yet open."""
    return PostgresSink(address, now_ms=lambda: 1, create=create)


def batch(*results: Result) -> list[Arrival]:
    """As the sink gets them."""
    return [Arrival(0, number, result) for number, result in enumerate(results)]


async def works(sink: PostgresSink) -> None:
    """It opens, writes, replaces and closes."""
    try:
        await sink.open()
        assert (await sink.write(batch(a_result("m1")))).written == 1
        assert (await sink.write(batch(a_result("m1", 2)))).written == 1
    finally:
        await sink.close()


async def test_a_password_over_tls_with_the_right_to_create_is_enough(
    server: LocalPostgres, authority: Security, admin: asyncpg.Connection
) -> None:
    """CREATE on the schema, and the table is its own; without it the line says what is refused."""
    with pytest.raises(UsageError, match="DLR_POSTGRES_DSN: permission denied for schema public"):
        await works(sink_of(dsn(server, authority.ca_file)))
    await admin.execute("GRANT CREATE ON SCHEMA public TO knowing")

    await works(sink_of(dsn(server, authority.ca_file)))


async def test_a_certificate_is_enough(server: LocalPostgres, authority: Security, admin: asyncpg.Connection) -> None:
    """No password at all: sslcert and sslkey in the DSN."""
    await admin.execute("GRANT CREATE ON SCHEMA public TO certified")
    pair = authority.client("certified")
    pair.key_file.chmod(0o600)
    address = (
        f"postgresql://certified@127.0.0.1:{server.port}/postgres?sslmode=verify-full&sslrootcert={authority.ca_file}"
        f"&sslcert={pair.cert_file}&sslkey={pair.key_file}"
    )

    await works(sink_of(address))


@pytest.mark.parametrize("missing", [None, "SELECT", "INSERT", "UPDATE"])
async def test_without_create_three_rights_on_the_table_are_enough_and_needed(
    server: LocalPostgres, authority: Security, admin: asyncpg.Connection, missing: str | None
) -> None:
    """Each that is missing ends the command at its start, and is named."""
    rights = [right for right in ("SELECT", "INSERT", "UPDATE") if right != missing]
    await admin.execute(f"{DDL} GRANT {', '.join(rights)} ON message_results TO knowing")
    sink = sink_of(dsn(server, authority.ca_file), create=False)
    if missing is None:
        await works(sink)
        return

    words = "permission denied for table" if missing == "SELECT" else f"may not {missing} on message_results"
    with pytest.raises(UsageError, match=f"DLR_POSTGRES_DSN: .*{words}"):
        await works(sink)


async def test_an_audit_only_selects(server: LocalPostgres, authority: Security, admin: asyncpg.Connection) -> None:
    """SELECT on the table is enough for it, and not for a replay."""
    await admin.execute(f"{DDL} GRANT SELECT ON message_results TO knowing")
    settings = AuditSettings(postgres_dsn=SecretStr(dsn(server, authority.ca_file)))

    async with open_for_reading(settings, "postgres") as sink:
        assert [row async for row in sink.stored()] == []
    with pytest.raises(UsageError, match="may not INSERT"):
        async with open_for_writing(settings, "postgres"):
            pass


@pytest.mark.usefixtures("admin")
async def test_what_is_refused_is_said_in_one_line_without_the_password(
    server: LocalPostgres, authority: Security
) -> None:
    """Wrong password, an unknown authority, another host's certificate, no TLS: status 2 at the start."""
    right = dsn(server, authority.ca_file)
    refused = {
        dsn(server, authority.ca_file, password=WRONG): "password authentication failed for user",
        dsn(
            server, authority.strange_ca_file
        ): "the certificate of the database is refused: self-signed certificate in certificate chain",
        dsn(
            server, authority.ca_file, host="localhost"
        ): "the certificate of the database is refused: Hostname mismatch",
        dsn(server, Path("none.pem")): "the file of sslrootcert, none.pem, cannot be read",
        right.replace("verify-full", "disable"): "no pg_hba.conf entry .* no encryption",
    }
    for address, words in refused.items():
        sink = sink_of(address)
        with pytest.raises(UsageError, match=f"DLR_POSTGRES_DSN: .*{words}") as raised:
            await sink.open()
        await sink.close()
        assert raised.value.status == 2
        assert not {PASSWORD, WRONG} & set(str(raised.value).replace("@", " ").replace(":", " ").split())


async def test_a_certificate_that_changes_while_results_come_in_costs_no_result(
    server: LocalPostgres, authority: Security, admin: asyncpg.Connection
) -> None:
    """It is a database that is away, not a row that it refuses, which would become a dead letter."""
    await admin.execute("GRANT CREATE ON SCHEMA public TO knowing")
    sink = sink_of(dsn(server, authority.strange_ca_file))

    with pytest.raises(AwayError, match="the certificate of the database is refused"):
        await sink.write(batch(a_result("m1")))
    await sink.close()
