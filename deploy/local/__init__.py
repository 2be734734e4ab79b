"""Real Kafka and real PostgreSQL on this machine, without a container engine and without installing anything.

`kafka.LocalKafka` and `postgres.LocalPostgres` are the two things to use; `cache` fetches what they run.
"""
