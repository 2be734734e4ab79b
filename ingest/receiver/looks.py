"""Files that change while the receiver runs: looked at again and again, and taken over once they hold still.

They are compared by content: times of change miss a file that is replaced twice within a tick, or a link that is turned
over. A file that somebody writes in place may be sound and yet not whole, such as a certificate chain that is cut
between two of its blocks; so content is taken when two looks in a row have found the same.
"""

import asyncio
import errno
import os
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, Generic, NoReturn, TypeVar

import structlog
from prometheus_client import CollectorRegistry, Gauge

from ingest.runtime.clock import Clock

log = structlog.get_logger(__name__)

LOOK_EVERY_S: Final = 1.0
"""contract.md section 2: a change counts within 5 s, so with the third look at the latest."""

LATE_AFTER_S: Final = 30.0
"""Without a look that succeeded: the file system hangs, the machine has nothing left, or the files never hold still."""

_OF_THE_MACHINE: Final = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ENOSPC, errno.EAGAIN, errno.EINTR}
)

T = TypeVar("T")


class NotNowError(Exception):
    """This machine cannot do it at the moment, for want of descriptors or memory; the files are not to blame."""


def raise_if_not_now(error: OSError) -> None:
    """Tell what passes from what is wrong with a file.

    Raises:
        NotNowError: it passes.
    """
    if error.errno in _OF_THE_MACHINE:
        raise NotNowError(os.strerror(error.errno)) from None


def read_at_most(path: Path, most: int) -> bytes:
    """The content of a regular file, cut after one byte more than it may have.

    Raises:
        NotNowError: the machine cannot open it now.
        OSError: it cannot be read. What is no regular file is refused: a pipe would be waited for.
    """
    try:
        with open(path, "rb", opener=_open_regular) as file:
            return file.read(most + 1)
    except OSError as error:
        raise_if_not_now(error)
        raise


def is_open_to_all(path: Path) -> bool:
    """Whether every user of the machine may read the file."""
    try:
        return bool(path.stat().st_mode & stat.S_IROTH)
    except OSError:
        return False


class Followed(Generic[T]):
    """Files whose content is taken over when it changes.

    Args:
        name: of them, in the log.
        read: what they hold, or why it cannot be read, as something to compare; called in a thread, since a file system
            that hangs must not stop the event loop. `NotNowError`: the next look tries again.
        take: take over what two looks in a row have found; `NotNowError` as above.
        taken: what counts at the start.
    """

    def __init__(
        self, name: str, *, read: Callable[[], T], take: Callable[[T], Awaitable[None]], taken: T | None = None
    ) -> None:
        self._name = name
        self._read = read
        self._take = take
        self._found = self._taken = taken
        self._is_put_off = self._is_late = False

    async def look(self) -> bool:
        """Look once.

        Returns:
            Whether what the files hold is settled and taken over. False: the machine cannot look now, or the files have
            changed since the look before.
        """
        try:
            found = await in_thread(self._read)
            is_settled = found == self._found
            self._found = found
            if is_settled and found != self._taken:
                await self._take(found)
                self._taken = found
        except NotNowError as error:
            if not self._is_put_off:
                log.warning("files cannot be looked at now: trying again", files=self._name, because=str(error))
            self._is_put_off = True
            return False
        self._is_put_off = False
        return is_settled

    async def follow(self, clock: Clock, *, on_look: Callable[[], None], on_late: Callable[[], None]) -> NoReturn:
        """Look again and again.

        Args:
            clock: of the pauses.
            on_look: called after each look that succeeded.
            on_late: called once when none has for `LATE_AFTER_S`, until one does again.
        """
        loop = asyncio.get_running_loop()

        def say_late() -> None:
            self._is_late = True
            log.error("files could not be looked at for long: what was read counts on", files=self._name)
            on_late()

        late = loop.call_later(LATE_AFTER_S, say_late)
        try:
            while True:
                if await self.look():
                    late.cancel()
                    late = loop.call_later(LATE_AFTER_S, say_late)
                    if self._is_late:
                        self._is_late = False
                        log.info("files are looked at again", files=self._name)
                    on_look()
                await clock.sleep(LOOK_EVERY_S)
        finally:
            late.cancel()


class LookedAt:
    """The gauge of the last look at some files: of several workers, the one furthest behind.

    Args:
        metric: its name.
        files: what it says they are.
        registry: of the worker.
        clock: of the gauge.
    """

    def __init__(self, metric: str, files: str, registry: CollectorRegistry, clock: Clock) -> None:
        self._clock = clock
        self._gauge = Gauge(
            metric,
            f"When the {files} last looked at with success, by the worker that is furthest behind.",
            multiprocess_mode="livemin",
            registry=registry,
        )
        self.mark()

    def mark(self) -> None:
        """They were looked at."""
        self._gauge.set(self._clock.wall_ms() / 1000)


async def in_thread(work: Callable[[], T]) -> T:
    """What some work returns that may take long.

    Raises:
        NotNowError: no thread can be started.
    """
    try:
        working = asyncio.get_running_loop().run_in_executor(None, work)
    except RuntimeError as error:
        raise NotNowError(str(error)) from None
    return await working


def _open_regular(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_NONBLOCK)  # a pipe would wait for somebody who writes
    kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
    if kind != stat.S_IFREG:
        os.close(descriptor)
        raise OSError(errno.EINVAL, "Is a directory" if kind == stat.S_IFDIR else "Is no regular file")
    return descriptor
