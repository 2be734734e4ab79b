"""What the assembler counts (contract.md section 12). Counted is what was committed, never what was tried."""

from ingest.runtime.metrics import counter, gauge, histogram

_COMMIT_BUCKETS_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 20.0)

RECORDS = counter("dlrflow_records", "Records of the reports topic by what they did", ("result",))
RESULTS = counter("dlrflow_results", "Results written", ("outcome", "reason"))
DEAD_LETTERS = counter("dlrflow_dead_letters", "Dead letters written", ("stage", "reason"))
PENDING = gauge("dlrflow_pending_messages", "Messages that wait for their first result")
LAG = gauge("dlrflow_lag_seconds", "Age of the oldest record not yet processed", ("partition",))
COMMIT = histogram("dlrflow_commit_seconds", "From the begin of a transaction to its commit", buckets=_COMMIT_BUCKETS_S)
RESTORED = counter("dlrflow_restore_entries", "Ledger entries read back from the changelog")
DOUBTS = counter("dlrflow_doubts", "Times a partition was read back from its changelog after a failure", ("cause",))
PAUSED = gauge("dlrflow_paused_partitions", "Partitions that wait for an operator")
