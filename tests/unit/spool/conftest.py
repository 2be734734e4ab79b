"""A failing disk in memory and spools on it."""

from collections.abc import AsyncIterator, Iterator, MutableMapping
from typing import Any

import pytest
from structlog.testing import capture_logs

from ingest.spool import salvage
from tests.fakes.files import FaultyFileSystem, ModelFileSystem
from tests.spooling import Opener


@pytest.fixture(autouse=True)
def logs_of_the_spool() -> Iterator[list[MutableMapping[str, Any]]]:
    """What it logs, not printed."""
    with capture_logs() as logs:
        yield logs


@pytest.fixture
def fs() -> FaultyFileSystem:
    """An empty disk in memory that fails on request."""
    return FaultyFileSystem(ModelFileSystem())


@pytest.fixture
async def opener(fs: FaultyFileSystem) -> AsyncIterator[Opener]:
    """Spools on `fs`."""
    opener = Opener(fs)
    yield opener
    fs.plan = None
    for backlog in opener.opened:
        await backlog.close()


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that cannot be read is asked for again at once."""
    monkeypatch.setattr(salvage, "RETRY_PAUSE_S", 0)
