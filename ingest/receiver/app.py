"""The callback port of one worker: accepts from the shared listening socket, and leaves without losing a push."""

import asyncio
import contextlib
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ingest.contract.push import Route
from ingest.receiver.connection import Server
from ingest.receiver.durable import Durable
from ingest.receiver.gate import OPEN, Gates
from ingest.receiver.handlers import CallbackHandler, Limits
from ingest.receiver.statistics import ReceiverMetrics
from ingest.runtime.clock import Clock

ACCEPT_MOST: Final = 64
"""Sockets accepted in one turn of the event loop, so that a crowd at the door does not stop the ones inside."""

LINGER_S: Final = 5.0
"""How long what is left of a refused body is read and dropped, so that the answer is not lost to a reset."""

FIRST_WORD_S: Final = 1.0
"""How long a connection that was accepted last may take to begin its request."""

CUT_S: Final = 0.05
"""What a connection that is still open at the end gets; aiohttp takes 0 for no bound at all."""

ACCEPT_PAUSE_S: Final = 0.1
"""Pause after accept failed for want of something that comes back (file descriptors, memory)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings:
    """What the callback port needs of the settings (contract.md section 2).

    Attributes:
        connections_max: of this worker; further ones wait in the queue of the listening socket.
        connection_max_age_s: age from which a connection is closed with its next answer.
    """

    batch_path: str
    single_path: str
    body_max_bytes: int
    reports_max: int
    request_timeout_s: float
    keepalive_s: float
    connections_max: int
    connection_max_age_s: float

    @property
    def paths(self) -> Mapping[str, Route]:
        """The only paths that are served."""
        return {self.batch_path: Route.BATCH, self.single_path: Route.SINGLE}

    @property
    def limits(self) -> Limits:
        """What one request may ask for."""
        return Limits(
            body_max_bytes=self.body_max_bytes,
            reports_max=self.reports_max,
            request_timeout_s=self.request_timeout_s,
        )


class CallbackPort:
    """Serves the callback paths on a listening socket that other workers may share.

    The socket is accepted from by hand: at the bound on connections, and when leaving, what waits in its queue must
    stay there for another worker, instead of being accepted and reset.

    Args:
        listener: bound and listening; non-blocking from here on. It is closed by `leave`.
        settings: of the port.
        durable: keeps a push before it is answered.
        clock: says when a push was received.
        metrics: of this worker.
        gates: check who pushes.
    """

    def __init__(
        self,
        listener: socket.socket,
        *,
        settings: HttpSettings,
        durable: Durable,
        clock: Clock,
        metrics: ReceiverMetrics,
        gates: Gates = OPEN,
    ) -> None:
        listener.setblocking(False)  # noqa: FBT003 - the socket's own signature
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._metrics = metrics
        self._connections_max = settings.connections_max
        self._open = 0
        self._accepting = False
        self._closed = False
        self._opening: set[asyncio.Task[None]] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._handler = CallbackHandler(
            paths=settings.paths, limits=settings.limits, durable=durable, clock=clock, metrics=metrics, gates=gates
        )
        self._handler.leaving = not settings.keepalive_s
        self._server = Server(
            self._handler,
            head_timeout_s=settings.request_timeout_s,
            max_age_s=settings.connection_max_age_s,
            # A connection that has not asked yet is never closed at once.
            keepalive_timeout=settings.keepalive_s or settings.request_timeout_s,
            lingering_time=LINGER_S,
            on_error=lambda status: metrics.count_request("other", status),
            on_lost=self._on_lost,
        )

    def start(self) -> None:
        """Begin to accept."""
        self._accepting = True
        self._loop.add_reader(self._listener, self._accept)

    def announce_leaving(self) -> None:
        """Ask every sender, with its next answer, to open another connection; still serve all of them."""
        self._handler.leaving = True

    async def leave(self, within_s: float) -> None:
        """Stop accepting, answer the requests that are under way, close everything; at the latest after `within_s`."""
        self._handler.leaving = True
        # What waits in the queue already is still ours. Between the last look and the close nothing else can run here.
        while self._accepting and self._accept():
            pass
        self._closed = True
        self._stop_accepting()
        self._listener.close()
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self._server.shutdown, CUT_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(within_s):
                    if self._opening:
                        await asyncio.wait(self._opening)
                    for connection in self._server.senders():
                        connection.leave(FIRST_WORD_S)
                    await self._empty.wait()

    def _accept(self) -> bool:
        """Take connections from the queue; returns whether more may wait there that can be taken now."""
        for _ in range(ACCEPT_MOST):
            if self._open >= self._connections_max:
                self._metrics.connections_full.inc()
                self._stop_accepting()
                return False
            try:
                accepted, _ = self._listener.accept()
            except (InterruptedError, ConnectionAbortedError):
                continue
            except BlockingIOError:
                return False
            except OSError:
                self._stop_accepting()
                self._loop.call_later(ACCEPT_PAUSE_S, self._accept_again)
                return False
            accepted.setblocking(False)  # noqa: FBT003 - the socket's own signature
            self._open += 1
            self._empty.clear()
            self._metrics.connections.set(self._open)
            task = self._loop.create_task(self._attach(accepted))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)
        return True

    async def _attach(self, accepted: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._server, accepted)
        except OSError:
            accepted.close()
            self._on_lost()

    def _on_lost(self) -> None:
        self._open -= 1
        self._metrics.connections.set(self._open)
        if not self._open:
            self._empty.set()
        self._accept_again()

    def _accept_again(self) -> None:
        if not self._accepting and not self._closed and self._open < self._connections_max:
            self.start()

    def _stop_accepting(self) -> None:
        if self._accepting:
            self._accepting = False
            self._loop.remove_reader(self._listener)
