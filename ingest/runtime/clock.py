"""Time as an argument."""

import asyncio
import time
from typing import Protocol

_NS_PER_MS = 1_000_000


class Clock(Protocol):
    """Where code that decides by time gets it from."""

    def wall_ms(self) -> int:
        """Milliseconds since the epoch; may jump."""
        ...

    def monotonic(self) -> float:
        """Seconds since some moment; never falls."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return once so many seconds of `monotonic` have passed."""
        ...


class SystemClock:
    """The time of this machine."""

    def wall_ms(self) -> int:
        """Milliseconds since the epoch."""
        return time.time_ns() // _NS_PER_MS

    def monotonic(self) -> float:
        """Seconds since some moment."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Let the event loop do other things for so long."""
        await asyncio.sleep(seconds)
