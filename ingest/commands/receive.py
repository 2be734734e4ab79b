"""The command `receive`: one listening socket, worker processes behind it, health and metrics of all of them.

What a worker is made of stands in `ingest.commands.receive_worker`.
"""

import asyncio
import contextlib
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import structlog
from prometheus_client import CollectorRegistry, Counter, generate_latest

from ingest.commands.handover import Handover
from ingest.commands.receive_keys import keys_file, warn_of_doubtful
from ingest.commands.receive_tls import MALLOC, certificates, warn_of_plain_http
from ingest.commands.receive_topics import start_look
from ingest.contract.topics import RECORD_BYTES_MAX
from ingest.receiver.durable import AckMode
from ingest.receiver.keys import Keys
from ingest.receiver.listen import await_listener
from ingest.receiver.tls import Pairs
from ingest.receiver.workers import WorkerPool
from ingest.runtime.admin import AdminServer, Health
from ingest.runtime.clock import SystemClock
from ingest.runtime.errors import CommandError
from ingest.runtime.kafka import client_options
from ingest.runtime.metrics import exposition, forget_worker, worker_environment
from ingest.runtime.supervise import exit_within, failure_before, stop_event_on_signals, survive_hangup
from ingest.settings import ReceiveSettings

log = structlog.get_logger(__name__)

WORKER: Final = ("-m", "ingest.commands.receive_worker")

WORKERS_SHARE: Final = 0.95
"""Of the grace time: when it has passed, workers are killed that have not ended by themselves."""


async def receive(settings: ReceiveSettings, environ: Mapping[str, str]) -> None:
    """Take pushes until SIGTERM or SIGINT. Kafka away never ends it.

    A part of this process that fails does, with status 1: nobody would see any more what becomes of keys or
    certificates, and a service manager begins anew. Workers end as on a signal, so that nothing is lost. Only the look
    at the topics may fail; it says so in the log.

    Args:
        settings: of the command.
        environ: handed on to the workers; a service manager names its socket in it.

    Raises:
        UsageError: a setting or its surroundings are wrong (an occupied port, too).
        CommandError: a part of this process failed.
    """
    warn_of_doubtful(settings, settings)
    if settings.body_max_bytes > RECORD_BYTES_MAX:
        log.warning(
            "bodies may be larger than a record: a report that Kafka refuses for its size ends in quarantine",
            body_max_bytes=settings.body_max_bytes,
            record_bytes_max=RECORD_BYTES_MAX,
        )
    options = client_options(settings)
    clock = SystemClock()
    stop = stop_event_on_signals(settings.shutdown_grace_s)
    survive_hangup("keys and certificates are followed by themselves; other settings count from the next start")
    registry = CollectorRegistry()
    handed = Handover(settings)

    def take_keys(keys: Keys) -> None:
        nonlocal handed
        pool.settings = handed = replace(handed, keys=keys)

    def take_pairs(pairs: Pairs) -> None:
        nonlocal handed
        pool.settings = handed = replace(handed, pairs=pairs)

    file = keys_file(settings, registry, take_keys)
    tls = certificates(settings, registry, clock, take_pairs)
    handed = Handover(settings, file.keys if file else None, tls.served.pairs if tls else None)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(await await_listener(settings.http_host, settings.http_port, environ, clock))
        warn_of_plain_http(settings, settings, listener.getsockname()[0])
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dlrflow-metrics-")))
        pool = WorkerPool(
            command=WORKER,
            size=settings.workers,
            settings=handed,
            environ={**(MALLOC if tls else {}), **environ, **worker_environment(folder)},
            listener=listener,
            clock=clock,
            on_end=lambda slot: forget_worker(folder, slot),
            restarts=Counter("dlrflow_worker_restarts", "Workers that ended and were replaced.", registry=registry),
        )
        admin = AdminServer(
            settings.admin_host,
            settings.admin_port,
            explicit=settings.is_explicit("admin_port"),
            health=lambda: Health(
                live=True,
                ready=pool.ready() and not stop.is_set(),
                detail={"ack_mode": settings.ack_mode, "workers": pool.detail()},
            ),
            metrics=lambda: exposition(folder) + generate_latest(registry),
        )
        await admin.start()
        started = asyncio.Event()
        running = asyncio.create_task(pool.run(started))
        watched = [running, asyncio.create_task(_announce(settings, started, listener.getsockname()))]
        if file is not None:
            watched.append(asyncio.create_task(file.follow(clock)))
        if tls is not None:
            watched.append(asyncio.create_task(tls.follow(clock)))
        beside = [*watched[1:], start_look(settings, options, clock)]
        try:
            failure = await failure_before(stop, watched)
            if failure is not None and not running.done():
                log.error("ends: a part of it failed", exc_info=failure)
                exit_within(settings.shutdown_grace_s, CommandError.status)
        finally:
            for task in beside:
                task.cancel()
            await pool.stop(settings.shutdown_grace_s * WORKERS_SHARE)
            await asyncio.gather(*beside, return_exceptions=True)
            await admin.stop()
        await running
        if failure is not None:
            raise CommandError(f"a part of the receiver failed ({type(failure).__name__}); the log says more")


async def _announce(settings: ReceiveSettings, started: asyncio.Event, address: tuple[str, int]) -> None:
    await started.wait()
    mode = AckMode(settings.ack_mode)
    log.info(
        "receives",
        host=address[0],
        port=address[1],
        scheme="https" if settings.tls_cert_files else "http",
        workers=settings.workers,
        ack_mode=mode.value,
        guarantee=mode.guarantee,
    )
