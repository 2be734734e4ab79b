"""The assembler with a real broker and a ledger in memory: what the engine promises, whatever the store."""


from tests.assembling import Bench, assert_exact, some_reports
from tests.fakes.ledgers import MemoryStore


async def test_results_equal_the_oracle(kafka_bootstrap: str, topic_prefix: str) -> None:
    """Segments in any order, repeats included, become one result per message, equal to what the contract says."""
    bench = Bench(kafka_bootstrap, topic_prefix)
    await bench.make_topics()
    reports = some_reports(300)
    await bench.publish(reports)
    store = MemoryStore()

    async with bench.assembling(lambda *_: store) as running:
        await bench.until_done(running)

    assert_exact(await bench.results(), reports)
