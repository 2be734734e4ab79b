"""`python -m ingest receive` over TLS as whole processes: two workers, a renewal, and the simulator as the sender."""

import asyncio
import json
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tests.certificates import HOST, UNKNOWN_CURVE, Authority, PairOfFiles
from tests.system.test_receive import Start, http, metric, start, until, until_metric

__all__ = ["http", "start"]

LOOKED = "dlrflow_tls_files_looked_timestamp_seconds"


async def test_workers_renew_their_certificates_without_a_restart(
    start: Start, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """Within five seconds every worker serves the new pair; a broken one changes nothing but an alarm."""
    authority = Authority()
    rsa, ecdsa = authority.pair(tmp_path, "RSA"), authority.pair(tmp_path, "ECDSA")
    command = await start(
        workers=2,
        tls_cert_files=f"{rsa.cert},{ecdsa.cert}",
        tls_key_files=f"{rsa.key},{ecdsa.key}",
        tls_max_version="1.2",
    )
    port, admin = (await command.said("receives"))["port"], await command.admin()
    new, key = authority.issue("ECDSA")

    async def served() -> set[str]:
        """The certificates that some new connections get."""
        return set(await asyncio.gather(*(asyncio.to_thread(_certificate, port) for _ in range(8))))

    async def all_is_new() -> bool:
        return await served() == {x509.load_pem_x509_certificates(new)[0].public_bytes(Encoding.DER).hex()}

    [old] = await served()
    first_look = await metric(http, admin, LOOKED)
    workers = set(psutil.Process(command.process.pid).children())
    for failures, (cert, half) in enumerate([UNKNOWN_CURVE, (new, b"half a k")], start=1):
        ecdsa.write(cert, half)
        await until_metric(http, admin, "dlrflow_tls_files_failures_total", failures)
        assert await metric(http, admin, "dlrflow_tls_files_broken") == 1
        assert await served() == {old}
    ecdsa.write(new, key)
    async with asyncio.timeout(5):
        await until(all_is_new)

    await until_metric(http, admin, "dlrflow_tls_reloads_total", 1)
    assert await metric(http, admin, "dlrflow_tls_files_broken") == 0
    assert set(psutil.Process(command.process.pid).children()) == workers
    assert first_look < await metric(http, admin, LOOKED) <= time.time()
    pushed = await asyncio.to_thread(_simulate, port, authority.ca_file(tmp_path))
    assert pushed["answers"] == {"200": pushed["pushes"]}
    assert await metric(http, admin, "dlrflow_reports_received_total") == pushed["pushed"]
    assert await command.end() == 0
    assert not [line for line in command.lines if "Traceback" in str(line) or "PRIVATE" in str(line)]


async def test_without_descriptors_nothing_ends_and_nothing_is_forgotten(
    start: Start, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """The files changed while the process could open none: they are taken over as soon as it can again."""
    authority = Authority()
    pair = authority.pair(tmp_path, "ECDSA")
    command = await start(workers=1, tls_cert_files=pair.cert, tls_key_files=pair.key)
    admin, parent = await command.admin(), psutil.Process(command.process.pid)
    await command.said("receives")
    limits = parent.rlimit(psutil.RLIMIT_NOFILE)

    parent.rlimit(psutil.RLIMIT_NOFILE, (1, limits[1]))
    pair.write(*authority.issue("ECDSA"))
    line = await command.said("files cannot be looked at now: trying again")
    parent.rlimit(psutil.RLIMIT_NOFILE, limits)

    assert line["because"] == "Too many open files"
    await until_metric(http, admin, "dlrflow_tls_reloads_total", 1)
    assert await metric(http, admin, "dlrflow_tls_files_failures_total") == 0


async def test_a_certificate_on_an_unknown_curve_is_one_clear_line(start: Start, tmp_path: Path) -> None:
    """Status 2 at the start, and no traceback."""
    pair = PairOfFiles(tmp_path / "odd.crt", tmp_path / "odd.key")
    pair.write(*UNKNOWN_CURVE)
    command = await start(tls_cert_files=pair.cert, tls_key_files=pair.key)

    assert await asyncio.wait_for(command.process.wait(), 60) == 2
    async with asyncio.timeout(60), command.news:
        await command.news.wait_for(lambda: command.lines)
    [line] = command.lines
    assert str(line["event"]).startswith(f"error: DLR_TLS_CERT_FILES, DLR_TLS_KEY_FILES: {pair.cert}")


def _certificate(port: int) -> str:
    """What a new connection gets."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with socket.create_connection((HOST, port)) as plain, context.wrap_socket(plain) as connection:
        return (connection.getpeercert(binary_form=True) or b"").hex()


def _simulate(port: int, ca_file: Path) -> dict[str, Any]:
    """Push as an operator would who tries the certificate."""
    command = ("-m", "ingest", "simulate", "--url", f"https://{HOST}:{port}", "--ca-file", str(ca_file))
    ran = subprocess.run(
        [sys.executable, *command, "--messages", "200", "--connections", "4"],
        capture_output=True,
        timeout=60,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    said: dict[str, Any] = json.loads(ran.stdout)
    return said
