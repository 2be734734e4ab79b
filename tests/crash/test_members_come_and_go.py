"""A group whose members come, go, freeze and lose their disks, and whose brokers die: each revision once, and right."""

import dataclasses
from pathlib import Path

from deploy.local.kafka import LocalKafka
from deploy.local.product import ASSEMBLERS
from tests.crash.chaos_faults import BROKER, GUEST, Deck, Kind, Step
from tests.crash.chaos_runs import ONLY_ASSEMBLERS, run
from tests.crash.quick_assembler import SESSION_S
from tests.traffic import problems

SEED = 4
ONE, TWO = ASSEMBLERS
SOME_OF_ALL = (
    # The guest joins with the first of these, and the others find it there.
    (Step(Kind.TERMINATE, GUEST),),
    (Step(Kind.KILL, GUEST, (0.1, 0.5)),),
    (Step(Kind.TERMINATE, GUEST),),
    (Step(Kind.KILL, ONE, (0.1, 0.5)),),
    (Step(Kind.FREEZE, TWO),),
    (Step(Kind.LOSE_STATE, ONE, (0.1, 0.5)), Step(Kind.KILL, BROKER, (1.0, 2.0))),
    (Step(Kind.TERMINATE, TWO, (0.1, 0.5)),),
    (Step(Kind.DAMAGE_STATE, ONE, (0.1, 0.5)),),
)
FEW = dataclasses.replace(
    ONLY_ASSEMBLERS,
    deck=Deck(SOME_OF_ALL, gap_s=(0.2, 1.0), session_s=SESSION_S),
    load=dataclasses.replace(ONLY_ASSEMBLERS.load, rate=400),
    partitions=4,
)
FAULTS = 9


def test_a_group_that_changes_all_the_time_stays_exact(
    kafka_cluster: LocalKafka, topic_prefix: str, tmp_path: Path
) -> None:
    """Every revision of every message is what the reports give, once, and every process ends as it must."""
    books = run(FEW, tmp_path, kafka_cluster, seed=SEED, faults=FAULTS, prefix=topic_prefix, say=print)

    assert problems(books.found) == {}
    assert books.ended == []
    assert {"joins the group: an assembler", "SIGKILL: the broker"} <= books.faults.keys()
    assert books.found["by_reason"].keys() == {"complete", "timeout", "revised"}
    assert books.found["dead_letters"] > 0
    assert books.good()
