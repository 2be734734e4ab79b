"""One worker of `receive`: the callback port, its spool and the forwarder, joined. Its parent is `.receive`.

Started as `python -m ingest.commands.receive_worker SLOT LISTENER CHANNEL`, the last two being inherited descriptors;
settings come by the channel.
"""

import asyncio
import contextlib
import logging
import math
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, Final

import structlog
from prometheus_client import REGISTRY, values

from ingest.commands.kafka_away import KafkaWatch
from ingest.commands.receive_tls import tls_files
from ingest.commands.worker_spool import LateSpool
from ingest.forward.courier import Courier, ForwardTopics
from ingest.forward.direct import KafkaPublisher
from ingest.forward.kafka import KafkaLink
from ingest.forward.loop import Forwarder
from ingest.forward.publisher import Publisher
from ingest.receiver.app import CallbackPort, HttpSettings, Tls
from ingest.receiver.certificates import Certificates, Handshakes
from ingest.receiver.channel import HEARTBEAT_S, Channel, State
from ingest.receiver.durable import AckMode, InSpool, durable_path
from ingest.receiver.gate import gates
from ingest.receiver.keys import Keys, KeysFile, keys_at_start
from ingest.receiver.looks import LookedAt
from ingest.receiver.peers import Networks, read_address
from ingest.receiver.statistics import ReceiverMetrics, SpoolFigures, SpoolGauges
from ingest.receiver.tls import Pairs
from ingest.runtime import descriptors, logs
from ingest.runtime.clock import SystemClock
from ingest.runtime.errors import CommandError
from ingest.runtime.files import RealFileSystem
from ingest.runtime.kafka import client_options
from ingest.runtime.supervise import exit_within, failure_before, run
from ingest.settings import ReceiveSettings
from ingest.spool.accounts import Accounts
from ingest.spool.backlog import DiskBacklog
from ingest.spool.disk import DiskSpool, SpoolOptions, adopt_each, open_spool

log = structlog.get_logger(__name__)

WORKER_SHARE: Final = 0.9
"""Of the grace time, for the worker's whole end; the parent waits a little longer."""

SERVE_ON_SHARE: Final = 0.1
SERVE_ON_MOST_S: Final = 2.0
"""How long a worker that is not ready any more serves on, so that a balancer can look elsewhere."""

REQUESTS_SHARE: Final = 0.4
"""Of what is left then, for the requests under way; the rest is for Kafka and the disk."""

CLOSE_S: Final = 2.0
"""Kept for closing the spool."""

ORPHAN_S: Final = 5.0
"""A worker without parent is gone after this, its port and its spool folder free."""

OPEN_PATIENCE_S: Final = 2.0
"""How long the port waits for the spool. Opening one takes milliseconds; beyond, the disk hangs, and pushes go to Kafka
or get a clear 503 meanwhile."""

SWITCH_S: Final = 0.0005
"""How long the event loop may keep the interpreter while the threads of spool and disk want it. They take it several
times for each group of pushes: with Python's own 5 ms a busy loop makes each push wait for some of ten times that."""

LAST_S: Final = 1.0
"""When all is done, for threads that wait for the disk."""


class Worker:
    """Everything one worker process holds."""

    def __init__(
        self,
        settings: ReceiveSettings,
        listener: socket.socket,
        channel: Channel,
        keys: Keys | None = None,
        pairs: Pairs | None = None,
    ) -> None:
        self._settings = settings
        self._keys = None
        if settings.auth_keys_file is not None:
            self._keys = KeysFile(settings.auth_keys_file, keys or keys_at_start(settings.auth_keys_file))
        files = tls_files(settings)
        self._certificates = None if files is None else Certificates(files, pairs)
        self._channel = channel
        self._mode = AckMode(settings.ack_mode)
        self._clock = SystemClock()
        self._fs = RealFileSystem()
        self._accounts = Accounts()
        self._adopted: list[DiskBacklog] = []
        self._begun = self._leaving = False
        self._spool = LateSpool(self._open_disk, folder=settings.spool_dir, clock=self._clock)
        self._publisher = Publisher(KafkaLink(client_options(settings), self._clock), self._clock)
        self._courier = Courier(
            self._publisher,
            topics=ForwardTopics(reports=settings.reports_topic, dead_letters=settings.dead_letters_topic),
            accounts=self._accounts,
            clock=self._clock,
        )
        self._forwarder = Forwarder(self._courier, self._clock)
        self._durable = durable_path(
            self._mode,
            self._spool,
            KafkaPublisher(self._courier, self._publisher),
            ack_timeout_s=settings.ack_timeout_s,
        )
        self._gauges = SpoolGauges(REGISTRY, self._figures)
        self._kafka = KafkaWatch(
            REGISTRY,
            self._clock,
            available=self._publisher.available,
            pending=lambda: self._accounts.pending,
            keeps=self._durable.has_room,
        )
        connections_max = descriptors.within_limit(settings.connections_max)
        of_peer = settings.connections_per_peer_max
        proxies = Networks(settings.trusted_proxies)
        self._port = CallbackPort(
            listener,
            settings=HttpSettings(
                batch_path=settings.batch_path,
                single_path=settings.single_path,
                body_max_bytes=settings.body_max_bytes,
                reports_max=settings.reports_max,
                request_timeout_s=settings.request_timeout_s,
                keepalive_s=settings.keepalive_s,
                connections_max=connections_max,
                connections_per_peer_max=(connections_max + 1) // 2 if of_peer is None else of_peer,
                bodies_max_bytes=settings.bodies_max_bytes,
                head_max_bytes=settings.head_max_bytes,
                headers_max=settings.headers_max,
                connection_max_age_s=settings.connection_max_age_s,
            ),
            durable=self._durable,
            clock=self._clock,
            metrics=ReceiverMetrics(REGISTRY),
            tls=None if self._certificates is None else Tls(self._certificates, Handshakes(REGISTRY)),
            gates=gates(settings, settings, self._keys, registry=REGISTRY, clock=self._clock),
            is_proxy=lambda text: (address := read_address(text)) is not None and address in proxies,
        )

    async def work(self) -> int:
        """Serve until the parent asks for an end or is gone; returns the exit status.

        Raises:
            CommandError: the worker could not begin; an operator must act.
        """
        coros: list[Coroutine[Any, Any, Any]] = [
            self._report(),
            self._begin(),
            self._publisher.connect(self._settings.reports_topic, self._settings.dead_letters_topic),
            self._forwarder.serve_adopted(self._adopt),
        ]
        if self._mode is not AckMode.KAFKA:
            coros += [self._serve_spool(), self._spool.writer_ended()]
        if self._keys is not None:
            coros.append(self._keys.follow(self._clock, self._looked_at("auth_keys_file", "keys file was")))
        if self._certificates is not None:
            coros.append(self._certificates.follow(self._clock, self._looked_at("tls_files", "certificate files were")))
        tasks = [asyncio.create_task(coro) for coro in coros]
        failure = await failure_before(self._channel.stop, tasks)
        status = 0 if failure is None else 1
        exit_within(self._grace_s(), status)
        if isinstance(failure, CommandError):
            await self._end(tasks)
            raise failure
        if failure is not None:
            log.error("the worker ends: a part of it failed", exc_info=failure)
        await self._leave(tasks, failed=failure is not None)
        exit_within(LAST_S, status)
        return status

    async def _begin(self) -> None:
        """Serve as soon as the spool is open, or waiting for it helps nobody."""
        if self._mode is not AckMode.KAFKA:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(OPEN_PATIENCE_S):
                    await self._spool.tried.wait()
        self._spool.tried.set()
        self._port.start()
        self._begun = True
        self._channel.say(self._state())

    async def _leave(self, tasks: Sequence[asyncio.Task[Any]], *, failed: bool) -> None:
        """Serve on for a moment, stop accepting, answer what is under way, publish what can be, let go of the disk.

        After a failure only what was accepted is answered: a successor serves sooner, and it publishes the rest.
        """
        end = self._clock.monotonic() + self._grace_s() - min(CLOSE_S, self._grace_s() / 4)
        self._leaving = True
        self._port.announce_leaving()
        self._channel.say(self._state())
        if self._begun and not failed:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(SERVE_ON_MOST_S, self._grace_s() * SERVE_ON_SHARE)):
                    await self._channel.orphaned.wait()
        await self._port.leave(max(0.0, end - self._clock.monotonic()) * REQUESTS_SHARE)
        if not failed:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, end - self._clock.monotonic())):
                    await self._flush()
        await self._end(tasks)

    async def _end(self, tasks: Sequence[asyncio.Task[Any]]) -> None:
        """Let go of everything; what was served is done."""
        await self._port.leave(0.0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._spool.disk is not None:
            await self._spool.disk.close()
        await self._publisher.close()

    async def _flush(self) -> None:
        """Publish what the spool holds, as long as Kafka confirms."""
        settling = asyncio.create_task(self._settled())
        try:
            while not settling.done() and self._publisher.available():
                await asyncio.wait({settling}, timeout=HEARTBEAT_S)
        finally:
            settling.cancel()
            await asyncio.gather(settling, return_exceptions=True)

    async def _settled(self) -> None:
        if self._spool.disk is not None:
            await self._forwarder.until_settled(self._spool.disk)
        if not isinstance(self._durable, InSpool):
            await self._durable.settled()

    def _looked_at(self, name: str, files: str) -> Callable[[], None]:
        return LookedAt(f"dlrflow_{name}_looked_timestamp_seconds", files, REGISTRY, self._clock).mark

    def _grace_s(self) -> float:
        grace_s = self._settings.shutdown_grace_s * WORKER_SHARE
        return min(grace_s, ORPHAN_S) if self._channel.orphaned.is_set() else grace_s

    async def _open_disk(self) -> DiskSpool:
        settings = self._settings
        options = SpoolOptions(max_bytes=settings.spool_max_bytes, allow_volatile=settings.spool_allow_volatile)
        return await open_spool(settings.spool_dir, options, fs=self._fs, clock=self._clock, accounts=self._accounts)

    async def _serve_spool(self) -> None:
        await self._forwarder.serve(await self._spool.open())

    async def _adopt(self) -> AsyncIterator[DiskBacklog]:
        await self._spool.tried.wait()  # the worker's own folder is chosen first
        self._adopted = []
        async for backlog in adopt_each(
            self._settings.spool_dir, fs=self._fs, clock=self._clock, accounts=self._accounts
        ):
            self._adopted.append(backlog)
            yield backlog

    async def _report(self) -> None:
        while True:
            self._gauges.refresh()
            self._kafka.look()
            self._port.refresh()
            self._channel.say(self._state())
            await self._clock.sleep(HEARTBEAT_S)

    def _state(self) -> State:
        return State(
            ready=self._begun and not self._leaving and self._durable.has_room(),
            begun=self._begun,
            detail={
                "spool": self._spool.has_room(),
                "kafka": self._publisher.available(),
                "pending_reports": self._accounts.pending,
            },
        )

    def _figures(self) -> SpoolFigures:
        disk = self._spool.disk
        backlogs = [*self._adopted, *([disk] if disk else [])]
        oldest_ms = min((each.oldest_ms for each in backlogs if each.oldest_ms is not None), default=None)
        return SpoolFigures(
            bytes=sum(each.file_bytes for each in backlogs),
            pending_reports=self._accounts.pending,
            oldest_seconds=0.0 if oldest_ms is None else max(0.0, (self._clock.wall_ms() - oldest_ms) / 1000),
            seconds_until_full=disk.seconds_until_full if disk else math.inf,
            unaccounted_reports=self._accounts.unaccounted(),
        )


async def _main(listener: socket.socket, channel_descriptor: int) -> int:
    try:
        channel, handed = await Channel.open(channel_descriptor)
    except asyncio.IncompleteReadError:
        return 1  # the parent was gone before it said anything
    settings = handed.settings
    logs.configure(settings.log_format, settings.log_level)
    if settings.log_level != "debug":
        # What matters of it the forwarder says itself, once.
        logging.getLogger(logs.NOISY).setLevel(logging.CRITICAL)
    loop = asyncio.get_running_loop()
    # A terminal sends SIGINT to all processes of the command: the parent's word counts.
    # A service manager may do the same with SIGHUP.
    loop.add_signal_handler(signal.SIGINT, lambda: None)
    loop.add_signal_handler(signal.SIGHUP, lambda: None)
    loop.add_signal_handler(signal.SIGTERM, channel.stop.set)
    try:
        return await Worker(settings, listener, channel, handed.keys, handed.pairs).work()
    except CommandError as error:
        channel.say(State(ready=False, failed=str(error), status=error.status))
        return error.status
    finally:
        await channel.close()


def main(arguments: Sequence[str]) -> int:
    """Work in the slot, with the descriptors, that the parent names; returns the exit status."""
    slot, listener, channel = map(int, arguments)
    sys.setswitchinterval(SWITCH_S)
    # The successor of a dead worker goes on with its counters: the slot names their files, not the process.
    values.ValueClass = values.MultiProcessValue(lambda: slot)  # type: ignore[no-untyped-call]
    return run(_main(socket.socket(fileno=listener), channel))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
