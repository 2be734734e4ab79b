"""The bounds of a spool, each with its name."""

from dataclasses import dataclass, field

_FILE_BYTES_MAX = 64 * 1024 * 1024
_FILE_BYTES_MIN = 64 * 1024
_FILES_PER_BUDGET = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class BacklogLimits:
    """Bounds of the reading side.

    Attributes:
        cache_bytes: pushes kept in memory for a reader that keeps up, `PUSH_OVERHEAD_BYTES` each besides the body;
            beyond that they are read from the files again.
        read_bytes: how much is read from a file at once, counted in the same way.
        settle_delay_s: how long settled positions are gathered before the cursor is moved.
        retry_s: pause after the device refused to move the cursor or to delete.
    """

    cache_bytes: int = 32 * 1024 * 1024
    read_bytes: int = 4 * 1024 * 1024
    settle_delay_s: float = 0.05
    retry_s: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolOptions:
    """Bounds of a spool.

    Attributes:
        max_bytes: what the log files of all folders under the root may take together.
        allow_volatile: take a file system that forgets, or one behind a network, all the same.
        file_bytes: room that is preallocated for a log file; None: 64 MiB, less if `max_bytes` is small.
        waiting_max_bytes: pushes that wait for their sync; beyond it `append` refuses. For each `PUSH_OVERHEAD_BYTES`
            count besides its body, here and below.
        group_max_bytes: pushes that are written and synced together.
        reuse_max_bytes: a folder with more in log files is not opened again but left to be adopted, so that opening
            takes no longer than reading this much.
        answer_max_s: how long a push waits for the device before its sender is told that it is not known to be kept.
        retry_s: how often a device without room is asked whether it has some again.
        backlog: of the reading side.
    """

    max_bytes: int = 8 * 1024**3
    allow_volatile: bool = False
    file_bytes: int | None = None
    waiting_max_bytes: int = 64 * 1024 * 1024
    group_max_bytes: int = 8 * 1024 * 1024
    reuse_max_bytes: int = 8 * 1024 * 1024
    answer_max_s: float = 5.0
    retry_s: float = 0.25
    backlog: BacklogLimits = field(default_factory=BacklogLimits)

    @property
    def log_file_bytes(self) -> int:
        """Room that is preallocated for a log file."""
        if self.file_bytes is not None:
            return self.file_bytes
        return min(_FILE_BYTES_MAX, max(_FILE_BYTES_MIN, self.max_bytes // _FILES_PER_BUDGET))
