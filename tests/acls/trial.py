"""One trial: a process without one of its rights."""

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from unittest import mock

from ingest.contract.acls import PROCESSES, Acl, Names
from ingest.runtime.errors import CommandError
from ingest.runtime.kafka import TopicAdmin
from tests.acls.ground import Ground, Guarded
from tests.acls.work import WORKS, in_time

TIMEOUT_S: Final = 12.0
"""Work that is done takes less than a third of it on an idle machine."""

_NAMES: Final = Names(
    reports_topic="(reports)",
    results_topic="(results)",
    dead_letters_topic="(dead letters)",
    group_id="(group)",
    sink_group_id="(sink group)",
)


@dataclass(frozen=True, slots=True)
class Trial:
    """A process, and which of the rights that it needs is left out; None: none."""

    process: str
    without: int | None

    def __str__(self) -> str:
        """For people."""
        if self.without is None:
            return f"{self.process} with exactly its rights"
        acl = needed(self.process, _NAMES)[self.without]
        return f"{self.process} without {acl.operation} on {acl.resource} {acl.name}"


def trials(processes: Callable[[str], bool] = lambda _process: True) -> list[Trial]:
    """Every process with all of its rights, and without each."""
    return [
        Trial(process, without)
        for process in WORKS
        if processes(process)
        for without in (None, *range(len(needed(process, _NAMES))))
    ]


def needed(process: str, names: Names) -> list[Acl]:
    """The rights without which it does not do its work."""
    return [acl for acl in PROCESSES[process](names) if acl.needed]


async def attempt(guarded: Guarded, trial: Trial, prefix: str, folder: Path) -> str:
    """Let it work; "" if it did, else what it came to."""
    user = prefix.strip(".")
    ground = Ground(guarded, prefix, folder, guarded.by_certificate(user))
    acls = needed(trial.process, ground.names)
    await guarded.allow(user, [acl for number, acl in enumerate(acls) if number != trial.without])
    try:
        await in_time(WORKS[trial.process](ground), TIMEOUT_S)
    except CommandError as error:
        return f"status {error.status}: {error}"
    except TimeoutError:
        return "not done"
    except Exception as error:  # noqa: BLE001 - whatever it is, the work was not done
        return f"{type(error).__name__}: {error}"
    return ""


@contextlib.asynccontextmanager
async def unasked() -> AsyncIterator[None]:
    """Nobody asks beforehand whether the rights are there: what is missing shows in the work itself."""

    async def go_on(_self: TopicAdmin, _rights: object) -> None:
        """Ask nothing."""

    with mock.patch.object(TopicAdmin, "demand", go_on):
        yield
