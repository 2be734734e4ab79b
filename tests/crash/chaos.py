"""Drives faults against the processes of the product under load, and books what happens.

Faults overlap: the next one comes while the last one may still hold, on any target that is not in trouble already.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from deploy.local.kafka import LocalKafka
from deploy.local.processes import tail
from deploy.local.product import RECEIVER, Product
from tests.crash.chaos_faults import BROKER, Fault, Kind
from tests.traffic import Wave, audited, joined, problems

TICK_S: Final = 0.05
LOOK_S: Final = 0.5
"""Between two looks at the receiver's accounts."""

AWAY_PATIENCE_S: Final = 45.0
"""So long after Kafka came back a command may still end with status 3: it gives up after 30 s at its start."""

RESTART_S: Final = 1.0
"""How long a supervisor waits before it starts a process again that ended by itself."""

GAVE_UP: Final = 3
UNACCOUNTED: Final = "dlrflow_unaccounted_reports"
RECEIVED: Final = "dlrflow_reports_received_total"
PENDING: Final = "dlrflow_spool_pending_reports"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Traffic during the faults: waves of messages, one after the other, as long as there are faults.

    Attributes:
        messages: of one wave.
        rate: reports per second.
        seed: of the first wave.
    """

    messages: int
    rate: float
    seed: int


@dataclass(slots=True)
class Books:
    """What happened.

    Attributes:
        faults: number by kind and target.
        ended: processes that ended though nothing was done to them, or not as they should.
        gave_up: processes that ended with status 3 while Kafka was away at their start, as they may.
        before_begun: processes that SIGTERM met while Python was still starting them: nothing is installed then.
        tracebacks: number in the log of each process that has any.
        unaccounted_most: the greatest distance of the receiver's accounts from balance, at any look.
        looks: at the receiver's accounts.
        sent: summaries of the waves.
        found: by the audit.
        seconds: from the first wave to the end of the audit.
        pending_at_end: reports in the spool after the audit.
    """

    faults: dict[str, int] = field(default_factory=dict)
    ended: list[str] = field(default_factory=list)
    gave_up: int = 0
    before_begun: int = 0
    tracebacks: dict[str, int] = field(default_factory=dict)
    unaccounted_most: float = 0.0
    looks: int = 0
    sent: list[dict[str, Any]] = field(default_factory=list)
    found: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    pending_at_end: float | None = None

    def total(self) -> int:
        """How many faults there were."""
        return sum(self.faults.values())

    def good(self) -> bool:
        """Whether nothing at all is amiss."""
        everything = all(sent["pushed"] == sent["planned"] for sent in self.sent)
        accounts = self.unaccounted_most == 0 and self.pending_at_end == 0
        return everything and accounts and not problems(self.found) and not self.ended


class Chaos:
    """One run; `run` does all of it."""

    def __init__(
        self, product: Product, load: Load, *, broker: LocalKafka | None = None, say: Callable[[str], None] = print
    ) -> None:
        """Describe it.

        Args:
            product: its processes, running.
            load: the traffic.
            broker: for faults of the broker.
            say: is told what is done.
        """
        self.books = Books()
        self._product = product
        self._load = load
        self._broker = broker
        self._say = say
        self._began = time.monotonic()
        self._held: dict[str, tuple[Fault, float]] = {}
        self._restart_at: dict[str, float] = {}
        self._node = 1
        self._begun: set[str] = set()
        self._kafka_back_at = 0.0
        self._look_at = 0.0
        self._waves: list[Wave] = []

    def run(self, faults: Iterable[Fault], *, settle_s: float) -> Books:
        """Do every fault under load, bring everything back, and audit.

        Args:
            faults: in their order.
            settle_s: patience of the audit.

        Raises:
            RuntimeError: load or audit could not be done.
            LocalServiceError: a process did not come back.
        """
        self._began = time.monotonic()
        try:
            self._wait(until=self._loaded)
            for fault in faults:
                self._wait(until=lambda fault=fault: fault.target not in self._held)  # type: ignore[misc]
                self._strike(fault)
                self._pass(fault.gap_s)
            self._wait(until=lambda: not self._held)
            self._wait(until=lambda: not self._restart_at and not self._waves[-1].running(), loaded=False)
            self.books.sent.append(self._waves[-1].end())
        finally:
            for wave in self._waves:
                wave.kill()
        self._recover()
        truth = joined((wave.truth for wave in self._waves), self._product.folder / "truth.jsonl")
        self._note("all faults are over: audit")
        self.books.found = audited(self._product, truth, patience_s=settle_s)
        self.books.pending_at_end = self._product.metric(RECEIVER, PENDING)
        self._look()
        for name in self._product.commands:
            if found := self._product.log(name).read_text().count("Traceback (most recent call last)"):
                self.books.tracebacks[name] = found
        self.books.seconds = time.monotonic() - self._began
        return self.books

    def _loaded(self) -> bool:
        return bool(self._product.metric(RECEIVER, RECEIVED))

    def _recover(self) -> None:
        for name in self._product.commands:
            self._product.await_ready(name)

    def _pass(self, seconds: float) -> None:
        over = time.monotonic() + seconds
        self._wait(until=lambda: time.monotonic() >= over)

    def _wait(self, *, until: Callable[[], bool], loaded: bool = True) -> None:
        """Let time pass: undo what is due, keep the load up, watch the processes."""
        while not until():
            if loaded:
                self._keep_loaded()
            self._undo_due()
            self._watch()
            time.sleep(TICK_S)

    def _keep_loaded(self) -> None:
        if self._waves and self._waves[-1].running():
            return
        if self._waves:
            self.books.sent.append(self._waves[-1].end())
        load, number = self._load, len(self._waves)
        self._waves.append(Wave(self._product, messages=load.messages, rate=load.rate, seed=load.seed + number))
        self._note(f"wave {number + 1} of traffic")

    def _strike(self, fault: Fault) -> None:
        kind = f"{fault.kind} of {fault.target}"
        self.books.faults[kind] = self.books.faults.get(kind, 0) + 1
        self._note(f"fault {self.books.total()}: {fault}")
        self._held[fault.target] = (fault, time.monotonic() + fault.hold_s)
        self._restart_at.pop(fault.target, None)
        if fault.target == BROKER:
            self._strike_broker(fault)
            return
        match fault.kind:
            case Kind.KILL:
                self._product.kill_group(fault.target)
            case Kind.LOSE_STATE:
                self._product.kill_group(fault.target)
                self._product.lose_state(fault.target)
            case Kind.KILL_PARENT:
                self._product.kill(fault.target)
            case Kind.KILL_WORKER:
                self._kill_worker()
            case Kind.TERMINATE:
                self._begun.discard(fault.target)
                if self._product.asked(fault.target, "/livez") is not None:
                    self._begun.add(fault.target)
                self._product.ask_to_end(fault.target)
            case Kind.FREEZE:
                self._product.freeze(fault.target)

    def _strike_broker(self, fault: Fault) -> None:
        assert self._broker is not None
        # Only ever one node at a time: a majority stays.
        self._node = self.books.total() % len(self._broker.nodes) + 1
        if fault.kind is Kind.FREEZE:
            self._broker.freeze(self._node)
        else:
            self._broker.kill(self._node)

    def _kill_worker(self) -> None:
        health = json.loads(self._product.asked(RECEIVER, "/healthz") or '{"workers": []}')
        for worker in health["workers"][:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker["pid"], signal.SIGKILL)

    def _undo_due(self) -> None:
        for target, (fault, due) in list(self._held.items()):
            leaving = fault.kind is Kind.TERMINATE and self._product.running(target)
            if time.monotonic() < due or leaving:
                continue
            del self._held[target]
            if target == BROKER:
                self._undo_broker(fault)
            elif fault.kind is Kind.FREEZE:
                self._product.thaw(target)
            elif fault.kind is not Kind.KILL_WORKER:
                if fault.kind is Kind.TERMINATE:
                    self._check_end(target)
                self._product.launch(target)

    def _check_end(self, target: str) -> None:
        """After SIGTERM the status is 0, unless the process had not come to its first line yet."""
        status = self._product.status(target)
        if status == -signal.SIGTERM and target not in self._begun:
            self.books.before_begun += 1
        elif status != 0:
            self._book(f"{target} ended with status {status} after SIGTERM")

    def _undo_broker(self, fault: Fault) -> None:
        assert self._broker is not None
        if fault.kind is Kind.FREEZE:
            self._broker.thaw(self._node)
        else:
            self._broker.restart(self._node)
        self._kafka_back_at = time.monotonic()

    def _watch(self) -> None:
        """Do what a supervisor does, and look at the accounts from time to time."""
        for name in self._product.commands:
            if name not in self._held and name not in self._restart_at and not self._product.running(name):
                self._ended(name)
        for name, due in list(self._restart_at.items()):
            if time.monotonic() >= due:
                del self._restart_at[name]
                self._product.launch(name)
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + LOOK_S
            if RECEIVER not in self._held:
                self._look()

    def _ended(self, name: str) -> None:
        status = self._product.status(name)
        self._restart_at[name] = time.monotonic() + RESTART_S
        kafka_was_away = BROKER in self._held or time.monotonic() < self._kafka_back_at + AWAY_PATIENCE_S
        if status == GAVE_UP and kafka_was_away:
            self.books.gave_up += 1
            self._note(f"{name} gave up waiting for Kafka, as it may: started again")
            return
        last = tail(self._product.log(name)).rpartition("\n")[2]
        self._book(f"{name} ended by itself with status {status}: {last}")

    def _book(self, end: str) -> None:
        self.books.ended.append(end)
        self._note(end)

    def _look(self) -> None:
        unaccounted = self._product.metric(RECEIVER, UNACCOUNTED)
        if unaccounted is None:
            return
        self.books.looks += 1
        if abs(unaccounted) > self.books.unaccounted_most:
            self.books.unaccounted_most = abs(unaccounted)
            self._note(f"{unaccounted:.0f} reports are unaccounted for")

    def _note(self, text: str) -> None:
        self._say(f"{time.monotonic() - self._began:7.1f} s  {text}")
