"""What the receiver and the forwarder ask of a spool. The promises are here, the files in `ingest.spool.disk`."""

from typing import Final, NamedTuple, Protocol

from ingest.contract.push import Push

PUSH_OVERHEAD_BYTES: Final = 1024
"""What a push takes in memory besides its body: without it no bound in bytes would bound pushes without body."""

PUSHES_PER_TAKE: Final = 1000
"""Most pushes that a backlog hands out at once."""


class SpoolFullError(Exception):
    """There is no room for this push now; nothing of it is kept. Time, or Kafka, must help."""


class SpoolBrokenError(Exception):
    """The device failed while the push was written; it must not be answered as kept. It may come back as a repeat."""


class SpoolFormatError(Exception):
    """A newer version wrote the folder; it must not be touched by this one. The operator must act."""


class VolatileSpoolError(Exception):
    """The spool's folder is on a file system that cannot keep the promise. The operator must act or allow it."""


class Spooled(NamedTuple):
    """A push that is durable, and its place: positions rise strictly within one backlog, with gaps."""

    position: int
    push: Push


class Spool(Protocol):
    """The receiver's side."""

    async def append(self, push: Push) -> None:
        """Return once the push is durable (fdatasync): from then on it is ours to lose.

        Raises:
            SpoolFullError: no room, or too many bytes are waiting to be written.
            SpoolBrokenError: the device failed or did not answer in time, or the spool is closed.
        """
        ...

    def has_room(self) -> bool:
        """Whether the smallest push would be taken now."""
        ...


class Backlog(Protocol):
    """The forwarder's side: the pushes of one folder, oldest first, for one reader.

    Attributes:
        name: of the folder.
    """

    name: str

    @property
    def pending_reports(self) -> int:
        """Reports that are durable here and not settled."""
        ...

    @property
    def pending_bytes(self) -> int:
        """Bytes of the bodies of those."""
        ...

    @property
    def oldest_ms(self) -> int | None:
        """When the oldest push that is not settled was received, epoch milliseconds; None if there is none."""
        ...

    async def take(self, max_bytes: int) -> list[Spooled]:
        """The next pushes in order, each handed out once.

        At least one; no more once their bodies reach `max_bytes`, and at most `PUSHES_PER_TAKE`.

        Waits while everything durable has been handed out. Returns an empty list when nothing will come any more:
        the backlog is closed, or it is read only and all of it is handed out.

        Raises:
            OSError: the device would not give the bytes; trying again later is safe.
        """
        ...

    def settle(self, position: int) -> None:
        """Say that everything handed out up to and including `position` is in Kafka or in quarantine.

        It is remembered durably in the background, at the latest by `close`; a crash before that brings repeats.
        """
        ...

    def rewind(self) -> None:
        """Hand out again from the first push that is not settled."""
        ...

    async def quarantine(self, value: bytes, note: str) -> None:
        """Keep bytes that cannot go anywhere else, durably, in a file of their own for a person to look at.

        Args:
            value: the bytes, untouched.
            note: one line that says why; never a quote of the value.

        Raises:
            OSError: not kept; trying again is safe.
        """
        ...
