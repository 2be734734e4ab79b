"""The receiver's metrics (contract.md section 12)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from ingest.receiver.crowd import Limit

ACK_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class ReceiverMetrics:
    """Counts of one worker. Built once a process and registry; children are kept, a look-up costs more than a count."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "dlrflow_http_requests_total",
            "Requests on the callback port by path (other: none of the two) and status.",
            ("path", "status"),
            registry=registry,
        )
        self._children: dict[tuple[str, int], Counter] = {}
        self.ack_seconds = Histogram(
            "dlrflow_ack_seconds",
            "Time from the head of a push to its durable place.",
            buckets=ACK_BUCKETS_S,
            registry=registry,
        )
        self.reports = Counter(
            "dlrflow_reports_received_total",
            "Elements of answered pushes, unusable ones included; a body that cannot be split counts as one.",
            registry=registry,
        )
        self.large_pushes = Counter(
            "dlrflow_large_pushes_total",
            "Pushes with more reports than the platform documents (50).",
            registry=registry,
        )
        self.connections = Gauge(
            "dlrflow_connections",
            "Open connections on the callback port.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.connections_full = Counter(
            "dlrflow_connections_full_total",
            "How often DLR_CONNECTIONS_MAX was reached and further connections had to wait.",
            registry=registry,
        )
        self._limited = Counter(
            "dlrflow_limited_total",
            "How often a limit of the callback port was reached, by limit.",
            ("limit",),
            registry=registry,
        )
        for limit in Limit:
            self._limited.labels(limit)
        self.held_bytes = Gauge(
            "dlrflow_held_bytes",
            "Bytes of requests in memory on the callback port: bodies, incomplete heads, what was read ahead.",
            multiprocess_mode="livesum",
            registry=registry,
        )

    def count_limit(self, limit: Limit) -> None:
        """Count a limit that a sender reached."""
        self._limited.labels(limit).inc()

    def count_request(self, path: str, status: int) -> None:
        """Count one answered request; `path` is a route or `other`."""
        child = self._children.get((path, status))
        if child is None:
            child = self._children[path, status] = self._requests.labels(path, str(status))
        child.inc()


@dataclass(frozen=True, slots=True)
class SpoolFigures:
    """What a worker knows of its spool and its accounts at one moment."""

    bytes: int
    pending_reports: int
    oldest_seconds: float
    seconds_until_full: float
    unaccounted_reports: int


class SpoolGauges:
    """The gauges of one worker's spool: summed over workers, but the oldest and the next to be full."""

    def __init__(self, registry: CollectorRegistry, figures: Callable[[], SpoolFigures]) -> None:
        self._figures = figures
        self._bytes = Gauge(
            "dlrflow_spool_bytes", "Bytes of spool files on disk.", multiprocess_mode="livesum", registry=registry
        )
        self._pending = Gauge(
            "dlrflow_spool_pending_reports",
            "Reports in the spool that are not in Kafka yet.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self._oldest = Gauge(
            "dlrflow_spool_oldest_seconds",
            "Age of the oldest push in the spool that is not in Kafka yet; 0 if there is none.",
            multiprocess_mode="livemax",
            registry=registry,
        )
        self._until_full = Gauge(
            "dlrflow_spool_seconds_until_full",
            "When the spool would be full if it went on growing as in the last minute; +Inf while it does not grow.",
            multiprocess_mode="livemin",
            registry=registry,
        )
        self._unaccounted = Gauge(
            "dlrflow_unaccounted_reports",
            "Reports recovered or received that are neither published, dead-lettered, quarantined nor pending: 0.",
            multiprocess_mode="livesum",
            registry=registry,
        )

    def refresh(self) -> None:
        """Set every gauge to what holds now."""
        figures = self._figures()
        self._bytes.set(figures.bytes)
        self._pending.set(figures.pending_reports)
        self._oldest.set(figures.oldest_seconds)
        self._until_full.set(figures.seconds_until_full)
        self._unaccounted.set(figures.unaccounted_reports)
