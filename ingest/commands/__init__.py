"""What the commands of `python -m ingest` put together: settings in, parts joined, exit status out."""
