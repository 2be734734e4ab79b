"""Files that are followed: late looks are told, whoever hangs, and the last one is a figure."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from ingest.receiver import looks
from ingest.receiver.looks import Followed, LookedAt, NotNowError
from ingest.runtime.clock import SystemClock


class Clock(SystemClock):
    """A clock whose pauses only let others run."""

    async def sleep(self, seconds: float) -> None:  # noqa: ARG002 - part of the protocol
        """Go on soon."""
        await asyncio.sleep(0)

    def wall_ms(self) -> int:
        """Milliseconds since the epoch."""
        return 7_500


Follow = Callable[[Followed[str]], Awaitable[tuple[asyncio.Event, asyncio.Event]]]


@pytest.fixture
async def follow() -> AsyncIterator[Follow]:
    """Follows files until the end of the test; tells by events of looks that succeed and of those that are late."""
    tasks: list[asyncio.Task[None]] = []

    async def begin(files: Followed[str]) -> tuple[asyncio.Event, asyncio.Event]:
        looked, late = asyncio.Event(), asyncio.Event()
        tasks.append(asyncio.create_task(files.follow(Clock(), on_look=looked.set, on_late=late.set)))
        return looked, late

    yield begin
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def ignore(_found: str) -> None:
    """Take nothing over."""


async def test_a_look_that_hangs_is_told(follow: Follow, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead file system: no look comes to an end, and what counts grows old."""
    monkeypatch.setattr(looks, "LATE_AFTER_S", 0.0)
    shut = threading.Event()
    with capture_logs() as lines:
        looked, late = await follow(Followed("FILES", read=lambda: str(shut.wait(10)), take=ignore, taken="True"))
        await asyncio.wait_for(late.wait(), 10)
        assert not looked.is_set()
        monkeypatch.setattr(looks, "LATE_AFTER_S", 30.0)
        shut.set()
        await asyncio.wait_for(looked.wait(), 10)

    assert [(line["log_level"], line["event"], line["files"]) for line in lines] == [
        ("error", "files could not be looked at for long: what was read counts on", "FILES"),
        ("info", "files are looked at again", "FILES"),
    ]


async def test_files_that_never_hold_still_are_told(follow: Follow, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look finds something else, so nothing is ever taken over."""
    monkeypatch.setattr(looks, "LATE_AFTER_S", 0.0)
    numbers = iter(range(10**9))
    taken: list[str] = []

    async def take(found: str) -> None:
        taken.append(found)

    looked, late = await follow(Followed("FILES", read=lambda: str(next(numbers)), take=take))
    await asyncio.wait_for(late.wait(), 10)

    assert not looked.is_set()
    assert not taken


async def test_a_look_in_time_puts_the_alarm_off(follow: Follow, monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadline counts from the last look that succeeded."""
    armed: list[float] = []
    loop = asyncio.get_running_loop()
    call_later = loop.call_later

    def arm(delay: float, *args: object) -> asyncio.TimerHandle:
        armed.append(delay)
        handles.append(call_later(delay, *args))  # type: ignore[arg-type]
        return handles[-1]

    handles: list[asyncio.TimerHandle] = []
    monkeypatch.setattr(loop, "call_later", arm)
    looked, late = await follow(Followed("FILES", read=lambda: "same", take=ignore, taken="same"))
    for _ in range(2):
        looked.clear()
        async with asyncio.timeout(10):
            await looked.wait()

    assert set(armed) == {looks.LATE_AFTER_S}
    assert all(handle.cancelled() for handle in handles[:-1])
    assert not handles[-1].cancelled()
    assert not late.is_set()


async def test_what_could_not_be_taken_over_is_tried_again() -> None:
    """By each look, until the machine can; it is said once."""
    tried: list[str] = []

    async def take(found: str) -> None:
        tried.append(found)
        if len(tried) < 3:
            raise NotNowError("no memory")

    files = Followed("FILES", read=lambda: "new", take=take, taken="old")
    with capture_logs() as lines:
        results = [await files.look() for _ in range(5)]

    assert results == [False, False, False, True, True]
    assert tried == ["new"] * 3
    assert [line["because"] for line in lines] == ["no memory"]


async def test_a_machine_without_threads_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """One look fails, nothing else."""
    files = Followed("FILES", read=lambda: "same", take=ignore, taken="same")

    def refuse(*_args: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(ThreadPoolExecutor, "submit", refuse)
        assert not await files.look()

    assert await files.look()


async def test_a_defect_ends_the_following() -> None:
    """Whoever runs it must see it, and not go on without."""

    async def take(_found: str) -> None:
        raise LookupError

    files = Followed("FILES", read=lambda: "new", take=take)

    with pytest.raises(LookupError):
        await files.follow(Clock(), on_look=lambda: None, on_late=lambda: None)


def test_the_last_look_is_a_figure() -> None:
    """From the beginning, in seconds since the epoch."""
    registry = CollectorRegistry()

    LookedAt("looked_timestamp_seconds", "files were", registry, Clock())

    assert registry.get_sample_value("looked_timestamp_seconds") == 7.5
