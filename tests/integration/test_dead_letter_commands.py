"""`dead-letters` and `audit` on a real Kafka: what is listed, shown, replayed and compared."""

import os
import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from consumers.commands.audit import compare
from consumers.commands.dead_letters import filter_of, list_letters, replay_letters, show_letter
from consumers.commands.sinks import open_for_reading, open_for_writing
from consumers.dead_letters import Filter
from consumers.engine.snapshot import RecordWriter, read_topic
from consumers.rows import AwayError
from consumers.settings import AuditSettings, DeadLettersSettings
from ingest.contract.dead_letter import DeadLetter, Origin, Stage, Unit
from ingest.contract.push import Push, Route
from ingest.contract.report import Reason, RejectedError
from ingest.contract.result import encode_result
from ingest.contract.topics import TopicNeeds, wanted_topics
from ingest.runtime.errors import FoundError, ServiceAwayError, UsageError
from ingest.runtime.kafka import TopicAdmin, client_options
from ingest.runtime.partitioner import partition_of
from tests.unit.test_audit import a_result, truth_line

PARTITIONS = 4
BODY = b'{"statusReportList":[{"smsMsgId":"m1","status":"DELIVRD"},{"status":"x"}]}'
RESULT = a_result("m9")


def of_receiver() -> DeadLetter:
    """A body that had too many reports."""
    rejected = RejectedError(Reason.TOO_MANY_REPORTS, "The body has more than 1 reports.")
    return DeadLetter.of_push(Push(5, Route.BATCH, 1, BODY), BODY, rejected, unit=Unit.BODY, now_ms=1_000)


def of_record(stage: Stage, reason: Reason, value: bytes, sink: str | None = None) -> DeadLetter:
    """A record that a consumer could not use."""
    rejected = RejectedError(reason, "A detail.", "m2")
    origin = Origin("somewhere", 1, 2)
    return DeadLetter.of_record(
        stage, rejected, origin=origin, key=b"other", value=value, headers=[("ce_id", b"x")], now_ms=2_000, sink=sink
    )


LETTERS = [
    of_receiver(),
    of_record(Stage.ASSEMBLE, Reason.KEY_MISMATCH, b'{"smsMsgId":"m2","status":"S"}'),
    of_record(Stage.SINK, Reason.REFUSED_BY_DATABASE, encode_result(RESULT), "sqlite"),
]


@pytest.fixture
def chosen(kafka_bootstrap: str, topic_prefix: str, tmp_path: Path) -> dict[str, Any]:
    """Settings for topics and a database of this test alone."""
    return {
        "kafka_bootstrap_servers": kafka_bootstrap,
        "reports_topic": f"{topic_prefix}reports",
        "results_topic": f"{topic_prefix}results",
        "dead_letters_topic": f"{topic_prefix}dead",
        "sqlite_path": tmp_path / "results.db",
    }


@pytest.fixture
async def settings(chosen: dict[str, Any]) -> DeadLettersSettings:
    """Topics made, three dead letters in partition 0, one result and its report."""
    settings = DeadLettersSettings(**chosen)
    options = client_options(settings)
    needs = TopicNeeds(
        reports_topic=settings.reports_topic,
        results_topic=settings.results_topic,
        dead_letters_topic=settings.dead_letters_topic,
        group_id="unused",
        partitions=PARTITIONS,
        replication=1,
        min_insync=1,
        reports_retention_s=3600,
        reassembly_timeout_s=3600,
        late_window_s=3600,
    )
    async with TopicAdmin(options) as admin:
        await admin.create(wanted_topics(needs)[:3])
    producer = AIOKafkaProducer(**options)
    await producer.start()
    for letter in LETTERS:
        await producer.send_and_wait(
            settings.dead_letters_topic, letter.value, letter.key, 0, letter.timestamp_ms, letter.headers
        )
    await producer.send_and_wait(settings.results_topic, encode_result(RESULT), b"m9")
    await producer.stop()
    return settings


async def reports_in(settings: DeadLettersSettings) -> list[Any]:
    """What stands in the reports topic."""
    batches = read_topic(client_options(settings), settings.reports_topic, PARTITIONS)
    return sorted([record async for batch in batches for record in batch], key=lambda record: record.key)


async def test_dead_letters_are_listed_a_line_each(
    settings: DeadLettersSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    """Into a pipe: tab-separated, nothing cut, ready for a script; filters choose."""
    await list_letters(settings, Filter(), None)
    lines = capsys.readouterr().out.splitlines()
    await list_letters(settings, filter_of("key-mismatch", None, None), None)
    one = capsys.readouterr().out.splitlines()
    await list_letters(settings, filter_of(None, "1970-01-01T00:00:02Z", None), 1)
    late = capsys.readouterr().out.splitlines()

    assert lines[0].split("\t") == [
        "0:0",
        "1970-01-01T00:00:01.000Z",
        "receive",
        "too-many-reports",
        "1",
        str(len(BODY)),
        "/batchReport",
    ]
    assert [line.split("\t")[0] for line in lines] == ["0:0", "0:1", "0:2"]
    assert one == late == [lines[1]]


async def test_one_is_shown_whole(settings: DeadLettersSettings, capsys: pytest.CaptureFixture[str]) -> None:
    """Headers, key, value; a name that is none says so."""
    await show_letter(settings, "0:1")
    shown = capsys.readouterr().out

    assert "dlq-reason: key-mismatch" in shown
    assert "key: other" in shown
    assert shown.endswith('{"smsMsgId":"m2","status":"S"}\n')
    for wrong in ("0:3", "9:0", "x", "0"):
        with pytest.raises(UsageError):
            await show_letter(settings, wrong)


async def test_replay_sends_each_where_it_belongs(
    settings: DeadLettersSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    """A body split again, a mismatched key put right, a row to its sink; what is still unusable is status 1."""
    replay = partial(replay_letters, settings, open_sink=partial(open_for_writing, settings))

    with pytest.raises(FoundError, match="1 still cannot be used"):
        await replay([], Filter(), None, dry_run=True)
    assert await reports_in(settings) == []
    with pytest.raises(FoundError, match="1 still cannot be used"):
        await replay([], Filter(), None, dry_run=False)

    first, second = await reports_in(settings)
    assert (first.key, first.value) == (b"m1", b'{"smsMsgId":"m1","status":"DELIVRD"}')
    assert (second.key, dict(second.headers)) == (b"m2", {"ce_id": b"x", "dlq-attempt": b"2"})
    assert dict(first.headers)["dlq-attempt"] == b"2"
    assert [first.partition, second.partition] == [partition_of(key, PARTITIONS) for key in (b"m1", b"m2")]
    with closing(sqlite3.connect(settings.sqlite_path)) as database:
        assert database.execute("SELECT sms_msg_id, revision FROM message_results").fetchall() == [("m9", 1)]
    assert "still missing-id" in capsys.readouterr().out


async def send_letters(settings: DeadLettersSettings, *letters: DeadLetter) -> None:
    """Put more dead letters into partition 1."""
    producer = AIOKafkaProducer(**client_options(settings), compression_type="zstd", max_request_size=1 << 30)
    await producer.start()
    for letter in letters:
        await producer.send_and_wait(
            settings.dead_letters_topic, letter.value, letter.key, 1, letter.timestamp_ms, letter.headers
        )
    await producer.stop()


async def test_a_replay_takes_any_size_that_kafka_takes(settings: DeadLettersSettings) -> None:
    """A record above 1 MiB got into the topics, compressed, and gets out again."""
    large = b'{"smsMsgId":"m2","status":"S","extend":"' + b"x" * (3 << 20) + b'"}'
    await send_letters(settings, of_record(Stage.ASSEMBLE, Reason.INTERNAL, large))

    await replay_letters(
        settings, ["1:0"], Filter(), None, dry_run=False, open_sink=partial(open_for_writing, settings)
    )

    (record,) = await reports_in(settings)
    assert record.value == large


async def test_a_letter_that_kafka_refuses_stops_none_of_the_others(
    settings: DeadLettersSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is named and counted as refused; those after it, of the same partition, are sent."""
    await send_letters(
        settings,
        of_record(Stage.ASSEMBLE, Reason.INTERNAL, os.urandom(5000)),
        of_record(Stage.ASSEMBLE, Reason.INTERNAL, b"first"),
        of_record(Stage.ASSEMBLE, Reason.INTERNAL, b"second"),
    )
    admin = AIOKafkaAdminClient(**client_options(settings))
    await admin.start()
    small = ConfigResource(ConfigResourceType.TOPIC, settings.reports_topic, {"max.message.bytes": "1000"})
    await admin.alter_configs([small])
    await admin.close()

    with pytest.raises(FoundError, match="1 still cannot be used"):
        await replay_letters(
            settings,
            ["1:0", "1:1", "1:2"],
            Filter(),
            None,
            dry_run=False,
            open_sink=partial(open_for_writing, settings),
        )

    assert [record.value for record in await reports_in(settings)] == [b"first", b"second"]
    assert capsys.readouterr().out.splitlines() == [
        f"1:0: {settings.reports_topic} takes no record of this size",
        "sent 2, still unusable 1",
    ]


async def test_a_replay_that_kafka_leaves_says_how_far_it_came(
    settings: DeadLettersSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Status 3 with the letter and the number, so that whoever repeats it knows what stands there already."""
    write = RecordWriter.write

    async def once(self: RecordWriter, topic: str, **record: Any) -> None:
        monkeypatch.setattr(RecordWriter, "write", away)
        await write(self, topic, **record)

    async def away(*_: object, **__: object) -> None:
        raise AwayError("no answer")

    monkeypatch.setattr(RecordWriter, "write", once)

    with pytest.raises(ServiceAwayError, match=r"0:1 \(no answer\); 1 were sent before"):
        await replay_letters(
            settings, ["0:0", "0:1"], Filter(), None, dry_run=False, open_sink=partial(open_for_writing, settings)
        )


@pytest.mark.parametrize("dry_run", [True, False])
async def test_a_replay_writes_nothing_that_the_sink_itself_refuses(
    settings: DeadLettersSettings, capsys: pytest.CaptureFixture[str], *, dry_run: bool
) -> None:
    """A result without a real time is none for the sink, and for a replay to that sink neither."""
    timeless = msgspec.structs.replace(RESULT, first_received_at="yesterday")
    await send_letters(settings, of_record(Stage.SINK, Reason.BAD_FIELD, encode_result(timeless), "sqlite"))

    with pytest.raises(FoundError, match="1 still cannot be used"):
        await replay_letters(
            settings, ["1:0"], Filter(), None, dry_run=dry_run, open_sink=partial(open_for_writing, settings)
        )

    assert "1:0: bad-field" in capsys.readouterr().out
    assert not settings.sqlite_path.exists()


async def test_the_audit_compares_topics_and_sink(
    settings: DeadLettersSettings, chosen: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Right first; then a row is changed, and a message of the truth is missing."""
    audited = AuditSettings(**chosen)
    truth = tmp_path / "truth.jsonl"
    truth.write_bytes(truth_line(RESULT) + b'\n{"unusable":0}\n')
    async with open_for_writing(settings, "sqlite") as sink:
        await sink.write([])
    replay = partial(replay_letters, settings, open_sink=partial(open_for_writing, settings))
    await replay(["0:2"], Filter(), None, dry_run=False)
    check = partial(
        compare, audited, truth, sink="sqlite", open_sink=partial(open_for_reading, audited, "sqlite"), wait_s=0
    )
    capsys.readouterr()

    await check(as_json=True)
    good = orjson.loads(capsys.readouterr().out)
    with closing(sqlite3.connect(settings.sqlite_path)) as database, database:
        database.execute("UPDATE message_results SET outcome = 'failed'")
    truth.write_bytes(truth_line(RESULT) + b"\n" + truth_line(a_result("m8")) + b'\n{"unusable":0}\n')
    with pytest.raises(FoundError, match="1 lost, 1 wrong, 0 repeated"):
        await check(as_json=True)
    bad = orjson.loads(capsys.readouterr().out)

    assert (good["lost"], good["wrong"], good["repeated"], good["rows"], good["findings"]) == (0, 0, 0, 1, [])
    assert {(finding["problem"], finding["smsMsgId"]) for finding in bad["findings"]} == {
        ("lost", "m8"),
        ("wrong", "m9"),
    }
