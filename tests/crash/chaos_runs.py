"""The two ways to run faults, against assemblers alone and the whole product: processes, topics, traffic, deck."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from deploy.local.kafka import LocalKafka
from deploy.local.product import COMMANDS, Product
from tests.assembling import Bench
from tests.crash.chaos import Chaos
from tests.crash.chaos_books import Books
from tests.crash.chaos_faults import EVERYTHING, GUEST, MEMBERS, OF_BROKERS, OF_MEMBERS, Deck, dealt
from tests.crash.chaos_traffic import Load, Pushes, Records, Traffic
from tests.crash.quick_assembler import SESSION_S

SETTLE_S: Final = 240.0
REPLICATION_MOST: Final = 3

ASSEMBLE: Final = ("consumers", "assemble")
QUICK_ASSEMBLE: Final = ("tests.crash.quick_assembler", "assemble")

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is run, and how it is set.

    Attributes:
        commands: the processes.
        traffic: makes what comes in.
        deck: of faults.
        load: how much comes in; its seed is multiplied with that of the run.
        partitions: of the topics.
        timeout_s: of reassembly: so short that reports come after it, and deadlines fire while faults go on.
        commit_interval_ms: of the assemblers.
    """

    commands: Mapping[str, tuple[str, ...]]
    traffic: Callable[[Product, Bench, Load], Traffic]
    deck: Deck
    load: Load
    partitions: int
    timeout_s: int
    commit_interval_ms: int


ONLY_ASSEMBLERS: Final = Setting(
    commands=dict.fromkeys(MEMBERS, QUICK_ASSEMBLE),
    traffic=Records,
    deck=Deck((*OF_MEMBERS, *OF_BROKERS), gap_s=(0.2, 2.0), session_s=SESSION_S),
    load=Load(messages=0, rate=500, seed=1),
    partitions=6,
    timeout_s=3,
    commit_interval_ms=20,
)
WHOLE_PRODUCT: Final = Setting(
    commands={**COMMANDS, GUEST: ASSEMBLE},
    traffic=Pushes,
    deck=EVERYTHING,
    load=Load(messages=10_000, rate=800, seed=1_000),
    partitions=12,
    timeout_s=6,
    commit_interval_ms=200,
)
SETTINGS: Final = {"assemblers": ONLY_ASSEMBLERS, "product": WHOLE_PRODUCT}


def run(
    setting: Setting, folder: Path, kafka: LocalKafka, *, seed: int, faults: int, prefix: str = "chaos.", say: Say
) -> Books:
    """Start everything but Kafka, deal the faults, and end everything.

    Args:
        setting: what is run.
        folder: of its data and logs; stays.
        kafka: running.
        seed: of the faults, and of the traffic.
        faults: how many.
        prefix: of all topics and groups.
        say: is told what is done.

    Raises:
        RuntimeError: load or comparison could not be done.
        LocalServiceError: something did not come up, or did not come back.
    """
    bench = _bench(setting, kafka, prefix)
    product = Product(
        folder, kafka.bootstrap, commands=setting.commands, guests=[GUEST], settings=_environment(bench, prefix)
    )
    load = Load(messages=setting.load.messages, rate=setting.load.rate, seed=setting.load.seed * seed)
    chaos = Chaos(product, setting.traffic(product, bench, load), broker=kafka, seed=seed, say=say)
    try:
        product.start()
        return chaos.run(dealt(seed, faults, setting.deck), settle_s=SETTLE_S)
    finally:
        product.stop()


def _bench(setting: Setting, kafka: LocalKafka, prefix: str) -> Bench:
    replication = min(len(kafka.nodes), REPLICATION_MOST)
    settings: dict[str, Any] = {
        "topic_replication": replication,
        "topic_min_insync": replication // 2 + 1,
        "reassembly_timeout_s": setting.timeout_s,
        "commit_interval_ms": setting.commit_interval_ms,
    }
    return Bench(kafka.bootstrap, prefix, partitions=setting.partitions, **settings)


def _environment(bench: Bench, prefix: str) -> dict[str, str]:
    """What the processes are told, so that they meet on the topics of that bench."""
    settings = bench.settings
    shared = settings.model_dump(mode="json", include=settings.model_fields_set - {"admin_port", "state_dir"})
    more = {"DLR_SINK_GROUP_ID": f"{prefix}sink", "DLR_SPOOL_ALLOW_VOLATILE": "true", "DLR_LOG_FORMAT": "json"}
    return {f"DLR_{name.upper()}": str(value) for name, value in shared.items()} | more
