"""What comes after a result, and again after that: revisions, through restarts, and after the message was forgotten."""

import itertools
import random
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from consumers.commands.ledgers import local_ledgers
from tests.assembling import Bench, a_report, assert_exact, written
from tests.oracle import TIMEOUT, Raw, all_results
from tests.stepping import HOUR_S, Wall, let_stamps_be_ahead

DISKS = pytest.mark.parametrize("lose_disk", [False, True], ids=["state-kept", "state-lost"])

Scenario = Sequence[Mapping[str, Any]]
"""What sets the reports of one message apart from `a_report`, one after the other."""

EARLIER, LATER = "2026-11-23T09:00:00Z", "2026-11-23T11:00:00Z"

SCENARIOS: Mapping[str, Scenario] = {
    "upgrades": [{"status": "ACCEPTD"}, {"status": "UNKNOWN"}, {"status": "EXPIRED", "updateTime": None}, {}],
    "by-time": [
        {"status": "DELIVRD", "updateTime": EARLIER},
        {"status": "UNDELIV", "updateTime": LATER},
        {"status": "DELIVRD", "updateTime": LATER},
        {"status": "UNKNOWN", "updateTime": "2027-01-01T00:00:00Z"},
    ],
    "ties": [{"source": "1"}, {"source": "2"}, {"orgCode": "000"}, {"extend": "a"}],
    "same-but-for-to": [{"to": "+1"}, {"to": "+2"}, {"to": None}, {"to": "+2"}],
    "repeats": [{}, {}, {"total": "01", "sequence": "1"}, {"updateTime": "2026-11-23T10%3A00%3A01Z"}],
    "long": [
        {"total": 3, "sequence": 1},
        {"total": 3, "sequence": 2, "status": "ACCEPTD"},
        {"total": 3, "sequence": 2},
        {"total": 3, "sequence": 3, "status": "UNDELIV"},
    ],
    "conflict": [{"total": 1}, {"total": 3}, {"total": 2, "sequence": 2}, {"total": 3, "sequence": 3}],
    "least-total": [{"total": 2}, {"total": 2, "sequence": 2}, {"total": 1}, {"total": None}],
    "absent-totals": [
        {"total": None},
        {"total": None, "sequence": 2},
        {"total": "", "sequence": 3},
        {"total": None, "sequence": None, "status": "UNDELIV", "updateTime": LATER},
    ],
    "single-after-multi": [
        {"total": 2, "sequence": 1},
        {"total": 2, "sequence": 2},
        {"total": None, "sequence": None, "status": "EXPIRED"},
        {"total": 1, "sequence": 1, "status": "REJECTD", "updateTime": LATER},
    ],
    "unusable-between": [{}, {"sequence": 2, "total": 1}, {"status": None}, {"status": "UNDELIV", "updateTime": LATER}],
}


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Wall:
    """The wall clock of this process, to be stepped."""
    return Wall(monkeypatch)


async def a_bench(bootstrap: str, prefix: str, state_dir: Path, **settings: Any) -> Bench:
    """A bench whose topics are made, with a timeout and a late window of an hour."""
    chosen: dict[str, Any] = {"reassembly_timeout_s": HOUR_S, "late_window_s": HOUR_S, "state_dir": state_dir}
    bench = Bench(bootstrap, prefix, **(chosen | settings))
    await bench.make_topics()
    await let_stamps_be_ahead(bench)
    return bench


async def worked_off(bench: Bench, reports: Iterable[Raw], **more: Any) -> None:
    """Publish, and have an assembler of its own apply it: it starts and ends here."""
    await bench.publish(reports, **more)
    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.until_done(running)


def in_every_order() -> Iterator[list[Raw]]:
    """The reports of every scenario in every order, each order a message of its own."""
    for name, scenario in SCENARIOS.items():
        for number, order in enumerate(itertools.permutations(scenario)):
            yield [a_report(f"{name}-{number}") | dict(report) for report in order]


def wrong(
    revisions: Mapping[str, list[bytes]],
    heard: Mapping[str, list[tuple[Raw, int] | None]],
    with_timeout: Callable[[list[Any]], list[Any]] = list,
) -> dict[str, Any]:
    """What differs from the oracle, by message: what there is and what should be."""
    expected = {name: written(all_results(with_timeout(records))) for name, records in heard.items()}
    return {
        name: (revisions.get(name, []), those) for name, those in expected.items() if revisions.get(name, []) != those
    }


@DISKS
async def test_revisions_follow_the_contract_through_restarts(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path, wall: Wall, *, lose_disk: bool
) -> None:
    """In every order, an assembler anew for every report, each result is the contract's, byte for byte."""
    bench = await a_bench(kafka_bootstrap, topic_prefix, tmp_path / "state")
    messages = list(in_every_order())

    for reports in itertools.zip_longest(*messages):
        await worked_off(bench, [report for report in reports if report is not None])
        if lose_disk:
            shutil.rmtree(tmp_path / "state")
    wall.step(HOUR_S + 1)
    heard = await bench.heard()
    expected = {name: written(all_results([*records, TIMEOUT])) for name, records in heard.items()}
    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.until_results(sum(map(len, expected.values())), running)

    assert wrong(await bench.revisions(), heard, lambda records: [*records, TIMEOUT]) == {}
    assert_exact(await bench.results(), [report for reports in messages for report in reports])


async def test_the_last_result_is_the_same_in_every_order(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path, wall: Wall
) -> None:
    """All at once or one by one, in whatever order: but for revision, reason and times nothing depends on it."""
    bench = await a_bench(kafka_bootstrap, topic_prefix, tmp_path)
    await bench.publish(report for reports in in_every_order() for report in reports)

    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.until_done(running)
        wall.step(HOUR_S + 1)
        heard = await bench.heard()
        expected = {name: written(all_results([*records, TIMEOUT])) for name, records in heard.items()}
        await bench.until_results(sum(map(len, expected.values())), running)

    assert wrong(await bench.revisions(), heard, lambda records: [*records, TIMEOUT]) == {}
    last: dict[str, set[str]] = {}
    for result in await bench.results():
        message_id = result.pop("smsMsgId")
        for name in ("revision", "reason", "firstReceivedAt", "lastReceivedAt"):
            result.pop(name)
        last[message_id] = {repr(result)}
    for name in SCENARIOS:
        orders = [said for message_id, said in last.items() if message_id.startswith(f"{name}-")]
        assert len(set.union(*orders)) == 1, name


@DISKS
async def test_a_message_begins_anew_after_its_late_window(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path, wall: Wall, *, lose_disk: bool
) -> None:
    """Remembered for the window after its last result, a revision included, and then not known at all: revision 1."""
    bench = await a_bench(kafka_bootstrap, topic_prefix, tmp_path / "state", partitions=1)
    first, late = a_report("m", status="UNDELIV"), a_report("m", status="DELIVRD", updateTime=LATER)
    other = a_report("timed-out", 1, 2)

    async def later(seconds: float, *reports: Raw) -> None:
        wall.step(seconds)
        if lose_disk:
            shutil.rmtree(tmp_path / "state")
        await worked_off(bench, reports)

    await worked_off(bench, [first, other], timestamp_ms=wall.now_ms() - 5000)
    await later(HOUR_S - 300, first, late)
    async with bench.assembling(local_ledgers(bench.settings)) as running:
        wall.step(400)
        await bench.until_results(3, running)
    await later(HOUR_S - 600, first, late, other)  # past the window after the first result, within that after the last
    remembered = await bench.revisions()
    await later(1200, first, a_report("timed-out", 2, 2))
    await later(1, late, other, late)

    heard, revisions = await bench.heard(), await bench.revisions()
    lives = [heard["m"][:5], heard["m"][5:]]
    assert revisions["m"] == [result for life in lives for result in written(all_results(life))]
    assert [len(all_results(life)) for life in lives] == [2, 2]
    assert remembered["m"] == written(all_results(lives[0]))
    others = heard["timed-out"]
    assert remembered["timed-out"] == written(all_results([others[0], TIMEOUT, others[1]]))
    assert revisions["timed-out"][1:] == written(all_results(others[2:]))


async def test_a_message_that_waits_is_not_forgotten(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path, wall: Wall
) -> None:
    """The late window counts from a result: without one a message keeps what it has heard up to its timeout."""
    bench = await a_bench(
        kafka_bootstrap, topic_prefix, tmp_path, partitions=1, reassembly_timeout_s=12 * HOUR_S, late_window_s=60
    )
    reports = [a_report("waits", sequence, 3) for sequence in (1, 2, 3)]

    await worked_off(bench, reports[:1])
    for number in range(4):  # each in a file of its own, all but the last of which could be dropped by the window
        wall.step(2.5 * HOUR_S)
        await worked_off(bench, [a_report(f"other{number}"), *(reports[1:2] if number == 1 else [])])
    await worked_off(bench, reports[2:])

    assert (await bench.revisions())["waits"] == written(all_results((await bench.heard())["waits"]))
    assert_exact(await bench.results(), [*reports, *(a_report(f"other{number}") for number in range(4))])


async def test_whatever_comes_each_revision_is_the_contracts(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path, wall: Wall
) -> None:
    """Hundreds of messages of all kinds in rounds, with restarts, lost disks and timeouts in between."""
    chance = random.Random(SEED)
    bench = await a_bench(kafka_bootstrap, topic_prefix, tmp_path / "state", late_window_s=24 * HOUR_S)
    expired_after: list[dict[str, int]] = []
    reports: list[Raw] = []

    for _ in range(ROUNDS):
        these = [any_report(chance) for _ in range(REPORTS)]
        reports += these
        await bench.publish(these)
        async with bench.assembling(local_ledgers(bench.settings)) as running:
            await bench.until_done(running)
            if chance.random() < EXPIRY_SHARE:
                expired_after.append({name: len(those) for name, those in (await bench.heard()).items()})
                wall.step(HOUR_S + 1)
                expected = with_timeouts(await bench.heard(), expired_after)
                await bench.until_results(sum(len(all_results(those)) for those in expected.values()), running)
        if chance.random() < LOSS_SHARE:
            shutil.rmtree(tmp_path / "state")

    expected = with_timeouts(await bench.heard(), expired_after)
    assert wrong(await bench.revisions(), expected) == {}
    assert expired_after


SEED = 1
ROUNDS = 8
REPORTS = 250
MESSAGES = 300
EXPIRY_SHARE = 0.4
LOSS_SHARE = 0.4


def any_report(chance: random.Random) -> Raw:
    """A report of one of some hundred messages: mostly sensible, sometimes at odds with the others, or unusable."""
    number = chance.randrange(MESSAGES)
    usual = 1 + number % 4
    total = chance.choices([usual, None, chance.randint(1, 5)], [8, 1, 1])[0]
    sequence = chance.choices([chance.randint(1, total or usual), None], [9, 1])[0]
    if chance.random() < 0.03:
        return a_report(f"message-{number:03}", status=chance.choice(["", "x" * 65, "\x01"]))
    moment = chance.choices([f"2026-11-23T1{chance.randrange(4)}:00:00Z", "2026-11-23T12%3A00%3a00Z", None], [8, 1, 1])
    return a_report(f"message-{number:03}") | {
        "sequence": sequence,
        "total": chance.choice([total, str(total) if total else "", f"{total:02}" if total else None]),
        "status": chance.choices(["DELIVRD", "UNDELIV", "UNKNOWN", "ACCEPTD", "CL26:-36"], [10, 2, 2, 3, 1])[0],
        "updateTime": moment[0],
        "source": chance.choice([None, "1", 2]),
        "orgCode": chance.choice([None, "000"]),
        "to": chance.choice([None, "+8613500000000", "+8613500000001"]),
        "extend": chance.choice([None, "né", '"'] if number % 5 == 0 else [None]),
    }


def with_timeouts(
    heard: Mapping[str, list[tuple[Raw, int] | None]], expired_after: Iterable[Mapping[str, int]]
) -> dict[str, list[tuple[Raw, int] | None]]:
    """The records of every message with a timeout behind so many of them, each time that time stepped."""
    records = {name: list(those) for name, those in heard.items()}
    for counts in reversed(list(expired_after)):
        for name, count in counts.items():
            records[name].insert(count, TIMEOUT)
    return records
