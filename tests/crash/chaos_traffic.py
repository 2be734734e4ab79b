"""What comes in during faults, and what must have come of it: pushes to the receiver, or records for the assemblers."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any, Final, Protocol

from deploy.local.processes import answer, tail
from deploy.local.product import RECEIVER, REPOSITORY, Product
from tests.assembling import Bench
from tests.crash.chaos_faults import MEMBERS
from tests.crash.chaos_judge import judged
from tests.traffic import Wave, audited, joined

RECEIVED: Final = "dlrflow_reports_received_total"
PENDING: Final = "dlrflow_pending_messages"
PUBLISHED_WITHIN_S: Final = 90.0
LOOK_AGAIN_S: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How much comes in.

    Attributes:
        messages: of one wave of pushes.
        rate: reports per second.
        seed: of the first wave.
    """

    messages: int
    rate: float
    seed: int


class Traffic(Protocol):
    """Comes in as long as faults go on."""

    def keep_up(self) -> None:
        """See to it that something comes in; called many times a second."""
        ...

    def begun(self) -> bool:
        """Whether the first of it has come in."""
        ...

    def ended(self) -> bool:
        """Whether what `keep_up` has begun is over, so that nothing comes in any more."""
        ...

    def close(self) -> list[dict[str, Any]]:
        """What was sent; raises RuntimeError if not all of it was."""
        ...

    def found(self, patience_s: float) -> dict[str, Any]:
        """What came of it, once nothing is on its way any more; `lost`, `wrong`, `repeated`, `pending` should be 0."""
        ...

    def kill(self) -> None:
        """End it, whatever it is doing; twice is harmless."""
        ...


class Pushes:
    """Waves of the simulator against the receiver; judged by the product's audit and by the oracle."""

    def __init__(self, product: Product, bench: Bench, load: Load) -> None:
        """Send nothing yet.

        Args:
            product: whose receiver is pushed to.
            bench: its topics.
            load: how much.
        """
        self._product = product
        self._bench = bench
        self._load = load
        self._waves: list[Wave] = []
        self._sent: list[dict[str, Any]] = []

    def keep_up(self) -> None:
        """Begin the next wave when the last one is over."""
        if self._waves and self._waves[-1].running():
            return
        if self._waves:
            self._sent.append(self._waves[-1].end())
        load, seed = self._load, self._load.seed + len(self._waves)
        self._waves.append(Wave(self._product, messages=load.messages, rate=load.rate, seed=seed))

    def begun(self) -> bool:
        """Whether the receiver has answered anything."""
        return bool(self._product.metric(RECEIVER, RECEIVED))

    def ended(self) -> bool:
        """Whether the last wave is over."""
        return not self._waves[-1].running()

    def close(self) -> list[dict[str, Any]]:
        """Summaries of the waves."""
        self._sent.append(self._waves[-1].end())
        if any(sent["pushed"] != sent["planned"] for sent in self._sent):
            raise RuntimeError("the simulator did not push all that it had planned")
        return self._sent

    def found(self, patience_s: float) -> dict[str, Any]:
        """The audit's figures against the truth, and the oracle's of every revision."""
        truth = joined((wave.truth for wave in self._waves), self._product.folder / "truth.jsonl")
        found = audited(self._product, truth, patience_s=patience_s)
        verdict = answer(lambda: judged(self._bench))
        found["oracle"] = dataclasses.asdict(verdict)
        for problem in ("lost", "wrong", "repeated"):
            found[problem] = max(found[problem], getattr(verdict, problem))
        found["findings"] = [*map(str, verdict.findings), *found["findings"]]
        return found

    def kill(self) -> None:
        """End all waves."""
        for wave in self._waves:
            wave.kill()


class Records:
    """One publisher that writes to the reports topic itself; judged by the oracle."""

    def __init__(self, product: Product, bench: Bench, load: Load) -> None:
        """Send nothing yet.

        Args:
            product: its assemblers.
            bench: their topics.
            load: how much; there is one wave without end.
        """
        self._product = product
        self._bench = bench
        self._load = load
        self._log = product.folder / "publisher.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._asked_to_end = False
        self._summary: dict[str, Any] = {}

    def keep_up(self) -> None:
        """Start the publisher, once."""
        if self._process is not None:
            return
        settings = self._bench.settings
        command = [sys.executable, "-m", "tests.crash.chaos_publisher", self._product.bootstrap]
        command += [settings.reports_topic, str(self._bench.partitions), str(self._load.rate), str(self._load.seed)]
        command += [str(settings.reassembly_timeout_s)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, cwd=REPOSITORY)

    def begun(self) -> bool:
        """Whether some assembler has committed a cycle."""
        return any(self._product.metric(name, "dlrflow_commit_seconds_count") for name in self._product.commands)

    def ended(self) -> bool:
        """Ask the publisher to come to its end; whether it has."""
        assert self._process is not None
        if not self._asked_to_end:
            # Once: a second signal could meet a process whose handlers are gone already.
            self._process.send_signal(signal.SIGTERM)
            self._asked_to_end = True
        return self._process.poll() is not None

    def close(self) -> list[dict[str, Any]]:
        """Summary of what was published."""
        assert self._process is not None
        try:
            output, _ = self._process.communicate(timeout=PUBLISHED_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise RuntimeError(f"the publisher did not end within {PUBLISHED_WITHIN_S:.0f} s") from None
        if self._process.returncode != 0:
            raise RuntimeError(f"the publisher failed:\n{tail(self._log)}")
        # Before its last line it may have said what its client of Kafka ran into.
        self._summary = json.loads(output.splitlines()[-1])
        return [self._summary]

    def found(self, patience_s: float) -> dict[str, Any]:
        """What the oracle says of every revision, once the input is read and no message waits any more."""
        until = time.monotonic() + patience_s
        while (pending := answer(self._on_its_way)) and time.monotonic() < until:
            time.sleep(LOOK_AGAIN_S)
        verdict = answer(lambda: judged(self._bench))
        found = dataclasses.asdict(verdict)
        # A record that was acknowledged and is gone would be the brokers' fault, and ours to have asked for less.
        found["lost"] += max(0, self._summary["published"] - verdict.records)
        return found | {"pending": pending}

    async def _on_its_way(self) -> int:
        """Records that were not read, and messages that wait; 1 where only a transaction is open."""
        waiting = await self._bench.lag()
        waiting += sum(int(self._product.metric(name, PENDING) or 0) for name in MEMBERS)
        return waiting or int(not await self._bench._settled())

    def kill(self) -> None:
        """End the publisher."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
