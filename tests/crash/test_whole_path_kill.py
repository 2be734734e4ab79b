"""kill -9 of receiver, assembler and sink at random moments under load, and a start after each: nothing is amiss."""

import dataclasses
from pathlib import Path

from deploy.local.kafka import LocalKafka
from deploy.local.product import ASSEMBLERS, COMMANDS, SINK
from tests.crash.chaos_faults import PROCESS_KILLS, Deck
from tests.crash.chaos_runs import QUICK_ASSEMBLE, WHOLE_PRODUCT, run
from tests.crash.chaos_traffic import Load
from tests.crash.quick_assembler import SESSION_S
from tests.traffic import problems

SEED = 20_261_123
FAULTS = 8
QUICK_SINK = (QUICK_ASSEMBLE[0], *COMMANDS[SINK][1:])
KILLS = dataclasses.replace(
    WHOLE_PRODUCT,
    commands={**COMMANDS, **dict.fromkeys(ASSEMBLERS, QUICK_ASSEMBLE), SINK: QUICK_SINK},
    deck=Deck(PROCESS_KILLS, gap_s=(0.3, 2.0), session_s=SESSION_S),
    load=Load(messages=4_000, rate=1_500, seed=1),
    partitions=4,
)


def test_killed_at_any_time_and_started_again_nothing_is_lost_wrong_or_repeated(
    kafka_node: LocalKafka, topic_prefix: str, tmp_path: Path
) -> None:
    """Whatever was answered is in the topics and the database, once, as the truth says, and the accounts balance."""
    books = run(KILLS, tmp_path, kafka_node, seed=SEED, faults=FAULTS, prefix=topic_prefix, say=print)

    assert problems(books.found) == {}
    assert books.ended == []
    assert books.unaccounted_most == 0
    assert books.looks > 0
    assert books.pending_at_end == 0
    assert books.found["rows"] == books.found["messages"]
