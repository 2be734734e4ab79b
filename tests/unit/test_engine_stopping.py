"""Stopping a client of aiokafka."""

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from consumers.engine.stopping import stop_client


class Connections:
    """The connections of a client."""

    def __init__(self) -> None:
        self.closed = False

    async def close(self) -> None:
        """Close them."""
        self.closed = True


class Fetcher:
    """The fetches of a consumer: tasks that sleep before they try again."""

    def __init__(self, fetches: int) -> None:
        self._pending_tasks = {asyncio.create_task(asyncio.sleep(3600)) for _ in range(fetches)}

    @property
    def fetches(self) -> "set[asyncio.Task[None]]":
        """Its tasks."""
        return self._pending_tasks


class FailedFetch:
    """A consumer with fetches that wait to be tried again; its stop does with them what aiokafka's does."""

    def __init__(self, fetches: int) -> None:
        self._fetcher = Fetcher(fetches)
        self._client = Connections()

    @property
    def parts(self) -> tuple[Fetcher, Connections]:
        """What must have ended."""
        return self._fetcher, self._client

    async def stop(self) -> None:
        """Stop."""
        for fetch in self._fetcher.fetches:
            fetch.cancel()
            await fetch
        await self._client.close()


class Stuck:
    """A client whose broker is away."""

    def __init__(self) -> None:
        self.let = asyncio.Event()
        self.stopped = asyncio.Event()

    async def stop(self) -> None:
        """Wait for it."""
        await self.let.wait()
        self.stopped.set()


class Broken:
    """A client in a fatal state."""

    async def stop(self) -> None:
        """Fail."""
        raise AssertionError("Invalid state transition")


async def test_a_client_that_cancels_its_own_fetch_never_cancels_who_stops_it() -> None:
    """A consumer whose fetch failed is stopped to the end, and the task that stopped it goes on."""
    client = FailedFetch(3)
    assert await stop_client(client, timeout_s=5)
    fetcher, connections = client.parts
    assert all(fetch.done() for fetch in fetcher.fetches)
    assert connections.closed
    task: asyncio.Task[Any] | None = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()


async def test_a_stop_that_does_not_end_is_left_behind_and_goes_on() -> None:
    """Whoever stops a client whose broker is away goes on in time, and the stop ends when it can."""
    client = Stuck()
    assert not await stop_client(client, timeout_s=0.01)
    client.let.set()
    async with asyncio.timeout(5):
        await client.stopped.wait()


async def test_a_stop_that_fails_is_said_and_not_raised() -> None:
    """A client in a fatal state counts as stopped."""
    with capture_logs() as said:
        assert await stop_client(Broken(), timeout_s=5)
    assert "Invalid state transition" in said[0]["error"]


async def test_who_stops_a_client_can_be_cancelled_and_the_stop_goes_on() -> None:
    """A cancellation that is meant for the caller reaches the caller, and not the stop."""
    client = Stuck()
    caller = asyncio.create_task(stop_client(client, timeout_s=60))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    client.let.set()
    async with asyncio.timeout(5):
        await client.stopped.wait()
