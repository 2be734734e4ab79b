"""What slow and greedy senders do to honest ones: a real receiver over a spool on disk, Kafka away.

    python -m tests.bench.slow_senders [--connections 2000] [--rounds 3] [--round-s 10] [--rate 100] [--keep]

Honest senders push at a fixed rate, half of them over a connection each, as the platform does, half over kept ones, and
the time of a push counts from the moment at which it was due. Each round measures them alone and then beside each kind
of `tests.bench.slow_kinds`, whose connections come from many addresses, so that the bound for one address does not
help; and once from a single one. What counts is the median over the rounds of the ratio to the same round's baseline.

The slow senders stand on other machines in truth. Here they share ours, so they are niced, and what each side took of
the cores is told beside the times: where the receiver took a fraction of one core and others the rest, the times are
those of a machine that is too small, not of the receiver.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import shutil
import statistics
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
import psutil
import uvloop

from deploy.local.product import COMMANDS, RECEIVER, REPOSITORY, Product
from tests import measurement
from tests.bench.slow_kinds import KINDS

FOLDER: Final = REPOSITORY / "var" / "bench-slow"
NOBODY: Final = "127.0.0.1:1"
RATIO_MAX: Final = 2.0
"""What issue and promise allow."""

REPORTS_PER_PUSH: Final = 20
NICE: Final = 10
KEPT_CONNECTIONS: Final = 10
PUSH_TIMEOUT_S: Final = 30.0
SETTLE_S: Final = 3.0
"""After a kind has begun, before anything is measured: its connections come in bursts."""

ADDRESSES: Final = 2000
CORES: Final = ("cores_receiver", "cores_slow", "cores_elsewhere")
_SAMPLE = re.compile(r'^dlrflow_limited_total\{limit="([a-z-]+)"\} ([0-9.e+]+)$', re.MULTILINE)


@dataclass
class Honest:
    """Honest senders at a fixed rate.

    Attributes:
        times_s: of the pushes that were answered 200, by whether their connection was new.
        failures: pushes that were not.
    """

    port: int
    rate: float
    times_s: dict[bool, list[float]] = field(default_factory=lambda: {True: [], False: []})
    failures: list[str] = field(default_factory=list)
    _kept: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter] | None] = field(
        default_factory=asyncio.Queue
    )

    async def push_for(self, duration_s: float) -> None:
        """Push for so long and wait for the answers."""
        for _ in range(KEPT_CONNECTIONS):
            self._kept.put_nowait(None)
        # The loop's own clock is one of milliseconds.
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for number in range(int(duration_s * self.rate)):
                due = began + number / self.rate
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                group.create_task(self._push(number, due))
        while not self._kept.empty():
            if (kept := self._kept.get_nowait()) is not None:
                kept[1].close()

    async def _push(self, number: int, due: float) -> None:
        is_new = bool(number % 2)
        try:
            async with asyncio.timeout(PUSH_TIMEOUT_S):
                status = await (self._over_new(number) if is_new else self._over_kept(number))
        except (OSError, EOFError, TimeoutError) as error:
            self.failures.append(f"{'new' if is_new else 'kept'}: {type(error).__name__}")
            return
        if status == b"200":
            self.times_s[is_new].append(time.perf_counter() - due)
        else:
            self.failures.append(f"{'new' if is_new else 'kept'}: {status.decode()}")

    async def _over_new(self, number: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            return await _ask(reader, writer, _request(number, "close"))
        finally:
            writer.close()

    async def _over_kept(self, number: int) -> bytes:
        kept = await self._kept.get()
        ok = False
        try:
            if kept is None:
                kept = await asyncio.open_connection("127.0.0.1", self.port)
            status = await _ask(*kept, _request(number, "keep-alive"))
            ok = True
            return status
        finally:
            if kept is not None and not ok:
                kept[1].close()
            self._kept.put_nowait(kept if ok else None)


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> bytes:
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"Content-Length: ([0-9]+)", head)
    await reader.readexactly(int(length[1]) if length else 0)
    return head.split(b" ", 2)[1]


def _request(number: int, connection: str) -> bytes:
    reports = [
        {"smsMsgId": f"honest-{number}-{each}", "status": "DELIVRD", "updateTime": "2026-11-23T10:00:00Z"}
        for each in range(REPORTS_PER_PUSH)
    ]
    body = orjson.dumps({"statusReportList": reports})
    return (
        b"POST /batchReport HTTP/1.1\r\nHost: dlr.example.com\r\nContent-Type: application/json\r\n"
        b"Connection: %s\r\nContent-Length: %d\r\n\r\n%s" % (connection.encode(), len(body), body)
    )


@contextlib.asynccontextmanager
async def besieged(kind: str, connections: int, port: int, addresses: int) -> AsyncIterator[int]:
    """Slow senders of a kind, in a process of their own whose id this gives, for as long as the block lasts."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.bench.slow_kinds",
        kind,
        *map(str, (connections, port, addresses)),
        preexec_fn=lambda: os.setpriority(os.PRIO_PROCESS, 0, NICE),  # in truth they are on other machines
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=REPOSITORY,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        await process.stdout.readline()
        yield process.pid
        if process.returncode is not None:
            raise RuntimeError(f"the slow senders ended by themselves, with status {process.returncode}")
    finally:
        process.stdin.close()
        await process.wait()


def percentile_ms(times_s: list[float], share: float) -> float:
    """Nearest rank, in milliseconds."""
    ordered = sorted(times_s) or [PUSH_TIMEOUT_S]
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000, 2)


def limited(product: Product) -> dict[str, float]:
    """How often each limit was reached so far."""
    said = product.asked(RECEIVER, "/metrics") or ""
    return {name: float(value) for name, value in _SAMPLE.findall(said)}


def connections_open(product: Product) -> int:
    """Connections that the receiver holds."""
    said = re.search(r"^dlrflow_connections (\S+)$", product.asked(RECEIVER, "/metrics") or "", re.MULTILINE)
    return int(float(said[1])) if said else 0


def worked_s(pids: list[int]) -> list[float]:
    """CPU seconds: of the whole machine, of this process, and of each other one with its children."""
    machine = psutil.cpu_times()
    found = [machine.user + machine.nice + machine.system + machine.irq + machine.softirq, time.process_time()]
    for pid in pids:
        root = psutil.Process(pid)
        times = [process.cpu_times() for process in (root, *root.children(recursive=True))]
        found.append(sum(each.user + each.system for each in times))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured."""

    connections: int
    rounds: int
    round_s: float
    rate: float
    kinds: tuple[str, ...]
    settle_s: float = SETTLE_S


async def one(product: Product, port: int, kind: str, plan: Plan) -> dict[str, Any]:
    """Honest senders beside a kind of others, or alone (`none`)."""
    before = limited(product)
    name, _, single = kind.partition(" ")
    pids = [product.pid(RECEIVER)]
    async with contextlib.AsyncExitStack() as stack:
        if kind != "none":
            addresses = 1 if single else ADDRESSES
            pids.append(await stack.enter_async_context(besieged(name, plan.connections, port, addresses)))
            await asyncio.sleep(plan.settle_s)
        before_s, began = worked_s(pids), time.perf_counter()
        honest = Honest(port, plan.rate)
        await honest.push_for(plan.round_s)
        lasted_s, after_s = time.perf_counter() - began, worked_s(pids)
        held = await asyncio.to_thread(connections_open, product)
    after = limited(product)
    both = honest.times_s[True] + honest.times_s[False]
    cores = [(now - then) / lasted_s for now, then in zip(after_s, before_s, strict=True)]
    return {
        "kind": kind,
        "pushes": len(both),
        "failures": honest.failures,
        "p50_ms": percentile_ms(both, 0.5),
        "p99_ms": percentile_ms(both, 0.99),
        "p99_new_ms": percentile_ms(honest.times_s[True], 0.99),
        "p99_kept_ms": percentile_ms(honest.times_s[False], 0.99),
        "connections": held,
        "cores_receiver": round(cores[2], 2),
        "cores_slow": round(sum(cores[3:]), 2),
        "cores_elsewhere": round(max(0.0, cores[0] - sum(cores[1:])), 2),
        "limited": {
            limit: count - before.get(limit, 0) for limit, count in after.items() if count != before.get(limit)
        },
    }


async def measure(product: Product, port: int, plan: Plan, say: Any = print) -> list[dict[str, Any]]:
    """All rounds, each with its own baseline; one entry for each kind and round."""
    figures = []
    for number in range(1, plan.rounds + 1):
        baseline: dict[str, Any] = {}
        for kind in ("none", *plan.kinds):
            found = {"round": number, **await one(product, port, kind, plan)}
            baseline = baseline or found
            found["ratio"] = round(found["p99_ms"] / baseline["p99_ms"], 2)
            figures.append(found)
            failed = len(found["failures"])
            say(f"round {number}: {kind}: p99 {found['p99_ms']} ms, ratio {found['ratio']}, {failed} failed")
            # What is left of the others' connections ends before the next kind begins.
            while await asyncio.to_thread(connections_open, product) > 0:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.2)
    return figures


def summary(figures: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Medians over the rounds, by kind."""
    kinds = list(dict.fromkeys(found["kind"] for found in figures))
    lines = []
    for kind in kinds:
        of_kind = [found for found in figures if found["kind"] == kind]
        names = ("p50_ms", "p99_ms", "p99_new_ms", "p99_kept_ms", "ratio", "connections", *CORES)
        line: dict[str, Any] = {name: statistics.median(found[name] for found in of_kind) for name in names}
        line |= {
            "kind": kind,
            "pushes": sum(found["pushes"] for found in of_kind),
            "failures": sum(len(found["failures"]) for found in of_kind),
            "limited": ", ".join(sorted({limit for found in of_kind for limit in found["limited"]})),
        }
        lines.append(line)
    return lines


def told(where: dict[str, Any], plan: Plan, lines: list[dict[str, Any]]) -> str:
    """The measurement as Markdown."""
    rows = [
        (
            line["kind"],
            f"{line['p50_ms']:.1f}",
            f"{line['p99_ms']:.1f}",
            f"{line['ratio']:.2f}",
            f"{line['p99_new_ms']:.1f}",
            f"{line['p99_kept_ms']:.1f}",
            f"{line['pushes']} / {line['failures']}",
            int(line["connections"]),
            " / ".join(f"{line[name]:.2f}" for name in CORES),
            line["limited"],
        )
        for line in lines
    ]
    head = (
        "beside",
        "p50 ms",
        "p99 ms",
        "ratio",
        "p99 new",
        "p99 kept",
        "200 / other",
        "open at the end",
        "cores: receiver / slow / elsewhere",
        "limits reached",
    )
    return (
        f"# Slow senders\n\n{measurement.told(where)}\n\n"
        f"One worker, spool on disk, Kafka away. Honest senders: {plan.rate:g} pushes/s of {REPORTS_PER_PUSH} reports, "
        f"half over a new connection each. Beside them {plan.connections} connections of one kind, from as many "
        f"addresses (or one, where it says so). {plan.rounds} interleaved rounds of {plan.round_s:g} s; medians; ratio "
        f"of the p99 to that of the same round without them, allowed {RATIO_MAX:g}.\n\n"
        f"{measurement.table(head, rows)}\n"
    )


def main() -> int:
    """Run it, write the figures down, and return the exit status: 1 if a ratio is too high or a push failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.slow_senders", description=__doc__)
    parser.add_argument("--connections", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--round-s", type=float, default=10)
    parser.add_argument("--rate", type=float, default=100)
    parser.add_argument("--kinds", default=",".join((*KINDS, "mixed", "mixed single")))
    parser.add_argument("--keep", action="store_true", help="write the figures to docs/measurements")
    options = parser.parse_args()
    plan = Plan(
        connections=options.connections,
        rounds=options.rounds,
        round_s=options.round_s,
        rate=options.rate,
        kinds=tuple(options.kinds.split(",")),
    )
    where = measurement.circumstances()
    shutil.rmtree(FOLDER, ignore_errors=True)
    product = Product(FOLDER, NOBODY, commands={RECEIVER: COMMANDS[RECEIVER]})
    try:
        product.launch(RECEIVER)
        product.await_ready(RECEIVER)
        figures = uvloop.run(measure(product, int(product.url.rpartition(":")[2]), plan))
    finally:
        product.stop()
        shutil.rmtree(FOLDER, ignore_errors=True)
    lines = summary(figures)
    markdown = told(where, plan, lines)
    path = measurement.write(
        "slow-senders", markdown, {"circumstances": where, "kinds": lines, "rounds": figures}, keep=options.keep
    )
    print(f"\n{markdown}\nwritten to {path}")  # noqa: T201
    return 1 if any(line["ratio"] > RATIO_MAX or line["failures"] for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
