"""The spool, part by part."""
