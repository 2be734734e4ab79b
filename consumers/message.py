"""State of one message."""
