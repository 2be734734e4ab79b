"""State to result."""
