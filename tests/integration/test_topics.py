"""Topics are made as needed, looked at without being touched, and Kafka's absence is said."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator

import pytest
from aiokafka import AIOKafkaProducer

from deploy.local.kafka import LocalKafka
from ingest.commands import topics as commands
from ingest.commands.topics import manage_topics
from ingest.contract.topics import TopicSpec, differences, wanted_topics
from ingest.runtime.errors import FoundError, ServiceAwayError, UsageError
from ingest.runtime.kafka import TopicAdmin, client_options
from ingest.settings import TopicsSettings


@pytest.fixture
def settings(kafka_bootstrap: str, topic_prefix: str) -> TopicsSettings:
    """Settings for topics of this test alone."""
    return TopicsSettings(
        kafka_bootstrap_servers=kafka_bootstrap,
        reports_topic=topic_prefix + "reports",
        results_topic=topic_prefix + "results",
        dead_letters_topic=topic_prefix + "dead",
        group_id=topic_prefix + "group",
        topic_partitions=4,
        late_window_s=864_000,
    )


@pytest.fixture
async def admin(settings: TopicsSettings) -> AsyncIterator[TopicAdmin]:
    """A connected administrator."""
    async with TopicAdmin(client_options(settings)) as connected:
        yield connected


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


class ObligingKafka(LocalKafka):
    """A node that makes a topic as soon as somebody names it, as brokers do by default."""

    def _properties(self, node: int) -> Iterator[tuple[str, object]]:
        yield from ((name, value) for name, value in super()._properties(node) if name != "auto.create.topics.enable")
        yield "auto.create.topics.enable", "true"


@pytest.fixture(scope="module")
def obliging_kafka() -> Iterator[str]:
    """Bootstrap servers of such a node."""
    with ObligingKafka() as kafka:
        yield kafka.bootstrap


async def names(admin: TopicAdmin, prefix: str) -> set[str]:
    """Names of the topics there are."""
    return {name for name in await admin.existing(describe=()) if name.startswith(prefix)}


async def test_missing_topics_are_made_as_needed(
    settings: TopicsSettings, admin: TopicAdmin, topic_prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """After the command every topic is as the settings want it, the changelog of the group included."""
    await manage_topics(settings, check=False)

    made = capsys.readouterr().out.splitlines()
    existing = await admin.existing()
    wanted = wanted_topics(settings.topic_needs())
    changelog = existing[f"{topic_prefix}group.{topic_prefix}reports.changelog"]
    assert made == [f"{spec.name}: created" for spec in wanted]
    assert {spec.name for spec in wanted} == await names(admin, topic_prefix)
    assert changelog.partitions == 4
    assert changelog.configs["retention.ms"] == str((864_000 + 604_800) * 1000)
    assert changelog.configs["message.timestamp.type"] == "LogAppendTime"
    for spec in wanted:
        state = existing[spec.name]
        assert state.configs["min.insync.replicas"] == "1"
        assert not differences(spec, partitions=state.partitions, replication=state.replication, configs=state.configs)


async def test_topics_that_are_as_needed_are_left_alone(
    settings: TopicsSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    """Running the command again, or checking, finds nothing to do."""
    await manage_topics(settings, check=False)
    capsys.readouterr()

    await manage_topics(settings, check=False)
    await manage_topics(settings, check=True)

    assert {line.rpartition(": ")[2] for line in capsys.readouterr().out.splitlines()} == {"as needed"}


async def test_check_creates_nothing_not_even_by_asking(
    settings: TopicsSettings, admin: TopicAdmin, topic_prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Looking at topics that do not exist leaves them so, and is a finding."""
    with pytest.raises(FoundError, match=r"^4 of 4 topics are not as needed$"):
        await manage_topics(settings, check=True)

    assert capsys.readouterr().out.count(": missing\n") == 4
    assert await names(admin, topic_prefix) == set()


async def test_check_creates_nothing_where_asking_would(
    obliging_kafka: str, settings: TopicsSettings, topic_prefix: str
) -> None:
    """Also on a broker that makes every topic that somebody names, only those exist that were made on purpose."""
    obliging = settings.model_copy(update={"kafka_bootstrap_servers": obliging_kafka})
    async with TopicAdmin(client_options(obliging)) as admin:
        with pytest.raises(FoundError):
            await manage_topics(obliging, check=True)
        after_check = await names(admin, topic_prefix)
        async with AIOKafkaProducer(bootstrap_servers=obliging_kafka) as producer:
            await producer.partitions_for(topic_prefix + "named")
        after_naming = await names(admin, topic_prefix)

    assert after_check == set()
    assert after_naming == {topic_prefix + "named"}


async def test_differences_are_named_and_not_repaired(
    settings: TopicsSettings, admin: TopicAdmin, capsys: pytest.CaptureFixture[str]
) -> None:
    """A topic made by somebody else is reported, value by value, and stays as it is."""
    await admin.create(
        [TopicSpec(name=settings.results_topic, partitions=2, replication=1, configs={"retention.ms": "1000"})]
    )

    await manage_topics(settings, check=False)
    lines = capsys.readouterr().out.splitlines()
    with pytest.raises(FoundError, match=r"^1 of 4 topics are not as needed$"):
        await manage_topics(settings, check=True)

    assert f"{settings.results_topic}: has 2 partitions, needs 4" in lines
    assert f"{settings.results_topic}: retention.ms is 1000, needs 604800000" in lines
    assert (await admin.existing())[settings.results_topic].configs["retention.ms"] == "1000"


async def test_a_topic_that_somebody_made_meanwhile_is_no_error(settings: TopicsSettings, admin: TopicAdmin) -> None:
    """Two commands may make the same topics at the same time; only one of them did."""
    spec = TopicSpec(name=settings.results_topic, partitions=1, replication=1, configs={})

    assert await admin.create([spec]) == [settings.results_topic]
    assert await admin.create([spec]) == []
    assert await admin.create([]) == []


async def test_a_topic_that_kafka_refuses_is_named(settings: TopicsSettings, admin: TopicAdmin) -> None:
    """More replicas than brokers is a wrong setting."""
    spec = TopicSpec(name=settings.results_topic, partitions=1, replication=99, configs={})

    with pytest.raises(UsageError, match=f"Kafka does not create topic {settings.results_topic}: "):
        await admin.create([spec])


async def test_only_the_topics_asked_for_are_described(settings: TopicsSettings, admin: TopicAdmin) -> None:
    """All topics are listed; configurations are read of those that are wanted and exist."""
    await manage_topics(settings, check=False)

    existing = await admin.existing(describe={settings.reports_topic, "no-such-topic"})

    assert existing[settings.reports_topic].configs["max.message.bytes"] == "2097152"
    assert existing[settings.results_topic].configs == {}
    assert "no-such-topic" not in existing


async def test_kafka_that_stays_away_is_said_in_one_line(
    settings: TopicsSettings, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nobody listens: the command waits, then says so, and the client library says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    away = settings.model_copy(update={"kafka_bootstrap_servers": f"127.0.0.1:{port}"})
    monkeypatch.setattr(commands, "TopicAdmin", lambda options: TopicAdmin(options, patience_s=0.5))

    with pytest.raises(
        ServiceAwayError, match=rf"^Kafka at 127\.0\.0\.1:{port} did not answer within 0\.5 s: .*refused"
    ):
        await manage_topics(away, check=False)

    assert capfd.readouterr().err == ""


async def test_kafka_that_hangs_is_not_waited_for_longer(settings: TopicsSettings, silent_port: int) -> None:
    """A broker that takes the connection and is silent counts as away."""
    hanging = settings.model_copy(update={"kafka_bootstrap_servers": f"127.0.0.1:{silent_port}"})

    with pytest.raises(ServiceAwayError, match=r"did not answer within 0\.5 s"):
        async with TopicAdmin(client_options(hanging), patience_s=0.5):
            pytest.fail("nobody answered")


async def test_a_broker_that_is_away_stops_nobody_who_looks(kafka_cluster: LocalKafka, topic_prefix: str) -> None:
    """With two of three brokers left, topics and the cluster's id are found at every look."""
    settings = TopicsSettings(kafka_bootstrap_servers=kafka_cluster.bootstrap, reports_topic=topic_prefix + "reports")
    async with TopicAdmin(client_options(settings)) as admin:
        await admin.create(wanted_topics(settings.topic_needs())[:1])
        await asyncio.to_thread(kafka_cluster.kill, 3)
        # The client asks any broker that it knows of: ten times past a third of them is no luck.
        looks = [await admin.existing(describe=[settings.reports_topic]) for _ in range(10)]
        ids = {await admin.cluster_id() for _ in range(10)}

    assert all(settings.reports_topic in look for look in looks)
    assert len(ids) == 1
