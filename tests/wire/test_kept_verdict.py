"""What becomes of a push is what its sender was told, whatever limits the receiver after it has."""

from pathlib import Path

import orjson
import pytest

from ingest.forward.courier import Courier, ForwardTopics
from ingest.forward.loop import Forwarder
from ingest.forward.publisher import Publisher
from ingest.runtime.clock import SystemClock
from ingest.runtime.files import RealFileSystem
from ingest.spool.accounts import Accounts
from ingest.spool.disk import SpoolOptions, adopt_free, open_spool
from tests.fakes.forward import MemoryLink, PromptClock
from tests.wire.conftest import Start, a_request

EIGHT = orjson.dumps({"statusReportList": [{"smsMsgId": f"id-{each}", "status": "DELIVRD"} for each in range(8)]})
CROWDED = b'{"x":[' + b",".join([b"[]"] * 50_500) + b'],"statusReportList":[{"smsMsgId":"id-0","status":"DELIVRD"}]}'


@pytest.mark.parametrize(
    ("reports_max", "body", "status", "records", "reasons"),
    [
        pytest.param(8, EIGHT, 200, 8, [], id="taken"),
        pytest.param(7, EIGHT, 400, 0, ["too-many-reports"], id="too many"),
        pytest.param(1000, CROWDED, 200, 1, [], id="crowded and taken"),
        pytest.param(7, CROWDED, 400, 0, ["not-json"], id="too crowded"),
    ],
)
async def test_what_was_answered_is_what_is_published(  # noqa: PLR0917 - a table
    start: Start, tmp_path: Path, reports_max: int, body: bytes, status: int, records: int, reasons: list[str]
) -> None:
    """Through the port and a disk, to brokers in memory, by a process that knows no limit of reports."""
    fs, clock = RealFileSystem(), SystemClock()
    spool = await open_spool(tmp_path, SpoolOptions(allow_volatile=True), fs=fs, clock=clock, accounts=Accounts())
    receiver = await start(spool=spool, reports_max=reports_max, body_max_bytes=1 << 20)
    try:
        assert (await receiver.ask(a_request(body))).status == status
    finally:
        await spool.close()

    accounts, link, prompt = Accounts(), MemoryLink(reports=4, letters=3), PromptClock()
    topics = ForwardTopics(reports="reports", dead_letters="letters")
    courier = Courier(Publisher(link, prompt), topics=topics, accounts=accounts, clock=prompt)
    await Forwarder(courier, prompt).serve_all(await adopt_free(tmp_path, fs=fs, clock=clock, accounts=accounts))

    letters = [
        dict(letter.headers) for (topic, _), held in link.written.items() if topic == "letters" for letter in held
    ]
    assert len(link.values("reports")) == records
    assert [letter["dlq-reason"].decode() for letter in letters] == reasons
    assert accounts.unaccounted() == 0
