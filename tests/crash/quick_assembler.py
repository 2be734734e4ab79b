"""`python -m tests.crash.quick_assembler assemble`: `python -m consumers assemble` with a shorter session; sinks, too.

With the session that the product has, a group stands still for ten seconds after each SIGKILL. Faults that come faster
than that would hit members that wait, and hardly ever a transaction.
"""

from __future__ import annotations

import runpy
from typing import Final

from consumers.engine import kafka

SESSION_S: Final = 2.5
"""Five heartbeats."""

if __name__ == "__main__":
    kafka.SESSION_TIMEOUT_MS = int(SESSION_S * 1000)
    runpy.run_module("consumers", run_name="__main__", alter_sys=True)
