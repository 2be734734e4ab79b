"""Connections that a broker has reset, and clients that have stopped working without a word."""

import asyncio
import socket
import struct
from types import SimpleNamespace

import pytest
import uvloop
from aiokafka.conn import AIOKafkaConnection
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.metadata import MetadataRequest

from ingest.runtime.connections import check_alive, notice_resets

STEPS = 50


async def _sends_after_a_reset() -> list[BaseException]:
    """What sends come to in the moments after a reset, up to the first that is told."""
    notice_resets()
    failures: list[BaseException] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = server.getsockname()
        connection = AIOKafkaConnection(*place)
        connection._reader, connection._writer = await asyncio.open_connection(*place)
        connection._versions = {3: (0, 1)}
        connection._read_task = connection._create_reader_task()
        peer, _ = server.accept()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        for _ in range(STEPS):
            try:
                waiting = asyncio.ensure_future(connection.send(MetadataRequest([])))
                waiting.add_done_callback(lambda sent: sent.cancelled() or sent.exception())
            except (KafkaConnectionError, RuntimeError) as error:
                failures.append(error)
                break
            await asyncio.sleep(0)
        connection.close()
    return failures


def test_a_write_to_a_reset_connection_is_a_broken_connection() -> None:
    """Under uvloop, too: anything else would end the task of the client that was about to write."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        failures = runner.run(_sends_after_a_reset())

    assert [type(failure) for failure in failures] == [KafkaConnectionError]


@pytest.mark.parametrize("which", ["fetching", "metadata"])
async def test_a_consumer_whose_task_has_ended_is_told(which: str) -> None:
    """It would hand out nothing for ever and look well."""

    async def failing() -> None:
        raise RuntimeError("the handler is closed")

    ended, going = asyncio.create_task(failing()), asyncio.create_task(asyncio.Event().wait())
    await asyncio.wait({ended})
    fetching, metadata = (ended, going) if which == "fetching" else (going, ended)
    alive = SimpleNamespace(_fetcher=SimpleNamespace(error_future=going), _client=SimpleNamespace(_sync_task=going))
    dead = SimpleNamespace(
        _fetcher=SimpleNamespace(error_future=fetching), _client=SimpleNamespace(_sync_task=metadata)
    )

    check_alive(alive)
    with pytest.raises(KafkaConnectionError, match="the handler is closed"):
        check_alive(dead)
    going.cancel()
