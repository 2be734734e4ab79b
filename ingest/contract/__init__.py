"""What crosses a process border: reports, records, dead letters, results, topics, setting names.

Pure functions and frozen values. Nothing here does I/O, reads a clock or knows asyncio, HTTP or Kafka clients,
so both sides of a topic, and every test, can use the same definition.
"""
