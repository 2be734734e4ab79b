"""Few pass at a time."""

import asyncio

from ingest.receiver.turnstile import Turnstile


async def test_so_many_pass_in_a_moment_in_their_order() -> None:
    """Nobody overtakes, and whoever gave up takes nobody's place."""
    turnstile = Turnstile(asyncio.get_running_loop(), 2)
    passed: list[int] = []

    async def walk(number: int) -> None:
        await turnstile.pass_through()
        passed.append(number)

    walks = [asyncio.create_task(walk(number)) for number in range(6)]
    await asyncio.sleep(0)
    at_once = list(passed)
    walks[2].cancel()
    await asyncio.wait(walks)

    assert at_once == [0, 1]
    assert passed == [0, 1, 3, 4, 5]
