"""`python -m consumers sink`: results to one destination, for ever."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import structlog

from consumers.commands.sinks import AnySink, make_sink
from consumers.commands.starting import StoppedError, done_before
from consumers.engine.delivery import RETRY_FIRST_S, RETRY_MOST_S, Delivery
from consumers.engine.kafka_results import DeadLetterProducer, ResultsConsumer
from consumers.rows import AwayError
from consumers.settings import SinkSettings
from ingest.contract.acls import delivering
from ingest.runtime.admin import AdminServer, Health
from ingest.runtime.backoff import Backoff
from ingest.runtime.clock import Clock, SystemClock
from ingest.runtime.errors import ServiceAwayError, UsageError
from ingest.runtime.kafka import START_PATIENCE_S, TopicAdmin, client_options
from ingest.runtime.metrics import exposition
from ingest.runtime.supervise import stop_event_on_signals, survive_hangup

GUARANTEES = {
    "postgres": "every result is stored before its offset is committed, and no revision gives way to a lower one",
    "sqlite": "every result is stored before its offset is committed, and no revision gives way to a lower one",
    "jsonl": "every result is a line on the disk before its offset is committed; after a crash lines may repeat",
}

_log = structlog.get_logger(__name__)


async def deliver(settings: SinkSettings, kind: str, *, create: bool) -> None:
    """Deliver until SIGTERM or SIGINT.

    Args:
        settings: of the command.
        kind: of the sink.
        create: make its table if it is missing.

    Raises:
        ServiceAwayError: Kafka or the destination stayed away at the start.
        UsageError: a setting, or the destination, is not as it must be, or a topic does not exist.
    """
    stop = stop_event_on_signals(settings.shutdown_grace_s)
    survive_hangup("what is left out or away is tried again by itself; settings count from the next start")
    await serve(settings, kind, create=create, stop=stop)


async def serve(settings: SinkSettings, kind: str, *, create: bool, stop: asyncio.Event) -> None:
    """Deliver until `stop` is set; arguments and errors as of `deliver`."""
    clock = SystemClock()
    sink = make_sink(settings, kind, clock=clock, create=create)
    standing = _Standing(kind, stop)
    async with AsyncExitStack() as stack:
        server = AdminServer(
            settings.admin_host,
            settings.admin_port,
            explicit=settings.is_explicit("admin_port"),
            health=standing.health,
            metrics=exposition,
        )
        stack.push_async_callback(server.stop)
        await server.start()
        stack.push_async_callback(sink.close)
        try:
            standing.delivery = await done_before(stop, _start(settings, sink, clock, stop, stack))
        except StoppedError:
            return
        _log.info(
            "delivers",
            sink=kind,
            topic=settings.results_topic,
            group=settings.group_of(kind),
            guarantee=GUARANTEES[kind],
        )
        await standing.delivery.run()


async def _start(
    settings: SinkSettings, sink: AnySink, clock: Clock, stop: asyncio.Event, stack: AsyncExitStack
) -> Delivery:
    """Everything that must be there before the first result is read."""
    options = client_options(settings)
    await _with_patience(f"the {sink.kind} sink", sink.open, clock)
    await _check_topics(options, settings, sink.kind, clock)
    dead_letters = DeadLetterProducer(options, settings.dead_letters_topic)
    stack.push_async_callback(dead_letters.stop)
    delivery: Delivery | None = None

    async def on_revoked(partitions: set[int]) -> None:
        if delivery is not None:
            await delivery.on_revoked(partitions)

    source = ResultsConsumer(
        options, group_id=settings.group_of(sink.kind), topic=settings.results_topic, on_revoked=on_revoked
    )
    stack.push_async_callback(source.stop)
    delivery = Delivery(
        topic=settings.results_topic, sink=sink, source=source, dead_letters=dead_letters, clock=clock, stop=stop
    )
    await _with_patience("Kafka", source.start, clock)
    return delivery


async def _check_topics(options: dict[str, Any], settings: SinkSettings, kind: str, clock: Clock) -> None:
    """No client is given the name of a topic that does not exist: naming it could make it."""
    async with TopicAdmin(options, clock=clock) as admin:
        await admin.demand(delivering(settings.acl_names(sink_group_id=settings.group_of(kind))))
        existing = await admin.existing(describe=())
    for name in (settings.results_topic, settings.dead_letters_topic):
        if name not in existing:
            raise UsageError(f"there is no topic {name}; `python -m ingest topics` makes it")


async def _with_patience(whom: str, act: Callable[[], Awaitable[None]], clock: Clock) -> None:
    """Do it again until it succeeds.

    Raises:
        ServiceAwayError: it did not for 30 s.
    """
    backoff = Backoff(RETRY_FIRST_S, RETRY_MOST_S)
    why = "no answer"
    try:
        async with asyncio.timeout(START_PATIENCE_S):
            while True:
                try:
                    return await act()
                except AwayError as error:
                    why = str(error)
                    _log.debug("not there yet", whom=whom, why=why)
                await clock.sleep(backoff.next())
    except TimeoutError:
        raise ServiceAwayError(f"{whom} stayed away for {START_PATIENCE_S:g} s: {why}") from None


class _Standing:
    """How the command is, for `/readyz` and `/healthz`."""

    def __init__(self, kind: str, stop: asyncio.Event) -> None:
        self._kind = kind
        self._stop = stop
        self.delivery: Delivery | None = None

    def health(self) -> Health:
        """Ready while it delivers and waits for nobody."""
        away = self.delivery.away if self.delivery else "starting"
        detail = {"sink": self._kind, "waits_for": away}
        return Health(live=True, ready=not away and not self._stop.is_set(), detail=detail)
