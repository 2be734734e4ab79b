"""The stages of one round, each on topics of its own round, measured apart and then together."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import asyncpg

from deploy.local.kafka import LocalKafka
from deploy.local.processes import answer
from deploy.local.product import REPOSITORY, Product
from tests.bench.bodies import Traffic
from tests.bench.meter import Meter, Reading
from tests.traffic import audited, problems

POLL_S: Final = 0.2
STAGE_TIMEOUT_S: Final = 900.0
AUDIT_PATIENCE_S: Final = 60.0
MILLION: Final = 1_000_000

RECEIVER: Final = "receiver"
ASSEMBLER: Final = "assembler"
COMMANDS: Final[Mapping[str, tuple[str, ...]]] = {
    RECEIVER: ("ingest", "receive"),
    ASSEMBLER: ("consumers", "assemble"),
    "sqlite": ("consumers", "sink", "sqlite"),
    "postgres": ("consumers", "sink", "postgres"),
}


class StageError(Exception):
    """A stage did not come to its end, or its books do not balance; the message says which."""


@dataclass(frozen=True, slots=True)
class Site:
    """Where a round runs.

    Attributes:
        folder: of its data; one of its own.
        kafka: a running broker.
        dsn: of a running PostgreSQL.
        prefix: of its topics and groups.
        partitions: of reports and results.
        connections: of the loader.
    """

    folder: Path
    kafka: LocalKafka
    dsn: str
    prefix: str
    partitions: int
    connections: int

    def product(self, *names: str) -> Product:
        """These processes on the topics of this round."""
        settings = {
            "DLR_REPORTS_TOPIC": f"{self.prefix}reports",
            "DLR_RESULTS_TOPIC": f"{self.prefix}results",
            "DLR_DEAD_LETTERS_TOPIC": f"{self.prefix}dead",
            "DLR_GROUP_ID": f"{self.prefix}assembler",
            "DLR_SINK_GROUP_ID": f"{self.prefix}{names[0]}",
            "DLR_TOPIC_PARTITIONS": str(self.partitions),
            "DLR_POSTGRES_DSN": self.dsn,
        }
        commands = {name: COMMANDS[name] for name in names}
        return Product(self.folder, self.kafka.bootstrap, commands=commands, settings=settings)


def receive(site: Site, traffic: Traffic) -> dict[str, Any]:
    """HTTP to Kafka: every push answered, every report in the topic."""
    product = site.product(RECEIVER)
    try:
        product.start()
        with _meter(site, product) as meter:
            sent = _loaded(site, product, traffic)
            meter.reading.began = sent["began"]
            _until(lambda: _published(product, traffic), f"{RECEIVER}: not everything was published")
        unaccounted = product.metric(RECEIVER, "dlrflow_unaccounted_reports")
    finally:
        product.stop()
    if unaccounted:
        raise StageError(f"{unaccounted:.0f} reports are unaccounted for")
    return (
        _answers(sent, traffic)
        | _figures(meter.reading, RECEIVER, count=traffic.reports)
        | _topic_bytes(site, "reports")
    )


def assemble(site: Site, traffic: Traffic) -> dict[str, Any]:
    """From a topic that holds all reports to the last result, the start of the process left out."""
    records = traffic.reports - traffic.unusable
    metric = "dlrflow_records_total"
    figures = _drained(site, ASSEMBLER, metric, records, "reports")
    return figures | _topic_bytes(site, "results")


def sink(site: Site, traffic: Traffic, kind: str) -> dict[str, Any]:
    """From a topic that holds all results to the last row; then the audit of topics and rows."""
    product = site.product(kind)
    if kind == "postgres":
        answer(lambda: _forget_rows(site.dsn))
    try:
        figures = _drained(site, kind, "dlrflow_rows_total", _results(site, traffic), "results")
        _check(product, traffic, kind)
    finally:
        product.stop()
    return figures


def whole_path(site: Site, traffic: Traffic) -> dict[str, Any]:
    """Everything at once, HTTP to SQLite: from the first push to the last row; then the audit."""
    product = site.product(RECEIVER, ASSEMBLER, "sqlite")
    try:
        product.start()
        with _meter(site, product) as meter:
            sent = _loaded(site, product, traffic)
            meter.reading.began = sent["began"]
            _until(lambda: _published(product, traffic), "the whole path: not everything was published")
            records = traffic.reports - traffic.unusable
            _until(
                lambda: (product.metric(ASSEMBLER, "dlrflow_records_total") or 0) >= records,
                "the whole path: not everything was assembled",
            )
            results = product.metric(ASSEMBLER, "dlrflow_results_total") or 0
            _until(
                lambda: (product.metric("sqlite", "dlrflow_rows_total") or 0) >= results,
                "the whole path: not everything was stored",
            )
        _check(product, traffic, "sqlite")
    finally:
        product.stop()
    return _answers(sent, traffic) | _figures(meter.reading, *product.commands, count=traffic.reports)


def _loaded(site: Site, product: Product, traffic: Traffic) -> dict[str, Any]:
    """Send all requests and return what the loader says."""
    address = urlsplit(product.url)
    command = [sys.executable, "-m", "tests.bench.loader", str(address.hostname), str(address.port)]
    command += [str(traffic.requests), "--connections", str(site.connections)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=REPOSITORY)
    if done.returncode != 0:
        raise StageError(f"the loader failed: {done.stderr.strip()}")
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def _published(product: Product, traffic: Traffic) -> bool:
    received = product.metric(RECEIVER, "dlrflow_reports_received_total")
    return (received or 0) >= traffic.reports and product.metric(RECEIVER, "dlrflow_spool_pending_reports") == 0


def _drained(site: Site, name: str, metric: str, goal: int, what: str) -> dict[str, Any]:
    """Start a process on a full topic and measure from its first count to the goal."""
    product = site.product(name)
    try:
        product.run("ingest", "topics")
        product.launch(name)
        _until(lambda: bool(product.metric(name, metric)), f"{name}: it did not begin")
        with _meter(site, product) as meter:
            first = product.metric(name, metric) or 0
            _until(lambda: (product.metric(name, metric) or 0) >= goal, f"{name}: it did not come to its end")
    finally:
        product.stop()
    return _figures(meter.reading, name, count=goal - first) | {f"{what}_measured": round(goal - first)}


def _results(site: Site, traffic: Traffic) -> int:
    """Records of the results topic, from its log: one per message and revision."""
    product = site.product("sqlite")
    try:
        said = product.tried("consumers", "audit", "--json", "--truth", str(traffic.truth))
    finally:
        product.stop()
    return int(json.loads(said.stdout)["results"])


async def _forget_rows(dsn: str) -> None:
    """Every round stores the same messages: with the rows of the last one it would find nothing to do."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("DROP TABLE IF EXISTS message_results")
    finally:
        await connection.close()


def _check(product: Product, traffic: Traffic, kind: str) -> None:
    wrong = problems(audited(product, traffic.truth, patience_s=AUDIT_PATIENCE_S, sink=kind))
    if wrong:
        raise StageError(f"the audit with {kind} found {wrong}")


def _meter(site: Site, product: Product) -> Meter:
    pids = {name: product.pid(name) for name in product.commands}
    return Meter({**pids, "broker": site.kafka.pid()})


def _answers(sent: Mapping[str, Any], traffic: Traffic) -> dict[str, Any]:
    return {
        "answered_reports_per_s": round(traffic.reports / sent["seconds"]),
        **{name: sent[name] for name in ("p50_ms", "p99_ms", "p999_ms", "answers")},
        "loader_cpu_s": round(sent["cpu_s"], 2),
    }


def _figures(reading: Reading, *names: str, count: float) -> dict[str, Any]:
    return {
        "per_s": round(count / reading.seconds),
        "cpu_s_per_million": round(sum(reading.cpu_s[name] for name in names) / count * MILLION, 2),
        "rss_mib": round(sum(reading.rss_mib[name] for name in names)),
        "seconds": round(reading.seconds, 2),
        "broker_cpu_s": round(reading.cpu_s["broker"], 2),
        "others_cpu_s": round(reading.others_cpu_s, 2),
        "cpu_s": {name: round(value, 2) for name, value in reading.cpu_s.items()},
        "rss_mib_of": {name: round(value) for name, value in reading.rss_mib.items()},
    }


def _topic_bytes(site: Site, kind: str) -> dict[str, int]:
    """Bytes of a topic's log on the broker's disk, compressed as they were sent."""
    logs = (site.kafka.folder / "node-1" / "data").glob(f"{site.prefix}{kind}-*/*.log")
    return {f"{kind}_topic_bytes": sum(log.stat().st_size for log in logs)}


def _until(condition: Callable[[], bool], failure: str) -> None:
    until = time.monotonic() + STAGE_TIMEOUT_S
    while not condition():
        if time.monotonic() > until:
            raise StageError(failure)
        time.sleep(POLL_S)
