"""The command `drain`: the spool folders that nobody holds, a publisher, and a bar for people to watch."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ingest.contract.acls import publishing
from ingest.forward.courier import Courier, ForwardTopics
from ingest.forward.drain import Drained, drain
from ingest.forward.kafka import open_publisher
from ingest.forward.loop import Forwarder
from ingest.runtime.clock import SystemClock
from ingest.runtime.errors import FoundError, ServiceAwayError, UsageError
from ingest.runtime.files import RealFileSystem
from ingest.runtime.kafka import BrokerError, TopicAdmin, client_options
from ingest.runtime.supervise import stop_event_on_signals
from ingest.settings import DrainSettings
from ingest.spool.accounts import Accounts
from ingest.spool.base import VolatileSpoolError
from ingest.spool.disk import adopt_free
from ingest.spool.folder import QUARANTINE, check_device, folders, kept_in_quarantine

log = structlog.get_logger(__name__)


class Bar:
    """A bar on standard error, if that is a terminal."""

    @contextmanager
    def watch(self, accounts: Accounts, reports: int) -> Iterator[None]:
        """See `ingest.forward.drain.Progress`."""
        console = Console(stderr=True)
        columns = (TextColumn("reports"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task("", total=reports)
            loop = asyncio.get_running_loop()
            timer: asyncio.TimerHandle | None = None

            def show() -> None:
                nonlocal timer
                bar.update(task, completed=accounts.published + accounts.dead_lettered + accounts.quarantined)
                timer = loop.call_later(0.2, show)

            show()
            try:
                yield
            finally:
                if timer is not None:
                    timer.cancel()
                bar.update(task, completed=accounts.published + accounts.dead_lettered + accounts.quarantined)


async def drain_spool(settings: DrainSettings) -> None:
    """Publish what the folders under `DLR_SPOOL_DIR` hold that nobody holds, and print what was done.

    Raises:
        FoundError: something remains: it was stopped, a folder is held by another process or cannot be read, or
            something is in quarantine.
        ServiceAwayError: Kafka stayed away at the start.
        UsageError: the folder cannot be used.
    """
    options = client_options(settings)
    stop = stop_event_on_signals(settings.shutdown_grace_s, status=FoundError.status)
    log.info(
        "drains",
        folder=str(settings.spool_dir),
        guarantee="each report reaches Kafka at least once; a folder is removed once all of it is confirmed",
    )
    draining = asyncio.create_task(_drain(settings, options))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({draining, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not draining.done():
        draining.cancel()
        await asyncio.wait({draining})
    if draining.cancelled():
        raise FoundError("stopped before the spool was empty")
    done = draining.result()
    typer.echo(
        f"reports published: {done.published}, dead-lettered: {done.dead_lettered}, "
        f"quarantined: {done.quarantined}; folders emptied: {done.folders}"
    )
    if remaining := _remaining(settings.spool_dir):
        raise FoundError("; ".join(remaining))


def _remaining(root: Path) -> list[str]:
    fs = RealFileSystem()
    remaining = []
    if left := folders(fs, root):
        names = ", ".join(path.name for path in left)
        remaining.append(
            f"not drained, since another process holds it or it cannot be read: {names} (stop its receiver first)"
        )
    if kept := kept_in_quarantine(fs, root):
        remaining.append(
            f"{len(kept)} files in {root / QUARANTINE} hold reports that could go nowhere else; "
            "look at them and move them away"
        )
    return remaining


async def _drain(settings: DrainSettings, options: dict[str, object]) -> Drained:
    clock, fs, accounts = SystemClock(), RealFileSystem(), Accounts()
    root = settings.spool_dir
    if not fs.is_dir(root):
        log.warning("there is no spool folder, so nothing to publish", folder=str(root))
        return Drained(0, 0, 0, 0)
    try:
        if not settings.spool_allow_volatile:
            check_device(fs, root)
        if folders(fs, root):
            async with TopicAdmin(options, clock=clock) as admin:
                await admin.demand(publishing(settings.acl_names()))
        adopted = await adopt_free(root, fs=fs, clock=clock, accounts=accounts)
    except VolatileSpoolError as error:
        raise UsageError(f"{error}; DLR_SPOOL_ALLOW_VOLATILE=true takes it all the same") from None
    except BrokerError as error:
        raise ServiceAwayError(f"Kafka went away at the start: {error}") from None
    except OSError as error:
        raise UsageError(f"the spool folder {root} cannot be used: {error.strerror}") from None
    topics = ForwardTopics(reports=settings.reports_topic, dead_letters=settings.dead_letters_topic)
    publisher = open_publisher(options, clock)
    courier = Courier(publisher, topics=topics, accounts=accounts, clock=clock)
    try:
        return await drain(
            adopted,
            forwarder=Forwarder(courier, clock),
            publisher=publisher,
            topics=topics,
            accounts=accounts,
            progress=Bar(),
        )
    finally:
        await publisher.close()
