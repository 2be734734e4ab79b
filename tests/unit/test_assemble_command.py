"""The beginning of `assemble`, with brokers that take connections and never answer."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from consumers.commands.assemble import serve
from consumers.commands.starting import StoppedError, done_before
from consumers.engine.protocols import LedgerStore
from consumers.settings import AssembleSettings
from ingest.runtime.errors import ServiceAwayError
from ingest.runtime.kafka import TopicAdmin


class Silent:
    """A broker that takes every connection and says nothing."""

    def __init__(self) -> None:
        self.bootstrap = ""
        self.asked = asyncio.Event()
        self._over = asyncio.Event()

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Take connections."""
        server = await asyncio.start_server(self._take, "127.0.0.1", 0)
        self.bootstrap = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield
        finally:
            self._over.set()
            server.close()
            await server.wait_closed()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read(1)
            self.asked.set()
            await self._over.wait()
        finally:
            writer.close()


def no_store(partitions: int, cluster: str) -> LedgerStore:
    """Nothing gets that far."""
    raise AssertionError((partitions, cluster))


async def test_a_stop_at_the_start_is_heard_while_kafka_is_away(tmp_path: Path) -> None:
    """Told to stop before Kafka has answered, the assembler ends at once, and well."""
    broker, stop = Silent(), asyncio.Event()
    async with broker.listening():
        settings = AssembleSettings(kafka_bootstrap_servers=broker.bootstrap, admin_port=0, state_dir=tmp_path)
        running = asyncio.create_task(serve(settings, no_store, stop=stop, resume=asyncio.Event()))
        await asyncio.wait({running, asyncio.create_task(broker.asked.wait())}, return_when=asyncio.FIRST_COMPLETED)
        assert not running.done()

        stop.set()

        async with asyncio.timeout(5):
            await running


async def test_the_questions_at_the_start_have_a_deadline() -> None:
    """Brokers that never answer are told from a cluster."""
    broker = Silent()
    async with broker.listening(), asyncio.timeout(5):
        with pytest.raises(ServiceAwayError):
            async with TopicAdmin({"bootstrap_servers": [broker.bootstrap]}, patience_s=0.1) as admin:
                await admin.cluster_id()


async def test_a_start_that_a_client_cancelled_is_a_service_that_is_away() -> None:
    """It is no stop that somebody asked for: the status must say so."""

    async def starting() -> None:
        raise asyncio.CancelledError

    with pytest.raises(ServiceAwayError):
        await done_before(asyncio.Event(), starting())


async def test_a_start_is_what_it_comes_to_unless_it_is_stopped_first() -> None:
    """What has started is handed out; what has not is cancelled."""
    stop, cancelled = asyncio.Event(), asyncio.Event()

    async def never() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    assert await done_before(stop, asyncio.sleep(0, "started")) == "started"
    stop.set()
    with pytest.raises(StoppedError):
        await done_before(stop, never())
    assert cancelled.is_set()
