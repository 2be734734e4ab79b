"""File descriptors: each connection needs one, and many machines give a process no more than 1,024 until it asks."""

import resource
from typing import Final

import structlog

from ingest.runtime.errors import UsageError

log = structlog.get_logger(__name__)

OWN: Final = 256
"""Descriptors for everything but the senders' connections: spool files, brokers, connections that are just ending."""


def within_limit(connections_max: int) -> int:
    """Raise the limit of this process as far as it may be, and say how many connections fit below it.

    Args:
        connections_max: how many are wanted.

    Returns:
        That many, or fewer where the machine does not allow for them; then the log says so.

    Raises:
        UsageError: there is room for none.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard == resource.RLIM_INFINITY or connections_max + OWN <= hard:
        return connections_max
    if hard <= OWN:
        raise UsageError(f"{hard} file descriptors are too few: raise the limit (ulimit -n) to {connections_max + OWN}")
    log.warning(
        "fewer connections than DLR_CONNECTIONS_MAX: the limit of file descriptors is too low",
        connections_max=connections_max,
        descriptors=hard,
        taken=hard - OWN,
        needed=connections_max + OWN,
    )
    return hard - OWN
