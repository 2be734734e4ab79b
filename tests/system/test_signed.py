"""Signed pushes through the whole product: replays change nothing, and keys change while it runs."""

import http.client
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from deploy.local.product import ASSEMBLERS, RECEIVER, Product
from tests.signer import Signer
from tests.system.conftest import MakeProduct
from tests.system.test_whole_path import CE_IDS, EXAMPLE, MESSAGES, read, rows, until

RELOAD_MOST_S = 5.0
"""contract.md section 2."""


def signed(product: Product, access_key: str = "ak1", secret_key: str = "sk1", body: bytes = b"") -> Signer:  # noqa: S107
    """A push signed now."""
    headers = [
        ("content-type", "application/json"),
        ("host", urlsplit(product.url).netloc),
        ("x-sdk-date", time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())),
    ]
    return Signer(
        headers=headers,
        body=body or b'{"statusReportList":[]}',
        access_key=access_key,
        secret_key=secret_key,
    )


def push(product: Product, signer: Signer) -> int:
    """Send it on a connection of its own; the status of the answer, 0 if there was none."""
    connection = http.client.HTTPConnection(urlsplit(product.url).netloc, timeout=10)
    headers = {name.decode(): value.decode() for name, value in signer.wire_headers()}
    try:
        connection.request("POST", "/batchReport", signer.body, headers)
        return connection.getresponse().status
    except ConnectionError:
        return 0
    finally:
        connection.close()


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Whether a condition comes to hold in that time."""
    over = time.monotonic() + seconds
    while time.monotonic() < over:
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_a_replayed_push_changes_nothing(make_product: MakeProduct, tmp_path: Path) -> None:
    """The same signed bytes again, inside the clock window: the same `ce_id`, the same results, the same rows.

    All processes have the settings of signatures and networks, though only the receiver uses them.
    """
    keys = tmp_path / "keys.json"
    keys.write_text('{"ak1":"sk1"}')
    product = make_product(
        DLR_AUTH_KEYS_FILE=str(keys), DLR_ALLOWED_NETWORKS="127.0.0.0/8", DLR_TRUSTED_PROXIES="10.0.0.0/8"
    )
    product.start()
    request = signed(product, body=EXAMPLE.read_bytes())
    assert push(product, request) == 200
    until(lambda: rows(product) == dict.fromkeys(MESSAGES, (1, "delivered")))
    before = sorted((record.key, record.value) for record in read(product, "results"))

    assert [push(product, request) for _ in range(3)] == [200] * 3
    until(lambda: sum(product.metric(name, "dlrflow_records_total") or 0 for name in ASSEMBLERS) == 8)

    ce_ids = [dict(record.headers)["ce_id"].decode() for record in read(product, "reports")]
    assert sorted(ce_ids) == sorted(CE_IDS * 4)
    assert sorted((record.key, record.value) for record in read(product, "results")) == before
    assert len(before) == 2
    assert rows(product) == dict.fromkeys(MESSAGES, (1, "delivered"))


def test_keys_change_while_it_runs_and_a_broken_file_changes_nothing(make_product: MakeProduct, tmp_path: Path) -> None:
    """A new key counts within 5 s; a broken file raises the alarm, and not even new workers lose the old keys."""
    keys = tmp_path / "keys.json"
    keys.write_text('{"ak1":"sk1"}')
    keys.chmod(0o600)
    product = make_product(bootstrap="127.0.0.1:1", DLR_AUTH_KEYS_FILE=str(keys), DLR_WORKERS="2")
    product.launch(RECEIVER)
    product.await_ready(RECEIVER)
    first, second = signed(product), signed(product, "ak2", "sk2")
    assert [push(product, each) for each in (first, second)] == [200, 401]

    (tmp_path / "next.json").write_text('{"ak1":"sk1","ak2":"sk2"}')
    (tmp_path / "next.json").replace(keys)
    assert within(RELOAD_MOST_S, lambda: all(push(product, second) == 200 for _ in range(12)))
    assert push(product, first) == 200
    until(lambda: product.metric(RECEIVER, "dlrflow_auth_keys") == 2)

    keys.write_text('{"ak1":')
    until(lambda: product.metric(RECEIVER, "dlrflow_auth_keys_file_broken") == 1)
    workers = json.loads(product.asked(RECEIVER, "/healthz") or "")["workers"]
    for worker in workers:
        psutil.Process(worker["pid"]).kill()
    until(lambda: product.log(RECEIVER).read_text().count("another takes its place") == 2)
    until(lambda: push(product, second) == 200)
    assert all(push(product, each) == 200 for each in [first, second] * 6)

    keys.write_text('{"ak2":"sk2"}')
    assert within(RELOAD_MOST_S, lambda: all(push(product, first) == 401 for _ in range(12)))
    assert push(product, second) == 200
    until(lambda: product.metric(RECEIVER, "dlrflow_auth_keys_file_broken") == 0)
    assert product.metric(RECEIVER, "dlrflow_auth_keys_file_failures_total") == 1
    product.run("ingest", "simulate", "--url", product.url, "--messages", "100", "--sign", "ak2:sk2")

    lines = [json.loads(line) for line in product.log(RECEIVER).read_text().splitlines()]
    told = [line for line in lines if line["event"].startswith("the keys file")]
    assert [line["event"] for line in told] == [
        "the keys file has changed",
        "the keys file cannot be used: the keys before count on",
        "the keys file can be used again",
        "the keys file has changed",
    ]
    hint = "every user of this machine may read the keys file"
    assert sum(line["event"] == hint for line in lines) == 2, "of the two files that were replaced, not of the first"
    assert (told[0]["added"], told[-1]["removed"]) == (["ak2"], ["ak1"])
    assert not re.search(r"sk[12]|[0-9a-f]{64}", product.log(RECEIVER).read_text())


def test_a_keys_file_that_cannot_be_used_is_a_mistake_at_the_start(make_product: MakeProduct, tmp_path: Path) -> None:
    """Status 2 and one line that names the file."""
    keys = tmp_path / "keys.json"
    keys.write_text("{}")
    product = make_product(bootstrap="127.0.0.1:1", DLR_AUTH_KEYS_FILE=str(keys))

    receive = product.tried("ingest", "receive")

    assert (receive.returncode, receive.stdout) == (2, "")
    assert receive.stderr == f"error: the keys file {keys} (DLR_AUTH_KEYS_FILE) holds no access key\n"
