"""Health and metrics answer on their own port."""

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus

import aiohttp
import pytest

from ingest.runtime.admin import AdminServer, Health
from ingest.runtime.errors import UsageError

WELL = Health(live=True, ready=True, detail={"pending": 3})
Start = Callable[..., Awaitable[int]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Start a server and return its port; all are stopped at the end."""
    servers = []

    async def begin(health: Health = WELL, *, port: int = 0, explicit: bool = False) -> int:
        server = AdminServer(
            "127.0.0.1", port, explicit=explicit, health=lambda: health, metrics=lambda: b"dlrflow_lag_seconds 1.0\n"
        )
        servers.append(server)
        return await server.start()

    yield begin
    for server in servers:
        await server.stop()


@pytest.fixture
def taken() -> AsyncIterator[int]:  # type: ignore[misc]
    """A port that somebody else listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


async def get(port: int, path: str) -> tuple[int, str, str]:
    """Status, content type and text of an answer."""
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}{path}") as response:
        return response.status, response.headers["Content-Type"], await response.text()


@pytest.mark.parametrize(
    ("health", "live", "ready"),
    [
        (WELL, HTTPStatus.OK, HTTPStatus.OK),
        (Health(live=True, ready=False), HTTPStatus.OK, HTTPStatus.SERVICE_UNAVAILABLE),
        (Health(live=False, ready=False), HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.SERVICE_UNAVAILABLE),
    ],
)
async def test_live_and_ready_are_told_by_status(start: Start, health: Health, live: int, ready: int) -> None:
    """Orchestrators look at the status alone."""
    port = await start(health)

    assert (await get(port, "/livez"))[0] == live
    assert (await get(port, "/readyz"))[0] == ready
    assert (await get(port, "/healthz"))[0] == ready


async def test_health_in_detail_is_json(start: Start) -> None:
    """People and scripts see why."""
    status, kind, text = await get(await start(), "/healthz")

    assert (status, text) == (HTTPStatus.OK, '{"live":true,"ready":true,"pending":3}')
    assert kind.startswith("application/json")


async def test_metrics_are_prometheus_text(start: Start) -> None:
    """Prometheus finds the text with a content type that it knows."""
    status, kind, text = await get(await start(), "/metrics")

    assert (status, text) == (HTTPStatus.OK, "dlrflow_lag_seconds 1.0\n")
    assert kind.startswith("text/plain; version=")


async def test_nothing_else_is_served(start: Start) -> None:
    """Other paths do not exist."""
    assert (await get(await start(), "/"))[0] == HTTPStatus.NOT_FOUND


async def test_a_taken_default_port_gives_way_to_a_free_one(start: Start, taken: int) -> None:
    """Two commands on one machine need no configuration."""
    port = await start(port=taken)

    assert port not in {0, taken}
    assert (await get(port, "/livez"))[0] == HTTPStatus.OK


async def test_a_taken_port_that_was_chosen_is_an_error(start: Start, taken: int) -> None:
    """Whoever chose a port expects to find us there."""
    with pytest.raises(UsageError, match=f"admin port 127.0.0.1:{taken} is taken \\(DLR_ADMIN_PORT\\)"):
        await start(port=taken, explicit=True)


async def test_an_address_that_is_not_ours_is_an_error() -> None:
    """An address that cannot be listened on ends the command with one line."""
    server = AdminServer("192.0.2.1", 0, explicit=False, health=lambda: WELL, metrics=bytes)

    with pytest.raises(UsageError, match=r"admin port 192\.0\.2\.1:0 cannot be listened on \(DLR_ADMIN_HOST, "):
        await server.start()
    await server.stop()


async def test_health_may_be_asked_for_asynchronously() -> None:
    """A command may have to look before it can say."""

    async def look() -> Health:
        return WELL

    server = AdminServer("127.0.0.1", 0, explicit=False, health=look, metrics=bytes)
    port = await server.start()

    status = (await get(port, "/readyz"))[0]

    await server.stop()
    assert status == HTTPStatus.OK
