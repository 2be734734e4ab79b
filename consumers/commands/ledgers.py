"""The ledgers of `assemble`: on local disk, under its state folder."""

import tempfile
from pathlib import Path

from consumers.commands.assemble import MakeStore
from consumers.engine.protocols import LedgerStore
from consumers.ledger.partition import Sizes
from consumers.ledger.store import Identity, Store
from consumers.settings import AssembleSettings
from ingest.runtime.errors import UsageError
from ingest.runtime.files import RealFileSystem

GENERATIONS_PER_WINDOW = 6
"""How finely memory expires: with the open and the expiring one, at most eight generations are alive."""

GENERATION_LEAST_MS = 1000
"""A generation is a file with its syncs: windows of a few seconds are not worth more of them."""


def local_ledgers(settings: AssembleSettings) -> MakeStore:
    """Makes the store of ledgers once topic and cluster are known.

    Raises:
        UsageError: the state folder cannot be used.
    """
    _try(settings.state_dir)

    def make(partitions: int, cluster: str) -> LedgerStore:
        window_s = max(settings.reassembly_timeout_s, settings.late_window_s)
        identity = Identity(
            group=settings.group_id, topic=settings.reports_topic, partitions=partitions, cluster=cluster
        )
        sizes = Sizes(generation_ms=max(GENERATION_LEAST_MS, window_s * 1000 // GENERATIONS_PER_WINDOW))
        return Store(settings.state_dir, RealFileSystem(), identity, sizes)

    return make


def _try(folder: Path) -> None:
    """A wrong folder ends the command before it takes partitions from members that can work."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"the state folder {folder} cannot be used: {error.strerror}") from None
