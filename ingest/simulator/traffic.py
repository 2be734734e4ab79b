"""Sends a plan over HTTP: many connections, open loop at a rate or flat out, every push until it is taken."""

import asyncio
import ssl
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import aiohttp

from ingest.contract.push import Route
from ingest.runtime.backoff import Backoff
from ingest.runtime.errors import UsageError
from ingest.simulator.plan import PlannedPush
from ingest.simulator.signing import signed_headers

ANSWER_TIMEOUT_S = 30.0
"""The longest wait for one answer; then the push is sent again."""
RETRY_FIRST_S, RETRY_MOST_S = 0.05, 2.0

_TAKEN = {HTTPStatus.OK, HTTPStatus.BAD_REQUEST}
_CONTENT_TYPES = {
    Route.BATCH: "application/JSON;charset=UTF-8",
    Route.SINGLE: "application/x-www-form-urlencoded",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where and how to send.

    Attributes:
        url: scheme, host and port.
        paths: the path of each route.
        connections: the most connections at once.
        rate: reports per second, 0 for as fast as possible.
        key: access key and secret key to sign with, or None.
        tls: whom to trust, None: the authorities that this machine trusts.
    """

    url: str
    paths: dict[Route, str]
    connections: int
    rate: float
    key: tuple[str, str] | None
    tls: ssl.SSLContext | None = None

    @classmethod
    def parse(
        cls,
        url: str,
        *,
        paths: dict[Route, str],
        connections: int,
        rate: float,
        sign: str | None,
        ca_file: Path | None = None,
    ) -> Self:
        """Read the words of the command line.

        Raises:
            UsageError: `url` is more or less than scheme, host and port, `sign` is no `AK:SK`, or `ca_file` holds no
                certificates or goes with plain HTTP.
        """
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.netloc or parts.path.strip("/") or parts.query:
            raise UsageError("--url takes scheme, host and port, such as http://127.0.0.1:8080")
        access_key, colon, secret_key = (sign or "").partition(":")
        if sign is not None and not (access_key and colon and secret_key):
            raise UsageError("--sign takes an access key and a secret key, joined by a colon")
        key = None if sign is None else (access_key, secret_key)
        if ca_file is not None and parts.scheme != "https":
            raise UsageError("--ca-file goes with an --url of https")
        return cls(
            url=f"{parts.scheme}://{parts.netloc}",
            paths=paths,
            connections=connections,
            rate=rate,
            key=key,
            tls=None if ca_file is None else _trusting(ca_file),
        )


def _trusting(ca_file: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except ssl.SSLError:
        raise UsageError(f"--ca-file {ca_file} holds no certificate (PEM)") from None
    except OSError as error:
        raise UsageError(f"--ca-file {ca_file} cannot be read: {error.strerror}") from None


@dataclass(slots=True)
class Sent:
    """What happened.

    Attributes:
        answers: HTTP statuses and `no answer`, each with its number.
        answers_s: of the taken pushes, from their last sending to the answer.
        latencies_s: the same from the moment they were due, sending again and waiting for a connection included.
        distrust: what is wrong with the certificate of the receiver, empty if nothing is.
    """

    pushes: int = 0
    reports: int = 0
    resent: int = 0
    seconds: float = 0.0
    answers: Counter[str] = field(default_factory=Counter)
    answers_s: list[float] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)
    distrust: str = ""


def quantile_ms(seconds: Sequence[float], quantile: float) -> float:
    """A quantile, 0 to 1, in milliseconds; 0.0 of nothing."""
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, int(len(ordered) * quantile))] * 1000 if ordered else 0.0


async def send(pushes: Iterable[PlannedPush], target: Target, stop: asyncio.Event) -> Sent:
    """Send every push until it is answered 200 or 400; ends early when `stop` is set.

    With a rate the schedule does not wait for answers, up to `connections` pushes in flight; latency then counts from
    the moment a push was due, so that a receiver that stalls is not flattered.

    Raises:
        UsageError: the certificate of the receiver is not one to trust: sending again would not help.
    """
    sent = Sent()
    began = time.monotonic()
    source = iter(pushes)
    due = began
    timeout = aiohttp.ClientTimeout(total=ANSWER_TIMEOUT_S)
    connector = aiohttp.TCPConnector(limit=target.connections, ssl=target.tls or True)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as session:

        async def connection() -> None:
            nonlocal due
            for push in source:
                at = due if target.rate else time.monotonic()
                if target.rate:
                    due += push.reports / target.rate
                    if at > time.monotonic() and await _stopped_within(stop, at - time.monotonic()):
                        return
                await _until_taken(session, push, target, sent, stop)
                if stop.is_set():
                    return
                sent.latencies_s.append(time.monotonic() - at)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(target.connections):
                tasks.create_task(connection())
    sent.seconds = time.monotonic() - began
    if sent.distrust:
        raise UsageError(
            f"the certificate of {target.url} is not trusted: {sent.distrust}; --ca-file names whom to trust"
        )
    return sent


async def _until_taken(
    session: aiohttp.ClientSession, push: PlannedPush, target: Target, sent: Sent, stop: asyncio.Event
) -> None:
    backoff = Backoff(RETRY_FIRST_S, RETRY_MOST_S)
    while not stop.is_set():
        began = time.monotonic()
        try:
            async with session.post(
                target.url + target.paths[push.route], data=push.body, headers=_headers(push, target)
            ) as response:
                await response.read()
                sent.answers[str(response.status)] += 1
                if response.status in _TAKEN:
                    sent.pushes += 1
                    sent.reports += push.reports
                    sent.answers_s.append(time.monotonic() - began)
                    return
        except aiohttp.ClientConnectorCertificateError as error:
            sent.distrust = _distrust(error)
            stop.set()
            return
        except (aiohttp.ClientError, TimeoutError):
            sent.answers["no answer"] += 1
        sent.resent += 1
        await _stopped_within(stop, backoff.next())


def _distrust(error: aiohttp.ClientConnectorCertificateError) -> str:
    cause = error.certificate_error
    return cause.verify_message if isinstance(cause, ssl.SSLCertVerificationError) else str(cause)


def _headers(push: PlannedPush, target: Target) -> dict[str, str]:
    content_type = _CONTENT_TYPES[push.route]
    if target.key is None:
        return {"Content-Type": content_type}
    access_key, secret_key = target.key
    return signed_headers(
        access_key,
        secret_key,
        path=target.paths[push.route],
        host=target.url.partition("://")[2],
        content_type=content_type,
        body=push.body,
        now=datetime.now(UTC),
    )


async def _stopped_within(stop: asyncio.Event, seconds: float) -> bool:
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        return False
    return True
