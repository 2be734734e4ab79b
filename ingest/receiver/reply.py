"""An answer on its way to the sender: one write of prepared bytes.

`aiohttp.web.Response` builds and serialises a header dictionary for each answer, which costs as much as parsing a small
push. There are few answers, so their heads stand ready and only date and connection are added.
"""

from typing import Protocol, cast

from aiohttp import web
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import HttpVersion10

from ingest.receiver.statuses import SUCCESS, Answer


class Giver(Protocol):
    """The connection, as far as an answer needs it."""

    async def delivered(self, *, success: bool, last: bool) -> None:
        """An answer was given to the transport: return once the sender may have the next one.

        Raises:
            ConnectionResetError: the sender does not take its answers.
        """
        ...


class Reply(web.StreamResponse):
    """What aiohttp's connection asks of a response: `prepare`, `write_eof` and `keep_alive`.

    Args:
        answer: what is said.
        close: close the connection after it, whatever the sender asked for.
    """

    def __init__(self, answer: Answer, *, close: bool = False) -> None:
        # The base class is not initialised: it would make the header dictionary that this one does without.
        self._answer = answer
        self._close = close

    async def prepare(self, request: web.BaseRequest) -> None:
        """Take the request that is answered; nothing is sent yet."""
        self._req = request
        self._keep_alive = not self._close and request.keep_alive

    async def write_eof(self, data: bytes = b"") -> None:  # noqa: ARG002 - the body stands ready
        """Send the whole answer.

        Raises:
            ConnectionResetError: the sender is gone, or does not take its answers.
        """
        request = self._req
        if request is None or (transport := request.transport) is None or transport.is_closing():
            raise ConnectionResetError("the sender is gone")
        connection = b""
        if not self._keep_alive:
            connection = b"Connection: close\r\n"
        elif request.version == HttpVersion10:
            connection = b"Connection: keep-alive\r\n"
        answer = self._answer
        date = rfc822_formatted_time().encode()
        body = b"" if request.method == "HEAD" else answer.body
        transport.write(b"%sDate: %s\r\n%s\r\n%s" % (answer.head, date, connection, body))
        await cast("Giver", request.protocol).delivered(success=answer is SUCCESS, last=not self._keep_alive)
