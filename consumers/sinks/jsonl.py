"""The jsonl sink."""
