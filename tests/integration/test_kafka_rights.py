"""Every process works with exactly the rights that are written down for it, and says which one is missing."""

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from consumers.commands.ledgers import local_ledgers
from ingest.commands import receive_topics
from ingest.commands.topics import manage_topics
from ingest.contract.acls import PROCESSES, Acl, Operation
from ingest.runtime.clock import SystemClock
from ingest.runtime.kafka import client_options
from ingest.settings import ReceiveSettings, TopicsSettings
from tests.acls.ground import Ground, Guarded
from tests.acls.trial import Trial, attempt, needed, trials
from tests.acls.work import WORKS
from tests.assembling import Bench, a_report, until

ASKS = sorted(set(WORKS) - {"receive", "drain"})
"""Processes that end when a right is missing at their start; `drain` is tried as a process."""


@pytest.mark.parametrize("process", WORKS)
async def test_every_process_works_with_exactly_its_rights(
    guarded_kafka: Guarded, topic_prefix: str, tmp_path: Path, process: str
) -> None:
    """All that it does: its whole work, a restart, and a restore where there is something to restore."""
    assert await attempt(guarded_kafka, Trial(process, None), topic_prefix, tmp_path) == ""


@pytest.mark.parametrize("process", ASKS)
async def test_a_right_that_is_missing_is_named_at_the_start(
    guarded_kafka: Guarded, topic_prefix: str, tmp_path: Path, process: str
) -> None:
    """Status 2, and the line says which: not a topic that does not exist, nor brokers that are away.

    The first and the last; `python -m tests.acls` tries every one, also with nobody asking beforehand.
    """
    all_of_them = [trial for trial in trials(process.__eq__) if trial.without is not None]
    tried = sorted({all_of_them[0], all_of_them[-1]}, key=all_of_them.index)
    folders = [tmp_path / str(trial.without) for trial in tried]
    for folder in folders:
        folder.mkdir()

    came_to = await asyncio.gather(
        *(
            attempt(guarded_kafka, trial, f"{topic_prefix}{trial.without}.", folder)
            for trial, folder in zip(tried, folders, strict=True)
        )
    )

    for trial, line in zip(tried, came_to, strict=True):
        names = Ground(guarded_kafka, f"{topic_prefix}{trial.without}.", tmp_path, {}).names
        assert re.match(_words(needed(process, names)[trial.without or 0]), line), (str(trial), line)


def _words(acl: Acl) -> str:
    name = re.escape(acl.name)
    if acl.operation is Operation.CREATE:
        return rf"status 2: Kafka does not create topic {name}: "
    return rf"status 2: Kafka does not allow this user: .*{acl.operation} on {acl.resource} {name}"


@pytest.mark.parametrize("number", range(4))
async def test_a_receiver_names_what_it_may_not_do_and_goes_on(
    guarded_kafka: Guarded, topic_prefix: str, tmp_path: Path, number: int
) -> None:
    """An error where reports stay in the spool, a warning where only a look is refused."""
    ground = Ground(guarded_kafka, topic_prefix, tmp_path, guarded_kafka.by_certificate(topic_prefix))
    await _make_topics(ground)
    acls = PROCESSES["receive"](ground.names)
    await guarded_kafka.allow(topic_prefix, [acl for acl in acls if acl is not acls[number]])
    settings = ReceiveSettings(**ground.login, **ground.topics)

    with capture_logs() as logs:
        await receive_topics.look_at_topics(settings, client_options(settings), SystemClock())

    right = f"{acls[number].operation} on topic {acls[number].name}"
    assert [(line["log_level"], line["right"]) for line in logs] == [
        ("error" if acls[number].needed else "warning", right)
    ]


async def test_a_right_that_is_taken_from_a_running_assembler_costs_time_alone(
    guarded_kafka: Guarded, topic_prefix: str, tmp_path: Path
) -> None:
    """It does not end: it is in doubt until the right is back, then goes on where it stood, each result once."""
    login = guarded_kafka.by_certificate(topic_prefix)
    ground = Ground(guarded_kafka, topic_prefix, tmp_path, login)
    acls = PROCESSES["assemble"](ground.names)
    await guarded_kafka.allow(topic_prefix, acls)
    write = [acl for acl in acls if acl.operation is Operation.WRITE and acl.name == ground.names.results_topic]
    admin = _bench(ground, {"kafka_bootstrap_servers": guarded_kafka.kafka.bootstrap})
    theirs = _bench(ground, login)
    await admin.make_topics()
    with capture_logs() as logs:
        async with theirs.assembling(local_ledgers(theirs.settings)) as running:
            await admin.publish([a_report("m1")])
            await admin.until_done(running)
            await guarded_kafka.forbid(topic_prefix, write)
            await admin.publish([a_report("m2")])

            async def in_doubt() -> bool:
                return any(line["event"].startswith("in doubt") for line in logs)

            await until(in_doubt, running)
            await guarded_kafka.allow(topic_prefix, write)
            await admin.until_done(running)

    assert [result["smsMsgId"] for result in await admin.results()] == ["m1", "m2"]


def _bench(ground: Ground, login: dict[str, Any]) -> Bench:
    more: dict[str, Any] = {name: value for name, value in login.items() if name != "kafka_bootstrap_servers"}
    return Bench(
        login["kafka_bootstrap_servers"],
        ground.prefix,
        partitions=1,
        group_id=ground.names.group_id,
        state_dir=ground.folder / "state",
        **more,
    )


async def _make_topics(ground: Ground) -> None:
    settings = TopicsSettings(**ground.administrator, **ground.topics, group_id=ground.names.group_id)
    await asyncio.wait_for(manage_topics(settings, check=False), 30)
