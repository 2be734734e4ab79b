"""Sends requests made before over many connections, with as little work of its own as can be.

`python -m tests.bench.loader HOST PORT REQUESTS --connections N [--rate PUSHES_PER_S]`; prints one line of JSON. With a
rate the schedule does not wait for answers, and latency counts from the moment a request was due.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Final

import uvloop

from tests.bench.bodies import read_requests

PATIENCE_S: Final = 600.0
RETRY_S: Final = 0.05
_HEAD_END: Final = b"\r\n\r\n"
_LENGTH: Final = b"content-length:"
TAKEN: Final = {b"200", b"400"}


class Load:
    """What all connections share: the requests that are left, and the figures."""

    def __init__(self, requests: list[bytes], rate: float) -> None:
        self._requests = requests
        self._rate = rate
        self._next = 0
        self.began = time.perf_counter()
        self.answers: Counter[str] = Counter()
        self.latencies_s: list[float] = []

    def take(self) -> tuple[bytes, float] | None:
        """The next request, and when it is due."""
        if self._next == len(self._requests):
            return None
        self._next += 1
        due = self.began + (self._next - 1) / self._rate if self._rate else time.perf_counter()
        return self._requests[self._next - 1], due

    def seconds(self) -> float:
        """Since its beginning."""
        return time.perf_counter() - self.began


async def connection(host: str, port: int, load: Load) -> None:
    """Send requests, one after the other, until none is left; one that is not taken is sent again."""
    reader, writer = await asyncio.open_connection(host, port)
    while (taken := load.take()) is not None:
        request, due = taken
        if (early := due - time.perf_counter()) > 0:
            await asyncio.sleep(early)
        while True:
            writer.write(request)
            status = await _answer(reader)
            load.answers[status.decode()] += 1
            if status in TAKEN:
                break
            await asyncio.sleep(RETRY_S)
        load.latencies_s.append(time.perf_counter() - due)
    writer.close()
    await writer.wait_closed()


async def _answer(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(_HEAD_END)
    lower = head.lower()
    at = lower.index(_LENGTH) + len(_LENGTH)
    await reader.readexactly(int(lower[at : lower.index(b"\r\n", at)]))
    return head[9:12]


async def send(host: str, port: int, requests: list[bytes], connections: int, rate: float) -> dict[str, object]:
    """Send everything and say how it went: latencies in milliseconds, `began` on the machine's monotonic clock."""
    load = Load(requests, rate)
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as tasks:
        for _ in range(connections):
            tasks.create_task(connection(host, port, load))
    seconds = load.seconds()
    ordered = sorted(load.latencies_s)
    quantiles = {
        f"{name}_ms": round(ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000, 2)
        for name, share in (("p50", 0.5), ("p99", 0.99), ("p999", 0.999))
    }
    return {
        "began": load.began,
        "seconds": seconds,
        "answers": dict(load.answers),
        "cpu_s": time.process_time(),
        **quantiles,
    }


def main() -> int:
    """Read the arguments, send, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.loader", description=__doc__)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("requests", type=Path)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--rate", type=float, default=0.0, help="pushes per second; 0: as fast as possible")
    options = parser.parse_args()
    requests = list(read_requests(options.requests))
    print(  # noqa: T201 - the output of the command
        json.dumps(uvloop.run(send(options.host, options.port, requests, options.connections, options.rate)))
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
