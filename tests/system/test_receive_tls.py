"""`python -m ingest receive` over TLS as whole processes: two workers, a renewal, and the simulator as the sender."""

import asyncio
import json
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tests.certificates import HOST, Authority
from tests.system.test_receive import Start, http, metric, start, until, until_metric

__all__ = ["http", "start"]


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
    ecdsa.key.write_bytes(b"half a k")
    await until_metric(http, admin, "dlrflow_tls_files_broken", 1)
    assert await served() == {old}
    ecdsa.write(new, key)
    async with asyncio.timeout(5):
        await until(all_is_new)

    await until_metric(http, admin, "dlrflow_tls_reloads_total", 1)
    assert await metric(http, admin, "dlrflow_tls_files_broken") == 0
    pushed = await asyncio.to_thread(_simulate, port, authority.ca_file(tmp_path))
    assert pushed["answers"] == {"200": pushed["pushes"]}
    assert await metric(http, admin, "dlrflow_reports_received_total") == pushed["pushed"]
    assert await command.end() == 0
    assert not [line for line in command.lines if "Traceback" in str(line) or "PRIVATE" in str(line)]


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
