"""The one listening socket of the callback port, which all workers share."""

import errno
import os
import socket
from collections.abc import Mapping
from typing import Final

from ingest.runtime.clock import Clock
from ingest.runtime.errors import UsageError

BACKLOG: Final = 4096
"""Connections that wait to be accepted; the kernel takes less if `net.core.somaxconn` says so."""

BIND_PATIENCE_S: Final = 3.0
"""How long a taken port is tried again: a worker that has lost its parent needs a moment to notice and let go of it."""
BIND_RETRY_S: Final = 0.1

_FIRST_PASSED = 3


class PortTakenError(UsageError):
    """Somebody listens there already."""


async def await_listener(host: str, port: int, environ: Mapping[str, str], clock: Clock) -> socket.socket:
    """`open_listener`, trying again for `BIND_PATIENCE_S` while the port is taken.

    Raises:
        UsageError: as `open_listener`.
    """
    until = clock.monotonic() + BIND_PATIENCE_S
    while True:
        try:
            return open_listener(host, port, environ)
        except PortTakenError:
            if clock.monotonic() >= until:
                raise
        await clock.sleep(BIND_RETRY_S)


def open_listener(host: str, port: int, environ: Mapping[str, str]) -> socket.socket:
    """The socket that a service manager passed (`LISTEN_FDS` for this process, sd_listen_fds(3)), else a bound one.

    Args:
        host: address or name to listen on, unless a socket was passed.
        port: port; 0 means a free one.
        environ: the environment.

    Raises:
        PortTakenError: somebody listens there.
        UsageError: the address cannot be listened on, or what was passed is not one listening TCP socket.
    """
    if environ.get("LISTEN_PID") == str(os.getpid()):
        return _passed(environ.get("LISTEN_FDS", ""))
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise UsageError(f"the callback address {host} (DLR_HTTP_HOST) is unknown: {error.strerror}") from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise PortTakenError(f"callback port {host}:{port} is taken (DLR_HTTP_PORT)") from None
        raise UsageError(
            f"callback port {host}:{port} cannot be listened on (DLR_HTTP_HOST, DLR_HTTP_PORT): {error.strerror}"
        ) from None
    return listener


def _passed(count: str) -> socket.socket:
    if count != "1":
        raise UsageError(f"one listening socket is needed, LISTEN_FDS says {count or 'nothing'}")
    try:
        listener = socket.socket(fileno=_FIRST_PASSED)
        listening = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise UsageError(f"the socket that LISTEN_FDS announces cannot be used: {error.strerror}") from None
    if listener.type is not socket.SOCK_STREAM or not listening:
        raise UsageError("the socket that LISTEN_FDS announces is no listening TCP socket")
    return listener
