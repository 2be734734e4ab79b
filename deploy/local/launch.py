"""Start one service as it shall live and die; run as `python -I -S launch.py JSON`, never imported.

Bound to a parent, the service does not outlive it: a small watcher waits for either of the two to end and kills the
service with SIGKILL when the parent went first, even when that was `kill -9`. (PR_SET_PDEATHSIG would do almost the
same, but it follows the *thread* that started the service and is dropped on a change of user.) Without a parent the
service is detached: in a session of its own, adopted by init, its process id printed.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import sys


def watch(parent: int, service: int, remove: str | None) -> None:
    """Wait until `parent` or `service` (pidfds) ends; in the first case kill the service and remove its folder."""
    poll = select.poll()
    poll.register(parent, select.POLLIN)
    poll.register(service, select.POLLIN)
    ended = {fd for fd, _ in poll.poll()}
    if service in ended:
        return
    signal.pidfd_send_signal(service, signal.SIGKILL)
    poll.unregister(parent)
    poll.poll()
    if remove is not None:
        shutil.rmtree(remove, ignore_errors=True)


def bind_to(parent_pid: int, remove: str | None) -> None:
    """Fork the watcher; the calling process goes on to become the service."""
    service = os.pidfd_open(os.getpid())
    parent = os.pidfd_open(parent_pid)
    if os.getppid() != parent_pid:
        sys.exit("the process that asked for this service is gone")
    if os.fork() != 0:
        os.close(service)
        os.close(parent)
        return
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(nothing, fd)
    watch(parent, service, remove)
    os._exit(0)


def detach() -> None:
    """Leave the caller for good and print the process id of the service to be."""
    child = os.fork()
    if child != 0:
        print(child)
        sys.stdout.flush()
        os._exit(0)
    os.setsid()


def main() -> None:
    """Become the service that the one argument describes."""
    order = json.loads(sys.argv[1])
    if order["parent"] is None:
        detach()
    else:
        bind_to(order["parent"], order["remove"])
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(order["folder"])
    if order["user"] is not None:
        uid, gid = order["user"]
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    os.execv(order["command"][0], order["command"])  # noqa: S606 - a shell is not wanted


if __name__ == "__main__":
    main()
