"""Simulated traffic against the processes of the product, and what the audit says of it afterwards."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import orjson

from deploy.local.product import REPOSITORY, Product

SHARES: Final = (
    *("--long-share", "0.3"),
    *("--duplicate-share", "0.05"),
    *("--invalid-share", "0.002"),
    *("--incomplete-share", "0.005"),
    "--shuffle",
)
"""Repeats, disorder, unusable elements and messages that never become complete."""

REPORTS_PER_MESSAGE: Final = 2.75
"""About so many, with these shares."""

END_TIMEOUT_S: Final = 30.0


class Wave:
    """One run of the simulator, in a process of its own."""

    def __init__(self, product: Product, *, messages: int, rate: float, seed: int, connections: int = 8) -> None:
        """Start it.

        Args:
            product: whose receiver is pushed to.
            messages: how many different ones.
            rate: reports per second, 0 for as fast as possible.
            seed: two waves with different ones have no message in common.
            connections: pushes at once.
        """
        self.truth = product.folder / f"truth-{seed}.jsonl"
        self._log = product.folder / f"simulator-{seed}.log"
        command = [sys.executable, "-m", "ingest", "simulate", "--url", product.url, "--truth", str(self.truth)]
        command += ["--messages", str(messages), "--rate", str(rate), "--seed", str(seed), *SHARES]
        command += ["--connections", str(connections)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, cwd=REPOSITORY, env=product.environment()
            )

    def running(self) -> bool:
        """Whether there is more to send."""
        return self._process.poll() is None

    def end(self, timeout_s: float = END_TIMEOUT_S) -> dict[str, Any]:
        """Wait for its end and return its summary.

        Raises:
            RuntimeError: it failed, or not everything was answered in that time.
        """
        try:
            output, _ = self._process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise RuntimeError(f"the simulator did not end within {timeout_s:.0f} s") from None
        if self._process.returncode != 0:
            raise RuntimeError(f"the simulator failed: {self._log.read_text().strip()}")
        summary: dict[str, Any] = json.loads(output)
        return summary

    def kill(self) -> None:
        """End it, whatever it is doing; twice is harmless."""
        self._process.kill()
        self._process.communicate()


def joined(truths: Iterable[Path], into: Path) -> Path:
    """Write one truth file (contract.md section 10) in place of several and return its path."""
    unusable = 0
    with into.open("wb") as file:
        for truth in truths:
            with truth.open("rb") as lines:
                for line in lines:
                    said = orjson.loads(line) if line.startswith(b'{"unusable"') else None
                    if said is None:
                        file.write(line)
                    else:
                        unusable += said["unusable"]
        file.write(orjson.dumps({"unusable": unusable}))
    return into


def audited(product: Product, truth: Path, *, patience_s: float, sink: str = "sqlite") -> dict[str, Any]:
    """What the audit finds once nothing is on its way any more, or after so much patience.

    Returns:
        The audit's figures; `lost`, `wrong`, `repeated` and `pending` are 0 if all is well.

    Raises:
        RuntimeError: it could not be done.
    """
    until = time.monotonic() + patience_s
    while True:
        done = product.tried("consumers", "audit", "--json", "--sink", sink, "--truth", str(truth))
        if done.returncode not in {0, 1}:
            raise RuntimeError(f"the audit failed: {done.stderr.strip()}")
        found: dict[str, Any] = json.loads(done.stdout)
        # A repeated revision is there for good; everything else may still be on its way.
        if (done.returncode == 0 and not found["pending"]) or found["repeated"] or time.monotonic() > until:
            return found
        time.sleep(1)


def problems(found: dict[str, Any]) -> dict[str, Any]:
    """What is wrong by an audit's figures; empty if nothing is."""
    wrong = {name: found[name] for name in ("lost", "wrong", "repeated", "pending") if found[name]}
    return wrong | ({"findings": found["findings"][:20]} if wrong else {})
