"""How every client of aiokafka is stopped: in a task of its own, and with a deadline.

A stop of aiokafka has two habits that must not reach whoever asked for it. It waits for brokers that are away, with no
end; and it cancels a fetch of its own and then waits for it without a net, so that a consumer whose last fetch failed
raises `asyncio.CancelledError` out of `stop()`. A task that awaits that looks as if somebody had cancelled it: it ends
without a trace, and the process with a traceback. It also leaves the connections open, which are closed here.
"""

import asyncio
from typing import Any, Protocol

import structlog

STOP_TIMEOUT_S = 5.0

_log = structlog.get_logger(__name__)

_unfinished: set["asyncio.Task[None]"] = set()


class Client(Protocol):
    """What is used of a consumer or producer of aiokafka, or of one of ours around it."""

    async def stop(self) -> None: ...  # noqa: D102


async def stop_client(client: Client, *, timeout_s: float = STOP_TIMEOUT_S) -> bool:
    """Stop a client and raise nothing but a cancellation that is meant for the caller.

    Args:
        client: started, or failed to start: that one too holds connections.
        timeout_s: after so long the stop goes on in the background, without the caller.

    Returns:
        Whether it has stopped, cleanly or not.
    """
    stopping = asyncio.create_task(stop_wholly(client), name="stop of a kafka client")
    _unfinished.add(stopping)
    stopping.add_done_callback(_look)
    done, _ = await asyncio.wait({stopping}, timeout=timeout_s)
    if not done:
        _log.warning("a kafka client takes too long to stop, going on without", waited_s=timeout_s)
    return bool(done)


async def stop_wholly(client: Client) -> None:
    """Stop a client however long it takes, to the end also where aiokafka's own stop ends in the middle.

    Raises:
        Exception: what the client's stop raises.
    """
    try:
        await client.stop()
    except asyncio.CancelledError:
        if is_cancelled():
            raise
        await _close_what_is_left(client)
    except Exception:
        await _close_what_is_left(client)
        raise


def is_cancelled() -> bool:
    """Whether somebody has asked this task to end: else a `CancelledError` in it came out of what it waited for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _close_what_is_left(client: Any) -> None:
    """Do what a consumer's stop does after the fetch that ended it: end the other fetches, close the connections."""
    fetches = [fetch for fetch in getattr(getattr(client, "_fetcher", None), "_pending_tasks", ()) if not fetch.done()]
    for fetch in fetches:
        fetch.cancel()
    if fetches:
        await asyncio.wait(fetches)
    connections = getattr(client, "_client", None) or getattr(client, "client", None)
    if connections is not None:
        await connections.close()


def _look(stopping: "asyncio.Task[None]") -> None:
    _unfinished.discard(stopping)
    if stopping.cancelled():
        return
    if (error := stopping.exception()) is not None:
        _log.warning("a kafka client did not stop cleanly", error=f"{type(error).__name__}: {error}")
