"""The forwarder's metrics (contract.md section 12)."""

from collections import Counter as Tally
from collections.abc import Iterable

from ingest.contract.dead_letter import Stage
from ingest.forward.parcel import Parcel
from ingest.runtime.metrics import counter


class ForwardMetrics:
    """Counts of one process, in the default registry."""

    def __init__(self) -> None:
        self._published = counter(
            "dlrflow_reports_published", "Records that all in-sync replicas of the reports topic have."
        )
        self._dead_letters = counter(
            "dlrflow_dead_letters", "Dead letters that all in-sync replicas have.", ("stage", "reason")
        )
        self._quarantined = counter(
            "dlrflow_dead_letters_quarantined", "Dead letters that Kafka refused and that are kept in files."
        )
        self._window_full = counter(
            "dlrflow_forward_window_full", "How often reading a spool folder waited for confirmations from Kafka."
        )

    def count(self, parcels: Iterable[Parcel]) -> None:
        """Count what was confirmed."""
        published = 0
        reasons: Tally[str] = Tally()
        for parcel in parcels:
            published += len(parcel.records) - parcel.refused
            if parcel.letters:
                reasons.update(letter.reason.value for letter in parcel.letters)
        self._published.inc(published)
        for reason, letters in reasons.items():
            self._dead_letters.labels(Stage.RECEIVE.value, reason).inc(letters)

    def count_quarantined(self) -> None:
        """Count one dead letter that went to a file."""
        self._quarantined.inc()

    def count_window_full(self) -> None:
        """Count one wait for confirmations."""
        self._window_full.inc()
