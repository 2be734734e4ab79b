"""The whole product on topics of one test's own."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from deploy.local.product import Product

MakeProduct = Callable[..., Product]


@pytest.fixture
def make_product(kafka_bootstrap: str, topic_prefix: str, tmp_path: Path) -> Iterator[MakeProduct]:
    """Describe a product on the shared broker, with further settings; whatever of it was started is ended."""
    with ExitStack() as stack:

        def make(*, bootstrap: str = kafka_bootstrap, **settings: str) -> Product:
            own = {
                "DLR_REPORTS_TOPIC": f"{topic_prefix}reports",
                "DLR_RESULTS_TOPIC": f"{topic_prefix}results",
                "DLR_DEAD_LETTERS_TOPIC": f"{topic_prefix}dead",
                "DLR_GROUP_ID": f"{topic_prefix}assembler",
                "DLR_SINK_GROUP_ID": f"{topic_prefix}sink",
                "DLR_TOPIC_PARTITIONS": "4",
                "DLR_SPOOL_ALLOW_VOLATILE": "true",
            }
            product = Product(tmp_path / "product", bootstrap, settings={**own, **settings})
            stack.callback(product.stop)
            return product

        yield make
