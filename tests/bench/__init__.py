"""Measuring programs, each `python -m tests.bench...`; those with `--keep` write to `docs/measurements`.

| program | what it measures |
|---|---|
| `tests.bench` | `make bench`: receiver, assembler, sinks apart, and the whole path |
| `tests.bench.assembler` | what one assembler carries, by partitions |
| `tests.bench.window` | millions of messages in the window: rate, memory, disk; restart and restore |
| `tests.bench.pauses` | how long results pause while members join, leave, die, freeze, and in a rolling restart |
| `tests.bench.hot_key` | what one message without end does to the others |
| `tests.bench.ledger`, `tests.bench.spool_append` | parts alone, without Kafka |
"""
