"""What a worker says of Kafka while it serves: whether it confirms, in log and metrics."""

from collections.abc import Callable
from typing import Final

import structlog
from prometheus_client import CollectorRegistry, Gauge

from ingest.runtime.clock import Clock

log = structlog.get_logger(__name__)

AWAY_S: Final = 2.0
"""Kafka that is away for so long is worth a line. One that stalls counts as away after 5 s without a confirmation."""


class KafkaWatch:
    """Says once that reports wait because Kafka does not confirm, and once that it does again.

    Args:
        registry: of the gauge.
        clock: time.
        available: whether Kafka confirms now, as far as is known.
        pending: how many reports wait in the spool.
        keeps: whether pushes are answered 200 meanwhile; else they get 503.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        clock: Clock,
        *,
        available: Callable[[], bool],
        pending: Callable[[], int],
        keeps: Callable[[], bool],
    ) -> None:
        self._clock = clock
        self._available = available
        self._pending = pending
        self._keeps = keeps
        self._since: float | None = None
        self._is_told = False
        self._connected = Gauge(
            "dlrflow_kafka_connected",
            "1 while Kafka takes what each worker publishes, as far as is known; 0 while it does not for some.",
            multiprocess_mode="livemin",
            registry=registry,
        )

    def look(self) -> None:
        """Look at how it is now; to be called about once a second."""
        available = self._available()
        self._connected.set(available)
        if available:
            if self._is_told:
                log.info("Kafka confirms again", waiting_reports=self._pending())
            self._since, self._is_told = None, False
            return
        now = self._clock.monotonic()
        if self._since is None:
            self._since = now
        waiting = self._pending()
        if self._is_told or now - self._since < AWAY_S or not waiting:
            return
        self._is_told = True
        log.warning(
            "Kafka confirms nothing: reports wait in the spool and are published when it is back",
            waiting_reports=waiting,
            pushes="answered 200" if self._keeps() else "answered 503",
        )
