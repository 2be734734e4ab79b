"""A ledger that ends at any call to the disk: behind the changelog after it, never ahead, and right once it read on."""

import contextlib
import errno
import itertools
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from consumers.entry import LedgerDamagedError
from consumers.ledger.partition import PartitionLedger
from tests.fakes.files import FaultyFileSystem, Plan, PowerCutError
from tests.fakes.ledger_disk import MappedFileSystem
from tests.remembering import History, a_store, history_of, live, must_be, read_on

CYCLES_BEFORE, CYCLES = 20, 34
"""So many are on the device before the first call that may fail; later a generation goes, and runs are merged."""

DISCARD_CALLS, CHANCES = 16, 4
CALLS_LEAST = 60
"""Calls to the disk that were tried."""


class Machine:
    """A disk with the first cycles on it, and a process that goes on from there."""

    def __init__(self, root: Path, history: History) -> None:
        self.history = history
        self.root = root
        self.disk = MappedFileSystem(root)
        self.fs = FaultyFileSystem(self.disk)
        self.ledger: PartitionLedger | None = None
        self.open().apply([record for cycle in history.records[:CYCLES_BEFORE] for record in cycle])
        self.end()
        self.disk.sync_all()

    def open(self) -> PartitionLedger:
        """A new process."""
        self.ledger = a_store(self.root, self.fs).open(0)
        return self.ledger

    def end(self) -> None:
        """Let go of what this process has mapped."""
        if self.ledger is not None:
            self.ledger.close()
            self.ledger = None

    def begun(self) -> int:
        """The last cycle that was given to the ledger."""
        position = self.ledger.position if self.ledger else None
        return position.cycle + 1 if position else CYCLES_BEFORE

    def go_on(self) -> bool:
        """What a process does: open, live, end; whether nothing kept it from it."""
        with capture_logs(), contextlib.suppress(PowerCutError, OSError, LedgerDamagedError):
            live(self.open(), self.history)
            return True
        return False


def at_call(number: int, error: Callable[[], BaseException]) -> Plan:
    """A plan that lets so many calls pass, and raises from then on."""
    calls = itertools.count()

    def plan(_call: str, _path: Path) -> None:
        if next(calls) >= number:
            raise error()

    return plan


@pytest.fixture(scope="module")
def history() -> History:
    """What is committed."""
    return history_of(CYCLES)


@pytest.mark.parametrize(("end", "when"), [("kill", "after"), ("power cut", "before"), ("power cut", "after")])
def test_crash_at_any_call_leaves_whole_cycles_and_nothing_ahead(
    end: str, when: str, tmp_path: Path, history: History
) -> None:
    """Whatever was not synced and is lost: a position of the past, and the right answers once the rest was read."""
    for number in itertools.count():
        (root := tmp_path / str(number)).mkdir()
        machine = Machine(root, history)
        plan = at_call(number, PowerCutError)
        machine.fs.plan, machine.fs.later = (plan, None) if when == "before" else (None, plan)
        finished = machine.go_on()
        begun = CYCLES if finished else machine.begun()
        machine.fs.plan = machine.fs.later = None
        machine.end()
        machine.disk.kill() if end == "kill" else machine.disk.power_cut(random.Random(number))

        with capture_logs():
            ledger = machine.open()

        assert ledger.position is None or ledger.position in history.positions
        assert ledger.position is None or ledger.position.cycle <= begun
        read_on(ledger, history)
        must_be(ledger, history)
        machine.end()
        if finished:
            break
    assert number > CALLS_LEAST


def test_disk_that_fails_from_any_call_on_costs_no_answer(tmp_path: Path, history: History) -> None:
    """A call that fails, and all after it: refused, or damage, or done without; right once the disk serves again."""
    for number in itertools.count():
        (root := tmp_path / str(number)).mkdir()
        machine = Machine(root, history)
        error = (errno.EIO, errno.ENOSPC)[number % 2]
        machine.fs.plan = at_call(number, lambda error=error: OSError(error, os.strerror(error)))  # type: ignore[misc]
        finished = machine.go_on()
        machine.fs.plan = None

        with capture_logs():
            ledger = machine.ledger or machine.open()
        try:
            read_on(ledger, history)
            must_be(ledger, history)
        except LedgerDamagedError:
            ledger.discard()
            read_on(ledger, history)
        must_be(ledger, history)
        machine.end()
        must_be(machine.open(), history)
        machine.end()
        if finished:
            break
    assert number > CALLS_LEAST


@pytest.mark.parametrize("when", ["before", "after"])
def test_power_cut_while_discarding_leaves_no_stretch_without_its_beginning(when: str, tmp_path: Path) -> None:
    """Names may vanish in any order until they are synced: never the oldest generation before the newer ones."""
    history = history_of(CYCLES_BEFORE)  # none of it may be forgotten yet
    for number, chance in itertools.product(range(DISCARD_CALLS), range(CHANCES)):
        (root := tmp_path / f"{number}-{chance}").mkdir()
        machine = Machine(root, history)
        ledger = machine.open()
        plan = at_call(number, PowerCutError)
        machine.fs.plan, machine.fs.later = (plan, None) if when == "before" else (None, plan)
        with contextlib.suppress(PowerCutError):
            ledger.discard()
        machine.fs.plan = machine.fs.later = None
        machine.end()
        machine.disk.power_cut(random.Random(chance))

        with capture_logs():
            ledger = machine.open()

        read_on(ledger, history)
        must_be(ledger, history)
        machine.end()
