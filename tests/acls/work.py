"""The work of every process, all that it does with Kafka, in this process: it returns once it is done, or raises."""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

from aiokafka import AIOKafkaProducer

from consumers.commands.audit import compare
from consumers.commands.dead_letters import list_letters, replay_letters, show_letter
from consumers.commands.ledgers import local_ledgers
from consumers.commands.sinks import open_for_writing
from consumers.dead_letters import Filter
from consumers.settings import AuditSettings, DeadLettersSettings
from ingest.commands.topics import manage_topics
from ingest.contract.topics import changelog_topic
from ingest.forward.kafka import open_publisher
from ingest.forward.record import Record
from ingest.runtime.clock import SystemClock
from ingest.runtime.errors import FoundError
from ingest.runtime.kafka import TopicAdmin, client_options
from ingest.settings import DrainSettings, TopicsSettings
from tests.acls.ground import Ground
from tests.assembling import Bench, a_report
from tests.integration.test_dead_letter_commands import LETTERS, RESULT
from tests.integration.test_sink_delivery import Bench as SinkBench
from tests.integration.test_sink_delivery import a_result

Work = Callable[[Ground], Awaitable[None]]

PARTITIONS: Final = 2


async def publish(ground: Ground) -> None:
    """What `receive` and `drain` do: a report and a dead letter, both acknowledged."""
    await _make_topics(ground)
    settings = DrainSettings(**ground.login, **ground.topics)
    publisher = open_publisher(client_options(settings), SystemClock())
    try:
        await publisher.connect(settings.reports_topic, settings.dead_letters_topic)
        for topic in (settings.reports_topic, settings.dead_letters_topic):
            assert await publisher.publish(topic, [Record(b"m1", b"{}", [], 1)]) == []
    finally:
        await publisher.close()


async def assemble(ground: Ground) -> None:
    """Results and dead letters; then again without local state, which restores the changelog."""
    admin = Bench(**_bench(ground, ground.administrator), partitions=PARTITIONS)
    await admin.make_topics()
    await admin.publish([a_report("m1", 1, 2), a_report("m1", 2, 2)])
    await admin.publish_raw([(0, b"m2", b"no report")])
    for life, reports in (("first", []), ("second", [a_report("m1", 1, 2, "UNDELIV", updateTime="2027")])):
        theirs = Bench(**_bench(ground, ground.login), partitions=PARTITIONS, state_dir=ground.folder / life)
        await admin.publish(reports)
        async with theirs.assembling(local_ledgers(theirs.settings)) as running:
            await admin.until_done(running)
    assert [result["revision"] for result in await admin.results()] == [1, 2]
    assert len(await admin.dead_letters()) == 1


async def deliver(ground: Ground, kind: str) -> None:
    """A result is stored, what is none is a dead letter, and the group's offset follows; then the same again."""
    admin = SinkBench(ground.guarded.kafka.bootstrap, ground.prefix, kind, ground.folder)
    theirs = SinkBench(prefix=ground.prefix, kind=kind, folder=ground.folder, **_login(ground.login))
    await admin.make_topics()
    for revision in (1, 2):
        await admin.publish([a_result("m1", revision), b"no result"])
        async with theirs.delivering() as running:
            await admin.until_done(running)
    assert await admin.rows() == {"m1": 2}
    assert len(await admin.dead_letters()) == 2


async def look_at_letters(ground: Ground) -> None:
    """`dead-letters list` and `show`."""
    await _put_letters(ground)
    settings = DeadLettersSettings(**ground.login, **ground.topics)
    await list_letters(settings, Filter(), None)
    await show_letter(settings, "0:0")


async def replay(ground: Ground) -> None:
    """`dead-letters replay` of one that becomes a report and one that goes to a sink."""
    await _put_letters(ground)
    settings = DeadLettersSettings(**ground.login, **ground.topics, sqlite_path=ground.folder / "results.db")

    def open_sink(kind: str) -> Any:
        return open_for_writing(settings, kind)

    await replay_letters(settings, ["0:1", "0:2"], Filter(), None, dry_run=False, open_sink=open_sink)


async def audit(ground: Ground) -> None:
    """Everything is read; the findings are another matter."""
    await _put_letters(ground)
    truth = ground.folder / "truth.jsonl"
    truth.write_text('{"unusable":0}\n')
    settings = AuditSettings(**ground.login, **ground.topics)
    with contextlib.suppress(FoundError):
        await compare(settings, truth, sink=None, open_sink=None, wait_s=0, as_json=True)


async def make_topics(ground: Ground) -> None:
    """`topics` where there are none, and again where all are there."""
    for _ in range(2):
        await manage_topics(_topics_settings(ground, ground.login), check=False)
    await _need_topics(ground)


async def check_topics(ground: Ground) -> None:
    """`topics --check` where all is well."""
    await _make_topics(ground)
    await manage_topics(_topics_settings(ground, ground.login), check=True)


WORKS: Final[Mapping[str, Work]] = {
    "receive": publish,
    "drain": publish,
    "assemble": assemble,
    "sink-sqlite": lambda ground: deliver(ground, "sqlite"),
    "sink-jsonl": lambda ground: deliver(ground, "jsonl"),
    "dead-letters": look_at_letters,
    "dead-letters-replay": replay,
    "audit": audit,
    "topics": make_topics,
    "topics-check": check_topics,
}
"""By the names of `ingest.contract.acls.PROCESSES`; the sink to PostgreSQL does nothing else with Kafka."""


def _topics_settings(ground: Ground, login: Mapping[str, Any]) -> TopicsSettings:
    return TopicsSettings(**login, **ground.topics, group_id=ground.names.group_id, topic_partitions=PARTITIONS)


async def _make_topics(ground: Ground) -> None:
    await manage_topics(_topics_settings(ground, ground.administrator), check=False)


async def _need_topics(ground: Ground) -> None:
    async with TopicAdmin(client_options(_topics_settings(ground, ground.administrator))) as admin:
        existing = await admin.existing(describe=())
    changelog = changelog_topic(ground.names.group_id, ground.names.reports_topic)
    assert {*ground.topics.values(), changelog} <= existing.keys()


async def _put_letters(ground: Ground) -> None:
    """Dead letters, a result and a report, of which nothing is read that may not be."""
    await _make_topics(ground)
    producer = AIOKafkaProducer(bootstrap_servers=ground.guarded.kafka.bootstrap)
    await producer.start()
    try:
        for letter in LETTERS:
            await producer.send_and_wait(
                ground.names.dead_letters_topic, letter.value, letter.key, 0, letter.timestamp_ms, letter.headers
            )
        await producer.send_and_wait(ground.names.results_topic, b"{}", RESULT.sms_msg_id.encode())
        report = json.dumps(a_report("m9")).encode()
        await producer.send_and_wait(ground.names.reports_topic, report, b"m9")
    finally:
        await producer.stop()


def _login(login: Mapping[str, Any]) -> dict[str, Any]:
    """For the helpers of other tests, which name the servers otherwise."""
    return {
        "bootstrap" if name == "kafka_bootstrap_servers" else name: Path(value) if name.endswith("_file") else value
        for name, value in login.items()
    }


def _bench(ground: Ground, login: Mapping[str, Any]) -> dict[str, Any]:
    return {"prefix": ground.prefix, "group_id": ground.names.group_id, **_login(login)}


async def in_time(work: Awaitable[None], timeout_s: float) -> None:
    """Do it, or raise TimeoutError."""
    async with asyncio.timeout(timeout_s):
        await work
