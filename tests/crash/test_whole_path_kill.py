"""kill -9 of receiver, assembler and sink at random moments under load, and a start after each: nothing is amiss."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local.product import Product
from tests.crash.chaos import Chaos, Load
from tests.crash.chaos_faults import PROCESS_KILLS, dealt
from tests.traffic import problems

SEED = 20_261_123
FAULTS = 8
LOAD = Load(messages=4_000, rate=1_500, seed=SEED)
TIMEOUT_S = 10
SETTLE_S = 60.0


@pytest.fixture
def product(kafka_bootstrap: str, topic_prefix: str, tmp_path: Path) -> Iterator[Product]:
    """All processes, on topics and groups of this test's own."""
    settings = {
        "DLR_REPORTS_TOPIC": f"{topic_prefix}reports",
        "DLR_RESULTS_TOPIC": f"{topic_prefix}results",
        "DLR_DEAD_LETTERS_TOPIC": f"{topic_prefix}dead",
        "DLR_GROUP_ID": f"{topic_prefix}assembler",
        "DLR_SINK_GROUP_ID": f"{topic_prefix}sink",
        "DLR_TOPIC_PARTITIONS": "4",
        "DLR_REASSEMBLY_TIMEOUT_S": str(TIMEOUT_S),
        "DLR_SPOOL_ALLOW_VOLATILE": "true",
    }
    running = Product(tmp_path / "product", kafka_bootstrap, settings=settings)
    try:
        running.start()
        yield running
    finally:
        running.stop()


def test_killed_at_any_time_and_started_again_nothing_is_lost_wrong_or_repeated(product: Product) -> None:
    """Whatever was answered is in the topics and the database, once, as the truth says, and the accounts balance."""
    books = Chaos(product, LOAD).run(dealt(SEED, FAULTS, PROCESS_KILLS), settle_s=SETTLE_S)

    assert problems(books.found) == {}
    assert books.ended == []
    assert books.unaccounted_most == 0
    assert books.looks > 0
    assert books.pending_at_end == 0
    assert all(sent["pushed"] == sent["planned"] for sent in books.sent)
