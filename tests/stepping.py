"""Time, looks and answers as a test wants them: for what the assembler does by its clocks."""

import asyncio
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.fetch import FetchRequest

from consumers.engine.clock import CaughtUp, Watermark
from consumers.engine.kafka import ReportsConsumer
from tests.assembling import Bench, until

HOUR_S = 3600
LOOKS = 4
"""After so many further looks what the first of them led to is committed."""

QUICK_POLL_S = 0.02
HOLD_MAX_S = 10.0


class Wall:
    """The wall clock of this whole process, the Kafka clients' included. The monotonic clock goes on as ever."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        """Take it over; it goes right until it is told to step."""
        self._real_ns: Callable[[], int] = time.time_ns
        self._ahead_ns = 0
        patch.setattr(time, "time_ns", self._now_ns)
        patch.setattr(time, "time", lambda: self._now_ns() / 1e9)

    def step(self, seconds: float) -> None:
        """Step forward, or back by a negative number."""
        self._ahead_ns += int(seconds * 1e9)

    def now_ms(self) -> int:
        """What it shows, milliseconds."""
        return self._now_ns() // 1_000_000

    def _now_ns(self) -> int:
        return self._real_ns() + self._ahead_ns


async def let_stamps_be_ahead(bench: Bench) -> None:
    """Have brokers, whose clock does not step, take what is stamped further ahead than the one hour that they allow."""
    limit = {"message.timestamp.after.max.ms": str(1000 * 24 * HOUR_S * 1000)}
    admin = AIOKafkaAdminClient(**bench.options)
    await admin.start()
    try:
        for topic in (bench.settings.results_topic, bench.settings.dead_letters_topic):
            await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs=limit)])
    finally:
        await admin.close()


@dataclass(frozen=True, slots=True)
class Look:
    """One look at whether a partition is caught up."""

    watermark: Watermark
    caught_up: bool


class Looks:
    """All looks at whether a partition is caught up. They follow each other quickly, also where nothing comes.

    Attributes:
        all: of them.
        records_max: most records that come between two of them.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        """Watch them from now on."""
        self.all: list[Look] = []
        self.records_max = 10_000
        judge, poll = CaughtUp.judge, ReportsConsumer.poll

        def judging(self_: CaughtUp, watermark: Watermark, **clocks: Any) -> bool:
            verdict = judge(self_, watermark, **clocks)
            self.all.append(Look(watermark, verdict))
            return verdict

        async def polling(self_: ReportsConsumer, partition: int, *, timeout_s: float, records_max: int) -> Any:
            timeout_s, records_max = min(timeout_s, QUICK_POLL_S), min(records_max, self.records_max)
            return await poll(self_, partition, timeout_s=timeout_s, records_max=records_max)

        patch.setattr(CaughtUp, "judge", judging)
        patch.setattr(ReportsConsumer, "poll", polling)

    async def caught_up(self, watched: "asyncio.Task[None]") -> None:
        """Wait until the partition was found caught up anew, and what that led to is committed."""
        await self._further(lambda look: look.caught_up, watched)

    async def any(self, watched: "asyncio.Task[None]") -> None:
        """Wait until it was looked at anew, whatever came of it."""
        await self._further(lambda _: True, watched)

    async def behind(self, watched: "asyncio.Task[None]") -> None:
        """Wait until it was looked at anew and not found caught up."""
        await self._further(lambda look: not look.caught_up, watched)

    async def _further(self, wanted: Callable[[Look], bool], watched: "asyncio.Task[None]") -> None:
        before = len(self.all)

        async def seen() -> bool:
            return sum(map(wanted, itertools.islice(self.all, before, None))) >= LOOKS

        await until(seen, watched)


class Line:
    """How the assembler's fetches of one topic come to its brokers, and their answers back."""

    def __init__(self, patch: pytest.MonkeyPatch, topic: str) -> None:
        """Watch it; everything passes until it is told otherwise.

        Args:
            patch: puts things right again.
            topic: whose fetches.
        """
        self._topic = topic
        self._cut = False
        self._gate: asyncio.Event | None = None
        self._holding = asyncio.Event()
        send = AIOKafkaClient.send

        async def sending(client: AIOKafkaClient, node: int, request: Any, **options: Any) -> Any:
            if not isinstance(request, FetchRequest) or topic not in {name for name, _ in request.topics}:
                return await send(client, node, request, **options)
            if self._cut:
                raise KafkaConnectionError("the line is cut")
            answer = await send(client, node, request, **options)
            if self._cut:
                raise KafkaConnectionError("the line was cut")
            gate = self._gate
            if gate is not None:
                self._holding.set()
                await gate.wait()
            return answer

        patch.setattr(AIOKafkaClient, "send", sending)

    def cut(self) -> None:
        """From now on every fetch fails, also one that a broker is answering."""
        self._cut = True

    def mend(self) -> None:
        """Let everything pass again."""
        self._cut = False
        if self._gate is not None:
            self._gate.set()
            self._gate = None

    async def hold(self) -> None:
        """Keep answers back; returns once a broker has given one that lies there unread."""
        self._holding.clear()
        self._gate = asyncio.Event()
        async with asyncio.timeout(HOLD_MAX_S):
            await self._holding.wait()

    def let_one_pass(self) -> None:
        """Hand out the answer that lies there; those after it are still kept back."""
        gate, self._gate = self._gate, asyncio.Event()
        if gate is not None:
            gate.set()
