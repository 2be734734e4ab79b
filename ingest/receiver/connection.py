"""aiohttp's server connection, held to contract.md section 3 where aiohttp would do something of its own.

What aiohttp 3.14 does differently, and what is done about it here:

- it answers what its parser refuses as text that quotes the input: `handle_error` gives our JSON body instead;
- framing that breaks inside a body leaves the handler waiting for the rest: the body is failed at once;
- an incomplete head lives as long as an idle connection: it has the request timeout;
- up to 32 whole requests are read ahead of the one that is handled: reading stops at the first;
- a sender that shuts down its writing side gets no answer: what is complete is answered first.

It reaches for attributes of `RequestHandler` that are not public; the tests in tests/wire hold each of these, and the
version is locked.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import structlog
from aiohttp import web
from aiohttp.http import RawRequestMessage
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler

from ingest.receiver.reply import Reply
from ingest.receiver.statuses import FAILED, NOT_HTTP

log = structlog.get_logger(__name__)


class BrokenFramingError(Exception):
    """The parser refused what follows the head of a request; set on the body that was being read."""


class Connection(RequestHandler):
    """One connection of a sender.

    Args:
        server: that made it.
        head_timeout_s: how long the head of a request may take from its first byte.
        max_age_s: age from which it is closed with its next answer; an idle one has no answer to say so with, and goes
            when it was idle for long enough.
        on_error: called with the status of each answer that no handler gave.
        on_lost: called once, when the connection is gone.
        options: of `RequestHandler`.
    """

    __slots__ = ("_body", "_head_timeout_s", "_head_timer", "_max_age_s", "_on_error", "_on_lost", "_opened_at")

    def __init__(
        self,
        server: web.Server,
        *,
        loop: asyncio.AbstractEventLoop,
        head_timeout_s: float,
        max_age_s: float,
        on_error: Callable[[int], None],
        on_lost: Callable[[], None],
        **options: Any,
    ) -> None:
        super().__init__(server, loop=loop, **options)
        self._head_timeout_s = head_timeout_s
        self._max_age_s = max_age_s
        self._opened_at: float | None = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._on_error = on_error
        self._on_lost = on_lost
        self._body: StreamReader | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`: over TLS, this comes after the handshake."""
        self._opened_at = self._loop.time()
        super().connection_made(transport)

    def was_opened(self) -> bool:
        """Whether there was ever a connection: over TLS, whether the handshake succeeded."""
        return self._opened_at is not None

    def is_old(self) -> bool:
        """Whether the sender should open another one, with the certificate that is served then."""
        return self._opened_at is not None and self._loop.time() - self._opened_at >= self._max_age_s

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        requests = self._request_count
        in_body = self._body is not None and not self._body.is_eof()
        idle = self._is_idle()
        super().data_received(data)
        if self._request_count != requests:
            self._stop_head_timer()
            message, body = self._messages[-1]
            if not isinstance(message, RawRequestMessage):
                self._fail_open_bodies()
            elif not idle or len(self._messages) > 1:
                self._pause_reading_for_buffer()
            self._body = body
        elif data and not in_body and self._head_timer is None and not self._close:
            self._head_timer = self._loop.call_later(self._head_timeout_s, self.force_close)

    def eof_received(self) -> bool | None:  # type: ignore[override] # asyncio allows it, aiohttp never needed it
        """See `asyncio.Protocol`: keep the transport where an answer is still to be sent."""
        if self._is_idle() or self.ssl_context is not None or self._body is None or not self._body.is_eof():
            return None
        self.close()
        return True

    def leave(self, patience_s: float) -> None:
        """Close the connection: after the request under way, or at once; a new one may ask within `patience_s`."""
        if not self._is_idle():
            self.close()
        elif self._request_count or not patience_s:
            self.force_close()
        else:
            self._loop.call_later(patience_s, self.leave, 0.0)

    def resume_reading(self, resume_parser: bool = True) -> None:  # noqa: FBT001, FBT002 - aiohttp's signature
        """Go on reading if it was paused; aiohttp asks with every piece that is taken from a body."""
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def connection_lost(self, exc: BaseException | None) -> None:
        """See `asyncio.Protocol`."""
        self._stop_head_timer()
        if self._manager is not None:
            self._on_lost()
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - aiohttp's signature; it quotes the input
    ) -> web.StreamResponse:
        """What the parser refused, or a handler that failed. The connection is closed after it."""
        if isinstance(exc, ConnectionError):
            raise exc  # the sender is gone: nothing to answer
        if status == NOT_HTTP.status:
            answer = NOT_HTTP
        else:
            answer = FAILED
            log.error("a request failed", exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("part of another answer is sent already")
        self._on_error(answer.status)
        return Reply(answer, close=True)

    def log_exception(self, *args: Any, **kwargs: Any) -> None:
        """A connection that ends in the middle of a body is the sender's affair, not an error of ours."""
        log.debug("a connection ended", detail=str(args[0]) if args else "", exc_info=kwargs.get("exc_info"))

    def _is_idle(self) -> bool:
        """Whether the next request is waited for, none being handled or queued."""
        return self._waiter is not None and not self._waiter.done()

    def _fail_open_bodies(self) -> None:
        bodies = [body for _, body in self._messages]
        if self._body is not None:
            bodies.append(self._body)
        for body in bodies:
            if not body.is_eof():
                body.set_exception(BrokenFramingError())

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class Server(web.Server):
    """Makes a `Connection` for each accepted socket.

    Args:
        handler: of the requests.
        options: of `Connection`.
    """

    def __init__(self, handler: Callable[[web.BaseRequest], Any], **options: Any) -> None:
        super().__init__(handler)
        # The body is spooled as it was received, and nothing of a request belongs in a log.
        self._options = {"access_log": None, "auto_decompress": False, **options}

    def __call__(self) -> Connection:
        """A connection for the next socket."""
        return Connection(self, loop=self._loop, **self._options)

    def senders(self) -> list[Connection]:
        """The open connections."""
        return [connection for connection in self.connections if isinstance(connection, Connection)]
