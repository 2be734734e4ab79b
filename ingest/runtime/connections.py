"""Two things that aiokafka does not notice by itself, and that would leave a client standing still without a word.

A connection that a broker has reset: uvloop refuses a write to it with a bare RuntimeError until aiokafka has heard of
the end, some steps of the loop later. aiokafka expects an OSError there; anything else ends whichever of its background
tasks was about to write. And a background task that has ended: only the group's is looked at.
"""

import functools
from typing import Any

from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.errors import KafkaConnectionError, KafkaError

_send = AIOKafkaConnection.send


@functools.wraps(_send)
def _send_or_close(self: Any, request: Any, expect_response: bool = True) -> Any:  # noqa: FBT001, FBT002 - aiokafka's
    try:
        return _send(self, request, expect_response=expect_response)
    except KafkaError:  # which is a RuntimeError, too
        raise
    except RuntimeError as error:
        if not self._writer.transport.is_closing():
            raise
        self.close(reason=CloseReason.CONNECTION_BROKEN)
        raise KafkaConnectionError(f"connection at {self.host}:{self.port} broken: {error}") from error


def notice_resets() -> None:
    """Let every connection of this process take a refused write for a broken connection. Twice is harmless."""
    AIOKafkaConnection.send = _send_or_close


def check_alive(consumer: Any) -> None:
    """Look at the background tasks of an aiokafka consumer.

    Raises:
        KafkaConnectionError: one has ended. The consumer hands out nothing more: make another one.
    """
    tasks = (consumer._fetcher and consumer._fetcher.error_future, consumer._client._sync_task)  # noqa: SLF001 - nothing public says it
    for task in tasks:
        if task is not None and task.done():
            error = None if task.cancelled() else task.exception()
            raise KafkaConnectionError(f"a background task of a Kafka client has ended: {error!r}")
