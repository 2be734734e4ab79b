"""The publisher: places, order, repetition, and the search for the one record that is refused."""

import asyncio
from collections import Counter

import msgspec
import pytest

from ingest.forward.link import NoPartitionError, RefusedError
from ingest.forward.publisher import DOUBTS_MAX, STALL_S, Publisher
from ingest.forward.record import Record
from ingest.runtime.partitioner import partition_of
from tests.fakes.forward import MemoryLink, PromptClock, unclear


def record(number: int, key: str | None = "same") -> Record:
    """A record that shows its number."""
    return Record(None if key is None else key.encode(), b"value-%d" % number, [("n", b"%d" % number)], 1000 + number)


def records(count: int) -> list[Record]:
    """Records with different keys."""
    return [record(number, key=f"message-{number}") for number in range(count)]


async def test_a_key_decides_the_partition_as_in_the_java_client() -> None:
    """Every record stands in the partition that the Java client would choose for its key."""
    link = MemoryLink(reports=12)
    publisher = Publisher(link, PromptClock())

    refused = await publisher.publish("reports", records(200))

    assert refused == []
    assert sum(map(len, link.written.values())) == 200
    for (_, partition), held in link.written.items():
        assert {partition_of(each.key or b"", 12) for each in held} == {partition}


async def test_records_without_a_key_go_round() -> None:
    """No partition gets all of the records that have no key."""
    link = MemoryLink(letters=3)

    await Publisher(link, PromptClock()).publish("letters", [record(number, key=None) for number in range(9)])

    assert [len(link.written["letters", partition]) for partition in range(3)] == [3, 3, 3]


async def test_records_of_a_partition_keep_their_order_through_failures() -> None:
    """An unclear batch is sent again whole, before anything that came after it."""
    link = MemoryLink(reports=1)
    link.batch_records = 7
    link.troubles.extend([unclear(), unclear()])
    publisher = Publisher(link, PromptClock())

    await asyncio.gather(*(publisher.publish("reports", [record(number)]) for number in range(50)))

    assert link.values("reports") == [b"value-%d" % number for number in range(50)]


async def test_nothing_is_confirmed_before_the_brokers_have_it() -> None:
    """`publish` returns only once its last record is confirmed."""
    link = MemoryLink(reports=4)
    link.gate.clear()
    publishing = asyncio.create_task(Publisher(link, PromptClock()).publish("reports", records(20)))
    await link.arrived.wait()

    assert not publishing.done()
    link.gate.set()
    assert await publishing == []
    assert len(link.values("reports")) == 20


async def test_waiting_gathers_one_batch() -> None:
    """What comes in while a batch is under way goes together in the next one."""
    link = MemoryLink(reports=1)
    link.gate.clear()
    publisher = Publisher(link, PromptClock())
    publishing = [asyncio.create_task(publisher.publish("reports", [record(0)]))]
    await link.arrived.wait()
    publishing += [asyncio.create_task(publisher.publish("reports", [record(number)])) for number in range(1, 30)]
    await asyncio.sleep(0)
    link.gate.set()
    await asyncio.gather(*publishing)

    assert link.batches == [1, 29]


async def test_one_partition_that_fails_does_not_hold_up_the_others() -> None:
    """Other lanes go on while one waits."""
    link = MemoryLink(sick=1, well=1)
    link.gate.clear()
    publisher = Publisher(link, PromptClock())
    waiting = asyncio.create_task(publisher.publish("sick", [record(1)]))
    await link.arrived.wait()
    going = asyncio.create_task(publisher.publish("well", [record(2)]))
    link.troubles.append(unclear())
    link.gate.set()

    await going
    await waiting
    assert link.values("sick") == [b"value-1"]


@pytest.mark.parametrize("poisoned", [{0}, {99}, {41}, {41, 42}, {0, 50, 99}, set(range(100))])
async def test_refused_records_are_found_one_by_one(poisoned: set[int]) -> None:
    """Exactly the records that the brokers refuse are handed back; all others are written once, in order."""
    link = MemoryLink(reports=1)
    link.refuses = lambda _, each: int(each.headers[0][1]) in poisoned
    everything = [record(number) for number in range(100)]

    refused = await Publisher(link, PromptClock()).publish("reports", everything)

    assert [each.record for each in refused] == [everything[number] for number in sorted(poisoned)]
    assert {each.why for each in refused} <= {"MessageSizeTooLargeError"}
    assert link.values("reports") == [b"value-%d" % number for number in range(100) if number not in poisoned]


async def test_finding_one_record_takes_few_batches() -> None:
    """The search halves: it does not send every record alone."""
    link = MemoryLink(reports=1)
    link.refuses = lambda _, each: each.value == b"value-700"

    await Publisher(link, PromptClock()).publish("reports", [record(number) for number in range(1000)])

    assert len(link.batches) <= 2 * 10 + 2


async def test_an_impossible_timestamp_becomes_now() -> None:
    """Only the record whose timestamp is refused is stamped anew; nothing else of it changes."""
    link = MemoryLink(reports=1)
    link.impossible = lambda each: each.timestamp_ms == 1003
    clock = PromptClock()

    refused = await Publisher(link, clock).publish("reports", [record(number) for number in range(6)])

    assert refused == []
    expected = [record(number) for number in range(6)]
    expected[3] = msgspec.structs.replace(expected[3], timestamp_ms=clock.wall_ms())
    assert link.written["reports", 0] == expected


async def test_a_timestamp_that_is_refused_even_now_is_handed_back() -> None:
    """Stamping anew is tried once."""
    link = MemoryLink(reports=1)
    link.impossible = lambda _: True
    original = record(5)

    refused = await Publisher(link, PromptClock()).publish("reports", [original])

    assert [each.record for each in refused] == [original]


async def test_a_doubtful_answer_is_tried_again_before_it_counts() -> None:
    """An error that does not name its cause is waited out, and only after some tries blamed on a record."""
    link = MemoryLink(reports=1)
    link.troubles.extend(RefusedError("UnknownError", taken=3, doubtful=True) for _ in range(DOUBTS_MAX))

    refused = await Publisher(link, PromptClock()).publish("reports", [record(number) for number in range(3)])

    assert refused == []
    assert link.values("reports") == [b"value-0", b"value-1", b"value-2"]
    assert link.batches == [3] * (DOUBTS_MAX + 1)


async def test_records_of_a_partition_that_went_away_find_another() -> None:
    """A topic that was made anew with fewer partitions gets every record all the same."""
    link = MemoryLink(reports=8)
    publisher = Publisher(link, PromptClock())
    link.gate.clear()
    publishing = asyncio.create_task(publisher.publish("reports", records(40)))
    await link.arrived.wait()
    link.topics["reports"] = 2
    link.troubles.extend(NoPartitionError("gone") for _ in range(8))
    link.gate.set()

    await publishing

    assert Counter(link.values("reports")) == Counter(each.value for each in records(40))
    assert {partition for (_, partition), held in link.written.items() if held} == {0, 1}


async def test_a_topic_that_grows_is_used_as_it_is_then() -> None:
    """More partitions than before are an operator's error, but no reason to stop."""
    link = MemoryLink(reports=2)
    publisher = Publisher(link, PromptClock())
    await publisher.publish("reports", records(10))
    link.make("reports", 8)

    await publisher.publish("reports", records(100)[10:])

    assert len(link.values("reports")) == 100
    assert max(partition for (_, partition), held in link.written.items() if held) > 1


async def test_a_missing_topic_is_waited_for() -> None:
    """Records wait until their topic is made."""
    link = MemoryLink()
    publishing = asyncio.create_task(Publisher(link, PromptClock()).publish("reports", records(3)))
    await asyncio.sleep(0)
    assert not link.batches
    link.make("reports", 1)

    assert await publishing == []


async def test_not_available_while_a_confirmation_is_overdue() -> None:
    """A lane that has waited too long makes the publisher unavailable until it is confirmed."""
    link, clock = MemoryLink(reports=1), PromptClock()
    publisher = Publisher(link, clock)
    link.gate.clear()
    publishing = asyncio.create_task(publisher.publish("reports", [record(1)]))
    await link.arrived.wait()
    assert publisher.available()

    clock.now_s += STALL_S + 1
    assert not publisher.available()

    link.gate.set()
    await publishing
    assert publisher.available()


async def test_closing_ends_every_wait() -> None:
    """After `close` nobody waits for ever, and the link is closed."""
    link = MemoryLink(reports=4)
    link.gate.clear()
    publisher = Publisher(link, PromptClock())
    publishing = asyncio.create_task(publisher.publish("reports", records(20)))
    await link.arrived.wait()

    await publisher.close()

    with pytest.raises(asyncio.CancelledError):
        await publishing
    assert link.closed


async def test_a_fault_in_sending_reaches_whoever_waits() -> None:
    """An error that nobody expected is not swallowed by a lane."""
    link = MemoryLink(reports=1)
    link.troubles.append(ZeroDivisionError())

    with pytest.raises(ZeroDivisionError):
        await Publisher(link, PromptClock()).publish("reports", [record(1)])
