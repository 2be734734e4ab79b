"""How long a partition gives no results while members come and go, for those that change hands and those that do not.

    python -m tests.bench.pauses [--messages 300000] [--partitions 12] [--rate 500] [--rounds 1] [--keep]

Assemblers of one group as processes, their memory filled with so many messages, then steady traffic over all
partitions. A member joins, leaves cleanly, is killed, is frozen past its session and thawed; then all are restarted one
after the other. The pause of a partition is the longest time from when a report was due to be sent until a
`read_committed` reader had its result, of all reports due during the event. In the end every report must have had
exactly one result.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from deploy.local.kafka import LocalKafka
from deploy.local.processes import LocalServiceError
from deploy.local.product import REPOSITORY
from tests import measurement
from tests.bench.group import Group, GroupError, until
from tests.bench.pauses_report import told
from tests.bench.planned import Sent, blocks
from tests.bench.publishing import published
from tests.bench.steps import steps_of
from tests.bench.watching import Steady, Watch, spread

FOLDER: Final = REPOSITORY / "var" / "bench-pauses"
BROKER_HEAP_MIB: Final = 1024
MEMBERS: Final = ("first", "second", "third")
SEED: Final = 13
QUIET_S: Final = 5.0
"""Between two events: the usual delays are taken from it."""

LEAD_S: Final = 1.0
"""Reports due so long before an event count to it: they may not have had their results."""

CALM_S: Final = 1.0
"""An event is over when everything that was due so long ago has its result."""

SETTLE_TIMEOUT_S: Final = 120.0
FILL_TIMEOUT_S: Final = 900.0
LOOK_S: Final = 0.2


def main() -> int:
    """Run it, write the figures down, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.pauses", description=__doc__)
    parser.add_argument("--messages", type=int, default=300_000, help="in the memory of the group before it begins")
    parser.add_argument("--partitions", type=int, default=12)
    parser.add_argument("--rate", type=float, default=500, help="reports per second over all partitions")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="write the figures to docs/measurements")
    options = parser.parse_args()
    where = measurement.circumstances()
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    try:
        with LocalKafka(folder=FOLDER / "kafka", heap_mib=BROKER_HEAP_MIB, throughput=True) as kafka:
            group = Group(kafka, FOLDER, MEMBERS, partitions=options.partitions)
            try:
                figures = asyncio.run(Trial(group, options.rate).run(options.messages, options.rounds))
            finally:
                group.product.stop()
    except (LocalServiceError, GroupError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    finally:
        shutil.rmtree(FOLDER, ignore_errors=True)
    where["load_after"] = [round(load, 2) for load in os.getloadavg()]
    traffic = {"messages": options.messages, "partitions": options.partitions, "rate": options.rate}
    figures = {"circumstances": where, "traffic": traffic, **figures}
    path = measurement.write("pauses", markdown := told(figures), figures, keep=options.keep)
    say(f"\n{markdown}\nwritten to {path}")
    return 1 if figures["truth"]["missing"] or figures["truth"]["repeated"] else 0


class Trial:
    """Runs the events and books the pauses."""

    def __init__(self, group: Group, rate: float) -> None:
        """Describe it.

        Args:
            group: of three assemblers, none of them started.
            rate: reports per second over all partitions.
        """
        self._group = group
        self._rate = rate
        self._up: list[str] = []
        self._events: list[dict[str, Any]] = []

    async def run(self, messages: int, rounds: int) -> dict[str, Any]:
        """Fill the memory, then all events under traffic, so many times.

        Returns:
            `events` with their pauses, and `truth`: what was sent, what is missing or repeated.

        Raises:
            GroupError: the group did not come to rest after an event.
        """
        group = self._group
        say(f"filling the memory with {messages:,} messages")
        sent = Sent()
        await published(group.options, group.reports, group.partitions, blocks(messages, sent, seed=SEED))
        first, second, third = MEMBERS
        for name in (first, second):
            self._launch(name)()
        await self._filled(sent)
        async with (
            Watch(group.options, group.results, group.partitions) as watch,
            Steady(group.options, group.reports, group.partitions, rate=self._rate, first_number=messages) as steady,
        ):
            await asyncio.sleep(QUIET_S)
            for _ in range(rounds):
                for event, act in (
                    ("joins", self._launch(third)),
                    ("leaves (SIGTERM)", self._leave(third)),
                    ("joins, with its old state", self._launch(third)),
                    ("is killed (SIGKILL)", self._kill(third)),
                    ("joins, after a crash", self._launch(third)),
                    ("is frozen (SIGSTOP)", self._freeze(third)),
                    ("is thawed (SIGCONT)", self._thaw(third)),
                ):
                    await self._event(event, watch, steady, act)
                await self._event("all restarted in turn", watch, steady, *map(self._restart, MEMBERS))
                await self._event("leaves, for the next round", watch, steady, self._leave(third))
            await steady.stop()
            await self._calm(watch, steady)
            truth = {"sent": steady.sent(), "missing": steady.missing(watch, time.monotonic())}
            truth["repeated"] = len(watch.again)
        return {"events": self._events, "truth": truth}

    def _launch(self, name: str) -> Callable[[], None]:
        def act() -> None:
            self._group.product.launch(name)
            self._up.append(name)

        return act

    def _leave(self, name: str) -> Callable[[], None]:
        def act() -> None:
            self._up.remove(name)
            self._group.product.ask_to_end(name)

        return act

    def _kill(self, name: str) -> Callable[[], None]:
        def act() -> None:
            self._up.remove(name)
            self._group.product.kill(name)

        return act

    def _freeze(self, name: str) -> Callable[[], None]:
        def act() -> None:
            self._up.remove(name)
            self._group.product.freeze(name)

        return act

    def _thaw(self, name: str) -> Callable[[], None]:
        def act() -> None:
            self._up.append(name)
            self._group.product.thaw(name)

        return act

    def _restart(self, name: str) -> Callable[[], None]:
        def act() -> None:
            self._group.product.terminate(name)
            self._group.product.launch(name)

        return act

    async def _event(self, event: str, watch: Watch, steady: Steady, *acts: Callable[[], None]) -> None:
        """Do something to the group, wait until it rests, and book what each partition did meanwhile."""
        before = await self._owners()
        began_s, began_at_s = time.monotonic(), time.time()
        for act in acts:
            await asyncio.to_thread(act)
            after = await self._owners()
            await self._calm(watch, steady)
        ended_s = time.monotonic()
        await asyncio.sleep(QUIET_S)
        usual = [
            one.delay_s
            for some in steady.deliveries(watch, ended_s, ended_s + QUIET_S - CALM_S).values()
            for one in some
        ]
        during = steady.deliveries(watch, began_s - LEAD_S, ended_s)
        pauses = {partition: max(one.delay_s for one in some) for partition, some in during.items()}
        changed = [partition for partition in pauses if len(acts) > 1 or before[partition] != after[partition]]
        self._events.append(
            {
                "event": event,
                "affected_s": sorted(round(pauses[partition], 3) for partition in changed),
                "unaffected_s": sorted(round(pauses[partition], 3) for partition in pauses if partition not in changed),
                "usual": spread(usual),
                "steps": steps_of(self._group, before, after, began_at_s) if len(acts) == 1 else None,
            }
        )
        say(str(self._events[-1]))

    async def _owners(self) -> dict[int, str]:
        """Wait until those that are up work on all partitions, and return who works on which."""
        over = time.monotonic() + SETTLE_TIMEOUT_S
        while (found := await asyncio.to_thread(self._group.owners, tuple(self._up))) is None:
            if time.monotonic() > over:
                raise GroupError(f"{self._up} do not work on all partitions")
            await asyncio.sleep(LOOK_S)
        return found

    async def _calm(self, watch: Watch, steady: Steady) -> None:
        """Wait until everything that was due a moment ago has its result."""
        over = time.monotonic() + SETTLE_TIMEOUT_S
        await asyncio.sleep(CALM_S)
        while missing := steady.missing(watch, time.monotonic() - CALM_S):
            if time.monotonic() > over:
                raise GroupError(f"{missing} reports have no result")
            await asyncio.sleep(LOOK_S)

    async def _filled(self, sent: Sent) -> None:
        """Wait until all that was published beforehand has been assembled."""

        def done() -> bool:
            return (
                sum(self._group.product.metric(name, "dlrflow_records_total") or 0 for name in self._up) >= sent.reports
            )

        await asyncio.to_thread(until, done, "the memory was not filled", timeout_s=FILL_TIMEOUT_S)


def say(text: str) -> None:
    """Tell a person."""
    print(text, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
