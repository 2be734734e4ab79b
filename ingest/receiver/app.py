"""The callback port of one worker: accepts from the shared listening socket, and leaves without losing a push."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from ingest.contract.push import Route
from ingest.receiver.certificates import Certificates, Handshakes
from ingest.receiver.connection import Connection, ConnectionLimits, Server
from ingest.receiver.crowd import Crowd, Guest, Limit
from ingest.receiver.durable import Durable
from ingest.receiver.gate import OPEN, Gates
from ingest.receiver.handlers import CallbackHandler, Limits
from ingest.receiver.statistics import ReceiverMetrics
from ingest.receiver.turnstile import Turnstile
from ingest.runtime.clock import Clock

ACCEPT_MOST: Final = 8
"""Sockets accepted in one turn of the event loop, so that a crowd at the door does not stop the ones inside."""

LINGER_S: Final = 5.0
"""How long what is left of a refused body is read and dropped, so that the answer is not lost to a reset."""

FIRST_WORD_S: Final = 1.0
"""How long a connection that was accepted last may take to begin its request."""

LAST_HANDSHAKES_S: Final = 2.0
"""How long the handshakes of those that were accepted last may take."""

CLOSE_NOTIFY_S: Final = 2.0
"""How long the end of a TLS connection waits for the sender's word that it, too, has nothing more to say. Until then
what it sends is read and dropped, so that the answer is not lost to a reset."""

CUT_S: Final = 0.05
"""What a connection that is still open at the end gets; aiohttp takes 0 for no bound at all."""

ACCEPT_PAUSE_S: Final = 0.1
"""Pause after accept failed for want of something that comes back (file descriptors, memory), and between two looks for
somebody who must go at the bound on connections."""

SENT_AHEAD_MOST: Final = 2
"""Requests sent ahead of other answers that are handled in a millisecond, over all connections. It takes a quarter of
one core."""

ANSWERS_SOCKET_BYTES: Final = 4096
"""Answers that wait in the socket of a sender that does not take them; the kernel takes it as a hint. One is 200."""

FLIGHT_BYTES: Final = 16 * 1024
"""The same over TLS, where a whole chain of certificates must go without waiting for the sender in between."""

BURST_BYTES: Final = 32 * 1024
"""What a sender may have on its way over TLS; the kernel takes twice of it. As much as one read has brought once,
uvloop and OpenSSL keep as long as the connection lives: 670 KiB for each that sent a large body, 110 with this."""

LINE_MAX_BYTES: Final = 8190
"""Of a line of a head; aiohttp's own default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings:
    """What the callback port needs of the settings (contract.md section 2).

    Attributes:
        connections_max: of this worker; see `Crowd` for who goes at the bound, and when further ones wait in the queue
            of the listening socket.
        connections_per_peer_max: of them from one address; 0: no bound.
        bodies_max_bytes: of requests in memory, over all connections.
        head_max_bytes: of the head of a request.
        headers_max: headers of a request, trailers included.
        connection_max_age_s: age from which a connection is closed with its next answer.
    """

    batch_path: str
    single_path: str
    body_max_bytes: int
    reports_max: int
    request_timeout_s: float
    keepalive_s: float
    connections_max: int
    connections_per_peer_max: int
    bodies_max_bytes: int
    head_max_bytes: int
    headers_max: int
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


@dataclass(frozen=True, slots=True)
class Tls:
    """What a port needs to speak TLS."""

    certificates: Certificates
    handshakes: Handshakes


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
        is_proxy: whether an address is a proxy that speaks for many.
        tls: None for plain HTTP.
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
        is_proxy: Callable[[str], bool] = lambda _: False,
        tls: Tls | None = None,
    ) -> None:
        listener.setblocking(False)  # noqa: FBT003 - the socket's own signature
        # Inherited by what it accepts.
        if tls is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BURST_BYTES)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ANSWERS_SOCKET_BYTES if tls is None else FLIGHT_BYTES)
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._metrics = metrics
        self._tls = tls
        self._handshake_timeout_s = settings.request_timeout_s
        self._crowd = Crowd(
            most=settings.connections_max,
            most_of_peer=settings.connections_per_peer_max,
            most_bytes=settings.bodies_max_bytes,
            now=self._loop.time,
            on_limit=metrics.count_limit,
            is_exempt=is_proxy,
            is_foreign=(lambda _: False) if gates.peers is None else gates.peers.is_foreign,
        )
        self._open = 0
        self._accepting = False
        self._pause: asyncio.TimerHandle | None = None
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
            crowd=self._crowd,
            turnstile=Turnstile(self._loop, SENT_AHEAD_MOST),
            limits=ConnectionLimits(
                head_timeout_s=settings.request_timeout_s,
                head_max_bytes=settings.head_max_bytes,
                answer_timeout_s=settings.request_timeout_s,
            ),
            max_line_size=min(LINE_MAX_BYTES, settings.head_max_bytes),
            max_field_size=min(LINE_MAX_BYTES, settings.head_max_bytes),
            max_headers=settings.headers_max,
            max_age_s=settings.connection_max_age_s,
            # A connection that has not asked yet is never closed at once.
            keepalive_timeout=settings.keepalive_s or settings.request_timeout_s,
            lingering_time=LINGER_S,
            on_error=lambda status: metrics.count_request("other", status),
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
                    await self._end_opening(LAST_HANDSHAKES_S)
                    for connection in self._server.senders():
                        connection.leave(FIRST_WORD_S)
                    await self._empty.wait()
            await self._end_opening(0.0)

    async def _end_opening(self, within_s: float) -> None:
        """Wait for the connections that are being opened, then give them up."""
        if self._opening:
            await asyncio.wait(self._opening, timeout=within_s)
        for task in list(self._opening):
            task.cancel()
        await asyncio.gather(*self._opening, return_exceptions=True)

    def refresh(self) -> None:
        """Set the gauge of the memory to what holds now."""
        self._metrics.held_bytes.set(self._crowd.held_bytes)

    def _accept(self) -> bool:
        """Take connections from the queue; returns whether more may wait there that can be taken now."""
        for _ in range(ACCEPT_MOST):
            if not self._crowd.has_room():
                self._metrics.connections_full.inc()
                self._pause_accepting()
                return False
            try:
                accepted, address = self._listener.accept()
            except (InterruptedError, ConnectionAbortedError):
                continue
            except BlockingIOError:
                return False
            except OSError:
                # Most likely descriptors: whoever keeps us waiting longest gives one back.
                self._metrics.count_limit(Limit.DESCRIPTORS)
                self._crowd.evict_one()
                self._pause_accepting()
                return False
            accepted.setblocking(False)  # noqa: FBT003 - the socket's own signature
            self._let_in(accepted, str(address[0]) if address else "")
        return True

    def _let_in(self, accepted: socket.socket, peer: str) -> None:
        # Until there is a connection (over TLS: until the handshake is done), the socket itself is shut down.
        guest = self._crowd.enter(peer, lambda: _shut_down(accepted))
        if guest is None:
            accepted.close()
            return
        self._open += 1
        self._empty.clear()
        self._metrics.connections.set(self._open)
        task = self._loop.create_task(self._attach(accepted, guest))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _attach(self, accepted: socket.socket, guest: Guest) -> None:
        connection = self._server.connection(guest, on_lost=partial(self._on_lost, guest))
        try:
            await self._open_connection(connection, accepted)
        except OSError as error:
            accepted.close()
            if self._tls is not None:
                self._count_failure(self._tls, error)
        finally:
            # One that was opened says itself when it is lost.
            if not connection.was_opened():
                self._on_lost(guest)

    def _count_failure(self, tls: Tls, error: OSError) -> None:
        if tls.handshakes.failed(error) == "timeout":
            self._metrics.count_limit(Limit.HANDSHAKE_TIME)

    async def _open_connection(self, connection: Connection, accepted: socket.socket) -> None:
        """Let a connection speak over a socket; over TLS, once the handshake is done.

        Raises:
            OSError: the socket, or its handshake, came to nothing.
        """
        if self._tls is None:
            await self._loop.connect_accepted_socket(lambda: connection, accepted)
            return
        transport, _ = await self._loop.connect_accepted_socket(
            lambda: connection,
            accepted,
            ssl=self._tls.certificates.context,
            ssl_handshake_timeout=self._handshake_timeout_s,
            ssl_shutdown_timeout=CLOSE_NOTIFY_S,
        )
        # TLS 1.3 ends with a word of the sender that nobody answers. One that holds back its request until that word is
        # acknowledged (Nagle) would wait 40 ms for our kernel.
        with contextlib.suppress(OSError):
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        session = transport.get_extra_info("ssl_object")
        if isinstance(session, ssl.SSLObject):
            self._tls.handshakes.succeeded(session)

    def _on_lost(self, guest: Guest) -> None:
        self._crowd.leave(guest)
        self._open -= 1
        self._metrics.connections.set(self._open)
        if not self._open:
            self._empty.set()
        self._accept_again()

    def _accept_again(self) -> None:
        if self._accepting or self._closed:
            return
        if self._crowd.has_room():
            self.start()
        else:
            self._look_again()

    def _pause_accepting(self) -> None:
        self._stop_accepting()
        self._look_again()

    def _look_again(self) -> None:
        """Somebody may have to go by then."""
        if self._pause is None:
            self._pause = self._loop.call_later(ACCEPT_PAUSE_S, self._end_pause)

    def _end_pause(self) -> None:
        self._pause = None
        self._accept_again()

    def _stop_accepting(self) -> None:
        if self._accepting:
            self._accepting = False
            self._loop.remove_reader(self._listener)


def _shut_down(accepted: socket.socket) -> None:
    with contextlib.suppress(OSError):
        accepted.shutdown(socket.SHUT_RDWR)
