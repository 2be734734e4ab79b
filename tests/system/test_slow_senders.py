"""Slow and greedy senders beside honest ones, in small: the measuring program `tests.bench.slow_senders`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local.product import COMMANDS, RECEIVER, Product
from tests.bench.slow_senders import NOBODY, Plan, limited, measure

CONNECTIONS = 200
P99_MAX_MS = 3000
"""Waiting for the slow ones to be closed would take ten seconds; a busy machine takes a second by itself."""


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Product]:
    """A receiver that takes fewer connections than the slow senders alone open."""
    settings = {"DLR_CONNECTIONS_MAX": str(CONNECTIONS * 3 // 4), "DLR_SPOOL_ALLOW_VOLATILE": "true"}
    product = Product(tmp_path / "product", NOBODY, commands={RECEIVER: COMMANDS[RECEIVER]}, settings=settings)
    product.launch(RECEIVER)
    product.await_ready(RECEIVER)
    yield product
    product.stop()


async def test_slow_senders_that_take_every_connection_hold_no_honest_one_up(receiver: Product) -> None:
    """Each push is answered 200, over new connections and kept ones, and the slow senders go for them."""
    plan = Plan(connections=CONNECTIONS, rounds=1, round_s=2, rate=50, kinds=("patient",), settle_s=1)

    alone, beside = await measure(receiver, int(receiver.url.rpartition(":")[2]), plan, say=lambda _: None)

    assert alone["failures"] == beside["failures"] == []
    assert beside["pushes"] == 100
    assert beside["p99_ms"] < P99_MAX_MS, beside
    assert limited(receiver)["connections"] > 0
