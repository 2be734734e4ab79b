"""The spool on a disk that forgets: after any crash at any call, what was answered is there."""
# ruff: noqa: D102 - a rule is a step, its name says which

import asyncio
import contextlib
import errno
import os
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from structlog.testing import capture_logs

from ingest.contract.push import Push, Route
from ingest.runtime.clock import SystemClock
from ingest.spool.accounts import Accounts
from ingest.spool.backlog import DiskBacklog
from ingest.spool.base import SpoolBrokenError, Spooled, SpoolFullError
from ingest.spool.disk import DiskSpool, adopt_free, open_spool
from ingest.spool.folder import QUARANTINE, TORN
from ingest.spool.options import BacklogLimits, SpoolOptions
from tests.fakes.files import FaultyFileSystem, ModelFileSystem, PowerCutError

ROOT = Path("/spool")
FAR_S = 3600.0
"""Nothing happens by itself: every call to the disk follows from a step."""

OPTIONS = SpoolOptions(
    max_bytes=1 << 20,
    file_bytes=2048,
    retry_s=0,
    backlog=BacklogLimits(cache_bytes=3 * 1400, read_bytes=2 * 1200, settle_delay_s=FAR_S, retry_s=FAR_S),
)

FAULTS = st.tuples(
    st.sampled_from([errno.EIO, errno.ENOSPC, errno.EMFILE, errno.EROFS]),
    st.integers(0, 6),
    st.integers(1, 3),
)


class CrashingSpool(RuleBasedStateMachine):
    """Appends, settles, fails and crashes; knows what was answered."""

    def __init__(self) -> None:
        super().__init__()
        self.logs = contextlib.ExitStack()
        self.logs.enter_context(capture_logs())
        self.runner = asyncio.Runner()
        self.disk = ModelFileSystem()
        self.fs = FaultyFileSystem(self.disk)
        self.clock = SystemClock()
        self.spool: DiskSpool | None = None
        self.sent: list[bytes] = []
        self.answered: list[bytes] = []
        self.settled: set[bytes] = set()
        self.settled_now: set[bytes] = set()  # by this process
        self.gone: set[bytes] = set()  # settled for good: may not even be repeated
        self.lied = False  # the device showed data after it had lost them
        self.taken: list[Spooled] = []
        self.seen: list[bytes] = []  # handed out since the folder was opened, without what a rewind repeats

    @initialize()
    def first_start(self) -> None:
        self._open()

    @rule(size=st.integers(0, 900), route=st.sampled_from(Route))
    def append(self, size: int, route: Route) -> None:
        assert self._append(size, route)

    @rule(size=st.integers(0, 900), fault=FAULTS)
    def append_while_the_device_fails(self, size: int, fault: tuple[int, int, int]) -> None:
        self._fail(*fault)
        self._append(size, Route.BATCH)
        self.fs.plan = None

    @rule(max_bytes=st.integers(1, 3000))
    def take(self, max_bytes: int) -> None:
        self._take(max_bytes)

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, len(self.taken)))
        self._settle(count)

    @precondition(lambda self: self.taken)
    @rule()
    def rewind(self) -> None:
        self._live.rewind()
        del self.seen[len(self.seen) - len(self.taken) :]
        self.taken.clear()

    @rule()
    def tidy(self) -> None:
        self.runner.run(self._live.tidy())
        self.gone |= self.settled_now

    @rule(fault=FAULTS)
    def tidy_while_the_device_fails(self, fault: tuple[int, int, int]) -> None:
        self._fail(*fault)
        try:
            self.runner.run(self._live.tidy())
        except OSError:
            pass
        finally:
            self.fs.plan = None

    @rule()
    def restart(self) -> None:
        self.runner.run(self._live.close())
        self.gone |= self.settled_now
        self._open()

    @rule(seed=st.integers(0, 2**32))
    def power_cut(self, seed: int) -> None:
        self._crash(seed)

    @rule()
    def killed(self) -> None:
        self._crash(None)

    @rule(
        calls=st.integers(0, 12), after=st.booleans(), seed=st.none() | st.integers(0, 2**32), size=st.integers(0, 900)
    )
    def crash_while_appending(self, calls: int, after: bool, seed: int | None, size: int) -> None:  # noqa: FBT001
        self._cut_power_at(calls, after=after)
        self._append(size, Route.SINGLE)
        self._crash(seed)

    @rule(calls=st.integers(0, 12), after=st.booleans(), seed=st.none() | st.integers(0, 2**32))
    def crash_while_tidying(self, calls: int, after: bool, seed: int | None) -> None:  # noqa: FBT001
        self._cut_power_at(calls, after=after)
        self._try(self._live.tidy)
        self._crash(seed)

    @rule(calls=st.integers(0, 12), after=st.booleans(), seed=st.none() | st.integers(0, 2**32))
    def crash_while_closing(self, calls: int, after: bool, seed: int | None) -> None:  # noqa: FBT001
        self._cut_power_at(calls, after=after)
        self._try(self._live.close)
        self._crash(seed)

    @rule(calls=st.integers(0, 30), after=st.booleans(), first=st.integers(0, 2**32), second=st.integers(0, 2**32))
    def crash_while_opening(self, calls: int, after: bool, first: int, second: int) -> None:  # noqa: FBT001
        self._power_off(first)
        self._cut_power_at(calls, after=after)
        self._try(self._start)
        self._crash(second)

    @rule()
    def another_drains_the_folder(self) -> None:
        """Whoever adopts the folder of a dead process gets all of it, and removes it."""
        self._power_off(None)
        self._reset()
        self.runner.run(self._drain())
        assert all(name.startswith(".") or name == "quarantine" for name in self.disk.listdir(ROOT))
        self._open()

    @invariant()
    def the_accounts_balance(self) -> None:
        if self.spool is not None:
            assert self.spool.accounts.unaccounted() == 0
            assert self.spool.pending_reports >= 0
            assert self.spool.pending_bytes >= 0

    def teardown(self) -> None:
        """The last look: everything answered comes out in order."""
        if self.spool is not None:
            self.runner.run(self._live.close())
            self._open()
            self.runner.run(self._live.close())
        self.runner.close()
        self.logs.close()

    @property
    def _live(self) -> DiskSpool:
        assert self.spool is not None
        return self.spool

    def _append(self, size: int, route: Route) -> bool:
        body = (b"%06d" % len(self.sent)).ljust(6 + size, b"x")
        self.sent.append(body)
        try:
            self.runner.run(self._live.append(Push(1, route, 2, body)))
        except (SpoolFullError, SpoolBrokenError):
            return False
        self.answered.append(body)
        return True

    def _take(self, max_bytes: int) -> None:
        if self._live.pending_reports > 2 * len(self.taken):
            some = self.runner.run(self._live.take(max_bytes))
            assert some
            self.taken += some
            self.seen += [push.body for _, push in some]

    def _settle(self, count: int) -> None:
        self._live.settle(self.taken[count - 1].position)
        for _, push in self.taken[:count]:
            self.settled.add(push.body)
            self.settled_now.add(push.body)
            self._live.accounts.published += push.reports
        del self.taken[:count]

    def _open(self) -> None:
        """Start, and look at everything that is handed out."""
        self._reset()
        self.runner.run(self._start())
        pending = [body for body in self.answered if body not in self.settled]
        while self._live.pending_reports > 2 * len(self.taken):
            self._take(1000)
        self._check(self.seen, pending)
        self.rewind()

    async def _start(self) -> None:
        self.spool = await open_spool(ROOT, OPTIONS, fs=self.fs, clock=self.clock, accounts=Accounts())

    async def _drain(self) -> None:
        pending = [body for body in self.answered if body not in self.settled]
        accounts = Accounts()
        adopted = await adopt_free(ROOT, fs=self.fs, clock=self.clock, accounts=accounts, limits=OPTIONS.backlog)
        for backlog in adopted:
            await self._empty(backlog)
        self._check(self.seen, pending)
        assert accounts.unaccounted() == 0
        self.settled |= set(self.seen)

    async def _empty(self, backlog: DiskBacklog) -> None:
        while some := await backlog.take(1000):
            self.seen += [push.body for _, push in some]
            backlog.settle(some[-1].position)
            backlog.accounts.published += sum(push.reports for _, push in some)
        assert backlog.pending_reports == 0
        await backlog.close()

    def _check(self, seen: list[bytes], pending: list[bytes]) -> None:
        assert set(seen) <= set(self.sent), "invented"
        assert len(set(seen)) == len(seen), "handed out twice"
        assert seen == sorted(seen), "out of order"
        assert set(pending) <= set(seen), "lost"
        assert not self.gone & set(seen), "repeated although the cursor was durable"
        assert self.lied or not self._quarantined(), "nothing was damaged"

    def _quarantined(self) -> list[str]:
        """What is kept as damaged, without the ends of appends that a crash has cut."""
        folder = ROOT / QUARANTINE
        names = self.disk.listdir(folder) if self.disk.is_dir(folder) else []
        return [name for name in names if name.endswith(".body") and not name.endswith(f"{TORN}.body")]

    def _reset(self) -> None:
        self.fs.plan = self.fs.later = None
        self.taken.clear()
        self.seen.clear()
        self.settled_now.clear()

    def _fail(self, number: int, first: int, count: int) -> None:
        calls = iter(range(first + count))

        def plan(call: str, path: Path) -> None:
            if next(calls, -1) >= first:
                self.lied |= call == "truncate"
                raise OSError(number, os.strerror(number), f"{call} {path}")

        self.fs.plan = plan

    def _cut_power_at(self, calls: int, *, after: bool) -> None:
        left = iter(range(calls))

        def cut(_call: str, _path: Path) -> None:
            if next(left, None) is None:
                self.fs.plan = self.fs.later = _dark
                raise PowerCutError

        if after:
            self.fs.later = cut
        else:
            self.fs.plan = cut

    def _crash(self, seed: int | None) -> None:
        self._power_off(seed)
        self._open()

    def _power_off(self, seed: int | None) -> None:
        """Stop everything where it is; with a seed the machine, without only the process."""
        self.fs.plan = self.fs.later = _dark
        if self.spool is not None:
            self._try(self.spool.close)
            self.spool = None
        if seed is None:
            self.disk.kill()
        else:
            self.disk.power_cut(random.Random(seed))

    def _try(self, call: Callable[[], Awaitable[None]]) -> None:
        async def tried() -> None:
            try:
                await call()
            except PowerCutError:
                return

        self.runner.run(tried())


def _dark(_call: str, _path: Path) -> None:
    raise PowerCutError


TestCrashingSpool = CrashingSpool.TestCase
TestCrashingSpool.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
