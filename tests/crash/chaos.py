"""Drives faults against the processes of the product under load, and books what happens.

Faults overlap: the next one comes while the last one may still hold, on any target that is not in trouble already.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from random import Random
from typing import Final

from deploy.local.kafka import LocalKafka
from deploy.local.processes import tail
from deploy.local.product import RECEIVER, STOP_TIMEOUT_S, Product
from tests.crash.chaos_books import Books
from tests.crash.chaos_faults import BROKER, MEMBERS, Fault, Kind
from tests.crash.chaos_traffic import Traffic

TICK_S: Final = 0.05
LOOK_S: Final = 0.5
"""Between two looks at the receiver's accounts."""

AIM_S: Final = 8.0
"""How long an aimed fault waits for its target to be at work."""

HUNT_S: Final = 10.0
"""How long after the end of the session somebody is expected to take a partition over."""

AWAY_PATIENCE_S: Final = 45.0
"""So long after Kafka came back a command may still end with status 3: it gives up after 30 s at its start."""

RESTART_S: Final = 1.0
"""How long a supervisor waits before it starts a process again that ended by itself."""

MAJORITY_NODES: Final = 3
"""With so many nodes Kafka is never away while one of them is."""

GAVE_UP: Final = 3
UNACCOUNTED: Final = "dlrflow_unaccounted_reports"
SPOOLED: Final = "dlrflow_spool_pending_reports"
TRACEBACK: Final = "Traceback (most recent call last)"


@dataclass(frozen=True, slots=True)
class _Hunt:
    """Whoever takes one of these partitions over is killed.

    Attributes:
        fault: that made them free.
        partitions: their numbers.
        over_s: when nobody is waited for any more, monotonic.
    """

    fault: Fault
    partitions: frozenset[str]
    over_s: float


class Chaos:
    """One run; `run` does all of it."""

    def __init__(
        self,
        product: Product,
        traffic: Traffic,
        *,
        broker: LocalKafka | None = None,
        seed: int = 0,
        say: Callable[[str], None] = print,
    ) -> None:
        """Describe it.

        Args:
            product: its processes, running.
            traffic: what comes in.
            broker: for faults of the broker.
            seed: of what is left to chance while a fault is done.
            say: is told what is done.
        """
        self.books = Books()
        self._product = product
        self._traffic = traffic
        self._broker = broker
        self._random = Random(seed)
        self._say = say
        self._began = time.monotonic()
        self._held: dict[str, tuple[Fault, float]] = {}
        self._hunts: list[_Hunt] = []
        self._restart_at: dict[str, float] = {}
        self._node = 0
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="broker")
        self._returning: Future[None] | None = None
        self._begun: set[str] = set()
        self._away = set(product.guests)
        self._kafka_back_at = 0.0
        self._look_at = 0.0

    def run(self, faults: Iterable[Fault], *, settle_s: float) -> Books:
        """Do every fault under load, bring everything back, compare, and end everything.

        Args:
            faults: in their order.
            settle_s: patience of the comparison.

        Raises:
            RuntimeError: load or comparison could not be done.
            LocalServiceError: a process did not come back.
        """
        self._began = time.monotonic()
        try:
            self._wait(until=self._traffic.begun)
            for fault in faults:
                self._wait(until=lambda fault=fault: fault.target not in self._held)  # type: ignore[misc]
                if fault.aimed and fault.target not in self._away:
                    self._wait(until=lambda fault=fault: self._doing(fault.target) == "running", most_s=AIM_S)  # type: ignore[misc]
                self._strike(fault)
                self._wait(until=lambda: False, most_s=fault.gap_s)
            self._wait(until=lambda: not self._held)
            self._hunts.clear()
            self._wait(until=lambda: not self._restart_at and self._traffic.ended(), loaded=False)
            self.books.sent = self._traffic.close()
            self._recover()
            self._note("all faults are over: what came of it is compared")
            self.books.found = self._traffic.found(settle_s)
            self.books.seconds = time.monotonic() - self._began
            self._close_accounts()
        finally:
            self._traffic.kill()
            self._threads.shutdown()
        return self.books

    def _recover(self) -> None:
        for name in self._product.commands:
            if self._product.running(name):
                self._product.await_ready(name)

    def _close_accounts(self) -> None:
        """A last look at everything, and at how each process ends that is asked to."""
        product = self._product
        if RECEIVER in product.commands:
            self._look()
            pending = product.metric(RECEIVER, SPOOLED)
            self.books.pending_at_end = -1.0 if pending is None else pending
        running = [name for name in product.commands if product.running(name)]
        for name in running:
            self._terminate(name)
        for name in running:
            if product.wait(name, STOP_TIMEOUT_S):
                self._check_end(name)
            else:
                self._book(f"{name} did not end within {STOP_TIMEOUT_S:.0f} s after SIGTERM")
        for name in product.commands:
            if product.log(name).exists():
                for said in _tracebacks(product.log(name).read_text()):
                    self.books.add(self.books.tracebacks, said)

    def _wait(self, *, until: Callable[[], bool], loaded: bool = True, most_s: float = float("inf")) -> None:
        """Let time pass: undo what is due, keep the load up, watch the processes."""
        over = time.monotonic() + most_s
        while time.monotonic() < over and not until():
            if loaded:
                self._traffic.keep_up()
            self._undo_due()
            self._watch()
            self._hunt()
            time.sleep(TICK_S)

    def _strike(self, fault: Fault) -> None:
        fault = self._as_it_stands(fault)
        self.books.add(self.books.faults, _booked(fault))
        if fault.target in MEMBERS and fault.kind is not Kind.JOIN:
            self.books.add(self.books.caught, self._doing(fault.target))
        self._note(f"fault {self.books.total()}: {fault}")
        self._held[fault.target] = (fault, time.monotonic() + fault.hold_s)
        if self._restart_at.pop(fault.target, None):
            self._product.launch(fault.target)
        if fault.target == BROKER:
            self._strike_broker(fault)
        else:
            self._strike_process(fault)

    def _as_it_stands(self, fault: Fault) -> Fault:
        """A guest that is away joins, whatever else was planned for it."""
        if fault.target in self._away:
            return replace(fault, kind=Kind.JOIN, hold_s=0.0)
        return fault

    def _strike_process(self, fault: Fault) -> None:
        product, target = self._product, fault.target
        if fault.kind.hunts:
            self._begin_hunt(fault)
        if fault.kind.freezes:
            product.freeze(target)
        elif fault.kind is Kind.JOIN:
            self._away.discard(target)
            product.launch(target)
        elif fault.kind is Kind.TERMINATE:
            self._terminate(target)
        elif fault.kind is Kind.KILL_WORKER:
            self._kill_worker()
        elif fault.kind is Kind.KILL_PARENT:
            product.kill(target)
        else:
            product.kill_group(target)
            self._harm_state(fault)

    def _harm_state(self, fault: Fault) -> None:
        if fault.kind is Kind.LOSE_STATE:
            self._product.lose_state(fault.target)
        elif fault.kind is Kind.DAMAGE_STATE:
            file = self._product.damage_state(fault.target, self._random)
            self._note("there is no state to damage" if file is None else f"a bit of {file.name} is wrong now")

    def _strike_broker(self, fault: Fault) -> None:
        assert self._broker is not None
        # Only ever one node at a time: a majority stays.
        self._node = self._random.choice(self._broker.nodes)
        if fault.kind is Kind.FREEZE:
            self._broker.freeze(self._node)
        else:
            self._broker.kill(self._node)

    def _kill_worker(self) -> None:
        health = json.loads(self._product.asked(RECEIVER, "/healthz") or '{"workers": []}')
        for worker in health["workers"][:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker["pid"], signal.SIGKILL)

    def _terminate(self, name: str) -> None:
        self._begun.discard(name)
        if self._product.asked(name, "/livez") is not None:
            self._begun.add(name)
        self._product.ask_to_end(name)

    def _phases(self, name: str) -> dict[str, str] | None:
        """What an assembler does with which partitions; None if it does not answer."""
        said = self._product.asked(name, "/healthz") if self._product.running(name) else None
        return None if said is None else dict(json.loads(said).get("partitions", {}))

    def _doing(self, name: str) -> str:
        phases = self._phases(name)
        if phases is None:
            return "starting"
        return next((phase for phase in ("restoring", "running") if phase in phases.values()), "none")

    def _begin_hunt(self, fault: Fault) -> None:
        if partitions := self._phases(fault.target):
            self._hunts.append(_Hunt(fault, frozenset(partitions), time.monotonic() + fault.hold_s + HUNT_S))

    def _hunt(self) -> None:
        """Kill the member that has taken over what another one was made to leave, if there is one by now."""
        for hunt in list(self._hunts):
            if time.monotonic() > hunt.over_s:
                self._hunts.remove(hunt)
                continue
            for name in MEMBERS:
                # What members say of the time before the group knows is not yet a takeover.
                if name in self._held or name == hunt.fault.target or not self._product.running(name):
                    continue
                if hunt.partitions & (self._phases(name) or {}).keys():
                    self._hunts.remove(hunt)
                    self._note(f"{name} has taken over from {hunt.fault.target}")
                    self._strike(Fault(Kind.KILL, name, hold_s=self._random.uniform(0.2, 4), gap_s=0))
                    break

    def _undo_due(self) -> None:
        for target, (fault, due) in list(self._held.items()):
            leaving = fault.kind is Kind.TERMINATE and self._product.running(target)
            if time.monotonic() < due:
                continue
            if leaving:
                self._give_up_on(target, due)
            elif target != BROKER:
                del self._held[target]
                self._undo(fault)
            elif self._is_back(fault):
                del self._held[target]
                self._kafka_back_at = time.monotonic()

    def _give_up_on(self, target: str, due: float) -> None:
        if time.monotonic() > due + STOP_TIMEOUT_S:
            self._book(f"{target} did not end within {STOP_TIMEOUT_S:.0f} s after SIGTERM")
            self._product.kill_group(target)

    def _undo(self, fault: Fault) -> None:
        target = fault.target
        if fault.kind.freezes:
            self._product.thaw(target)
        elif fault.kind not in {Kind.KILL_WORKER, Kind.JOIN}:
            self._check_end(target, fault)
            if target in self._product.guests:
                self._away.add(target)
            else:
                self._product.launch(target)

    def _check_end(self, target: str, fault: Fault | None = None) -> None:
        """After SIGTERM the status is 0, unless the process had not come to its first line yet; killed means killed."""
        status = self._product.status(target)
        asked = fault is None or fault.kind is Kind.TERMINATE
        self.books.add(self.books.statuses, f"{status} after {'SIGTERM' if asked else 'SIGKILL'}")
        if asked and status == -signal.SIGTERM and target not in self._begun:
            self.books.before_begun += 1
        elif status != (0 if asked else -signal.SIGKILL):
            self._book(f"{target} ended with status {status} after {'SIGTERM' if asked else 'SIGKILL'}")

    def _is_back(self, fault: Fault) -> bool:
        """Bring the broker back, in a thread where that takes time; whether it is."""
        assert self._broker is not None
        if fault.kind is Kind.FREEZE:
            self._broker.thaw(self._node)
            return True
        if self._returning is None:
            self._returning = self._threads.submit(self._broker.restart, self._node)
        if not self._returning.done():
            return False
        returned, self._returning = self._returning, None
        returned.result()
        return True

    def _watch(self) -> None:
        """Do what a supervisor does, and look at the accounts from time to time."""
        product = self._product
        for name in product.commands:
            watched = name not in self._held and name not in self._restart_at and name not in self._away
            if watched and not product.running(name):
                self._ended(name)
        for name, due in list(self._restart_at.items()):
            if time.monotonic() >= due:
                del self._restart_at[name]
                product.launch(name)
        if RECEIVER in product.commands and time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + LOOK_S
            if RECEIVER not in self._held:
                self._look()

    def _ended(self, name: str) -> None:
        status = self._product.status(name)
        self.books.add(self.books.statuses, f"{status} by itself")
        self._restart_at[name] = time.monotonic() + RESTART_S
        if status == GAVE_UP and self._kafka_was_away():
            self.books.gave_up += 1
            self._note(f"{name} gave up waiting for Kafka, as it may: started again")
            return
        last = tail(self._product.log(name)).rpartition("\n")[2]
        self._book(f"{name} ended by itself with status {status}: {last}")

    def _kafka_was_away(self) -> bool:
        one_is_enough = self._broker is None or len(self._broker.nodes) < MAJORITY_NODES
        return one_is_enough and (BROKER in self._held or time.monotonic() < self._kafka_back_at + AWAY_PATIENCE_S)

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


def _booked(fault: Fault) -> str:
    who = "an assembler" if fault.target in MEMBERS else f"the {fault.target}"
    return f"{fault.kind}: {who}"


def _tracebacks(log: str) -> Iterator[str]:
    """Who logged a traceback and with which words, or that nobody logged it."""
    for line in log.splitlines():
        if TRACEBACK in line:
            said = json.loads(line) if line.startswith("{") else {"logger": "nobody", "event": "standard error"}
            yield f"{said['logger']}: {said['event'].splitlines()[0]}"
