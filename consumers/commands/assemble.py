"""`python -m consumers assemble`: dedupe and reassembly, exactly once."""

import asyncio
import signal
from collections.abc import Callable
from functools import partial

import structlog

from consumers.commands.starting import StoppedError, done_before
from consumers.engine import topics
from consumers.engine.cycle import Rules
from consumers.engine.endings import Endings
from consumers.engine.kafka import (
    CLIENT_ERRORS,
    ChangelogReader,
    OnPartitions,
    Options,
    ReportsConsumer,
    transactional_producer,
)
from consumers.engine.member import Member
from consumers.engine.partition import PartitionWorker, Reports, Tools
from consumers.engine.pipeline import Pace
from consumers.engine.protocols import LedgerStore
from consumers.engine.routing import Outlet, Routing
from consumers.engine.shelf import Shelf
from consumers.engine.transaction import Retired, Transactions
from consumers.recipients import Recipients
from consumers.settings import AssembleSettings
from ingest.contract.acls import assembling
from ingest.contract.topics import changelog_spec, changelog_topic, transactional_id
from ingest.runtime.admin import AdminServer, Health
from ingest.runtime.clock import Clock, SystemClock
from ingest.runtime.errors import CommandError, ServiceAwayError, UsageError
from ingest.runtime.kafka import TopicAdmin, client_options
from ingest.runtime.metrics import exposition
from ingest.runtime.supervise import exit_within, stop_event_on_signals

RESTORES_MAX = 4
"""Partitions that restore at the same time: each holds some megabytes of changelog in memory."""

IDLE_CYCLES = 4
"""An idle partition writes so many empty cycles within the shorter of both retentions."""

RETIRED_DRAIN_S = 3.0

GUARANTEE = (
    "each revision of each message stands once in the results topic for read_committed readers: results, dead letters, "
    "changelog and input offset of a cycle are one transaction"
)

_log = structlog.get_logger(__name__)

MakeStore = Callable[[int, str], LedgerStore]
"""Makes the store of ledgers for so many partitions of a cluster of this id."""


async def assemble(settings: AssembleSettings, make_store: MakeStore, *, accept_loss: bool) -> None:
    """Assemble until SIGTERM or SIGINT; SIGHUP resumes paused partitions. Raises what `serve` does."""
    stop, resume = stop_event_on_signals(settings.shutdown_grace_s), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, resume.set)
    try:
        await serve(settings, make_store, stop=stop, resume=resume, accept_loss=accept_loss)
    except CommandError as error:
        # What is left of clients whose broker is away must not hold the end up.
        exit_within(settings.shutdown_grace_s, error.status)
        raise


async def serve(
    settings: AssembleSettings,
    make_store: MakeStore,
    *,
    stop: asyncio.Event,
    resume: asyncio.Event,
    accept_loss: bool = False,
) -> None:
    """Assemble until told to stop.

    Args:
        settings: of the command.
        make_store: where ledgers are kept.
        stop: ends it, cleanly.
        resume: lets paused partitions go on, each time it is set.
        accept_loss: go on where memory or input was lost.

    Raises:
        ServiceAwayError: Kafka did not answer at the start.
        UsageError: a setting, or a topic, is not as it must be.
        FoundError: memory or input was lost.
    """
    clock = SystemClock()
    options = client_options(settings)
    try:
        shapes, cluster = await done_before(stop, _look(settings, options, clock))
    except StoppedError:
        return
    store = make_store(shapes.reports, cluster)
    changelog = changelog_topic(settings.group_id, settings.reports_topic)
    retired = Retired()
    endings = Endings(options, {changelog, settings.results_topic, settings.dead_letters_topic})
    shop = _Shop(settings, options, shapes, retired, endings, clock, accept_loss)
    member = Member(shop.consumer, shop.worker, store)
    server = AdminServer(
        settings.admin_host,
        settings.admin_port,
        explicit=settings.is_explicit("admin_port"),
        health=lambda: _health(member, stop),
        metrics=exposition,
    )
    await server.start()
    _log.info("assembles", group=settings.group_id, partitions=shapes.reports, guarantee=GUARANTEE)
    resuming = asyncio.create_task(_resume(member, resume))
    try:
        await member.run(stop)
    finally:
        resuming.cancel()
        await retired.drain(RETIRED_DRAIN_S)
        await endings.close()
        await server.stop()
        await asyncio.to_thread(store.close)


async def _look(settings: AssembleSettings, options: Options, clock: Clock) -> tuple[topics.Shapes, str]:
    """What the topics are like, and the id of their cluster."""
    try:
        async with TopicAdmin(options, clock=clock) as admin:
            await admin.demand(assembling(settings.acl_names(group_id=settings.group_id)))
            shapes = await topics.look(admin, settings.topic_needs(), clock)
            return shapes, await admin.cluster_id()
    except CLIENT_ERRORS as error:
        raise ServiceAwayError(f"Kafka went away while its topics were looked at: {error}") from None


async def _resume(member: Member, resume: asyncio.Event) -> None:
    while True:
        await resume.wait()
        resume.clear()
        member.resume()


def _health(member: Member, stop: asyncio.Event) -> Health:
    standing = member.standing
    return Health(
        live=True,
        ready=standing.ready and not stop.is_set(),
        detail={
            "joined": standing.joined,
            "partitions": {str(number): phase.value for number, phase in standing.partitions.items()},
        },
    )


class _Shop:
    """Makes consumers and workers out of the settings, and what they share."""

    def __init__(  # noqa: PLR0917 - called once
        self,
        settings: AssembleSettings,
        options: Options,
        shapes: topics.Shapes,
        retired: Retired,
        endings: Endings,
        clock: SystemClock,
        accept_loss: bool,  # noqa: FBT001
    ) -> None:
        self._settings = settings
        self._options = options
        self._shapes = shapes
        self._retired = retired
        self._endings = endings
        self._clock = clock
        self._accept_loss = accept_loss
        self._changelog = changelog_topic(settings.group_id, settings.reports_topic)
        self._restores = asyncio.Semaphore(RESTORES_MAX)
        retention_ms = int(changelog_spec(settings.topic_needs()).configs["retention.ms"])
        self._pace = Pace(
            commit_interval_s=settings.commit_interval_ms / 1000,
            idle_cycle_ms=min(retention_ms, settings.reports_retention_s * 1000) // IDLE_CYCLES,
        )

    def consumer(self, on_assigned: OnPartitions, on_revoked: OnPartitions) -> ReportsConsumer:
        return ReportsConsumer(
            self._options,
            group_id=self._settings.group_id,
            topic=self._settings.reports_topic,
            on_assigned=on_assigned,
            on_revoked=on_revoked,
        )

    def worker(self, partition: int, reports: Reports, shelf: Shelf, owned: Callable[[], int]) -> PartitionWorker:
        settings, shapes = self._settings, self._shapes
        if partition >= shapes.reports:
            raise UsageError(
                f"{settings.reports_topic} was given further partitions while its assemblers ran: keys have moved, and "
                f"the memory of this group fits {shapes.reports} partitions only; start a new group with DLR_GROUP_ID"
            )
        key = settings.recipient_key
        rules = Rules(
            reports_topic=settings.reports_topic,
            partition=partition,
            partitions=shapes.reports,
            timeout_ms=settings.reassembly_timeout_s * 1000,
            late_window_ms=settings.late_window_s * 1000,
            recipients=None if key is None else Recipients(key.get_secret_value().encode()),
        )
        routing = Routing(
            results=Outlet(topic=settings.results_topic, partitions=shapes.results),
            dead_letters=Outlet(topic=settings.dead_letters_topic, partitions=shapes.dead_letters),
            partition=partition,
            partitions=shapes.reports,
        )
        tools = Tools(
            reports=reports,
            shelf=shelf,
            changelog=partial(ChangelogReader, self._options, self._changelog),
            restores=self._restores,
            owned=owned,
            clock=self._clock,
            accept_loss=self._accept_loss,
        )
        return PartitionWorker(rules, routing, self._pace, tools, self._transactions(partition, routing))

    def _transactions(self, partition: int, routing: Routing) -> Transactions:
        settings = self._settings
        identity = transactional_id(settings.group_id, settings.reports_topic, partition)
        return Transactions(
            partial(transactional_producer, self._options, identity, batch_bytes_max=self._shapes.batch_bytes_max),
            self._endings,
            identity=identity,
            group_id=settings.group_id,
            reports_topic=settings.reports_topic,
            changelog_topic=self._changelog,
            partition=partition,
            outlets=routing.places(),
            retired=self._retired,
        )
