"""What must be there before a command can work, and a signal that comes before it is."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from ingest.runtime.errors import ServiceAwayError

T = TypeVar("T")


class StoppedError(Exception):
    """Told to stop before it had begun."""


async def done_before(stop: asyncio.Event, starting: Awaitable[T]) -> T:
    """What `starting` comes to, unless `stop` is set first; then it is cancelled.

    Raises:
        StoppedError: `stop` was set.
        ServiceAwayError: it was cancelled, but not by us: a client of a service that went away does that.
        Exception: what it raises.
    """
    task = asyncio.ensure_future(starting)
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
    if not task.cancelled():
        return task.result()
    if stop.is_set():
        raise StoppedError
    raise ServiceAwayError("a connection was given up while the command started")
