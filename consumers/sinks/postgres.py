"""The postgres sink."""
