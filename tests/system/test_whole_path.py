"""From the callback to the database, with every process of the product on a real Kafka."""

import asyncio
import json
import sqlite3
import time
import urllib.request
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from consumers.engine.record import Record
from consumers.engine.snapshot import read_topic
from deploy.local.product import ASSEMBLERS, RECEIVER, SINK, Product
from ingest.runtime.partitioner import partition_of
from tests.system.conftest import MakeProduct
from tests.traffic import Wave, audited, problems

EXAMPLE = Path(__file__).parents[1] / "data" / "batch_example.json"
MESSAGES = ("f6dcba15-ced9-45f7-9f5e-af82328c5253_1188602", "f6dcba15-ced9-45f7-9f5e-af82328c5253_123456")
CE_IDS = ("2d422abdf28023a4116672c7", "631ec23a01412c5fbae9ebe5")
PARTITIONS = 4
PATIENCE_S = 60.0


def test_the_platforms_example_becomes_two_records_and_two_results(make_product: MakeProduct) -> None:
    """Key, value, timestamp and headers of the records, and the results' JSON, are byte for byte what is promised."""
    product = make_product()
    product.start()
    body = EXAMPLE.read_bytes()
    before_ms = time.time_ns() // 1_000_000

    answer = push(product, body)
    after_ms = time.time_ns() // 1_000_000
    until(lambda: len(read(product, "results")) >= 2)
    records, results = read(product, "reports"), read(product, "results")

    assert answer == (200, "application/json", b'{"returnCode":0,"returnCodeDesc":"Success"}')
    assert len(records) == len(results) == 2
    values = [element.encode() for element in body.decode().strip()[len('{"statusReportList":[') : -2].split(",{")]
    values = [value if value.startswith(b"{") else b"{" + value for value in values]
    (received_ms,) = {record.timestamp for record in records}
    received = rfc3339(received_ms)
    assert before_ms <= received_ms <= after_ms
    by_key = {(record.key or b"").decode(): record for record in records}
    for message_id, ce_id, value in zip(MESSAGES, CE_IDS, values, strict=True):
        record = by_key[message_id]
        assert record.value == value
        assert record.partition == partition_of(message_id.encode(), PARTITIONS)
        assert list(record.headers) == [
            ("ce_specversion", b"1.0"),
            ("ce_type", b"dlrflow.sms.status-report.v1"),
            ("ce_source", b"/batchReport"),
            ("ce_id", ce_id.encode()),
            ("ce_time", received.encode()),
            ("content-type", b"application/json"),
        ]
    for result in results:
        message_id = (result.key or b"").decode()
        assert (result.value or b"").decode() == (
            f'{{"schemaVersion":1,"smsMsgId":"{message_id}","revision":1,"outcome":"delivered","final":true,'
            '"total":1,"received":1,"missing":[],"segments":[{"sequence":1,"status":"DELIVRD","source":"2",'
            '"updateTime":"2023-04-18T07:26:00Z"}],"reason":"complete",'
            f'"firstReceivedAt":"{received}","lastReceivedAt":"{received}"}}'
        )
        assert list(result.headers) == [
            ("ce_specversion", b"1.0"),
            ("ce_type", b"dlrflow.sms.message-result.v1"),
            ("ce_source", topic(product, "reports").encode()),
            ("ce_id", f"{message_id}/1".encode()),
            ("ce_time", rfc3339(result.timestamp).encode()),
            ("content-type", b"application/json"),
        ]
    assert {(result.key or b"").decode() for result in results} == set(MESSAGES)
    until(lambda: rows(product) == dict.fromkeys(MESSAGES, (1, "delivered")))


def test_two_assemblers_share_the_work_and_one_can_leave(make_product: MakeProduct) -> None:
    """Each has its partitions; when one leaves, the other goes on with all of them, and the books balance."""
    product = make_product(DLR_REASSEMBLY_TIMEOUT_S="5")
    product.start()
    until(lambda: sorted(map(len, (owned(product, name) for name in ASSEMBLERS))) == [2, 2])
    wave = Wave(product, messages=4_000, rate=2_000, seed=3)
    try:
        until(lambda: (product.metric(ASSEMBLERS[0], "dlrflow_records_total") or 0) > 500)
        until(lambda: (product.metric(ASSEMBLERS[1], "dlrflow_records_total") or 0) > 500)

        product.terminate(ASSEMBLERS[0])
        assert product.status(ASSEMBLERS[0]) == 0
        until(lambda: len(owned(product, ASSEMBLERS[1])) == PARTITIONS)
        sent = wave.end(PATIENCE_S)
    finally:
        wave.kill()

    assert sent["pushed"] == sent["planned"]
    assert problems(audited(product, wave.truth, patience_s=PATIENCE_S)) == {}
    assert product.metric(RECEIVER, "dlrflow_unaccounted_reports") == 0


def test_every_process_ends_with_status_0_when_asked_to(make_product: MakeProduct) -> None:
    """SIGTERM is a clean end for all long-running commands, and each has stated its guarantee at its start."""
    product = make_product()
    product.start()

    for name in product.commands:
        product.terminate(name)

    assert {name: product.status(name) for name in product.commands} == dict.fromkeys(product.commands, 0)
    for name in (RECEIVER, *ASSEMBLERS, SINK):
        assert "Traceback" not in product.log(name).read_text()
        assert product.log(name).read_text().count('"guarantee"') == 1


def push(product: Product, body: bytes) -> tuple[int, str, bytes]:
    """Status, content type and body of the answer to a batch."""
    request = urllib.request.Request(  # noqa: S310 - loopback
        f"{product.url}/batchReport", body, {"Content-Type": "application/JSON;charset=UTF-8"}
    )
    with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310
        return response.status, response.headers["Content-Type"], response.read()


def topic(product: Product, kind: str) -> str:
    """The name of a topic of this product."""
    return product.environment()[f"DLR_{kind.upper()}_TOPIC"]


def read(product: Product, kind: str) -> list[Record]:
    """All committed records of a topic."""

    async def records() -> list[Record]:
        batches = read_topic({"bootstrap_servers": product.bootstrap}, topic(product, kind), PARTITIONS)
        return [record async for batch in batches for record in batch]

    return asyncio.run(records())


def owned(product: Product, name: str) -> set[str]:
    """The partitions that an assembler works on."""
    said = product.asked(name, "/healthz")
    return set(json.loads(said)["partitions"]) if said else set()


def rows(product: Product) -> dict[str, tuple[int, str]]:
    """Revision and outcome of every message in the database."""
    with closing(sqlite3.connect(product.database)) as database:
        found = database.execute("SELECT sms_msg_id, revision, outcome FROM message_results")
        return {message_id: (revision, outcome) for message_id, revision, outcome in found}


def rfc3339(epoch_ms: int) -> str:
    """As the contract writes times."""
    seconds, ms = divmod(epoch_ms, 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{ms:03}Z"


def until(condition: Callable[[], object]) -> None:
    """Wait for a condition to hold."""
    over = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < over, "it did not come true in time"
        time.sleep(0.1)
