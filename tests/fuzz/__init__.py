"""Hostile input in bulk: bodies, HTTP framing and signatures, each judged by a reader of our own."""
