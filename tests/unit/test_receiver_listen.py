"""The listening socket of the callback port."""

import os
import socket
from collections.abc import Callable

import pytest

from ingest.receiver.listen import BIND_PATIENCE_S, await_listener, open_listener
from ingest.runtime.errors import UsageError


def test_port_0_is_a_free_one() -> None:
    """The port that was found is the socket's."""
    with open_listener("127.0.0.1", 0, {}) as listener, socket.create_connection(listener.getsockname()):
        assert listener.getsockname()[1] > 0


def test_a_taken_port_names_itself() -> None:
    """One clear sentence."""
    with open_listener("127.0.0.1", 0, {}) as first:
        port = first.getsockname()[1]
        with pytest.raises(UsageError, match=rf"^callback port 127\.0\.0\.1:{port} is taken \(DLR_HTTP_PORT\)$"):
            open_listener("127.0.0.1", port, {})


class Watch:
    """A clock whose sleeps pass at once, after something has happened."""

    def __init__(self, happens: Callable[[], None]) -> None:
        self.now_s = 0.0
        self._happens = happens

    def wall_ms(self) -> int:
        """Not asked for."""
        return 0

    def monotonic(self) -> float:
        """Seconds slept."""
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        """Let something happen."""
        self.now_s += seconds
        self._happens()


async def test_a_port_that_is_let_go_soon_is_waited_for() -> None:
    """The worker of a receiver that was killed needs a moment to let go of it."""
    first = open_listener("127.0.0.1", 0, {})
    port = first.getsockname()[1]

    with await await_listener("127.0.0.1", port, {}, Watch(first.close)) as second:
        assert second.getsockname()[1] == port


async def test_a_port_that_stays_taken_is_not_waited_for_long() -> None:
    """Then it is somebody else's."""
    watch = Watch(lambda: None)
    with open_listener("127.0.0.1", 0, {}) as first, pytest.raises(UsageError, match=r"is taken \(DLR_HTTP_PORT\)$"):
        await await_listener("127.0.0.1", first.getsockname()[1], {}, watch)

    assert BIND_PATIENCE_S <= watch.now_s < 2 * BIND_PATIENCE_S


def test_an_unknown_host_names_itself() -> None:
    """One clear sentence."""
    with pytest.raises(UsageError, match=r"^the callback address no\.such\.host\.invalid \(DLR_HTTP_HOST\) is unknown"):
        open_listener("no.such.host.invalid", 0, {})


def test_an_address_of_another_machine_is_refused() -> None:
    """TEST-NET-1 is nobody's."""
    with pytest.raises(UsageError, match="cannot be listened on"):
        open_listener("192.0.2.1", 0, {})


def test_a_socket_passed_to_another_process_is_left_alone() -> None:
    """LISTEN_PID says whose it is."""
    with open_listener("127.0.0.1", 0, {"LISTEN_PID": str(os.getpid() + 1), "LISTEN_FDS": "1"}) as listener:
        assert listener.getsockname()[1] > 0


@pytest.mark.parametrize("count", ["", "0", "2", "x"])
def test_any_but_one_passed_socket_is_refused(count: str) -> None:
    """The callback port is one socket."""
    with pytest.raises(UsageError, match="one listening socket is needed"):
        open_listener("127.0.0.1", 0, {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count})
