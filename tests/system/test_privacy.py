"""What a run says anywhere holds no phone number, `extend` or secret; and what it keeps, only its owner reads."""

import asyncio
import http.client
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from consumers.engine.record import Record
from consumers.engine.snapshot import read_topic
from deploy.local.product import ASSEMBLERS, REPOSITORY, SINK, Product
from ingest.simulator.signing import signed_headers
from tests.system.conftest import MakeProduct
from tests.system.test_whole_path import read, until

NUMBER = "8613912345678"
EXTEND = "extendmark7411"
FREE = "freemark7412"
SECRET_KEY = "secretkeymark7413"  # noqa: S105 - marks to be looked for
RECIPIENT_KEY = "recipientkeymark7414" * 2
PASSWORD = "passwordmark7415"  # noqa: S105
KAFKA_PASSWORD = "kafkamark7416"  # noqa: S105
MARKS = (NUMBER, EXTEND, FREE, SECRET_KEY, RECIPIENT_KEY, PASSWORD, KAFKA_PASSWORD)
DEAD_LETTER_PARTITIONS = 3
JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
REPORT = {"smsMsgId": "m1", "status": "DELIVRD", "to": f"+{NUMBER}", "extend": EXTEND, "statusDesc": FREE}


def told(product: Product) -> Iterator[tuple[str, str]]:
    """Everything that the processes of a product have said or say: where, and what."""
    for name in product.commands:
        yield f"log of {name}", product.log(name).read_text()
        for path in ("/metrics", "/healthz", "/readyz", "/livez"):
            yield f"{path} of {name}", product.asked(name, path) or ""


def found(said: Iterator[tuple[str, str]], marks: Sequence[str]) -> list[str]:
    """Where a mark stands, and which."""
    return [f"{where} holds {mark}" for where, what in said for mark in marks if mark in what]


def ask(
    product: Product, path: str, body: bytes, content_type: str, *, signed: bool = True, more: Mapping[str, str] = {}
) -> str:
    """Push something; the whole answer as text."""
    address = urlsplit(product.url)
    signature = signed_headers(
        "ak",
        SECRET_KEY if signed else "another",
        path=path.partition("?")[0],
        host=address.netloc,
        content_type=content_type,
        body=body,
        now=datetime.now(UTC),
    )
    connection = http.client.HTTPConnection(address.netloc, timeout=20)
    try:
        connection.request("POST", path, body, {**signature, **more})
        response = connection.getresponse()
        return f"{response.status} {response.headers} {response.read().decode()}"
    finally:
        connection.close()


def hostile_and_sound(product: Product) -> Iterator[str]:
    """Push numbers in every place that a number can stand in; the answers."""
    batches = [
        {"statusReportList": [REPORT, {**REPORT, "smsMsgId": "m2", "total": 2, "sequence": 1}]},
        {
            "statusReportList": [
                {**REPORT, "smsMsgId": ""},
                {**REPORT, "total": NUMBER},
                NUMBER,
                {**REPORT, "status": []},
            ]
        },
        {"statusReportList": [{**REPORT, "source": NUMBER * 9}, {**REPORT, "orgCode": f"{NUMBER}\n"}]},
        {"statusReportList": f"+{NUMBER}"},
        {NUMBER: EXTEND},
    ]
    for batch in batches:
        yield ask(product, "/batchReport", json.dumps(batch).encode(), JSON)
    broken = json.dumps(batches[0]).encode()[:-3]
    form = f"smsMsgId=m3&status=DELIVRD&to=%2B{NUMBER}&extend={EXTEND}&statusDesc={FREE}".encode()
    yield ask(product, "/batchReport", broken, JSON)
    yield ask(product, "/batchReport", broken, JSON, signed=False)
    yield ask(product, "/report", form, FORM)
    yield ask(product, "/report", form.replace(b"status=", b"x="), FORM)
    yield ask(product, "/report", form + b"&to=%ff", FORM)
    yield ask(product, f"/report?to=+{NUMBER}", form, FORM)
    yield ask(product, f"/{NUMBER}", form, FORM)
    yield ask(product, "/report", form, f"text/{NUMBER}")
    yield ask(product, "/report", form, FORM, more={"Content-Encoding": NUMBER, "X-Forwarded-For": NUMBER})
    address = urlsplit(product.url)
    for raw in (f"POST /report HTTP/1.1\r\n{NUMBER} {EXTEND}\r\n\r\n", f"{NUMBER} /{EXTEND} HTTP/1.1\r\n\r\n"):
        connection = http.client.HTTPConnection(address.netloc, timeout=20)
        connection.connect()
        connection.sock.sendall(raw.encode())
        yield connection.sock.recv(65_536).decode()
        connection.close()


def records(product: Product, topic: str, partitions: int) -> list[Record]:
    """All committed records of a topic by its name."""

    async def collected() -> list[Record]:
        batches = read_topic({"bootstrap_servers": product.bootstrap}, topic, partitions)
        return [record async for batch in batches for record in batch]

    return asyncio.run(collected())


def test_a_run_never_says_a_number_or_a_secret(make_product: MakeProduct, tmp_path: Path) -> None:
    """Logs at their finest, metrics, health, answers, heads of dead letters; with a key, nor do results and memory."""
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({"ak": SECRET_KEY}))
    product = make_product(
        DLR_LOG_LEVEL="debug",
        DLR_AUTH_KEYS_FILE=str(keys),
        DLR_RECIPIENT_KEY=RECIPIENT_KEY,
        DLR_REASSEMBLY_TIMEOUT_S="2",
    )
    product.start()

    answers = list(hostile_and_sound(product))
    until(lambda: {(record.key or b"").decode() for record in read(product, "results")} == {"m1", "m2", "m3"})
    dead_topic = product.environment()["DLR_DEAD_LETTERS_TOPIC"]
    until(lambda: len(records(product, dead_topic, DEAD_LETTER_PARTITIONS)) >= 10)
    letters = records(product, dead_topic, DEAD_LETTER_PARTITIONS)
    until(lambda: product.metric(SINK, "dlrflow_rows_total"))
    results = read(product, "results")
    listed = product.run("consumers", "dead-letters", "list")
    said = list(told(product))
    kept = (product.folder / "spool", *(product.state_folder(name) for name in ASSEMBLERS))
    permissions = [problem for folder in kept for problem in open_to_others(folder)]
    product.stop()
    said += [(f"log of {name}", product.log(name).read_text()) for name in product.commands]

    assert {int(answer.split()[0]) for answer in answers if answer[0].isdigit()} >= {200, 400, 401, 404, 415}
    assert found(iter(said), MARKS) == []
    assert len(found(iter(said), ["guarantee"])) >= 2 * len(product.commands), "the look at the logs would find nothing"
    assert found((("an answer", answer) for answer in answers), MARKS) == []
    assert found((("the head of a dead letter", repr(letter.headers)) for letter in letters), MARKS) == []
    assert found(iter([("dead-letters list", listed)]), MARKS) == []
    assert all(NUMBER.encode() not in (result.value or b"") for result in results)
    assert all('"to":"hmac-sha256:' in (result.value or b"").decode() for result in results)
    changelog = f"{product.environment()['DLR_GROUP_ID']}.{product.environment()['DLR_REPORTS_TOPIC']}.changelog"
    memory = [record.value or b"" for record in records(product, changelog, 4)]
    memory += [path.read_bytes() for name in ASSEMBLERS for path in files(product.state_folder(name))]
    memory.append(product.database.read_bytes())
    assert sum(NUMBER.encode() in each for each in memory) == 0
    assert sum(EXTEND.encode() in each for each in memory) > 0, "the look at the memory would find nothing"
    assert permissions == []


def files(folder: Path) -> list[Path]:
    """All files under a folder."""
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def open_to_others(folder: Path) -> list[str]:
    """What under a folder, itself included, others than its owner may read, write or enter."""
    return [
        f"{path.relative_to(folder.parent)} {stat.filemode(path.stat().st_mode)}"
        for path in (folder, *folder.rglob("*"))
        if path.stat().st_mode & 0o077
    ]


SECRETS = {
    "DLR_KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
    "DLR_KAFKA_SASL_MECHANISM": "PLAIN",
    "DLR_KAFKA_SASL_USERNAME": "somebody",
    "DLR_KAFKA_SASL_PASSWORD": KAFKA_PASSWORD,
    "DLR_KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1",
    "DLR_RECIPIENT_KEY": RECIPIENT_KEY,
    "DLR_POSTGRES_DSN": f"postgresql://somebody:{PASSWORD}@127.0.0.1:1/dlrflow?application_name=x",
    "DLR_LOG_LEVEL": "debug",
    "DLR_SPOOL_ALLOW_VOLATILE": "true",
}


@pytest.mark.parametrize(
    "command",
    [
        ("ingest", "config"),
        ("consumers", "config"),
        ("consumers", "config", "--postgres-dsn", f"mysql://a:{PASSWORD}@b"),
    ],
    ids=" ".join,
)
def test_no_command_says_a_secret(command: tuple[str, ...], tmp_path: Path) -> None:
    """Not where it lists settings, not where it refuses one, not where a service is away."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DLR_")} | SECRETS
    environment["DLR_SPOOL_DIR"] = str(tmp_path)

    done = subprocess.run(
        [sys.executable, "-m", *command], check=False, capture_output=True, text=True, cwd=REPOSITORY, env=environment
    )

    assert found(iter([("its output", done.stdout + done.stderr)]), MARKS) == []
    assert done.stdout + done.stderr
