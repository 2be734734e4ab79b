"""The listening socket of the callback port."""

import os
import socket

import pytest

from ingest.receiver.listen import open_listener
from ingest.runtime.errors import UsageError


def test_port_0_is_a_free_one() -> None:
    """The port that was found is the socket's."""
    with open_listener("127.0.0.1", 0, {}) as listener, socket.create_connection(listener.getsockname()):
        assert listener.getsockname()[1] > 0


def test_a_taken_port_names_itself() -> None:
    """One clear sentence."""
    with open_listener("127.0.0.1", 0, {}) as first:
        port = first.getsockname()[1]
        with pytest.raises(UsageError, match=rf"^callback port 127\.0\.0\.1:{port} is taken$"):
            open_listener("127.0.0.1", port, {})


def test_an_unknown_host_names_itself() -> None:
    """One clear sentence."""
    with pytest.raises(UsageError, match=r"^the callback address no\.such\.host\.invalid is unknown"):
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
