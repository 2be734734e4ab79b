"""The measuring programs in small: what they check of the assembler as a process, and that they would notice."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from deploy.local.kafka import LocalKafka
from ingest.runtime.partitioner import partition_of
from tests.assembling import until
from tests.bench.group import Group
from tests.bench.hot_kinds import KINDS
from tests.bench.planned import Sent, any_of, blocks
from tests.bench.publishing import Publisher, published
from tests.bench.watching import Steady, Watch
from tests.bench.window_stages import ASSEMBLER, Books, assemble, restart
from tests.bench.window_truth import judge

MESSAGES = 100_000
WINDOW_S = "600"
GROWTH_MIB_MAX = 40
"""For three quarters of the messages: their states in memory would be about two hundred."""

HOT_REPORTS = 150_000


@pytest.fixture
def group(kafka_node: LocalKafka, topic_prefix: str, tmp_path: Path) -> Iterator[Group]:
    """One assembler, not started, on topics of this test."""
    settings = {"DLR_LATE_WINDOW_S": WINDOW_S, "DLR_REASSEMBLY_TIMEOUT_S": WINDOW_S}
    group = Group(kafka_node, tmp_path, [ASSEMBLER], partitions=2, settings=settings, prefix=topic_prefix)
    yield group
    group.product.stop()


def test_memory_stays_while_messages_grow_and_outlives_the_loss_of_local_state(group: Group) -> None:
    """Each message has one right result, memory does not grow with them, and a restored one knows them all."""
    sent = Sent()
    asyncio.run(published(group.options, group.reports, group.partitions, blocks(MESSAGES, sent, seed=1)))
    books = Books(MESSAGES, sent)

    points = assemble(group, books, points=4, say=lambda _: None)
    known = any_of(MESSAGES, 5_000, np.random.default_rng(1))
    restored = restart(group, books, known, lose_state=True)
    truth = judge(group, books)
    books.probes.append(max(books.probes) + 1)
    noticed = judge(group, books)

    assert points[-1]["anonymous_mib"] - points[0]["anonymous_mib"] < GROWTH_MIB_MAX, points
    assert restored["restored_entries"] >= MESSAGES
    assert truth == {"messages": MESSAGES + 2, "results": MESSAGES + 2, "findings": {}}
    assert noticed["findings"] == {"lost": 1, "wrong": 1}


async def test_a_message_repeated_without_end_does_not_starve_other_partitions(group: Group) -> None:
    """While one partition works off a flood, results of the other one come long before it is through."""
    kind = KINDS[0]
    hot = partition_of(kind.message_id.encode(), group.partitions)
    group.product.launch(ASSEMBLER)
    await asyncio.to_thread(group.product.await_ready, ASSEMBLER)
    async with (
        Watch(group.options, group.results, group.partitions) as watch,
        Steady(group.options, group.reports, group.partitions, rate=100, first_number=0) as steady,
    ):
        began_s = time.monotonic()
        async with Publisher(group.options, group.reports, group.partitions) as publisher:
            await publisher.write(hot, kind.records(HOT_REPORTS))
        flooded_s = time.monotonic()

        async def through() -> bool:
            return bool(steady.deliveries(watch, flooded_s, time.monotonic())[hot])

        await until(through)
        through_s = time.monotonic()
        await steady.stop()

        async def answered() -> bool:
            return steady.missing(watch, time.monotonic()) == 0

        await until(answered)
        during = steady.deliveries(watch, began_s, flooded_s)

    waited = {partition: max(one.delay_s for one in some) for partition, some in during.items()}
    assert waited[1 - hot] < (through_s - began_s) / 2, (waited, through_s - began_s)
    assert watch.again == []
    assert kind.findings(group.data_folder, group.results, hot, HOT_REPORTS) == []
