"""aiohttp's server connection, held to contract.md section 3 where aiohttp would do something of its own.

What aiohttp 3.14 does differently, and what is done about it here:

- it answers what its parser refuses as text that quotes the input: `handle_error` gives our JSON body instead;
- framing that breaks inside a body leaves the handler waiting for the rest: the body is failed at once;
- an incomplete head lives as long as an idle connection: it has the request timeout;
- up to 32 whole requests are read ahead of the one that is handled: reading stops at the first;
- a sender that shuts down its writing side gets no answer: what is complete is answered first;
- heads are bounded by line and by count alone, framing and trailers by nothing: both are bounded in bytes;
- a sender that never takes its answers is waited for without end: it has the request timeout, too.

Each connection tells the `Crowd` whose turn it is and what it holds in memory.

It reaches for attributes of `RequestHandler` that are not public; the tests in tests/wire hold each of these, and the
version is locked.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import structlog
from aiohttp import web
from aiohttp.http import RawRequestMessage
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from ingest.receiver.crowd import GRACE_S, Crowd, Guest, Limit
from ingest.receiver.reply import Reply
from ingest.receiver.statuses import FAILED, NOT_HTTP
from ingest.receiver.turnstile import Turnstile

log = structlog.get_logger(__name__)

ANSWERS_MAX_BYTES: Final = 4096
"""Answers that wait in memory for a sender that does not take them; then its requests wait, too."""

FRAMING_SHARE: Final = 8
"""Bytes on the wire for each byte of a chunked body, at most; chunks of one byte need six."""

FRAMING_MAX_BYTES: Final = 64 * 1024
"""Framing that any body may have besides: extensions, trailers."""

_TOO_MANY: Final = "Too many headers received"
"""What aiohttp says of them."""

_FIELD_BYTES: Final = 4
"""Of a header line, besides name and value."""

_REST_OF_HEAD_BYTES: Final = 14
"""Of a request line, besides method and target, and the empty line at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """What one connection may ask for, besides aiohttp's own limits.

    Attributes:
        head_timeout_s: for the head of a request, from its first byte.
        head_max_bytes: of the head of a request.
        answer_timeout_s: for the sender to take its answers once `ANSWERS_MAX_BYTES` wait.
    """

    head_timeout_s: float
    head_max_bytes: int
    answer_timeout_s: float


class BrokenFramingError(Exception):
    """The parser refused what follows the head of a request; set on the body that was being read."""


class FramingTooLargeError(Exception):
    """There is more framing than body; set on the body that was being read."""


class CrowdedOutError(Exception):
    """The sender kept us waiting while others needed the room; set on the body that was being read."""


class Connection(RequestHandler):
    """One connection of a sender.

    Args:
        server: that made it.
        crowd: that it is one of.
        guest: what stands for it there.
        limits: that it is held to.
        turnstile: for requests that were sent ahead.
        max_age_s: age from which it is closed with its next answer; an idle one has no answer to say so with, and goes
            when it was idle for long enough.
        on_error: called with the status of each answer that no handler gave.
        on_lost: called once, when the connection is gone.
        options: of `RequestHandler`.
    """

    __slots__ = (
        "_body",
        "_body_held",
        "_body_wire",
        "_buffered",
        "_crowd",
        "_guest",
        "_head_bytes",
        "_head_timer",
        "_left_bytes",
        "_limits",
        "_max_age_s",
        "_on_error",
        "_on_lost",
        "_opened_at",
        "_sent_ahead",
        "_turnstile",
    )

    def __init__(
        self,
        server: web.Server,
        *,
        loop: asyncio.AbstractEventLoop,
        crowd: Crowd,
        guest: Guest,
        limits: ConnectionLimits,
        turnstile: Turnstile,
        max_age_s: float,
        on_error: Callable[[int], None],
        on_lost: Callable[[], None],
        **options: Any,
    ) -> None:
        super().__init__(server, loop=loop, **options)
        self._crowd = crowd
        self._guest = guest
        self._limits = limits
        self._turnstile = turnstile
        self._sent_ahead = False
        """The next request came before the last answer was given."""
        self._buffered = 0
        """Bytes held by the connection itself: an incomplete head, what was read ahead, framing."""
        self._body_held = 0
        self._body_wire = 0
        """Bytes that came for the open body, after those that came with its head."""
        self._head_bytes = 0
        """Of the incomplete head."""
        self._left_bytes = 0
        """Of a read that ended a request: what may belong to the next one."""
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
        if self.transport is not None:
            self.transport.set_write_buffer_limits(high=ANSWERS_MAX_BYTES)
        self._guest.evict = self.evict
        self._crowd.waits(self._guest)

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
        busy = self._request_in_progress or bool(self._messages)
        super().data_received(data)
        if self._request_count != requests:
            self._take_requests(self._request_count - requests, data, in_body=in_body, busy=busy)
        elif not data or self._close or self._force_close:
            pass
        elif in_body:
            self._take_body(data)
        else:
            self._take_head(data)

    def _take_requests(self, count: int, data: bytes, *, in_body: bool, busy: bool) -> None:
        """One or more heads are complete; what follows the last may not be."""
        size = self._head_bytes + len(data)
        self._stop_head_timer()
        self._head_bytes = self._body_wire = self._left_bytes = 0
        if size > self._limits.head_max_bytes:
            self._weigh(count, size, in_body=in_body)
        message, body = self._messages[-1]
        self._body = body
        if not isinstance(message, RawRequestMessage):
            self._fail_open_bodies(BrokenFramingError())
        if busy or len(self._messages) > 1:
            self._pause_reading_for_buffer()
            self._buffer(self._buffered + len(data))
        else:
            self._buffer(self._left_bytes)
        if busy:
            return
        if body.is_eof():
            self._crowd.serves(self._guest)
        else:
            self._crowd.waits(self._guest)

    def _take_body(self, data: bytes) -> None:
        """A piece of the open body, or of its framing."""
        body = self._body
        if body is None:
            return
        self._body_wire += len(data)
        framing = self._body_wire - body.total_bytes
        if body.is_eof():
            self._left_bytes = max(0, framing)
            self._crowd.serves(self._guest)
        elif framing > (FRAMING_SHARE - 1) * body.total_bytes + FRAMING_MAX_BYTES:
            self._fail_open_bodies(FramingTooLargeError())
        elif framing > ANSWERS_MAX_BYTES:
            self._buffer(framing)

    def _take_head(self, data: bytes) -> None:
        """A piece of a head that is still incomplete."""
        if self._head_timer is None:
            self._head_timer = self._loop.call_later(self._limits.head_timeout_s, self._lose, Limit.HEAD_TIME)
            self._crowd.waits(self._guest)
        self._head_bytes += len(data)
        self._buffer(self._head_bytes)
        if self._head_bytes > self._limits.head_max_bytes:
            self._refuse_head()

    def _weigh(self, count: int, size: int, *, in_body: bool) -> None:
        """Look at heads that came in a large read: refuse those too large, count what belongs to none of them."""
        latest = list(self._messages)[-count:]
        heads = [_head_bytes(message) for message, _ in latest if isinstance(message, RawRequestMessage)]
        if any(head > self._limits.head_max_bytes for head in heads):
            for _ in latest:
                self._messages.pop()
            self._refuse_head()
        elif not in_body and latest[-1][1].is_eof():
            self._left_bytes = max(0, size - sum(heads) - sum(body.total_bytes for _, body in latest))

    def _refuse_head(self) -> None:
        """Answer as aiohttp's parser would have it, then close; nothing more is read."""
        error = LineTooLong(b"", self._limits.head_max_bytes)
        self._request_count += 1
        self._messages.append((_ErrInfo(error.code, error, ""), EMPTY_PAYLOAD))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        self._stop_head_timer()
        self._close = True

    async def delivered(self, *, success: bool, last: bool) -> None:
        """An answer was given to the transport: return once the sender may have the next one.

        Args:
            success: the answer says so.
            last: the connection is closed after it.

        Raises:
            ConnectionResetError: the sender does not take its answers.
        """
        if success:
            self._crowd.knows(self._guest)
        if last or self._close:
            self._cut_later(self.transport)
        self._sent_ahead = bool(self._messages)
        if self._sent_ahead:
            self._crowd.resumes(self._guest)
        else:
            self._buffer(self._head_bytes + self._left_bytes)
            self._crowd.waits(self._guest)
        if self._paused:
            try:
                async with asyncio.timeout(self._limits.answer_timeout_s):
                    await self._drain_helper()
            except TimeoutError:
                self._lose(Limit.ANSWER_TIME)
                raise ConnectionResetError("the sender does not take its answers") from None

    async def turn(self) -> None:
        """A request is to be handled: return at once, or, if it was sent ahead, when its turn has come."""
        if self._sent_ahead:
            await self._turnstile.pass_through()
            self._sent_ahead = False
            if self._body is not None and self._body.is_eof():
                self._crowd.serves(self._guest)

    def hold_body(self, size: int) -> bool:
        """Count bytes of the body that is read as held; False if there is no room for them."""
        if not self._crowd.hold(self._guest, size):
            return False
        self._body_held += size
        return True

    def release_body(self) -> None:
        """The body is not needed any more."""
        self._crowd.release(self._guest, self._body_held)
        self._body_held = 0

    def evict(self) -> None:
        """Go, because others need the room: 503 to a sender in the middle of a body, nothing to any other."""
        if self._current_request is None or self._body is None or self._body.is_eof():
            self._abort()
            return
        self._lingering_time = 0.0
        self._fail_open_bodies(CrowdedOutError())
        self._loop.call_later(GRACE_S, self._abort)

    def _lose(self, limit: Limit) -> None:
        self._crowd.on_limit(limit)
        self._abort()

    def _abort(self) -> None:
        """Close without waiting for anything that the sender would have to do."""
        if self.transport is not None:
            self.transport.abort()

    def force_close(self) -> None:
        """Close the connection; what is written may still go out."""
        transport = self.transport
        super().force_close()
        self._cut_later(transport)

    def _cut_later(self, transport: asyncio.Transport | None) -> None:
        """A close waits for the sender to take what is written: not for ever."""
        if transport is not None and transport.get_write_buffer_size():
            self._loop.call_later(self._limits.answer_timeout_s, transport.abort)

    def _process_keepalive(self) -> None:
        was_open = not self._force_close
        super()._process_keepalive()
        if was_open and self._force_close:
            self._crowd.on_limit(Limit.IDLE_TIME)

    def _buffer(self, size: int) -> None:
        """Count so many bytes as held by the connection itself."""
        if size > self._buffered:
            if not self._crowd.hold(self._guest, size - self._buffered):
                return
        elif size < self._buffered:
            self._crowd.release(self._guest, self._buffered - size)
        self._buffered = size

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
            if isinstance(exc, LineTooLong) or (isinstance(exc, BadHttpMessage) and exc.message == _TOO_MANY):
                self._crowd.on_limit(Limit.HEAD_SIZE)
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

    def _fail_open_bodies(self, error: Exception) -> None:
        bodies = [body for _, body in self._messages]
        if self._body is not None:
            bodies.append(self._body)
        for body in bodies:
            if not body.is_eof():
                body.set_exception(error)

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

    def connection(self, guest: Guest, *, on_lost: Callable[[], None]) -> Connection:
        """A connection for the socket of a guest; see `Connection` for the arguments."""
        return Connection(self, loop=self._loop, guest=guest, on_lost=on_lost, **self._options)

    def senders(self) -> list[Connection]:
        """The open connections."""
        return [connection for connection in self.connections if isinstance(connection, Connection)]


def _head_bytes(message: RawRequestMessage) -> int:
    """About the size of a head on the wire."""
    fields = sum(len(name) + len(value) + _FIELD_BYTES for name, value in message.raw_headers)
    return len(message.method) + len(message.path) + _REST_OF_HEAD_BYTES + fields
