"""The simulator over TLS: operators try the certificate that the platform will meet."""

import asyncio
from pathlib import Path

import pytest

from ingest.contract.push import Route
from ingest.runtime.errors import UsageError
from ingest.simulator.plan import PlannedPush
from ingest.simulator.traffic import Target, send
from tests.certificates import Authority
from tests.wire.test_tls import Secure, StartTls, authority, start_tls

__all__ = ["authority", "start_tls"]

PUSH = PlannedPush(Route.BATCH, b'{"statusReportList":[]}', 0)
PATHS = {Route.BATCH: "/batchReport", Route.SINGLE: "/report"}


def target_of(secure: Secure, ca_file: Path | None) -> Target:
    """Where a secure port is, for a simulator that trusts whom the file names."""
    url = "https://{}:{}".format(*secure.receiver.address)
    return Target.parse(url, paths=PATHS, connections=2, rate=0, sign=None, ca_file=ca_file)


async def test_it_pushes_to_a_receiver_that_it_trusts(start_tls: StartTls, tmp_path: Path) -> None:
    """`--ca-file` names the authority."""
    secure = await start_tls()

    sent = await send([PUSH] * 3, target_of(secure, secure.authority.ca_file(tmp_path)), asyncio.Event())

    assert sent.answers == {"200": 3}


@pytest.mark.parametrize("stranger", [True, False])
async def test_it_ends_at_a_certificate_that_it_does_not_trust(
    start_tls: StartTls, tmp_path: Path, *, stranger: bool
) -> None:
    """Sending again would not help; one line says what would."""
    secure = await start_tls()
    target = target_of(secure, Authority().ca_file(tmp_path) if stranger else None)

    with pytest.raises(UsageError, match=r"is not trusted: .*; --ca-file names whom to trust"):
        await asyncio.wait_for(send([PUSH], target, asyncio.Event()), 10)


def test_a_ca_file_without_tls_is_a_mistake(tmp_path: Path) -> None:
    """It would suggest a safety that is not there; so would a file without certificates."""
    (tmp_path / "empty.pem").touch()
    for url, name, why in (
        ("http://127.0.0.1", "ca.pem", "goes with an --url of https"),
        ("https://127.0.0.1", "none.pem", "cannot be read"),
        ("https://127.0.0.1", "empty.pem", "holds no certificate"),
    ):
        with pytest.raises(UsageError, match=why):
            Target.parse(url, paths=PATHS, connections=1, rate=0, sign=None, ca_file=tmp_path / name)
