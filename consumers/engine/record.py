"""A record as a Kafka client hands it out."""

from collections.abc import Sequence
from typing import Protocol


class InputRecord(Protocol):
    """What the assembler reads of a record: the partition it stands in is known from elsewhere."""

    @property
    def offset(self) -> int: ...  # noqa: D102
    @property
    def timestamp(self) -> int: ...  # noqa: D102
    @property
    def key(self) -> bytes | None: ...  # noqa: D102
    @property
    def value(self) -> bytes | None: ...  # noqa: D102
    @property
    def headers(self) -> Sequence[tuple[str, bytes]]: ...  # noqa: D102


class Record(InputRecord, Protocol):
    """A record with its whole place."""

    @property
    def partition(self) -> int: ...  # noqa: D102
