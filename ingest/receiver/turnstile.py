"""Lets a few pass in each turn of the event loop.

Requests that were sent ahead of the answers to others (pipelining) are ready all at once. Two thousand connections that
do so would make every turn of the loop two thousand requests long, and everybody else waits for a turn or two.
"""

import asyncio
from collections import deque


class Turnstile:
    """First come, first served.

    Args:
        loop: whose turns count.
        most: that pass in each.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, most: int) -> None:
        self._loop = loop
        self._most = most
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._turns = False

    async def pass_through(self) -> None:
        """Wait for one's turn; whoever is cancelled meanwhile takes nobody's place."""
        waiter = self._loop.create_future()
        self._waiting.append(waiter)
        if not self._turns:
            self._turns = True
            self._loop.call_soon(self._turn)
        await waiter

    def _turn(self) -> None:
        passed = 0
        while self._waiting and passed < self._most:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                passed += 1
        self._turns = bool(self._waiting)
        if self._turns:
            self._loop.call_soon(self._turn)
