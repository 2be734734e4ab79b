"""The whole product on a Kafka with logins, each process with one of its own and exactly its rights."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from deploy.local.product import ASSEMBLERS, COMMANDS, RECEIVER, REPOSITORY, SINK, Product
from ingest.contract.acls import PROCESSES
from tests.acls.ground import PASSWORD, Ground, Guarded
from tests.acls.trial import needed
from tests.assembling import until

ASSEMBLER: Final = ASSEMBLERS[0]
PROCESS_OF: Final = {RECEIVER: "receive", ASSEMBLER: "assemble", SINK: "sink-sqlite"}
NEW_PASSWORD: Final = "battery-staple"  # noqa: S105 - of a Kafka that lives as long as a test


class Secured(Product):
    """A product whose processes log in, each as somebody else."""

    logins: Mapping[str, Mapping[str, Any]] = {}
    acting = ""

    def environment(self, name: str | None = None) -> dict[str, Any]:
        """With the login of the process, or of the command that runs beside them."""
        login = self.logins.get(PROCESS_OF.get(name or "", self.acting), {})
        return super().environment(name) | {f"DLR_{key.upper()}": value for key, value in login.items()}

    def tried_as(self, process: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command under the login of that process."""
        self.acting = process
        try:
            return self.tried(*arguments)
        finally:
            self.acting = ""


@pytest.fixture
def ground(guarded_kafka: Guarded, topic_prefix: str, tmp_path: Path) -> Ground:
    """Names of this test's own."""
    return Ground(guarded_kafka, topic_prefix, tmp_path, {})


@pytest.fixture
def product(ground: Ground) -> Iterator[Secured]:
    """Receiver, one assembler, sink; whatever was started is ended."""
    settings = {
        "DLR_REPORTS_TOPIC": ground.names.reports_topic,
        "DLR_RESULTS_TOPIC": ground.names.results_topic,
        "DLR_DEAD_LETTERS_TOPIC": ground.names.dead_letters_topic,
        "DLR_GROUP_ID": ground.names.group_id,
        "DLR_SINK_GROUP_ID": ground.names.sink_group_id,
        "DLR_TOPIC_PARTITIONS": "2",
        "DLR_SPOOL_ALLOW_VOLATILE": "true",
        "DLR_LOG_FORMAT": "json",
    }
    commands = {name: COMMANDS[name] for name in PROCESS_OF}
    product = Secured(ground.folder / "product", ground.guarded.kafka.bootstrap, commands=commands, settings=settings)
    yield product
    product.stop()


def said(product: Product, name: str) -> list[dict[str, str]]:
    """The log of a process, line by line."""
    return [json.loads(line) for line in product.log(name).read_text().splitlines() if line.startswith("{")]


async def test_the_whole_path_works_with_a_login_and_the_least_rights_each(ground: Ground, product: Secured) -> None:
    """TLS, passwords of all kinds and certificates: topics, pushes, results, a lost state, replay, audit, drain."""
    kafka, names = ground.guarded, ground.names
    password_file = ground.folder / "password"
    password_file.write_text(PASSWORD + "\n")
    receiver = kafka.by_password("receiver", "SCRAM-SHA-512")
    del receiver["kafka_sasl_password"]
    product.logins = {
        "receive": receiver | {"kafka_sasl_password_file": str(password_file)},
        "assemble": kafka.by_certificate(f"{names.group_id}-member"),
        "sink-sqlite": kafka.by_password("sinker", "SCRAM-SHA-256", listener="SASL_PLAINTEXT"),
        "topics": kafka.by_password("topics-maker", "PLAIN"),
        "drain": kafka.by_password("drainer", "SCRAM-SHA-256"),
        **{name: kafka.by_certificate(f"{names.group_id}-{name}") for name in ("audit", "dead-letters-replay")},
    }
    for process, login in product.logins.items():
        user = login.get("kafka_sasl_username") or Path(login["kafka_cert_file"]).stem
        await kafka.allow(user, needed(process, names))
    truth = ground.folder / "truth.jsonl"

    def command(process: str, *arguments: str) -> str:
        done = product.tried_as(process, *arguments)
        assert done.returncode == 0, (process, done.stdout, done.stderr)
        return done.stdout

    def work() -> None:
        command("topics", "ingest", "topics")
        for name in PROCESS_OF:
            product.launch(name)
        for name in PROCESS_OF:
            product.await_ready(name)
        pushed = ("--url", product.url, "--messages", "300", "--invalid-share", "0.01", "--truth", str(truth))
        command("", "ingest", "simulate", *pushed)
        product.terminate(ASSEMBLER)
        product.lose_state(ASSEMBLER)
        product.launch(ASSEMBLER)
        command("audit", "consumers", "audit", "--truth", str(truth), "--sink", "sqlite", "--wait", "30")
        replayed = product.tried_as("dead-letters-replay", "consumers", "dead-letters", "replay", "--limit", "1")
        assert "still unusable 1" in replayed.stdout, replayed.stderr
        product.kill(RECEIVER)

    await asyncio.to_thread(work)
    await asyncio.to_thread(command, "drain", "ingest", "drain")

    outputs = "".join(product.log(name).read_text() for name in PROCESS_OF)
    assert PASSWORD not in outputs


async def test_a_receiver_that_is_refused_keeps_everything_until_it_is_let_in(ground: Ground, product: Secured) -> None:
    """Wrong password, then no rights: answered 200 all the same, said without repeating; no restart is needed."""
    kafka = ground.guarded
    product.logins = {"receive": kafka.by_password("newcomer", "SCRAM-SHA-512", password=NEW_PASSWORD)}
    batch = REPOSITORY / "tests" / "data" / "batch_example.json"

    def refused_at(words: str) -> bool:
        return any(words in line.get("because", line.get("right", "")) for line in said(product, RECEIVER))

    def published() -> float:
        return product.metric(RECEIVER, "dlrflow_reports_published_total") or 0

    async def seen(words: str) -> None:
        async def there() -> bool:
            return refused_at(words)

        await until(there)

    product.run("ingest", "topics")
    product.launch(RECEIVER)
    await asyncio.to_thread(product.await_ready, RECEIVER)
    push = ("curl", "-sf", product.url + "/batchReport", "-H", "Content-Type: application/json", "--data-binary")
    answer = await asyncio.to_thread(subprocess.check_output, [*push, f"@{batch}"], env=os.environ)
    assert json.loads(answer)["returnCode"] == 0
    await seen("refuses the login of the user newcomer")
    before = published()
    lines = len(said(product, RECEIVER))

    change = ("--alter", "--entity-type", "users", "--entity-name", "newcomer", "--add-config")
    await asyncio.to_thread(
        kafka.kafka.admin_tool, "kafka.admin.ConfigCommand", *change, f"SCRAM-SHA-512=[password={NEW_PASSWORD}]"
    )
    await seen("ClusterAuthorizationFailedError")
    await kafka.allow("newcomer", PROCESSES["receive"](ground.names))

    async def all_published() -> bool:
        return published() == 2

    await until(all_published)
    assert before == 0
    assert lines < 40
    assert product.running(RECEIVER)
    assert NEW_PASSWORD not in product.log(RECEIVER).read_text()


async def test_commands_that_are_refused_end_at_once_in_one_line(ground: Ground, product: Secured) -> None:
    """Status 2 and the cause, of a wrong password as of a missing right; the password is in no output."""
    kafka, names = ground.guarded, ground.names
    product.run("ingest", "topics")
    wrong = kafka.by_password("looker", "SCRAM-SHA-256", password=NEW_PASSWORD)
    none = kafka.by_password("looker", "SCRAM-SHA-256")
    commands = {
        "topics": ("ingest", "topics"),
        "assemble": ("consumers", "assemble"),
        "sink": ("consumers", "sink", "sqlite"),
    }

    async def ended(login: Mapping[str, Any], arguments: tuple[str, ...]) -> tuple[int | None, str]:
        environ = product.environment() | {f"DLR_{key.upper()}": value for key, value in login.items()}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", *arguments, env=environ | {"DLR_ADMIN_PORT": "0"}, cwd=REPOSITORY,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        output, error = await asyncio.wait_for(process.communicate(), 60)
        return process.returncode, (output + error).decode()

    by_password = await asyncio.gather(*(ended(wrong, them) for them in commands.values()))
    by_right = await asyncio.gather(*(ended(none, them) for them in commands.values()))

    for status, text in (*by_password, *by_right):
        errors = [line for line in text.splitlines() if line.startswith("error: ")]
        assert (status, len(errors)) == (2, 1), text
        assert "Traceback" not in text
        assert NEW_PASSWORD not in text
        assert PASSWORD not in text
    assert all("refuses the login of the user looker: Authentication failed" in text for _, text in by_password)
    assert all("Kafka does not allow the user looker: " in text for _, text in by_right)
    assert f"Read on group {names.group_id}" in by_right[1][1]
