"""Lets a few pass in each moment.

Requests that were sent ahead of the answers to others (pipelining) are ready all at once. Two thousand connections that
do so would make every turn of the event loop two thousand requests long, and everybody else waits for a turn or two.
"""

import asyncio
from collections import deque
from typing import Final

MOMENT_S: Final = 0.001


class Turnstile:
    """First come, first served.

    Args:
        loop: whose time counts.
        most: that pass in each `MOMENT_S`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, most: int) -> None:
        self._loop = loop
        self._most = most
        self._room = most
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._moment: asyncio.TimerHandle | None = None

    async def pass_through(self) -> None:
        """Wait for one's turn; whoever is cancelled meanwhile takes nobody's place."""
        if self._moment is None:
            self._moment = self._loop.call_later(MOMENT_S, self._next)
        if self._room and not self._waiting:
            self._room -= 1
            return
        waiter = self._loop.create_future()
        self._waiting.append(waiter)
        await waiter

    def _next(self) -> None:
        self._room = self._most
        while self._waiting and self._room:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                self._room -= 1
        # A moment in which nobody passed was the last one.
        used = self._room < self._most
        self._moment = self._loop.call_later(MOMENT_S, self._next) if used else None
