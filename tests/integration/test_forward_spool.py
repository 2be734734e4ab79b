"""The forwarder on a real spool: the accounts balance at every moment, and a restart repeats at most."""

import asyncio
from pathlib import Path

import orjson

from ingest.contract.push import Push, Route
from ingest.forward.courier import Courier, ForwardTopics
from ingest.forward.loop import Forwarder
from ingest.forward.publisher import Publisher
from ingest.runtime.clock import SystemClock
from ingest.runtime.files import RealFileSystem
from ingest.spool.accounts import Accounts
from ingest.spool.disk import DiskSpool, SpoolOptions, adopt_free, open_spool
from tests.fakes.forward import MemoryLink, unclear

PUSHES = 300
TOPICS = ForwardTopics(reports="reports", dead_letters="letters")


def push(number: int) -> Push:
    """Two usable reports and one that is not; now and then a body that cannot be split."""
    if number % 10 == 0:
        return Push(1_795_000_000_000 + number, Route.BATCH, 1, b"{%d" % number)
    elements = [{"smsMsgId": f"{number}-{part}", "status": "DELIVRD"} for part in "ab"]
    body = orjson.dumps({"statusReportList": [*elements, number]})
    return Push(1_795_000_000_000 + number, Route.BATCH, 3, body)


def forwarder(link: MemoryLink, accounts: Accounts) -> Forwarder:
    """A forwarder to brokers in memory."""
    clock = SystemClock()
    courier = Courier(Publisher(link, clock), topics=TOPICS, accounts=accounts, clock=clock)
    return Forwarder(courier, clock)


async def opened(root: Path, accounts: Accounts) -> DiskSpool:
    """A spool on the disk of this machine, whatever it is."""
    options = SpoolOptions(allow_volatile=True)
    return await open_spool(root, options, fs=RealFileSystem(), clock=SystemClock(), accounts=accounts)


async def cancelled(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait for its end."""
    task.cancel()
    await asyncio.wait({task})


async def test_the_accounts_balance_at_every_moment(tmp_path: Path) -> None:
    """While pushes come in and go out, through unclear batches, nothing is ever unaccounted for."""
    accounts, link = Accounts(), MemoryLink(reports=4, letters=3)
    link.batch_records = 20
    spool = await opened(tmp_path, accounts)
    forward = forwarder(link, accounts)
    serving = asyncio.create_task(forward.serve(spool))
    balances = set()

    async def watch() -> None:
        while True:
            balances.add(accounts.unaccounted())
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    for start in range(0, PUSHES, 30):
        link.troubles.append(unclear())
        await asyncio.gather(*(spool.append(push(number)) for number in range(start, start + 30)))
    await forward.until_settled(spool)
    await cancelled(watching)
    await cancelled(serving)
    await spool.close()

    assert balances == {0}
    assert (accounts.published, accounts.dead_lettered) == (270 * 2, 270 + 30)
    assert accounts.pending == 0


async def test_what_was_not_confirmed_goes_to_the_next_process(tmp_path: Path) -> None:
    """A process that ends with batches under way leaves them in its folder; whoever adopts it publishes the rest."""
    accounts, link = Accounts(), MemoryLink(reports=4, letters=3)
    link.gate.clear()
    spool = await opened(tmp_path, accounts)
    serving = asyncio.create_task(forwarder(link, accounts).serve(spool))
    await asyncio.gather(*(spool.append(push(number)) for number in range(PUSHES)))
    await link.arrived.wait()
    await cancelled(serving)
    await spool.close()
    assert (accounts.published, accounts.unaccounted()) == (0, 0)

    heir, link = Accounts(), MemoryLink(reports=4, letters=3)
    adopted = await adopt_free(tmp_path, fs=RealFileSystem(), clock=SystemClock(), accounts=heir)
    await forwarder(link, heir).serve_all(adopted)

    assert heir.recovered == heir.published + heir.dead_lettered == 270 * 3 + 30
    assert heir.unaccounted() == 0
    assert len(link.values("reports")) == 270 * 2
