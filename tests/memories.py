"""What an assembler remembers, looked at from outside: its state folders, and what a changelog alone brings back."""

import asyncio
import contextlib
from collections.abc import Container, Sequence
from pathlib import Path
from typing import NamedTuple

from aiokafka import AIOKafkaProducer

from consumers.commands.assemble import MakeStore
from consumers.engine.assignment import restore
from consumers.engine.cycle import Rules, digest_of
from consumers.engine.kafka import ChangelogReader
from consumers.engine.protocols import Ledger
from consumers.entry import Cursor, LedgerDamagedError, Position
from consumers.ledger.partition import Sizes
from consumers.ledger.store import Identity, Store
from consumers.settings import AssembleSettings
from ingest.runtime.clock import SystemClock
from ingest.runtime.files import FileSystem, RealFileSystem
from tests.assembling import Bench

SMALL = Sizes(generation_ms=500, preallocate_bytes=4096, seal_entries=32)
"""So small that some hundreds of messages make several files of every kind."""

FAR_FUTURE_MS = 2**47
MANY = 1_000_000


class Memory(NamedTuple):
    """What the ledger of one partition says.

    Attributes:
        position: of its last cycle.
        next_changelog_offset: where it reads on.
        waiting: how many messages wait.
        due: digest and payload of all that wait, in the order of their deadlines.
        payloads: of the messages that were asked for.
    """

    position: Position | None
    next_changelog_offset: int
    waiting: int
    due: list[tuple[bytes, bytes]]
    payloads: list[bytes | None]


def small_ledgers(
    settings: AssembleSettings, *, fs: FileSystem | None = None, sizes: Sizes = SMALL, lock_wait_s: float = 0.2
) -> MakeStore:
    """Makes stores as the product does, of small files, on a file system that a test may break."""

    def make(partitions: int, cluster: str) -> Store:
        identity = Identity(
            group=settings.group_id, topic=settings.reports_topic, partitions=partitions, cluster=cluster
        )
        return Store(settings.state_dir, fs or RealFileSystem(), identity, sizes, lock_wait_s=lock_wait_s)

    return make


def folder_of(bench: Bench, partition: int) -> Path:
    """Where the state of a partition is, unless somebody else holds that folder."""
    return bench.settings.state_dir / bench.settings.group_id / bench.settings.reports_topic / str(partition)


async def settle(bench: Bench) -> None:
    """End the transactions that a killed assembler has left open, as its successor does."""
    for partition in range(bench.partitions):
        producer = AIOKafkaProducer(**bench.options, transactional_id=bench.transactional_id(partition))
        await producer.start()
        await producer.stop()


async def memory(
    bench: Bench,
    root: Path,
    partition: int,
    message_ids: Sequence[str],
    *,
    restored: bool = True,
    damaged: bool = False,
) -> Memory:
    """What a state folder holds, once it was brought to the end of the changelog, or as it is. Nobody may hold it.

    Args:
        bench: whose changelog it is.
        root: the state folder; an empty one is filled by the changelog alone.
        partition: of the reports.
        message_ids: to look up.
        restored: whether to read the changelog.
        damaged: there may be damage that nobody came upon; where this is the first look at it, it is mended as the
            owner of a partition mends it. More is looked at here than an owner does before it is asked for it.
    """
    settings = bench.settings.model_copy(update={"state_dir": root})
    store = small_ledgers(settings)(bench.partitions, "")

    async def brought_up(ledger: Ledger) -> None:
        async with ChangelogReader(bench.options, bench.changelog, partition) as reader:
            rules = _rules_of(settings, partition, bench.partitions)
            await restore(ledger, reader, rules, now_ms=SystemClock().wall_ms(), accept_loss=False)

    with contextlib.closing(store):
        ledger = await asyncio.to_thread(store.open, partition)
        with contextlib.closing(ledger):
            if restored:
                await brought_up(ledger)
            try:
                return _said_by(ledger, message_ids)
            except LedgerDamagedError:
                if not damaged:
                    raise
                ledger.discard()
                await brought_up(ledger)
                return _said_by(ledger, message_ids)


def _said_by(ledger: Ledger, message_ids: Sequence[str]) -> Memory:
    return Memory(
        ledger.position,
        ledger.next_changelog_offset(),
        ledger.waiting(),
        ledger.due(Cursor(), FAR_FUTURE_MS, MANY).messages,
        ledger.lookup([digest_of(name.encode()) for name in message_ids]),
    )


def _rules_of(settings: AssembleSettings, partition: int, partitions: int) -> Rules:
    return Rules(
        reports_topic=settings.reports_topic,
        partition=partition,
        partitions=partitions,
        timeout_ms=settings.reassembly_timeout_s * 1000,
        late_window_ms=settings.late_window_s * 1000,
    )


async def assert_same_memory(
    bench: Bench, alone: Path, message_ids: Sequence[str], *, damaged: Container[int] = ()
) -> None:
    """The state folder of a bench, once restored, says entry by entry what the changelog alone says.

    Args:
        bench: stopped.
        alone: an empty folder.
        message_ids: all that were ever heard of, and some that were not.
        damaged: partitions whose folder may hold damage that nobody came upon: it is noticed, never believed.
    """
    for partition in range(bench.partitions):
        state = bench.settings.state_dir
        ours = await memory(bench, state, partition, message_ids, damaged=partition in damaged)
        assert ours == await memory(bench, alone, partition, message_ids), f"partition {partition}"
