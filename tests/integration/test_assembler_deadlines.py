"""When deadlines count: by the partition clock, and while everything that stands in the partition has been read."""

import asyncio
import json
import random
import shutil
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from consumers.commands.ledgers import local_ledgers
from consumers.engine import clock, deciding, member
from consumers.engine.breaker import RUN_RECORDS
from consumers.engine.metrics import DOUBTS, PAUSED
from deploy.local.kafka import LocalKafka
from tests.assembling import PATIENCE_S, Bench, Child, Condition, a_report, assert_exact, some_reports, until, written
from tests.hooks import HookedProducer, Step, at_time, connection_lost, hook_producers
from tests.oracle import TIMEOUT, Raw, all_results
from tests.stepping import HOUR_S, Line, Looks, Wall, let_stamps_be_ahead

TIMEOUT_S = 1
"""Where a timeout is waited for."""

EXPIRY_LATENESS_MAX_MS = 3000
"""How late a quiet partition may notice a deadline, on a machine that has other work too."""

FROZEN_S = int(clock.WATERMARK_AGE_MAX_S) + 1
"""Longer than an answer counts, shorter than a session in the group."""

KILLS = 3
WAVES = 4
KILL_SPREAD_S = 0.1

DISKS = pytest.mark.parametrize("lose_disk", [False, True], ids=["state-kept", "state-lost"])


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Wall:
    """The wall clock of this process, to be stepped."""
    return Wall(monkeypatch)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    """The looks at whether the partition is caught up."""
    return Looks(monkeypatch)


async def a_bench(bootstrap: str, prefix: str, state_dir: Path, **settings: Any) -> Bench:
    """A bench with one partition and a timeout of an hour, its topics made."""
    chosen: dict[str, Any] = {"partitions": 1, "reassembly_timeout_s": HOUR_S, "state_dir": state_dir}
    bench = Bench(bootstrap, prefix, **(chosen | settings))
    await bench.make_topics()
    await let_stamps_be_ahead(bench)
    return bench


def firsts(*names: str) -> list[Raw]:
    """The first of two segments, of each of these messages."""
    return [a_report(name, 1, 2) for name in names]


def seconds(*names: str) -> list[Raw]:
    """The second one."""
    return [a_report(name, 2, 2) for name in names]


def named(count: int, name: str = "m") -> list[str]:
    """So many names."""
    return [f"{name}{number:04}" for number in range(count)]


def told(results: Iterable[Raw]) -> list[tuple[str, int, str]]:
    """Which message, which revision, why: in their order."""
    return [(result["smsMsgId"], result["revision"], result["reason"]) for result in results]


def timed_out(*names: str) -> list[tuple[str, int, str]]:
    """The timeouts of these messages, as `told`."""
    return [(name, 1, "timeout") for name in names]


async def test_a_timeout_says_what_is_known_and_late_segments_revise_it(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path, wall: Wall, looks: Looks
) -> None:
    """Whatever a message lacks, its result says so as the contract has it; what comes afterwards is revision 2."""
    bench = await a_bench(kafka_bootstrap, topic_prefix, tmp_path)
    early = [
        *(a_report("gap", sequence, 3) for sequence in (3, 1)),
        *(a_report("not-final", sequence, 2, status="ACCEPTD") for sequence in (1, 2)),
        a_report("no-total", 3, extend="x") | {"total": None},
        *(a_report("conflict", 1, total) for total in (2, 4, 3)),
        a_report("sequence-beyond", 2) | {"total": None, "to": None, "updateTime": None},
        *(a_report("no-receiver-first", sequence, 4, to=to) for sequence, to in ((1, None), (3, "+33"), (2, "+22"))),
    ]
    late = [
        a_report("gap", 2, 3),
        a_report("not-final", 2, 2),
        a_report("no-total", 1, extend="y") | {"total": None},
        a_report("conflict", 4, 4),
        a_report("sequence-beyond", 1, 2, status="UNKNOWN"),
        a_report("no-receiver-first", 1, 4, to="+11", updateTime="2026-11-24T10:00:00Z"),
    ]

    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.publish(early)
        await bench.until_done(running)
        await looks.caught_up(running)
        assert await bench.results() == []
        wall.step(HOUR_S + 1)
        await bench.until_results(6, running)
        await bench.publish(late)
        await bench.until_done(running)

    heard, revisions = await bench.heard(), await bench.revisions()
    assert all(len(those) == 2 for those in revisions.values())
    for name, records in heard.items():
        assert revisions[name] == written(all_results([*records[:-1], TIMEOUT, records[-1]])), name


async def test_a_quiet_partition_expires_on_time(kafka_bootstrap: str, topic_prefix: str, tmp_path: Path) -> None:
    """Where nothing comes any more a timeout is neither early nor noticeably late."""
    bench = await a_bench(kafka_bootstrap, topic_prefix, tmp_path, reassembly_timeout_s=TIMEOUT_S)

    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.publish([a_report("before")])
        await bench.until_results(1, running)
        await bench.publish(firsts("waits"))
        await bench.until_results(2, running)

    came, went = (
        (await bench.read(bench.settings.reports_topic))[-1],
        (await bench.read(bench.settings.results_topic))[-1],
    )
    assert told(await bench.results()) == [("before", 1, "complete"), ("waits", 1, "timeout")]
    assert TIMEOUT_S * 1000 <= went.timestamp - came.timestamp <= TIMEOUT_S * 1000 + EXPIRY_LATENESS_MAX_MS


@pytest.mark.parametrize("end", ["commit", "abort"])
async def test_control_records_at_the_end_do_not_hold_up_timeouts(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path, wall: Wall, looks: Looks, *, end: str
) -> None:
    """A partition that ends in a transaction marker, or in what was aborted, is caught up."""
    bench = await a_bench(kafka_bootstrap, topic_prefix, tmp_path)
    await bench.publish(firsts("waits"))
    producer = await _transaction(bench)
    await _send(producer, bench, seconds("waits" if end == "abort" else "another")[0])
    await getattr(producer, f"{end}_transaction")()
    await producer.stop()

    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await looks.caught_up(running)
        wall.step(HOUR_S + 1)
        await bench.until_results(1 if end == "abort" else 2, running)

    assert told(await bench.results()) == timed_out("waits", *(["another"] if end == "commit" else []))


async def test_a_partition_that_is_behind_expires_nothing(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path, wall: Wall, looks: Looks
) -> None:
    """The timeout passes while records are being worked off one by one: the last of them still counts."""
    bench = await a_bench(kafka_bootstrap, topic_prefix, tmp_path)
    looks.records_max = 1
    reports = [*firsts("waits"), *(a_report(f"other{number}") for number in range(40)), *seconds("waits")]
    await bench.publish(reports)

    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await looks.behind(running)
        wall.step(2 * HOUR_S)
        assert len(looks.all) < len(reports) // 2
        await bench.until_done(running)

    assert {reason for _, _, reason in told(await bench.results())} == {"complete"}
    assert_exact(await bench.results(), reports)


async def test_records_behind_an_open_transaction_hold_up_timeouts(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path, wall: Wall, looks: Looks
) -> None:
    """What stands in the partition is applied first, even while somebody else's transaction hides it."""
    bench = await a_bench(kafka_bootstrap, topic_prefix, tmp_path)

    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.publish(firsts("waits"))
        producer = await _transaction(bench)
        await _send(producer, bench, a_report("hidden"))
        await bench.publish(seconds("waits"))
        await looks.behind(running)
        wall.step(2 * HOUR_S)
        await looks.behind(running)
        assert await bench.results() == []
        await producer.abort_transaction()
        await producer.stop()
        await bench.until_results(1, running)

    assert told(await bench.results()) == [("waits", 1, "complete")]


@DISKS
async def test_an_outage_of_hours_expires_nothing_early(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path, wall: Wall, looks: Looks, *, lose_disk: bool
) -> None:
    """An assembler that was away longer than the timeout applies what came meanwhile before it looks at deadlines."""
    bench = await a_bench(kafka_bootstrap, topic_prefix, tmp_path / "state")
    looks.records_max = 50  # so that some cycles have the new time and stand before the missing segments
    names, others = named(100), some_reports(100, repeats=False)
    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.publish(firsts(*names, "alone"))
        await bench.until_done(running)
    if lose_disk:
        shutil.rmtree(tmp_path / "state")
    await bench.publish([*others, *seconds(*names)])
    wall.step(4 * HOUR_S)

    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.until_results(201, running)

    results = await bench.results()
    assert [those for those in told(results) if those[2] != "complete"] == timed_out("alone")
    assert_exact(results, [*others, *firsts(*names, "alone"), *seconds(*names)])


async def test_fetches_that_fail_expire_nothing(
    kafka_bootstrap: str,
    topic_prefix: str,
    tmp_path: Path,
    looks: Looks,
    *,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While no broker answers nobody knows what has come meanwhile: the last answer is soon too old to count."""
    monkeypatch.setattr(clock, "WATERMARK_AGE_MAX_S", TIMEOUT_S / 4)
    bench = await a_bench(kafka_bootstrap, topic_prefix, tmp_path, reassembly_timeout_s=TIMEOUT_S)
    line = Line(monkeypatch, bench.settings.reports_topic)

    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.publish([a_report("before")])
        await bench.until_results(1, running)
        await bench.publish(firsts("waits"))
        await bench.until_done(running)
        line.cut()
        await bench.publish(seconds("waits"))
        await asyncio.sleep(TIMEOUT_S)  # the outage itself
        await looks.behind(running)
        assert len(await bench.results()) == 1
        line.mend()
        await bench.until_results(2, running)

    assert told(await bench.results()) == [("before", 1, "complete"), ("waits", 1, "complete")]


async def test_an_answer_that_was_long_on_its_way_expires_nothing(
    kafka_bootstrap: str,
    topic_prefix: str,
    tmp_path: Path,
    wall: Wall,
    looks: Looks,
    *,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It comes now and says where the partition ended before: a network that stalled, a machine that was suspended."""
    bench = await a_bench(kafka_bootstrap, topic_prefix, tmp_path)
    line = Line(monkeypatch, bench.settings.reports_topic)

    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.publish(firsts("waits"))
        await bench.until_done(running)
        await looks.caught_up(running)
        await line.hold()
        await bench.publish(seconds("waits"))
        wall.step(4 * HOUR_S)
        line.let_one_pass()
        await looks.any(running)
        line.mend()
        await bench.until_done(running)

    assert told(await bench.results()) == [("waits", 1, "complete")]


async def test_a_process_that_was_frozen_expires_nothing_early(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Stopped for longer than the timeout, it first applies what came meanwhile."""
    bench = await a_bench(kafka_bootstrap, topic_prefix, tmp_path / "state", reassembly_timeout_s=FROZEN_S - 1)
    names = named(20)
    child = Child(bench, tmp_path / "log")
    await child.start()
    await bench.publish([a_report("before")])
    await bench.until_results(1)
    await bench.publish(firsts(*names))
    await bench.until_done()
    await child.freeze()
    await bench.publish(seconds(*names))
    await asyncio.sleep(FROZEN_S)  # the outage itself
    child.thaw()

    await bench.until_done()

    assert await child.end(signal.SIGTERM) == 0, child.said()
    assert {reason for _, _, reason in told(await bench.results())} == {"complete"}
    assert_exact(await bench.results(), [a_report("before"), *firsts(*names), *seconds(*names)])


async def test_brokers_that_come_back_are_read_before_anything_expires(
    kafka_node: LocalKafka,
    topic_prefix: str,
    tmp_path: Path,
    wall: Wall,
    looks: Looks,
    *,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The timeout passed while they were away, and the missing segment stands there: it is not missing."""
    bench = await a_bench(kafka_node.bootstrap, topic_prefix, tmp_path)
    line = Line(monkeypatch, bench.settings.reports_topic)

    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.publish(firsts("waits"))
        await bench.until_done(running)
        await looks.caught_up(running)
        line.cut()
        await bench.publish(seconds("waits"))
        await asyncio.to_thread(kafka_node.kill)
        line.mend()
        wall.step(2 * HOUR_S)
        await looks.behind(running)
        await asyncio.to_thread(kafka_node.restart)
        await bench.until_results(1, running)

    assert told(await bench.results()) == [("waits", 1, "complete")]


@pytest.mark.parametrize("restart", ["none", "state-kept", "state-lost"])
async def test_a_wall_clock_that_steps_back_expires_nothing_early_and_holds_nothing_for_ever(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path, wall: Wall, looks: Looks, *, restart: str
) -> None:
    """The partition clock stands still, over a restart too, until the wall is where it was."""
    bench = await a_bench(kafka_bootstrap, topic_prefix, tmp_path / "state")
    await bench.publish([a_report("before")])
    if restart != "none":
        async with bench.assembling(local_ledgers(bench.settings)) as running:
            await bench.until_done(running)
    if restart == "state-lost":
        shutil.rmtree(tmp_path / "state")
    if restart != "none":
        wall.step(-3 * HOUR_S)

    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.until_done(running)
        if restart == "none":
            wall.step(-3 * HOUR_S)
        await bench.publish(firsts("after"))
        await bench.until_done(running)
        wall.step(2 * HOUR_S)  # a timeout after the step, by the wall
        await looks.caught_up(running)
        assert len(await bench.results()) == 1
        wall.step(2 * HOUR_S)  # a timeout after what the partition clock says
        await bench.until_results(2, running)
        await looks.caught_up(running)

    assert told(await bench.results()) == [("before", 1, "complete"), ("after", 1, "timeout")]


async def test_a_wall_clock_that_steps_forward_and_back_expires_once(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path, wall: Wall, looks: Looks
) -> None:
    """What was due by it is due once; what comes afterwards waits from where the partition clock stands."""
    bench = await a_bench(kafka_bootstrap, topic_prefix, tmp_path)

    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.publish(firsts("due"))
        await bench.until_done(running)
        wall.step(3 * HOUR_S)
        await bench.until_results(1, running)
        wall.step(-3 * HOUR_S)
        await bench.publish([*firsts("new"), *seconds("due")])
        await bench.until_results(2, running)
        wall.step(2 * HOUR_S)
        await looks.caught_up(running)
        assert len(await bench.results()) == 2
        wall.step(2 * HOUR_S + 1)
        await bench.until_results(3, running)
        await looks.caught_up(running)

    assert told(await bench.results()) == [("due", 1, "timeout"), ("due", 2, "revised"), ("new", 1, "timeout")]


async def test_a_wall_clock_further_ahead_than_brokers_allow_expires_nothing(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path, wall: Wall, looks: Looks
) -> None:
    """They refuse what it stamps: no result until it is right again, then all of them, and none by the wrong time."""
    bench = Bench(
        kafka_bootstrap, topic_prefix, partitions=1, reassembly_timeout_s=HOUR_S, state_dir=tmp_path
    )  # topics as the product makes them
    await bench.make_topics()

    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.publish(firsts("waits"))
        await bench.until_done(running)
        doubts = _doubts()
        wall.step(3 * HOUR_S)
        await until(_has_doubts(doubts + 1), running)
        wall.step(-3 * HOUR_S)
        await looks.caught_up(running)
        assert await bench.results() == []
        await bench.publish(seconds("waits"))
        await bench.until_results(1, running)

    assert told(await bench.results()) == [("waits", 1, "complete")]


async def test_deadlines_count_from_the_application_not_from_the_timestamp(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path, wall: Wall, looks: Looks
) -> None:
    """Reports that a receiver had days ago, and forwards only now, wait for the others as long as new ones."""
    bench = await a_bench(kafka_bootstrap, topic_prefix, tmp_path)
    days_ago_ms = wall.now_ms() - 3 * 24 * HOUR_S * 1000

    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.publish(firsts("old", "older"), timestamp_ms=days_ago_ms)
        await bench.until_done(running)
        wall.step(HOUR_S - 60)
        await looks.caught_up(running)
        assert await bench.results() == []
        await bench.publish(seconds("old"), timestamp_ms=days_ago_ms + 1)
        await bench.until_done(running)
        wall.step(61)
        await bench.until_results(2, running)

    heard, revisions = await bench.heard(), await bench.revisions()
    assert revisions["old"] == written(all_results(heard["old"]))
    assert revisions["older"] == written(all_results([*heard["older"], TIMEOUT]))


@DISKS
async def test_a_changed_timeout_counts_for_what_already_waits(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path, wall: Wall, looks: Looks, *, lose_disk: bool
) -> None:
    """A deadline is the first sight and the present setting: a longer one holds it off, a shorter one draws it near."""
    state = tmp_path / "state"
    hour, two_hours, half_hour = [
        await a_bench(kafka_bootstrap, topic_prefix, state, reassembly_timeout_s=timeout_s)
        for timeout_s in (HOUR_S, 2 * HOUR_S, HOUR_S // 2)
    ]

    def restarts() -> None:
        if lose_disk:
            shutil.rmtree(state)

    async with hour.assembling(local_ledgers(hour.settings)) as running:
        await hour.publish(firsts("first"))
        await hour.until_done(running)
        wall.step(HOUR_S - 300)
        await hour.publish(firsts("second"))
        await hour.until_done(running)
    restarts()
    wall.step(600)
    async with two_hours.assembling(local_ledgers(two_hours.settings)) as running:
        await looks.caught_up(running)
        assert await hour.results() == []
        wall.step(HOUR_S - 290)
        await hour.until_results(1, running)
        await hour.publish(firsts("third"))
        await hour.until_done(running)
        assert told(await hour.results()) == timed_out("first")
    restarts()
    async with half_hour.assembling(local_ledgers(half_hour.settings)) as running:
        await hour.until_results(2, running)
        await looks.caught_up(running)
        assert told(await hour.results()) == timed_out("first", "second")
        wall.step(HOUR_S // 2)
        await hour.until_results(3, running)

    assert told(await hour.results()) == timed_out("first", "second", "third")


@DISKS
async def test_the_deadline_cursor_survives_restarts(
    kafka_bootstrap: str,
    topic_prefix: str,
    tmp_path: Path,
    wall: Wall,
    *,
    monkeypatch: pytest.MonkeyPatch,
    lose_disk: bool,
) -> None:
    """Restart after restart some messages are due and some complete: no timeout comes twice, none is forgotten."""
    monkeypatch.setattr(deciding, "DUE_MAX", 7)
    bench = await a_bench(kafka_bootstrap, topic_prefix, tmp_path / "state")
    waves = [named(30, f"wave{number}-") for number in range(3)]
    expected: list[tuple[str, int, str]] = []

    for number, wave in enumerate(waves):
        async with bench.assembling(local_ledgers(bench.settings)) as running:
            answered = waves[number - 1][::3] if number else []
            await bench.publish([*firsts(*wave), *seconds(*answered)])
            await bench.until_done(running)
            wall.step(HOUR_S * 0.4)
            due = [name for name in waves[number - 2] if name not in waves[number - 2][::3]] if number > 1 else []
            expected += [(name, 1, "complete") for name in answered] + timed_out(*due)
            await bench.until_results(len(expected), running)
        assert told(await bench.results()) == expected
        if lose_disk:
            shutil.rmtree(tmp_path / "state")
    async with bench.assembling(local_ledgers(bench.settings)) as running:
        wall.step(HOUR_S)
        expected += timed_out(*(name for name in waves[1] if name not in waves[1][::3]), *waves[2])
        await bench.until_results(len(expected), running)

    assert told(await bench.results()) == expected


@pytest.mark.parametrize(
    ("step", "lose_disk"),
    [(Step.WHOLE, True), (Step.COMMITTED, False)],
    ids=["before-the-commit-state-lost", "after-the-commit-state-kept"],
)
async def test_timeouts_cut_short_by_a_restart_go_on_where_they_were(
    kafka_bootstrap: str,
    topic_prefix: str,
    tmp_path: Path,
    wall: Wall,
    *,
    monkeypatch: pytest.MonkeyPatch,
    step: Step,
    lose_disk: bool,
) -> None:
    """An end in the middle of many timeouts, in the middle of a commit: each of them is there once afterwards."""
    monkeypatch.setattr(deciding, "DUE_MAX", 7)
    monkeypatch.setattr(member, "REVOKE_GRACE_S", 0.05)
    bench = await a_bench(kafka_bootstrap, topic_prefix, tmp_path / "state")
    names, stuck = named(40), asyncio.Event()
    hooks = hook_producers(monkeypatch)

    async def hang(_: HookedProducer) -> None:
        stuck.set()
        await asyncio.Event().wait()

    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.publish(firsts(*names))
        await bench.until_done(running)
        hooks[step] = at_time(3, hang)
        wall.step(HOUR_S + 1)
        async with asyncio.timeout(PATIENCE_S):
            await stuck.wait()
    if lose_disk:
        shutil.rmtree(tmp_path / "state")
    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.until_results(40, running)

    assert told(await bench.results()) == timed_out(*names)


@pytest.mark.parametrize("step", [Step.WHOLE, Step.COMMITTED], ids=["before-the-commit", "after-the-commit"])
async def test_timeouts_in_doubt_happen_once(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path, wall: Wall, monkeypatch: pytest.MonkeyPatch, *, step: Step
) -> None:
    """A commit that nobody knows of, in the middle of many timeouts: the changelog tells how far the cursor is."""
    monkeypatch.setattr(deciding, "DUE_MAX", 7)
    bench = await a_bench(kafka_bootstrap, topic_prefix, tmp_path)
    names = named(40)
    hooks = hook_producers(monkeypatch)

    async with bench.assembling(local_ledgers(bench.settings)) as running:
        await bench.publish(firsts(*names))
        await bench.until_done(running)
        hooks[step] = at_time(3, connection_lost)
        wall.step(HOUR_S + 1)
        await bench.until_results(40, running)
        await bench.publish([a_report("after")])
        await bench.until_done(running)

    assert told(await bench.results()) == [*timed_out(*names), ("after", 1, "complete")]


async def test_timeouts_of_killed_assemblers_happen_once(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Killed at the moment of expiry, again and again, with the disk and without: each timeout stands once."""
    bench = Bench(
        kafka_bootstrap,
        topic_prefix,
        state_dir=tmp_path / "state",
        reassembly_timeout_s=TIMEOUT_S,
        commit_interval_ms=1,
    )
    await bench.make_topics()
    chance = random.Random(11)
    child = Child(bench, tmp_path / "log")
    names: list[str] = []

    for kill in range(KILLS):
        process = await child.start()
        for wave in range(WAVES):
            those = named(100, f"kill{kill}-{wave}-")
            names += those
            await bench.publish(firsts(*those))
        await _writes_results(bench)
        await asyncio.sleep(chance.uniform(0, KILL_SPREAD_S))  # somewhere in the transactions of this round's timeouts
        assert process.returncode is None, child.said()
        await child.end(signal.SIGKILL)
        await bench.forget_members()
        if kill % 2:
            shutil.rmtree(tmp_path / "state")
    await child.start()
    await bench.until_results(len(names))
    await bench.publish([a_report("after")])
    await bench.until_results(len(names) + 1)

    assert await child.end(signal.SIGTERM) == 0, child.said()
    results = await bench.results()
    assert {reason for name, _, reason in told(results) if name != "after"} == {"timeout"}
    assert_exact(results, [*firsts(*names), a_report("after")])


async def test_a_flood_of_unusable_records_pauses_the_partition(
    kafka_bootstrap: str, topic_prefix: str, tmp_path: Path
) -> None:
    """The breaker stops before they are dead letters; an operator lets them through, and everything else with them."""
    bench = Bench(kafka_bootstrap, topic_prefix, state_dir=tmp_path, partitions=2)
    await bench.make_topics()
    reports = some_reports(200)
    flood = [(0, b"%d" % number, b"unusable") for number in range(2 * RUN_RECORDS)]
    await bench.publish_raw(flood)
    resume = asyncio.Event()

    async with bench.assembling(local_ledgers(bench.settings), resume=resume) as running:
        await bench.publish(reports)
        await until(_paused(), running)
        assert await bench.dead_letters() == []
        resume.set()
        await bench.until_done(running)

    assert len(await bench.dead_letters()) == len(flood)
    assert_exact(await bench.results(), reports)


def _doubts() -> float:
    """How often a partition was in doubt."""
    return sum(
        sample.value for metric in DOUBTS.collect() for sample in metric.samples if sample.name.endswith("_total")
    )


def _has_doubts(count: float) -> Condition:
    async def has() -> bool:
        return _doubts() >= count

    return has


def _paused() -> Condition:
    async def paused() -> bool:
        return any(sample.value for metric in PAUSED.collect() for sample in metric.samples)

    return paused


async def _writes_results(bench: Bench) -> None:
    """Wait until somebody has begun to write further results, committed or not."""
    places = [TopicPartition(bench.settings.results_topic, number) for number in range(bench.partitions)]
    consumer = AIOKafkaConsumer(**bench.options, enable_auto_commit=False)
    consumer.assign(places)
    await consumer.start()
    try:
        before = await consumer.end_offsets(places)
        async with asyncio.timeout(30):
            while await consumer.end_offsets(places) == before:
                pass
    finally:
        await consumer.stop()


async def _transaction(bench: Bench) -> Any:
    producer = AIOKafkaProducer(**bench.options, transactional_id=f"{bench.settings.group_id}.foreign")
    await producer.start()
    await producer.begin_transaction()
    return producer


async def _send(producer: Any, bench: Bench, report: dict[str, Any]) -> None:
    await producer.send_and_wait(
        bench.settings.reports_topic, key=report["smsMsgId"].encode(), value=json.dumps(report).encode(), partition=0
    )
