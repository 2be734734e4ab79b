"""One request: the checks of contract.md section 3 in their order, then the durable place, then the answer."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, cast

from aiohttp import web
from aiohttp.http import HttpVersion10, HttpVersion11
from aiohttp.streams import StreamReader

from ingest.contract.push import Push, Route, count_reports
from ingest.contract.report import Reason, RejectedError
from ingest.receiver import statuses
from ingest.receiver.connection import BrokenFramingError, Connection, CrowdedOutError, FramingTooLargeError
from ingest.receiver.crowd import Limit
from ingest.receiver.durable import RETRY_AFTER_S, Durable
from ingest.receiver.gate import OPEN, Gates
from ingest.receiver.parse import content_length, is_identity, is_of_type, is_plainly_chunked, target_path
from ingest.receiver.reply import Reply
from ingest.receiver.statistics import ReceiverMetrics
from ingest.receiver.statuses import Answer, RefusedError
from ingest.runtime.clock import Clock
from ingest.runtime.errors import BusyError

DOCUMENTED_REPORTS_MAX: Final = 50
"""protocol.md section 1: more in a push is not an error, but it is counted."""

_OTHER: Final = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one request may ask for."""

    body_max_bytes: int
    reports_max: int
    request_timeout_s: float


class CallbackHandler:
    """Answers every request of the callback port.

    Args:
        paths: the configured paths, each with its kind of callback; nothing else is served.
        limits: of one request.
        durable: keeps a push before it is answered.
        clock: says when a push was received.
        metrics: of this worker.
        gates: check who pushes.
    """

    def __init__(
        self,
        *,
        paths: Mapping[str, Route],
        limits: Limits,
        durable: Durable,
        clock: Clock,
        metrics: ReceiverMetrics,
        gates: Gates = OPEN,
    ) -> None:
        self._paths = dict(paths)
        self._limits = limits
        self._durable = durable
        self._clock = clock
        self._metrics = metrics
        self._peers = gates.peers
        self._signatures = gates.signatures
        self.leaving = False
        """Every answer asks the sender to open another connection: a shutdown has begun, or none is to be kept."""

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        await _connection(request).turn()
        started = self._clock.monotonic()
        target = request.raw_path
        route = self._paths.get(target) or self._paths.get(target_path(target))
        try:
            _check_framing(request)
            answer = await self._take(request, route, started)
        except RefusedError as refused:
            answer = refused.answer
        self._metrics.count_request(_OTHER if route is None else route, answer.status)
        # What is left of a body is read for a moment, so that the answer is not lost with it, then dropped.
        close = self.leaving or not request.content.is_eof() or _connection(request).is_old()
        return Reply(answer, close=close or answer is statuses.NOT_HTTP or _may_end_elsewhere(request))

    async def _take(self, request: web.BaseRequest, route: Route | None, started: float) -> Answer:
        # The order of the checks is the contract's: 403 of the peer's network stands before the path,
        # 401 of the signature between the whole body and its parsing.
        if self._peers is not None:
            self._peers.check(request)
        route = self._admit(request, route)
        body = await self._read(request)
        try:
            if self._signatures is not None:
                self._signatures.check(request, body)
            reports, refused, answer = self._judge(route, body)
            await self._durable.keep(Push(self._clock.wall_ms(), route, reports, body, refused))
        except BusyError as busy:
            raise RefusedError(statuses.come_back(busy.retry_after_s)) from busy
        finally:
            _connection(request).release_body()
        # From here on the reports are ours to lose.
        self._metrics.ack_seconds.observe(self._clock.monotonic() - started)
        self._metrics.reports.inc(reports)
        if reports > DOCUMENTED_REPORTS_MAX:
            self._metrics.large_pushes.inc()
        return answer

    def _admit(self, request: web.BaseRequest, route: Route | None) -> Route:
        """What the head alone decides: 404, 405, 415, 413."""
        if route is None:
            raise RefusedError(statuses.NOT_FOUND)
        if request.method != "POST":
            raise RefusedError(statuses.ONLY_POST)
        headers = request.headers
        if not is_of_type(headers.get("Content-Type"), route):
            raise RefusedError(statuses.OTHER_TYPE)
        if "Content-Encoding" in headers and not is_identity(headers.getall("Content-Encoding")):
            raise RefusedError(statuses.OTHER_CODING)
        if "Transfer-Encoding" in headers and not is_plainly_chunked(headers.getall("Transfer-Encoding")):
            raise RefusedError(statuses.OTHER_CODING)
        if content_length(headers.get("Content-Length", "")) > self._limits.body_max_bytes:
            raise self._too_large()
        return route

    async def _read(self, request: web.BaseRequest) -> bytes:
        """The whole body: 413, 408. Its bytes count as held when this returns."""
        content = request.content
        connection = _connection(request)
        if content.is_eof():  # the usual case: it came with the head
            body = content.read_nowait(-1)
            if len(body) > self._limits.body_max_bytes:
                raise self._too_large()
            _hold(connection, len(body))
            return body
        if request.headers.get("Expect", "").lower() == "100-continue" and request.version >= HttpVersion11:
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0  # it is no part of the answer
        try:
            async with asyncio.timeout(self._limits.request_timeout_s):
                return await self._read_pieces(connection, content)
        except BaseException as error:
            connection.release_body()
            if (refused := self._refusal(error)) is not None:
                raise refused from None
            raise

    async def _read_pieces(self, connection: Connection, content: StreamReader) -> bytes:
        # One buffer: pieces of a few bytes each would take many times their size.
        body = bytearray()
        while piece := await content.readany():
            if len(body) + len(piece) > self._limits.body_max_bytes:
                raise self._too_large()
            _hold(connection, len(piece))
            body += piece
        return bytes(body)

    def _refusal(self, error: BaseException) -> RefusedError | None:
        """What to answer where reading a body ended with an error; None if it is not the sender's."""
        if isinstance(error, TimeoutError):
            self._metrics.count_limit(Limit.BODY_TIME)
            return RefusedError(statuses.TOO_SLOW)
        if isinstance(error, BrokenFramingError):
            return RefusedError(statuses.NOT_HTTP)
        if isinstance(error, FramingTooLargeError):
            self._metrics.count_limit(Limit.FRAMING)
            return RefusedError(statuses.TOO_LARGE)
        if isinstance(error, CrowdedOutError):
            return RefusedError(statuses.come_back(RETRY_AFTER_S))
        return None

    def _too_large(self) -> RefusedError:
        self._metrics.count_limit(Limit.BODY_SIZE)
        return RefusedError(statuses.TOO_LARGE)

    def _judge(self, route: Route, body: bytes) -> tuple[int, Reason | None, Answer]:
        """How many reports the push counts as, why it is refused, and its answer once it is durable.

        A refused body is kept, too, with the reason, because it must stay refused whatever the limits become.
        """
        try:
            return count_reports(route, body, reports_max=self._limits.reports_max), None, statuses.SUCCESS
        except RejectedError as rejected:
            return 1, rejected.reason, statuses.bad_request(rejected.detail)


def _check_framing(request: web.BaseRequest) -> None:
    """Refuse what the HTTP parser takes although it has no one meaning (RFC 9112 sections 2.3 and 6.1).

    Raises:
        RefusedError: another version than 1.0 and 1.1, or none; chunks in HTTP/1.0, which knows none; a coding beside
            an `Upgrade` that llhttp does not read as chunks (a tab behind `chunked`): it sees no body at all then.
    """
    version, headers = request.version, request.headers
    if version == HttpVersion11 and ("Upgrade" not in headers or _is_read_as_sent(request)):
        return
    if version not in {HttpVersion10, HttpVersion11} or "Transfer-Encoding" in headers:
        raise RefusedError(statuses.NOT_HTTP)


def _is_read_as_sent(request: web.BaseRequest) -> bool:
    """Whether the parser reads chunks if it was sent a coding; Java's HttpClient offers h2c with every such request."""
    message = request._message  # noqa: SLF001 - what the parser itself saw stands nowhere else
    return message.chunked or "Transfer-Encoding" not in request.headers


def _may_end_elsewhere(request: web.BaseRequest) -> bool:
    """Whether what follows on the connection must not be read as requests.

    Somebody in front of us may see another end of a request with an odd coding; and after a declined `Upgrade` aiohttp
    can put the pieces of what follows together in a wrong order.
    """
    headers = request.headers
    if "Upgrade" in headers or request.method == "CONNECT":
        return True
    return "Transfer-Encoding" in headers and not is_plainly_chunked(headers.getall("Transfer-Encoding"))


def _connection(request: web.BaseRequest) -> Connection:
    return cast("Connection", request.protocol)


def _hold(connection: Connection, size: int) -> None:
    """Count bytes of a request that is not answered yet; 503 if there is no room for them."""
    if not connection.hold_body(size):
        raise RefusedError(statuses.come_back(RETRY_AFTER_S))
