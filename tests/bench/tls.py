"""What TLS costs the receiver: CPU of its worker for a push over a connection of its own, as the platform sends it.

    python -m tests.bench.tls [--pushes 500] [--rounds 3] [--keep]

One sender, one push after the other, a real receiver over a spool on disk, Kafka away. The kinds take turns in each
round; the figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import socket
import ssl
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import psutil

from deploy.local.product import COMMANDS, RECEIVER, REPOSITORY, Product
from ingest.simulator.traffic import quantile_ms
from tests import measurement
from tests.certificates import HOST, Authority

FOLDER: Final = REPOSITORY / "var" / "bench-tls"
WORKER: Final = "ingest.commands.receive_worker"

NOBODY: Final = "127.0.0.1:1"
"""No Kafka: what is measured ends at the spool."""

BODY: Final = (REPOSITORY / "tests" / "data" / "batch_example.json").read_bytes()


@dataclass(frozen=True, slots=True)
class Kind:
    """A way to push.

    Attributes:
        client: None for plain HTTP.
        kept: all pushes over one connection.
    """

    name: str
    client: ssl.SSLContext | None
    kept: bool = False

    def request(self) -> bytes:
        """The push on the wire."""
        close = "" if self.kept else "Connection: close\r\n"
        head = f"POST /batchReport HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n{close}"
        return f"{head}Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY

    def connect(self, port: int) -> socket.socket:
        """A new connection; over TLS its handshake is done."""
        connection = socket.create_connection((HOST, port))
        return self.client.wrap_socket(connection, server_hostname=HOST) if self.client else connection


def kinds(authority: Authority) -> list[Kind]:
    """Those that are compared."""
    rsa = authority.client(version="1.2", suites="ECDHE-RSA-AES128-GCM-SHA256")
    ecdsa = authority.client(version="1.2", suites="ECDHE-ECDSA-AES128-GCM-SHA256")
    return [
        Kind("plain HTTP", None),
        Kind("TLS 1.2, RSA 2048", rsa),
        Kind("TLS 1.2, ECDSA P-256", ecdsa),
        Kind("TLS 1.3, ECDSA P-256", authority.client()),
        Kind("plain HTTP, kept open", None, kept=True),
        Kind("TLS 1.2, ECDSA P-256, kept open", ecdsa, kept=True),
    ]


def measure(kind: Kind, port: int, worker: psutil.Process, pushes: int) -> dict[str, float]:
    """CPU of the worker per push, and how long a push took from the connection to its answer."""
    took: list[float] = []
    before = worker.cpu_times()
    with contextlib.ExitStack() as stack:
        kept = stack.enter_context(kind.connect(port)) if kind.kept else None
        for _ in range(pushes):
            began = time.perf_counter()
            with contextlib.nullcontext(kept) if kept else kind.connect(port) as connection:
                connection.sendall(kind.request())
                answer = connection.recv(4096)
            took.append(time.perf_counter() - began)
            if not answer.startswith(b"HTTP/1.1 200 "):
                raise SystemExit(f"error: {kind.name} was answered {answer[:40]!r}")
    after = worker.cpu_times()
    cpu_s = after.user + after.system - before.user - before.system
    return {
        "cpu_ms_per_push": round(cpu_s / pushes * 1000, 3),
        "p50_ms": round(quantile_ms(took, 0.5), 2),
        "p99_ms": round(quantile_ms(took, 0.99), 2),
    }


@contextlib.contextmanager
def receivers(authority: Authority) -> Iterator[dict[bool, tuple[int, psutil.Process]]]:
    """Port and worker of a receiver without and of one with TLS."""
    with contextlib.ExitStack() as stack:
        FOLDER.mkdir(parents=True)
        pairs = [authority.pair(FOLDER, "RSA"), authority.pair(FOLDER, "ECDSA")]
        secure = {
            "DLR_TLS_CERT_FILES": ",".join(str(pair.cert) for pair in pairs),
            "DLR_TLS_KEY_FILES": ",".join(str(pair.key) for pair in pairs),
        }
        running: dict[bool, tuple[int, psutil.Process]] = {}
        for is_secure, settings in ((False, {}), (True, secure)):
            folder = FOLDER / ("tls" if is_secure else "plain")
            product = Product(folder, NOBODY, commands={RECEIVER: COMMANDS[RECEIVER]}, settings=settings)
            stack.callback(product.stop)
            product.launch(RECEIVER)
            product.await_ready(RECEIVER)
            processes = psutil.Process(product.pid(RECEIVER)).children(recursive=True)
            [worker] = [each for each in processes if WORKER in each.cmdline()]
            running[is_secure] = (int(product.url.rpartition(":")[2]), worker)
        yield running


def main() -> int:
    """Run it, write the figures down, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.tls", description=__doc__)
    parser.add_argument("--pushes", type=int, default=500, help="of each kind in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", action="store_true", help="write the figures to docs/measurements")
    options = parser.parse_args()
    where = measurement.circumstances()
    authority = Authority()
    shutil.rmtree(FOLDER, ignore_errors=True)
    try:
        with receivers(authority) as running:
            rounds = [
                {
                    kind.name: measure(kind, *running[kind.client is not None], options.pushes)
                    for kind in kinds(authority)
                }
                for _ in range(options.rounds)
            ]
    finally:
        shutil.rmtree(FOLDER, ignore_errors=True)
    where["load_after"] = [round(load, 2) for load in os.getloadavg()]
    markdown = told(where, options.pushes, rounds)
    path = measurement.write("tls", markdown, {"circumstances": where, "rounds": rounds}, keep=options.keep)
    print(f"\n{markdown}\nwritten to {path}")  # noqa: T201
    return 0


def told(where: dict[str, Any], pushes: int, rounds: list[dict[str, dict[str, float]]]) -> str:
    """The figures as Markdown."""
    rows = [
        [name, *(f"{statistics.median(each[name][figure] for each in rounds):g}" for figure in figures)]
        for name, figures in rounds[0].items()
    ]
    head = ["a push over", "worker CPU, ms", "p50, ms", "p99, ms"]
    return (
        f"# What TLS costs the receiver\n\n{measurement.told(where)} After: {where['load_after'][0]}.\n\n"
        f"One sender, one push of {len(BODY)} bytes after the other, over a connection each unless it says that it is "
        f"kept open; {len(rounds)} rounds of {pushes} pushes, medians. Time counts from connecting to the answer.\n\n"
        f"{measurement.table(head, rows)}\n"
    )


if __name__ == "__main__":
    sys.exit(main())
