"""The rights of every process (`ingest.contract.acls`), tried out on a Kafka that allows nothing else."""
